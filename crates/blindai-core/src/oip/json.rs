//! Tensor elements as JSON numbers, strings and Booleans, and what of JSON may take room.

use std::fmt;
use std::io;
use std::marker::PhantomData;

use bytes::Bytes;
use half::{bf16, f16};
use serde::de::{DeserializeSeed, Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;

use super::Room;
use crate::{Code, DType, Error, Result, Tensor};

/// Reads a JSON array, nested or flat, into little-endian bytes.
pub fn read_elements(dtype: DType, data: &RawValue, room: Room<'_>) -> Result<Bytes> {
    let most = most_bytes(dtype, data.get());
    room(most)?;
    let mut bytes = Vec::with_capacity(usize::try_from(most).unwrap_or(0));
    let mut deserializer = serde_json::Deserializer::from_str(data.get());
    Elements {
        dtype,
        bytes: &mut bytes,
    }
    .deserialize(&mut deserializer)
    // The parser's message would quote the element.
    .map_err(|error| {
        let column = error.column();
        let fact = format!("the data are not {dtype} elements, at column {column}");
        Error::new(Code::InputData, fact)
    })?;
    Ok(bytes.into())
}

/// The bytes that the elements take at most: a number of eight bytes may be one digit.
fn most_bytes(dtype: DType, text: &str) -> u64 {
    let elements = 1 + text.bytes().filter(|&byte| byte == b',').count() as u64;
    match dtype.size() {
        Some(size) => elements * size as u64,
        // Each with its length, and none longer than it is written.
        None => elements * 4 + text.len() as u64,
    }
}

/// Checks that JSON can say the elements: it has no NaN and no infinity, and for null they would be
/// lost without a word.
///
/// # Errors
/// [`Code::OutputNotJson`]
pub fn check_finite(tensor: &Tensor) -> Result<()> {
    let finite = match tensor.dtype() {
        DType::F16 => all_finite(tensor, |b| f16::from_le_bytes(b).into()),
        DType::BF16 => all_finite(tensor, |b| bf16::from_le_bytes(b).into()),
        DType::F32 => all_finite(tensor, |b| f32::from_le_bytes(b).into()),
        DType::F64 => all_finite(tensor, f64::from_le_bytes),
        _ => true,
    };
    if !finite {
        let fact = "the output holds a NaN or an infinity, which JSON cannot say";
        return Err(Error::new(Code::OutputNotJson, fact));
    }
    Ok(())
}

fn all_finite<const N: usize>(tensor: &Tensor, read: impl Fn([u8; N]) -> f64) -> bool {
    let (elements, _) = tensor.data().as_chunks::<N>();
    elements.iter().all(|bytes| read(*bytes).is_finite())
}

/// A tensor that is written as a flat JSON array, without a copy of it.
pub struct Flat<'a>(pub &'a Tensor);

impl Serialize for Flat<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let tensor = self.0;
        match tensor.dtype() {
            DType::Bool => numbers(tensor, to, |[byte]: [u8; 1]| byte == 1),
            DType::U8 => numbers(tensor, to, u8::from_le_bytes),
            DType::U16 => numbers(tensor, to, u16::from_le_bytes),
            DType::U32 => numbers(tensor, to, u32::from_le_bytes),
            DType::U64 => numbers(tensor, to, u64::from_le_bytes),
            DType::I8 => numbers(tensor, to, i8::from_le_bytes),
            DType::I16 => numbers(tensor, to, i16::from_le_bytes),
            DType::I32 => numbers(tensor, to, i32::from_le_bytes),
            DType::I64 => numbers(tensor, to, i64::from_le_bytes),
            DType::F16 => numbers(tensor, to, |b| f16::from_le_bytes(b).to_f32()),
            DType::BF16 => numbers(tensor, to, |b| bf16::from_le_bytes(b).to_f32()),
            DType::F32 => numbers(tensor, to, f32::from_le_bytes),
            DType::F64 => numbers(tensor, to, f64::from_le_bytes),
            DType::String => to.collect_seq(tensor.strings()),
        }
    }
}

fn numbers<const N: usize, T: Serialize, S: Serializer>(
    tensor: &Tensor,
    to: S,
    read: impl Fn([u8; N]) -> T,
) -> Result<S::Ok, S::Error> {
    let (elements, _) = tensor.data().as_chunks::<N>();
    to.collect_seq(elements.iter().map(|bytes| read(*bytes)))
}

/// Writes JSON into memory for which room is asked as it grows.
///
/// # Errors
/// What `room` says.
pub fn write(value: &impl Serialize, room: Room<'_>) -> Result<Bytes> {
    let mut text = Text {
        bytes: Vec::new(),
        room,
        refused: None,
    };
    match serde_json::to_writer(&mut text, value) {
        Ok(()) => Ok(text.bytes.into()),
        Err(_) => Err(text.refused.unwrap_or_else(|| {
            Error::new(Code::Internal, "a message could not be written as JSON")
        })),
    }
}

struct Text<'a> {
    bytes: Vec<u8>,
    room: Room<'a>,
    refused: Option<Error>,
}

/// Room for a message whose tensors are binary.
const TEXT_BYTES: usize = 512;

impl io::Write for Text<'_> {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        let (length, has) = (self.bytes.len() + piece.len(), self.bytes.capacity());
        if length > has {
            let capacity = length.max(2 * has).max(TEXT_BYTES);
            if let Err(refused) = (self.room)((capacity - has) as u64) {
                self.refused = Some(refused);
                return Err(io::ErrorKind::OutOfMemory.into());
            }
            self.bytes.reserve_exact(capacity - self.bytes.len());
        }
        self.bytes.extend_from_slice(piece);
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A list of at most `MOST`: an element takes more memory than in the text.
#[derive(Serialize)]
#[serde(transparent)]
pub struct Few<T, const MOST: usize>(pub Vec<T>);

impl<'de, T: Deserialize<'de>, const MOST: usize> Deserialize<'de> for Few<T, MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ReadFew(PhantomData))
    }
}

struct ReadFew<T, const MOST: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for ReadFew<T, MOST> {
    type Value = Few<T, MOST>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at most {MOST} elements")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut list = Vec::new();
        while let Some(element) = seq.next_element()? {
            if list.len() == MOST {
                return Err(serde::de::Error::invalid_length(MOST + 1, &self));
            }
            list.push(element);
        }
        Ok(Few(list))
    }
}

struct Elements<'a> {
    dtype: DType,
    bytes: &'a mut Vec<u8>,
}

impl<'de> DeserializeSeed<'de> for Elements<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Elements<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} elements", self.dtype)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq
            .next_element_seed(Elements {
                dtype: self.dtype,
                bytes: self.bytes,
            })?
            .is_some()
        {}
        Ok(())
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<(), E> {
        match self.dtype {
            DType::Bool => self.push([u8::from(value)]),
            _ => Err(E::custom("not a Boolean")),
        }
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<(), E> {
        self.integer(value.into(), value as f64)
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<(), E> {
        self.integer(value.into(), value as f64)
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        self.float(value)
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<(), E> {
        if self.dtype != DType::String {
            return Err(E::custom("not a string"));
        }
        let length = u32::try_from(value.len()).map_err(E::custom)?;
        self.bytes.extend_from_slice(&length.to_le_bytes());
        self.bytes.extend_from_slice(value.as_bytes());
        Ok(())
    }
}

impl Elements<'_> {
    fn push<E, const N: usize>(self, element: [u8; N]) -> Result<(), E> {
        self.bytes.extend_from_slice(&element);
        Ok(())
    }

    fn integer<E: serde::de::Error>(self, value: i128, as_float: f64) -> Result<(), E> {
        match self.dtype {
            DType::U8 => self.push(u8::try_from(value).map_err(E::custom)?.to_le_bytes()),
            DType::U16 => self.push(u16::try_from(value).map_err(E::custom)?.to_le_bytes()),
            DType::U32 => self.push(u32::try_from(value).map_err(E::custom)?.to_le_bytes()),
            DType::U64 => self.push(u64::try_from(value).map_err(E::custom)?.to_le_bytes()),
            DType::I8 => self.push(i8::try_from(value).map_err(E::custom)?.to_le_bytes()),
            DType::I16 => self.push(i16::try_from(value).map_err(E::custom)?.to_le_bytes()),
            DType::I32 => self.push(i32::try_from(value).map_err(E::custom)?.to_le_bytes()),
            DType::I64 => self.push(i64::try_from(value).map_err(E::custom)?.to_le_bytes()),
            // Some clients write Booleans as 0 and 1.
            DType::Bool if value == 0 || value == 1 => self.push([value as u8]),
            _ => self.float(as_float),
        }
    }

    fn float<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        let (half, brain, single) = (f16::from_f64(value), bf16::from_f64(value), value as f32);
        match self.dtype {
            // JSON has no infinity: what becomes one is another number than was sent.
            DType::F16 if half.is_finite() => self.push(half.to_le_bytes()),
            DType::BF16 if brain.is_finite() => self.push(brain.to_le_bytes()),
            DType::F32 if single.is_finite() => self.push(single.to_le_bytes()),
            DType::F64 => self.push(value.to_le_bytes()),
            _ => Err(E::custom("not of this type")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(dtype: DType, json: &str) -> Result<Bytes> {
        let raw = RawValue::from_string(json.to_owned()).unwrap();
        let mut asked = 0;
        let read = read_elements(dtype, &raw, &mut |bytes| {
            asked += bytes;
            Ok(())
        });
        assert!(read.as_ref().map_or(0, Bytes::len) as u64 <= asked);
        read
    }

    #[test]
    fn every_type_round_trips() {
        for &dtype in DType::ALL {
            let json = match dtype {
                DType::Bool => "[true,false]",
                DType::String => r#"["a,","ü"]"#,
                DType::F16 | DType::BF16 | DType::F32 | DType::F64 => "[1.0,0.5]",
                _ => "[1,2]",
            };
            let tensor = Tensor::new(dtype, vec![2], read(dtype, json).unwrap()).unwrap();
            let written = write(&Flat(&tensor), &mut |_| Ok(())).unwrap();
            assert_eq!(written, json, "{dtype}");
        }
    }

    #[test]
    fn integers_keep_every_bit() {
        let bytes = read(DType::I64, &format!("[{},{}]", i64::MIN, i64::MAX)).unwrap();
        let want = [i64::MIN.to_le_bytes(), i64::MAX.to_le_bytes()].concat();
        assert_eq!(bytes, want);
    }

    #[test]
    fn floats_keep_every_bit_and_do_not_become_infinite() {
        for number in [0.1 + 0.2, 5e-324, f64::MAX, 9007199254740993e-3] {
            let bytes = read(DType::F64, &format!("[{number:?}]")).unwrap();
            assert_eq!(bytes, number.to_le_bytes()[..], "{number:?}");
        }
        for (dtype, number) in [
            (DType::F16, "70000"),
            (DType::F16, "7e4"),
            (DType::BF16, "-3.5e38"),
            (DType::F32, "1e39"),
        ] {
            let error = read(dtype, &format!("[{number}]")).unwrap_err();
            assert_eq!(error.code(), Code::InputData, "{dtype} {number}");
        }
    }

    #[test]
    fn nothing_is_taken_for_which_there_is_no_room() {
        let none = |_| Err(Error::new(Code::TooManyRequests, "none"));
        let zeros = RawValue::from_string(format!("[{}0]", "0,".repeat(999))).unwrap();
        let error = read_elements(DType::I64, &zeros, &mut { none }).unwrap_err();
        assert_eq!(error.code(), Code::TooManyRequests);
        let tensor = Tensor::new(DType::U8, vec![1000], vec![255; 1000].into()).unwrap();
        let mut left = 2000;
        let error = write(&Flat(&tensor), &mut |bytes| match left < bytes {
            true => none(bytes),
            false => {
                left -= bytes;
                Ok(())
            }
        });
        assert_eq!(error.unwrap_err().code(), Code::TooManyRequests);
    }
}
