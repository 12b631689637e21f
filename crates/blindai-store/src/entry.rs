use std::fmt;
use std::str::FromStr;

use blindai_core::{Digest, Error};
use object_store::path::Path;
use serde::{Deserialize, Serialize};

use crate::error::no_randomness;
use crate::stream::{HEADER_BYTES, Header, Layout};

/// One model in the store.
#[derive(Clone, Serialize, Deserialize)]
#[serde(try_from = "Listed", into = "Listed")]
pub struct Entry {
    id: EntryId,
    digest: Digest,
    size_bytes: u64,
    record: serde_json::Value,
    content: String,
    header: Header,
}

impl Entry {
    pub(crate) fn new(
        digest: Digest,
        size_bytes: u64,
        record: serde_json::Value,
        content: String,
        header: Header,
    ) -> Result<Self, Error> {
        Ok(Self {
            id: EntryId::draw()?,
            digest,
            size_bytes,
            record,
            content,
            header,
        })
    }

    /// The same model with another record.
    pub(crate) fn with_record(&self, record: serde_json::Value) -> Self {
        let mut entry = self.clone();
        entry.record = record;
        entry
    }

    /// What the store calls it.
    pub fn id(&self) -> EntryId {
        self.id
    }

    /// SHA-256 of what was put.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Its length.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// What the caller wrote beside it.
    pub fn record(&self) -> &serde_json::Value {
        &self.record
    }

    pub(crate) fn path(&self) -> Path {
        Path::from_iter([CONTENT, &self.content])
    }

    pub(crate) fn header(&self) -> Header {
        self.header
    }

    pub(crate) fn layout(&self) -> Layout {
        Layout::of_plain(self.size_bytes).expect("checked when it was made or read")
    }
}

/// The folder of what the models hold.
pub(crate) const CONTENT: &str = "content";

/// Whether this is the name of what a model holds: 64 digits after the folder.
pub(crate) fn is_content(path: &Path) -> bool {
    let name = path.as_ref().strip_prefix(CONTENT);
    let name = name.and_then(|rest| rest.strip_prefix('/'));
    name.is_some_and(is_name)
}

fn is_name(name: &str) -> bool {
    let digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    name.len() == 64 && name.bytes().all(digit)
}

// The record holds names of models, which belong to their owners.
impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Entry({}, {} bytes)", self.id, self.size_bytes)
    }
}

/// Random, so that it says nothing of the model.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EntryId([u8; 16]);

impl EntryId {
    pub(crate) fn draw() -> Result<Self, Error> {
        let mut bytes = [0; 16];
        aws_lc_rs::rand::fill(&mut bytes).map_err(|_| no_randomness())?;
        Ok(Self(bytes))
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for EntryId {
    type Err = hex::FromHexError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; 16];
        hex::decode_to_slice(text, &mut bytes)?;
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for EntryId {
    type Error = hex::FromHexError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<EntryId> for String {
    fn from(id: EntryId) -> Self {
        id.to_string()
    }
}

/// An entry as the manifest lists it.
#[derive(Serialize, Deserialize)]
struct Listed {
    id: EntryId,
    digest: Digest,
    size_bytes: u64,
    content: String,
    #[serde(with = "hex::serde")]
    header: [u8; HEADER_BYTES],
    record: serde_json::Value,
}

impl TryFrom<Listed> for Entry {
    type Error = &'static str;

    fn try_from(listed: Listed) -> Result<Self, Self::Error> {
        Layout::of_plain(listed.size_bytes).ok_or("no content is as long as this")?;
        if !is_name(&listed.content) {
            return Err("no content has this name");
        }
        Ok(Self {
            id: listed.id,
            digest: listed.digest,
            size_bytes: listed.size_bytes,
            record: listed.record,
            header: Header::read(&listed.header).ok_or("no stream begins so")?,
            content: listed.content,
        })
    }
}

impl From<Entry> for Listed {
    fn from(entry: Entry) -> Self {
        Self {
            id: entry.id,
            digest: entry.digest,
            size_bytes: entry.size_bytes,
            content: entry.content,
            header: *entry.header.as_bytes(),
            record: entry.record,
        }
    }
}
