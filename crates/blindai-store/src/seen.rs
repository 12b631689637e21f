//! The newest generation that was seen, in a file that is kept apart from the store.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use aws_lc_rs::hmac;
use blindai_core::{Code, Digest, Error, Result};
use serde::{Deserialize, Serialize};

use crate::entry::EntryId;
use crate::key::StoreKey;

pub(crate) struct Seen {
    file: PathBuf,
    key: hmac::Key,
}

/// What was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sight {
    pub store: EntryId,
    pub generation: u64,
    /// SHA-256 of the manifest.
    pub manifest: Digest,
}

impl Seen {
    pub(crate) fn at(file: PathBuf, key: &StoreKey) -> Self {
        let key = key.seen();
        Self { file, key }
    }

    /// Refuses what is older than, or has parted from, what was seen.
    ///
    /// # Errors
    /// [`Code::StoreRolledBack`]; [`Code::StoreCorrupt`] when the file is not one that we wrote.
    pub(crate) fn check(&self, found: Option<&Sight>) -> Result<()> {
        let Some(seen) = self.read()? else {
            return Ok(());
        };
        let what = match found {
            None => "the store is empty".to_owned(),
            Some(found) if found.store != seen.store => "the store is another".to_owned(),
            Some(found) if found.generation < seen.generation => {
                format!("the store has generation {}", found.generation)
            }
            Some(found) if found.generation == seen.generation && *found != seen => {
                "the store has another manifest of this generation".to_owned()
            }
            Some(_) => return Ok(()),
        };
        let fact = format!("generation {} was seen before, and {what}", seen.generation);
        Err(Error::new(Code::StoreRolledBack, fact))
    }

    /// Remembers this, before anybody is told of it.
    ///
    /// # Errors
    /// [`Code::StoreUnavailable`]
    pub(crate) fn write(&self, sight: &Sight) -> Result<()> {
        let text = serde_json::to_string(sight).expect("a sight is JSON");
        let tag = hex::encode(hmac::sign(&self.key, text.as_bytes()).as_ref());
        self.replace(&format!("{text}\n{tag}\n"))
            .map_err(|error| self.failed("write", &error))
    }

    fn read(&self) -> Result<Option<Sight>> {
        let mut text = String::new();
        match File::open(&self.file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.failed("read", &error)),
            Ok(file) => file
                .take(LONGEST_BYTES)
                .read_to_string(&mut text)
                .map_err(|error| self.failed("read", &error))?,
        };
        self.parse(&text).map(Some).ok_or_else(|| {
            let fact = format!("{} is not what this server wrote", self.file.display());
            Error::new(Code::StoreCorrupt, fact).with_remedy(REMEDY)
        })
    }

    fn parse(&self, text: &str) -> Option<Sight> {
        let (text, tag) = text.strip_suffix('\n')?.split_once('\n')?;
        let tag = hex::decode(tag).ok()?;
        hmac::verify(&self.key, text.as_bytes(), &tag).ok()?;
        serde_json::from_str(text).ok()
    }

    fn replace(&self, text: &str) -> io::Result<()> {
        let mut name = self.file.clone().into_os_string();
        name.push(".new");
        let new = PathBuf::from(name);
        let mut options = OpenOptions::new();
        let mut file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, &self.file)?;
        let folder = self
            .file
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(".".as_ref()))?.sync_all()
    }

    fn failed(&self, doing: &str, error: &io::Error) -> Error {
        let fact = format!("cannot {doing} {}: {error}", self.file.display());
        Error::new(Code::StoreUnavailable, fact)
    }
}

const LONGEST_BYTES: u64 = 4096;
const REMEDY: &str =
    "restore the file store.seen; only who means to trust the store as it is removes it";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_older_or_has_parted_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let seen = Seen::at(folder.path().join("seen"), &StoreKey::new(&[7; 32]));
        let sight = |generation, manifest: &[u8]| Sight {
            store: "0123456789abcdef0123456789abcdef".parse().unwrap(),
            generation,
            manifest: Digest::of(manifest),
        };
        seen.check(None).unwrap();
        seen.write(&sight(3, b"a")).unwrap();
        for newer in [sight(3, b"a"), sight(4, b"b")] {
            seen.check(Some(&newer)).unwrap();
        }
        let mut other = sight(4, b"b");
        other.store = EntryId::draw().unwrap();
        for old in [
            None,
            Some(sight(2, b"a")),
            Some(sight(3, b"b")),
            Some(other),
        ] {
            let error = seen.check(old.as_ref()).unwrap_err();
            assert_eq!(error.code(), Code::StoreRolledBack, "{error}");
        }
    }

    #[test]
    fn a_file_that_was_changed_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("seen");
        let seen = Seen::at(file.clone(), &StoreKey::new(&[7; 32]));
        let store = EntryId::draw().unwrap();
        let manifest = Digest::of(b"a");
        let generation = 3;
        seen.write(&Sight {
            store,
            generation,
            manifest,
        })
        .unwrap();
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, text.replace(":3,", ":2,")).unwrap();
        assert_eq!(seen.check(None).unwrap_err().code(), Code::StoreCorrupt);
    }
}
