use std::path::PathBuf;
use std::time::Duration;

use blindai_core::{Digest, EngineKind, Error, ModelName, ModelVersion};
use blindai_engine::{Batching, Isolation, ModelOptions};
use blindai_store::{Credentials, ObjectLocation};
use serde::Serialize;

use super::store::credentials;
use super::{BatchingConfig, COUNT, Config, EngineConfig, Section};
use crate::origin::Origin;

/// `[[models]]`: one model, and how it is run where that differs from `[engine]`. With a path it is
/// loaded before the server is ready; without one the settings are for what is uploaded under its name.
#[derive(Clone, Debug, Serialize)]
pub struct ModelConfig {
    pub name: ModelName,
    /// The ONNX file, in one piece. Default none.
    pub path: Option<PathBuf>,
    /// In the place of a path: `s3://bucket/path`, `gs://bucket/path`, `az://container/path`. Default
    /// none.
    pub object: Option<String>,
    /// A TOML file with what the object store asks for. What is in it is not in the evidence. Default
    /// none.
    pub credentials: Option<PathBuf>,
    /// Default `1`, when there is a path or an object.
    pub version: Option<ModelVersion>,
    /// What the file must hold. Default none: then the evidence says nothing of the model's content.
    pub sha256: Option<Digest>,
    /// As in `[engine]`, whose settings are the defaults.
    pub kind: Option<EngineKind>,
    pub workers: Option<usize>,
    pub threads: Option<usize>,
    pub warm_up: Option<bool>,
    pub batching: Option<BatchingConfig>,
}

impl ModelConfig {
    pub(super) fn read(s: &mut Section, engine: &EngineConfig) -> Option<Self> {
        let (own, batching) = (s.has("batching"), engine.batching.clone());
        let batching = s.section("batching", |s| BatchingConfig::read(s, &batching));
        let path: Option<PathBuf> = s.optional("path");
        let object: Option<String> = s.optional("object");
        let version: Option<ModelVersion> = s.optional("version");
        let is_read = path.is_some() || object.is_some();
        Some(Self {
            version: version.or_else(|| "1".parse().ok().filter(|_| is_read)),
            path,
            object,
            credentials: s.optional("credentials"),
            sha256: s.optional("sha256"),
            kind: s.optional("kind"),
            workers: s.optional_within("workers", 1..=1024),
            threads: s.optional_within("threads", 0..=COUNT),
            warm_up: s.optional("warm_up"),
            batching: own.then_some(batching),
            name: s.required("name")?,
        })
    }

    /// Where it is read from at start, if it is.
    ///
    /// # Errors
    /// When the object is none, or its credentials cannot be read.
    pub fn origin(&self) -> Result<Option<Origin>, Error> {
        if let Some(path) = &self.path {
            return Ok(Some(Origin::File(path.clone())));
        }
        let Some(object) = &self.object else {
            return Ok(None);
        };
        let credentials = credentials(self.credentials.as_deref(), "credentials")?;
        let location = ObjectLocation::parse(object, credentials)?;
        Ok(Some(Origin::Object(location)))
    }

    fn is_read(&self) -> bool {
        self.path.is_some() || self.object.is_some()
    }

    fn contradictions(&self) -> Vec<String> {
        let mut errors = Vec::new();
        if !self.is_read() && (self.version.is_some() || self.sha256.is_some()) {
            errors.push("version and sha256 are of a file, and it has no path".to_owned());
        }
        if self.path.is_some() && self.object.is_some() {
            errors.push("it has a path and an object".to_owned());
        }
        if self.credentials.is_some() && self.object.is_none() {
            errors.push("credentials without an object".to_owned());
        }
        let object = self.object.as_deref();
        let location = object.map(|text| ObjectLocation::parse(text, Credentials::default()));
        if let Some(Err(error)) = location {
            errors.push(format!("object: {}", error.fact()));
        }
        errors
    }

    /// Which models it is about: one version, or whatever is uploaded under the name.
    fn subject(&self) -> (&ModelName, Option<&ModelVersion>) {
        (&self.name, self.version.as_ref())
    }
}

impl Config {
    /// How this version of a model is run: as its entry says, else as the entry of its name without a
    /// path says, else as all are.
    pub fn model_options(&self, name: &ModelName, version: &ModelVersion) -> ModelOptions {
        let entry = |version| self.models.iter().find(|m| m.subject() == (name, version));
        options(&self.engine, entry(Some(version)).or_else(|| entry(None)))
    }

    /// Whether this version of a model is read from a file or an object at start.
    pub fn reads(&self, name: &ModelName, version: &ModelVersion) -> bool {
        let subject = (name, Some(version));
        let mut read = self.models.iter().filter(|model| model.is_read());
        read.any(|model| model.subject() == subject)
    }

    /// Whether any model may run on this engine.
    pub fn uses(&self, kind: EngineKind) -> bool {
        self.engine.kind == kind || self.models.iter().any(|model| model.kind == Some(kind))
    }

    /// The most workers that a model may have.
    pub fn most_workers(&self) -> usize {
        let own = self.models.iter().filter_map(|model| model.workers);
        own.fold(self.engine.workers, usize::max)
    }

    /// The most processes that a model may take.
    pub fn most_processes(&self) -> usize {
        match self.engine.isolation {
            Isolation::None => 0,
            _ => self.most_workers(),
        }
    }

    pub(super) fn contradictory_models(&self) -> Vec<String> {
        let mut errors = Vec::new();
        for (number, model) in self.models.iter().enumerate() {
            let entry = format!("models[{number}]");
            let before = &self.models[..number];
            if before
                .iter()
                .any(|other| other.subject() == model.subject())
            {
                errors.push(format!("{entry} is about the same model as one before it"));
            }
            let own = model.contradictions().into_iter();
            errors.extend(own.map(|error| format!("{entry}: {error}")));
        }
        let files = self.models.iter().filter(|model| model.is_read()).count();
        if files > self.limits.models {
            errors.push("there are more models to load at start than limits.models".to_owned());
        }
        errors
    }
}

/// What a model gets of whom this entry is, if there is one.
pub fn options(engine: &EngineConfig, own: Option<&ModelConfig>) -> ModelOptions {
    let workers = own.and_then(|own| own.workers).unwrap_or(engine.workers);
    let threads = own.and_then(|own| own.threads).unwrap_or(engine.threads);
    let batching = own.and_then(|own| own.batching.as_ref());
    let batching = batching.unwrap_or(&engine.batching);
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    ModelOptions {
        kind: own.and_then(|own| own.kind).unwrap_or(engine.kind),
        workers,
        threads: match threads {
            0 => (cores() / workers).max(1),
            threads => threads,
        },
        warm_up: own.and_then(|own| own.warm_up).unwrap_or(engine.warm_up),
        batching: (batching.max_rows > 1).then(|| Batching {
            max_rows: batching.max_rows,
            max_delay: Duration::from_millis(batching.max_delay_ms),
            across_callers: !batching.strict,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        Config::from_toml(text).unwrap()
    }

    fn of(config: &Config, name: &str, version: &str) -> ModelOptions {
        config.model_options(&name.parse().unwrap(), &version.parse().unwrap())
    }

    #[test]
    fn a_model_may_have_settings_of_its_own() {
        let config = config(
            r#"
            [engine]
            workers = 2
            threads = 3
            batching = {max_rows = 8, max_delay_ms = 5}
            [[models]]
            name = "small"
            kind = "tract"
            workers = 1
            threads = 1
            warm_up = false
            batching = {max_rows = 1}
            [[models]]
            name = "other"
            batching = {strict = false}
        "#,
        );
        let small = of(&config, "small", "7");
        assert_eq!(
            (small.kind, small.workers, small.threads),
            (EngineKind::Tract, 1, 1)
        );
        assert!(!small.warm_up && small.batching.is_none());
        let other = of(&config, "other", "1");
        assert_eq!(
            (other.kind, other.workers, other.threads),
            (EngineKind::OnnxRuntime, 2, 3)
        );
        let batching = other.batching.unwrap();
        // What an entry does not say is as in [engine].
        assert_eq!((batching.max_rows, batching.max_delay.as_millis()), (8, 5));
        assert!(batching.across_callers);
        let third = of(&config, "third", "1");
        assert!(!third.batching.unwrap().across_callers);
        assert!(config.uses(EngineKind::Tract) && config.uses(EngineKind::OnnxRuntime));
        assert_eq!(config.most_workers(), 2);
        assert_eq!(config.most_processes(), 2);
        let mut threads = config.clone();
        threads.engine.isolation = Isolation::None;
        assert_eq!(threads.most_processes(), 0);
    }

    #[test]
    fn the_entry_of_a_version_goes_before_that_of_its_name() {
        let config = config(
            r#"
            models = [
                {name = "m", path = "m.onnx", threads = 5},
                {name = "m", path = "m.onnx", version = "2"},
                {name = "m", threads = 7},
            ]
            engine = {threads = 2}
        "#,
        );
        let threads = |version| of(&config, "m", version).threads;
        assert_eq!((threads("1"), threads("2"), threads("3")), (5, 2, 7));
    }

    #[test]
    fn threads_are_divided_among_the_workers_of_the_model() {
        let config = config("models = [{name = 'm', workers = 1024}]");
        assert_eq!(of(&config, "m", "1").threads, 1);
    }

    #[test]
    fn what_is_wrong_names_the_entry() {
        let digest = "0".repeat(64);
        for (models, part) in [
            ("{path = 'x'}", "models[0].name: missing"),
            ("{name = 'a/b'}", "models[0].name = \"a/b\""),
            (
                "{name = 'm'}, {name = 'm'}",
                "models[1] is about the same model",
            ),
            (
                "{name = 'm', path = 'x'}, {name = 'm', path = 'y', version = '1'}",
                "models[1] is about the same model",
            ),
            (
                "{name = 'm', version = '2'}",
                "models[0]: version and sha256",
            ),
            (
                &format!("{{name = 'm', sha256 = '{digest}'}}"),
                "models[0]: version and sha256",
            ),
            (
                "{name = 'm', path = 'x', sha256 = '00'}",
                "models[0].sha256",
            ),
            (
                "{name = 'm', workers = 0}",
                "models[0].workers = 0: from 1 to 1024",
            ),
            ("{name = 'm', kind = 'torch'}", "models[0].kind"),
            (
                "{name = 'm', path = 'x', object = 's3://b/x'}",
                "models[0]: it has a path and an object",
            ),
            ("{name = 'm', object = 's3://b'}", "models[0]: object: "),
            (
                "{name = 'm', path = 'x', credentials = 'c'}",
                "models[0]: credentials without an object",
            ),
            (
                "{name = 'm', colour = 'red'}",
                "models[0].colour: unknown key",
            ),
            (
                "{name = 'm', batching = {size = 1}}",
                "models[0].batching.size: unknown key",
            ),
            ("7", "models[0]: not a table"),
        ] {
            let error = Config::from_toml(&format!("models = [{models}]"));
            let error = error.expect_err(models).to_string();
            assert!(error.contains(part), "{part} is not in {error}");
        }
        let many = "models = [{name = 'a', path = 'x'}, {name = 'b', path = 'x'}]\n";
        let error = Config::from_toml(&format!("{many}[limits]\nmodels = 1")).unwrap_err();
        assert!(error.to_string().contains("limits.models"), "{error}");
        assert!(Config::from_toml("models = 7").is_err());
    }
}
