//! Where models come from that can be read again.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use blindai_core::{Code, Digest, Error, Result};
use blindai_engine::{Isolation, ModelCopy, ModelFile, ModelWriter};
use blindai_store::{Destination, Entry, Object, ObjectLocation, Store};
use rustix::fs::OFlags;
use tokio::fs::{File, OpenOptions};
use tokio::io::AsyncReadExt as _;

/// Where the content of a model is while it is not in memory.
#[derive(Clone, Debug)]
pub enum Origin {
    /// A file that the configuration names. It is the host's, who may change it at any time: what was
    /// read is what counts, and its digest is compared.
    File(PathBuf),
    /// An object that the configuration names. It is the object store's, as a file is the host's.
    Object(ObjectLocation),
    /// The store, which gives out only what is authentic.
    Stored(Store, Arc<Entry>),
}

/// Content that is about to be read.
pub struct Content {
    source: Source,
    size_bytes: u64,
}

enum Source {
    File(File),
    Object(Object),
    Stored(Store, Arc<Entry>),
}

impl Origin {
    /// Begins to read the content.
    ///
    /// # Errors
    /// [`Code::ModelUnavailable`]
    pub async fn open(&self) -> Result<Content> {
        Ok(match self {
            Self::File(path) => open_file(path).await?,
            Self::Object(location) => {
                let object = location.open().await?;
                Content {
                    size_bytes: object.size_bytes(),
                    source: Source::Object(object),
                }
            }
            Self::Stored(store, entry) => Content {
                size_bytes: entry.size_bytes(),
                source: Source::Stored(store.clone(), entry.clone()),
            },
        })
    }
}

impl Content {
    /// How much there is, in bytes, as the origin says.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Reads it into memory that nobody changes, for an engine that isolates like this: as much as was
    /// said and no more, because that much was reserved.
    ///
    /// # Errors
    /// [`Code::ModelUnavailable`], [`Code::ModelTooLarge`] when there is more; those of the store.
    pub async fn read(self, isolation: Isolation) -> Result<ModelFile> {
        let size = self.size_bytes;
        match self.source {
            Source::File(file) => read_file(file, ModelWriter::new(size, isolation)?).await,
            Source::Object(object) => read_object(object, ModelWriter::new(size, isolation)?).await,
            Source::Stored(store, entry) => {
                let copy = Copy(ModelCopy::new(size, isolation)?);
                store.read(&entry, copy).await
            }
        }
    }
}

/// Of what the store gives out.
struct Copy(ModelCopy);

impl Destination for Copy {
    type Whole = ModelFile;

    fn write(&mut self, piece: &[u8]) -> Result<()> {
        self.0.write(piece)
    }

    fn finish(self, digest: Digest) -> Result<ModelFile> {
        self.0.finish(digest)
    }
}

async fn read_file(mut file: File, mut writer: ModelWriter) -> Result<ModelFile> {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match file.read(&mut piece).await.map_err(unreadable)? {
            0 => return writer.finish(),
            length => writer.write(&piece[..length])?,
        }
    }
}

async fn read_object(mut object: Object, mut writer: ModelWriter) -> Result<ModelFile> {
    while let Some(piece) = object.next().await? {
        writer.write(&piece)?;
    }
    writer.finish()
}

async fn open_file(path: &Path) -> Result<Content> {
    // A pipe would keep us waiting for somebody to write to it, a device might never end.
    let flags = OFlags::NONBLOCK.bits() as i32;
    let mut options = OpenOptions::new();
    let opened = options.read(true).custom_flags(flags).open(path).await;
    let file = opened.map_err(unreadable)?;
    let metadata = file.metadata().await.map_err(unreadable)?;
    match metadata.is_file() {
        true => Ok(Content {
            source: Source::File(file),
            size_bytes: metadata.len(),
        }),
        false => Err(unreadable("it is not a file")),
    }
}

/// Whoever calls the model reads this: no path.
fn unreadable(reason: impl fmt::Display) -> Error {
    let fact = format!("the content of the model cannot be read: {reason}");
    Error::new(Code::ModelUnavailable, fact)
}

/// Hashing so much does not keep others from the thread for long.
const PIECE_BYTES: usize = 256 * 1024;

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use blindai_core::Digest;

    use super::*;

    #[tokio::test]
    async fn a_file_is_read_again_with_what_is_in_it_now() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let origin = Origin::File(file.path().to_owned());
        for content in [&b"one"[..], b"onetwo"] {
            file.write_all(&content[content.len() - 3..]).unwrap();
            let found = origin.open().await.unwrap();
            assert_eq!(found.size_bytes(), content.len() as u64);
            let read = found.read(Isolation::None).await.unwrap();
            assert_eq!(read.digest(), Digest::of(content));
        }
        let found = origin.open().await.unwrap();
        file.write_all(b"more").unwrap();
        let error = found.read(Isolation::None).await.unwrap_err();
        assert_eq!(error.code(), Code::ModelTooLarge);
    }

    #[tokio::test]
    async fn what_is_no_file_is_not_read_and_not_named() {
        for path in ["/nowhere/secret", "/dev/zero", "/tmp"] {
            let error = Origin::File(path.into()).open().await.err().unwrap();
            assert_eq!(error.code(), Code::ModelUnavailable);
            assert!(!error.to_string().contains(path), "{error}");
        }
    }
}
