use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{Code, Error, Result};

/// The most dimensions a tensor may have.
const RANK: usize = 64;

/// The sizes of a tensor's dimensions; empty for a scalar.
pub type Shape = Vec<usize>;

macro_rules! dtypes {
    ($($(#[$doc:meta])* $name:ident = $oip:literal, $short:literal, $size:literal;)*) => {
        /// The type of a tensor's elements, by its Open Inference Protocol name on the wire.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum DType { $($(#[$doc])* #[serde(rename = $oip)] $name,)* }

        impl DType {
            /// Every type that a tensor can have here.
            pub const ALL: &'static [DType] = &[$(DType::$name,)*];

            /// The Open Inference Protocol name, such as `FP32`.
            pub fn as_str(self) -> &'static str {
                match self { $(DType::$name => $oip,)* }
            }

            /// The short name, such as `F32`.
            pub fn short(self) -> &'static str {
                match self { $(DType::$name => $short,)* }
            }

            /// Reads an Open Inference Protocol name.
            pub fn parse(name: &str) -> Option<Self> {
                match name { $($oip => Some(DType::$name),)* _ => None }
            }

            /// Bytes per element; `None` for strings.
            pub fn size(self) -> Option<usize> {
                match match self { $(DType::$name => $size,)* } { 0 => None, size => Some(size) }
            }
        }
    };
}

dtypes! {
    Bool = "BOOL", "BOOL", 1;
    U8 = "UINT8", "U8", 1;
    U16 = "UINT16", "U16", 2;
    U32 = "UINT32", "U32", 4;
    U64 = "UINT64", "U64", 8;
    I8 = "INT8", "I8", 1;
    I16 = "INT16", "I16", 2;
    I32 = "INT32", "I32", 4;
    I64 = "INT64", "I64", 8;
    F16 = "FP16", "F16", 2;
    BF16 = "BF16", "BF16", 2;
    F32 = "FP32", "F32", 4;
    F64 = "FP64", "F64", 8;
    /// Strings: each element is a little-endian `u32` length and that many bytes.
    String = "BYTES", "STRING", 0;
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A tensor whose bytes are known to fit its type and shape: little-endian, row-major.
///
/// Its contents never appear in `Debug`: it prints as `F32[1,16000]`.
#[derive(Clone, PartialEq)]
pub struct Tensor {
    dtype: DType,
    shape: Shape,
    data: Bytes,
}

impl Tensor {
    /// A tensor of `data`, which must be exactly as long as the type and shape say.
    ///
    /// # Errors
    /// [`Code::InputData`] when it is not, when a Boolean is neither 0 nor 1, or when a string
    /// element is cut short or is not UTF-8.
    pub fn new(dtype: DType, shape: Shape, data: Bytes) -> Result<Self> {
        let elements = element_count(&shape)?;
        match dtype.size() {
            Some(size) => check_length(dtype, &shape, elements.checked_mul(size), data.len())?,
            None => check_strings(elements, &data)?,
        }
        if dtype == DType::Bool && data.iter().any(|&byte| byte > 1) {
            return Err(Error::new(
                Code::InputData,
                "a BOOL element is neither 0 nor 1",
            ));
        }
        Ok(Self { dtype, shape, data })
    }

    /// A tensor of strings.
    ///
    /// # Errors
    /// [`Code::InputData`] when the number of strings is not that of the shape.
    pub fn from_strings<S: AsRef<str>>(shape: Shape, strings: &[S]) -> Result<Self> {
        let mut data = Vec::new();
        for string in strings {
            let bytes = string.as_ref().as_bytes();
            let length = u32::try_from(bytes.len())
                .map_err(|_| Error::new(Code::InputData, "a string is longer than 4 GiB"))?;
            data.extend_from_slice(&length.to_le_bytes());
            data.extend_from_slice(bytes);
        }
        Self::new(DType::String, shape, data.into())
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The sizes of the dimensions.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The bytes, little-endian and row-major.
    pub fn data(&self) -> &Bytes {
        &self.data
    }

    /// The bytes, given away.
    pub fn into_data(self) -> Bytes {
        self.data
    }

    /// The number of elements; 1 for a scalar.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The strings of a string tensor; nothing for other types.
    pub fn strings(&self) -> impl Iterator<Item = &str> {
        let mut rest = match self.dtype {
            DType::String => &self.data[..],
            _ => &[],
        };
        std::iter::from_fn(move || {
            let (element, tail) = split_string(rest)?;
            rest = tail;
            std::str::from_utf8(element).ok()
        })
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.dtype.short(), ShapeText(&self.shape))
    }
}

/// A tensor under the name the model gives it.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor {
    pub name: String,
    pub tensor: Tensor,
}

impl NamedTensor {
    /// Puts a name on a tensor.
    pub fn new(name: impl Into<String>, tensor: Tensor) -> Self {
        Self {
            name: name.into(),
            tensor,
        }
    }
}

/// Prints a shape as `[1,16000]`.
pub(crate) struct ShapeText<'a, T>(pub &'a [T]);

impl<T: fmt::Display> fmt::Display for ShapeText<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (i, dim) in self.0.iter().enumerate() {
            write!(f, "{}{dim}", if i == 0 { "" } else { "," })?;
        }
        f.write_str("]")
    }
}

// A shape comes from a stranger: 2^32 × 2^32 must not wrap around to something small, and a zero
// among the sizes must not hide an overflow in front of it.
fn element_count(shape: &[usize]) -> Result<usize> {
    if shape.len() > RANK {
        let fact = format!(
            "the tensor has {} dimensions, at most {RANK} are taken",
            shape.len()
        );
        return Err(Error::new(Code::InputData, fact));
    }
    let overflow = || {
        let text = ShapeText(shape);
        Error::new(Code::InputData, format!("the shape {text} is too large"))
    };
    let mut bound = shape.iter().filter(|&&dim| dim != 0);
    let count = bound.try_fold(1usize, |count, &dim| count.checked_mul(dim));
    let count = count.ok_or_else(overflow)?;
    Ok(if shape.contains(&0) { 0 } else { count })
}

fn check_length(dtype: DType, shape: &[usize], want: Option<usize>, have: usize) -> Result<()> {
    if want == Some(have) {
        return Ok(());
    }
    let want = want.map_or("too many".to_owned(), |bytes| bytes.to_string());
    let shape = ShapeText(shape);
    Err(Error::new(
        Code::InputData,
        format!("{dtype}{shape} takes {want} bytes, got {have}"),
    ))
}

fn check_strings(elements: usize, data: &[u8]) -> Result<()> {
    let mut rest = data;
    let mut count = 0;
    while let Some((element, tail)) = split_string(rest) {
        if std::str::from_utf8(element).is_err() {
            return Err(Error::new(
                Code::InputData,
                format!("string element {count} is not UTF-8"),
            ));
        }
        count += 1;
        rest = tail;
    }
    if !rest.is_empty() {
        return Err(Error::new(
            Code::InputData,
            format!("string element {count} is cut short"),
        ));
    }
    if count != elements {
        return Err(Error::new(
            Code::InputData,
            format!("the shape has {elements} strings, the data {count}"),
        ));
    }
    Ok(())
}

fn split_string(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = data.split_first_chunk::<4>()?;
    rest.split_at_checked(u32::from_le_bytes(*length) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(result: Result<Tensor>) -> Code {
        result.unwrap_err().code()
    }

    #[test]
    fn bytes_must_fit_type_and_shape() {
        let zeros = Bytes::from(vec![0; 24]);
        assert!(Tensor::new(DType::F32, vec![2, 3], zeros.clone()).is_ok());
        assert!(Tensor::new(DType::F64, vec![3], zeros.clone()).is_ok());
        assert_eq!(
            code(Tensor::new(DType::F32, vec![2], zeros)),
            Code::InputData
        );
    }

    #[test]
    fn scalars_and_empty_tensors_are_tensors() {
        assert_eq!(
            Tensor::new(DType::I64, vec![], vec![0; 8].into())
                .unwrap()
                .len(),
            1
        );
        assert!(
            Tensor::new(DType::I64, vec![0, 5], Bytes::new())
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn a_shape_cannot_overflow() {
        let huge = vec![usize::MAX, 2];
        assert_eq!(
            code(Tensor::new(DType::U8, huge, Bytes::new())),
            Code::InputData
        );
        let hidden = vec![0, usize::MAX, usize::MAX];
        assert_eq!(
            code(Tensor::new(DType::U8, hidden, Bytes::new())),
            Code::InputData
        );
    }

    #[test]
    fn strings_round_trip_and_are_checked() {
        let tensor = Tensor::from_strings(vec![2], &["hello", ""]).unwrap();
        assert_eq!(tensor.strings().collect::<Vec<_>>(), ["hello", ""]);
        let cut = tensor.data().slice(..7);
        assert_eq!(
            code(Tensor::new(DType::String, vec![1], cut)),
            Code::InputData
        );
        assert_eq!(code(Tensor::from_strings(vec![3], &["a"])), Code::InputData);
        let not_text = Bytes::from_static(&[1, 0, 0, 0, 0xff]);
        assert_eq!(
            code(Tensor::new(DType::String, vec![1], not_text)),
            Code::InputData
        );
    }

    #[test]
    fn contents_stay_out_of_debug() {
        let tensor = Tensor::from_strings(vec![1], &["secret"]).unwrap();
        assert_eq!(format!("{tensor:?}"), "STRING[1]");
    }
}
