use std::fmt;

use ciborium::Value;
use serde::{Deserialize, Serialize};

use crate::claims::{from_cbor, to_cbor};

/// The certificate extension that carries evidence (TCG DICE, CCC interoperable RA-TLS).
pub const RA_TLS_OID: &[u64] = &[2, 23, 133, 5, 4, 9];
/// The CBOR tag of `[quote, claims]` for SGX and TDX.
const QUOTE_TAG: u64 = 60000;
/// The largest evidence that is looked at, in bytes. Real quotes are under 16 KiB.
const EVIDENCE_BYTES: usize = 128 * 1024;
const FORMAT: &str = "blindai-evidence-v1";

/// The kind of trusted execution environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Tee {
    /// An Intel SGX enclave.
    #[serde(rename = "sgx")]
    Sgx,
    /// An Intel TDX trust domain.
    #[serde(rename = "tdx")]
    Tdx,
    /// An AMD SEV-SNP guest.
    #[serde(rename = "sev-snp")]
    SevSnp,
}

impl Tee {
    /// The name in policies and documents.
    pub fn as_str(self) -> &'static str {
        match self {
            Tee::Sgx => "sgx",
            Tee::Tdx => "tdx",
            Tee::SevSnp => "sev-snp",
        }
    }
}

impl fmt::Display for Tee {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A quote and the claims whose digest it signs, as they came: nothing here is verified.
#[derive(Clone, PartialEq, Eq)]
pub struct Evidence {
    /// The quote, as the hardware gave it.
    pub quote: Vec<u8>,
    /// The encoded claims map.
    pub claims: Vec<u8>,
}

impl Evidence {
    /// The value of the certificate extension [`RA_TLS_OID`]: tag 60000, `[quote, claims]`.
    pub fn to_extension(&self) -> Vec<u8> {
        let array = vec![
            Value::Bytes(self.quote.clone()),
            Value::Bytes(self.claims.clone()),
        ];
        to_cbor(&Value::Tag(QUOTE_TAG, Box::new(Value::Array(array))))
    }

    /// Reads the value of the certificate extension [`RA_TLS_OID`].
    ///
    /// # Errors
    /// When it is too long or has another form.
    pub fn from_extension(value: &[u8]) -> Result<Self, EvidenceError> {
        if value.len() > EVIDENCE_BYTES {
            return Err(EvidenceError::TooLong);
        }
        let malformed = EvidenceError::Malformed("the extension is not tag 60000 [quote, claims]");
        let Some(Value::Tag(QUOTE_TAG, inner)) = from_cbor(value) else {
            return Err(malformed);
        };
        match inner.into_array().map(<[Value; 2]>::try_from) {
            Ok(Ok([Value::Bytes(quote), Value::Bytes(claims)])) => Ok(Self { quote, claims }),
            _ => Err(malformed),
        }
    }
}

impl fmt::Debug for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (quote, claims) = (self.quote.len(), self.claims.len());
        write!(f, "Evidence({quote} bytes of quote, {claims} of claims)")
    }
}

/// What `GET /v1/attestation` answers: evidence with the collateral to verify it, also offline and
/// later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvidenceDocument {
    format: String,
    /// The kind of TEE, as a hint; the quote itself decides.
    pub tee: Tee,
    #[serde(with = "base64_bytes")]
    quote: Vec<u8>,
    #[serde(with = "base64_bytes")]
    claims: Vec<u8>,
    /// What the server stapled; a verifier may use its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collateral: Option<DcapCollateral>,
}

impl EvidenceDocument {
    /// A document of this evidence.
    pub fn new(tee: Tee, evidence: Evidence, collateral: Option<DcapCollateral>) -> Self {
        Self {
            format: FORMAT.to_owned(),
            tee,
            quote: evidence.quote,
            claims: evidence.claims,
            collateral,
        }
    }

    /// Reads a document from a stranger.
    ///
    /// # Errors
    /// When it is not JSON of this form, or of another version.
    pub fn from_json(json: &[u8]) -> Result<Self, EvidenceError> {
        let document: Self =
            serde_json::from_slice(json).map_err(|e| EvidenceError::Json(e.to_string()))?;
        if document.format != FORMAT {
            return Err(EvidenceError::Malformed(
                "the format is not blindai-evidence-v1",
            ));
        }
        if document.quote.len() > EVIDENCE_BYTES {
            return Err(EvidenceError::TooLong);
        }
        Ok(document)
    }

    /// The document as JSON.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("the document holds only strings")
    }

    /// The evidence in it.
    pub fn evidence(&self) -> Evidence {
        Evidence {
            quote: self.quote.clone(),
            claims: self.claims.clone(),
        }
    }
}

/// Why evidence could not even be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EvidenceError {
    /// Over 128 KiB.
    TooLong,
    /// Another form than it should have.
    Malformed(&'static str),
    /// Not JSON of this form.
    Json(String),
}

impl fmt::Display for EvidenceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EvidenceError::TooLong => write!(f, "the evidence is over {EVIDENCE_BYTES} bytes"),
            EvidenceError::Malformed(fact) => f.write_str(fact),
            EvidenceError::Json(fact) => write!(f, "not an evidence document: {fact}"),
        }
    }
}

impl std::error::Error for EvidenceError {}

/// What it takes beside a quote to verify SGX and TDX: certificates, revocation lists, and what
/// Intel says of the platform's patch level.
///
/// The JSON form is that of the crate `dcap-qvl` and its tools: PEM texts, hexadecimal binaries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DcapCollateral {
    pub pck_crl_issuer_chain: String,
    #[serde(with = "hex::serde")]
    pub root_ca_crl: Vec<u8>,
    #[serde(with = "hex::serde")]
    pub pck_crl: Vec<u8>,
    pub tcb_info_issuer_chain: String,
    pub tcb_info: String,
    #[serde(with = "hex::serde")]
    pub tcb_info_signature: Vec<u8>,
    pub qe_identity_issuer_chain: String,
    pub qe_identity: String,
    #[serde(with = "hex::serde")]
    pub qe_identity_signature: Vec<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pck_certificate_chain: Option<String>,
}

mod base64_bytes {
    use base64::prelude::{BASE64_STANDARD, Engine as _};
    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64_STANDARD.encode(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        BASE64_STANDARD.decode(text).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evidence() -> Evidence {
        Evidence {
            quote: vec![1; 5000],
            claims: vec![2; 100],
        }
    }

    #[test]
    fn the_extension_round_trips_and_refuses_other_forms() {
        let value = evidence().to_extension();
        assert_eq!(Evidence::from_extension(&value), Ok(evidence()));
        for end in 0..value.len() {
            assert!(Evidence::from_extension(&value[..end]).is_err());
        }
        let mut longer = value.clone();
        longer.push(0);
        assert!(Evidence::from_extension(&longer).is_err());
        assert_eq!(
            Evidence::from_extension(&vec![0; EVIDENCE_BYTES + 1]),
            Err(EvidenceError::TooLong)
        );
    }

    #[test]
    fn the_document_round_trips_and_refuses_other_versions() {
        let document = EvidenceDocument::new(Tee::Sgx, evidence(), None);
        let json = document.to_json();
        assert_eq!(EvidenceDocument::from_json(&json), Ok(document));
        let other = String::from_utf8(json).unwrap().replace("-v1", "-v2");
        assert!(EvidenceDocument::from_json(other.as_bytes()).is_err());
    }
}
