//! The classification extension: instead of scores, the best of them with their places.

use std::cmp::Ordering;

use half::{bf16, f16};

use super::{InferRequest, InferResponse};
use crate::{Code, DType, Error, NamedTensor, Result, Tensor};

/// The largest output that is ranked: texts take many times the memory of their numbers.
const ELEMENTS: usize = 1 << 20;

/// Replaces the outputs whose classification was asked for by their best elements along the last
/// dimension, best first, each as the text `value:index`. Models here have no labels.
///
/// # Errors
/// [`Code::InvalidRequest`] for an output that holds no numbers.
pub fn classify_outputs(request: &InferRequest, response: &mut InferResponse) -> Result<()> {
    for output in &mut response.outputs {
        if let Some(count) = request.classification_of(&output.name) {
            output.tensor = classify(output, count)?;
        }
    }
    Ok(())
}

fn classify(output: &NamedTensor, count: usize) -> Result<Tensor> {
    let tensor = &output.tensor;
    if tensor.len() > ELEMENTS {
        let (name, elements) = (&output.name, tensor.len());
        let fact = format!("output {name:?} has {elements} elements, {ELEMENTS} can be ranked");
        return Err(not_classified(fact));
    }
    match tensor.dtype() {
        DType::U8 => best(tensor, count, u8::from_le_bytes, Ord::cmp),
        DType::U16 => best(tensor, count, u16::from_le_bytes, Ord::cmp),
        DType::U32 => best(tensor, count, u32::from_le_bytes, Ord::cmp),
        DType::U64 => best(tensor, count, u64::from_le_bytes, Ord::cmp),
        DType::I8 => best(tensor, count, i8::from_le_bytes, Ord::cmp),
        DType::I16 => best(tensor, count, i16::from_le_bytes, Ord::cmp),
        DType::I32 => best(tensor, count, i32::from_le_bytes, Ord::cmp),
        DType::I64 => best(tensor, count, i64::from_le_bytes, Ord::cmp),
        DType::F16 => best(tensor, count, |b| f16::from_le_bytes(b).to_f32(), by_value),
        DType::BF16 => best(tensor, count, |b| bf16::from_le_bytes(b).to_f32(), by_value),
        DType::F32 => best(tensor, count, f32::from_le_bytes, by_value),
        DType::F64 => best(tensor, count, f64::from_le_bytes, by_value),
        dtype @ (DType::Bool | DType::String) => {
            let fact = format!("output {:?} is {dtype}, which has no best", output.name);
            Err(not_classified(fact))
        }
    }
}

fn not_classified(fact: String) -> Error {
    Error::new(Code::InvalidRequest, fact).with_remedy("leave the parameter classification out")
}

fn best<const N: usize, T: Copy + std::fmt::Debug>(
    tensor: &Tensor,
    count: usize,
    read: impl Fn([u8; N]) -> T,
    compare: impl Fn(&T, &T) -> Ordering,
) -> Result<Tensor> {
    let (&classes, leading) = tensor.shape().split_last().unwrap_or((&1, &[]));
    let count = count.min(classes);
    let (elements, _) = tensor.data().as_chunks::<N>();
    let mut texts = Vec::new();
    // As `Debug` writes them, floats are exact, and short also where they are very small.
    for row in elements.chunks(classes.max(1)) {
        // Equal ones in the order of their places, so that an answer is always the same.
        let order = |a: &(usize, T), b: &(usize, T)| compare(&b.1, &a.1).then(a.0.cmp(&b.0));
        let mut ranked: Vec<_> = row.iter().map(|&bytes| read(bytes)).enumerate().collect();
        if count < ranked.len() {
            ranked.select_nth_unstable_by(count, order);
            ranked.truncate(count);
        }
        ranked.sort_unstable_by(order);
        texts.extend(ranked.iter().map(|(i, value)| format!("{value:?}:{i}")));
    }
    Tensor::from_strings([leading, &[count]].concat(), &texts)
}

/// A NaN is the best of nothing.
fn by_value<T: PartialOrd>(a: &T, b: &T) -> Ordering {
    let is_number = |value: &T| value.partial_cmp(value).is_some();
    a.partial_cmp(b)
        .unwrap_or_else(|| is_number(a).cmp(&is_number(b)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classified(dtype: DType, shape: &[usize], data: Vec<u8>, count: usize) -> Vec<String> {
        let tensor = Tensor::new(dtype, shape.to_vec(), data.into()).unwrap();
        let made = classify(&NamedTensor::new("y", tensor), count).unwrap();
        assert_eq!(made.len(), made.strings().count());
        made.strings().map(str::to_owned).collect()
    }

    fn floats(values: &[f32]) -> Vec<u8> {
        values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect()
    }

    #[test]
    fn the_best_come_first_row_by_row() {
        let data = floats(&[0.1, 0.7, 0.2, 3.0, -1.0, 3.0]);
        let got = classified(DType::F32, &[2, 3], data, 2);
        assert_eq!(got, ["0.7:1", "0.2:2", "3.0:0", "3.0:2"]);
    }

    #[test]
    fn there_are_no_more_than_all_of_them() {
        let got = classified(DType::I8, &[3], vec![0xff, 2, 1], 9);
        assert_eq!(got, ["2:1", "1:2", "-1:0"]);
        assert_eq!(classified(DType::I8, &[], vec![5], 9), ["5:0"]);
        assert!(classified(DType::F32, &[2, 0], vec![], 3).is_empty());
    }

    #[test]
    fn a_nan_is_never_the_best() {
        let data = floats(&[f32::NAN, f32::NEG_INFINITY, 1.0, f32::NAN]);
        let got = classified(DType::F32, &[4], data, 4);
        assert_eq!(got, ["1.0:2", "-inf:1", "NaN:0", "NaN:3"]);
    }

    #[test]
    fn texts_have_no_best() {
        let tensor = Tensor::from_strings(vec![1], &["a"]).unwrap();
        let error = classify(&NamedTensor::new("y", tensor), 1).unwrap_err();
        assert_eq!(error.code(), Code::InvalidRequest);
    }
}
