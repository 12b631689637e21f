//! SEV-SNP: the report of a guest, the key that signed it, and AMD's certificates above that key.
//!
//! ARK (AMD's root, our own copy) → ASK or ASVK → VCEK or VLEK → report. The certificate of the key
//! names a patch level, and a VCEK's the chip as well: both must be the report's, or a leaked key of
//! an old patch level could sign for a new one.
//!
//! AMD publishes no verdict on a patch level, as Intel does: the policy names the least versions.

mod certificate;
mod chain;
mod observe;
mod report;

use blindai_core::{SnpCollateral, Tee};

use crate::RejectionCode as Code;
use crate::appraise::{Appraised, check_debug, check_pins, check_root, check_tee, report_values};
use crate::check::{Table, checks};
use crate::dcap::Refused;
use crate::field::{Value, Values};
use crate::policy::{Minimum, Policy};
use crate::report::{QuoteReport, utc};

use chain::Chain;
pub(crate) use chain::Product;
pub(crate) use observe::{Seen, observe};
pub(crate) use report::{Component, Report};
use report::{GuestPolicy, Tcb};

/// Appraises a report. What holds and what does not stands in the table.
pub(crate) fn appraise(
    bytes: &[u8],
    collateral: &SnpCollateral,
    policy: &Policy,
    now: u64,
    table: &mut Table,
) -> Appraised {
    let report = match Report::parse(bytes) {
        Ok(report) => report,
        Err(refused) => return unreadable(refused, table),
    };
    check_tee(Tee::SevSnp, policy, table);
    let chain = read_chain(collateral, table);
    let chain = chain.as_ref();
    let proven = match chain {
        Some(chain) => check_steps(report, chain, policy, now, table),
        None => skip_steps(table),
    };
    let crl = check_revocation(chain, collateral, policy, now, table);
    check_debug(
        report.guest_policy().allows_debug(),
        policy.allow_debug,
        table,
    );
    check_guest(report, policy, table);
    check_versions(report, chain.map(|chain| chain.product), policy, table);
    let values = values(report);
    check_pins(Tee::SevSnp, &values, Ok(&Values::new()), policy, table);

    let proven = chain.filter(|_| proven);
    let (measurements, details) = report_values(Tee::SevSnp, values, Values::new());
    let report_of = |chain: &Chain| QuoteReport {
        tee: Tee::SevSnp,
        root: chain.root,
        tcb_status: TCB_STATUS.to_owned(),
        advisories: Vec::new(),
        measurements,
        details,
        checks: Vec::new(),
        verified_at: now,
        valid_until: chain.ends_at().min(crl.unwrap_or(0)),
    };
    Appraised {
        report_data: Some(report.report_data()),
        report: proven.map(report_of),
    }
}

/// The patch level is what the chip reports; nobody calls it good or bad.
const TCB_STATUS: &str = "reported";
const NOT_READ: &str = "the report cannot be read";
const NO_CHAIN: &str = "the certificates cannot be read";

fn unreadable(refused: Refused, table: &mut Table) -> Appraised {
    table.not_possible(checks::TEE, NOT_READ);
    table.not_possible(checks::TRUST_ROOT, NOT_READ);
    table.fail(checks::QUOTE, refused.code, refused.text);
    table.not_possible(checks::DEBUG, NOT_READ);
    Appraised {
        report_data: None,
        report: None,
    }
}

fn read_chain(collateral: &SnpCollateral, table: &mut Table) -> Option<Chain> {
    match Chain::read(collateral) {
        Ok(chain) => Some(chain),
        Err(refused) if refused.code == Code::TrustRootUnknown => {
            table.fail(checks::TRUST_ROOT, refused.code, refused.text);
            table.not_possible(checks::CERTIFICATE_CHAIN, NO_CHAIN);
            None
        }
        Err(refused) => {
            table.not_possible(checks::TRUST_ROOT, NO_CHAIN);
            table.fail(checks::CERTIFICATE_CHAIN, refused.code, refused.text);
            None
        }
    }
}

/// What must hold of report and certificates, whatever the policy, in this order.
fn steps(
    report: Report<'_>,
    chain: &Chain,
    now: u64,
) -> [(&'static str, Result<String, Refused>); 5] {
    let product = chain.product;
    let until = || format!("signatures and dates hold until {}", utc(chain.ends_at()));
    [
        (
            checks::CERTIFICATE_CHAIN,
            chain.verify(now).map(|()| until()),
        ),
        (checks::CERTIFICATE_TCB, certificate_tcb(report, chain)),
        (checks::CERTIFICATE_CHIP, chain.check_chip(report)),
        (checks::CPU, cpu(report, product)),
        (checks::QUOTE, signature(report, chain)),
    ]
}

fn check_steps(
    report: Report<'_>,
    chain: &Chain,
    policy: &Policy,
    now: u64,
    table: &mut Table,
) -> bool {
    let steps = steps(report, chain, now);
    let [(_, chain_result), ..] = &steps;
    check_root(chain.root, chain_result.as_ref().err(), policy, table);
    let proven = steps.iter().all(|(_, result)| result.is_ok());
    for (name, result) in steps {
        settle(name, result, table);
    }
    proven
}

fn skip_steps(table: &mut Table) -> bool {
    for name in [
        checks::CERTIFICATE_TCB,
        checks::CERTIFICATE_CHIP,
        checks::CPU,
        checks::QUOTE,
    ] {
        table.not_possible(name, NO_CHAIN);
    }
    false
}

fn settle(name: &'static str, result: Result<String, Refused>, table: &mut Table) {
    match result {
        Ok(detail) => table.pass(name, detail),
        Err(refused) => table.fail(name, refused.code, refused.text),
    }
}

fn certificate_tcb(report: Report<'_>, chain: &Chain) -> Result<String, Refused> {
    let (reported, product) = (report.reported_tcb(), chain.product);
    match chain.tcb() {
        Some(certified) if certified == reported => Ok(certified.describe(product)),
        Some(certified) => Err(mismatch(format!(
            "the certificate is for {}, the report is of {}",
            certified.describe(product),
            reported.describe(product)
        ))),
        None => Err(Refused {
            code: Code::CollateralMalformed,
            text: "the certificate names no patch level".to_owned(),
        }),
    }
}

fn cpu(report: Report<'_>, product: Product) -> Result<String, Refused> {
    let name = product.name();
    match report.cpu() {
        None => Ok(format!(
            "{name}, as the certificate says; the report names no CPU"
        )),
        Some(cpu) if product.includes(cpu) => Ok(name.to_owned()),
        Some([family, model, _]) => Err(mismatch(format!(
            "the certificate is of a {name}, the CPU has family {family:#x} and model {model:#x}"
        ))),
    }
}

fn signature(report: Report<'_>, chain: &Chain) -> Result<String, Refused> {
    let key = report.signing_key()?.name();
    match chain.signed(report) {
        true => Ok(format!("signed by the {key}")),
        false => Err(Refused {
            code: Code::QuoteSignature,
            text: format!("the certified {key} did not sign the report"),
        }),
    }
}

fn mismatch(text: String) -> Refused {
    Refused {
        code: Code::CollateralMismatch,
        text,
    }
}

/// Answers when the revocation list ends; `None` when there is one that does not hold.
fn check_revocation(
    chain: Option<&Chain>,
    collateral: &SnpCollateral,
    policy: &Policy,
    now: u64,
    table: &mut Table,
) -> Option<u64> {
    let name = checks::REVOCATION;
    match (chain, &collateral.crl) {
        (None, _) => table.not_possible(name, NO_CHAIN),
        (Some(_), None) if policy.snp.require_crl => {
            let fact = "there is no revocation list, and the policy requires one";
            table.fail(name, Code::CrlMissing, fact);
        }
        (Some(_), None) => {
            table.not_asked(
                name,
                "there is no revocation list; the policy requires none",
            );
            return Some(u64::MAX);
        }
        (Some(chain), Some(crl)) => {
            let until = chain.check_revocation(crl, now);
            let end = until.as_ref().ok().copied();
            let detail = |end| format!("nothing is revoked; the list holds until {}", utc(end));
            settle(name, until.map(detail), table);
            return end;
        }
    }
    None
}

/// What the guest's owner allowed, and where in the guest the report was asked for.
fn check_guest(report: Report<'_>, policy: &Policy, table: &mut Table) {
    let (guest, asked) = (report.guest_policy(), &policy.snp);
    let unknown = guest.unknown_bits();
    let known = match unknown {
        0 => Ok(format!("{:#x}", guest.0)),
        _ => Err(format!(
            "{unknown:#x} in the guest's policy may allow anything"
        )),
    };
    // A pin has a line of this name of its own.
    if unknown != 0 || !policy.pins_field(checks::GUEST_POLICY) {
        table.decide(checks::GUEST_POLICY, Code::GuestPolicy, known);
    }
    let agent = match (guest.allows_migration_agent(), asked.allow_migration_agent) {
        (false, _) => Ok("not allowed".to_owned()),
        (true, true) => Ok("ALLOWED, as the policy allows: it can read everything".to_owned()),
        (true, false) => Err("a migration agent is allowed, which can read everything".to_owned()),
    };
    table.decide(checks::MIGRATION_AGENT, Code::GuestPolicy, agent);
    check_smt(guest, asked.forbid_smt, table);
    check_abi(guest, asked.min_abi, table);
    let vmpl = report.vmpl();
    let level = match asked.vmpls.contains(&vmpl) {
        true => Ok(vmpl.to_string()),
        false => Err(format!(
            "the report was asked for at VMPL {vmpl}, the policy allows {:?}",
            asked.vmpls
        )),
    };
    table.decide(checks::VMPL, Code::Vmpl, level);
    if !policy.pins_field(checks::PLATFORM_INFO) {
        let info = describe_platform(report.platform_info());
        table.not_asked(checks::PLATFORM_INFO, info);
    }
}

fn check_smt(guest: GuestPolicy, forbidden: bool, table: &mut Table) {
    let fact = "the guest may share cores with strangers (SMT)";
    match (guest.allows_smt(), forbidden) {
        (false, _) => table.pass(checks::SMT, "not allowed"),
        (true, false) => table.not_asked(checks::SMT, format!("{fact}; the policy does not mind")),
        (true, true) => table.fail(checks::SMT, Code::GuestPolicy, fact),
    }
}

fn check_abi(guest: GuestPolicy, minimum: Option<(u8, u8)>, table: &mut Table) {
    let (major, minor) = guest.abi();
    let Some((least_major, least_minor)) = minimum else {
        let detail = format!("{major}.{minor}; the policy names no minimum");
        return table.not_asked(checks::ABI, detail);
    };
    let result = match (major, minor) >= (least_major, least_minor) {
        true => Ok(format!("{major}.{minor}")),
        false => Err(format!(
            "the guest accepts firmware from ABI {major}.{minor} on, the policy asks for \
             {least_major}.{least_minor}"
        )),
    };
    table.decide(checks::ABI, Code::GuestPolicy, result);
}

fn check_versions(
    report: Report<'_>,
    product: Option<Product>,
    policy: &Policy,
    table: &mut Table,
) {
    let detail = "AMD gives none; see reported_tcb, committed_tcb and launch_tcb";
    table.not_asked(checks::TCB_STATUS, detail);
    let (reported, committed) = (report.reported_tcb(), report.committed_tcb());
    let (launch, asked) = (report.launch_tcb(), &policy.snp);
    for (name, found, least) in [
        (checks::REPORTED_TCB, reported, &asked.min_reported_tcb),
        (checks::COMMITTED_TCB, committed, &asked.min_committed_tcb),
        (checks::LAUNCH_TCB, launch, asked.launch_minimum()),
    ] {
        match product {
            Some(product) => check_minimum(name, found, product, least, table),
            None => table.not_possible(name, NO_CHAIN),
        }
    }
}

fn check_minimum(
    name: &'static str,
    found: Tcb,
    product: Product,
    minimum: &Minimum,
    table: &mut Table,
) {
    let (versions, kind) = (found.describe(product), product.name());
    if minimum.is_empty() {
        return table.not_asked(name, format!("{versions}; the policy names no minimum"));
    }
    let of_product = minimum.iter().find(|(p, _)| *p == product);
    let below = |(component, least): &(Component, u8)| {
        let version = found.version(product, *component);
        let name = component.name();
        (version < Some(*least)).then(|| format!("{name} {least}"))
    };
    let result = match of_product {
        None => Err(format!(
            "the policy names no minimum for a {kind}, which has {versions}"
        )),
        Some((_, least)) => match least.iter().filter_map(below).collect::<Vec<_>>() {
            missed if missed.is_empty() => Ok(versions),
            missed => Err(format!(
                "{versions}; the policy asks for {}",
                missed.join(", ")
            )),
        },
    };
    table.decide(name, Code::TcbMinimum, result);
}

fn values(report: Report<'_>) -> Values {
    let author = match report.has_author_key() {
        true => report.author_key_digest(),
        // Nobody vouched for the key, whatever stands there.
        false => [0; 48],
    };
    let mut values = vec![
        ("measurement", bytes(report.measurement())),
        ("id_key_digest", bytes(report.id_key_digest())),
        ("author_key_digest", bytes(author)),
        ("family_id", bytes(report.family_id())),
        ("image_id", bytes(report.image_id())),
        ("guest_svn", Value::Number(report.guest_svn().into())),
        ("host_data", bytes(report.host_data())),
        ("guest_policy", bytes(report.guest_policy().0.to_le_bytes())),
        ("vmpl", Value::Number(report.vmpl().into())),
        ("chip_id", bytes(report.chip_id())),
        ("platform_info", bytes(report.platform_info().to_le_bytes())),
        ("current_tcb", bytes(report.current_tcb().0)),
        ("reported_tcb", bytes(report.reported_tcb().0)),
        ("committed_tcb", bytes(report.committed_tcb().0)),
        ("launch_tcb", bytes(report.launch_tcb().0)),
    ];
    values.extend(report.cpu().map(|cpu| ("cpu", bytes(cpu))));
    values
}

fn bytes<const N: usize>(bytes: [u8; N]) -> Value {
    Value::Bytes(bytes.to_vec())
}

fn describe_platform(info: u64) -> String {
    let names = [
        "smt",
        "tsme",
        "ecc",
        "rapl disabled",
        "ciphertext hiding",
        "alias check complete",
        "bit 6",
        "tio",
    ];
    let set = names
        .iter()
        .enumerate()
        .filter(|(bit, _)| info & (1 << bit) != 0);
    let set: Vec<_> = set.map(|(_, name)| *name).collect();
    match set.is_empty() {
        true => format!("{info:#x}"),
        false => format!("{info:#x}: {}", set.join(", ")),
    }
}
