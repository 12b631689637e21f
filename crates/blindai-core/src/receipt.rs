//! Receipts: what a server states of one inference or upload, signed with the key in its claims.
//!
//! A receipt is a COSE_Sign1 message (RFC 9052). Its protected header names the key, its payload is a
//! CBOR map, the [`Statement`]. Tensors stand in it as digests, one for each, so that who holds some of
//! them can check those without the others. docs/receipts.md defines every byte.
//!
//! This module writes and reads. Whether a receipt is to be trusted is decided by `blindai-verify`.

use std::fmt;

use bytes::Bytes;
use ciborium::Value;
use coset::{CoseSign1, CoseSign1Builder, HeaderBuilder, TaggedCborSerializable as _, iana};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::claims::{Entries, from_cbor, to_cbor};
use crate::{
    ClaimsError, Code, DType, Digest, Error, ModelName, ModelVersion, NamedTensor, Shape, Tensor,
};

/// The HTTP header that asks for a receipt, and the one that brings it in base64.
pub const RECEIPT: &str = "blindai-receipt";
/// The type of the payload, in the protected header.
pub const CONTENT_TYPE: &str = "application/vnd.blindai.receipt+cbor";
/// The largest receipt, in bytes: in base64 it must fit into a line of an HTTP header.
pub const RECEIPT_BYTES: usize = 32 * 1024;
/// More tensors than fit into a receipt.
pub const RECEIPT_TENSORS: usize = 1024;
/// The longest nonce of a caller, in bytes.
const NONCE_BYTES: usize = 64;
const SIGNATURE_BYTES: usize = 64;
/// Tells the digest of a tensor from that of anything else.
const TENSOR_DOMAIN: &[u8] = b"blindai-tensor-v1\0";

/// What a server states of one inference or upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// What was done.
    pub deed: Deed,
    /// The model's name as the caller knows it.
    pub model_name: ModelName,
    /// The version that ran, or that holds what was uploaded.
    pub model_version: ModelVersion,
    /// The digest of the model's file, which is its identity.
    pub model_digest: Digest,
    /// The caller's nonce, when it sent one.
    pub nonce: Option<ReceiptNonce>,
    /// When the receipt was made, in seconds since 1970, by the server's clock.
    pub issued_at: u64,
    /// Digest of the server's effective configuration.
    pub config_digest: Digest,
    /// Which start of which server: SHA-256 of its TLS key's SubjectPublicKeyInfo.
    pub replica: [u8; 32],
    /// The server's version.
    pub server_version: String,
}

/// What a receipt is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deed {
    /// The server holds this model, uploaded now or before.
    Upload,
    /// The model gave these outputs for these inputs, in the order of the request and of the answer.
    Infer {
        inputs: Vec<TensorDigest>,
        outputs: Vec<TensorDigest>,
    },
}

/// The kind of a [`Deed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Upload,
    Infer,
}

impl Kind {
    /// `upload` or `infer`.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Upload => "upload",
            Kind::Infer => "infer",
        }
    }
}

impl Deed {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Deed::Upload => Kind::Upload,
            Deed::Infer { .. } => Kind::Infer,
        }
    }

    /// The digests of the inputs; none of an upload.
    pub fn inputs(&self) -> &[TensorDigest] {
        match self {
            Deed::Upload => &[],
            Deed::Infer { inputs, .. } => inputs,
        }
    }

    /// The digests of the outputs; none of an upload.
    pub fn outputs(&self) -> &[TensorDigest] {
        match self {
            Deed::Upload => &[],
            Deed::Infer { outputs, .. } => outputs,
        }
    }
}

/// A tensor as a receipt names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorDigest {
    pub name: String,
    pub dtype: DType,
    pub shape: Shape,
    pub digest: Digest,
}

impl TensorDigest {
    /// Digests a tensor under its name.
    pub fn of(named: &NamedTensor) -> Self {
        Self::new(named, tensor_digest(&named.tensor))
    }

    /// A tensor whose digest is known.
    pub fn new(named: &NamedTensor, digest: Digest) -> Self {
        Self {
            name: named.name.clone(),
            dtype: named.tensor.dtype(),
            shape: named.tensor.shape().to_vec(),
            digest,
        }
    }

    /// Digests tensors in their order. A tensor that was asked for twice stands there once.
    pub fn of_all(tensors: &[NamedTensor]) -> Vec<Self> {
        let mut digests: Vec<Self> = Vec::with_capacity(tensors.len());
        for named in tensors {
            if !digests.iter().any(|digest| digest.name == named.name) {
                digests.push(Self::of(named));
            }
        }
        digests
    }

    fn write(&self) -> Value {
        let sizes = self.shape.iter().map(|&size| Value::from(size as u64));
        Value::Array(vec![
            Value::Text(self.name.clone()),
            Value::Text(self.dtype.as_str().to_owned()),
            Value::Array(sizes.collect()),
            Value::Bytes(self.digest.as_bytes().to_vec()),
        ])
    }

    fn to_json(&self) -> serde_json::Value {
        json!({
            "name": self.name,
            "datatype": self.dtype,
            "shape": self.shape,
            "digest": self.digest,
        })
    }

    fn read(value: &Value) -> Option<Self> {
        let [name, dtype, shape, digest] = value.as_array()?.as_slice() else {
            return None;
        };
        let size = |size: &Value| usize::try_from(size.as_integer()?).ok();
        Some(Self {
            name: name.as_text()?.to_owned(),
            dtype: DType::parse(dtype.as_text()?)?,
            shape: shape.as_array()?.iter().map(size).collect::<Option<_>>()?,
            digest: Digest::from_bytes(bytes(digest)?),
        })
    }
}

/// The digest of a tensor: of its type, its shape and its bytes, little-endian and row-major, behind a
/// prefix that nothing else is digested with.
pub fn tensor_digest(tensor: &Tensor) -> Digest {
    let mut hasher = TensorHasher::new(tensor);
    hasher.advance(usize::MAX);
    hasher.finish()
}

/// Takes the digest of a tensor step by step, for who must not be away for long.
pub struct TensorHasher {
    hash: Sha256,
    rest: Bytes,
}

impl TensorHasher {
    /// Begins with everything but the elements.
    pub fn new(tensor: &Tensor) -> Self {
        let mut hash = Sha256::new();
        hash.update(TENSOR_DOMAIN);
        hash.update(tensor.dtype().as_str());
        hash.update([0]);
        hash.update((tensor.shape().len() as u64).to_le_bytes());
        for &size in tensor.shape() {
            hash.update((size as u64).to_le_bytes());
        }
        let rest = tensor.data().clone();
        Self { hash, rest }
    }

    /// Takes at most so many bytes more, and says whether there are others after them.
    pub fn advance(&mut self, bytes: usize) -> bool {
        let taken = self.rest.split_to(bytes.min(self.rest.len()));
        self.hash.update(taken);
        !self.rest.is_empty()
    }

    /// The digest of what was taken.
    pub fn finish(self) -> Digest {
        Digest::from_bytes(self.hash.finalize().into())
    }
}

/// What a caller puts into a receipt to know it again: 1 to 64 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceiptNonce(Vec<u8>);

impl ReceiptNonce {
    /// Takes 1 to 64 bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let fits = (1..=NONCE_BYTES).contains(&bytes.len());
        fits.then(|| Self(bytes.to_vec()))
    }

    /// Reads 2 to 128 hexadecimal digits.
    pub fn from_hex(text: &str) -> Option<Self> {
        let fits = text.len() <= 2 * NONCE_BYTES;
        Self::from_bytes(&hex::decode(text).ok().filter(|_| fits)?)
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The hexadecimal digits.
    pub fn to_hex(&self) -> String {
        hex::encode(&self.0)
    }
}

/// The wish for a receipt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReceiptRequest {
    /// Comes back in the receipt.
    pub nonce: Option<ReceiptNonce>,
}

impl ReceiptRequest {
    /// Reads what stands in a header or a parameter: `true`, or a nonce in hexadecimal.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`]
    pub fn parse(text: &str) -> Result<Self, Error> {
        if text == "true" {
            return Ok(Self::default());
        }
        let nonce = ReceiptNonce::from_hex(text).map(Some);
        nonce.map(|nonce| Self { nonce }).ok_or_else(|| {
            let fact = "the receipt's nonce is not 1 to 64 bytes in hexadecimal";
            Error::new(Code::InvalidRequest, fact).with_remedy("send such a nonce, or true")
        })
    }
}

impl fmt::Display for ReceiptRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.nonce {
            Some(nonce) => f.write_str(&nonce.to_hex()),
            None => f.write_str("true"),
        }
    }
}

const CONFIG: &str = "config-sha256";
const INPUTS: &str = "inputs";
const ISSUED_AT: &str = "iat";
const KIND: &str = "kind";
const MODEL_DIGEST: &str = "model-sha256";
const MODEL_NAME: &str = "model-name";
const MODEL_VERSION: &str = "model-version";
const NONCE: &str = "nonce";
const OUTPUTS: &str = "outputs";
const REPLICA: &str = "replica";
const SERVER_VERSION: &str = "server-version";

impl Statement {
    /// The receipt: this statement, signed. `sign` signs with the Ed25519 key whose public half is
    /// `key`.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] for so many tensors that the receipt would be over
    /// [`RECEIPT_BYTES`].
    pub fn sign(&self, key: &[u8], sign: impl FnOnce(&[u8]) -> Vec<u8>) -> Result<Vec<u8>, Error> {
        let unsigned = message(&Digest::of(key), self.encode());
        let receipt = written(unsigned.create_signature(&[], sign).build());
        if receipt.len() > RECEIPT_BYTES {
            let fact = format!(
                "the receipt has {} bytes, at most {RECEIPT_BYTES} are given",
                receipt.len()
            );
            return Err(Error::new(Code::InvalidRequest, fact)
                .with_remedy("ask for fewer outputs, or for no receipt"));
        }
        Ok(receipt)
    }

    /// The payload: a CBOR map in its deterministic encoding.
    pub fn encode(&self) -> Vec<u8> {
        let text = |text: &str| Value::Text(text.to_owned());
        let bytes = |bytes: &[u8]| Value::Bytes(bytes.to_vec());
        let mut entries = vec![
            (KIND, text(self.deed.kind().as_str())),
            (MODEL_NAME, text(self.model_name.as_str())),
            (MODEL_VERSION, text(self.model_version.as_str())),
            (MODEL_DIGEST, bytes(self.model_digest.as_bytes())),
            (ISSUED_AT, Value::from(self.issued_at)),
            (CONFIG, bytes(self.config_digest.as_bytes())),
            (REPLICA, bytes(&self.replica)),
            (SERVER_VERSION, text(&self.server_version)),
        ];
        if let Some(nonce) = &self.nonce {
            entries.push((NONCE, bytes(nonce.as_bytes())));
        }
        if let Deed::Infer { inputs, outputs } = &self.deed {
            let list = |tensors: &[TensorDigest]| tensors.iter().map(TensorDigest::write).collect();
            entries.push((INPUTS, Value::Array(list(inputs))));
            entries.push((OUTPUTS, Value::Array(list(outputs))));
        }
        // RFC 8949, 4.2.1: by the bytes of the encoded keys, which begin with the length.
        entries.sort_by_key(|(key, _)| (key.len(), *key));
        let entries = entries.into_iter();
        let map = entries.map(|(key, value)| (Value::Text(key.to_owned()), value));
        to_cbor(&Value::Map(map.collect()))
    }

    /// `{"kind", "model_name", "model_version", "model_digest", "nonce", "issued_at",
    /// "config_digest", "replica", "server_version", "inputs", "outputs"}`, of a tensor `{"name",
    /// "datatype", "shape", "digest"}`. No check that it is true.
    pub fn to_json(&self) -> serde_json::Value {
        let list = |tensors: &[TensorDigest]| -> Vec<_> {
            tensors.iter().map(TensorDigest::to_json).collect()
        };
        json!({
            "kind": self.deed.kind().as_str(),
            "model_name": self.model_name.as_str(),
            "model_version": self.model_version.as_str(),
            "model_digest": self.model_digest,
            "nonce": self.nonce.as_ref().map(ReceiptNonce::to_hex),
            "issued_at": self.issued_at,
            "config_digest": self.config_digest,
            "replica": hex::encode(self.replica),
            "server_version": self.server_version,
            "inputs": list(self.deed.inputs()),
            "outputs": list(self.deed.outputs()),
        })
    }

    fn decode(payload: &[u8]) -> Result<Self, ClaimsError> {
        let Some(Value::Map(entries)) = from_cbor(payload) else {
            return Err(ClaimsError::NotAMap);
        };
        let entries = Entries::new(entries)?;
        Ok(Self {
            deed: read_deed(&entries)?,
            model_name: required(&entries, MODEL_NAME, |v| v.as_text()?.parse().ok())?,
            model_version: required(&entries, MODEL_VERSION, |v| v.as_text()?.parse().ok())?,
            model_digest: required(&entries, MODEL_DIGEST, bytes).map(Digest::from_bytes)?,
            nonce: entries.optional(NONCE, |v| ReceiptNonce::from_bytes(v.as_bytes()?))?,
            issued_at: required(&entries, ISSUED_AT, |v| v.as_integer()?.try_into().ok())?,
            config_digest: required(&entries, CONFIG, bytes).map(Digest::from_bytes)?,
            replica: required(&entries, REPLICA, bytes)?,
            server_version: required(&entries, SERVER_VERSION, |v| Some(v.as_text()?.to_owned()))?,
        })
    }
}

/// A receipt that was read. Nobody has checked its signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedStatement {
    /// What it says.
    pub statement: Statement,
    /// SHA-256 of the Ed25519 key that it says signed it.
    pub key_id: Digest,
    /// What the signature is over.
    pub signed_bytes: Vec<u8>,
    pub signature: [u8; SIGNATURE_BYTES],
}

impl SignedStatement {
    /// Reads a receipt from a stranger. There is one form of each: what would be read the same and
    /// is written otherwise is refused.
    ///
    /// # Errors
    /// Says what cannot be read.
    pub fn decode(receipt: &[u8]) -> Result<Self, ReceiptError> {
        if receipt.len() > RECEIPT_BYTES {
            return Err(ReceiptError::TooLong);
        }
        let read = CoseSign1::from_tagged_slice(receipt).map_err(|_| ReceiptError::NotSigned)?;
        let key_id = read.protected.header.key_id.as_slice().try_into();
        let key_id = Digest::from_bytes(key_id.map_err(|_| ReceiptError::Header)?);
        let payload = read.payload.clone().ok_or(ReceiptError::Header)?;
        let signature = read.signature.as_slice().try_into();
        let signature: [u8; _] = signature.map_err(|_| ReceiptError::Header)?;
        // So nothing unsigned, no other header and no second spelling can be in it.
        let again = message(&key_id, payload.clone()).signature(signature.to_vec());
        if written(again.build()) != receipt || !is_deterministic(&payload) {
            return Err(ReceiptError::Header);
        }
        Ok(Self {
            statement: Statement::decode(&payload)?,
            key_id,
            signed_bytes: read.tbs_data(&[]),
            signature,
        })
    }
}

/// Why a receipt cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReceiptError {
    /// Over 32 KiB.
    TooLong,
    /// Not one tagged COSE_Sign1 message and nothing after it.
    NotSigned,
    /// The headers or the encoding are not those of a receipt.
    Header,
    /// What is signed is no statement.
    Payload(ClaimsError),
}

impl fmt::Display for ReceiptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong => write!(f, "the receipt is longer than {RECEIPT_BYTES} bytes"),
            Self::NotSigned => f.write_str("the receipt is not one COSE_Sign1 message"),
            Self::Header => f.write_str("headers or encoding are not those of a receipt"),
            Self::Payload(error) => write!(f, "in the receipt's payload {error}"),
        }
    }
}

impl std::error::Error for ReceiptError {}

impl From<ClaimsError> for ReceiptError {
    fn from(error: ClaimsError) -> Self {
        Self::Payload(error)
    }
}

fn message(key_id: &Digest, payload: Vec<u8>) -> CoseSign1Builder {
    let protected = HeaderBuilder::new()
        .algorithm(iana::Algorithm::EdDSA)
        .content_type(CONTENT_TYPE.to_owned())
        .key_id(key_id.as_bytes().to_vec());
    CoseSign1Builder::new()
        .protected(protected.build())
        .payload(payload)
}

fn written(message: CoseSign1) -> Vec<u8> {
    let bytes = message.to_tagged_vec();
    bytes.expect("a message of known headers encodes into memory")
}

/// Whether this is the one encoding of what it says (RFC 8949, 4.2.1).
fn is_deterministic(payload: &[u8]) -> bool {
    from_cbor(payload).is_some_and(|value| is_sorted(&value) && to_cbor(&value) == payload)
}

fn is_sorted(value: &Value) -> bool {
    match value {
        Value::Array(list) => list.iter().all(is_sorted),
        Value::Map(entries) => {
            let keys: Vec<_> = entries.iter().map(|(key, _)| to_cbor(key)).collect();
            keys.is_sorted()
                && entries
                    .iter()
                    .all(|(key, value)| is_sorted(key) && is_sorted(value))
        }
        Value::Tag(_, value) => is_sorted(value),
        _ => true,
    }
}

fn read_deed(entries: &Entries) -> Result<Deed, ClaimsError> {
    let kind = required(entries, KIND, |kind| Some(kind.as_text()?.to_owned()))?;
    match kind.as_str() {
        "upload" => Ok(Deed::Upload),
        "infer" => Ok(Deed::Infer {
            inputs: required(entries, INPUTS, read_tensors)?,
            outputs: required(entries, OUTPUTS, read_tensors)?,
        }),
        _ => Err(ClaimsError::Claim(KIND)),
    }
}

/// Two tensors of one name would let two readers see two truths.
fn read_tensors(list: &Value) -> Option<Vec<TensorDigest>> {
    let list = list.as_array()?.iter().map(TensorDigest::read);
    let tensors: Vec<TensorDigest> = list.collect::<Option<_>>()?;
    let twin = |(i, tensor): (usize, &TensorDigest)| {
        let earlier = &tensors[..i];
        earlier.iter().any(|earlier| earlier.name == tensor.name)
    };
    (!tensors.iter().enumerate().any(twin)).then_some(tensors)
}

fn required<T>(
    entries: &Entries,
    key: &'static str,
    read: impl Fn(&Value) -> Option<T>,
) -> Result<T, ClaimsError> {
    let value = entries.optional(key, read)?;
    value.ok_or(ClaimsError::Claim(key))
}

fn bytes(value: &Value) -> Option<[u8; 32]> {
    value.as_bytes()?.as_slice().try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str, dtype: DType, shape: &[usize], data: &'static [u8]) -> NamedTensor {
        let tensor = Tensor::new(dtype, shape.to_vec(), data.into()).unwrap();
        NamedTensor::new(name, tensor)
    }

    fn statement() -> Statement {
        let (x, y) = (
            tensor("x", DType::F32, &[1], &[0, 0, 0x80, 0x3f]),
            tensor("y", DType::I64, &[], &[1, 0, 0, 0, 0, 0, 0, 0]),
        );
        Statement {
            deed: Deed::Infer {
                inputs: TensorDigest::of_all(&[x]),
                outputs: TensorDigest::of_all(&[y]),
            },
            model_name: "m".parse().unwrap(),
            model_version: "1".parse().unwrap(),
            model_digest: Digest::from_bytes([1; 32]),
            nonce: ReceiptNonce::from_bytes(&[2; 16]),
            issued_at: 1_700_000_000,
            config_digest: Digest::from_bytes([3; 32]),
            replica: [4; 32],
            server_version: "0.1.0".into(),
        }
    }

    fn signed(statement: &Statement) -> Vec<u8> {
        statement.sign(&[9; 32], |_| vec![8; 64]).unwrap()
    }

    /// A receipt whose payload is the statement's after `change`.
    fn changed(change: impl FnOnce(&mut Vec<(Value, Value)>)) -> Result<Statement, ReceiptError> {
        let Some(Value::Map(mut entries)) = from_cbor(&statement().encode()) else {
            panic!("a statement is a map")
        };
        change(&mut entries);
        entries.sort_by_key(|(key, _)| to_cbor(key));
        with_payload(to_cbor(&Value::Map(entries)))
    }

    fn with_payload(payload: Vec<u8>) -> Result<Statement, ReceiptError> {
        let receipt = message(&Digest::of(&[9; 32]), payload).signature(vec![8; 64]);
        SignedStatement::decode(&written(receipt.build())).map(|signed| signed.statement)
    }

    #[test]
    fn a_statement_has_one_spelling() {
        let payload = statement().encode();
        assert_eq!(with_payload(payload.clone()).unwrap(), statement());
        let Some(Value::Map(mut entries)) = from_cbor(&payload) else {
            panic!("a statement is a map")
        };
        entries.reverse();
        let unsorted = to_cbor(&Value::Map(entries));
        // The number of entries in two bytes instead of one, and a map without a number.
        let long = [&[0xb8, payload[0] & 0x1f], &payload[1..]].concat();
        let open = [&[0xbf], &payload[1..], &[0xff]].concat();
        for other in [unsorted, long, open] {
            assert!(matches!(from_cbor(&other), Some(Value::Map(_))));
            assert_eq!(with_payload(other).unwrap_err(), ReceiptError::Header);
        }
    }

    #[test]
    fn statements_round_trip() {
        let upload = Statement {
            deed: Deed::Upload,
            nonce: None,
            ..statement()
        };
        for statement in [statement(), upload] {
            let read = SignedStatement::decode(&signed(&statement)).unwrap();
            assert_eq!(read.statement, statement);
            assert_eq!(read.key_id, Digest::of(&[9; 32]));
            assert_eq!(read.signature, [8; 64]);
        }
    }

    // The vectors of docs/receipts.md.
    #[test]
    fn tensors_have_the_documented_digests() {
        let words = Tensor::from_strings(vec![2], &["a", "ü"]).unwrap();
        for (tensor, digest) in [
            (
                tensor("x", DType::F32, &[1, 2], &[0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0]).tensor,
                VECTORS[0],
            ),
            (words, VECTORS[1]),
            (tensor("x", DType::Bool, &[], &[1]).tensor, VECTORS[2]),
        ] {
            assert_eq!(tensor_digest(&tensor).to_hex(), digest, "{tensor:?}");
            let page = include_str!("../../../docs/receipts.md");
            assert!(page.contains(digest), "{digest} is not documented");
        }
    }

    const VECTORS: [&str; 3] = [
        "a311a9515e0f2c0fa5cab01fdd703687f8a036c0fce72d86672550e76d65ff9b",
        "9b51a8d87d40e7b62f73e81360574f8b17ca18ba8fd62a5cc3743d54bfd970f5",
        "b710ac8b8147c793ed1cbea2ebfce3f7eeefbb89efcaf76820efbd1bb2d13800",
    ];

    #[test]
    fn a_digest_is_the_same_in_steps() {
        let x = tensor("x", DType::U8, &[10], &[7; 10]).tensor;
        for step in [1, 3, 10, 11] {
            let mut hasher = TensorHasher::new(&x);
            while hasher.advance(step) {}
            assert_eq!(hasher.finish(), tensor_digest(&x));
        }
    }

    #[test]
    fn a_digest_tells_types_and_shapes_apart() {
        let zeros: &[u8] = &[0; 8];
        let mut digests: Vec<_> = [
            (DType::F32, &[2][..]),
            (DType::I32, &[2]),
            (DType::F32, &[1, 2]),
            (DType::F32, &[2, 1]),
            (DType::F64, &[1]),
            (DType::F64, &[]),
            (DType::U8, &[8]),
        ]
        .iter()
        .map(|(dtype, shape)| tensor_digest(&tensor("x", *dtype, shape, zeros).tensor))
        .collect();
        let all = digests.len();
        digests.sort();
        digests.dedup();
        assert_eq!(digests.len(), all);
    }

    #[test]
    fn keys_stand_in_the_deterministic_order() {
        let Some(Value::Map(entries)) = from_cbor(&statement().encode()) else {
            panic!("a statement is a map")
        };
        let keys: Vec<_> = entries.iter().map(|(key, _)| to_cbor(key)).collect();
        assert_eq!(keys.len(), 11);
        assert!(keys.is_sorted());
    }

    #[test]
    fn unknown_entries_are_tolerated_and_duplicates_are_not() {
        let unknown = (Value::Text("later".into()), Value::Null);
        assert_eq!(changed(|e| e.push(unknown)), Ok(statement()));
        let error = changed(|e| e.push(e[0].clone())).unwrap_err();
        let twin = ClaimsError::Duplicate(ISSUED_AT.into());
        assert_eq!(error, ReceiptError::Payload(twin));
        let doubled = |entries: &mut Vec<(Value, Value)>| {
            let inputs = entries
                .iter_mut()
                .find(|(k, _)| k.as_text() == Some(INPUTS));
            let list = inputs.unwrap().1.as_array_mut().unwrap();
            list.push(list[0].clone());
        };
        let error = changed(doubled).unwrap_err();
        assert_eq!(error, ReceiptError::Payload(ClaimsError::Claim(INPUTS)));
    }

    #[test]
    fn each_entry_is_needed_in_its_form() {
        let count = 11;
        for i in 0..count {
            let missing = changed(|entries| drop(entries.remove(i)));
            let wrong = changed(|entries| entries[i].1 = Value::Bool(true));
            assert!(wrong.is_err(), "{i}");
            // Only the nonce may be missing.
            let alone = missing.is_ok_and(|statement| statement.nonce.is_none());
            let nonce = changed(|entries| entries.retain(|(k, _)| k.as_text() != Some(NONCE)));
            assert!(!alone || nonce.is_ok(), "{i}");
        }
        assert!(changed(|entries| entries.clear()).is_err());
    }

    #[test]
    fn there_is_one_form_of_a_receipt() {
        let whole = signed(&statement());
        for end in 0..whole.len() {
            assert!(SignedStatement::decode(&whole[..end]).is_err());
        }
        let longer = [&whole[..], &[0]].concat();
        let not_tagged = &whole[1..];
        let mut unprotected = message(&Digest::of(&[9; 32]), statement().encode())
            .signature(vec![8; 64])
            .build();
        unprotected.unprotected.key_id = vec![1];
        let mut other_type = unprotected.clone();
        other_type.unprotected.key_id.clear();
        other_type.protected.header.content_type = None;
        let mut short = unprotected.clone();
        short.unprotected.key_id.clear();
        short.signature.pop();
        for other in [
            &longer[..],
            not_tagged,
            &written(unprotected),
            &written(other_type),
            &written(short),
            &vec![0; RECEIPT_BYTES + 1],
        ] {
            assert!(SignedStatement::decode(other).is_err());
        }
    }

    #[test]
    fn a_receipt_of_too_many_tensors_is_not_made() {
        let x = tensor("x", DType::U8, &[1], &[1]);
        let many = (0..1000).map(|i| NamedTensor::new(i.to_string(), x.tensor.clone()));
        let statement = Statement {
            deed: Deed::Infer {
                inputs: TensorDigest::of_all(&many.collect::<Vec<_>>()),
                outputs: TensorDigest::of_all(&[x.clone(), x]),
            },
            ..statement()
        };
        assert_eq!(statement.deed.outputs().len(), 1);
        let error = statement.sign(&[9; 32], |_| vec![8; 64]).unwrap_err();
        assert_eq!(error.code(), Code::InvalidRequest);
    }

    #[test]
    fn a_wish_is_true_or_a_nonce() {
        assert_eq!(ReceiptRequest::parse("true").unwrap().nonce, None);
        let asked = ReceiptRequest::parse("00ff").unwrap();
        assert_eq!(asked.nonce.as_ref().unwrap().as_bytes(), [0, 255]);
        assert_eq!(asked.to_string(), "00ff");
        let longest = "0".repeat(2 * NONCE_BYTES);
        ReceiptRequest::parse(&longest).unwrap();
        for bad in ["", "0", "xx", "false", &(longest + "00")] {
            assert!(ReceiptRequest::parse(bad).is_err(), "{bad}");
        }
    }
}
