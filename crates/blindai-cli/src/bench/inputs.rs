//! Inputs that fit a model, where none were given.

use std::str::FromStr;

use anyhow::{Context as _, Result, bail};
use blindai_core::{DType, Dim, NamedTensor, Signature, Tensor, TensorSpec};

/// A shape for one input, written `NAME=1,3,224,224`; `NAME=` for a scalar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    name: String,
    dims: Vec<usize>,
}

impl FromStr for Shape {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let remedy = "write it as NAME=1,3,224,224";
        let (name, dims) = text.split_once('=').ok_or(remedy)?;
        let dims = dims.split(',').filter(|dim| !dim.is_empty());
        let dims: Result<_, _> = dims.map(str::parse).collect();
        match (name, dims) {
            ("", _) | (_, Err(_)) => Err(remedy),
            (name, Ok(dims)) => Ok(Self {
                name: name.to_owned(),
                dims,
            }),
        }
    }
}

/// The inputs that were given, and random ones for the rest of the signature.
///
/// # Errors
/// When an open dimension has no shape, a shape is for no random input, or is too large.
pub fn complete(
    signature: &Signature,
    given: Vec<NamedTensor>,
    shapes: &[Shape],
    seed: u64,
) -> Result<Vec<NamedTensor>> {
    let missing = |spec: &&TensorSpec| !given.iter().any(|input| input.name == spec.name);
    let missing: Vec<_> = signature.inputs.iter().filter(missing).collect();
    if let Some(stray) = shapes
        .iter()
        .find(|shape| !missing.iter().any(|spec| spec.name == shape.name))
    {
        bail!(
            "--shape {:?} is for no random input of the model",
            stray.name
        );
    }
    let mut random = fastrand::Rng::with_seed(seed);
    let mut inputs = Vec::new();
    for spec in missing {
        let shape = shapes.iter().find(|shape| shape.name == spec.name);
        // What may be left out and was not asked for stays at its default.
        if spec.optional && shape.is_none() {
            continue;
        }
        inputs.push(draw(spec, shape, &mut random)?);
    }
    inputs.extend(given);
    Ok(inputs)
}

fn draw(
    spec: &TensorSpec,
    shape: Option<&Shape>,
    random: &mut fastrand::Rng,
) -> Result<NamedTensor> {
    let name = &spec.name;
    let dims = match shape {
        Some(shape) => shape.dims.clone(),
        None => fixed(spec).with_context(|| {
            let open = describe(spec);
            format!("input {name:?} takes {open} · say its shape: --shape {name}=…, or --input")
        })?,
    };
    let count = dims
        .iter()
        .try_fold(1usize, |product, &dim| product.checked_mul(dim));
    let count = count.filter(|&count| count <= MOST_ELEMENTS);
    let count = count.with_context(|| {
        format!(
            "input {name:?} would have more than {MOST_ELEMENTS} elements · give a smaller shape"
        )
    })?;
    Ok(NamedTensor::new(
        name,
        elements(spec.dtype, dims, count, random)?,
    ))
}

fn fixed(spec: &TensorSpec) -> Option<Vec<usize>> {
    let size = |dim: &Dim| match dim {
        Dim::Fixed(size) => Some(*size),
        Dim::Symbolic(_) => None,
    };
    spec.shape.as_ref()?.iter().map(size).collect()
}

fn describe(spec: &TensorSpec) -> String {
    let Some(shape) = &spec.shape else {
        return format!("{} of any shape", spec.dtype);
    };
    let dims: Vec<_> = shape.iter().map(ToString::to_string).collect();
    format!("{}[{}]", spec.dtype, dims.join(","))
}

/// Floats from 0 to 1. Integers are 0 or 1, because to many a model they are places in a table.
fn elements(
    dtype: DType,
    shape: Vec<usize>,
    count: usize,
    random: &mut fastrand::Rng,
) -> Result<Tensor> {
    if dtype == DType::String {
        let word =
            |random: &mut fastrand::Rng| -> String { (0..8).map(|_| random.lowercase()).collect() };
        let words: Vec<String> = (0..count).map(|_| word(random)).collect();
        return Ok(Tensor::from_strings(shape, &words)?);
    }
    let size = dtype.size().context("a type of fixed size")?;
    let mut data = Vec::with_capacity(count * size);
    for _ in 0..count {
        match dtype {
            DType::F32 => data.extend(random.f32().to_le_bytes()),
            DType::F64 => data.extend(random.f64().to_le_bytes()),
            // The bits of 0.5 up to 1.
            DType::F16 => data.extend(random.u16(0x3800..0x3c00).to_le_bytes()),
            DType::BF16 => data.extend(random.u16(0x3f00..0x3f80).to_le_bytes()),
            _ => {
                data.push(u8::from(random.bool()));
                data.resize(data.len() + size - 1, 0);
            }
        }
    }
    Ok(Tensor::new(dtype, shape, data.into())?)
}

const MOST_ELEMENTS: usize = 1 << 27;

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, dtype: DType, shape: Option<Vec<Dim>>) -> TensorSpec {
        TensorSpec {
            name: name.into(),
            dtype,
            shape,
            optional: false,
        }
    }

    fn signature(inputs: Vec<TensorSpec>) -> Signature {
        Signature {
            inputs,
            outputs: Vec::new(),
        }
    }

    #[test]
    fn random_inputs_of_every_type_fit_their_signature() {
        let inputs: Vec<_> = DType::ALL
            .iter()
            .map(|&dtype| {
                spec(
                    dtype.as_str(),
                    dtype,
                    Some(vec![Dim::Fixed(2), Dim::Fixed(3)]),
                )
            })
            .collect();
        let signature = signature(inputs);
        let drawn = complete(&signature, Vec::new(), &[], 1).unwrap();
        signature.check_inputs(&drawn).unwrap();
        assert_eq!(drawn.len(), DType::ALL.len());
        assert_eq!(drawn, complete(&signature, Vec::new(), &[], 1).unwrap());
        assert_ne!(drawn, complete(&signature, Vec::new(), &[], 2).unwrap());
    }

    #[test]
    fn open_dimensions_need_a_shape() {
        let open = Some(vec![Dim::Symbolic("batch".into()), Dim::Fixed(3)]);
        let signature = signature(vec![
            spec("x", DType::F32, open),
            spec("s", DType::I64, None),
        ]);
        let error = complete(&signature, Vec::new(), &[], 0)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("FP32[batch,3]") && error.contains("--shape x="),
            "{error}"
        );
        let shapes = ["x=4,3".parse().unwrap(), "s=".parse().unwrap()];
        let drawn = complete(&signature, Vec::new(), &shapes, 0).unwrap();
        assert_eq!(drawn[0].tensor.shape(), [4, 3]);
        assert!(drawn[1].tensor.shape().is_empty());
    }

    #[test]
    fn what_was_given_is_kept_and_a_stray_shape_refused() {
        let signature = signature(vec![spec("x", DType::U8, None)]);
        let given = NamedTensor::new(
            "x",
            Tensor::new(DType::U8, vec![1], vec![9].into()).unwrap(),
        );
        let kept = complete(&signature, vec![given.clone()], &[], 0).unwrap();
        assert_eq!(kept, std::slice::from_ref(&given));
        let stray = ["x=1".parse().unwrap()];
        assert!(complete(&signature, vec![given], &stray, 0).is_err());
    }

    #[test]
    fn a_shape_is_bounded_before_memory_is_taken() {
        let signature = signature(vec![spec("x", DType::U8, None)]);
        for huge in ["x=18446744073709551615,2", "x=1000000000"] {
            let error = complete(&signature, Vec::new(), &[huge.parse().unwrap()], 0);
            assert!(error.unwrap_err().to_string().contains("elements"));
        }
        for bad in ["x", "=1", "x=a", "x=-1"] {
            assert!(bad.parse::<Shape>().is_err(), "{bad}");
        }
    }
}
