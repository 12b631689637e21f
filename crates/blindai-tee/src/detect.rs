use std::path::Path;

use crate::{Attester, Gramine, TeeError, TeeErrorKind, Tsm, gramine};

/// The TEE that this process runs in: an enclave under Gramine, else a TDX or SEV-SNP guest. Never a
/// simulation.
///
/// # Errors
/// [`TeeErrorKind::Unsupported`] when there is none; why, when there is one that does not work.
pub fn detect() -> Result<Box<dyn Attester>, TeeError> {
    detect_in(Gramine::FOLDER.as_ref(), Tsm::FOLDER.as_ref())
}

fn detect_in(gramine: &Path, tsm: &Path) -> Result<Box<dyn Attester>, TeeError> {
    // What is there but broken is an error, not a reason to look further: nobody should get another
    // TEE than the one he set up.
    if gramine::is_present(gramine) {
        return Ok(Box::new(Gramine::at(gramine)?));
    }
    if tsm.is_dir() {
        return Ok(Box::new(Tsm::at(tsm)?));
    }
    let (gramine, tsm) = (gramine.display(), tsm.display());
    Err(TeeError::new(
        TeeErrorKind::Unsupported,
        format!("there is no trusted execution environment: neither {gramine} nor {tsm}"),
        NO_TEE,
    ))
}

const NO_TEE: &str = "run under gramine-sgx, or in a TDX or SEV-SNP guest with Linux 6.7 or newer and \
                      configfs mounted; --simulation is for trying things out and protects nothing";
