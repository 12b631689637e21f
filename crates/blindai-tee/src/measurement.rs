use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use aws_lc_rs::digest::{Context, Digest, SHA256, SHA384};
use blindai_core::Tee;

use crate::{TeeError, TeeErrorKind};

/// The executable of this very process on Linux, also after the file was replaced by an upgrade.
pub const RUNNING_EXECUTABLE: &str = "/proc/self/exe";

/// What identifies the code, in the field of the quote that a policy pins.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Measurement {
    /// SGX: the enclave's MRENCLAVE.
    MrEnclave([u8; 32]),
    /// TDX: the trust domain's MRTD.
    MrTd([u8; 48]),
    /// SEV-SNP: the guest's launch measurement.
    Launch([u8; 48]),
}

impl Measurement {
    /// The kind of TEE that measures like this.
    pub fn tee(&self) -> Tee {
        match self {
            Measurement::MrEnclave(_) => Tee::Sgx,
            Measurement::MrTd(_) => Tee::Tdx,
            Measurement::Launch(_) => Tee::SevSnp,
        }
    }

    /// The 32 bytes of MRENCLAVE or the 48 of MRTD or of the launch measurement.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Measurement::MrEnclave(bytes) => bytes,
            Measurement::MrTd(bytes) | Measurement::Launch(bytes) => bytes,
        }
    }

    /// The field's name.
    pub fn name(&self) -> &'static str {
        match self {
            Measurement::MrEnclave(_) => "MRENCLAVE",
            Measurement::MrTd(_) => "MRTD",
            Measurement::Launch(_) => "launch measurement",
        }
    }
}

impl fmt::Display for Measurement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.as_bytes()))
    }
}

impl fmt::Debug for Measurement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({self})", self.name())
    }
}

/// The measurement of the executable at `path` for a simulation: SHA-256 of the file as MRENCLAVE,
/// SHA-384 as MRTD or launch measurement. [`RUNNING_EXECUTABLE`] is the one to measure for the process itself.
///
/// The file is read in pieces of 64 KiB.
///
/// # Errors
/// [`TeeErrorKind::Measurement`] when the file cannot be read.
pub fn measure_executable(tee: Tee, path: impl AsRef<Path>) -> Result<Measurement, TeeError> {
    let path = path.as_ref();
    let algorithm = match tee {
        Tee::Sgx => &SHA256,
        Tee::Tdx | Tee::SevSnp => &SHA384,
    };
    let digest = digest_file(Context::new(algorithm), path).map_err(|e| {
        let fact = format!("cannot measure {}: {e}", path.display());
        TeeError::new(
            TeeErrorKind::Measurement,
            fact,
            "make the file readable for the server",
        )
    })?;
    Ok(match tee {
        Tee::Sgx => Measurement::MrEnclave(to_array(&digest)),
        Tee::Tdx => Measurement::MrTd(to_array(&digest)),
        Tee::SevSnp => Measurement::Launch(to_array(&digest)),
    })
}

fn digest_file(mut context: Context, path: &Path) -> io::Result<Digest> {
    let mut file = File::open(path)?;
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match file.read(&mut piece) {
            Ok(0) => return Ok(context.finish()),
            Ok(length) => context.update(&piece[..length]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

fn to_array<const N: usize>(digest: &Digest) -> [u8; N] {
    digest
        .as_ref()
        .try_into()
        .expect("the algorithm was chosen for this length")
}

const PIECE_BYTES: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn an_executable_is_measured_by_its_digest() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        // Longer than one piece, and not a multiple of it.
        file.write_all(&vec![b'a'; 1_000_000]).unwrap();
        // The published test vectors of SHA-256 and SHA-384 for a million times "a".
        let sgx = measure_executable(Tee::Sgx, file.path()).unwrap();
        assert_eq!(
            sgx.to_string(),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"
        );
        let tdx = measure_executable(Tee::Tdx, file.path()).unwrap();
        assert_eq!(
            tdx.to_string(),
            "9d0e1809716474cb086e834e310a4a1ced149e9c00f248527972cec5704c2a5b\
             07b8b3dc38ecc4ebae97ddd87f3d8985"
        );
        let snp = measure_executable(Tee::SevSnp, file.path()).unwrap();
        assert_eq!(snp.tee(), Tee::SevSnp);
        assert_eq!(snp.as_bytes(), tdx.as_bytes());
    }

    #[test]
    fn the_running_executable_is_what_its_path_holds() {
        let path = std::env::current_exe().unwrap();
        assert_eq!(
            measure_executable(Tee::Sgx, RUNNING_EXECUTABLE),
            measure_executable(Tee::Sgx, path)
        );
    }

    #[test]
    fn what_cannot_be_measured_is_an_error() {
        let error = measure_executable(Tee::Sgx, "/nonexistent").unwrap_err();
        assert_eq!(error.kind(), TeeErrorKind::Measurement);
        assert!(error.fact().contains("/nonexistent"));
    }
}
