//! AMD's certificates and revocation lists: RSA-PSS over the bytes as they came, and strict forms,
//! so that no byte can change without a refusal.

use x509_cert::TbsCertificate;
use x509_cert::crl::TbsCertList;
use x509_cert::der::asn1::{AnyRef, BitStringRef, ObjectIdentifier};
use x509_cert::der::oid::AssociatedOid;
use x509_cert::der::{Decode, Encode, Reader, SliceReader};
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::{BasicConstraints, KeyUsage};
use x509_cert::time::Time;

use crate::RejectionCode as Code;
use crate::crypto::rsa_pss_sha384;
use crate::dcap::Refused;
use crate::report::utc;

/// A certificate as it came. Nothing in it is verified.
pub(super) struct Certificate {
    signed: Signed,
    pub body: TbsCertificate,
}

impl Certificate {
    /// Reads DER.
    pub fn from_der(der: &[u8]) -> Result<Self, Refused> {
        let read = || {
            let signed = Signed::from_der(der, CERTIFICATE_BYTES)?;
            let body = TbsCertificate::from_der(&signed.body).ok()?;
            // Two names of one algorithm would be two truths.
            let same = body.signature().to_der().ok()? == signed.algorithm;
            same.then_some(Self { signed, body })
        };
        read().ok_or_else(|| {
            let text = "a certificate is not one of AMD's form (X.509, RSA-PSS with SHA-384)";
            refused(Code::CollateralMalformed, text)
        })
    }

    /// Reads at most so many PEM blocks.
    pub fn from_pem(pem: &str, most: usize) -> Result<Vec<Self>, Refused> {
        if pem.len() > most * 2 * CERTIFICATE_BYTES {
            return Err(refused(Code::CollateralMalformed, "a chain is too long"));
        }
        let blocks = pem::parse_many(pem)
            .map_err(|_| refused(Code::CollateralMalformed, "a chain is not PEM"))?;
        if blocks.iter().any(|block| block.tag() != "CERTIFICATE") {
            return Err(refused(
                Code::CollateralMalformed,
                "a chain holds more than certificates",
            ));
        }
        if blocks.is_empty() || blocks.len() > most {
            let text = format!("{} certificates where 1 to {most} belong", blocks.len());
            return Err(refused(Code::CollateralMalformed, text));
        }
        let certificate = |block: &pem::Pem| Self::from_der(block.contents());
        blocks.iter().map(certificate).collect()
    }

    /// Whether this certificate's key signed that one. Names, dates and uses are other questions.
    pub fn signed(&self, other: &Self) -> bool {
        self.signed_bytes(&other.signed)
    }

    /// Whether the other has the same name and key.
    pub fn same_identity(&self, other: &Self) -> bool {
        self.body.subject() == other.body.subject() && self.key() == other.key()
    }

    pub fn check_time(&self, name: &str, now: u64) -> Result<(), Refused> {
        let validity = self.body.validity();
        let (start, end) = (seconds(&validity.not_before), seconds(&validity.not_after));
        if now < start {
            let text = format!("the {name} certificate is valid from {}", utc(start));
            return Err(refused(Code::CertificateNotYetValid, text));
        }
        if now > end {
            let text = format!("the {name} certificate ended at {}", utc(end));
            return Err(refused(Code::CertificateExpired, text));
        }
        Ok(())
    }

    pub fn not_after(&self) -> u64 {
        seconds(&self.body.validity().not_after)
    }

    /// Whether it may sign certificates, and demands nothing that is not understood here.
    pub fn is_authority(&self) -> bool {
        let read = || {
            let constraints = BasicConstraints::from_der(self.extension(BasicConstraints::OID)?);
            let usage = KeyUsage::from_der(self.extension(KeyUsage::OID)?);
            Some(constraints.ok()?.ca && usage.ok()?.key_cert_sign())
        };
        self.is_understood() && read().unwrap_or(false)
    }

    /// Whether each critical extension is known here.
    pub fn is_understood(&self) -> bool {
        let known = [BasicConstraints::OID, KeyUsage::OID];
        let mut critical = self.extensions().filter(|extension| extension.critical);
        critical.all(|extension| known.contains(&extension.extn_id))
    }

    /// The value of an extension; `None` too when it stands there twice.
    pub fn extension(&self, oid: ObjectIdentifier) -> Option<&[u8]> {
        let mut found = self.extensions().filter(|e| e.extn_id == oid);
        match (found.next(), found.next()) {
            (Some(extension), None) => Some(extension.extn_value.as_bytes()),
            _ => None,
        }
    }

    /// Whether an extension of this name stands there at all.
    pub fn has_extension(&self, oid: ObjectIdentifier) -> bool {
        self.extensions().any(|extension| extension.extn_id == oid)
    }

    /// The point of a key on the curve P-384.
    pub fn p384_point(&self) -> Option<&[u8]> {
        let key = self.body.subject_public_key_info();
        let curve = key.algorithm.parameters.as_ref()?;
        let curve = curve.decode_as::<ObjectIdentifier>().ok()?;
        (key.algorithm.oid == EC_PUBLIC_KEY && curve == P384).then_some(())?;
        key.subject_public_key.as_bytes()
    }

    fn key(&self) -> Option<Vec<u8>> {
        self.body.subject_public_key_info().to_der().ok()
    }

    fn signed_bytes(&self, signed: &Signed) -> bool {
        let key = self.body.subject_public_key_info();
        let rsa = key.algorithm.oid == RSA_ENCRYPTION;
        key.subject_public_key
            .as_bytes()
            .is_some_and(|key| rsa && rsa_pss_sha384(key, &signed.body, &signed.signature))
    }

    fn extensions(&self) -> impl Iterator<Item = &Extension> {
        self.body.extensions().into_iter().flatten()
    }
}

/// What an authority has revoked.
pub(super) struct RevocationList {
    signed: Signed,
    body: TbsCertList,
}

impl RevocationList {
    /// Reads DER.
    pub fn from_der(der: &[u8]) -> Result<Self, Refused> {
        let read = || {
            let signed = Signed::from_der(der, CRL_BYTES)?;
            let body = TbsCertList::from_der(&signed.body).ok()?;
            let extensions = body.crl_extensions.iter().flatten();
            // Such an extension narrows what the list is about.
            let understood = !extensions.clone().any(|extension| extension.critical);
            let same = body.signature.to_der().ok()? == signed.algorithm;
            (same && understood).then_some(Self { signed, body })
        };
        read().ok_or_else(|| {
            let text = "the revocation list is not one of AMD's form";
            refused(Code::CollateralMalformed, text)
        })
    }

    /// Whether the list is of this authority and of this time.
    pub fn check(&self, authority: &Certificate, now: u64) -> Result<(), Refused> {
        if &self.body.issuer != authority.body.subject() {
            let text = "the revocation list is of another issuer than the root";
            return Err(refused(Code::CollateralMismatch, text));
        }
        if !authority.signed_bytes(&self.signed) {
            let text = "the root did not sign the revocation list";
            return Err(refused(Code::CollateralSignature, text));
        }
        let start = seconds(&self.body.this_update);
        if now < start {
            let text = format!("the revocation list is of {}", utc(start));
            return Err(refused(Code::CollateralNotYetValid, text));
        }
        let end = self.next_update();
        if now > end {
            let text = format!("the revocation list ended at {}", utc(end));
            return Err(refused(Code::CrlExpired, text));
        }
        Ok(())
    }

    /// From when on the list no longer holds; a list that does not say so never held.
    pub fn next_update(&self) -> u64 {
        self.body.next_update.as_ref().map_or(0, seconds)
    }

    pub fn has_revoked(&self, certificate: &Certificate) -> bool {
        let mut entries = self.body.revoked_certificates.iter().flatten();
        entries.any(|entry| &entry.serial_number == certificate.body.serial_number())
    }
}

/// The form that certificates and revocation lists share: what is signed, how, and the signature.
struct Signed {
    body: Vec<u8>,
    algorithm: Vec<u8>,
    signature: Vec<u8>,
}

impl Signed {
    fn from_der(der: &[u8], most_bytes: usize) -> Option<Self> {
        if der.len() > most_bytes {
            return None;
        }
        let mut reader = SliceReader::new(der).ok()?;
        let parts = AnyRef::decode(&mut reader).ok()?;
        reader.finish().ok()?;
        parts
            .sequence(|reader| {
                let body = reader.tlv_bytes()?;
                let algorithm = reader.tlv_bytes()?;
                let signature = BitStringRef::decode(reader)?;
                Ok::<_, x509_cert::der::Error>((body, algorithm, signature))
            })
            .ok()
            .and_then(|(body, algorithm, signature)| {
                RSA_PSS_SHA384.contains(&algorithm).then_some(Self {
                    body: body.to_vec(),
                    algorithm: algorithm.to_vec(),
                    signature: signature.as_bytes()?.to_vec(),
                })
            })
    }
}

fn seconds(time: &Time) -> u64 {
    time.to_unix_duration().as_secs()
}

fn refused(code: Code, text: impl Into<String>) -> Refused {
    Refused {
        code,
        text: text.into(),
    }
}

/// AMD's certificates have under 2 KiB.
const CERTIFICATE_BYTES: usize = 8 * 1024;
const CRL_BYTES: usize = 256 * 1024;

const RSA_ENCRYPTION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");

/// RSASSA-PSS with SHA-384, MGF1 with SHA-384 and 48 bytes of salt (RFC 4055), as AMD writes it:
/// with the default of the last field left out, and with it spelled out.
const RSA_PSS_SHA384: [&[u8]; 2] = [
    b"\x30\x41\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0a\x30\x34\xa0\x0f\x30\x0d\x06\x09\x60\x86\
      \x48\x01\x65\x03\x04\x02\x02\x05\x00\xa1\x1c\x30\x1a\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\
      \x08\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x02\x05\x00\xa2\x03\x02\x01\x30",
    b"\x30\x46\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0a\x30\x39\xa0\x0f\x30\x0d\x06\x09\x60\x86\
      \x48\x01\x65\x03\x04\x02\x02\x05\x00\xa1\x1c\x30\x1a\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\
      \x08\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x02\x05\x00\xa2\x03\x02\x01\x30\xa3\x03\
      \x02\x01\x01",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::{ecdsa_p384_sha384, pure_rust};
    use crate::snp::Report;

    fn file(name: &str) -> Vec<u8> {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/evidence/snp/");
        std::fs::read(format!("{folder}{name}")).unwrap()
    }

    #[test]
    fn the_code_for_wasm_says_the_same_of_signatures() {
        let ark = Certificate::from_der(include_bytes!("amd/milan_ark.der")).unwrap();
        let key = ark
            .body
            .subject_public_key_info()
            .subject_public_key
            .raw_bytes();
        let mut signature = ark.signed.signature.clone();
        for holds in [true, false] {
            let body = &ark.signed.body;
            assert_eq!(rsa_pss_sha384(key, body, &signature), holds);
            assert_eq!(pure_rust::rsa_pss_sha384(key, body, &signature), holds);
            signature[511] ^= 1;
        }

        let vcek = String::from_utf8(file("ms_milan_vcek.pem")).unwrap();
        let vcek = Certificate::from_pem(&vcek, 1).unwrap().remove(0);
        let (key, report) = (vcek.p384_point().unwrap(), file("ms_milan.report"));
        let report = Report::parse(&report).unwrap();
        let mut signature = report.signature();
        for holds in [true, false] {
            let body = report.signed();
            assert_eq!(ecdsa_p384_sha384(key, body, &signature), holds);
            assert_eq!(pure_rust::ecdsa_p384_sha384(key, body, &signature), holds);
            signature[95] ^= 1;
        }
    }
}
