use blindai_core::legacy::Datum;
use blindai_core::{Code, Dim, Error, Result, Shape, Signature, TensorSpec};

/// The one input that a model must be given.
///
/// # Errors
/// [`Code::ModelUnsupported`] when it needs more, or none.
pub fn only_input(signature: &Signature) -> Result<&TensorSpec> {
    let mut needed = signature.inputs.iter().filter(|spec| !spec.optional);
    match (needed.next(), needed.next()) {
        (Some(input), None) => Ok(input),
        _ => Err(unsupported("the model does not have exactly one input")),
    }
}

/// The one output that 0.3 knows of.
///
/// # Errors
/// [`Code::ModelUnsupported`] when there is none.
pub fn first_output(signature: &Signature) -> Result<&TensorSpec> {
    let first = signature.outputs.first();
    first.ok_or_else(|| unsupported("the model has no output"))
}

/// Checks that an input or output has the type that was declared.
///
/// # Errors
/// [`Code::InputDType`], and [`Code::ModelUnsupported`] for one that 0.3 does not have.
pub fn check_datum(what: &str, spec: &TensorSpec, declared: Datum) -> Result<()> {
    let (name, dtype) = (&spec.name, spec.dtype);
    let Some(datum) = Datum::of(dtype) else {
        let fact = format!("the {what} {name:?} is {dtype}, which BlindAI 0.3 does not have");
        return Err(unsupported(&fact));
    };
    if datum == declared {
        return Ok(());
    }
    let declared = declared.dtype();
    let fact = format!("the {what} {name:?} is {dtype}, {declared} was declared");
    let argument = if what == "input" {
        "dtype"
    } else {
        "dtype_out"
    };
    let remedy = format!("pass {argument}=ModelDatumType.{}", dtype.short());
    Err(Error::new(Code::InputDType, fact).with_remedy(remedy))
}

/// The shape of the input: as it was declared, if the model can take it; without a declaration that
/// of the model, if it leaves nothing open.
///
/// # Errors
/// [`Code::InputShape`]
pub fn settle_shape(spec: &TensorSpec, declared: &[i32]) -> Result<Shape> {
    let sizes = declared.iter().map(|&size| usize::try_from(size).ok());
    let sizes = sizes.collect::<Option<Shape>>();
    let fits = |sizes: &Shape| match &spec.shape {
        None => true,
        Some(dims) => {
            let fits = |(dim, size)| !matches!(dim, &Dim::Fixed(own) if own != size);
            dims.len() == sizes.len() && dims.iter().zip(sizes.iter().copied()).all(fits)
        }
    };
    if let Some(sizes) = sizes.filter(fits) {
        return Ok(sizes);
    }
    let own = spec.shape.as_deref();
    if let Some(sizes) = own.filter(|_| declared.is_empty()).and_then(fixed) {
        return Ok(sizes);
    }
    let own = own.map_or("any shape".to_owned(), list);
    let fact = format!(
        "the input {:?} takes {own}, {} was declared",
        spec.name,
        list(declared)
    );
    Err(Error::new(Code::InputShape, fact).with_remedy("pass shape= as the model has it"))
}

fn fixed(dims: &[Dim]) -> Option<Shape> {
    let size = |dim: &Dim| match dim {
        Dim::Fixed(size) => Some(*size),
        Dim::Symbolic(_) => None,
    };
    dims.iter().map(size).collect()
}

fn list<T: ToString>(sizes: &[T]) -> String {
    let sizes: Vec<_> = sizes.iter().map(T::to_string).collect();
    format!("[{}]", sizes.join(","))
}

fn unsupported(fact: &str) -> Error {
    let remedy = "use a client of today, which names inputs and outputs";
    Error::new(Code::ModelUnsupported, fact).with_remedy(remedy)
}

#[cfg(test)]
mod tests {
    use blindai_core::DType;

    use super::*;

    fn spec(shape: Option<Vec<Dim>>) -> TensorSpec {
        TensorSpec {
            name: "x".to_owned(),
            dtype: DType::I64,
            shape,
            optional: false,
        }
    }

    #[test]
    fn a_shape_is_what_was_declared_where_the_model_can_take_it() {
        let open = spec(Some(vec![Dim::Symbolic("n".into()), Dim::Fixed(3)]));
        assert_eq!(settle_shape(&open, &[2, 3]), Ok(vec![2, 3]));
        assert_eq!(settle_shape(&spec(None), &[5]), Ok(vec![5]));
        let whole = spec(Some(vec![Dim::Fixed(1), Dim::Fixed(3)]));
        assert_eq!(settle_shape(&whole, &[]), Ok(vec![1, 3]));
        assert_eq!(settle_shape(&spec(Some(vec![])), &[]), Ok(vec![]));
        for misfit in [&[2, 4][..], &[3], &[-1, 3], &[]] {
            let error = settle_shape(&open, misfit).unwrap_err();
            assert_eq!(error.code(), Code::InputShape, "{misfit:?}");
            assert!(error.fact().contains("[n,3]"), "{error}");
        }
    }

    #[test]
    fn a_type_is_held_to_its_declaration() {
        let input = spec(None);
        check_datum("input", &input, Datum::I64).unwrap();
        let error = check_datum("output", &input, Datum::F32).unwrap_err();
        assert_eq!(error.code(), Code::InputDType);
        assert_eq!(error.remedy(), "pass dtype_out=ModelDatumType.I64");
        let strange = TensorSpec {
            dtype: DType::String,
            ..input
        };
        let error = check_datum("input", &strange, Datum::F32).unwrap_err();
        assert_eq!(error.code(), Code::ModelUnsupported);
    }

    #[test]
    fn models_have_one_input_and_an_output() {
        let optional = TensorSpec {
            optional: true,
            ..spec(None)
        };
        let of = |inputs: &[&TensorSpec]| Signature {
            inputs: inputs.iter().map(|&spec| spec.clone()).collect(),
            outputs: vec![],
        };
        let input = spec(None);
        assert!(only_input(&of(&[&optional, &input])).is_ok());
        for inputs in [&[][..], &[&input, &input], &[&optional]] {
            let error = only_input(&of(inputs)).unwrap_err();
            assert_eq!(error.code(), Code::ModelUnsupported);
        }
        assert!(first_output(&of(&[])).is_err());
    }
}
