use core::time::Duration;

use bytes::Bytes;

use crate::oip::protobuf::{Fields, Message, Value, each_varint, malformed, text};
use crate::{Code, DType, DcapCollateral, Digest, Error, Result};

/// The element types of 0.3.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Datum {
    #[default]
    F32,
    F64,
    I32,
    I64,
    U32,
    U64,
}

impl Datum {
    const ALL: [(Self, DType); 6] = [
        (Self::F32, DType::F32),
        (Self::F64, DType::F64),
        (Self::I32, DType::I32),
        (Self::I64, DType::I64),
        (Self::U32, DType::U32),
        (Self::U64, DType::U64),
    ];

    /// The element type; `None` for one that 0.3 does not have.
    pub fn of(dtype: DType) -> Option<Self> {
        let found = Self::ALL.iter().find(|(_, own)| *own == dtype);
        found.map(|(datum, _)| *datum)
    }

    /// What today's models call it.
    pub fn dtype(self) -> DType {
        Self::ALL[self as usize].1
    }

    /// The number on the wire.
    pub fn number(self) -> u64 {
        self as u64
    }

    /// The type of this number.
    ///
    /// # Errors
    /// [`Code::InputDType`]
    pub fn from_number(number: u64) -> Result<Self> {
        let place = usize::try_from(number).ok();
        let found = place.and_then(|place| Self::ALL.get(place));
        found.map(|(datum, _)| *datum).ok_or_else(|| {
            let fact = format!("there is no datum type {number}; BlindAI 0.3 has 0 to 5");
            Error::new(Code::InputDType, fact)
        })
    }
}

/// A message of a request that comes in pieces.
pub trait Piece: Default + PartialEq {
    /// Reads a message: what stands in all of them, and the data of this one.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`]
    fn read(message: Bytes) -> Result<(Self, Bytes)> {
        let (mut head, mut data) = (Self::default(), Bytes::new());
        for field in Fields::of(message) {
            match field? {
                (1, Value::Bytes(bytes)) => data = bytes,
                field => head.take(field)?,
            }
        }
        Ok((head, data))
    }

    /// Takes a field beside the data.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`]
    fn take(&mut self, field: (u32, Value)) -> Result<()>;
}

/// `SendModelRequest` without its data and without who sends it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SendModel {
    /// The size of the whole model, in bytes.
    pub length: u64,
    /// The shape of the input.
    pub input_fact: Vec<i32>,
    pub datum: Datum,
    pub datum_output: Datum,
    pub sign: bool,
    pub model_name: String,
    pub nonce: Bytes,
    /// The model that the server holds already, and its version: then there is no data.
    pub held: Option<(Digest, String)>,
}

impl Piece for SendModel {
    fn take(&mut self, field: (u32, Value)) -> Result<()> {
        match field {
            (2, Value::Varint(length)) => self.length = length,
            (3, fact) => add_sizes(&mut self.input_fact, fact)?,
            (4, Value::Varint(number)) => self.datum = Datum::from_number(number)?,
            (5, Value::Varint(sign)) => self.sign = sign != 0,
            (7, Value::Bytes(name)) => self.model_name = short_text(&name)?,
            (8, Value::Varint(number)) => self.datum_output = Datum::from_number(number)?,
            (100, Value::Bytes(nonce)) => self.nonce = checked_nonce(nonce)?,
            (101, Value::Bytes(hash)) => self.held_mut().0 = digest(&hash)?,
            (102, Value::Bytes(version)) => self.held_mut().1 = short_text(&version)?,
            _ => {}
        }
        Ok(())
    }
}

impl SendModel {
    /// The message with this data.
    pub fn write(&self, data: &[u8]) -> Bytes {
        Message::of(|m| {
            m.bytes(1, data);
            m.integer(2, self.length);
            m.integers(3, self.input_fact.iter().map(|&size| i64::from(size)));
            m.integer(4, self.datum.number());
            m.flag(5, self.sign);
            m.text(7, &self.model_name);
            m.integer(8, self.datum_output.number());
            m.bytes(100, &self.nonce);
            if let Some((digest, version)) = &self.held {
                m.bytes(101, digest.as_bytes());
                m.text(102, version);
            }
        })
    }

    fn held_mut(&mut self) -> &mut (Digest, String) {
        let nothing = || (Digest::from_bytes([0; 32]), String::new());
        self.held.get_or_insert_with(nothing)
    }
}

/// `RunModelRequest` without its data and without who sends it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunModel {
    pub sign: bool,
    pub nonce: Bytes,
    /// Empty for the model that was sent last.
    pub model: ModelChoice,
}

/// The model to run, and the shape of its input.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelChoice {
    pub name: String,
    pub version: String,
    pub input_fact: Vec<i32>,
}

impl Piece for RunModel {
    fn take(&mut self, field: (u32, Value)) -> Result<()> {
        match field {
            (2, Value::Varint(sign)) => self.sign = sign != 0,
            (100, Value::Bytes(nonce)) => self.nonce = checked_nonce(nonce)?,
            (101, Value::Bytes(name)) => self.model.name = short_text(&name)?,
            (102, Value::Bytes(version)) => self.model.version = short_text(&version)?,
            (103, fact) => add_sizes(&mut self.model.input_fact, fact)?,
            _ => {}
        }
        Ok(())
    }
}

impl RunModel {
    /// The message with this data.
    pub fn write(&self, data: &[u8]) -> Bytes {
        Message::of(|m| {
            m.bytes(1, data);
            m.flag(2, self.sign);
            m.bytes(100, &self.nonce);
            m.text(101, &self.model.name);
            m.text(102, &self.model.version);
            let sizes = self.model.input_fact.iter();
            m.integers(103, sizes.map(|&size| i64::from(size)));
        })
    }
}

/// What the server says, signed or not.
#[derive(Clone, Debug, PartialEq)]
pub struct Payload {
    /// When it was made, since 1970.
    pub issued_at: Duration,
    /// What the caller sent as such.
    pub nonce: Bytes,
    pub answer: Answer,
}

/// The two kinds of answers. Digests are there only in signed ones.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    Upload {
        model_hash: Option<Digest>,
        input_fact: Vec<i32>,
    },
    Run {
        /// A CBOR list of numbers.
        output: Bytes,
        datum_output: Datum,
        /// Of the input's bytes.
        input_hash: Option<Digest>,
        /// Not in answers of the original.
        model_hash: Option<Digest>,
    },
}

impl Payload {
    /// `Payload`.
    pub fn write(&self) -> Bytes {
        Message::of(|m| {
            m.message(1, |m| {
                m.message(1, |m| {
                    m.integer(1, self.issued_at.as_secs());
                    m.integer(2, self.issued_at.subsec_nanos().into());
                });
                m.bytes(100, &self.nonce);
            });
            match &self.answer {
                Answer::Upload {
                    model_hash,
                    input_fact,
                } => m.message(2, |m| {
                    m.digest(1, model_hash.as_ref());
                    m.integers(2, input_fact.iter().map(|&size| i64::from(size)));
                }),
                Answer::Run {
                    output,
                    datum_output,
                    input_hash,
                    model_hash,
                } => m.message(3, |m| {
                    m.bytes(1, output);
                    m.integer(2, datum_output.number());
                    m.digest(3, input_hash.as_ref());
                    m.digest(100, model_hash.as_ref());
                }),
            }
        })
    }

    /// Reads `Payload`, which may come from a file.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`]
    pub fn read(message: Bytes) -> Result<Self> {
        let (mut issued_at, mut nonce, mut answer) = (Duration::ZERO, Bytes::new(), None);
        for field in Fields::of(message) {
            match field? {
                (1, Value::Bytes(header)) => (issued_at, nonce) = read_header(header)?,
                (2, Value::Bytes(upload)) => answer = Some(read_upload(upload)?),
                (3, Value::Bytes(run)) => answer = Some(read_run(run)?),
                _ => {}
            }
        }
        let answer = answer.ok_or_else(malformed)?;
        Ok(Self {
            issued_at,
            nonce,
            answer,
        })
    }
}

/// What `GetSgxQuoteWithCollateral` answers.
pub struct SgxEvidence<'a> {
    pub quote: &'a [u8],
    pub collateral: &'a DcapCollateral,
    /// DER.
    pub certificate: &'a [u8],
}

impl SgxEvidence<'_> {
    /// `SgxQuoteWithCollateral`.
    pub fn write(&self) -> Bytes {
        let Self {
            quote, collateral, ..
        } = self;
        Message::of(|m| {
            m.bytes(1, quote);
            m.message(2, |m| {
                // Of the structure, as Intel's library counts them.
                m.integer(1, 3);
                m.text(2, &collateral.pck_crl_issuer_chain);
                m.text(3, &hex::encode(&collateral.root_ca_crl));
                m.text(4, &hex::encode(&collateral.pck_crl));
                m.text(5, &collateral.tcb_info_issuer_chain);
                m.text(6, &collateral.tcb_info);
                m.text(7, &collateral.qe_identity_issuer_chain);
                m.text(8, &collateral.qe_identity);
                let chain = collateral.pck_certificate_chain.as_deref();
                let (leaf, issuers) = split_chain(chain.unwrap_or_default());
                m.text(9, leaf);
                m.text(10, issuers);
            });
            m.bytes(3, self.certificate);
        })
    }
}

/// Writes `SignedReply`; an empty signature is none.
pub fn write_reply(payload: &[u8], signature: &[u8]) -> Bytes {
    Message::of(|m| {
        m.bytes(1, payload);
        m.bytes(2, signature);
    })
}

/// Reads `SignedReply`: payload and signature.
///
/// # Errors
/// [`Code::InvalidRequest`]
pub fn read_reply(message: Bytes) -> Result<(Bytes, Bytes)> {
    let (mut payload, mut signature) = (Bytes::new(), Bytes::new());
    for field in Fields::of(message) {
        match field? {
            (1, Value::Bytes(bytes)) => payload = bytes,
            (2, Value::Bytes(bytes)) => signature = bytes,
            _ => {}
        }
    }
    Ok((payload, signature))
}

/// Writes a message whose only field is text or bytes: `ServerInfo` and its like.
pub fn write_text(value: &[u8]) -> Bytes {
    Message::of(|m| m.bytes(1, value))
}

impl Message {
    /// Bytes; left out when there are none.
    pub(super) fn bytes(&mut self, number: u32, value: &[u8]) {
        if !value.is_empty() {
            self.element(number, value);
        }
    }

    fn digest(&mut self, number: u32, value: Option<&Digest>) {
        if let Some(digest) = value {
            self.element(number, digest.as_bytes());
        }
    }
}

fn read_header(header: Bytes) -> Result<(Duration, Bytes)> {
    let (mut issued_at, mut nonce) = (Duration::ZERO, Bytes::new());
    for field in Fields::of(header) {
        match field? {
            (1, Value::Bytes(timestamp)) => issued_at = read_timestamp(timestamp)?,
            (100, Value::Bytes(bytes)) => nonce = checked_nonce(bytes)?,
            _ => {}
        }
    }
    Ok((issued_at, nonce))
}

fn read_timestamp(timestamp: Bytes) -> Result<Duration> {
    let (mut seconds, mut nanos) = (0, 0);
    for field in Fields::of(timestamp) {
        match field? {
            (1, Value::Varint(value)) => seconds = value,
            (2, Value::Varint(value)) => nanos = value,
            _ => {}
        }
    }
    let nanos = u32::try_from(nanos).ok().filter(|&nanos| nanos < NANOS);
    // Before 1970 nothing was signed, and such times are written as huge numbers.
    let known = i64::try_from(seconds).is_ok();
    let nanos = nanos.filter(|_| known).ok_or_else(malformed)?;
    Ok(Duration::new(seconds, nanos))
}

fn read_upload(payload: Bytes) -> Result<Answer> {
    let (mut model_hash, mut input_fact) = (None, Vec::new());
    for field in Fields::of(payload) {
        match field? {
            (1, Value::Bytes(hash)) => model_hash = Some(digest(&hash)?),
            (2, fact) => add_sizes(&mut input_fact, fact)?,
            _ => {}
        }
    }
    Ok(Answer::Upload {
        model_hash,
        input_fact,
    })
}

fn read_run(payload: Bytes) -> Result<Answer> {
    let (mut output, mut datum_output) = (Bytes::new(), Datum::default());
    let (mut input_hash, mut model_hash) = (None, None);
    for field in Fields::of(payload) {
        match field? {
            (1, Value::Bytes(bytes)) => output = bytes,
            (2, Value::Varint(number)) => datum_output = Datum::from_number(number)?,
            (3, Value::Bytes(hash)) => input_hash = Some(digest(&hash)?),
            (100, Value::Bytes(hash)) => model_hash = Some(digest(&hash)?),
            _ => {}
        }
    }
    Ok(Answer::Run {
        output,
        datum_output,
        input_hash,
        model_hash,
    })
}

fn add_sizes(sizes: &mut Vec<i32>, field: Value) -> Result<()> {
    each_varint(field, |size| {
        // Negative numbers come as 64 bits.
        let size = i32::try_from(size as i64).map_err(|_| malformed())?;
        if sizes.len() == RANK {
            let fact = format!("the shape has more than {RANK} sizes");
            return Err(Error::new(Code::InputShape, fact));
        }
        sizes.push(size);
        Ok(())
    })
}

fn short_text(value: &Bytes) -> Result<String> {
    match value.len() <= TEXT_BYTES {
        true => text(value),
        false => Err(Error::new(Code::InvalidRequest, "a name is too long")),
    }
}

fn checked_nonce(nonce: Bytes) -> Result<Bytes> {
    match nonce.len() <= NONCE_BYTES {
        true => Ok(nonce),
        false => {
            let fact = format!("the nonce has more than {NONCE_BYTES} bytes");
            Err(Error::new(Code::InvalidRequest, fact))
        }
    }
}

fn digest(bytes: &[u8]) -> Result<Digest> {
    let bytes = bytes.try_into().map_err(|_| malformed())?;
    Ok(Digest::from_bytes(bytes))
}

/// The first certificate of a chain in PEM, and the others.
fn split_chain(chain: &str) -> (&str, &str) {
    let end = chain.find(PEM_END).map(|place| place + PEM_END.len());
    chain.split_at(end.unwrap_or(0))
}

const PEM_END: &str = "-----END CERTIFICATE-----\n";
const NANOS: u32 = 1_000_000_000;
/// The most sizes of a shape, as of any tensor here.
const RANK: usize = 64;
/// File systems take no longer names.
const TEXT_BYTES: usize = 1024;
const NONCE_BYTES: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(byte: u8) -> Digest {
        Digest::from_bytes([byte; 32])
    }

    #[test]
    fn requests_are_read_as_they_were_written() {
        let send = SendModel {
            length: 7,
            input_fact: vec![1, -1, i32::MAX],
            datum: Datum::I64,
            datum_output: Datum::U64,
            sign: true,
            model_name: "m.onnx".to_owned(),
            nonce: Bytes::from_static(&[5; 32]),
            held: Some((hash(1), "2".to_owned())),
        };
        let (read, data) = SendModel::read(send.write(b"model")).unwrap();
        assert_eq!((read, &data[..]), (send, &b"model"[..]));
        let run = RunModel {
            sign: true,
            nonce: Bytes::from_static(&[5; 32]),
            model: ModelChoice {
                name: "m".to_owned(),
                version: "1".to_owned(),
                input_fact: vec![1, 3],
            },
        };
        let (read, data) = RunModel::read(run.write(b"input")).unwrap();
        assert_eq!((read, &data[..]), (run, &b"input"[..]));
    }

    // Written by the original client, with who sends it.
    #[test]
    fn a_message_of_the_original_is_read() {
        let message = b"\x0a\x03abc\x10\x03\x1a\x02\x01\x02\x20\x03\x28\x01\x32\x04\x0a\x02id\x3a\x06m.onnx\x40\x01";
        let (read, data) = SendModel::read(Bytes::from_static(message)).unwrap();
        assert_eq!(&data[..], b"abc");
        assert_eq!(read.input_fact, [1, 2]);
        assert_eq!((read.datum, read.datum_output), (Datum::I64, Datum::F64));
        assert_eq!((read.length, read.sign), (3, true));
        assert_eq!(read.model_name, "m.onnx");
        assert_eq!(read.held, None);
    }

    #[test]
    fn payloads_are_read_as_they_were_written() {
        let answers = [
            Answer::Upload {
                model_hash: Some(hash(1)),
                input_fact: vec![1, 3],
            },
            Answer::Run {
                output: Bytes::from_static(b"\x80"),
                datum_output: Datum::I64,
                input_hash: Some(hash(2)),
                model_hash: None,
            },
        ];
        for answer in answers {
            let payload = Payload {
                issued_at: Duration::new(1_700_000_000, 5),
                nonce: Bytes::from_static(b"n"),
                answer,
            };
            assert_eq!(Payload::read(payload.write()), Ok(payload.clone()));
            let (read, signature) = read_reply(write_reply(&payload.write(), &[7; 64])).unwrap();
            assert_eq!((read, signature.len()), (payload.write(), 64));
        }
    }

    #[test]
    fn what_is_out_of_bounds_is_refused() {
        let many = Message::of(|m| m.integers(3, [1; RANK + 1]));
        assert_eq!(code(SendModel::read(many)), Code::InputShape);
        let wide = Message::of(|m| m.integers(3, [1 << 31]));
        assert_eq!(code(SendModel::read(wide)), Code::InvalidRequest);
        let datum = Message::of(|m| m.integer(4, 6));
        assert_eq!(code(SendModel::read(datum)), Code::InputDType);
        let nonce = Message::of(|m| m.bytes(100, &[0; NONCE_BYTES + 1]));
        assert_eq!(code(RunModel::read(nonce)), Code::InvalidRequest);
        let name = Message::of(|m| m.bytes(7, &[b'x'; TEXT_BYTES + 1]));
        assert_eq!(code(SendModel::read(name)), Code::InvalidRequest);
        let before_1970 = Message::of(|m| {
            m.message(1, |m| m.message(1, |m| m.integer(1, u64::MAX)));
            m.message(2, |_| {});
        });
        assert_eq!(code(Payload::read(before_1970)), Code::InvalidRequest);
        assert_eq!(code(Payload::read(Bytes::new())), Code::InvalidRequest);
    }

    #[test]
    fn the_leaf_of_a_chain_is_told_from_its_issuers() {
        let one = format!("-----BEGIN CERTIFICATE-----\nA\n{PEM_END}");
        let chain = format!("{one}{one}{one}");
        assert_eq!(split_chain(&chain), (&*one, &*format!("{one}{one}")));
        assert_eq!(split_chain("text"), ("", "text"));
    }

    fn code<T: std::fmt::Debug>(result: Result<T>) -> Code {
        result.unwrap_err().code()
    }
}
