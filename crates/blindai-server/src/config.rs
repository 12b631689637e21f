//! The configuration: one typed tree, read from TOML.
//!
//! Unknown keys are refused and all errors are told at once. The defaults are safe and serve a
//! machine with 16 GiB. Everything here is covered by [`Config::digest`], which stands in the
//! evidence, because the one who writes this file is the adversary.

use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use blindai_collateral::{CollateralError, Source};
use blindai_core::{Digest, EngineKind, Tee};
use blindai_engine::Isolation;
use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

use crate::access::AccessConfig;
use crate::telemetry::Endpoint;

mod models;
mod store;

pub use models::{ModelConfig, options};
pub use store::{SealTo, StoreConfig, credentials};

/// The longest time, in seconds: beyond it, adding to the clock would overflow one day.
const YEAR: u64 = 365 * 24 * 3600;
/// The largest size, in bytes.
pub(crate) const BYTES: u64 = 1 << 48;
/// The most of anything that is counted.
pub(crate) const COUNT: usize = 1_000_000;

/// Everything an operator may set.
#[derive(Clone, Debug, Serialize)]
pub struct Config {
    pub listen: Listen,
    pub tls: Tls,
    pub tee: TeeConfig,
    pub collateral: CollateralConfig,
    pub access: AccessConfig,
    pub engine: EngineConfig,
    pub models: Vec<ModelConfig>,
    pub store: StoreConfig,
    pub limits: Limits,
    pub legacy: LegacyConfig,
    pub log: Log,
    pub metrics: MetricsConfig,
    pub traces: TracesConfig,
}

/// `[listen]`: where the two ports are.
#[derive(Clone, Debug, Serialize)]
pub struct Listen {
    /// The attested port, where all data and models go. Default `127.0.0.1:50051`.
    pub attested: SocketAddr,
    /// The public port: evidence and health. Default `127.0.0.1:50052`.
    pub public: SocketAddr,
    /// Threads for connections, TLS and protocols. Default 0: one for every two cores, because the
    /// models need the others.
    pub threads: usize,
}

/// `[tls]`: the host-side certificate of the public port.
#[derive(Clone, Debug, Serialize)]
pub struct Tls {
    /// Holds `host_server.pem` and `host_server.key`; both are made when absent. Default `tls`.
    pub folder: PathBuf,
}

/// `[tee]`: what attests.
#[derive(Clone, Debug, Serialize)]
pub struct TeeConfig {
    /// Whose evidence is used: `auto`, `gramine` or `tsm`. Default `auto`. Not looked at when a TEE is
    /// simulated.
    pub provider: Provider,
    /// Simulates this kind of TEE (`sgx`, `tdx` or `sev-snp`), which protects nothing. No default.
    pub simulation: Option<Tee>,
    /// How long evidence holds, in seconds; it is renewed at half of that. Default 3600.
    pub evidence_seconds: u64,
}

/// Where evidence comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    /// The one of those below that is there, in their order.
    Auto,
    /// An SGX enclave under Gramine.
    Gramine,
    /// A TDX or SEV-SNP guest, through Linux's configfs-tsm.
    Tsm,
}

/// `[collateral]`: where that comes from which clients need beside the evidence, unless the platform
/// supplies it.
#[derive(Clone, Debug, Serialize)]
pub struct CollateralConfig {
    /// `vendor` (Intel's or AMD's service), the URL of a PCCS or of a mirror of AMD's KDS, a file, a
    /// folder, or `none`. Default `vendor`.
    pub source: String,
    /// A PEM file of authorities that may have signed the service's certificate, beside the public
    /// ones. Default none.
    pub authorities: Option<PathBuf>,
    /// How often to look for newer, in seconds; more often when it ends sooner. Default 21600.
    pub refresh_seconds: u64,
    /// How long one look may take, in seconds. Default 30.
    pub timeout_seconds: u64,
}

impl CollateralConfig {
    /// The source, read; `None` for `none`.
    ///
    /// # Errors
    /// When it is no source.
    pub fn source(&self) -> Result<Option<Source>, CollateralError> {
        match self.source.as_str() {
            "none" => Ok(None),
            source => Source::parse(source).map(Some),
        }
    }
}

/// `[engine]`: what runs the models.
#[derive(Clone, Debug, Serialize)]
pub struct EngineConfig {
    /// `onnxruntime` or `tract`, for every model that has none of its own. Default `onnxruntime`.
    pub kind: EngineKind,
    /// The ONNX Runtime library; its SHA-256 is pinned in the program. Not looked at when every model
    /// runs on tract. Default: the file `libonnxruntime.so.1.28.0` beside the program.
    pub onnxruntime: Option<PathBuf>,
    /// Workers per model, each with the model in its memory. Default 1.
    pub workers: usize,
    /// Threads per worker for one operator. Default 0: the cores, divided by the workers.
    pub threads: usize,
    /// Whether threads spin while they wait within a run: a fifth faster alone on the machine, slower
    /// where models share cores. Default true.
    pub spinning: bool,
    /// Whether a new model computes something made up before its first caller comes. Default true.
    pub warm_up: bool,
    /// What must stand between a worker and the machine: `process`, `filtered` (its system calls) or
    /// `full` (a user or namespaces of its own besides). The server does not start with less. With
    /// `none`, workers are threads of the server, among its keys. Default `filtered`.
    pub isolation: Isolation,
    pub batching: BatchingConfig,
}

/// `[engine.batching]`: requests that are computed together, along a first dimension that the model
/// names on all of its inputs and outputs.
#[derive(Clone, Debug, Serialize)]
pub struct BatchingConfig {
    /// The most rows of one batch. Default 1: each request alone.
    pub max_rows: usize,
    /// How long a request may wait for others to join it, in milliseconds. Default 0: only what
    /// waits already is taken together.
    pub max_delay_ms: u64,
    /// Whether only requests of one caller meet in a batch. Default true.
    pub strict: bool,
}

/// `[limits]`: all are checked before memory is taken.
#[derive(Clone, Debug, Serialize)]
pub struct Limits {
    /// The largest request body, uploads apart, in bytes. Default 64 MiB.
    pub body_bytes: u64,
    /// Bytes of request bodies, and of what they become, and of answers held at one time. Default
    /// 1 GiB.
    pub inflight_bytes: u64,
    /// The largest answer of a model, in bytes. Default 256 MiB.
    pub output_bytes: u64,
    /// The largest model file, in bytes. Default 4 GiB.
    pub model_bytes: u64,
    /// How many models are held. Default 64.
    pub models: usize,
    /// What one model's worker may allocate, in bytes. Default 8 GiB.
    pub model_memory_bytes: u64,
    /// What all models may take together, files and workers, in bytes. Default 12 GiB.
    pub total_memory_bytes: u64,
    /// How long one request may take, in seconds. Default 300.
    pub request_seconds: u64,
    /// How long one upload may take to arrive, in seconds. Default 3600.
    pub upload_seconds: u64,
    /// How long a model may take to load, in seconds. Default 120.
    pub load_seconds: u64,
    /// How long a sender may stay silent within a body, in seconds. Default 30.
    pub idle_seconds: u64,
    /// Requests in progress at one time. Default 256.
    pub concurrent_requests: usize,
    /// Uploads in progress at one time. Default 4.
    pub concurrent_uploads: usize,
    /// Requests waiting for one model. Default 128.
    pub queue: usize,
    /// Connections at one time, on each port. Default 1024.
    pub connections: usize,
    /// How long requests may take to end after SIGTERM, in seconds. Default 30.
    pub drain_seconds: u64,
}

/// `[legacy]`: the protocol of BlindAI 0.3, for clients of that time.
#[derive(Clone, Debug, Serialize)]
pub struct LegacyConfig {
    /// Whether it is spoken, on both ports. Default true.
    pub enabled: bool,
}

/// `[log]`: on standard error, never with contents.
#[derive(Clone, Debug, Serialize)]
pub struct Log {
    /// `text` or `json`. Default `text`.
    pub format: LogFormat,
    /// The least that is told: `error`, `warn`, `info` or `debug`. Default `info`.
    pub level: LogLevel,
    /// Whether answered requests are logged, too, whatever the level. Default false.
    pub requests: bool,
}

/// `[metrics]`: what is counted, on the public port.
#[derive(Clone, Debug, Serialize)]
pub struct MetricsConfig {
    /// Whether `/metrics` is there. Default false: whoever reaches the public port could read how
    /// much each model is used, and how long it computes.
    pub enabled: bool,
}

/// `[traces]`: the stages of requests, for a collector that speaks OTLP over HTTP.
#[derive(Clone, Debug, Serialize)]
pub struct TracesConfig {
    /// Where they go: `http://host:port`. Default none: there are no traces.
    pub endpoint: Option<String>,
    /// The share of requests that is traced, from 0 to 1. Default 1.
    pub sample_ratio: f64,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    Json,
}

/// The least that is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
}

impl LogLevel {
    /// As the configuration names it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
        }
    }
}

impl Config {
    /// Reads a configuration; an empty text gives the defaults.
    ///
    /// # Errors
    /// All that is wrong, at once.
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        let table: Table = text
            .parse()
            .map_err(|error| ConfigError(vec![not_toml(text, &error)]))?;
        let mut root = Section::root(table);
        let config = Self::read(&mut root);
        let mut errors = root.finish();
        errors.extend(config.contradictions());
        if errors.is_empty() {
            Ok(config)
        } else {
            Err(ConfigError(errors))
        }
    }

    /// SHA-256 over the effective configuration as canonical JSON. Log and listening addresses
    /// are included: whatever could be set is in the evidence.
    pub fn digest(&self) -> Digest {
        let json = serde_json::to_vec(self).expect("a configuration is JSON");
        Digest::of(&json)
    }

    fn read(root: &mut Section) -> Self {
        let mut config = Self {
            listen: root.section("listen", |s| Listen {
                attested: s.get("attested", loopback(50051)),
                public: s.get("public", loopback(50052)),
                threads: s.within("threads", 0, 0..=COUNT),
            }),
            tls: root.section("tls", |s| Tls {
                folder: s.get("folder", "tls".into()),
            }),
            tee: root.section("tee", |s| TeeConfig {
                provider: s.get("provider", Provider::Auto),
                simulation: s.optional("simulation"),
                evidence_seconds: s.within("evidence_seconds", 3600, 2..=YEAR),
            }),
            collateral: root.section("collateral", |s| CollateralConfig {
                source: s.get("source", "vendor".to_owned()),
                authorities: s.optional("authorities"),
                refresh_seconds: s.within("refresh_seconds", 21600, 1..=YEAR),
                timeout_seconds: s.within("timeout_seconds", 30, 1..=YEAR),
            }),
            access: root.section("access", AccessConfig::read),
            engine: root.section("engine", |s| EngineConfig {
                kind: s.get("kind", EngineKind::OnnxRuntime),
                onnxruntime: s.optional("onnxruntime"),
                workers: s.within("workers", 1, 1..=1024),
                threads: s.within("threads", 0, 0..=COUNT),
                spinning: s.get("spinning", true),
                warm_up: s.get("warm_up", true),
                isolation: s.get("isolation", Isolation::Filtered),
                batching: s.section("batching", |s| {
                    BatchingConfig::read(s, &BatchingConfig::default())
                }),
            }),
            models: Vec::new(),
            store: root.section("store", |s| StoreConfig {
                location: s.optional("location"),
                seal_to: s.get("seal_to", SealTo::Enclave),
                seen: s.optional("seen"),
                credentials: s.optional("credentials"),
                simulated_key: s.get("simulated_key", "simulated-sealing.key".into()),
            }),
            limits: root.section("limits", Limits::read),
            legacy: root.section("legacy", |s| LegacyConfig {
                enabled: s.get("enabled", true),
            }),
            log: root.section("log", |s| Log {
                format: s.get("format", LogFormat::Text),
                level: s.get("level", LogLevel::Info),
                requests: s.get("requests", false),
            }),
            metrics: root.section("metrics", |s| MetricsConfig {
                enabled: s.get("enabled", false),
            }),
            traces: root.section("traces", |s| TracesConfig {
                endpoint: s.optional("endpoint"),
                sample_ratio: s.within("sample_ratio", 1.0, 0.0..=1.0),
            }),
        };
        let engine = &config.engine;
        config.models = root.list("models", |s| ModelConfig::read(s, engine));
        config
    }

    fn contradictions(&self) -> Vec<String> {
        let mut errors = self.access.contradictions();
        if self.limits.model_bytes > self.limits.total_memory_bytes {
            errors.push("limits.model_bytes is more than limits.total_memory_bytes".to_owned());
        }
        if self.limits.body_bytes > self.limits.inflight_bytes {
            errors.push("limits.body_bytes is more than limits.inflight_bytes".to_owned());
        }
        errors.extend(self.contradictory_models());
        errors.extend(self.store.contradictions());
        if let Some(Err(fact)) = self.traces.endpoint.as_deref().map(Endpoint::parse) {
            errors.push(format!("traces.endpoint: {fact}"));
        }
        if let Err(error) = self.collateral.source() {
            errors.push(format!("collateral.source: {}", error.fact()));
        }
        if self.listen.attested == self.listen.public && self.listen.public.port() != 0 {
            errors.push("listen.attested and listen.public are the same address".to_owned());
        }
        errors
    }
}

impl BatchingConfig {
    fn read(s: &mut Section, default: &Self) -> Self {
        Self {
            max_rows: s.within("max_rows", default.max_rows, 1..=COUNT),
            max_delay_ms: s.within("max_delay_ms", default.max_delay_ms, 0..=60_000),
            strict: s.get("strict", default.strict),
        }
    }
}

impl Default for BatchingConfig {
    fn default() -> Self {
        Self {
            max_rows: 1,
            max_delay_ms: 0,
            strict: true,
        }
    }
}

impl Limits {
    fn read(s: &mut Section) -> Self {
        Self {
            body_bytes: s.within("body_bytes", 64 << 20, 1..=BYTES),
            inflight_bytes: s.within("inflight_bytes", 1 << 30, 1..=BYTES),
            output_bytes: s.within("output_bytes", 256 << 20, 1..=BYTES),
            model_bytes: s.within("model_bytes", 4 << 30, 1..=BYTES),
            models: s.within("models", 64, 1..=COUNT),
            model_memory_bytes: s.within("model_memory_bytes", 8 << 30, 1..=BYTES),
            total_memory_bytes: s.within("total_memory_bytes", 12 << 30, 1..=BYTES),
            request_seconds: s.within("request_seconds", 300, 1..=YEAR),
            upload_seconds: s.within("upload_seconds", 3600, 1..=YEAR),
            load_seconds: s.within("load_seconds", 120, 1..=YEAR),
            idle_seconds: s.within("idle_seconds", 30, 1..=YEAR),
            concurrent_requests: s.within("concurrent_requests", 256, 1..=COUNT),
            concurrent_uploads: s.within("concurrent_uploads", 4, 1..=COUNT),
            queue: s.within("queue", 128, 1..=COUNT),
            connections: s.within("connections", 1024, 1..=COUNT),
            drain_seconds: s.within("drain_seconds", 30, 0..=YEAR),
        }
    }

    /// How long one request may take.
    pub fn request(&self) -> Duration {
        Duration::from_secs(self.request_seconds)
    }

    /// How long one upload may take to arrive.
    pub fn upload(&self) -> Duration {
        Duration::from_secs(self.upload_seconds)
    }

    /// How long a sender may stay silent within a body.
    pub fn idle(&self) -> Duration {
        Duration::from_secs(self.idle_seconds)
    }
}

impl Default for Config {
    fn default() -> Self {
        Self::from_toml("").expect("the defaults are a valid configuration")
    }
}

/// Everything that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError(Vec<String>);

impl ConfigError {
    /// Each error.
    pub fn errors(&self) -> &[String] {
        &self.0
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

impl std::error::Error for ConfigError {}

// In one line; the parser's own text shows the source in several.
fn not_toml(text: &str, error: &toml::de::Error) -> String {
    let start = error.span().map_or(0, |span| span.start);
    let line = 1 + text
        .bytes()
        .take(start)
        .filter(|&byte| byte == b'\n')
        .count();
    format!("not TOML, line {line}: {}", error.message())
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// A table that is taken apart key by key; what is left over was not known.
pub(crate) struct Section {
    prefix: String,
    table: Table,
    errors: Vec<String>,
}

impl Section {
    fn root(table: Table) -> Self {
        Self {
            prefix: String::new(),
            table,
            errors: Vec::new(),
        }
    }

    pub(crate) fn section<T>(&mut self, key: &str, read: impl FnOnce(&mut Section) -> T) -> T {
        let value = self.table.remove(key);
        self.enter(key, value.unwrap_or_else(|| Table::new().into()), read)
    }

    /// Each table of a list; those that cannot be read are left out, with an error.
    pub(crate) fn list<T>(
        &mut self,
        key: &str,
        read: impl Fn(&mut Section) -> Option<T>,
    ) -> Vec<T> {
        let values = match self.table.remove(key) {
            Some(Value::Array(values)) => values,
            Some(_) => {
                self.refuse(key, "not an array of tables");
                Vec::new()
            }
            None => Vec::new(),
        };
        let values = values.into_iter().enumerate();
        values
            .filter_map(|(number, value)| self.enter(&format!("{key}[{number}]"), value, &read))
            .collect()
    }

    fn enter<T>(&mut self, key: &str, value: Value, read: impl FnOnce(&mut Section) -> T) -> T {
        let table = match value {
            Value::Table(table) => table,
            _ => {
                self.refuse(key, "not a table");
                Table::new()
            }
        };
        let mut section = Section {
            prefix: format!("{}{key}.", self.prefix),
            ..Section::root(table)
        };
        let value = read(&mut section);
        self.errors.extend(section.finish());
        value
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// The value as it stands there.
    pub(crate) fn take(&mut self, key: &str) -> Option<Value> {
        self.table.remove(key)
    }

    /// Tells what is wrong with a value, without repeating it.
    pub(crate) fn refuse(&mut self, key: &str, why: &str) {
        self.errors.push(format!("{}{key}: {why}", self.prefix));
    }

    /// What has no default.
    pub(crate) fn required<T: DeserializeOwned>(&mut self, key: &str) -> Option<T> {
        if !self.has(key) {
            self.refuse(key, "missing");
        }
        self.optional(key)
    }

    fn optional<T: DeserializeOwned>(&mut self, key: &str) -> Option<T> {
        let value = self.table.remove(key)?;
        let shown = value.to_string();
        match value.try_into() {
            Ok(value) => Some(value),
            Err(error) => {
                let error = error.to_string();
                let error = error.trim();
                let prefix = &self.prefix;
                self.errors
                    .push(format!("{prefix}{key} = {shown}: {error}"));
                None
            }
        }
    }

    pub(crate) fn get<T: DeserializeOwned>(&mut self, key: &str, default: T) -> T {
        self.optional(key).unwrap_or(default)
    }

    fn within<T>(&mut self, key: &str, default: T, range: RangeInclusive<T>) -> T
    where
        T: DeserializeOwned + PartialOrd + fmt::Display,
    {
        self.optional_within(key, range).unwrap_or(default)
    }

    pub(crate) fn optional_within<T>(&mut self, key: &str, range: RangeInclusive<T>) -> Option<T>
    where
        T: DeserializeOwned + PartialOrd + fmt::Display,
    {
        let value = self.optional(key)?;
        if !range.contains(&value) {
            let (prefix, least, most) = (&self.prefix, range.start(), range.end());
            self.errors
                .push(format!("{prefix}{key} = {value}: from {least} to {most}"));
        }
        Some(value)
    }

    fn finish(self) -> Vec<String> {
        let prefix = &self.prefix;
        let unknown = self
            .table
            .keys()
            .map(|k| format!("{prefix}{k}: unknown key"));
        self.errors.iter().cloned().chain(unknown).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn an_empty_configuration_is_the_default() {
        let config = Config::from_toml("").unwrap();
        assert_eq!(config.listen.attested.port(), 50051);
        assert_eq!(config.limits.body_bytes, 64 << 20);
        assert_eq!(config.tee.simulation, None);
        assert_eq!(config.tee.provider, Provider::Auto);
        assert_eq!(config.engine.isolation, Isolation::Filtered);
    }

    #[test]
    fn all_errors_are_told_at_once() {
        let text = r#"
            colour = "red"
            [listen]
            attested = "here"
            [engine]
            isolation = "some"
            [engine.batching]
            size = 8
            [limits]
            models = 0
            body_byte = 1
            queue = "many"
        "#;
        let error = Config::from_toml(text).unwrap_err();
        let all = error.to_string();
        for part in [
            "colour: unknown key",
            "listen.attested = \"here\"",
            "limits.models = 0: from 1 to 1000000",
            "limits.body_byte: unknown key",
            "limits.queue = \"many\"",
            "engine.isolation = \"some\"",
            "engine.batching.size: unknown key",
        ] {
            assert!(all.contains(part), "{part} is not in {all}");
        }
        assert_eq!(error.errors().len(), 7);
    }

    #[test]
    fn what_is_no_toml_is_told_in_one_line() {
        let error = Config::from_toml("[limits]\nqueue = = 7").unwrap_err();
        assert_eq!(error.errors().len(), 1);
        assert!(
            error.to_string().starts_with("not TOML, line 2: "),
            "{error}"
        );
        assert_eq!(error.to_string().lines().count(), 1);
    }

    #[test]
    fn every_setting_changes_the_digest() {
        let mut seen = HashSet::from([Config::default().digest()]);
        let token = |rest: &str| {
            let sha256 = "ab".repeat(32);
            format!("[[access.tokens]]\nsha256 = '{sha256}'\n{rest}")
        };
        for text in [
            "[limits]\nqueue = 7",
            "[engine]\nthreads = 3",
            "[engine]\nkind = 'tract'",
            "[[models]]\nname = 'm'\nkind = 'tract'",
            "[[models]]\nname = 'm'\npath = 'm.onnx'",
            "[engine]\nisolation = 'full'",
            "[engine]\nisolation = 'process'",
            "[engine]\nisolation = 'none'",
            "[engine.batching]\nstrict = false",
            "[tls]\nfolder = 'x'",
            "[tee]\nprovider = 'tsm'",
            "[log]\nlevel = 'debug'",
            "[metrics]\nenabled = true",
            "[traces]\nendpoint = 'http://127.0.0.1:4318'",
            "[traces]\nsample_ratio = 0.5",
            "[access]\nanonymous = ['infer']",
            &token("name = 'a'\nroles = ['infer']"),
            &token("name = 'b'\nroles = ['infer']"),
            &token("name = 'a'\nroles = ['upload']"),
            &token("name = 'a'\nroles = ['infer']\nmodels = ['m']"),
            &token("name = 'a'\nroles = ['infer']\nexpires = '2030-01-01'"),
            &token("name = 'a'\nroles = ['infer']\nquota = {burst = 1}"),
            &token("name = 'a'\nroles = ['infer']")
                .replace("tokens", "clients")
                .replace("sha256", "spki_sha256"),
        ] {
            let digest = Config::from_toml(text).unwrap().digest();
            assert!(seen.insert(digest), "{text}");
        }
    }

    #[test]
    fn contradictions_are_refused() {
        for text in [
            "[limits]\nmodel_bytes = 9000000000000",
            "[collateral]\nsource = 'ftp://x'",
            "[[models]]\nname = 'm'\n[[models]]\nname = 'm'",
            "[engine]\nkind = 'tensorflow'",
            "[traces]\nendpoint = 'https://x'",
            "[traces]\nsample_ratio = 1.5",
            "[traces]\nsample_ratio = nan",
            "[listen]\nattested = '127.0.0.1:1'\npublic = '127.0.0.1:1'",
        ] {
            assert!(Config::from_toml(text).is_err(), "{text}");
        }
    }
}
