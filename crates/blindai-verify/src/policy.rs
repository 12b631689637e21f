mod models;
mod snp;

use std::cell::RefCell;
use std::fmt;

use blindai_core::pins::ModelPins;
use blindai_core::{Digest, Tee};
use chrono::{NaiveDate, NaiveTime};
use dcap_qvl::TcbStatus;
use toml::{Table, Value};

use crate::dcap::Root;
use crate::field::{self, Allowed, Field, Form};

pub(crate) use snp::{Minimum, SnpPolicy};

/// What a verifier accepts. The [crate documentation](crate#the-policy-file) shows the file.
#[derive(Clone, Debug)]
pub struct Policy {
    pub(crate) tees: Vec<Tee>,
    pub(crate) hardware_roots: bool,
    pub(crate) simulation_root: bool,
    pub(crate) pins: Vec<Pin>,
    pub(crate) allowed_statuses: Vec<TcbStatus>,
    pub(crate) exceptions: Vec<Exception>,
    pub(crate) min_evaluation_number: Option<u32>,
    pub(crate) config_digests: Vec<Digest>,
    pub(crate) allow_debug: bool,
    pub(crate) snp: SnpPolicy,
    pub(crate) models: ModelPins,
}

impl Policy {
    /// Compiles a policy file.
    ///
    /// # Errors
    /// All mistakes at once: unknown keys, malformed values, and a policy that would let code run
    /// that nobody named: without a TEE, or for a TEE without a measurement or signer.
    pub fn from_toml(text: &str) -> Result<Self, PolicyError> {
        let table = text.parse::<Table>().map_err(|error| PolicyError {
            problems: vec![not_toml(text, &error)],
        })?;
        let problems = RefCell::default();
        let policy = read_policy(Section {
            path: String::new(),
            table,
            problems: &problems,
        });
        let problems = problems.into_inner();
        if problems.is_empty() {
            Ok(policy)
        } else {
            Err(PolicyError { problems })
        }
    }

    /// Refuses whatever a server proves: no code satisfies it. For callers who were given no policy
    /// and still ask the server, because its refusal says what it is; a simulation is refused as
    /// [`TrustRootSimulation`](crate::RejectionCode::TrustRootSimulation), hardware that holds
    /// otherwise as [`MeasurementMismatch`](crate::RejectionCode::MeasurementMismatch).
    pub fn accept_nothing() -> Self {
        let nothing = |tee| {
            let code = Field::of(tee).find(|field| field.group == field::Group::Code);
            code.map(|field| Pin {
                tee,
                field,
                allowed: Allowed::OneOf(Vec::new()),
            })
        };
        let tees = TEES.to_vec();
        let pins = tees.iter().filter_map(|tee| nothing(*tee)).collect();
        Self {
            tees,
            hardware_roots: true,
            simulation_root: false,
            pins,
            allowed_statuses: vec![TcbStatus::UpToDate],
            exceptions: Vec::new(),
            min_evaluation_number: None,
            config_digests: Vec::new(),
            allow_debug: false,
            snp: SnpPolicy::default(),
            models: ModelPins::default(),
        }
    }

    /// Which models a client with this policy accepts. Evidence says nothing of models: a server is
    /// told with each request, and receipts are compared.
    pub fn models(&self) -> &ModelPins {
        &self.models
    }

    pub(crate) fn pins_field(&self, name: &str) -> bool {
        self.pins.iter().any(|pin| pin.field.name == name)
    }

    /// The way to policies that protect nothing. For tests and demonstrations.
    pub fn dangerous() -> DangerousPolicy {
        DangerousPolicy(())
    }

    /// Accepts the simulation root as well. The pins hold for simulated evidence too, but they
    /// protect nothing: anybody can sign with the simulation's key.
    #[must_use]
    pub fn dangerous_accept_simulation(mut self) -> Self {
        self.simulation_root = true;
        self
    }

    /// Whether simulated evidence would pass.
    pub fn accepts_simulation(&self) -> bool {
        self.simulation_root
    }

    /// When the exception for this ends, if there is one that still holds.
    pub(crate) fn excepted_until(&self, of: &Excepted, now: u64) -> Option<u64> {
        let holding = |e: &&Exception| e.of == *of && now < e.until;
        let holding = self.exceptions.iter().filter(holding);
        holding.map(|exception| exception.until).max()
    }

    pub(crate) fn accepts_root(&self, root: Root) -> bool {
        match root {
            Root::Intel | Root::Amd(_) => self.hardware_roots,
            Root::Simulation | Root::SimulationArk => self.simulation_root,
        }
    }
}

/// See [`Policy::dangerous`].
#[derive(Debug)]
pub struct DangerousPolicy(());

impl DangerousPolicy {
    /// A policy that accepts any code under the simulation root, and nothing else: evidence of
    /// hardware is refused, because the policy names no measurement to hold it to.
    pub fn accept_simulation(self) -> Policy {
        Policy {
            tees: TEES.to_vec(),
            hardware_roots: false,
            simulation_root: true,
            pins: Vec::new(),
            allowed_statuses: vec![TcbStatus::UpToDate],
            exceptions: Vec::new(),
            min_evaluation_number: None,
            config_digests: Vec::new(),
            allow_debug: false,
            snp: SnpPolicy::default(),
            models: ModelPins::default(),
        }
    }
}

/// Every reason why a policy does not compile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyError {
    problems: Vec<String>,
}

impl PolicyError {
    /// Each mistake, naming its key.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the policy is refused: {}", self.problems.join("; "))
    }
}

impl std::error::Error for PolicyError {}

/// What one field of one kind of TEE may be.
#[derive(Clone)]
pub(crate) struct Pin {
    pub tee: Tee,
    pub field: &'static Field,
    pub allowed: Allowed,
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}: {}", self.tee, self.field.name, self.allowed)
    }
}

/// What is accepted until a time although it is not up to date.
#[derive(Clone, Debug)]
pub(crate) struct Exception {
    pub of: Excepted,
    /// Seconds since 1970; from then on it no longer holds.
    pub until: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Excepted {
    Advisory(String),
    Status(TcbStatus),
}

fn not_toml(text: &str, error: &toml::de::Error) -> String {
    let before = error.span().and_then(|span| text.get(..span.start));
    let line = before.map_or(1, |before| before.matches('\n').count() + 1);
    format!("line {line} is not TOML: {}", error.message())
}

fn read_policy(mut top: Section<'_>) -> Policy {
    let tees = read_tees(&mut top);
    let mut pins = Vec::new();
    let mut snp = SnpPolicy::default();
    for tee in TEES {
        match (top.section(tee.as_str()), tees.contains(&tee)) {
            (Some(mut section), named) => {
                if tee == Tee::SevSnp {
                    snp = snp::read(&mut section);
                }
                pins.extend(read_pins(tee, section));
                if !named {
                    top.problem(tee.as_str(), "stands there, but \"tee\" does not name it");
                }
            }
            (None, true) => top.problem(tee.as_str(), "is missing, so any code would pass"),
            (None, false) => {}
        }
    }
    let (allowed_statuses, exceptions, min_evaluation_number) = read_tcb(&mut top);
    let policy = Policy {
        tees,
        hardware_roots: true,
        simulation_root: false,
        pins,
        allowed_statuses,
        exceptions,
        min_evaluation_number,
        config_digests: top
            .parsed("config_digest", "a list of digests, sha256:<64 hex>", |d| {
                d.parse().ok()
            })
            .unwrap_or_default(),
        allow_debug: top.flag("dangerous_allow_debug").unwrap_or(false),
        snp,
        models: models::read(&mut top),
    };
    top.finish();
    policy
}

fn read_tees(top: &mut Section<'_>) -> Vec<Tee> {
    let mut tees = Vec::new();
    for name in top.strings("tee").unwrap_or_default() {
        match TEES.iter().find(|tee| tee.as_str() == name) {
            Some(tee) => tees.push(*tee),
            None => {
                let known = TEES.map(Tee::as_str).join(", ");
                top.problem("tee", &format!("knows {known}, not {name:?}"));
            }
        }
    }
    if tees.is_empty() {
        top.problem("tee", "names no kind of TEE, so nothing could ever pass");
    }
    tees
}

fn read_pins(tee: Tee, mut section: Section<'_>) -> Vec<Pin> {
    let pins: Vec<_> = Field::of(tee)
        .filter_map(|field| {
            let allowed = read_allowed(field, &mut section)?;
            Some(Pin {
                tee,
                field,
                allowed,
            })
        })
        .collect();
    let named = |name: &str| pins.iter().any(|pin| pin.field.name == name);
    match tee {
        Tee::Sgx => require_enclave(&section, named),
        Tee::Tdx => require_system(&section, named),
        Tee::SevSnp => snp::require_guest(&section, &pins, named),
    }
    section.finish();
    pins
}

// A signer alone would let every product and every old,
// vulnerable version of that signer pass.
fn require_enclave(section: &Section<'_>, named: impl Fn(&str) -> bool) {
    match (named("mrenclave"), named("mrsigner")) {
        (true, _) => {}
        (false, false) => section.problem("", "names neither mrenclave nor mrsigner"),
        (false, true) if named("isv_prod_id") && named("isv_svn") => {}
        (false, true) => section.problem("mrsigner", "needs isv_prod_id and min_isv_svn beside it"),
    }
}

// MRTD measures the virtual firmware only. Whoever starts the TD chooses kernel and initial disk,
// which RTMR1 and RTMR2 measure: without them any kernel would pass.
fn require_system(section: &Section<'_>, named: impl Fn(&str) -> bool) {
    for name in ["mrtd", "rtmr1", "rtmr2"] {
        if !named(name) {
            section.problem(
                name,
                "is missing; mrtd, rtmr1 and rtmr2 together measure firmware, kernel and initial disk",
            );
        }
    }
}

fn read_allowed(field: &Field, section: &mut Section<'_>) -> Option<Allowed> {
    let key = &field.key();
    match field.form {
        Form::OneOf(bytes) => {
            let values = section.hex(key, bytes)?.into_iter();
            Some(Allowed::OneOf(values.map(field::Value::Bytes).collect()))
        }
        Form::Exactly => {
            let number: u16 = section.integer(key)?;
            Some(Allowed::OneOf(vec![field::Value::Number(number.into())]))
        }
        Form::AtLeast => {
            let least: u32 = section.integer(key)?;
            Some(Allowed::AtLeast(least.into()))
        }
        Form::EachAtLeast(bytes) => section.one_hex(key, bytes).map(Allowed::EachAtLeast),
        Form::Bits(bytes) => read_bits(bytes, section.section(key)?),
        Form::Flag => {
            let flag = section.flag(key)?;
            Some(Allowed::OneOf(vec![field::Value::Flag(flag)]))
        }
        Form::Shown => None,
    }
}

fn read_bits(bytes: usize, mut bits: Section<'_>) -> Option<Allowed> {
    let [value, mask] = ["value", "mask"].map(|key| {
        if !bits.table.contains_key(key) {
            bits.problem(key, "is missing");
        }
        bits.one_hex(key, bytes)
    });
    let (value, mask) = (value?, mask?);
    // Such a line could never hold, and one without bits would hold for all.
    if value
        .iter()
        .zip(&mask)
        .any(|(value, mask)| value & !mask != 0)
    {
        bits.problem("value", "has bits outside its mask");
    }
    if mask.iter().all(|byte| *byte == 0) {
        bits.problem("mask", "has no bits");
    }
    bits.finish();
    Some(Allowed::Bits { value, mask })
}

fn read_tcb(top: &mut Section<'_>) -> (Vec<TcbStatus>, Vec<Exception>, Option<u32>) {
    let mut allowed = vec![TcbStatus::UpToDate];
    let Some(mut section) = top.section("tcb") else {
        return (allowed, Vec::new(), None);
    };
    if let Some(names) = section.strings("allowed") {
        let status = |name: String| section.status("allowed", &name);
        allowed = names.into_iter().filter_map(status).collect();
    }
    let minimum = section.integer("min_evaluation_number");
    let mut exceptions = Vec::new();
    for entry in section.sections("exceptions") {
        exceptions.extend(read_exception(entry));
    }
    section.finish();
    (allowed, exceptions, minimum)
}

fn read_exception(mut entry: Section<'_>) -> Option<Exception> {
    let until = match entry.string("until") {
        Some(date) => end_of_day(&date).or_else(|| {
            entry.problem("until", "is a date written \"2026-12-31\"");
            None
        }),
        None => {
            entry.problem("until", "is missing; no exception lasts for ever");
            None
        }
    };
    let of = match (entry.string("advisory"), entry.string("status")) {
        (Some(advisory), None) => Some(Excepted::Advisory(advisory)),
        (None, Some(name)) => entry.status("status", &name).map(Excepted::Status),
        _ => {
            entry.problem("", "names one of advisory and status");
            None
        }
    };
    entry.finish();
    Some(Exception {
        of: of?,
        until: until?,
    })
}

// "Until" includes the day, in UTC.
fn end_of_day(date: &str) -> Option<u64> {
    let day = NaiveDate::parse_from_str(date, "%Y-%m-%d").ok()?;
    let next = day.succ_opt()?.and_time(NaiveTime::MIN);
    next.and_utc().timestamp().try_into().ok()
}

/// A table of the file. What is not taken from it by the end is unknown.
struct Section<'a> {
    path: String,
    table: Table,
    problems: &'a RefCell<Vec<String>>,
}

impl<'a> Section<'a> {
    fn finish(self) {
        for key in self.table.keys() {
            self.problem(key, "is not a known key");
        }
    }

    fn problem(&self, key: &str, what: &str) {
        let problem = format!("{} {what}", join(&self.path, key));
        self.problems.borrow_mut().push(problem);
    }

    /// Takes the value of a key when it has the wanted form; notes the problem when it does not.
    fn take<T>(&mut self, key: &str, form: &str, read: impl Fn(Value) -> Option<T>) -> Option<T> {
        let taken = read(self.table.remove(key)?);
        if taken.is_none() {
            self.problem(key, &format!("is {form}"));
        }
        taken
    }

    fn section(&mut self, key: &str) -> Option<Section<'a>> {
        let table = self.take(key, "a table", |value| match value {
            Value::Table(table) => Some(table),
            _ => None,
        })?;
        Some(self.child(key.to_owned(), table))
    }

    fn sections(&mut self, key: &str) -> Vec<Section<'a>> {
        let tables = self.take(key, "a list of tables", |value| {
            let table = |value| match value {
                Value::Table(table) => Some(table),
                _ => None,
            };
            list(value)?
                .into_iter()
                .map(table)
                .collect::<Option<Vec<_>>>()
        });
        let tables = tables.unwrap_or_default().into_iter().enumerate();
        let child = |(i, table)| self.child(format!("{key}[{i}]"), table);
        tables.map(child).collect()
    }

    fn child(&self, key: String, table: Table) -> Section<'a> {
        Section {
            path: join(&self.path, &key),
            table,
            problems: self.problems,
        }
    }

    fn string(&mut self, key: &str) -> Option<String> {
        self.take(key, "a text", text)
    }

    fn strings(&mut self, key: &str) -> Option<Vec<String>> {
        self.parsed(key, "a list of texts", Some)
    }

    fn flag(&mut self, key: &str) -> Option<bool> {
        self.take(key, "true or false", |value| value.as_bool())
    }

    fn integer<T: TryFrom<i64>>(&mut self, key: &str) -> Option<T> {
        self.take(key, "a number in range", |value| {
            T::try_from(value.as_integer()?).ok()
        })
    }

    /// A list of hexadecimal texts of so many bytes. An empty list allows nothing and is a mistake,
    /// not the absence of a pin.
    fn hex(&mut self, key: &str, bytes: usize) -> Option<Vec<Vec<u8>>> {
        let form = format!("a list of texts of {} hexadecimal digits", bytes * 2);
        self.parsed(key, &form, |text| hex_of(&text, bytes))
    }

    fn one_hex(&mut self, key: &str, bytes: usize) -> Option<Vec<u8>> {
        let form = format!("a text of {} hexadecimal digits", bytes * 2);
        self.take(key, &form, |value| hex_of(value.as_str()?, bytes))
    }

    fn parsed<T>(
        &mut self,
        key: &str,
        form: &str,
        parse: impl Fn(String) -> Option<T>,
    ) -> Option<Vec<T>> {
        self.take(key, form, |value| {
            let values = list(value)?.into_iter().map(|value| parse(text(value)?));
            let values = values.collect::<Option<Vec<_>>>()?;
            (!values.is_empty()).then_some(values)
        })
    }

    fn status(&self, key: &str, name: &str) -> Option<TcbStatus> {
        let status = STATUSES.iter().find(|status| status.to_string() == name);
        if status.is_none() {
            self.problem(
                key,
                &format!("knows no status {name:?} that may be accepted"),
            );
        }
        status.copied()
    }
}

fn hex_of(text: &str, bytes: usize) -> Option<Vec<u8>> {
    hex::decode(text).ok().filter(|value| value.len() == bytes)
}

fn list(value: Value) -> Option<Vec<Value>> {
    match value {
        Value::Array(values) => Some(values),
        _ => None,
    }
}

fn text(value: Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text),
        _ => None,
    }
}

fn join(path: &str, key: &str) -> String {
    match (path, key) {
        ("", key) => key.to_owned(),
        (path, "") => path.to_owned(),
        (path, key) => format!("{path}.{key}"),
    }
}

/// All but `Revoked`: its keys are public knowledge, and no policy can change that.
const STATUSES: &[TcbStatus] = &[
    TcbStatus::UpToDate,
    TcbStatus::SWHardeningNeeded,
    TcbStatus::ConfigurationNeeded,
    TcbStatus::ConfigurationAndSWHardeningNeeded,
    TcbStatus::OutOfDate,
    TcbStatus::OutOfDateConfigurationNeeded,
    TcbStatus::TDRelaunchAdvised,
    TcbStatus::TDRelaunchAdvisedConfigurationNeeded,
];

const TEES: [Tee; 3] = [Tee::Sgx, Tee::Tdx, Tee::SevSnp];

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> Vec<String> {
        Policy::from_toml(text).unwrap_err().problems
    }

    fn hex(byte: &str, bytes: usize) -> String {
        format!("[\"{}\"]", byte.repeat(bytes))
    }

    fn sgx(rest: &str) -> String {
        let enclave = hex("aA", 32);
        format!("tee = [\"sgx\"]\n{rest}\n[sgx]\nmrenclave = {enclave}\n")
    }

    #[test]
    fn an_empty_policy_is_refused() {
        assert_eq!(problems("").len(), 1);
        assert_eq!(problems("tee = []").len(), 2);
    }

    #[test]
    fn what_is_not_toml_is_refused_with_its_line() {
        assert!(problems("tee = []\n\ntee =")[0].starts_with("line 3 is not TOML"));
        assert!(problems("tee = []\ntee = []")[0].starts_with("line 2 is not TOML"));
    }

    #[test]
    fn a_policy_that_would_let_any_code_run_is_refused() {
        let signer = hex("aa", 32);
        let mrtd = hex("bb", 48);
        for (text, word) in [
            ("tee = [\"sgx\"]".to_owned(), "sgx is missing"),
            ("tee = [\"sgx\"]\n[sgx]".to_owned(), "mrenclave"),
            (
                "tee = [\"sgx\"]\n[sgx]\nmin_isv_svn = 1".to_owned(),
                "mrenclave",
            ),
            (
                "tee = [\"sgx\"]\n[sgx]\nmrenclave = []".to_owned(),
                "mrenclave",
            ),
            (
                format!("tee = [\"sgx\"]\n[sgx]\nmrsigner = {signer}"),
                "isv_prod_id",
            ),
            (
                format!("tee = [\"tdx\"]\n[tdx]\nmrtd = {mrtd}"),
                "tdx.rtmr1",
            ),
        ] {
            let problems = problems(&text).join("; ");
            assert!(problems.contains(word), "{text}: {problems}");
        }
    }

    #[test]
    fn all_mistakes_are_reported_at_once() {
        let text = r#"
            tee = ["sgx", "sev"]
            colour = 1
            dangerous_allow_debug = "yes"
            config_digest = ["sha256:00"]
            [sgx]
            mrenclave = ["aa"]
            [tdx]
            size = 1
            [tcb]
            allowed = ["Revoked"]
            min_evaluation_number = -1
            [[tcb.exceptions]]
            advisory = "INTEL-SA-00615"
            [[tcb.exceptions]]
            until = "2026-02-30"
        "#;
        let problems = problems(text).join("\n");
        for word in [
            "not \"sev\"",
            "colour is not a known key",
            "dangerous_allow_debug is",
            "config_digest is",
            "sgx.mrenclave is",
            "tdx.size is not a known key",
            "tdx stands there",
            "\"Revoked\"",
            "tcb.min_evaluation_number is",
            "tcb.exceptions[0].until is missing",
            "tcb.exceptions[1].until is",
            "tcb.exceptions[1] names one",
        ] {
            assert!(problems.contains(word), "{word}:\n{problems}");
        }
    }

    #[test]
    fn the_defaults_are_strict() {
        let policy = Policy::from_toml(&sgx("")).unwrap();
        assert!(policy.accepts_root(Root::Intel));
        assert!(!policy.accepts_root(Root::Simulation));
        assert!(!policy.allow_debug);
        assert_eq!(policy.allowed_statuses, [TcbStatus::UpToDate]);
        assert!(policy.exceptions.is_empty());
        let [pin] = policy.pins.as_slice() else {
            panic!("one pin")
        };
        assert!(
            matches!(&pin.allowed, Allowed::OneOf(v) if *v == [field::Value::Bytes(vec![0xaa; 32])])
        );
    }

    #[test]
    fn simulation_is_only_accepted_by_name() {
        let any = Policy::dangerous().accept_simulation();
        assert!(any.accepts_root(Root::Simulation) && !any.accepts_root(Root::Intel));
        let policy = Policy::from_toml(&sgx("")).unwrap();
        let both = policy.dangerous_accept_simulation();
        assert!(both.accepts_root(Root::Simulation) && both.accepts_root(Root::Intel));
        assert_eq!(problems(&sgx("simulation = true")).len(), 1);
    }

    #[test]
    fn an_exception_lasts_to_the_end_of_its_day() {
        assert_eq!(end_of_day("1970-01-01"), Some(86_400));
        assert_eq!(end_of_day("2026-12-31"), Some(1_798_761_600));
        assert_eq!(end_of_day("1969-12-30"), None);
    }
}
