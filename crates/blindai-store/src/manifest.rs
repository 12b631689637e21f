//! The list of what is in the store: sealed, and numbered by generation.
//!
//! ```text
//! head     "BlindAI store\0", version of the format (2 bytes), id of the key (16 bytes),
//!          generation (8 bytes), length of the whole object (8 bytes); numbers are big-endian
//! stream   as in `stream`, bound to the head; its plaintext is JSON
//! ```

use std::sync::Arc;

use blindai_core::{Code, Error};
use object_store::path::Path;
use serde::{Deserialize, Serialize};

use crate::entry::{Entry, EntryId};
use crate::key::StoreKey;
use crate::stream;

/// What a manifest says.
#[derive(Debug)]
pub(crate) struct Manifest {
    /// Drawn when the store was made.
    pub store: EntryId,
    pub generation: u64,
    pub entries: Vec<Arc<Entry>>,
}

impl Manifest {
    /// Opens one that is named as that of this `generation`.
    ///
    /// # Errors
    /// [`Code::StoreTruncated`], [`Code::StoreFormat`], [`Code::StoreSealedElsewhere`],
    /// [`Code::StoreSwapped`], [`Code::StoreCorrupt`]
    pub(crate) fn open(bytes: &[u8], key: &StoreKey, generation: u64) -> Result<Self, Error> {
        let fail = |code, what: &str| Err(refused(code, generation, what));
        let Some((head, sealed)) = bytes.split_at_checked(HEAD_BYTES) else {
            return fail(Code::StoreTruncated, "ends within its head");
        };
        let head = Head::read(head);
        if head.magic != MAGIC {
            return fail(Code::StoreFormat, "is none of BlindAI");
        }
        if head.version != VERSION {
            let what = format!("has version {} of the format", head.version);
            return fail(Code::StoreFormat, &what);
        }
        if head.key_id != key.id() {
            return fail(Code::StoreSealedElsewhere, "was sealed with another key");
        }
        match head.length.cmp(&(bytes.len() as u64)) {
            std::cmp::Ordering::Greater => return fail(Code::StoreTruncated, "is cut off"),
            std::cmp::Ordering::Less => return fail(Code::StoreCorrupt, "is too long"),
            std::cmp::Ordering::Equal => {}
        }
        let Ok(body) = stream::open(&key.manifest(), &bytes[..HEAD_BYTES], sealed) else {
            return fail(Code::StoreCorrupt, "was changed");
        };
        if head.generation != generation {
            let what = format!("is that of generation {}", head.generation);
            return fail(Code::StoreSwapped, &what);
        }
        Self::parse(&body, generation)
    }

    /// Reads what was under the seal.
    pub(crate) fn parse(body: &[u8], generation: u64) -> Result<Self, Error> {
        let body: Body = serde_json::from_slice(body)
            .map_err(|_| refused(Code::StoreCorrupt, generation, "cannot be read"))?;
        Ok(Self {
            store: body.store,
            generation,
            entries: body.entries.into_iter().map(Arc::new).collect(),
        })
    }

    /// Seals it.
    pub(crate) fn seal(&self, key: &StoreKey) -> Result<Vec<u8>, Error> {
        let body = Body {
            store: self.store,
            entries: self.entries.iter().map(|entry| (**entry).clone()).collect(),
        };
        let body = serde_json::to_vec(&body).expect("a manifest is JSON");
        seal(&body, key, self.generation)
    }
}

pub(crate) fn seal(body: &[u8], key: &StoreKey, generation: u64) -> Result<Vec<u8>, Error> {
    let layout = stream::Layout::of_plain(body.len() as u64).expect("it is in memory");
    let length = HEAD_BYTES as u64 + layout.sealed_bytes();
    if length > LONGEST_BYTES {
        let fact = format!("the list of models has more than {LONGEST_BYTES} bytes");
        return Err(Error::new(Code::TooManyModels, fact));
    }
    let mut bytes = Head {
        magic: MAGIC,
        version: VERSION,
        key_id: key.id(),
        generation,
        length,
    }
    .write();
    let sealed = stream::seal(&key.manifest(), &bytes, body)?;
    bytes.extend_from_slice(&sealed);
    Ok(bytes)
}

/// Where the manifest of a generation is.
pub(crate) fn path(generation: u64) -> Path {
    Path::from(format!("{NAME}{generation:0NAME_DIGITS$}"))
}

/// Of which generation this is the manifest, if it is one.
pub(crate) fn generation(path: &Path) -> Option<u64> {
    let digits = path.as_ref().strip_prefix(NAME)?;
    let number = digits.len() == NAME_DIGITS && digits.bytes().all(|b| b.is_ascii_digit());
    digits.parse().ok().filter(|_| number)
}

/// What is read of a manifest at most.
pub(crate) const LONGEST_BYTES: u64 = 64 << 20;
const NAME: &str = "manifest-";
const NAME_DIGITS: usize = 20;
const MAGIC: [u8; 14] = *b"BlindAI store\0";
const VERSION: u16 = 1;
const HEAD_BYTES: usize = 48;

struct Head {
    magic: [u8; 14],
    version: u16,
    key_id: [u8; 16],
    generation: u64,
    length: u64,
}

impl Head {
    fn read(bytes: &[u8]) -> Self {
        Self {
            magic: array(&bytes[..14]),
            version: u16::from_be_bytes(array(&bytes[14..16])),
            key_id: array(&bytes[16..32]),
            generation: u64::from_be_bytes(array(&bytes[32..40])),
            length: u64::from_be_bytes(array(&bytes[40..48])),
        }
    }

    fn write(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.length as usize);
        bytes.extend_from_slice(&self.magic);
        bytes.extend_from_slice(&self.version.to_be_bytes());
        bytes.extend_from_slice(&self.key_id);
        bytes.extend_from_slice(&self.generation.to_be_bytes());
        bytes.extend_from_slice(&self.length.to_be_bytes());
        bytes
    }
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("the slice has this length")
}

/// Fields that a later version adds are passed over.
#[derive(Serialize, Deserialize)]
struct Body {
    store: EntryId,
    entries: Vec<Entry>,
}

fn refused(code: Code, generation: u64, what: &str) -> Error {
    Error::new(
        code,
        format!("the manifest of generation {generation} {what}"),
    )
}
