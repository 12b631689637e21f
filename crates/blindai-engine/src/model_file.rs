use std::fmt;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use blindai_core::{Code, Digest, Error, Result};
use sha2::{Digest as _, Sha256};

use crate::{Isolation, memory};

/// Receives a model piece by piece into memory that is in no file system, and digests it on the way.
pub struct ModelWriter {
    copy: ModelCopy,
    hash: Sha256,
}

impl ModelWriter {
    /// A writer for at most `limit_bytes`, for an engine whose workers are isolated like this.
    ///
    /// # Errors
    /// [`Code::Internal`] when the system gives no memory file.
    pub fn new(limit_bytes: u64, isolation: Isolation) -> Result<Self> {
        let copy = ModelCopy::new(limit_bytes, isolation)?;
        let hash = Sha256::new();
        Ok(Self { copy, hash })
    }

    /// Appends a piece.
    ///
    /// # Errors
    /// [`Code::ModelTooLarge`] when the whole would exceed the limit.
    pub fn write(&mut self, piece: &[u8]) -> Result<()> {
        self.copy.write(piece)?;
        self.hash.update(piece);
        Ok(())
    }

    /// Seals the model: from here on nobody can change it.
    ///
    /// # Errors
    /// [`Code::Internal`] when the system refuses the seals.
    pub fn finish(self) -> Result<ModelFile> {
        let digest = Digest::from_bytes(self.hash.finalize().into());
        self.copy.finish(digest)
    }
}

/// As [`ModelWriter`], for content that somebody else digests meanwhile: the store does.
pub struct ModelCopy {
    growing: Growing,
    size: u64,
    limit: u64,
}

enum Growing {
    /// What can be handed to a process.
    File(File),
    Heap(Vec<u8>),
}

impl ModelCopy {
    /// As [`ModelWriter::new`].
    ///
    /// # Errors
    /// [`Code::Internal`] when the system gives no memory file.
    pub fn new(limit_bytes: u64, isolation: Isolation) -> Result<Self> {
        let growing = match isolation {
            Isolation::None => Growing::Heap(Vec::new()),
            _ => Growing::File(memory::memory_file("blindai-model").map_err(no_memory)?),
        };
        Ok(Self {
            growing,
            size: 0,
            limit: limit_bytes,
        })
    }

    /// Appends a piece.
    ///
    /// # Errors
    /// [`Code::ModelTooLarge`] when the whole would exceed the limit.
    pub fn write(&mut self, piece: &[u8]) -> Result<()> {
        let size = self.size.saturating_add(piece.len() as u64);
        if size > self.limit {
            let fact = format!("the model has more than {} bytes", self.limit);
            return Err(Error::new(Code::ModelTooLarge, fact));
        }
        self.growing.add(piece).map_err(no_memory)?;
        self.size = size;
        Ok(())
    }

    /// Seals the model, whose SHA-256 is `digest`: from here on nobody can change it.
    ///
    /// # Errors
    /// [`Code::Internal`] when the system refuses the seals.
    pub fn finish(self, digest: Digest) -> Result<ModelFile> {
        Ok(ModelFile {
            content: self.growing.whole().map_err(no_memory)?,
            digest,
            size: self.size,
        })
    }
}

impl Growing {
    fn add(&mut self, piece: &[u8]) -> io::Result<()> {
        match self {
            Self::File(file) => file.write_all(piece),
            Self::Heap(bytes) => {
                let reserved = bytes.try_reserve(piece.len());
                reserved.map_err(|_| io::ErrorKind::OutOfMemory)?;
                bytes.extend_from_slice(piece);
                Ok(())
            }
        }
    }

    fn whole(self) -> io::Result<Content> {
        Ok(match self {
            Self::File(file) => Content::File(memory::seal(file)?),
            Self::Heap(mut bytes) => {
                bytes.shrink_to_fit();
                Content::Heap(Arc::new(bytes))
            }
        })
    }
}

/// A complete model in memory that nobody can change; it is freed when the last holder lets go.
pub struct ModelFile {
    content: Content,
    digest: Digest,
    size: u64,
}

enum Content {
    File(OwnedFd),
    Heap(Arc<Vec<u8>>),
}

impl ModelFile {
    /// SHA-256 of the file: the model's identity.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Its length.
    pub fn size_bytes(&self) -> u64 {
        self.size
    }

    /// Reads it from its beginning.
    ///
    /// # Errors
    /// [`Code::Internal`] when there are too many open files.
    pub fn reader(&self) -> Result<ModelReader> {
        let source = match &self.content {
            Content::File(file) => Source::File(file.try_clone().map_err(no_memory)?.into()),
            Content::Heap(bytes) => Source::Heap(bytes.clone()),
        };
        Ok(ModelReader { source, offset: 0 })
    }

    /// For a worker that is a process.
    ///
    /// # Errors
    /// [`Code::Internal`] when it was written for workers that are threads.
    pub(crate) fn descriptor(&self) -> Result<BorrowedFd<'_>> {
        match &self.content {
            Content::File(file) => Ok(file.as_fd()),
            Content::Heap(_) => {
                let fact = "the model was not written for a worker that is a process";
                Err(Error::new(Code::Internal, fact))
            }
        }
    }

    /// For a worker that is a thread.
    ///
    /// # Errors
    /// [`Code::Internal`] when there are too many open files.
    pub(crate) fn bytes(&self) -> Result<Arc<Vec<u8>>> {
        if let Content::Heap(bytes) = &self.content {
            return Ok(bytes.clone());
        }
        let mut bytes = Vec::new();
        let read = self.reader()?.read_to_end(&mut bytes);
        read.map_err(no_memory)?;
        Ok(bytes.into())
    }
}

/// Reads a model. Its place is its own, which that of a duplicate of the file would not be.
pub struct ModelReader {
    source: Source,
    offset: u64,
}

enum Source {
    File(File),
    Heap(Arc<Vec<u8>>),
}

impl io::Read for ModelReader {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let length = match &self.source {
            Source::File(file) => file.read_at(bytes, self.offset)?,
            Source::Heap(content) => {
                let rest = content.get(self.offset as usize..).unwrap_or_default();
                (&*rest).read(bytes)?
            }
        };
        self.offset += length as u64;
        Ok(length)
    }
}

// Not derived: it would show the model.
impl fmt::Debug for ModelReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ModelReader({} bytes)", self.offset)
    }
}

impl fmt::Debug for ModelFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ModelFile({}, {} bytes)", self.digest, self.size)
    }
}

fn no_memory(error: io::Error) -> Error {
    Error::new(Code::Internal, format!("no memory for the model: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const EITHER: [Isolation; 2] = [Isolation::None, Isolation::Process];

    #[test]
    fn pieces_make_one_digest_and_the_limit_holds() {
        for isolation in EITHER {
            let mut writer = ModelWriter::new(8, isolation).unwrap();
            writer.write(b"abc").unwrap();
            writer.write(b"defgh").unwrap();
            let error = writer.write(b"i").unwrap_err();
            assert_eq!(error.code(), Code::ModelTooLarge);
            let file = writer.finish().unwrap();
            assert_eq!(file.digest(), Digest::of(b"abcdefgh"));
            assert_eq!(file.size_bytes(), 8);
            assert_eq!(*file.bytes().unwrap(), *b"abcdefgh");
            assert_eq!(file.descriptor().is_ok(), isolation == Isolation::Process);
        }
    }

    #[test]
    fn readers_do_not_disturb_each_other() {
        for isolation in EITHER {
            let mut copy = ModelCopy::new(8, isolation).unwrap();
            copy.write(b"abc").unwrap();
            let file = copy.finish(Digest::of(b"abc")).unwrap();
            for mut reader in [file.reader().unwrap(), file.reader().unwrap()] {
                let mut bytes = Vec::new();
                reader.read_to_end(&mut bytes).unwrap();
                assert_eq!(bytes, b"abc");
            }
        }
    }
}
