use blindai_core::{Evidence, RA_TLS_OID};
use sha2::{Digest as _, Sha256};
use x509_cert::Certificate;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::der::{Decode, Encode};

use crate::appraise::check_static_binding;
use crate::{Rejection, RejectionCode};

/// The evidence in a TLS certificate, with the key that the certificate is for. Nothing in it is
/// verified.
#[derive(Clone, Debug)]
pub struct CertificateEvidence {
    evidence: Evidence,
    tls_spki_sha256: [u8; 32],
}

/// Reads the evidence in an X.509 certificate, DER: the value of exactly one extension
/// 2.23.133.5.4.9.
///
/// # Errors
/// [`RejectionCode::CertificateMalformed`]
pub fn read_certificate(der: &[u8]) -> Result<CertificateEvidence, Rejection> {
    if der.len() > CERTIFICATE_BYTES {
        return Err(malformed(format!(
            "the certificate is over {CERTIFICATE_BYTES} bytes"
        )));
    }
    let certificate = Certificate::from_der(der)
        .map_err(|error| malformed(format!("the certificate cannot be read: {error}")))?;
    let certificate = certificate.tbs_certificate();
    let oid = ObjectIdentifier::from_arcs(RA_TLS_OID.iter().map(|arc| *arc as u32))
        .map_err(|_| malformed("the extension's name does not encode"))?;
    let extensions = certificate.extensions().into_iter().flatten();
    let mut values = extensions.filter(|extension| extension.extn_id == oid);
    // Two values would be two truths: one verified, one shown.
    let (Some(extension), None) = (values.next(), values.next()) else {
        return Err(malformed(
            "the certificate does not carry exactly one extension 2.23.133.5.4.9",
        ));
    };
    let evidence = Evidence::from_extension(extension.extn_value.as_bytes())
        .map_err(|error| malformed(error.to_string()))?;
    // DER has one encoding per value, so this is what stood in the certificate.
    let key = certificate.subject_public_key_info().to_der();
    let key = key.map_err(|_| malformed("the certificate's key does not encode"))?;
    Ok(CertificateEvidence {
        evidence,
        tls_spki_sha256: Sha256::digest(key).into(),
    })
}

impl CertificateEvidence {
    /// The evidence, for [`verify`](crate::verify()).
    pub fn evidence(&self) -> &Evidence {
        &self.evidence
    }

    /// SHA-256 of the certificate's SubjectPublicKeyInfo, for [`Binding`](crate::Binding).
    pub fn tls_spki_sha256(&self) -> [u8; 32] {
        self.tls_spki_sha256
    }

    /// Checks what needs no collateral and no policy: the quote was made for the claims, and the
    /// claims name the certificate's key. For refusing early, inside a handshake.
    ///
    /// This is **not** verification: the quote's signature is not looked at. Anybody can make a
    /// certificate that passes.
    ///
    /// # Errors
    /// With the table of these checks.
    pub fn check_binding(&self) -> Result<(), Rejection> {
        check_static_binding(&self.evidence, self.tls_spki_sha256)
    }
}

/// The evidence is at most 128 KiB; the rest of a certificate is small.
const CERTIFICATE_BYTES: usize = 160 * 1024;

fn malformed(fact: impl Into<String>) -> Rejection {
    Rejection::new(RejectionCode::CertificateMalformed, fact)
}
