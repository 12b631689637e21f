//! A sealing key in a file: whoever reads the disk has it.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::enclave::read_exactly;
use super::{Sealer, SealingKey};
use crate::{TeeError, TeeErrorKind};

/// The sealing key of a simulation. It protects nothing: its secret lies in a file.
#[derive(Clone, Debug)]
pub struct SimulatedSealer {
    file: PathBuf,
    sealed_to: Vec<u8>,
}

impl SimulatedSealer {
    /// With the secret in this file; drawn and written, for its owner only, when there is none. The key
    /// depends on what it is `sealed_to`, as on hardware: a measurement, or a signer.
    ///
    /// # Errors
    /// [`TeeErrorKind::Platform`] when it can be neither read nor written, or holds something else.
    pub fn at(file: impl Into<PathBuf>, sealed_to: &[u8]) -> Result<Self, TeeError> {
        let (file, sealed_to) = (file.into(), sealed_to.to_vec());
        match draw(&file) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed(&file, &error));
            }
            _ => {}
        }
        let sealer = Self { file, sealed_to };
        sealer.secret().map(|_| sealer)
    }

    fn secret(&self) -> Result<Zeroizing<[u8; SECRET_BYTES]>, TeeError> {
        read_exactly(&self.file).map_err(|error| failed(&self.file, &error))
    }
}

impl Sealer for SimulatedSealer {
    fn sealing_key(&self, purpose: &str) -> Result<SealingKey, TeeError> {
        let secret = self.secret()?;
        let mut mixed = Zeroizing::new(Vec::with_capacity(secret.len() + self.sealed_to.len()));
        mixed.extend_from_slice(&*secret);
        mixed.extend_from_slice(&self.sealed_to);
        SealingKey::derive(&mixed, "simulation", purpose)
    }

    fn is_simulated(&self) -> bool {
        true
    }

    fn describe(&self) -> String {
        let file = self.file.display();
        format!("simulated sealing by the secret in {file}: protects nothing")
    }
}

fn draw(file: &Path) -> io::Result<()> {
    let mut secret = Zeroizing::new([0; SECRET_BYTES]);
    aws_lc_rs::rand::fill(&mut *secret).map_err(|_| io::Error::other("no randomness"))?;
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)?;
    file.write_all(&*secret)?;
    file.sync_all()
}

fn failed(file: &Path, error: &io::Error) -> TeeError {
    let fact = format!("{}: {error}", file.display());
    TeeError::new(
        TeeErrorKind::Platform,
        fact,
        "name a file of ours, or one that can be made",
    )
}

const SECRET_BYTES: usize = 32;
