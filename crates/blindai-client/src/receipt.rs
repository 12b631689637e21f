//! Receipts beside answers: asked for, checked at once, kept with the evidence.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use blindai_core::receipt::{RECEIPT, RECEIPT_BYTES, ReceiptNonce, ReceiptRequest};
use blindai_core::{EvidenceDocument, Nonce};
use blindai_verify::{
    Binding, ExpectedReceipt, Policy, VerifiedReceipt, VerifiedReport, verify_kept_receipt,
    verify_receipt,
};
use bytes::Bytes;
use http::{HeaderName, HeaderValue};

use crate::ClientError;
use crate::http1::{Answer, Head};
use crate::trust::{Dialer, Proof};

/// A receipt with the evidence of the server that made it. It proves something when it is verified:
/// one that a [`Client`](crate::Client) gives has been, one that was loaded has not.
#[derive(Clone)]
pub struct Receipt {
    bytes: Bytes,
    evidence: Arc<EvidenceDocument>,
}

impl Receipt {
    /// Puts together what was kept.
    pub fn new(bytes: impl Into<Bytes>, evidence: EvidenceDocument) -> Self {
        Self {
            bytes: bytes.into(),
            evidence: Arc::new(evidence),
        }
    }

    /// Reads a receipt, and its evidence from another file, or from the one that [`Receipt::save`]
    /// wrote beside it.
    ///
    /// # Errors
    /// Of kind `Local` for a file that cannot be read, `Attestation` for what is no evidence.
    pub fn load(receipt: &Path, evidence: Option<&Path>) -> Result<Self, ClientError> {
        let beside = evidence_beside(receipt);
        let evidence = read(evidence.unwrap_or(&beside), EVIDENCE_BYTES)?;
        let evidence = EvidenceDocument::from_json(&evidence);
        let evidence = evidence.map_err(|error| ClientError::evidence_malformed(&error))?;
        Ok(Self::new(read(receipt, RECEIPT_BYTES as u64)?, evidence))
    }

    /// Writes the receipt to a file, and its evidence beside it: `r.evidence.json` of `r.cbor`.
    ///
    /// # Errors
    /// Of kind `Local`.
    pub fn save(&self, path: &Path) -> Result<(), ClientError> {
        let write = |path: &Path, bytes: &[u8]| {
            let written = std::fs::write(path, bytes);
            written.map_err(|error| ClientError::file_unwritable(path, &error))
        };
        write(&evidence_beside(path), &self.evidence.to_json())?;
        write(path, &self.bytes)
    }

    /// The COSE_Sign1 message.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The evidence of the connection on which it came.
    pub fn evidence(&self) -> &EvidenceDocument {
        &self.evidence
    }

    /// Decides whether the receipt holds, without asking anybody; see [`verify_kept_receipt`].
    ///
    /// # Errors
    /// Of kind `Attestation`, with the rejection.
    pub fn verify(
        &self,
        policy: &Policy,
        at: Option<u64>,
        expected: &ExpectedReceipt<'_>,
    ) -> Result<(VerifiedReceipt, VerifiedReport), ClientError> {
        let evidence = &self.evidence;
        let seen = evidence.seen.as_ref();
        // The word of whoever kept it: what was refused then must be refused again.
        let binding = Binding {
            tls_spki_sha256: seen.map(|seen| seen.tls_spki_sha256),
            nonce: seen.map(|seen| Nonce::from_bytes(seen.nonce)),
        };
        let collateral = evidence.collateral.as_ref();
        let collateral = collateral.ok_or_else(ClientError::collateral_missing)?;
        let (bytes, evidence) = (&self.bytes, evidence.evidence());
        let verdict =
            verify_kept_receipt(bytes, &evidence, collateral, &binding, policy, at, expected);
        Ok(verdict?)
    }
}

impl fmt::Debug for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Receipt({} bytes)", self.bytes.len())
    }
}

/// Where the evidence of a receipt in a file lies: `r.evidence.json` of `r.cbor`, and of `r`.
pub fn evidence_beside(receipt: &Path) -> PathBuf {
    // Any other extension may be all that two names differ in, as in `r.2026-11-25`.
    let stem = match receipt.extension() {
        Some(extension) if extension == "cbor" => receipt.with_extension(""),
        _ => receipt.to_owned(),
    };
    let mut beside = stem.into_os_string();
    beside.push(".evidence.json");
    beside.into()
}

/// Asks for a receipt with a nonce that nobody can foresee.
pub(crate) fn asked(head: &mut Head, dialer: &Dialer) -> Result<ReceiptNonce, ClientError> {
    let drawn = ReceiptNonce::from_bytes(dialer.nonce()?.as_bytes());
    let nonce = drawn.ok_or_else(ClientError::no_randomness)?;
    let wish = ReceiptRequest {
        nonce: Some(nonce.clone()),
    };
    head.ask(&wish);
    Ok(nonce)
}

/// The receipt in an answer, when it holds under what the connection proved.
pub(crate) fn answered(
    answer: &Answer,
    proof: Proof,
    expected: &ExpectedReceipt<'_>,
) -> Result<Receipt, ClientError> {
    let text = answer.headers().get(RECEIPT).map(HeaderValue::as_bytes);
    let bytes = text.and_then(|text| BASE64_STANDARD.decode(text).ok());
    let bytes = bytes.ok_or_else(ClientError::receipt_missing)?;
    verify_receipt(&bytes, &proof.report, expected)?;
    Ok(Receipt {
        bytes: bytes.into(),
        evidence: proof.evidence,
    })
}

impl Head {
    pub fn ask(&mut self, wish: &ReceiptRequest) {
        let value = HeaderValue::try_from(wish.to_string());
        let value = value.expect("hexadecimal digits or a word");
        self.headers.push((HeaderName::from_static(RECEIPT), value));
    }
}

fn read(path: &Path, limit: u64) -> Result<Vec<u8>, ClientError> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path);
    // One byte more, so that what is longer is not taken for what is whole.
    let read = file.and_then(|file| file.take(limit + 1).read_to_end(&mut bytes));
    read.map_err(|error| ClientError::file(path, &error))?;
    Ok(bytes)
}

/// A document is 4 MiB at most in text.
const EVIDENCE_BYTES: u64 = 4 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_receipt_takes_the_evidence_of_another() {
        for (receipt, evidence) in [
            ("r.cbor", "r.evidence.json"),
            ("f.d/r", "f.d/r.evidence.json"),
            ("x.2026-11-25", "x.2026-11-25.evidence.json"),
            ("x.2026-11-26", "x.2026-11-26.evidence.json"),
            ("x.2026-11-26.cbor", "x.2026-11-26.evidence.json"),
        ] {
            assert_eq!(evidence_beside(Path::new(receipt)), Path::new(evidence));
        }
    }
}
