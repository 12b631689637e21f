//! Tensor elements as JSON numbers, strings and Booleans.

use std::fmt;

use bytes::Bytes;
use half::{bf16, f16};
use serde::de::{DeserializeSeed, Deserializer, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::{Code, DType, Error, Result, Tensor};

/// Reads a JSON array, nested or flat, into little-endian bytes.
pub fn read_elements(dtype: DType, data: &RawValue) -> Result<Bytes> {
    let mut bytes = Vec::new();
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

/// Writes the elements as a flat JSON array.
pub fn write_elements(tensor: &Tensor) -> Result<Box<RawValue>> {
    let text = match tensor.dtype() {
        DType::Bool => numbers(tensor, |[byte]: [u8; 1]| byte == 1),
        DType::U8 => numbers(tensor, u8::from_le_bytes),
        DType::U16 => numbers(tensor, u16::from_le_bytes),
        DType::U32 => numbers(tensor, u32::from_le_bytes),
        DType::U64 => numbers(tensor, u64::from_le_bytes),
        DType::I8 => numbers(tensor, i8::from_le_bytes),
        DType::I16 => numbers(tensor, i16::from_le_bytes),
        DType::I32 => numbers(tensor, i32::from_le_bytes),
        DType::I64 => numbers(tensor, i64::from_le_bytes),
        DType::F16 => floats(tensor, |b| f16::from_le_bytes(b).to_f32())?,
        DType::BF16 => floats(tensor, |b| bf16::from_le_bytes(b).to_f32())?,
        DType::F32 => floats(tensor, f32::from_le_bytes)?,
        DType::F64 => floats(tensor, f64::from_le_bytes)?,
        DType::String => to_json(&tensor.strings().collect::<Vec<_>>()),
    };
    RawValue::from_string(text)
        .map_err(|_| Error::new(Code::Internal, "elements did not make JSON"))
}

fn numbers<const N: usize, T: serde::Serialize>(
    tensor: &Tensor,
    read: impl Fn([u8; N]) -> T,
) -> String {
    let (elements, _) = tensor.data().as_chunks::<N>();
    to_json(
        &elements
            .iter()
            .map(|bytes| read(*bytes))
            .collect::<Vec<_>>(),
    )
}

fn floats<const N: usize, T: serde::Serialize + Copy + Into<f64>>(
    tensor: &Tensor,
    read: impl Fn([u8; N]) -> T + Copy,
) -> Result<String> {
    let (elements, _) = tensor.data().as_chunks::<N>();
    // JSON has no NaN and no infinity; serde_json would write null, which is silent loss.
    if elements
        .iter()
        .any(|bytes| !read(*bytes).into().is_finite())
    {
        let fact = "the output holds a NaN or an infinity, which JSON cannot say";
        return Err(Error::new(Code::OutputNotJson, fact));
    }
    Ok(numbers(tensor, read))
}

fn to_json<T: serde::Serialize>(values: &[T]) -> String {
    serde_json::to_string(values).expect("numbers and strings are JSON")
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
        match self.dtype {
            DType::F16 => self.push(f16::from_f64(value).to_le_bytes()),
            DType::BF16 => self.push(bf16::from_f64(value).to_le_bytes()),
            DType::F32 => self.push((value as f32).to_le_bytes()),
            DType::F64 => self.push(value.to_le_bytes()),
            _ => Err(E::custom("not of this type")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_round_trips() {
        for &dtype in DType::ALL {
            let json = match dtype {
                DType::Bool => "[true,false]",
                DType::String => r#"["a","b"]"#,
                DType::F16 | DType::BF16 | DType::F32 | DType::F64 => "[1.0,0.5]",
                _ => "[1,2]",
            };
            let raw = RawValue::from_string(json.to_owned()).unwrap();
            let bytes = read_elements(dtype, &raw).unwrap();
            let tensor = Tensor::new(dtype, vec![2], bytes).unwrap();
            assert_eq!(write_elements(&tensor).unwrap().get(), json, "{dtype}");
        }
    }

    #[test]
    fn integers_keep_every_bit() {
        let raw = RawValue::from_string(format!("[{},{}]", i64::MIN, i64::MAX)).unwrap();
        let bytes = read_elements(DType::I64, &raw).unwrap();
        let want = [i64::MIN.to_le_bytes(), i64::MAX.to_le_bytes()].concat();
        assert_eq!(bytes, want);
    }
}
