//! What is refused before tract builds anything of it.
//!
//! tract goes by the bare name of an operator: it takes one of another domain, or a function of the
//! model, for ONNX's own of that name, and it leaves out what it does not know. A wrong answer is
//! worse than none, so only what is on a list passes.

use std::collections::HashSet;

use blindai_core::{Code, Error, Result};
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto};
use tract_onnx::prelude::DatumType;

use super::signature::{dtype, tensor_type};
use crate::worker::onnx::Graph;

/// # Errors
/// [`Code::ModelUnsupported`] with the operator, function, type or tensor; [`Code::ModelInvalid`]
/// when two nodes give a tensor of the same name.
pub(super) fn check(model: &ModelProto, graph: &Graph<'_>) -> Result<()> {
    let shadowed = |name: &&str| OPERATORS.contains(name) || ML_OPERATORS.contains(name);
    if let Some(name) = graph.functions().find(|name| shadowed(&&**name)) {
        return Err(unsupported(&format!(
            "function {name:?}, named as an operator"
        )));
    }
    let version = |domain: &str| {
        let mut imports = model.opset_import.iter();
        imports.find(|import| standard(&import.domain) == domain)
    };
    if let Some(import) = version("").filter(|import| import.version < FIRST_VERSION) {
        let version = import.version;
        return Err(unsupported(&format!(
            "operator set version {version}, only {FIRST_VERSION} and later"
        )));
    }
    if let Some(graph) = &model.graph {
        check_values("input", &graph.input)?;
        check_values("output", &graph.output)?;
        check_graph(graph)?;
    }
    Ok(())
}

/// An element type by its name in ONNX.
pub(super) fn kind(kind: i32) -> String {
    match DataType::try_from(kind) {
        Ok(kind) => kind.as_str_name().to_owned(),
        Err(_) => kind.to_string(),
    }
}

/// Before it, operands were not broadcast as they are today, and tract knows today's way only.
const FIRST_VERSION: i64 = 7;

fn check_values(role: &str, values: &[ValueInfoProto]) -> Result<()> {
    for value in values {
        let kind = tensor_type(value).map_or(0, |tensor| tensor.elem_type);
        if kind != 0 {
            dtype(role, &value.name, kind)?;
        }
    }
    Ok(())
}

fn check_graph(graph: &GraphProto) -> Result<()> {
    if !graph.sparse_initializer.is_empty() {
        return Err(unsupported("sparse tensors"));
    }
    graph.initializer.iter().try_for_each(check_tensor)?;
    let mut given = HashSet::new();
    for node in &graph.node {
        check_node(node)?;
        for output in node.output.iter().filter(|name| !name.is_empty()) {
            if !given.insert(output) {
                let fact = format!("two nodes of the model give {output:?}");
                return Err(Error::new(Code::ModelInvalid, fact));
            }
        }
    }
    Ok(())
}

fn check_node(node: &NodeProto) -> Result<()> {
    let (domain, operator) = (standard(&node.domain), node.op_type.as_str());
    let known = match domain {
        "" => OPERATORS.contains(&operator),
        "ai.onnx.ml" => ML_OPERATORS.contains(&operator),
        _ => false,
    };
    if is_quantised(operator) {
        return Err(unsupported(&format!(
            "operator {operator:?} of a quantised model"
        )));
    }
    if !known {
        let of = match domain {
            "" => String::new(),
            domain => format!(" of domain {domain:?}"),
        };
        return Err(unsupported(&format!("operator {operator:?}{of}")));
    }
    let lengths = node.input.get(SEQUENCE_LENGTHS);
    if RECURRENT.contains(&operator) && lengths.is_some_and(|name| !name.is_empty()) {
        return Err(unsupported(&format!(
            "operator {operator:?} with sequence_lens"
        )));
    }
    for attribute in &node.attribute {
        let mut tensors = attribute.t.iter().chain(&attribute.tensors);
        tensors.try_for_each(check_tensor)?;
        if attribute.sparse_tensor.is_some() || !attribute.sparse_tensors.is_empty() {
            return Err(unsupported("sparse tensors"));
        }
        let mut graphs = attribute.g.iter().chain(&attribute.graphs);
        graphs.try_for_each(check_graph)?;
    }
    Ok(())
}

/// tract takes every sequence for as long as the longest.
const RECURRENT: &[&str] = &["LSTM", "RNN"];
/// The input that says otherwise.
const SEQUENCE_LENGTHS: usize = 4;

fn check_tensor(tensor: &TensorProto) -> Result<()> {
    let known = DataType::try_from(tensor.data_type).map(DatumType::try_from);
    if matches!(known, Ok(Ok(_))) {
        return Ok(());
    }
    let (name, kind) = (&tensor.name, kind(tensor.data_type));
    Err(unsupported(&format!("tensor {name:?} of type {kind}")))
}

fn is_quantised(operator: &str) -> bool {
    operator.starts_with("QLinear")
        || operator.ends_with("Integer")
        || operator.ends_with("QuantizeLinear")
        || operator == "DequantizeLinear"
}

/// Two spellings of one domain.
fn standard(domain: &str) -> &str {
    match domain {
        "ai.onnx" => "",
        domain => domain,
    }
}

fn unsupported(what: &str) -> Error {
    let fact = format!("{what}: the engine tract does not take it");
    Error::new(Code::ModelUnsupported, fact)
}

/// Of ONNX itself: each gave what it should in ONNX's own node tests or in one of the test models.
const OPERATORS: &[&str] = &[
    "Abs",
    "Acos",
    "Acosh",
    "Add",
    "And",
    "ArgMax",
    "ArgMin",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "AveragePool",
    "BatchNormalization",
    "BitShift",
    "BitwiseAnd",
    "BitwiseNot",
    "BitwiseOr",
    "BitwiseXor",
    "Cast",
    "CastLike",
    "Ceil",
    "Celu",
    "Clip",
    "Concat",
    "Constant",
    "ConstantOfShape",
    "Conv",
    "ConvTranspose",
    "Cos",
    "Cosh",
    "DepthToSpace",
    "Div",
    "Dropout",
    "Einsum",
    "Elu",
    "Equal",
    "Erf",
    "Exp",
    "Expand",
    "EyeLike",
    "Flatten",
    "Floor",
    "Gather",
    "GatherElements",
    "GatherND",
    "Gelu",
    "Gemm",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "Greater",
    "GreaterOrEqual",
    "GridSample",
    "GroupNormalization",
    "HardSigmoid",
    "HardSwish",
    "Hardmax",
    "Identity",
    "If",
    "InstanceNormalization",
    "IsInf",
    "IsNaN",
    "LRN",
    "LSTM",
    "LayerNormalization",
    "LeakyRelu",
    "Less",
    "LessOrEqual",
    "Log",
    "LogSoftmax",
    "MatMul",
    "Max",
    "MaxPool",
    "Mean",
    "MeanVarianceNormalization",
    "Min",
    "Mish",
    "Mod",
    "Mul",
    "Neg",
    "NonMaxSuppression",
    "NonZero",
    "Not",
    "Or",
    "PRelu",
    "Pad",
    "Pow",
    "RMSNormalization",
    "RNN",
    "Range",
    "Reciprocal",
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
    "Relu",
    "Reshape",
    "Resize",
    "RotaryEmbedding",
    "Round",
    "Scan",
    "Scatter",
    "ScatterElements",
    "ScatterND",
    "Selu",
    "Shape",
    "Shrink",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Size",
    "Slice",
    "Softmax",
    "Softplus",
    "Softsign",
    "SpaceToDepth",
    "Split",
    "Sqrt",
    "Squeeze",
    "Sub",
    "Sum",
    "Swish",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
    "TopK",
    "Transpose",
    "Trilu",
    "Unsqueeze",
    "Where",
    "Xor",
];

/// Of ONNX-ML.
const ML_OPERATORS: &[&str] = &["ArrayFeatureExtractor", "TreeEnsembleClassifier"];
