use std::fmt;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;

use blindai_core::{Code, Digest, Error, Result};
use sha2::{Digest as _, Sha256};

use crate::memory;

/// Receives a model piece by piece into memory that is in no file system, and digests it on the way.
pub struct ModelWriter {
    copy: ModelCopy,
    hash: Sha256,
}

impl ModelWriter {
    /// A writer for at most `limit_bytes`.
    ///
    /// # Errors
    /// [`Code::Internal`] when the system gives no memory file.
    pub fn new(limit_bytes: u64) -> Result<Self> {
        let copy = ModelCopy::new(limit_bytes)?;
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
    file: File,
    size: u64,
    limit: u64,
}

impl ModelCopy {
    /// A writer for at most `limit_bytes`.
    ///
    /// # Errors
    /// [`Code::Internal`] when the system gives no memory file.
    pub fn new(limit_bytes: u64) -> Result<Self> {
        let file = memory::memory_file("blindai-model").map_err(no_memory)?;
        let (size, limit) = (0, limit_bytes);
        Ok(Self { file, size, limit })
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
        self.file.write_all(piece).map_err(no_memory)?;
        self.size = size;
        Ok(())
    }

    /// Seals the model, whose SHA-256 is `digest`: from here on nobody can change it.
    ///
    /// # Errors
    /// [`Code::Internal`] when the system refuses the seals.
    pub fn finish(self, digest: Digest) -> Result<ModelFile> {
        Ok(ModelFile {
            file: memory::seal(self.file).map_err(no_memory)?,
            digest,
            size: self.size,
        })
    }
}

/// A complete model in sealed memory; it is freed when the last holder lets go.
pub struct ModelFile {
    pub(crate) file: OwnedFd,
    digest: Digest,
    size: u64,
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
        let file = self.file.try_clone().map_err(no_memory)?.into();
        Ok(ModelReader { file, offset: 0 })
    }
}

/// Reads a model. Its place is its own, which that of a duplicate of the file would not be.
#[derive(Debug)]
pub struct ModelReader {
    file: File,
    offset: u64,
}

impl io::Read for ModelReader {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let length = self.file.read_at(bytes, self.offset)?;
        self.offset += length as u64;
        Ok(length)
    }
}

impl fmt::Debug for ModelFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ModelFile({}, {} bytes)", self.digest, self.size)
    }
}

fn no_memory(error: io::Error) -> Error {
    Error::new(
        Code::Internal,
        format!("no memory file for the model: {error}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_make_one_digest_and_the_limit_holds() {
        let mut writer = ModelWriter::new(8).unwrap();
        writer.write(b"abc").unwrap();
        writer.write(b"defgh").unwrap();
        let error = writer.write(b"i").unwrap_err();
        assert_eq!(error.code(), Code::ModelTooLarge);
        let file = writer.finish().unwrap();
        assert_eq!(file.digest(), Digest::of(b"abcdefgh"));
        assert_eq!(file.size_bytes(), 8);
    }

    #[test]
    fn readers_do_not_disturb_each_other() {
        let mut copy = ModelCopy::new(8).unwrap();
        copy.write(b"abc").unwrap();
        let file = copy.finish(Digest::of(b"abc")).unwrap();
        for mut reader in [file.reader().unwrap(), file.reader().unwrap()] {
            let mut bytes = Vec::new();
            io::Read::read_to_end(&mut reader, &mut bytes).unwrap();
            assert_eq!(bytes, b"abc");
        }
    }
}
