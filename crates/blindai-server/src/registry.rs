//! The models that the server holds, by name and version.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use blindai_core::{Code, Digest, Error, ModelInfo, ModelName, ModelVersion, Result};
use blindai_engine::LoadedModel;

use crate::budget::Reservation;
use crate::statistics::Statistics;
use crate::telemetry::ModelMetrics;

/// A model that is ready to answer. It stays until its last request has ended.
pub struct Model {
    pub info: ModelInfo,
    pub loaded: LoadedModel,
    pub metrics: Arc<ModelMetrics>,
    pub statistics: Statistics,
    _memory: Reservation,
}

impl Model {
    /// A model that occupies `memory` for as long as it is here.
    pub fn new(
        info: ModelInfo,
        loaded: LoadedModel,
        metrics: Arc<ModelMetrics>,
        memory: Reservation,
    ) -> Self {
        Self {
            info,
            loaded,
            metrics,
            statistics: Statistics::default(),
            _memory: memory,
        }
    }
}

/// All models. The versions of a name stand in the order of their upload; the last is the one that
/// answers when no version is asked for.
#[derive(Default)]
pub struct Registry {
    names: Mutex<BTreeMap<ModelName, Versions>>,
}

#[derive(Default)]
struct Versions {
    slots: Vec<Slot>,
    /// The last number given out: a caller who pinned a deleted version must not get other content.
    last: u64,
}

struct Slot {
    version: ModelVersion,
    digest: Digest,
    /// `None` while it loads.
    model: Option<Arc<Model>>,
}

/// What becomes of an upload.
pub enum Claim {
    /// The server holds this content under this name already.
    Held(Arc<Model>),
    /// The place is reserved for the caller.
    Reserved(Place),
}

/// A name and version that is reserved while its model loads; dropping gives it up.
pub struct Place {
    registry: Arc<Registry>,
    name: ModelName,
    version: ModelVersion,
}

impl Registry {
    /// Reserves a place for this content, or finds that it is already held.
    ///
    /// Nothing is ever overwritten: without a version new content gets the next number.
    ///
    /// # Errors
    /// [`Code::ModelExists`] when the version holds other content, [`Code::NotReady`] when it is
    /// being loaded now, [`Code::TooManyModels`].
    pub fn claim(
        self: &Arc<Self>,
        name: &ModelName,
        version: Option<&ModelVersion>,
        digest: Digest,
        limit: usize,
    ) -> Result<Claim> {
        let mut names = self.lock();
        let held: usize = names.values().map(|versions| versions.slots.len()).sum();
        let versions = names.get(name);
        let slots = versions.map_or(&[][..], |versions| &versions.slots);
        let same = slots.iter().find(|slot| match version {
            Some(version) => slot.version == *version,
            None => slot.digest == digest,
        });
        if let Some(slot) = same {
            return held_already(name, slot, digest);
        }
        if held >= limit {
            let fact = format!("the server holds {held} models, limits.models is {limit}");
            return Err(Error::new(Code::TooManyModels, fact));
        }
        let versions = names.entry(name.clone()).or_default();
        let version = versions.reserve(version, digest);
        Ok(Claim::Reserved(Place {
            registry: self.clone(),
            name: name.clone(),
            version,
        }))
    }

    /// The model of this name, in this version or the newest.
    ///
    /// # Errors
    /// [`Code::ModelNotFound`]
    pub fn find(&self, name: &str, version: Option<&str>) -> Result<Arc<Model>> {
        let names = self.lock();
        let slots = names.iter().find(|(key, _)| key.as_str() == name);
        let mut ready = slots.iter().flat_map(|(_, versions)| versions.ready());
        let found = match version {
            Some(version) => ready.find(|model| model.info.version.as_str() == version),
            None => ready.last(),
        };
        found.cloned().ok_or_else(|| not_found(name, version))
    }

    /// Everything that is ready, by name and in the order of upload.
    pub fn list(&self) -> Vec<Arc<Model>> {
        let names = self.lock();
        names.values().flat_map(Versions::ready).cloned().collect()
    }

    /// The versions of a name that are ready.
    pub fn versions(&self, name: &str) -> Vec<String> {
        let held = self.list().into_iter();
        let named = held.filter(|model| model.info.name.as_str() == name);
        named.map(|model| model.info.version.to_string()).collect()
    }

    /// Takes out a version, or all versions of a name.
    ///
    /// # Errors
    /// [`Code::ModelNotFound`] when there was none.
    pub fn remove(&self, name: &str, version: Option<&str>) -> Result<Vec<Arc<Model>>> {
        let mut names = self.lock();
        let key = names.keys().find(|key| key.as_str() == name).cloned();
        let key = key.ok_or_else(|| not_found(name, version))?;
        let slots = &mut names.entry(key.clone()).or_default().slots;
        // What is loading belongs to its uploader until it is ready.
        let goes = |slot: &mut Slot| {
            slot.model.is_some() && version.is_none_or(|wanted| slot.version.as_str() == wanted)
        };
        let removed: Vec<_> = slots.extract_if(.., goes).filter_map(|s| s.model).collect();
        if slots.is_empty() {
            names.remove(&key);
        }
        if removed.is_empty() {
            return Err(not_found(name, version));
        }
        Ok(removed)
    }

    /// Takes out everything.
    pub fn clear(&self) {
        self.lock().clear();
    }

    // A panic while holding the lock cannot leave a half-made entry: every change is one call.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<ModelName, Versions>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// The version that is reserved.
    pub fn version(&self) -> &ModelVersion {
        &self.version
    }

    /// Puts the model in its place, from where requests find it.
    ///
    /// # Errors
    /// [`Code::NotReady`] when the server has let go of everything in the meantime.
    pub fn fill(self, model: Arc<Model>) -> Result<()> {
        let mut names = self.registry.lock();
        let mut slots = names
            .get_mut(&self.name)
            .into_iter()
            .flat_map(|v| &mut v.slots);
        let slot = slots.find(|slot| slot.version == self.version);
        let gone = || Error::new(Code::NotReady, "the server is stopping");
        slot.ok_or_else(gone)?.model = Some(model);
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut names = self.registry.lock();
        if let Some(Versions { slots, .. }) = names.get_mut(&self.name) {
            slots.retain(|slot| slot.version != self.version || slot.model.is_some());
            if slots.is_empty() {
                names.remove(&self.name);
            }
        }
    }
}

impl Versions {
    fn ready(&self) -> impl Iterator<Item = &Arc<Model>> {
        self.slots.iter().filter_map(|slot| slot.model.as_ref())
    }

    fn reserve(&mut self, version: Option<&ModelVersion>, digest: Digest) -> ModelVersion {
        let version = version.cloned().unwrap_or_else(|| self.next());
        self.slots.push(Slot {
            version: version.clone(),
            digest,
            model: None,
        });
        version
    }

    fn next(&mut self) -> ModelVersion {
        loop {
            self.last += 1;
            let version = self.last.to_string().parse();
            let version: ModelVersion = version.expect("a number is a version");
            if self.slots.iter().all(|slot| slot.version != version) {
                return version;
            }
        }
    }
}

fn held_already(name: &ModelName, slot: &Slot, digest: Digest) -> Result<Claim> {
    let version = &slot.version;
    if slot.digest != digest {
        let fact = format!(
            "{name} version {version} holds other content, {}",
            slot.digest
        );
        return Err(Error::new(Code::ModelExists, fact));
    }
    match &slot.model {
        Some(model) => Ok(Claim::Held(model.clone())),
        None => {
            let fact = format!("{name} version {version} is being loaded by another upload");
            Err(Error::new(Code::NotReady, fact))
        }
    }
}

fn not_found(name: &str, version: Option<&str>) -> Error {
    let fact = match version {
        Some(version) => format!("there is no model {name:?} in version {version:?}"),
        None => format!("there is no model {name:?}"),
    };
    Error::new(Code::ModelNotFound, fact)
}
