use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::protobuf::Message;
use crate::{DType, EngineKind, ModelInfo, TensorSpec};

/// The answer to `GET /v2`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerMetadata {
    pub name: String,
    pub version: String,
    pub extensions: Vec<String>,
}

impl ServerMetadata {
    /// As `ServerMetadataResponse`.
    pub fn to_protobuf(&self) -> Bytes {
        Message::of(|m| {
            m.text(1, &self.name);
            m.text(2, &self.version);
            for extension in &self.extensions {
                m.element(3, extension.as_bytes());
            }
        })
    }
}

/// What the models of an engine are, in Triton's words.
pub(super) fn platform(engine: EngineKind) -> &'static str {
    match engine {
        EngineKind::OnnxRuntime => "onnxruntime_onnx",
        EngineKind::Tract => "tract_onnx",
    }
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
            platform: platform(info.engine).to_owned(),
            inputs: tensors(&info.signature.inputs),
            outputs: tensors(&info.signature.outputs),
        }
    }

    /// As `ModelMetadataResponse`.
    pub fn to_protobuf(&self) -> Bytes {
        Message::of(|m| {
            m.text(1, &self.name);
            for version in &self.versions {
                m.element(2, version.as_bytes());
            }
            m.text(3, &self.platform);
            for (number, tensors) in [(4, &self.inputs), (5, &self.outputs)] {
                for tensor in tensors {
                    m.message(number, |m| {
                        m.text(1, &tensor.name);
                        m.text(2, tensor.datatype.as_str());
                        m.integers(3, tensor.shape.iter().copied());
                    });
                }
            }
        })
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
