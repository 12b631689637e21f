use blindai_core::{CMW_OID, Evidence, RA_TLS_OID};
use sha2::{Digest as _, Sha256};
use x509_cert::Certificate;
use x509_cert::der::{Decode, Encode};
use x509_cert::ext::Extension;

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
/// 2.23.133.5.4.9 (SGX, TDX) or 1.3.6.1.5.5.7.1.35 (SEV-SNP).
///
/// # Errors
/// [`RejectionCode::CertificateMalformed`]
pub fn read_certificate(der: &[u8]) -> Result<CertificateEvidence, Rejection> {
    let certificate = parse(der)?;
    let value = only_extension(&certificate, &[RA_TLS_OID, CMW_OID])?;
    let evidence = match carries(&certificate, &[CMW_OID]) {
        true => Evidence::from_cmw(value),
        false => Evidence::from_extension(value),
    };
    let evidence = evidence.map_err(|error| malformed(error.to_string()))?;
    Ok(CertificateEvidence {
        evidence,
        tls_spki_sha256: spki_sha256(&certificate)?,
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

/// Reads a certificate of a stranger.
pub(crate) fn parse(der: &[u8]) -> Result<Certificate, Rejection> {
    if der.len() > CERTIFICATE_BYTES {
        return Err(malformed(format!(
            "the certificate is over {CERTIFICATE_BYTES} bytes"
        )));
    }
    Certificate::from_der(der)
        .map_err(|error| malformed(format!("the certificate cannot be read: {error}")))
}

/// Whether a certificate has an extension of one of these names.
pub(crate) fn carries(certificate: &Certificate, oids: &[&[u64]]) -> bool {
    extensions(certificate, oids).next().is_some()
}

/// The value of the one extension of these names. Two values would be two truths: one verified, one
/// shown.
pub(crate) fn only_extension<'a>(
    certificate: &'a Certificate,
    oids: &[&[u64]],
) -> Result<&'a [u8], Rejection> {
    let mut found = extensions(certificate, oids);
    match (found.next(), found.next()) {
        (Some(extension), None) => Ok(extension.extn_value.as_bytes()),
        _ => {
            let dotted =
                |oid: &&[u64]| oid.iter().map(u64::to_string).collect::<Vec<_>>().join(".");
            let names: Vec<_> = oids.iter().map(dotted).collect();
            let names = names.join(" or ");
            let fact = format!("the certificate does not carry exactly one extension {names}");
            Err(malformed(fact))
        }
    }
}

fn extensions<'a>(
    certificate: &'a Certificate,
    oids: &[&[u64]],
) -> impl Iterator<Item = &'a Extension> {
    let all = certificate.tbs_certificate().extensions();
    let named = |extension: &&Extension| {
        let arcs = || extension.extn_id.arcs().map(u64::from);
        oids.iter().any(|oid| arcs().eq(oid.iter().copied()))
    };
    all.into_iter().flatten().filter(named)
}

/// SHA-256 of the SubjectPublicKeyInfo.
pub(crate) fn spki_sha256(certificate: &Certificate) -> Result<[u8; 32], Rejection> {
    // DER has one encoding per value, so this is what stood in the certificate.
    let key = certificate
        .tbs_certificate()
        .subject_public_key_info()
        .to_der();
    let key = key.map_err(|_| malformed("the certificate's key does not encode"))?;
    Ok(Sha256::digest(key).into())
}

fn malformed(fact: impl Into<String>) -> Rejection {
    Rejection::new(RejectionCode::CertificateMalformed, fact)
}
