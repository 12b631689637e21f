//! SGX under the library OS Gramine, which shows the processor's instructions as files.
//!
//! The files are one state for the whole process: what is written to `user_report_data` stands until
//! somebody writes again. Two threads without a lock would get each other's quotes.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::{fmt, io};

use blindai_core::{Collateral, ReportData, Tee};

use crate::{Attester, TeeError, TeeErrorKind, device, signed};

/// An SGX enclave under Gramine. The manifest has to say `sgx.remote_attestation = "dcap"`.
pub struct Gramine {
    folder: PathBuf,
}

impl Gramine {
    /// Where Gramine shows its files.
    pub const FOLDER: &str = "/dev/attestation";

    /// The enclave that this process runs in.
    ///
    /// # Errors
    /// As [`Gramine::at`].
    pub fn open() -> Result<Self, TeeError> {
        Self::at(Self::FOLDER)
    }

    /// The same, with the files elsewhere.
    ///
    /// # Errors
    /// [`TeeErrorKind::Unsupported`] when the files are not there or the enclave was built without
    /// DCAP attestation.
    pub fn at(folder: impl Into<PathBuf>) -> Result<Self, TeeError> {
        let folder = folder.into();
        let path = folder.join(ATTESTATION_TYPE);
        let kind = device::read_line(&path).map_err(|error| {
            let fact = format!("{}: {error}", path.display());
            TeeError::new(TeeErrorKind::Unsupported, fact, NOT_GRAMINE)
        })?;
        match kind.as_str() {
            "dcap" => Ok(Self { folder }),
            _ => Err(no_dcap(&kind)),
        }
    }

    fn ask(&self, report_data: &ReportData) -> Result<Vec<u8>, TeeError> {
        static TURN: Mutex<()> = Mutex::new(());
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let (question, answer) = (
            self.folder.join("user_report_data"),
            self.folder.join("quote"),
        );
        device::write(&question, report_data.as_bytes()).map_err(|e| failed(&question, &e))?;
        device::read(&answer, QUOTE_BYTES).map_err(|e| failed(&answer, &e))
    }
}

impl Attester for Gramine {
    fn tee(&self) -> Tee {
        Tee::Sgx
    }

    fn quote(&self, report_data: &ReportData) -> Result<Vec<u8>, TeeError> {
        let quote = self.ask(report_data)?;
        // Gramine cuts what it is given without a word, and other code of this process may write
        // to the file, too: only the quote's own field tells what was signed.
        signed::check(Tee::Sgx, &quote, report_data)?;
        Ok(quote)
    }

    /// None: Intel gives it, not the processor.
    fn collateral(&self) -> Result<Option<Collateral>, TeeError> {
        Ok(None)
    }

    fn is_simulated(&self) -> bool {
        false
    }

    fn describe(&self) -> String {
        format!("sgx under Gramine, by {}", self.folder.display())
    }
}

impl fmt::Debug for Gramine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gramine({})", self.folder.display())
    }
}

/// Whether Gramine's files are there, of whatever kind.
pub(crate) fn is_present(folder: &Path) -> bool {
    folder.join(ATTESTATION_TYPE).exists()
}

fn no_dcap(kind: &str) -> TeeError {
    let kind = if kind.is_empty() { "none" } else { kind };
    TeeError::new(
        TeeErrorKind::Unsupported,
        format!("this enclave has attestation of type {:?}", kind.to_owned()),
        "set sgx.remote_attestation = \"dcap\" in the Gramine manifest, and sign it again",
    )
}

fn failed(path: &Path, error: &io::Error) -> TeeError {
    let fact = format!("{}: {error}", path.display());
    TeeError::new(TeeErrorKind::Platform, fact, NO_QUOTE)
}

const ATTESTATION_TYPE: &str = "attestation_type";
/// Gramine's own buffer is 8 KiB.
const QUOTE_BYTES: usize = 64 * 1024;
const NOT_GRAMINE: &str = "run the server under gramine-sgx";
const NO_QUOTE: &str = "look whether the host's quoting service (AESM, or in-process QE3) runs";
