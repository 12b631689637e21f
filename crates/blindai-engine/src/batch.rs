//! Requests that are computed together.
//!
//! Only along a first dimension that the model itself names, the same on every input and output:
//! then a row of the inputs is one of the outputs. Rows of one tensor lie one after the other, so
//! requests are joined by writing them behind each other, and parted by reading from their places.

use blindai_core::{DType, Dim, NamedTensor, Signature, TensorSpec};

/// Whether rows of the model's inputs and outputs belong together.
pub(crate) fn is_batchable(signature: &Signature) -> bool {
    let specs = || signature.inputs.iter().chain(&signature.outputs);
    let Some(rows) = specs().next().and_then(row_dimension) else {
        return false;
    };
    let per_row = |spec: &TensorSpec| row_dimension(spec) == Some(rows);
    // Strings have no fixed length, by which a row of the outputs could be found.
    let fixed = |spec: &TensorSpec| spec.dtype != DType::String;
    specs().all(per_row) && signature.outputs.iter().all(fixed) && !signature.inputs.is_empty()
}

/// How many rows the inputs have, when they agree and each of the model's inputs is there.
pub(crate) fn rows(signature: &Signature, inputs: &[NamedTensor]) -> Option<usize> {
    let mut firsts = inputs.iter().map(|input| input.tensor.shape().first());
    let rows = *firsts.next()??;
    let agree = firsts.all(|first| first == Some(&rows));
    (agree && rows > 0 && inputs.len() == signature.inputs.len()).then_some(rows)
}

/// Whether the inputs, in the same order, differ in nothing but their rows.
pub(crate) fn fit_together(one: &[NamedTensor], other: &[NamedTensor]) -> bool {
    let same = |(one, other): (&NamedTensor, &NamedTensor)| {
        one.name == other.name && one.tensor.shape()[1..] == other.tensor.shape()[1..]
    };
    one.len() == other.len() && one.iter().zip(other).all(same)
}

/// The name of the first dimension. One without a name could be anything.
fn row_dimension(spec: &TensorSpec) -> Option<&str> {
    match spec.shape.as_ref()?.first()? {
        Dim::Symbolic(name) if !name.is_empty() && !spec.optional => Some(name),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blindai_core::Tensor;

    fn spec(name: &str, shape: &[&str]) -> TensorSpec {
        let dim = |text: &&str| match text.parse() {
            Ok(size) => Dim::Fixed(size),
            Err(_) => Dim::Symbolic((*text).to_owned()),
        };
        TensorSpec {
            name: name.to_owned(),
            dtype: DType::U8,
            shape: Some(shape.iter().map(dim).collect()),
            optional: false,
        }
    }

    fn signature(inputs: &[&[&str]], outputs: &[&[&str]]) -> Signature {
        let specs = |shapes: &[&[&str]]| {
            let named = shapes.iter().enumerate();
            named
                .map(|(i, shape)| spec(&format!("t{i}"), shape))
                .collect()
        };
        Signature {
            inputs: specs(inputs),
            outputs: specs(outputs),
        }
    }

    fn tensor(name: &str, shape: &[usize]) -> NamedTensor {
        let data = vec![0; shape.iter().product()];
        NamedTensor::new(
            name,
            Tensor::new(DType::U8, shape.to_vec(), data.into()).unwrap(),
        )
    }

    #[test]
    fn one_named_first_dimension_on_everything_makes_rows() {
        assert!(is_batchable(&signature(
            &[&["batch", "seq"], &["batch", "3"]],
            &[&["batch", "384"]]
        )));
    }

    #[test]
    fn anything_else_does_not() {
        for (inputs, outputs) in [
            (vec![&["1", "seq"][..]], vec![&["1", "5"][..]]),
            (vec![&["batch"][..], &["other"]], vec![&["batch"][..]]),
            (vec![&["batch"][..]], vec![&["batch"][..], &["3"]]),
            (vec![&["batch"][..]], vec![&["boxes", "6"][..]]),
            (vec![&[""][..]], vec![&[""][..]]),
            (vec![&["batch"][..]], vec![&[][..]]),
            (vec![], vec![&["batch"][..]]),
        ] {
            assert!(
                !is_batchable(&signature(&inputs, &outputs)),
                "{inputs:?} {outputs:?}"
            );
        }
        let mut strings = signature(&[&["batch"]], &[&["batch"]]);
        strings.outputs[0].dtype = DType::String;
        assert!(!is_batchable(&strings));
        let mut default = signature(&[&["batch"], &["batch"]], &[&["batch"]]);
        default.inputs[1].optional = true;
        assert!(!is_batchable(&default));
    }

    #[test]
    fn rows_are_counted_where_all_inputs_agree() {
        let signature = signature(&[&["batch", "n"], &["batch"]], &[&["batch"]]);
        let of = |inputs: &[NamedTensor]| rows(&signature, inputs);
        assert_eq!(of(&[tensor("t0", &[2, 7]), tensor("t1", &[2])]), Some(2));
        assert_eq!(of(&[tensor("t0", &[2, 7]), tensor("t1", &[3])]), None);
        assert_eq!(of(&[tensor("t0", &[0, 7]), tensor("t1", &[0])]), None);
        assert_eq!(of(&[tensor("t0", &[2, 7])]), None);
    }

    #[test]
    fn requests_fit_together_when_all_but_the_rows_is_the_same() {
        let one = [tensor("a", &[2, 7]), tensor("b", &[2])];
        assert!(fit_together(
            &one,
            &[tensor("a", &[5, 7]), tensor("b", &[5])]
        ));
        assert!(!fit_together(
            &one,
            &[tensor("a", &[2, 8]), tensor("b", &[2])]
        ));
        assert!(!fit_together(
            &one,
            &[tensor("b", &[2]), tensor("a", &[2, 7])]
        ));
        assert!(!fit_together(&one, &one[..1]));
    }
}
