//! Where models come from that can be read again.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use blindai_core::{Code, Digest, Error, Result};
use blindai_engine::{ModelCopy, ModelFile, ModelWriter};
use blindai_store::{Destination, Entry, Store};

/// Where the content of a model is while it is not in memory.
#[derive(Clone, Debug)]
pub enum Origin {
    /// A file that the configuration names. It is the host's, who may change it at any time: what was
    /// read is what counts, and its digest is compared.
    File(PathBuf),
    /// The store, which gives out only what is authentic.
    Stored(Store, Arc<Entry>),
}

impl Origin {
    /// How long the content is, in bytes.
    ///
    /// # Errors
    /// [`Code::ModelUnavailable`]
    pub async fn size_bytes(&self) -> Result<u64> {
        let path = match self {
            Self::File(path) => path,
            Self::Stored(_, entry) => return Ok(entry.size_bytes()),
        };
        let metadata = tokio::fs::metadata(path).await.map_err(unreadable)?;
        match metadata.is_file() {
            true => Ok(metadata.len()),
            // A device or a pipe might never end.
            false => Err(unreadable("it is not a file")),
        }
    }

    /// Reads the content into sealed memory, `size_bytes` of it and no more: that much was reserved.
    ///
    /// # Errors
    /// [`Code::ModelUnavailable`], [`Code::ModelTooLarge`] when there is more; those of the store.
    pub async fn read(&self, size_bytes: u64) -> Result<ModelFile> {
        let path = match self {
            Self::File(path) => path.clone(),
            Self::Stored(store, entry) => {
                let copy = Copy(ModelCopy::new(size_bytes)?);
                return store.read(entry, copy).await;
            }
        };
        let read = move || read_file(&path, size_bytes);
        let read = tokio::task::spawn_blocking(read).await;
        read.unwrap_or_else(|_| Err(unreadable("reading was given up")))
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

fn read_file(path: &Path, size_bytes: u64) -> Result<ModelFile> {
    let mut file = File::open(path).map_err(unreadable)?;
    let mut writer = ModelWriter::new(size_bytes)?;
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match file.read(&mut piece).map_err(unreadable)? {
            0 => return writer.finish(),
            length => writer.write(&piece[..length])?,
        }
    }
}

/// Whoever calls the model reads this: no path.
fn unreadable(reason: impl std::fmt::Display) -> Error {
    let fact = format!("the content of the model cannot be read: {reason}");
    Error::new(Code::ModelUnavailable, fact)
}

const PIECE_BYTES: usize = 1 << 20;

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
            let size = origin.size_bytes().await.unwrap();
            let read = origin.read(size).await.unwrap();
            assert_eq!(read.digest(), Digest::of(content));
        }
        let error = origin.read(5).await.unwrap_err();
        assert_eq!(error.code(), Code::ModelTooLarge);
    }

    #[tokio::test]
    async fn what_is_no_file_is_not_read_and_not_named() {
        for path in ["/nowhere/secret", "/dev/zero", "/tmp"] {
            let error = Origin::File(path.into()).size_bytes().await.unwrap_err();
            assert_eq!(error.code(), Code::ModelUnavailable);
            assert!(!error.to_string().contains(path), "{error}");
        }
    }
}
