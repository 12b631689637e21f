//! Flat CBOR lists of numbers, which is how 0.3 sends inputs and outputs.
//!
//! Read header by header: as values, a list of small integers would take thirty times its size.

use bytes::Bytes;
use ciborium_ll::{Decoder, Encoder, Header};

use crate::tensor::ShapeText;
use crate::{Code, DType, Error, Result, Tensor};

/// An element of a list.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Number {
    Integer(i128),
    Float(f64),
}

/// Calls `take` with each element of a list, and with its place.
///
/// # Errors
/// [`Code::InputData`] when it is not one flat list of numbers and nothing after it; and what `take`
/// says.
pub fn each(list: &[u8], mut take: impl FnMut(usize, Number) -> Result<()>) -> Result<usize> {
    let mut rest = list;
    let mut decoder = Decoder::from(&mut rest);
    let announced = match decoder.pull() {
        Ok(Header::Array(length)) => length,
        _ => return Err(not_flat()),
    };
    let mut count = 0;
    while announced != Some(count) {
        let number = match decoder.pull() {
            Ok(Header::Positive(value)) => Number::Integer(value.into()),
            Ok(Header::Negative(value)) => Number::Integer(-1 - i128::from(value)),
            Ok(Header::Float(value)) => Number::Float(value),
            Ok(Header::Break) if announced.is_none() => break,
            Ok(_) => return Err(not_a_number(count)),
            Err(_) => return Err(cut_short(count)),
        };
        take(count, number)?;
        count += 1;
    }
    match rest.is_empty() {
        true => Ok(count),
        false => Err(Error::new(Code::InputData, "something follows the list")),
    }
}

/// The bytes that [`to_tensor`] takes at most.
pub fn tensor_bytes(list: &[u8], dtype: DType) -> u64 {
    // An element takes a byte at least.
    list.len() as u64 * dtype.size().unwrap_or(0) as u64
}

/// The tensor of this type and shape whose elements stand in a list. Integers become floats where
/// the type wants them; nothing else changes.
///
/// # Errors
/// [`Code::InputShape`] when there are too many or too few, [`Code::InputDType`] for a float where
/// there are integers, [`Code::InputData`] for a number that the type does not have, and as of
/// [`each`]. The numbers themselves are never told.
pub fn to_tensor(list: &[u8], dtype: DType, shape: &[usize]) -> Result<Tensor> {
    let mut wanted = shape.iter().copied();
    let wanted = wanted.try_fold(1usize, |count, size| count.checked_mul(size));
    let wanted = wanted.ok_or_else(|| misfit(shape, "more than there can be"))?;
    let most = tensor_bytes(list, dtype) as usize;
    let size = dtype.size().unwrap_or(0);
    let mut data = Vec::with_capacity(most.min(wanted.saturating_mul(size)));
    let count = each(list, |place, number| {
        if place >= wanted {
            return Err(misfit(shape, "fewer than were sent"));
        }
        push(&mut data, dtype, place, number)
    })?;
    if count < wanted {
        return Err(misfit(shape, &format!("{count} were sent")));
    }
    Tensor::new(dtype, shape.to_vec(), data.into())
}

/// The bytes that [`from_tensor`] takes at most.
pub fn list_bytes(tensor: &Tensor) -> u64 {
    let size = tensor.dtype().size().unwrap_or(0) as u64;
    HEAD_BYTES + tensor.len() as u64 * (size + 1)
}

/// The elements of a tensor as a list, each as short as it can be without loss.
///
/// # Errors
/// [`Code::ModelUnsupported`] for a type that 0.3 does not have.
pub fn from_tensor(tensor: &Tensor) -> Result<Bytes> {
    let element: fn(&[u8]) -> Header = match tensor.dtype() {
        DType::F32 => |bytes| Header::Float(f32::from_le_bytes(fixed(bytes)).into()),
        DType::F64 => |bytes| Header::Float(f64::from_le_bytes(fixed(bytes))),
        DType::I32 => |bytes| integer(i32::from_le_bytes(fixed(bytes)).into()),
        DType::I64 => |bytes| integer(i64::from_le_bytes(fixed(bytes))),
        DType::U32 => |bytes| Header::Positive(u32::from_le_bytes(fixed(bytes)).into()),
        DType::U64 => |bytes| Header::Positive(u64::from_le_bytes(fixed(bytes))),
        other => {
            let fact = format!("the output is {other}, which BlindAI 0.3 does not have");
            return Err(Error::new(Code::ModelUnsupported, fact));
        }
    };
    let size = tensor.dtype().size().unwrap_or(1);
    let mut list = Vec::with_capacity(list_bytes(tensor) as usize);
    let mut encoder = Encoder::from(&mut list);
    let mut write = |header| encoder.push(header).expect("memory can be written to");
    write(Header::Array(Some(tensor.len())));
    tensor
        .data()
        .chunks_exact(size)
        .map(element)
        .for_each(write);
    Ok(list.into())
}

fn push(data: &mut Vec<u8>, dtype: DType, place: usize, number: Number) -> Result<()> {
    let beyond = || {
        let fact = format!("element {place} is beyond what {dtype} can hold");
        Error::new(Code::InputData, fact)
    };
    match (dtype, number) {
        (DType::F32, Number::Float(value)) => {
            let narrow = value as f32;
            if narrow.is_infinite() && value.is_finite() {
                return Err(beyond());
            }
            data.extend_from_slice(&narrow.to_le_bytes());
        }
        (DType::F64, Number::Float(value)) => data.extend_from_slice(&value.to_le_bytes()),
        (DType::F32, Number::Integer(value)) => {
            data.extend_from_slice(&(value as f32).to_le_bytes());
        }
        (DType::F64, Number::Integer(value)) => {
            data.extend_from_slice(&(value as f64).to_le_bytes());
        }
        (_, Number::Float(_)) => {
            let fact = format!("element {place} is a float, the model takes {dtype}");
            return Err(Error::new(Code::InputDType, fact));
        }
        (_, Number::Integer(value)) => {
            let bytes = integer_bytes(dtype, value).ok_or_else(beyond)?;
            data.extend_from_slice(&bytes[..dtype.size().unwrap_or(0)]);
        }
    }
    Ok(())
}

/// The first bytes are those of the type; `None` when it does not have this number.
fn integer_bytes(dtype: DType, value: i128) -> Option<[u8; 16]> {
    let fits = match dtype {
        DType::I32 => i32::try_from(value).is_ok(),
        DType::I64 => i64::try_from(value).is_ok(),
        DType::U32 => u32::try_from(value).is_ok(),
        DType::U64 => u64::try_from(value).is_ok(),
        _ => false,
    };
    fits.then(|| value.to_le_bytes())
}

fn integer(value: i64) -> Header {
    match value < 0 {
        true => Header::Negative(!value as u64),
        false => Header::Positive(value as u64),
    }
}

fn fixed<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("a chunk of the element's size")
}

fn misfit(shape: &[usize], sent: &str) -> Error {
    let shape = ShapeText(shape);
    let fact = format!("the input has the shape {shape}: its elements are {sent}");
    Error::new(Code::InputShape, fact).with_remedy("send a flat list that fills the input")
}

fn not_flat() -> Error {
    Error::new(Code::InputData, "it is not a CBOR list").with_remedy("send a flat list of numbers")
}

fn not_a_number(place: usize) -> Error {
    let fact = format!("element {place} is not a number");
    Error::new(Code::InputData, fact).with_remedy("send a flat list of numbers")
}

fn cut_short(place: usize) -> Error {
    Error::new(Code::InputData, format!("the list ends at element {place}"))
}

/// The head of a list.
const HEAD_BYTES: u64 = 9;

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(list: &[u8], dtype: DType, shape: &[usize]) -> Result<Vec<u8>> {
        to_tensor(list, dtype, shape).map(|tensor| tensor.data().to_vec())
    }

    fn code(list: &[u8], dtype: DType, shape: &[usize]) -> Code {
        tensor(list, dtype, shape).unwrap_err().code()
    }

    #[test]
    fn floats_and_integers_mix_where_floats_are_wanted() {
        // [1.5, -2, 300], as cbor2 writes it.
        let list = b"\x83\xfb\x3f\xf8\0\0\0\0\0\0\x21\x19\x01\x2c";
        let want: Vec<u8> = [1.5f32, -2.0, 300.0].map(f32::to_le_bytes).concat();
        assert_eq!(tensor(list, DType::F32, &[3, 1]), Ok(want));
        assert_eq!(code(list, DType::I64, &[3]), Code::InputDType);
        assert_eq!(code(list, DType::F32, &[2]), Code::InputShape);
        assert_eq!(code(list, DType::F32, &[4]), Code::InputShape);
        let endless = [b"\x9f", &list[1..], b"\xff"].concat();
        assert!(tensor(&endless, DType::F32, &[3]).is_ok());
    }

    #[test]
    fn integers_must_fit_their_type() {
        let most = b"\x81\x1b\xff\xff\xff\xff\xff\xff\xff\xff";
        let least = b"\x81\x3b\xff\xff\xff\xff\xff\xff\xff\xff";
        assert_eq!(tensor(most, DType::U64, &[1]), Ok(vec![0xff; 8]));
        assert_eq!(code(most, DType::I64, &[1]), Code::InputData);
        assert_eq!(code(least, DType::I64, &[1]), Code::InputData);
        assert_eq!(code(b"\x81\x20", DType::U32, &[1]), Code::InputData);
        assert_eq!(tensor(b"\x81\x20", DType::I32, &[1]), Ok(vec![0xff; 4]));
        // 1e300 is no float of four bytes; infinity is.
        let large = b"\x81\xfb\x7e\x37\xe4\x3c\x88\x00\x75\x9c";
        assert_eq!(code(large, DType::F32, &[1]), Code::InputData);
        assert!(tensor(b"\x81\xf9\x7c\x00", DType::F32, &[1]).is_ok());
    }

    #[test]
    fn what_is_no_flat_list_is_refused() {
        let cases: [&[u8]; 9] = [
            b"",
            b"\x01",
            b"\x81",
            b"\x81\x81\x01",
            b"\x81\x61a",
            b"\x81\xf5",
            b"\x81\xff",
            b"\x81\x01\x01",
            // It says that it has more elements than memory has bytes.
            b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        ];
        for case in cases {
            assert_eq!(
                code(case, DType::F32, &[1 << 40]),
                Code::InputData,
                "{case:?}"
            );
        }
    }

    #[test]
    fn outputs_are_lists_without_loss() {
        let of = |dtype, data: &[u8], shape: &[usize]| {
            let data = Bytes::copy_from_slice(data);
            let tensor = Tensor::new(dtype, shape.to_vec(), data).unwrap();
            let list = from_tensor(&tensor).unwrap();
            assert!(list.len() as u64 <= list_bytes(&tensor));
            assert_eq!(to_tensor(&list, dtype, shape), Ok(tensor));
            list
        };
        let floats = [0.1f32, -1.0, f32::MAX, f32::NEG_INFINITY].map(f32::to_le_bytes);
        of(DType::F32, &floats.concat(), &[2, 2]);
        of(DType::F64, &0.1f64.to_le_bytes(), &[]);
        of(DType::I32, &[0xff; 8], &[2]);
        of(DType::I64, &i64::MIN.to_le_bytes(), &[1]);
        of(DType::U32, &[0xff; 4], &[1]);
        let list = of(DType::U64, &[0; 0], &[0, 5]);
        assert_eq!(&list[..], b"\x80");
        let bools = Tensor::new(DType::Bool, vec![1], vec![1].into()).unwrap();
        assert_eq!(
            from_tensor(&bools).unwrap_err().code(),
            Code::ModelUnsupported
        );
    }
}
