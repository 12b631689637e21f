//! The models that the server holds, by name and version.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use blindai_core::{Code, Digest, Error, ModelName, ModelVersion, Result};

use crate::model::Model;

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

/// One of the two is there, or both.
struct Slot {
    version: ModelVersion,
    /// What answers.
    model: Option<Arc<Model>>,
    /// The content that loads, to take its place if there is one.
    coming: Option<Digest>,
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
    filled: bool,
}

impl Registry {
    /// Reserves a place for this content, or finds that it is already held.
    ///
    /// Without a version new content gets the next number. Nothing is overwritten unless `replaces`
    /// says so; then what the version holds goes on answering until the place is filled.
    ///
    /// # Errors
    /// [`Code::ModelExists`] when the version holds other content, [`Code::NotReady`] when it is
    /// being loaded now, [`Code::TooManyModels`].
    pub fn claim(
        self: &Arc<Self>,
        name: &ModelName,
        version: Option<&ModelVersion>,
        digest: Digest,
        replaces: bool,
        limit: usize,
    ) -> Result<Claim> {
        let mut names = self.lock();
        let held: usize = names.values().map(|versions| versions.slots.len()).sum();
        let mut slots = names.get_mut(name).into_iter().flat_map(|v| &mut v.slots);
        let same = slots.find(|slot| match version {
            Some(version) => slot.version == *version,
            None => slot.holds(digest),
        });
        if let Some(slot) = same {
            return match slot.claim(name, digest, replaces)? {
                Some(model) => Ok(Claim::Held(model)),
                None => Ok(Claim::Reserved(self.place(name, slot.version.clone()))),
            };
        }
        if held >= limit {
            let fact = format!("the server holds {held} models, limits.models is {limit}");
            return Err(Error::new(Code::TooManyModels, fact));
        }
        let versions = names.entry(name.clone()).or_default();
        let version = versions.reserve(version, digest);
        Ok(Claim::Reserved(self.place(name, version)))
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
        let named = |slot: &&mut Slot| version.is_none_or(|v| slot.version.as_str() == v);
        let removed = slots.iter_mut().filter(named);
        let removed: Vec<_> = removed.filter_map(|slot| slot.model.take()).collect();
        // What is loading belongs to its uploader until it is ready.
        slots.retain(|slot| slot.model.is_some() || slot.coming.is_some());
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

    fn place(self: &Arc<Self>, name: &ModelName, version: ModelVersion) -> Place {
        Place {
            registry: self.clone(),
            name: name.clone(),
            version,
            filled: false,
        }
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

    /// Puts the model in its place, from where requests find it: from now on all of them, while those
    /// that found what was there before end with that.
    ///
    /// # Errors
    /// [`Code::NotReady`] when the server has let go of everything in the meantime.
    pub fn fill(mut self, model: Arc<Model>) -> Result<()> {
        let mut names = self.registry.lock();
        let mut slots = names
            .get_mut(&self.name)
            .into_iter()
            .flat_map(|v| &mut v.slots);
        let slot = slots.find(|slot| slot.version == self.version);
        let gone = || Error::new(Code::NotReady, "the server is stopping");
        let slot = slot.ok_or_else(gone)?;
        slot.coming = None;
        slot.model = Some(model);
        self.filled = true;
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // From then on the version may be somebody else's to claim.
        if self.filled {
            return;
        }
        let mut names = self.registry.lock();
        if let Some(Versions { slots, .. }) = names.get_mut(&self.name) {
            let own = slots.iter_mut().find(|slot| slot.version == self.version);
            own.into_iter().for_each(|slot| slot.coming = None);
            slots.retain(|slot| slot.model.is_some() || slot.coming.is_some());
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
            model: None,
            coming: Some(digest),
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

impl Slot {
    fn holds(&self, digest: Digest) -> bool {
        let model = self.model.as_ref().map(|model| model.info.digest);
        [model, self.coming].contains(&Some(digest))
    }

    /// Claims the slot for other content, unless it holds this content, which is then returned.
    fn claim(
        &mut self,
        name: &ModelName,
        digest: Digest,
        replaces: bool,
    ) -> Result<Option<Arc<Model>>> {
        let same = |model: &&Arc<Model>| model.info.digest == digest;
        let stays = !replaces || self.coming.is_none();
        if let Some(model) = self.model.as_ref().filter(same).filter(|_| stays) {
            return Ok(Some(model.clone()));
        }
        if !replaces && !self.holds(digest) {
            return Err(self.exists(name));
        }
        if self.coming.is_some() {
            let version = &self.version;
            let fact = format!("{name} version {version} is being loaded by another upload");
            return Err(Error::new(Code::NotReady, fact));
        }
        self.coming = Some(digest);
        Ok(None)
    }

    fn exists(&self, name: &ModelName) -> Error {
        let model = self.model.as_ref().map(|model| model.info.digest);
        let held = model.or(self.coming).map(|digest| digest.to_string());
        let (version, held) = (&self.version, held.unwrap_or_default());
        let fact = format!("{name} version {version} holds other content, {held}");
        Error::new(Code::ModelExists, fact)
    }
}

fn not_found(name: &str, version: Option<&str>) -> Error {
    let fact = match version {
        Some(version) => format!("there is no model {name:?} in version {version:?}"),
        None => format!("there is no model {name:?}"),
    };
    Error::new(Code::ModelNotFound, fact)
}

#[cfg(test)]
mod tests {
    use blindai_core::{EngineKind, ModelInfo, Signature};

    use super::*;

    const LIMIT: usize = 4;

    fn digest(content: &str) -> Digest {
        Digest::of(content.as_bytes())
    }

    fn claim(
        registry: &Arc<Registry>,
        version: Option<&str>,
        content: &str,
        replaces: bool,
    ) -> Result<Claim> {
        let version = version.map(|version| version.parse().unwrap());
        let name = "m".parse().unwrap();
        registry.claim(&name, version.as_ref(), digest(content), replaces, LIMIT)
    }

    fn place(registry: &Arc<Registry>, version: Option<&str>, content: &str) -> Place {
        match claim(registry, version, content, true).unwrap() {
            Claim::Reserved(place) => place,
            Claim::Held(_) => panic!("{content} is new"),
        }
    }

    fn fill(place: Place, content: &str) {
        let info = ModelInfo {
            name: place.name.clone(),
            version: place.version.clone(),
            digest: digest(content),
            size_bytes: 1,
            signature: Signature::default(),
            engine: EngineKind::OnnxRuntime,
            uploaded_at: 0,
            loaded: true,
            metrics_slot: None,
        };
        place.fill(Arc::new(Model::away(info))).unwrap();
    }

    fn put(registry: &Arc<Registry>, version: Option<&str>, content: &str) {
        fill(place(registry, version, content), content);
    }

    fn answers(registry: &Registry, version: Option<&str>) -> Digest {
        registry.find("m", version).unwrap().info.digest
    }

    fn refused(claim: Result<Claim>) -> Code {
        claim.err().expect("it is refused").code()
    }

    #[test]
    fn the_newest_answers_and_numbers_are_given_out_once() {
        let registry = Arc::default();
        put(&registry, None, "a");
        put(&registry, None, "b");
        assert_eq!(answers(&registry, None), digest("b"));
        assert_eq!(answers(&registry, Some("1")), digest("a"));
        registry.remove("m", Some("2")).unwrap();
        assert_eq!(answers(&registry, None), digest("a"));
        put(&registry, None, "c");
        assert_eq!(registry.versions("m"), ["1", "3"]);
        assert!(matches!(
            claim(&registry, None, "a", false),
            Ok(Claim::Held(_))
        ));
    }

    #[test]
    fn what_a_version_holds_answers_until_it_is_replaced() {
        let registry = Arc::default();
        put(&registry, None, "a");
        put(&registry, None, "z");
        assert_eq!(
            refused(claim(&registry, Some("1"), "b", false)),
            Code::ModelExists
        );
        let coming = place(&registry, Some("1"), "b");
        assert_eq!(answers(&registry, Some("1")), digest("a"));
        // One at a time; what is there is still there for who asks for that.
        assert_eq!(
            refused(claim(&registry, Some("1"), "c", true)),
            Code::NotReady
        );
        assert_eq!(
            refused(claim(&registry, Some("1"), "a", true)),
            Code::NotReady
        );
        assert_eq!(
            refused(claim(&registry, Some("1"), "b", false)),
            Code::NotReady
        );
        assert_eq!(
            refused(claim(&registry, Some("1"), "c", false)),
            Code::ModelExists
        );
        assert!(matches!(
            claim(&registry, Some("1"), "a", false),
            Ok(Claim::Held(_))
        ));
        fill(coming, "b");
        assert_eq!(answers(&registry, Some("1")), digest("b"));
        // It keeps its place: the newest is another.
        assert_eq!(answers(&registry, None), digest("z"));
        assert_eq!(registry.list().len(), 2);
    }

    #[test]
    fn a_replacement_that_fails_leaves_what_was_there() {
        let registry = Arc::default();
        put(&registry, None, "a");
        drop(place(&registry, Some("1"), "b"));
        assert_eq!(answers(&registry, None), digest("a"));
        put(&registry, Some("1"), "b");
        assert_eq!(answers(&registry, None), digest("b"));
    }

    #[test]
    fn what_loads_is_not_deleted_with_what_it_would_replace() {
        let registry = Arc::default();
        put(&registry, None, "a");
        let coming = place(&registry, Some("1"), "b");
        assert_eq!(registry.remove("m", None).unwrap().len(), 1);
        assert!(registry.find("m", None).is_err());
        fill(coming, "b");
        assert_eq!(answers(&registry, Some("1")), digest("b"));
    }

    #[test]
    fn a_filled_place_gives_up_nothing_of_who_comes_after() {
        let registry = Arc::default();
        let first = place(&registry, Some("x"), "a");
        assert_eq!(
            refused(claim(&registry, Some("x"), "a", false)),
            Code::NotReady
        );
        fill(first, "a");
        let _second = place(&registry, Some("x"), "b");
        assert_eq!(
            refused(claim(&registry, Some("x"), "b", false)),
            Code::NotReady
        );
    }

    #[test]
    fn places_count_and_are_given_up() {
        let registry = Arc::default();
        let mut places: Vec<_> = ["a", "b", "c", "d"]
            .map(|content| place(&registry, None, content))
            .into();
        assert_eq!(
            refused(claim(&registry, None, "e", false)),
            Code::TooManyModels
        );
        assert_eq!(registry.list().len(), 0);
        places.pop();
        put(&registry, None, "e");
        drop(places);
        assert_eq!(registry.versions("m"), ["5"]);
        registry.clear();
        assert!(registry.find("m", None).is_err());
    }
}
