use std::fmt;

use ciborium::Value;
use sha2::{Digest as _, Sha256};

use crate::Digest;

/// The largest claims map that is looked at, in bytes.
const CLAIMS_BYTES: usize = 16 * 1024;
/// The most entries of a claims map that is looked at. Eight are known.
const CLAIMS: usize = 64;
/// SHA-256 in the IANA registry of named information hashes, which the CCC format refers to.
const HASH_SHA256: u8 = 1;

/// A caller's proof of freshness: 32 bytes that it drew at random.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nonce([u8; 32]);

impl Nonce {
    /// Takes 32 random bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Reads 64 hexadecimal digits.
    pub fn from_hex(text: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).ok()?;
        Some(Self(bytes))
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The 64 hexadecimal digits.
    pub fn to_hex(&self) -> String {
        hex::encode(self.0)
    }
}

/// The 64 bytes that the hardware signs: the digest of the claims, padded with zeros.
///
/// There is no way to make one from bytes of choice, so nothing can be signed that is not claims.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ReportData([u8; 64]);

impl ReportData {
    /// The report data of an encoded claims map (the CCC interoperable RA-TLS rule).
    pub fn of_claims(encoded: &[u8]) -> Self {
        let mut bytes = [0; 64];
        bytes[..32].copy_from_slice(&Sha256::digest(encoded));
        Self(bytes)
    }

    /// The 64 bytes.
    pub const fn as_bytes(&self) -> &[u8; 64] {
        &self.0
    }
}

impl fmt::Debug for ReportData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReportData({})", hex::encode(self.0))
    }
}

/// What the server says of itself; the quote signs its digest.
///
/// The keys stand in the claims themselves, not beside them: a key that the quote does not sign
/// cannot be written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// SHA-256 of the TLS key's SubjectPublicKeyInfo. The key and not the certificate, so that a
    /// re-issued certificate keeps the evidence valid.
    pub tls_spki_sha256: [u8; 32],
    /// The Ed25519 key that signs receipts.
    pub receipt_key: Option<[u8; 32]>,
    /// The X25519 key for messages sealed to this server (HPKE). So far it opens none.
    pub hpke_key: Option<[u8; 32]>,
    /// Digest of the effective configuration.
    pub config_digest: Option<Digest>,
    /// The caller's nonce, when it sent one.
    pub nonce: Option<Nonce>,
    /// When the claims were made, in seconds since 1970.
    pub issued_at: Option<u64>,
    /// From when on they no longer hold, in seconds since 1970.
    pub expires_at: Option<u64>,
    /// The server's version.
    pub version: Option<String>,
}

const PUBKEY_HASH: &str = "pubkey-hash";
const NONCE: &str = "nonce";
const ISSUED_AT: &str = "iat";
const EXPIRES_AT: &str = "exp";
const RECEIPT_KEY: &str = "blindai-receipt-key";
const HPKE_KEY: &str = "blindai-hpke-key";
const CONFIG: &str = "blindai-config-sha256";
const VERSION: &str = "blindai-version";

impl Claims {
    /// The claims as a CBOR map, as the quote signs them.
    pub fn encode(&self) -> Vec<u8> {
        let hash_entry = Value::Array(vec![
            Value::from(HASH_SHA256),
            Value::Bytes(self.tls_spki_sha256.to_vec()),
        ]);
        let bytes = |bytes: &[u8; 32]| Value::Bytes(bytes.to_vec());
        let entries = [
            (PUBKEY_HASH, Some(Value::Bytes(to_cbor(&hash_entry)))),
            (NONCE, self.nonce.map(|nonce| bytes(nonce.as_bytes()))),
            (ISSUED_AT, self.issued_at.map(Value::from)),
            (EXPIRES_AT, self.expires_at.map(Value::from)),
            (RECEIPT_KEY, self.receipt_key.as_ref().map(bytes)),
            (HPKE_KEY, self.hpke_key.as_ref().map(bytes)),
            (CONFIG, self.config_digest.map(|d| bytes(d.as_bytes()))),
            (VERSION, self.version.clone().map(Value::Text)),
        ];
        let present = entries.into_iter();
        let map = present.filter_map(|(key, value)| Some((Value::Text(key.into()), value?)));
        to_cbor(&Value::Map(map.collect()))
    }

    /// Reads claims from a stranger. Unknown claims are tolerated, duplicates are not.
    ///
    /// # Errors
    /// Names the claim that cannot be read.
    pub fn decode(encoded: &[u8]) -> Result<Self, ClaimsError> {
        if encoded.len() > CLAIMS_BYTES {
            return Err(ClaimsError::TooLong);
        }
        let Value::Map(entries) = from_cbor(encoded).ok_or(ClaimsError::NotAMap)? else {
            return Err(ClaimsError::NotAMap);
        };
        let entries = Entries::new(entries)?;
        Ok(Self {
            tls_spki_sha256: entries.pubkey_hash()?,
            receipt_key: entries.bytes(RECEIPT_KEY)?,
            hpke_key: entries.bytes(HPKE_KEY)?,
            config_digest: entries.bytes(CONFIG)?.map(Digest::from_bytes),
            nonce: entries.bytes(NONCE)?.map(Nonce),
            issued_at: entries.time(ISSUED_AT)?,
            expires_at: entries.time(EXPIRES_AT)?,
            version: entries.text(VERSION)?,
        })
    }
}

/// Why a claims map was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClaimsError {
    /// Over 16 KiB.
    TooLong,
    /// Not one CBOR map and nothing after it.
    NotAMap,
    /// Over 64 entries.
    TooMany,
    /// A claim stands there twice, so two readers could see two truths.
    Duplicate(String),
    /// The claim is missing or has another form.
    Claim(&'static str),
}

impl fmt::Display for ClaimsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ClaimsError::TooLong => write!(f, "the claims are longer than {CLAIMS_BYTES} bytes"),
            ClaimsError::NotAMap => f.write_str("the claims are not one CBOR map"),
            ClaimsError::TooMany => write!(f, "there are more than {CLAIMS} claims"),
            ClaimsError::Duplicate(key) => write!(f, "the claim {key:?} stands there twice"),
            ClaimsError::Claim(key) => write!(f, "the claim {key:?} is missing or malformed"),
        }
    }
}

impl std::error::Error for ClaimsError {}

/// The entries of a map of claims, none of them twice.
pub(crate) struct Entries(Vec<(Value, Value)>);

impl Entries {
    pub(crate) fn new(entries: Vec<(Value, Value)>) -> Result<Self, ClaimsError> {
        // Each is compared with all before it, and whoever wrote them chose how many there are.
        if entries.len() > CLAIMS {
            return Err(ClaimsError::TooMany);
        }
        for (i, (key, _)) in entries.iter().enumerate() {
            if entries[..i].iter().any(|(earlier, _)| earlier == key) {
                let key = key.as_text().unwrap_or("(not text)");
                return Err(ClaimsError::Duplicate(key.chars().take(64).collect()));
            }
        }
        Ok(Self(entries))
    }

    fn get(&self, key: &str) -> Option<&Value> {
        let entry = self.0.iter().find(|(k, _)| k.as_text() == Some(key))?;
        Some(&entry.1)
    }

    fn bytes(&self, key: &'static str) -> Result<Option<[u8; 32]>, ClaimsError> {
        let read = |value: &Value| value.as_bytes()?.as_slice().try_into().ok();
        self.optional(key, read)
    }

    fn time(&self, key: &'static str) -> Result<Option<u64>, ClaimsError> {
        self.optional(key, |value| value.as_integer()?.try_into().ok())
    }

    fn text(&self, key: &'static str) -> Result<Option<String>, ClaimsError> {
        self.optional(key, |value| Some(value.as_text()?.to_owned()))
    }

    pub(crate) fn optional<T>(
        &self,
        key: &'static str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, ClaimsError> {
        let value = self.get(key);
        value
            .map(|value| read(value).ok_or(ClaimsError::Claim(key)))
            .transpose()
    }

    fn pubkey_hash(&self) -> Result<[u8; 32], ClaimsError> {
        let read = || {
            let entry = from_cbor(self.get(PUBKEY_HASH)?.as_bytes()?)?;
            match entry.as_array()?.as_slice() {
                [algorithm, Value::Bytes(hash)] if *algorithm == Value::from(HASH_SHA256) => {
                    hash.as_slice().try_into().ok()
                }
                _ => None,
            }
        };
        read().ok_or(ClaimsError::Claim(PUBKEY_HASH))
    }
}

pub(crate) fn to_cbor(value: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    // Writing into a Vec cannot fail, and a Value holds nothing that has no encoding.
    ciborium::into_writer(value, &mut bytes).expect("a CBOR value encodes into memory");
    bytes
}

/// Exactly one CBOR item: bytes after it would be signed but unread.
pub(crate) fn from_cbor(mut bytes: &[u8]) -> Option<Value> {
    let value = ciborium::de::from_reader_with_recursion_limit(&mut bytes, 16).ok()?;
    bytes.is_empty().then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Claims {
        Claims {
            tls_spki_sha256: [1; 32],
            receipt_key: Some([2; 32]),
            hpke_key: Some([3; 32]),
            config_digest: Some(Digest::from_bytes([4; 32])),
            nonce: Some(Nonce([5; 32])),
            issued_at: Some(10),
            expires_at: Some(20),
            version: Some("0.1.0".into()),
        }
    }

    #[test]
    fn claims_round_trip() {
        assert_eq!(Claims::decode(&full().encode()), Ok(full()));
    }

    #[test]
    fn unknown_claims_are_tolerated_and_duplicates_are_not() {
        let Some(Value::Map(mut entries)) = from_cbor(&full().encode()) else {
            panic!("claims are a map")
        };
        entries.push((Value::Text("key_0".into()), Value::Bytes(vec![0])));
        let with_unknown = to_cbor(&Value::Map(entries.clone()));
        assert_eq!(Claims::decode(&with_unknown), Ok(full()));

        entries.push(entries[0].clone());
        let with_twin = to_cbor(&Value::Map(entries));
        let error = Claims::decode(&with_twin).unwrap_err();
        assert_eq!(error, ClaimsError::Duplicate(PUBKEY_HASH.into()));
    }

    #[test]
    fn a_map_of_many_entries_is_refused_before_they_are_compared() {
        let Some(Value::Map(mut entries)) = from_cbor(&full().encode()) else {
            panic!("claims are a map")
        };
        let made_up = (0..CLAIMS as u64).map(|i| (Value::from(i), Value::Null));
        entries.extend(made_up);
        let mut many = entries.clone();
        many.push(many[0].clone());
        // Not that one is a duplicate: nobody has looked.
        let error = Claims::decode(&to_cbor(&Value::Map(many)));
        assert_eq!(error, Err(ClaimsError::TooMany));
        entries.truncate(CLAIMS);
        assert_eq!(Claims::decode(&to_cbor(&Value::Map(entries))), Ok(full()));
    }

    #[test]
    fn trailing_bytes_truncation_and_wrong_types_are_refused() {
        let mut longer = full().encode();
        longer.push(0);
        assert_eq!(Claims::decode(&longer), Err(ClaimsError::NotAMap));
        let whole = full().encode();
        for end in 0..whole.len() {
            assert!(Claims::decode(&whole[..end]).is_err());
        }
        let text = Value::Map(vec![(
            Value::Text(PUBKEY_HASH.into()),
            Value::Text("x".into()),
        )]);
        assert_eq!(
            Claims::decode(&to_cbor(&text)),
            Err(ClaimsError::Claim(PUBKEY_HASH))
        );
    }
}
