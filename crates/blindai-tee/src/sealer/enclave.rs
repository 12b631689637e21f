//! SGX: the processor derives a key from its own secret and the enclave's identity (EGETKEY), and
//! Gramine shows it as a file of 16 bytes.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::{BROKEN, Sealer, SealingKey, no_key};
use crate::{Gramine, TeeError, TeeErrorKind};

/// An enclave's sealing key under Gramine. Do not name the same key in the manifest's
/// `fs.mounts`: two uses of one key endanger each other.
#[derive(Clone, Debug)]
pub struct EnclaveSealer {
    folder: PathBuf,
    to: SealTo,
}

/// Which code gets the key again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SealTo {
    /// Exactly this code (MRENCLAVE): what it sealed is lost with an upgrade.
    Code,
    /// All code of the same signer and product with this or a higher security version (MRSIGNER):
    /// whoever holds the signing key can write code that reads what was sealed.
    Signer,
}

impl EnclaveSealer {
    /// The enclave that this process runs in.
    pub fn open(to: SealTo) -> Self {
        Self::at(Gramine::FOLDER, to)
    }

    /// The same, with Gramine's files elsewhere.
    pub fn at(folder: impl Into<PathBuf>, to: SealTo) -> Self {
        let folder = folder.into();
        Self { folder, to }
    }

    fn names(&self) -> (&'static str, &'static str) {
        match self.to {
            SealTo::Code => ("sgx mrenclave", "keys/_sgx_mrenclave"),
            SealTo::Signer => ("sgx mrsigner", "keys/_sgx_mrsigner"),
        }
    }
}

impl Sealer for EnclaveSealer {
    fn sealing_key(&self, purpose: &str) -> Result<SealingKey, TeeError> {
        let (source, file) = self.names();
        let path = self.folder.join(file);
        let secret = match read_exactly::<KEY_BYTES>(&path) {
            Ok(secret) => secret,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(no_key(format!("{} is not there", path.display())));
            }
            Err(error) => {
                let fact = format!("{}: {error}", path.display());
                return Err(TeeError::new(TeeErrorKind::Platform, fact, BROKEN));
            }
        };
        SealingKey::derive(&*secret, source, purpose)
    }

    fn is_simulated(&self) -> bool {
        false
    }

    fn describe(&self) -> String {
        let (source, _) = self.names();
        format!("sealed to {source}, by {}", self.folder.display())
    }
}

/// All of a file that holds `N` bytes, without a copy that stays in memory.
pub(super) fn read_exactly<const N: usize>(path: &Path) -> io::Result<Zeroizing<[u8; N]>> {
    let mut file = File::open(path)?;
    let mut secret = Zeroizing::new([0; N]);
    let length = |fact: &str| io::Error::new(io::ErrorKind::InvalidData, fact.to_owned());
    file.read_exact(&mut *secret)
        .map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => length("shorter than a key"),
            _ => error,
        })?;
    match file.read(&mut [0])? {
        0 => Ok(secret),
        _ => Err(length("longer than a key")),
    }
}

const KEY_BYTES: usize = 16;
