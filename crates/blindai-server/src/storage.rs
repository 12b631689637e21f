//! Models that are there again after a restart: those that were uploaded, in the sealed store.

use std::sync::Arc;

use blindai_core::{Code, Error, Kept, ModelInfo, ModelName, ModelVersion, Result, Signature, Tee};
use blindai_engine::ModelReader;
use blindai_store::{Entry, Location, Options, Store, StoreKey};
use blindai_tee::sealer::{
    EnclaveSealer, GuestSealer, NoSealer, SealTo as EnclaveKey, Sealer, SevGuest, SimulatedSealer,
};
use blindai_tee::{
    Attester, RUNNING_EXECUTABLE, SIMULATED_MRSIGNER, TeeError, TeeErrorKind, measure_executable,
};
use serde::{Deserialize, Serialize};

use crate::access::Owner;
use crate::config::{SealTo, StoreConfig, credentials};
use crate::model::Model;
use crate::origin::Origin;
use crate::registry::{Before, Selection};

/// Where uploaded models are kept.
pub struct Storage {
    store: Store,
    kept: Kept,
    description: String,
}

/// A model as it was kept.
pub struct KeptModel {
    pub info: ModelInfo,
    pub origin: Origin,
    /// What it took in memory.
    pub memory_bytes: u64,
    /// The last number that was given out under its name.
    pub last: u64,
    /// Whose the name is.
    pub owner: Owner,
}

/// A store that can be opened.
pub struct Sealed {
    location: Location,
    key: StoreKey,
    options: Options,
    kept: Kept,
    description: String,
}

impl Sealed {
    /// The store that the configuration names, with the key of this platform.
    ///
    /// # Errors
    /// [`Code::NoSealingKey`], and what speaks against the configuration.
    pub fn new(config: &StoreConfig, attester: &dyn Attester) -> Result<Option<Self>> {
        let Some(location) = config.location()? else {
            return Ok(None);
        };
        let sealer = sealer(config, attester).map_err(no_key)?;
        let key = sealer.sealing_key(StoreKey::PURPOSE).map_err(no_key)?;
        Ok(Some(Self {
            key: StoreKey::new(key.expose()),
            options: Options {
                credentials: credentials(config.credentials.as_deref(), "store.credentials")?,
                seen: config.seen.clone(),
            },
            kept: match sealer.is_simulated() {
                true => Kept::Simulated,
                false => Kept::Sealed,
            },
            description: format!("{location}, {}", sealer.describe()),
            location,
        }))
    }

    /// Opens it, and takes it from whoever has it open.
    ///
    /// # Errors
    /// What speaks against the store.
    pub async fn open(self) -> Result<Storage> {
        Ok(Storage {
            store: Store::open(&self.location, self.key, self.options).await?,
            kept: self.kept,
            description: self.description,
        })
    }
}

impl Storage {
    /// How models are kept here.
    pub fn kept(&self) -> Kept {
        self.kept
    }

    /// One line for the log at start.
    pub fn description(&self) -> &str {
        &self.description
    }

    /// Everything that is kept. A model that cannot be read, as it was kept by a later version, is left
    /// where it is.
    pub fn models(&self) -> Vec<KeptModel> {
        let entries = self.store.entries().into_iter();
        entries.filter_map(|entry| self.model(entry)).collect()
    }

    /// Keeps a model, in the place of what answered there `before`. It is kept when this returns.
    ///
    /// # Errors
    /// What the store says.
    pub async fn put(
        &self,
        content: ModelReader,
        info: &ModelInfo,
        memory_bytes: u64,
        before: Before,
    ) -> Result<Origin> {
        let record = Record {
            name: info.name.clone(),
            version: info.version.clone(),
            signature: info.signature.clone(),
            uploaded_at: info.uploaded_at,
            memory_bytes,
            last: before.last,
            owner: before.owner,
        };
        let old: Vec<_> = before
            .model
            .iter()
            .filter_map(|model| entry(model))
            .collect();
        let old: Vec<_> = old.iter().map(|entry| entry.id()).collect();
        let (digest, size) = (info.digest, info.size_bytes);
        let put = self
            .store
            .replace(&old, content, digest, size, record.to_json());
        Ok(Origin::Stored(self.store.clone(), put.await?))
    }

    /// Keeps models no longer.
    ///
    /// # Errors
    /// What the store says; then they are still kept.
    pub async fn forget(&self, selection: &Selection) -> Result<()> {
        let ids = |models: &[Arc<Model>]| -> Vec<_> {
            let entries = models.iter().filter_map(|model| entry(model));
            entries.map(|entry| entry.id()).collect()
        };
        let gone = ids(&selection.chosen);
        if gone.is_empty() {
            return Ok(());
        }
        // Those that are left remember the numbers that were given out.
        let left = ids(&selection.others);
        let records = self.store.entries().into_iter();
        let records = records.filter(|entry| left.contains(&entry.id()));
        let records = records.filter_map(|entry| {
            let mut record = Record::of(&entry)?;
            record.last = record.last.max(selection.last);
            Some((entry.id(), record.to_json()))
        });
        self.store.update(&gone, records.collect()).await
    }

    fn model(&self, entry: Arc<Entry>) -> Option<KeptModel> {
        let Some(record) = Record::of(&entry) else {
            let code = Code::StoreFormat.as_str();
            tracing::warn!(
                code,
                "a kept model is of a version that this program does not know"
            );
            return None;
        };
        Some(KeptModel {
            memory_bytes: record
                .memory_bytes
                .max(entry.size_bytes().saturating_mul(2)),
            last: record.last,
            owner: record.owner,
            info: ModelInfo {
                name: record.name,
                version: record.version,
                digest: entry.digest(),
                size_bytes: entry.size_bytes(),
                signature: record.signature,
                engine: blindai_core::EngineKind::OnnxRuntime,
                uploaded_at: record.uploaded_at,
                loaded: false,
                metrics_slot: None,
                kept: Some(self.kept),
            },
            origin: Origin::Stored(self.store.clone(), entry),
        })
    }
}

/// What is kept beside a model. What an older version did not write has a default; what a later one
/// wrote besides is passed over.
#[derive(Serialize, Deserialize)]
struct Record {
    name: ModelName,
    version: ModelVersion,
    signature: Signature,
    uploaded_at: u64,
    #[serde(default)]
    memory_bytes: u64,
    #[serde(default)]
    last: u64,
    #[serde(default)]
    owner: Owner,
}

impl Record {
    fn of(entry: &Entry) -> Option<Self> {
        Self::deserialize(entry.record()).ok()
    }

    fn to_json(&self) -> serde_json::Value {
        serde_json::to_value(self).expect("a record is JSON")
    }
}

fn entry(model: &Model) -> Option<&Arc<Entry>> {
    match &model.origin {
        Some(Origin::Stored(_, entry)) => Some(entry),
        _ => None,
    }
}

fn sealer(config: &StoreConfig, attester: &dyn Attester) -> Result<Box<dyn Sealer>, TeeError> {
    let tee = attester.tee();
    if attester.is_simulated() {
        return simulated(config, tee);
    }
    Ok(match tee {
        Tee::Sgx => Box::new(EnclaveSealer::open(match config.seal_to {
            SealTo::Enclave => EnclaveKey::Code,
            SealTo::Signer => EnclaveKey::Signer,
        })),
        Tee::SevSnp => Box::new(GuestSealer::new(SevGuest::open())),
        Tee::Tdx => Box::new(NoSealer(tee)),
    })
}

/// As the platform would: what has no key there has none here.
fn simulated(config: &StoreConfig, tee: Tee) -> Result<Box<dyn Sealer>, TeeError> {
    let file = &config.simulated_key;
    Ok(match (tee, config.seal_to) {
        (Tee::Tdx, _) => Box::new(NoSealer(tee)),
        (Tee::Sgx, SealTo::Signer) => Box::new(SimulatedSealer::at(file, &SIMULATED_MRSIGNER)?),
        _ => {
            let code = measure_executable(tee, RUNNING_EXECUTABLE)?;
            Box::new(SimulatedSealer::at(file, code.as_bytes())?)
        }
    })
}

fn no_key(error: TeeError) -> Error {
    let code = match error.kind() {
        TeeErrorKind::NoSealingKey => return Error::new(Code::NoSealingKey, error.fact()),
        _ => Code::StoreUnavailable,
    };
    Error::new(code, error.fact()).with_remedy(error.remedy().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_older_and_later_versions_are_read() {
        let oldest = serde_json::json!({
            "name": "m",
            "version": "1",
            "signature": { "inputs": [], "outputs": [] },
            "uploaded_at": 7,
        });
        let record = Record::deserialize(&oldest).unwrap();
        assert_eq!((record.memory_bytes, record.last), (0, 0));
        assert_eq!(record.owner, Owner::Anonymous);
        let mut later = record.to_json();
        later["invented_later"] = "something".into();
        assert_eq!(Record::deserialize(&later).unwrap().uploaded_at, 7);
    }
}
