//! The store: a manifest that lists everything, and beside it what the models hold.
//!
//! A change writes what a model holds first, then a manifest of the next generation, which may be
//! created only once. That is the moment at which the change happens: who stops before has changed
//! nothing, and two servers cannot both create it. Who opens the store creates a generation, too, so a
//! server that had it open before finds its next one taken, and writes nothing any more.

use std::collections::HashSet;
use std::fmt;
use std::io::Read;
use std::iter;
use std::path::{Path as FilePath, PathBuf};
use std::sync::{Arc, Mutex as Lock, PoisonError};

use aws_lc_rs::hmac;
use blindai_core::{Code, Digest, Error, Result};
use futures_util::TryStreamExt as _;
use object_store::path::Path;
use object_store::{Error as Backend, ObjectStore, ObjectStoreExt as _, PutMode, PutPayload};
use serde_json::Value;
use tokio::sync::Mutex;

use crate::entry::{CONTENT, Entry, EntryId, is_content};
use crate::error::{stopped, unavailable};
use crate::key::StoreKey;
use crate::location::{Credentials, Location};
use crate::manifest::{self, Manifest};
use crate::seen::{Seen, Sight};
use crate::stream::{Header, Layout, Stream};
use crate::transfer::{self, BOUND_TO, Destination};

/// How a store is opened.
#[derive(Debug, Default)]
pub struct Options {
    /// For an object store.
    pub credentials: Credentials,
    /// A file that remembers the newest generation, where whoever holds the store cannot put an old
    /// one back. Without it a store that was put back as a whole before this start is not noticed.
    pub seen: Option<PathBuf>,
}

/// Models at rest. Changes go on to their end when nobody waits for them any more.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    backend: Arc<dyn ObjectStore>,
    /// Whether a request that failed has ended: in a folder. Elsewhere one may still be on its way.
    settles: bool,
    key: StoreKey,
    names: hmac::Key,
    seen: Option<Seen>,
    store: EntryId,
    /// What is acknowledged.
    entries: Lock<Vec<Arc<Entry>>>,
    newest: Mutex<Newest>,
}

/// The newest manifest of ours.
struct Newest {
    generation: u64,
    digest: Digest,
    /// Those that exist though they are not acknowledged, or of which the backend did not say whether
    /// they do.
    unknown: Vec<Digest>,
    /// What may be listed in one of these.
    doubtful: Vec<Path>,
    taken: bool,
}

impl Store {
    /// Opens the store there, or makes one. Reads the manifest and nothing of what the models hold.
    ///
    /// Whoever has it open elsewhere writes nothing from now on. What earlier servers left unfinished
    /// is removed.
    ///
    /// # Errors
    /// [`Code::StoreUnavailable`], [`Code::StoreTaken`] when another server opens it at this moment,
    /// [`Code::StoreRolledBack`], [`Code::StoreManifestMissing`], and what speaks against the newest
    /// manifest: [`Code::StoreSealedElsewhere`], [`Code::StoreFormat`], [`Code::StoreTruncated`],
    /// [`Code::StoreSwapped`], [`Code::StoreCorrupt`]. An older one is never taken in its place.
    pub async fn open(location: &Location, key: StoreKey, options: Options) -> Result<Self> {
        let backend = location.backend(&options.credentials)?;
        // Before the store is claimed: what comes later belongs to whoever claims it after us.
        let folder = location.folder();
        let unfinished = folder.map(unfinished).unwrap_or_default();
        let store = Self::begin(backend, folder.is_some(), key, options.seen).await?;
        for file in unfinished {
            let _ = std::fs::remove_file(file);
        }
        Ok(store)
    }

    /// The same on a backend that is there already.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn on(
        backend: Arc<dyn ObjectStore>,
        key: StoreKey,
        seen: Option<PathBuf>,
    ) -> Result<Self> {
        Self::begin(backend, false, key, seen).await
    }

    async fn begin(
        backend: Arc<dyn ObjectStore>,
        settles: bool,
        key: StoreKey,
        seen: Option<PathBuf>,
    ) -> Result<Self> {
        let seen = seen.map(|file| Seen::at(file, &key));
        // As in `open`: the list is made before the claim, and only what is on it is removed.
        let found = list(&*backend).await?;
        let (manifest, digest) = newest(&*backend, &found, &key).await?;
        let sight = manifest.as_ref().map(|manifest| Sight {
            store: manifest.store,
            generation: manifest.generation,
            manifest: digest,
        });
        if let Some(seen) = &seen {
            seen.check(sight.as_ref())?;
        }
        let manifest = manifest.map_or_else(empty, Ok)?;
        let inner = Arc::new(Inner {
            names: key.names(),
            store: manifest.store,
            entries: Lock::default(),
            newest: Mutex::new(Newest::found(manifest.generation, digest)),
            backend,
            settles,
            key,
            seen,
        });
        let claiming = inner.clone();
        run(async move { claiming.change(|_| Ok(manifest.entries)).await }).await?;
        inner.sweep(&found).await;
        Ok(Self(inner))
    }

    /// Everything that is acknowledged, in the order in which it was put.
    pub fn entries(&self) -> Vec<Arc<Entry>> {
        self.0.entries().clone()
    }

    /// Puts a model with this SHA-256 and length; it is there when this returns, also after a loss
    /// of power. `record` is what the caller wants to know of it again; it is sealed too.
    ///
    /// # Errors
    /// [`Code::DigestMismatch`] and [`Code::BodyIncomplete`] when the content is not what was
    /// announced, [`Code::StoreUnavailable`], [`Code::StoreTaken`], [`Code::StoreRolledBack`].
    pub async fn put(
        &self,
        content: impl Read + Send + 'static,
        digest: Digest,
        size_bytes: u64,
        record: Value,
    ) -> Result<Arc<Entry>> {
        self.replace(&[], content, digest, size_bytes, record).await
    }

    /// Puts a model in the place of others, in one step.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub async fn replace(
        &self,
        old: &[EntryId],
        content: impl Read + Send + 'static,
        digest: Digest,
        size_bytes: u64,
        record: Value,
    ) -> Result<Arc<Entry>> {
        let (inner, old) = (self.0.clone(), old.to_vec());
        run(async move {
            // Who has lost the store puts nothing more into it, which would be somebody else's by now.
            inner.check(&mut *inner.newest.lock().await).await?;
            let entry = inner.send(content, digest, size_bytes, record).await?;
            let entry = Arc::new(entry);
            let new = entry.clone();
            let changed = inner.change(|mut entries| {
                let is_old = |entry: &Arc<Entry>| old.contains(&entry.id());
                let place = entries.iter().position(is_old).unwrap_or(entries.len());
                entries.insert(place, new);
                entries.retain(|entry| !is_old(entry));
                Ok(entries)
            });
            match changed.await {
                Ok(()) => Ok(entry),
                Err(error) => {
                    inner.drop_unlisted(&entry).await;
                    Err(error)
                }
            }
        })
        .await
    }

    /// Removes models. It does not matter whether they are there.
    ///
    /// # Errors
    /// [`Code::StoreUnavailable`], [`Code::StoreTaken`], [`Code::StoreRolledBack`].
    pub async fn remove(&self, ids: &[EntryId]) -> Result<()> {
        self.update(ids, Vec::new()).await
    }

    /// Removes models and gives others another record, in one step. It does not matter whether they
    /// are there.
    ///
    /// # Errors
    /// As [`remove`](Self::remove).
    pub async fn update(&self, removed: &[EntryId], records: Vec<(EntryId, Value)>) -> Result<()> {
        let (inner, removed) = (self.0.clone(), removed.to_vec());
        run(async move {
            let update = |mut entries: Vec<Arc<Entry>>| {
                entries.retain(|entry| !removed.contains(&entry.id()));
                for (id, record) in records {
                    let entry = entries.iter_mut().find(|entry| entry.id() == id);
                    entry.into_iter().for_each(|entry| {
                        *entry = Arc::new(entry.with_record(record.clone()));
                    });
                }
                Ok(entries)
            };
            inner.change(update).await
        })
        .await
    }

    /// Reads a model into `into`, piece by piece. Only authentic pieces get there, and the whole is
    /// given back only when it is the model that was put.
    ///
    /// # Errors
    /// [`Code::StoreContentMissing`], [`Code::StoreTruncated`], [`Code::StoreSwapped`],
    /// [`Code::StoreCorrupt`], [`Code::StoreUnavailable`], and those of `into`.
    pub async fn read<D: Destination>(&self, entry: &Entry, into: D) -> Result<D::Whole> {
        let key = self.0.key.content();
        transfer::receive(&*self.0.backend, &key, entry, into).await
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({} entries)", self.0.entries().len())
    }
}

impl Inner {
    /// Stores what a model holds, where nothing lists it yet.
    async fn send(
        &self,
        content: impl Read + Send + 'static,
        digest: Digest,
        size_bytes: u64,
        record: Value,
    ) -> Result<Entry> {
        let too_large = || Error::new(Code::ModelTooLarge, format!("{size_bytes} bytes"));
        let layout = Layout::of_plain(size_bytes).ok_or_else(too_large)?;
        let header = Header::draw()?;
        let name = self.name(digest, header);
        let entry = Entry::new(digest, size_bytes, record, name, header)?;
        let stream = Stream::new(&self.key.content(), BOUND_TO, header, layout);
        let path = entry.path();
        let sent = transfer::send(&*self.backend, &path, stream, header, content, digest).await;
        if let Err(error) = sent {
            // It may be there although the answer was lost.
            self.delete(iter::once(path)).await;
            return Err(error);
        }
        Ok(entry)
    }

    /// Removes what a change that failed has stored, unless a manifest may list it: then the next change
    /// removes it, or the next opening does or finds it listed.
    async fn drop_unlisted(&self, entry: &Entry) {
        let mut newest = self.newest.lock().await;
        match newest.unknown.is_empty() {
            true => self.delete(iter::once(entry.path())).await,
            false => newest.doubtful.push(entry.path()),
        }
    }

    /// Tells of the content and of this sealing of it, to who has the key. No name comes twice, so
    /// nothing is ever written over.
    fn name(&self, digest: Digest, header: Header) -> String {
        let mut name = hmac::Context::with_key(&self.names);
        name.update(digest.as_bytes());
        name.update(header.as_bytes());
        hex::encode(name.sign().as_ref())
    }

    /// Makes the next generation out of what is acknowledged, and removes what it no longer lists.
    async fn change(
        &self,
        make: impl FnOnce(Vec<Arc<Entry>>) -> Result<Vec<Arc<Entry>>>,
    ) -> Result<()> {
        let mut newest = self.newest.lock().await;
        let before = self.entries().clone();
        let after = make(before.clone())?;
        let old = newest.generation;
        self.check(&mut newest).await?;
        self.commit(&mut newest, &after).await?;
        let kept: HashSet<_> = after.iter().map(|entry| entry.path()).collect();
        *self.entries() = after;
        let dropped = before.iter().map(|entry| entry.path());
        let dropped = dropped.filter(|path| !kept.contains(path));
        let manifests = (old.max(1)..newest.generation).map(manifest::path);
        let doubtful = std::mem::take(&mut newest.doubtful);
        self.delete(dropped.chain(manifests).chain(doubtful)).await;
        Ok(())
    }

    /// Whether the newest manifest is still the one that we wrote.
    async fn check(&self, newest: &mut Newest) -> Result<()> {
        if newest.taken {
            return Err(taken());
        }
        if newest.generation == 0 {
            return Ok(());
        }
        let found = self.fetch(newest.generation).await;
        match found {
            Ok(digest) if digest == newest.digest => return Ok(()),
            Err(error) if !matches!(error, Backend::NotFound { .. }) => {
                return Err(unavailable("reading the manifest", &error));
            }
            _ => {}
        }
        let found = list(&*self.backend).await?;
        let latest = found.iter().filter_map(manifest::generation).max();
        if latest.is_some_and(|latest| latest > newest.generation) {
            newest.taken = true;
            return Err(taken());
        }
        let fact = format!(
            "the manifest of generation {}, which this server wrote, is no longer there",
            newest.generation
        );
        Err(Error::new(Code::StoreRolledBack, fact))
    }

    /// Creates the manifest of the next generation. When this fails after all, the next to succeed
    /// undoes it: it lists what was acknowledged before.
    async fn commit(&self, newest: &mut Newest, entries: &[Arc<Entry>]) -> Result<()> {
        loop {
            let generation = newest.generation + 1;
            let manifest = Manifest {
                store: self.store,
                generation,
                entries: entries.to_vec(),
            };
            let bytes = manifest.seal(&self.key)?;
            let digest = Digest::of(&bytes);
            let found = match self.create(generation, bytes).await {
                Ok(()) => digest,
                Err(error) => self.look(newest, generation, digest, &error).await?,
            };
            newest.generation = generation;
            newest.digest = found;
            // Otherwise it is one of ours that was thought to be lost, and ours comes after it.
            if found == digest {
                newest.unknown.clear();
                let remembered = self.remember(newest);
                // It is there, and nobody was told so.
                return remembered.inspect_err(|_| newest.unknown.push(digest));
            }
        }
    }

    async fn create(&self, generation: u64, bytes: Vec<u8>) -> Result<(), Backend> {
        let path = manifest::path(generation);
        let created = self
            .backend
            .put_opts(&path, PutPayload::from(bytes), PutMode::Create.into());
        created.await.map(drop)
    }

    /// After a failure: which manifest of this generation is there. A request may have succeeded
    /// although its answer was lost.
    async fn look(
        &self,
        newest: &mut Newest,
        generation: u64,
        ours: Digest,
        error: &Backend,
    ) -> Result<Digest> {
        match self.fetch(generation).await {
            Ok(found) if found == ours || newest.unknown.contains(&found) => Ok(found),
            Ok(_) => {
                newest.taken = true;
                Err(taken())
            }
            Err(found) => {
                // Else a full disk would keep what was written to it for this manifest to list, and
                // have no room for the one that lists less.
                let is_none = self.settles && matches!(found, Backend::NotFound { .. });
                newest.unknown.extend((!is_none).then_some(ours));
                Err(unavailable("writing the manifest", error))
            }
        }
    }

    fn remember(&self, newest: &Newest) -> Result<()> {
        let Some(seen) = &self.seen else {
            return Ok(());
        };
        seen.write(&Sight {
            store: self.store,
            generation: newest.generation,
            manifest: newest.digest,
        })
    }

    /// The digest of a manifest that is there.
    async fn fetch(&self, generation: u64) -> Result<Digest, Backend> {
        let bytes = fetch(&*self.backend, generation).await?;
        Ok(Digest::of(&bytes.unwrap_or_default()))
    }

    /// Removes what was found before the store was claimed and is not listed: what is there since
    /// may belong to a server that claimed it later.
    async fn sweep(&self, found: &[Path]) {
        let generation = self.newest.lock().await.generation;
        let kept: HashSet<_> = self.entries().iter().map(|entry| entry.path()).collect();
        let old = |path: &&Path| match manifest::generation(path) {
            Some(number) => number < generation,
            None => is_content(path) && !kept.contains(*path),
        };
        self.delete(found.iter().filter(old).cloned()).await;
    }

    /// What cannot be removed now is at the next opening.
    async fn delete(&self, paths: impl Iterator<Item = Path>) {
        for path in paths {
            let _ = self.backend.delete(&path).await;
        }
    }

    fn entries(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Entry>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Newest {
    fn found(generation: u64, digest: Digest) -> Self {
        Self {
            generation,
            digest,
            unknown: Vec::new(),
            doubtful: Vec::new(),
            taken: false,
        }
    }
}

fn empty() -> Result<Manifest> {
    Ok(Manifest {
        store: EntryId::draw()?,
        generation: 0,
        entries: Vec::new(),
    })
}

/// Sees a change to its end: one that stops halfway would not know what it has done.
async fn run<T: Send + 'static>(
    change: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    tokio::spawn(change).await.map_err(|_| stopped())?
}

async fn list(backend: &dyn ObjectStore) -> Result<Vec<Path>> {
    let found = backend.list(None).map_ok(|object| object.location);
    let found: Result<Vec<_>, Backend> = found.try_collect().await;
    found.map_err(|error| unavailable("listing the store", &error))
}

async fn newest(
    backend: &dyn ObjectStore,
    found: &[Path],
    key: &StoreKey,
) -> Result<(Option<Manifest>, Digest)> {
    let Some(generation) = found.iter().filter_map(manifest::generation).max() else {
        if found.iter().any(is_content) {
            let fact = "there are models in the store, but no manifest";
            return Err(Error::new(Code::StoreManifestMissing, fact));
        }
        return Ok((None, Digest::of(b"")));
    };
    let bytes = fetch(backend, generation).await;
    let bytes = bytes.map_err(|error| unavailable("reading the manifest", &error))?;
    let too_long = || Error::new(Code::StoreCorrupt, "the newest manifest is too long");
    let bytes = bytes.ok_or_else(too_long)?;
    let manifest = Manifest::open(&bytes, key, generation)?;
    Ok((Some(manifest), Digest::of(&bytes)))
}

/// `None` for what is too long to be a manifest.
async fn fetch(backend: &dyn ObjectStore, generation: u64) -> Result<Option<Vec<u8>>, Backend> {
    let found = backend.get(&manifest::path(generation)).await?;
    if found.meta.size > manifest::LONGEST_BYTES {
        return Ok(None);
    }
    Ok(Some(found.bytes().await?.into()))
}

/// Files that a folder's backend had not finished: it names them after the object, with a number.
fn unfinished(folder: &FilePath) -> Vec<PathBuf> {
    let folders = [folder.to_owned(), folder.join(CONTENT)];
    let entries = folders
        .iter()
        .filter_map(|folder| std::fs::read_dir(folder).ok());
    let files = entries
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()));
    files.filter(|file| is_unfinished(folder, file)).collect()
}

fn is_unfinished(folder: &FilePath, file: &FilePath) -> bool {
    let name = file.strip_prefix(folder).ok().and_then(FilePath::to_str);
    let Some((object, number)) = name.and_then(|name| name.rsplit_once('#')) else {
        return false;
    };
    let object = Path::from(object);
    number.bytes().all(|digit| digit.is_ascii_digit())
        && (is_content(&object) || manifest::generation(&object).is_some())
}

fn taken() -> Error {
    Error::new(
        Code::StoreTaken,
        "another server has opened the store since",
    )
}
