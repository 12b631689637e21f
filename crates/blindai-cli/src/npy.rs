//! Tensors in NumPy's file format.

use std::io::{Read, Write};

use anyhow::{Context as _, Result, bail};
use blindai_core::{DType, Tensor};
use npyz::{Endianness, NpyHeader, Order, TypeChar, TypeStr, WriteOptions, WriterBuilder as _};

/// Reads a `.npy` file. Fixed-width Unicode arrays become string tensors.
///
/// # Errors
/// For pickled objects, structures, dates, complex numbers, and column-major or truncated files.
pub fn read(mut file: impl Read) -> Result<Tensor> {
    let header = NpyHeader::from_reader(&mut file).context("not in NumPy's format")?;
    let npyz::DType::Plain(element) = header.dtype() else {
        bail!("structured arrays are no tensors");
    };
    if header.order() == Order::Fortran && header.shape().len() > 1 {
        bail!("the array is column-major · save numpy.ascontiguousarray(array)");
    }
    let shape: Vec<usize> = header.shape().iter().map(|&dim| dim as usize).collect();
    let mut data = Vec::new();
    file.read_to_end(&mut data)?;
    if element.type_char() == TypeChar::UnicodeStr {
        return read_unicode(shape, &element, &data);
    }
    let dtype = dtype_of(&element).with_context(|| format!("{element} is no tensor type"))?;
    if element.endianness() == Endianness::Big {
        let size = dtype.size().unwrap_or(1);
        data.chunks_exact_mut(size).for_each(<[u8]>::reverse);
    }
    Ok(Tensor::new(dtype, shape, data.into())?)
}

/// Writes a `.npy` file. Strings become a fixed-width Unicode array, BF16 its bits as `uint16`.
///
/// # Errors
/// When the file cannot be written.
pub fn write(file: impl Write, tensor: &Tensor) -> Result<()> {
    let (element, data) = match tensor.dtype() {
        DType::String => unicode(tensor),
        dtype => (type_of(dtype).to_owned(), tensor.data().to_vec()),
    };
    let shape: Vec<u64> = tensor.shape().iter().map(|&dim| dim as u64).collect();
    let mut file = WriteOptions::new_header_only()
        .dtype(npyz::DType::Plain(element.parse()?))
        .shape(&shape)
        .writer(file)
        .write_header_only()?;
    file.write_all(&data)?;
    Ok(file.flush()?)
}

fn dtype_of(element: &TypeStr) -> Option<DType> {
    Some(match (element.type_char(), element.num_bytes()?) {
        (TypeChar::Bool, 1) => DType::Bool,
        (TypeChar::Uint, 1) => DType::U8,
        (TypeChar::Uint, 2) => DType::U16,
        (TypeChar::Uint, 4) => DType::U32,
        (TypeChar::Uint, 8) => DType::U64,
        (TypeChar::Int, 1) => DType::I8,
        (TypeChar::Int, 2) => DType::I16,
        (TypeChar::Int, 4) => DType::I32,
        (TypeChar::Int, 8) => DType::I64,
        (TypeChar::Float, 2) => DType::F16,
        (TypeChar::Float, 4) => DType::F32,
        (TypeChar::Float, 8) => DType::F64,
        _ => return None,
    })
}

fn type_of(dtype: DType) -> &'static str {
    match dtype {
        DType::Bool => "|b1",
        DType::U8 => "|u1",
        DType::U16 | DType::BF16 => "<u2",
        DType::U32 => "<u4",
        DType::U64 => "<u8",
        DType::I8 => "|i1",
        DType::I16 => "<i2",
        DType::I32 => "<i4",
        DType::I64 => "<i8",
        DType::F16 => "<f2",
        DType::F32 => "<f4",
        DType::F64 => "<f8",
        DType::String => "<U1",
    }
}

// NumPy stores `n` code points of four bytes per element, filled up with zeros.
fn read_unicode(shape: Vec<usize>, element: &TypeStr, data: &[u8]) -> Result<Tensor> {
    let width = element
        .num_bytes()
        .filter(|&width| width > 0)
        .context("empty strings")?;
    let read = |bytes: &[u8; 4]| match element.endianness() {
        Endianness::Big => u32::from_be_bytes(*bytes),
        _ => u32::from_le_bytes(*bytes),
    };
    let strings = data.chunks_exact(width).map(|element| {
        let points = element.as_chunks::<4>().0.iter().map(read);
        let text = points.map(|point| char::from_u32(point).context("not Unicode"));
        let text: String = text.collect::<Result<_>>()?;
        Ok(text.trim_end_matches('\0').to_owned())
    });
    let strings: Vec<String> = strings.collect::<Result<_>>()?;
    Ok(Tensor::from_strings(shape, &strings)?)
}

fn unicode(tensor: &Tensor) -> (String, Vec<u8>) {
    let width = tensor.strings().map(|text| text.chars().count()).max();
    let width = width.unwrap_or(0).max(1);
    let mut data = Vec::new();
    for text in tensor.strings() {
        let end = data.len() + 4 * width;
        data.extend(text.chars().flat_map(|c| u32::from(c).to_le_bytes()));
        data.resize(end, 0);
    }
    (format!("<U{width}"), data)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(tensor: &Tensor) -> Tensor {
        let mut file = Vec::new();
        write(&mut file, tensor).unwrap();
        read(file.as_slice()).unwrap()
    }

    #[test]
    fn every_type_survives_the_file() {
        for &dtype in DType::ALL {
            let tensor = match dtype.size() {
                Some(size) => Tensor::new(dtype, vec![2, 1], vec![1; 2 * size].into()).unwrap(),
                None => Tensor::from_strings(vec![2, 1], &["wörter", ""]).unwrap(),
            };
            let back = round_trip(&tensor);
            assert_eq!(back.data(), tensor.data(), "{dtype}");
            assert_eq!(back.shape(), tensor.shape());
        }
    }

    #[test]
    fn scalars_and_empty_arrays_survive() {
        let scalar = Tensor::new(DType::I64, vec![], vec![7; 8].into()).unwrap();
        assert_eq!(round_trip(&scalar), scalar);
        let empty = Tensor::new(DType::F32, vec![0, 3], Vec::new().into()).unwrap();
        assert_eq!(round_trip(&empty), empty);
    }

    #[test]
    fn what_is_no_tensor_is_refused() {
        assert!(read(&b"not numpy"[..]).is_err());
        let mut cut = Vec::new();
        let tensor = Tensor::new(DType::F32, vec![2], vec![0; 8].into()).unwrap();
        write(&mut cut, &tensor).unwrap();
        cut.pop();
        assert!(read(cut.as_slice()).is_err());
    }
}
