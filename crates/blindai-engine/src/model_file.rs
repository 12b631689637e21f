use std::fmt;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;

use blindai_core::{Code, Digest, Error, Result};
use sha2::{Digest as _, Sha256};

use crate::memory;

/// Receives a model piece by piece into memory that is in no file system, and digests it on the way.
pub struct ModelWriter {
    file: File,
    hash: Sha256,
    size: u64,
    limit: u64,
}

impl ModelWriter {
    /// A writer for at most `limit_bytes`.
    ///
    /// # Errors
    /// [`Code::Internal`] when the system gives no memory file.
    pub fn new(limit_bytes: u64) -> Result<Self> {
        let file = memory::memory_file("blindai-model").map_err(no_memory)?;
        Ok(Self {
            file,
            hash: Sha256::new(),
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
        self.file.write_all(piece).map_err(no_memory)?;
        self.hash.update(piece);
        self.size = size;
        Ok(())
    }

    /// Seals the model: from here on nobody can change it.
    ///
    /// # Errors
    /// [`Code::Internal`] when the system refuses the seals.
    pub fn finish(self) -> Result<ModelFile> {
        let digest = Digest::from_bytes(self.hash.finalize().into());
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
}

impl fmt::Debug for ModelFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ModelFile({}, {} bytes)", self.digest, self.size)
    }
}

fn no_memory(error: std::io::Error) -> Error {
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
}
