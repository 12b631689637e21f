use std::fmt;

use ciborium::Value;
use der::asn1::OctetStringRef;
use der::{Decode as _, Encode as _};
use serde::{Deserialize, Serialize};
use serde_json::error::Category;

use crate::claims::{from_cbor, to_cbor};

/// The certificate extension that carries evidence of SGX and TDX (TCG DICE, CCC interoperable
/// RA-TLS).
pub const RA_TLS_OID: &[u64] = &[2, 23, 133, 5, 4, 9];
/// The certificate extension that carries evidence of SEV-SNP: id-pe-cmw (RATS conceptual message
/// wrapper).
pub const CMW_OID: &[u64] = &[1, 3, 6, 1, 5, 5, 7, 1, 35];
/// What the wrapper says is in it: a CBOR array `[report, claims]`.
const CMW_TYPE: &str = "application/vnd.blindai.sev-snp+cbor";
/// The wrapper's indicator that this is evidence.
const CMW_EVIDENCE: u64 = 1 << 2;
/// What stands after version and key type in a quote of TDX, little-endian.
const TDX_TEE_TYPE: [u8; 4] = [0x81, 0, 0, 0];
/// The length of an attestation report of SEV-SNP.
const SNP_REPORT_BYTES: usize = 1184;
/// The CBOR tag of `[quote, claims]` for SGX and TDX.
const QUOTE_TAG: u64 = 60000;
/// The largest evidence that is looked at, in bytes. Real quotes are under 16 KiB.
const EVIDENCE_BYTES: usize = 128 * 1024;
/// The longest document: revocation lists are the most of it. Before its form is known, a reader takes
/// many times its length.
const DOCUMENT_BYTES: usize = 4 * 1024 * 1024;
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
    /// The quote (SGX, TDX) or attestation report (SEV-SNP), as the hardware gave it.
    pub quote: Vec<u8>,
    /// The encoded claims map.
    pub claims: Vec<u8>,
}

impl Evidence {
    /// Whether bytes have the form of an attestation report of SEV-SNP: its length, and a version
    /// where a quote of SGX or TDX has version and key type.
    pub fn is_snp_report(quote: &[u8]) -> bool {
        let version = quote.first_chunk().map(|four| u32::from_le_bytes(*four));
        quote.len() == SNP_REPORT_BYTES && version.is_some_and(|version| version <= 0xffff)
    }

    /// The kind of TEE that the head of a quote names. A hint, as all that is not verified.
    fn kind(quote: &[u8]) -> Tee {
        let tee_type = quote.get(4..8);
        match tee_type == Some(&TDX_TEE_TYPE) {
            _ if Self::is_snp_report(quote) => Tee::SevSnp,
            true => Tee::Tdx,
            false => Tee::Sgx,
        }
    }

    /// The certificate extension that carries this evidence: its OID and value.
    ///
    /// [`RA_TLS_OID`] with tag 60000 `[quote, claims]` for SGX and TDX, [`CMW_OID`] with a CBOR
    /// record for SEV-SNP.
    pub fn to_extension(&self) -> (&'static [u64], Vec<u8>) {
        let pair = Value::Array(vec![
            Value::Bytes(self.quote.clone()),
            Value::Bytes(self.claims.clone()),
        ]);
        if !Self::is_snp_report(&self.quote) {
            return (RA_TLS_OID, to_cbor(&Value::Tag(QUOTE_TAG, Box::new(pair))));
        }
        let record = Value::Array(vec![
            Value::from(CMW_TYPE),
            Value::Bytes(to_cbor(&pair)),
            Value::from(CMW_EVIDENCE),
        ]);
        let record = to_cbor(&record);
        let octets = OctetStringRef::new(&record).and_then(|octets| octets.to_der());
        (
            CMW_OID,
            octets.expect("evidence is shorter than DER can say"),
        )
    }

    /// Reads the value of the certificate extension [`RA_TLS_OID`].
    ///
    /// # Errors
    /// When it is too long or has another form.
    pub fn from_extension(value: &[u8]) -> Result<Self, EvidenceError> {
        let malformed = EvidenceError::Malformed("the extension is not tag 60000 [quote, claims]");
        match read_cbor(value)? {
            Some(Value::Tag(QUOTE_TAG, pair)) => Self::from_pair(*pair).ok_or(malformed),
            _ => Err(malformed),
        }
    }

    /// Reads the value of the certificate extension [`CMW_OID`].
    ///
    /// # Errors
    /// When it is too long or has another form.
    pub fn from_cmw(value: &[u8]) -> Result<Self, EvidenceError> {
        let read = || {
            let record = read_cbor(<&OctetStringRef>::from_der(value).ok()?.as_bytes()).ok()??;
            let record: [Value; 3] = record.into_array().ok()?.try_into().ok()?;
            let [kind, Value::Bytes(pair), indicator] = record else {
                return None;
            };
            let ours = kind == Value::from(CMW_TYPE) && indicator == Value::from(CMW_EVIDENCE);
            Self::from_pair(from_cbor(&pair).filter(|_| ours)?)
        };
        let malformed = "the extension is not a CMW record of [report, claims] of SEV-SNP";
        read().ok_or(EvidenceError::Malformed(malformed))
    }

    fn from_pair(pair: Value) -> Option<Self> {
        match <[Value; 2]>::try_from(pair.into_array().ok()?) {
            Ok([Value::Bytes(quote), Value::Bytes(claims)]) => Some(Self { quote, claims }),
            _ => None,
        }
    }
}

fn read_cbor(value: &[u8]) -> Result<Option<Value>, EvidenceError> {
    match value.len() > EVIDENCE_BYTES {
        true => Err(EvidenceError::TooLong),
        false => Ok(from_cbor(value)),
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
    pub collateral: Option<Collateral>,
    /// How the server says that this collateral stands. Documents of the first servers lack it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collateral_status: Option<CollateralStatus>,
    /// How the document came, in the words of whoever kept it. A server leaves it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen: Option<Seen>,
}

/// When and on which connection a document was seen. No hardware signs it: it is worth as much as
/// the word of whoever kept the document, and lets others repeat the check that was made then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seen {
    /// In seconds since 1970.
    pub at: u64,
    /// The nonce that was sent.
    #[serde(with = "hex::serde")]
    pub nonce: [u8; 32],
    /// SHA-256 of the SubjectPublicKeyInfo of the TLS key at the other end.
    #[serde(with = "hex::serde")]
    pub tls_spki_sha256: [u8; 32],
}

/// What a server says of the collateral it stapled, so that nobody has to guess why it is refused.
/// Nothing proves it: what the collateral is worth, only its verification tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CollateralStatus {
    pub state: CollateralState,
    /// When it was fetched, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fetched_at: Option<u64>,
    /// From when on it no longer holds, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<u64>,
    /// The code of what went wrong when the server last looked for newer, if something did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// How stapled collateral stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CollateralState {
    /// It holds.
    Fresh,
    /// It has ended, or not begun.
    Stale,
    /// There is none.
    None,
}

impl CollateralState {
    /// The name in documents.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Stale => "stale",
            Self::None => "none",
        }
    }
}

impl EvidenceDocument {
    /// A document of this evidence.
    pub fn new(tee: Tee, evidence: Evidence, collateral: Option<Collateral>) -> Self {
        Self {
            format: FORMAT.to_owned(),
            tee,
            quote: evidence.quote,
            claims: evidence.claims,
            collateral,
            seen: None,
            collateral_status: None,
        }
    }

    /// Reads a document from a stranger.
    ///
    /// # Errors
    /// When it is not JSON of this form, or of another version.
    pub fn from_json(json: &[u8]) -> Result<Self, EvidenceError> {
        if json.len() > DOCUMENT_BYTES {
            return Err(EvidenceError::TooLong);
        }
        let document: Self =
            serde_json::from_slice(json).map_err(|e| EvidenceError::not_json(&e))?;
        if document.format != FORMAT {
            return Err(EvidenceError::Malformed(
                "the format is not blindai-evidence-v1",
            ));
        }
        if document.quote.len() > EVIDENCE_BYTES {
            return Err(EvidenceError::TooLong);
        }
        // A reader who goes by the hint must not be told another story than one who verifies.
        if document.tee != Evidence::kind(&document.quote) {
            return Err(EvidenceError::Malformed(
                "the member tee names another kind than the quote",
            ));
        }
        Ok(document)
    }

    /// The document as JSON.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("the document holds only strings")
    }

    /// The quote or report in it.
    pub fn quote(&self) -> &[u8] {
        &self.quote
    }

    /// The encoded claims map in it.
    pub fn claims(&self) -> &[u8] {
        &self.claims
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
    /// Not JSON of this form, from this place on. Nothing of the text itself is repeated: whoever
    /// wrote it has not proved anything.
    Json {
        /// What is wrong, in words of ours.
        problem: &'static str,
        /// From 1; 0 where no place is to blame.
        line: usize,
        /// From 1; 0 where no place is to blame.
        column: usize,
    },
}

impl EvidenceError {
    fn not_json(error: &serde_json::Error) -> Self {
        let problem = match error.classify() {
            Category::Data => "a field is unknown, missing, or of another form",
            Category::Eof => "the JSON ends too early",
            Category::Syntax | Category::Io => "it is not JSON",
        };
        let (line, column) = (error.line(), error.column());
        Self::Json {
            problem,
            line,
            column,
        }
    }
}

impl fmt::Display for EvidenceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EvidenceError::TooLong => write!(
                f,
                "the evidence is over {EVIDENCE_BYTES} bytes, or its document over {DOCUMENT_BYTES}"
            ),
            EvidenceError::Malformed(fact) => f.write_str(fact),
            EvidenceError::Json {
                problem,
                line,
                column,
            } => {
                write!(f, "not an evidence document: {problem} ")?;
                write!(f, "(line {line}, column {column})")
            }
        }
    }
}

impl std::error::Error for EvidenceError {}

/// What it takes beside a quote or report to verify it (RFC 9334: endorsements). As it came: nothing
/// here is verified.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "collateral of SGX and TDX, or of SEV-SNP")]
pub enum Collateral {
    /// Of SGX and TDX.
    Dcap(DcapCollateral),
    /// Of SEV-SNP.
    Snp(SnpCollateral),
}

/// What it takes beside a report to verify SEV-SNP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnpCollateral {
    /// The certificate of the key that signed the report: VCEK (the chip's) or VLEK (the provider's,
    /// loaded into the chip). PEM.
    pub signer: String,
    /// Its issuers: ASK or ASVK, then ARK. PEM. Without it a verifier takes AMD's as it knows them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer_chain: Option<String>,
    /// What the ARK has revoked. DER, written in hexadecimal.
    #[serde(
        default,
        with = "optional_hex",
        skip_serializing_if = "Option::is_none"
    )]
    pub crl: Option<Vec<u8>>,
}

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

impl From<DcapCollateral> for Collateral {
    fn from(collateral: DcapCollateral) -> Self {
        Self::Dcap(collateral)
    }
}

impl From<SnpCollateral> for Collateral {
    fn from(collateral: SnpCollateral) -> Self {
        Self::Snp(collateral)
    }
}

mod optional_hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    pub fn serialize<S: Serializer>(bytes: &Option<Vec<u8>>, to: S) -> Result<S::Ok, S::Error> {
        match bytes {
            Some(bytes) => to.serialize_str(&hex::encode(bytes)),
            None => to.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<u8>>, D::Error> {
        let text = Option::<String>::deserialize(from)?;
        let bytes = text.map(hex::decode).transpose();
        bytes.map_err(D::Error::custom)
    }
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

    fn report() -> Evidence {
        let mut quote = vec![0; SNP_REPORT_BYTES];
        quote[0] = 3;
        let claims = vec![2; 100];
        Evidence { quote, claims }
    }

    #[test]
    fn the_extensions_round_trip_and_refuse_other_forms() {
        type Read = fn(&[u8]) -> Result<Evidence, EvidenceError>;
        let read = Evidence::from_extension as Read;
        for (evidence, want, read, other) in [
            (evidence(), RA_TLS_OID, read, Evidence::from_cmw as Read),
            (report(), CMW_OID, Evidence::from_cmw, read),
        ] {
            let (oid, value) = evidence.to_extension();
            assert_eq!((oid, read(&value)), (want, Ok(evidence)));
            assert!(other(&value).is_err());
            for end in 0..value.len() {
                assert!(read(&value[..end]).is_err());
            }
            let longer = [&value[..], &[0]].concat();
            assert!(read(&longer).is_err());
            assert!(read(&vec![0; EVIDENCE_BYTES + 1]).is_err());
        }
    }

    #[test]
    fn collateral_of_each_kind_is_told_apart() {
        let snp = SnpCollateral {
            signer: "PEM".to_owned(),
            issuer_chain: None,
            crl: Some(vec![1, 2]),
        };
        let json = serde_json::to_string(&Collateral::from(snp.clone())).unwrap();
        assert_eq!(json, r#"{"signer":"PEM","crl":"0102"}"#);
        let read: Collateral = serde_json::from_str(&json).unwrap();
        assert_eq!(read, Collateral::Snp(snp));
        let unknown = json.replace("crl", "lrc");
        assert!(serde_json::from_str::<Collateral>(&unknown).is_err());
    }

    #[test]
    fn a_long_document_is_not_read() {
        let long = [
            &b"{\"collateral\":["[..],
            &b"0,".repeat(DOCUMENT_BYTES / 2),
            b"0]}",
        ]
        .concat();
        let error = EvidenceDocument::from_json(&long).unwrap_err();
        assert_eq!(error, EvidenceError::TooLong);
    }

    #[test]
    fn an_error_repeats_nothing_of_a_strangers_document() {
        let json = EvidenceDocument::new(Tee::Sgx, evidence(), None).to_json();
        let json = String::from_utf8(json).unwrap();
        let long = "\u{202e}marker\u{9b}2J".repeat(1000);
        for (place, made_up) in [
            ("\"format\"", format!("\"{long}\":1,\"format\"")),
            ("\"sgx\"", format!("\"{long}\"")),
            ("{", format!("{{{long}")),
        ] {
            let error = EvidenceDocument::from_json(json.replace(place, &made_up).as_bytes());
            let error = error.unwrap_err();
            assert!(matches!(error, EvidenceError::Json { line: 1, .. }));
            for text in [error.to_string(), format!("{error:?}")] {
                assert!(text.len() < 200 && !text.contains("marker"), "{text}");
                assert!(!text.contains(crate::is_steering));
            }
        }
    }

    #[test]
    fn the_document_round_trips_and_refuses_other_versions() {
        let mut document = EvidenceDocument::new(Tee::Sgx, evidence(), None);
        // As the first servers wrote it.
        let json = document.to_json();
        assert_eq!(EvidenceDocument::from_json(&json), Ok(document.clone()));

        assert!(!String::from_utf8_lossy(&document.to_json()).contains("seen"));
        document.seen = Some(Seen {
            at: 7,
            nonce: [1; 32],
            tls_spki_sha256: [2; 32],
        });
        document.collateral_status = Some(CollateralStatus {
            state: CollateralState::Stale,
            fetched_at: None,
            expires_at: Some(7),
            problem: Some("collateral-unreachable".to_owned()),
        });
        let json = document.to_json();
        assert_eq!(EvidenceDocument::from_json(&json), Ok(document));
        for (from, to) in [("-v1", "-v2"), ("\"sgx\"", "\"tdx\"")] {
            let other = String::from_utf8(json.clone()).unwrap().replace(from, to);
            assert!(EvidenceDocument::from_json(other.as_bytes()).is_err());
        }
    }
}
