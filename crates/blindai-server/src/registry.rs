//! The models that the server holds, by name and version.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use blindai_core::{Code, Digest, Error, ModelInfo, ModelName, ModelVersion, Result};
use blindai_engine::LoadedModel;

use crate::access::{Held, Owner, Principal};
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

struct Versions {
    /// Who uploaded the first of them. Others do not upload under this name.
    owner: Owner,
    slots: Vec<Slot>,
    /// The last number given out: a caller who pinned a deleted version must not get other content.
    last: u64,
}

struct Slot {
    version: ModelVersion,
    content: Content,
    /// `None` while it loads.
    model: Option<Arc<Model>>,
}

/// What was uploaded.
#[derive(Clone, Copy)]
pub struct Content {
    pub digest: Digest,
    pub size_bytes: u64,
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
    /// Checks that the principal may upload under this name.
    ///
    /// # Errors
    /// Those of [`Principal::check_manages`].
    pub fn check_upload(&self, principal: &Principal, name: &ModelName) -> Result<()> {
        let names = self.lock();
        principal.check_manages(name, names.get(name).map(|versions| &versions.owner))
    }

    /// Reserves a place for this content, or finds that it is already held.
    ///
    /// Nothing is ever overwritten: without a version new content gets the next number.
    ///
    /// # Errors
    /// Those of [`Principal::check_manages`] and [`Principal::check_room`],
    /// [`Code::ModelExists`] when the version holds other content, [`Code::NotReady`] when it is
    /// being loaded now, [`Code::TooManyModels`].
    pub fn claim(
        self: &Arc<Self>,
        principal: &Principal,
        name: &ModelName,
        version: Option<&ModelVersion>,
        content: Content,
        limit: usize,
    ) -> Result<Claim> {
        let mut names = self.lock();
        let held: usize = names.values().map(|versions| versions.slots.len()).sum();
        let versions = names.get(name);
        principal.check_manages(name, versions.map(|versions| &versions.owner))?;
        let slots = versions.map_or(&[][..], |versions| &versions.slots);
        let same = slots.iter().find(|slot| match version {
            Some(version) => slot.version == *version,
            None => slot.content.digest == content.digest,
        });
        if let Some(slot) = same {
            return held_already(name, slot, content.digest);
        }
        principal.check_room(held_by(&names, principal.owner()), content.size_bytes)?;
        if held >= limit {
            let fact = format!("the server holds {held} models, limits.models is {limit}");
            return Err(Error::new(Code::TooManyModels, fact));
        }
        let new = || Versions::new(principal.owner().clone());
        let versions = names.entry(name.clone()).or_insert_with(new);
        let version = versions.reserve(version, content);
        Ok(Claim::Reserved(Place {
            registry: self.clone(),
            name: name.clone(),
            version,
        }))
    }

    /// The model of this name, in this version or the newest.
    ///
    /// # Errors
    /// [`Code::ModelNotFound`], also for a model that the principal may not use.
    pub fn find(
        &self,
        principal: &Principal,
        name: &str,
        version: Option<&str>,
    ) -> Result<Arc<Model>> {
        let names = self.lock();
        let mut seen = seen_by(principal, &names);
        let slots = seen.find(|(key, _)| key.as_str() == name);
        let mut ready = slots.iter().flat_map(|(_, versions)| versions.ready());
        let found = match version {
            Some(version) => ready.find(|model| model.info.version.as_str() == version),
            None => ready.last(),
        };
        found.cloned().ok_or_else(|| not_found(name, version))
    }

    /// What is ready and the principal may use, by name and in the order of upload.
    pub fn list(&self, principal: &Principal) -> Vec<Arc<Model>> {
        let names = self.lock();
        let seen = seen_by(principal, &names);
        seen.flat_map(|(_, versions)| versions.ready())
            .cloned()
            .collect()
    }

    /// Everything that is ready, for what says nothing of names.
    pub fn all(&self) -> Vec<Arc<Model>> {
        let names = self.lock();
        names.values().flat_map(Versions::ready).cloned().collect()
    }

    /// The versions of a name that are ready.
    pub fn versions(&self, principal: &Principal, name: &str) -> Vec<String> {
        let held = self.list(principal).into_iter();
        let named = held.filter(|model| model.info.name.as_str() == name);
        named.map(|model| model.info.version.to_string()).collect()
    }

    /// Takes out a version, or all versions of a name.
    ///
    /// # Errors
    /// [`Code::ModelNotFound`] when there was none that the principal may use, [`Code::Forbidden`]
    /// when it is not the principal's.
    pub fn remove(
        &self,
        principal: &Principal,
        name: &str,
        version: Option<&str>,
    ) -> Result<Vec<Arc<Model>>> {
        let mut names = self.lock();
        let seen = names
            .iter_mut()
            .filter(|(key, of)| principal.sees(key, &of.owner));
        let mut named = seen.filter(|(key, _)| key.as_str() == name);
        let found = named.next().map(|(key, versions)| (key.clone(), versions));
        let (key, versions) = found.ok_or_else(|| not_found(name, version))?;
        principal.check_manages(&key, Some(&versions.owner))?;
        let slots = &mut versions.slots;
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
    fn new(owner: Owner) -> Self {
        Self {
            owner,
            slots: Vec::new(),
            last: 0,
        }
    }

    fn ready(&self) -> impl Iterator<Item = &Arc<Model>> {
        self.slots.iter().filter_map(|slot| slot.model.as_ref())
    }

    fn reserve(&mut self, version: Option<&ModelVersion>, content: Content) -> ModelVersion {
        let version = version.cloned().unwrap_or_else(|| self.next());
        self.slots.push(Slot {
            version: version.clone(),
            content,
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

fn seen_by<'a>(
    principal: &Principal,
    names: &'a BTreeMap<ModelName, Versions>,
) -> impl Iterator<Item = (&'a ModelName, &'a Versions)> {
    let sees = |(name, versions): &(&ModelName, &Versions)| principal.sees(name, &versions.owner);
    names.iter().filter(sees)
}

/// What an owner holds, and what it is uploading now.
fn held_by(names: &BTreeMap<ModelName, Versions>, owner: &Owner) -> Held {
    let own = names.values().filter(|versions| versions.owner == *owner);
    own.flat_map(|versions| &versions.slots)
        .fold(Held::default(), |held, slot| Held {
            models: held.models + 1,
            bytes: held.bytes.saturating_add(slot.content.size_bytes),
        })
}

fn held_already(name: &ModelName, slot: &Slot, digest: Digest) -> Result<Claim> {
    let version = &slot.version;
    if slot.content.digest != digest {
        let fact = format!(
            "{name} version {version} holds other content, {}",
            slot.content.digest
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
