use std::path::PathBuf;

use blindai_core::Error;
use blindai_store::Location;
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
