use std::path::{Path, PathBuf};

use blindai_core::{Code, Error};
use blindai_store::{Credentials, Location};
use serde::{Deserialize, Serialize};

/// `[store]`: where uploaded models are kept, sealed.
#[derive(Clone, Debug, Serialize)]
pub struct StoreConfig {
    /// A folder, or `s3://bucket/path`, `gs://bucket/path`, `az://container/path`. Default none: nothing
    /// is kept.
    pub location: Option<String>,
    /// On SGX, which code has the models again: `enclave` (exactly this) or `signer` (all of the same
    /// signer, this or a later version). Default `enclave`. Not looked at on other platforms.
    pub seal_to: SealTo,
    /// A file that remembers the newest generation of the store, elsewhere than the store. Default
    /// none.
    pub seen: Option<PathBuf>,
    /// A TOML file with what the object store asks for. What is in it is not in the evidence. Default
    /// none.
    pub credentials: Option<PathBuf>,
    /// The key of a simulation, made when it is not there. Default `simulated-sealing.key`.
    pub simulated_key: PathBuf,
}

/// Which code has sealed models again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SealTo {
    Enclave,
    Signer,
}

impl StoreConfig {
    /// The location, read.
    ///
    /// # Errors
    /// When it is none.
    pub fn location(&self) -> Result<Option<Location>, Error> {
        self.location.as_deref().map(Location::parse).transpose()
    }

    pub(super) fn contradictions(&self) -> Vec<String> {
        let mut errors = Vec::new();
        if let Err(error) = self.location() {
            errors.push(format!("store.location: {}", error.fact()));
        }
        let others = [("seen", &self.seen), ("credentials", &self.credentials)];
        for (key, _) in others.iter().filter(|(_, value)| value.is_some()) {
            if self.location.is_none() {
                errors.push(format!("store.{key} without store.location"));
            }
        }
        errors
    }
}

/// What an object store asks for, from the file that `setting` names.
///
/// # Errors
/// When it is not a TOML file of texts.
pub fn credentials(file: Option<&Path>, setting: &str) -> Result<Credentials, Error> {
    let Some(file) = file else {
        return Ok(Credentials::default());
    };
    // No word of what is in it.
    let invalid = |why: &str| {
        let fact = format!("{setting} = {file:?}: {why}");
        Error::new(Code::InvalidRequest, fact).with_remedy("name a TOML file of texts")
    };
    let text = std::fs::read_to_string(file).map_err(|error| invalid(&error.to_string()))?;
    let table: toml::Table = text.parse().map_err(|_| invalid("not TOML"))?;
    let pairs = table.into_iter().map(|(key, value)| match value {
        toml::Value::String(value) => Ok((key, value)),
        _ => Err(invalid("a value is no text")),
    });
    pairs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_texts_and_never_told() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "aws_secret_access_key = \"hush\"").unwrap();
        let read = credentials(Some(file.path()), "store.credentials").unwrap();
        assert!(!format!("{read:?}").contains("hush"));
        for text in ["hush = 7", "hush"] {
            std::fs::write(file.path(), text).unwrap();
            let error = credentials(Some(file.path()), "store.credentials").unwrap_err();
            assert!(!error.to_string().contains("hush"), "{error}");
        }
    }
}
