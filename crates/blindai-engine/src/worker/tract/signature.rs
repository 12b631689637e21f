//! What a model takes and gives, said as ONNX Runtime says it, so that clients see no difference.

use blindai_core::{Code, DType, Dim, Error, Result, Signature, TensorSpec};
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::tensor_shape_proto::{Dimension, dimension};
use tract_onnx::pb::{ModelProto, TensorShapeProto, ValueInfoProto, type_proto};
use tract_onnx::prelude::{DatumType, InferenceFact, InferenceModel, InferenceModelExt as _};
use tract_onnx::tract_hir::infer::Factoid as _;

/// # Errors
/// [`Code::ModelUnsupported`] for a type that tract does not have, [`Code::ModelInvalid`] for an
/// input without a type.
pub(super) fn signature(model: &ModelProto, parsed: &InferenceModel) -> Result<Signature> {
    let graph = model.graph.as_ref();
    let graph = graph.ok_or_else(|| Error::new(Code::ModelInvalid, "the file has no graph"))?;
    let default = |name: &str| graph.initializer.iter().any(|tensor| tensor.name == name);
    let (defaults, required): (Vec<_>, Vec<_>) =
        graph.input.iter().partition(|input| default(&input.name));
    let required = required.into_iter().map(|input| declared(input, false));
    // Up to version 3 every initializer had to be an input as well, and was a constant.
    let replaceable = model.ir_version >= FIRST_WITH_DEFAULTS;
    let defaults = defaults.into_iter().filter(|_| replaceable);
    let defaults = defaults.map(|input| declared(input, true));
    let inputs = required.chain(defaults).collect::<Result<_>>()?;
    let incomplete = |output: &&ValueInfoProto| tensor_type(output).is_none_or(is_incomplete);
    let inferred = graph.output.iter().any(|output| incomplete(&output));
    let inferred = match inferred {
        true => infer(parsed),
        false => Vec::new(),
    };
    let outputs = graph.output.iter().enumerate();
    let outputs = outputs.map(|(index, value)| output(value, inferred.get(index)));
    let outputs = outputs.collect::<Result<_>>()?;
    Ok(Signature { inputs, outputs })
}

/// The shape, where no dimension is open.
pub(super) fn fixed(spec: &TensorSpec) -> Option<Vec<usize>> {
    let size = |dim: &Dim| match dim {
        Dim::Fixed(size) => Some(*size),
        Dim::Symbolic(_) => None,
    };
    spec.shape.as_ref()?.iter().map(size).collect()
}

const FIRST_WITH_DEFAULTS: i64 = 4;

fn declared(value: &ValueInfoProto, optional: bool) -> Result<TensorSpec> {
    let name = &value.name;
    let Some(tensor) = tensor_type(value) else {
        let fact = format!("input {name:?} has no type");
        return Err(Error::new(Code::ModelInvalid, fact));
    };
    Ok(TensorSpec {
        name: name.clone(),
        dtype: dtype("input", name, tensor.elem_type)?,
        shape: tensor.shape.as_ref().map(dims),
        optional,
    })
}

/// What the file leaves open of an output is filled in with what tract finds out.
fn output(value: &ValueInfoProto, inferred: Option<&InferenceFact>) -> Result<TensorSpec> {
    let name = &value.name;
    let tensor = tensor_type(value);
    let found = inferred.and_then(|fact| from_datum_type(fact.datum_type.concretize()?));
    let dtype = match tensor.filter(|tensor| tensor.elem_type != 0) {
        Some(tensor) => dtype("output", name, tensor.elem_type)?,
        None => found.ok_or_else(|| {
            let fact = format!("output {name:?} has no type");
            Error::new(Code::ModelUnsupported, fact)
        })?,
    };
    let declared = tensor.and_then(|tensor| tensor.shape.as_ref()).map(dims);
    Ok(TensorSpec {
        name: name.clone(),
        dtype,
        shape: complete(declared, inferred),
        optional: false,
    })
}

fn complete(declared: Option<Vec<Dim>>, inferred: Option<&InferenceFact>) -> Option<Vec<Dim>> {
    let inferred = inferred.and_then(|fact| {
        let dims = fact.shape.dims().map(|dim| {
            let size = dim.concretize().and_then(|dim| dim.to_i64().ok());
            let size = size.and_then(|size| usize::try_from(size).ok());
            size.map_or_else(|| Dim::Symbolic(String::new()), Dim::Fixed)
        });
        (!fact.shape.is_open()).then(|| dims.collect::<Vec<_>>())
    });
    let Some(mut dims) = declared else {
        return inferred;
    };
    let inferred = inferred.filter(|inferred| inferred.len() == dims.len());
    for (dim, found) in dims.iter_mut().zip(inferred.into_iter().flatten()) {
        if matches!(dim, Dim::Symbolic(name) if name.is_empty()) {
            *dim = found;
        }
    }
    Some(dims)
}

/// What tract knows of the outputs while dimensions are open; nothing where it fails.
fn infer(parsed: &InferenceModel) -> Vec<InferenceFact> {
    let mut model = parsed.clone();
    let _ = model.analyse(true);
    let facts = (0..model.outputs.len()).map(|index| model.output_fact(index).cloned());
    facts.collect::<Result<_, _>>().unwrap_or_default()
}

fn is_incomplete(tensor: &type_proto::Tensor) -> bool {
    let open = |dim: &Dimension| dim.value.is_none();
    tensor.elem_type == 0 || tensor.shape.as_ref().is_none_or(|s| s.dim.iter().any(open))
}

pub(super) fn tensor_type(value: &ValueInfoProto) -> Option<&type_proto::Tensor> {
    let type_proto::Value::TensorType(tensor) = value.r#type.as_ref()?.value.as_ref()?;
    Some(tensor)
}

fn dims(shape: &TensorShapeProto) -> Vec<Dim> {
    let dim = |dim: &Dimension| match &dim.value {
        Some(dimension::Value::DimValue(size)) => match usize::try_from(*size) {
            Ok(size) => Dim::Fixed(size),
            Err(_) => Dim::Symbolic(String::new()),
        },
        Some(dimension::Value::DimParam(name)) => Dim::Symbolic(name.clone()),
        None => Dim::Symbolic(String::new()),
    };
    shape.dim.iter().map(dim).collect()
}

/// # Errors
/// [`Code::ModelUnsupported`] for a type that tract does not have.
pub(super) fn dtype(role: &str, name: &str, kind: i32) -> Result<DType> {
    let found = DataType::try_from(kind).ok().and_then(|kind| {
        let kind = DatumType::try_from(kind).ok()?;
        from_datum_type(kind)
    });
    found.ok_or_else(|| {
        let kind = super::check::kind(kind);
        let fact = format!("{role} {name:?} is of type {kind}, which the engine tract lacks");
        Error::new(Code::ModelUnsupported, fact)
    })
}

fn from_datum_type(kind: DatumType) -> Option<DType> {
    let same = |dtype: &&DType| super::datum_type(**dtype) == Some(kind);
    match kind {
        DatumType::TDim => Some(DType::I64),
        _ => DType::ALL.iter().find(same).copied(),
    }
}
