//! The models that the server holds, by name and version.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use blindai_core::{Code, Digest, Error, ModelName, ModelVersion, Result};

use crate::access::{Held, Owner, Principal};
use crate::model::Model;

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

/// One of the two is there, or both.
struct Slot {
    version: ModelVersion,
    /// What answers.
    model: Option<Arc<Model>>,
    /// The content that loads, to take its place if there is one.
    coming: Option<Content>,
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

/// Versions of one name.
pub struct Selection {
    pub chosen: Vec<Arc<Model>>,
    pub others: Vec<Arc<Model>>,
    /// The last number that was given out under the name.
    pub last: u64,
}

/// A name and version before its place is filled.
pub struct Before {
    /// What answers there.
    pub model: Option<Arc<Model>>,
    /// The last number that was given out under the name.
    pub last: u64,
    /// Whose the name is.
    pub owner: Owner,
}

/// A name and version that is reserved while its model loads; dropping gives it up.
pub struct Place {
    registry: Arc<Registry>,
    name: ModelName,
    version: ModelVersion,
    filled: bool,
}

impl Registry {
    /// Checks that the principal may upload under this name, and have what is there leave.
    ///
    /// # Errors
    /// Those of [`Principal::check_manages`].
    pub fn check_manages(&self, principal: &Principal, name: &ModelName) -> Result<()> {
        let names = self.lock();
        principal.check_manages(name, names.get(name).map(|versions| &versions.owner))
    }

    /// Reserves a place for this content, or finds that it is already held.
    ///
    /// Without a version new content gets the next number. Nothing is overwritten unless `replaces`
    /// says so; then what the version holds goes on answering until the place is filled.
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
        replaces: bool,
        limit: usize,
    ) -> Result<Claim> {
        let mut names = self.lock();
        let held: usize = names.values().map(|versions| versions.slots.len()).sum();
        let versions = names.get(name);
        principal.check_manages(name, versions.map(|versions| &versions.owner))?;
        let own = held_by(&names, principal.owner());
        let mut slots = names.get_mut(name).into_iter().flat_map(|v| &mut v.slots);
        let same = slots.find(|slot| match version {
            Some(version) => slot.version == *version,
            None => slot.holds(content.digest),
        });
        if let Some(slot) = same {
            let room = || principal.check_room(own.without_one_model(), content.size_bytes);
            return match slot.claim(name, content, replaces, room)? {
                Some(model) => Ok(Claim::Held(model)),
                None => Ok(Claim::Reserved(self.place(name, slot.version.clone()))),
            };
        }
        principal.check_room(held_by(&names, principal.owner()), content.size_bytes)?;
        if held >= limit {
            let fact = format!("the server holds {held} models, limits.models is {limit}");
            return Err(Error::new(Code::TooManyModels, fact));
        }
        let new = || Versions::new(principal.owner().clone());
        let versions = names.entry(name.clone()).or_insert_with(new);
        let version = versions.reserve(version, content);
        Ok(Claim::Reserved(self.place(name, version)))
    }

    /// The model of this name, in this version or the newest.
    ///
    /// It does not change any more: what takes its place in the registry later is another one.
    ///
    /// # Errors
    /// [`Code::ModelNotFound`], also for a model that the principal may not use;
    /// [`Code::ModelNotAccepted`] for one that its request does not accept.
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
        let found = found.cloned().ok_or_else(|| not_found(name, version))?;
        let info = &found.info;
        principal.accept(&info.name, &info.version, &info.digest)?;
        Ok(found)
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

    /// A version, or all versions of a name, and those that are left beside them.
    ///
    /// # Errors
    /// [`Code::ModelNotFound`] when there is none that the principal may use, [`Code::Forbidden`]
    /// when it is not the principal's to have leave.
    pub fn select(
        &self,
        principal: &Principal,
        name: &str,
        version: Option<&str>,
    ) -> Result<Selection> {
        let names = self.lock();
        let mut called = seen_by(principal, &names).filter(|(key, _)| key.as_str() == name);
        let (key, versions) = called.next().ok_or_else(|| not_found(name, version))?;
        principal.check_manages(key, Some(&versions.owner))?;
        let named = |model: &Arc<Model>| version.is_none_or(|v| model.info.version.as_str() == v);
        let (chosen, others): (Vec<_>, Vec<_>) = versions.ready().cloned().partition(named);
        if chosen.is_empty() {
            return Err(not_found(name, version));
        }
        Ok(Selection {
            chosen,
            others,
            last: versions.last,
        })
    }

    /// Takes out these models, unless others have taken their places.
    pub fn remove(&self, models: &[Arc<Model>]) {
        let mut names = self.lock();
        for model in models {
            let Some(Versions { slots, .. }) = names.get_mut(&model.info.name) else {
                continue;
            };
            for slot in slots.iter_mut() {
                slot.model.take_if(|held| Arc::ptr_eq(held, model));
            }
            // What is loading belongs to its uploader until it is ready.
            slots.retain(|slot| slot.model.is_some() || slot.coming.is_some());
            if slots.is_empty() {
                names.remove(&model.info.name);
            }
        }
    }

    /// Puts in a model that was kept, unless its version is there or its name is another's; `last` is
    /// the last number that was given out under the name. False when it is left out.
    pub fn restore(&self, model: Arc<Model>, owner: &Owner, last: u64) -> bool {
        let mut names = self.lock();
        let versions = names.entry(model.info.name.clone());
        let versions = versions.or_insert_with(|| Versions::new(owner.clone()));
        let version = model.info.version.clone();
        if versions.owner != *owner {
            return false;
        }
        // Also of one that is left out: what had the later numbers was under the same name.
        versions.last = versions.last.max(last);
        if versions.slots.iter().any(|slot| slot.version == version) {
            return false;
        }
        versions.slots.push(Slot {
            version,
            model: Some(model),
            coming: None,
        });
        true
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

    /// What there is until it is filled.
    ///
    /// # Errors
    /// [`Code::NotReady`] when the server has let go of everything in the meantime.
    pub fn before(&self) -> Result<Before> {
        let names = self.registry.lock();
        let versions = names.get(&self.name).ok_or_else(stopping)?;
        let mut slots = versions.slots.iter();
        let slot = slots.find(|slot| slot.version == self.version);
        Ok(Before {
            model: slot.and_then(|slot| slot.model.clone()),
            last: versions.last,
            owner: versions.owner.clone(),
        })
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
        let slot = slot.ok_or_else(stopping)?;
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
        // A number that somebody chose is given out, too.
        if let Ok(number) = version.as_str().parse::<u32>() {
            self.last = self.last.max(number.into());
        }
        self.slots.push(Slot {
            version: version.clone(),
            model: None,
            coming: Some(content),
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
            bytes: held.bytes.saturating_add(slot.size_bytes()),
        })
}

impl Slot {
    fn holds(&self, digest: Digest) -> bool {
        let model = self.model.as_ref().map(|model| model.info.digest);
        let coming = self.coming.map(|content| content.digest);
        [model, coming].contains(&Some(digest))
    }

    fn size_bytes(&self) -> u64 {
        let model = self.model.as_ref().map_or(0, |model| model.info.size_bytes);
        let coming = self.coming.map_or(0, |content| content.size_bytes);
        model.saturating_add(coming)
    }

    /// Claims the slot for other content, unless it holds this content, which is then returned.
    fn claim(
        &mut self,
        name: &ModelName,
        content: Content,
        replaces: bool,
        check_room: impl FnOnce() -> Result<()>,
    ) -> Result<Option<Arc<Model>>> {
        let same = |model: &&Arc<Model>| model.info.digest == content.digest;
        let stays = !replaces || self.coming.is_none();
        if let Some(model) = self.model.as_ref().filter(same).filter(|_| stays) {
            return Ok(Some(model.clone()));
        }
        if !replaces && !self.holds(content.digest) {
            return Err(self.exists(name));
        }
        if self.coming.is_some() {
            let version = &self.version;
            let fact = format!("{name} version {version} is being loaded by another upload");
            return Err(Error::new(Code::NotReady, fact));
        }
        check_room()?;
        self.coming = Some(content);
        Ok(None)
    }

    fn exists(&self, name: &ModelName) -> Error {
        let model = self.model.as_ref().map(|model| model.info.digest);
        let coming = self.coming.map(|content| content.digest);
        let held = model.or(coming).map(|digest| digest.to_string());
        let (version, held) = (&self.version, held.unwrap_or_default());
        let fact = format!("{name} version {version} holds other content, {held}");
        Error::new(Code::ModelExists, fact)
    }
}

fn stopping() -> Error {
    Error::new(Code::NotReady, "the server is stopping")
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
        let content = Content {
            digest: digest(content),
            size_bytes: 1,
        };
        let operator = Principal::operator();
        registry.claim(&operator, &name, version.as_ref(), content, replaces, LIMIT)
    }

    fn place(registry: &Arc<Registry>, version: Option<&str>, content: &str) -> Place {
        match claim(registry, version, content, true).unwrap() {
            Claim::Reserved(place) => place,
            Claim::Held(_) => panic!("{content} is new"),
        }
    }

    fn info(name: &str, version: &str, content: &str) -> ModelInfo {
        ModelInfo {
            name: name.parse().unwrap(),
            version: version.parse().unwrap(),
            digest: digest(content),
            size_bytes: 1,
            signature: Signature::default(),
            engine: EngineKind::OnnxRuntime,
            uploaded_at: 0,
            loaded: true,
            metrics_slot: None,
            kept: None,
        }
    }

    fn fill(place: Place, content: &str) {
        let info = info(place.name.as_str(), place.version.as_str(), content);
        place.fill(Arc::new(Model::away(info))).unwrap();
    }

    fn put(registry: &Arc<Registry>, version: Option<&str>, content: &str) {
        fill(place(registry, version, content), content);
    }

    fn remove(registry: &Registry, version: Option<&str>) -> usize {
        let models = registry
            .select(&Principal::operator(), "m", version)
            .unwrap()
            .chosen;
        registry.remove(&models);
        models.len()
    }

    fn answers(registry: &Registry, version: Option<&str>) -> Digest {
        registry
            .find(&Principal::operator(), "m", version)
            .unwrap()
            .info
            .digest
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
        remove(&registry, Some("2"));
        assert_eq!(answers(&registry, None), digest("a"));
        put(&registry, None, "c");
        assert_eq!(registry.versions(&Principal::operator(), "m"), ["1", "3"]);
        assert!(matches!(
            claim(&registry, None, "a", false),
            Ok(Claim::Held(_))
        ));
    }

    #[test]
    fn what_was_kept_comes_after_what_is_there_and_in_the_place_of_nothing() {
        let registry = Arc::<Registry>::default();
        put(&registry, None, "file");
        let restore = |version: &str, content: &str, owner, last| {
            let model = Arc::new(Model::away(info("m", version, content)));
            registry.restore(model, &owner, last)
        };
        assert!(!restore("2", "a", Owner::Anonymous, 9));
        assert!(restore("2", "b", Owner::Operator, 2));
        assert!(!restore("1", "c", Owner::Operator, 4));
        assert_eq!(answers(&registry, Some("1")), digest("file"));
        assert_eq!(answers(&registry, None), digest("b"));
        put(&registry, None, "d");
        let versions = registry.versions(&Principal::operator(), "m");
        assert_eq!(versions, ["1", "2", "5"]);
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
        assert_eq!(registry.all().len(), 2);
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
        assert_eq!(remove(&registry, None), 1);
        assert!(registry.find(&Principal::operator(), "m", None).is_err());
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
        assert_eq!(registry.all().len(), 0);
        places.pop();
        put(&registry, None, "e");
        drop(places);
        assert_eq!(registry.versions(&Principal::operator(), "m"), ["5"]);
        registry.clear();
        assert!(registry.find(&Principal::operator(), "m", None).is_err());
    }
}
