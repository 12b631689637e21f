use serde::{Deserialize, Serialize};

use crate::{DType, ModelInfo, TensorSpec};

/// The answer to `GET /v2`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerMetadata {
    pub name: String,
    pub version: String,
    pub extensions: Vec<String>,
}

/// The answer to `GET /v2/models/{model}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelMetadata {
    pub name: String,
    pub versions: Vec<String>,
    pub platform: String,
    pub inputs: Vec<TensorMetadata>,
    pub outputs: Vec<TensorMetadata>,
}

impl ModelMetadata {
    /// The metadata of a model that is held in these versions.
    pub fn new(info: &ModelInfo, versions: Vec<String>) -> Self {
        let tensors = |specs: &[TensorSpec]| specs.iter().map(TensorMetadata::from).collect();
        Self {
            name: info.name.to_string(),
            versions,
            platform: "onnxruntime_onnx".to_owned(),
            inputs: tensors(&info.signature.inputs),
            outputs: tensors(&info.signature.outputs),
        }
    }
}

/// A tensor of a model's signature; -1 stands for any size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorMetadata {
    pub name: String,
    pub datatype: DType,
    pub shape: Vec<i64>,
}

impl From<&TensorSpec> for TensorMetadata {
    fn from(spec: &TensorSpec) -> Self {
        Self {
            name: spec.name.clone(),
            datatype: spec.dtype,
            // The protocol cannot say "any number of dimensions"; one open dimension is closest.
            shape: match &spec.shape {
                Some(shape) => shape.iter().map(crate::Dim::to_oip).collect(),
                None => vec![-1],
            },
        }
    }
}
