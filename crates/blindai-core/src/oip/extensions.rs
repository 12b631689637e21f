//! What Triton says of models beyond the protocol: configuration, statistics, the index of the
//! repository. As JSON and as Protocol Buffers.

use core::time::Duration;

use bytes::Bytes;
use serde::{Serialize, Serializer};

use super::metadata::{TensorMetadata, platform};
use super::protobuf::Message;
use crate::{DType, ModelInfo};

/// The extensions of the protocol that this server speaks, by Triton's names.
pub const EXTENSIONS: [&str; 4] = [
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "statistics",
];

/// Stands beside the extensions of a server whose models run in its own process.
pub const NO_ISOLATION: &str = "blindai_isolation_none";

/// The answer to `GET /v2/models/{model}/config`. Whatever Triton could configure besides, there is
/// none of.
#[derive(Clone, Debug, Serialize)]
pub struct ModelConfig {
    name: String,
    platform: &'static str,
    backend: &'static str,
    /// 0: the batch, if there is one, is an ordinary dimension.
    max_batch_size: u32,
    input: Vec<TensorConfig>,
    output: Vec<TensorConfig>,
}

#[derive(Clone, Debug, Serialize)]
struct TensorConfig {
    name: String,
    #[serde(serialize_with = "type_name")]
    data_type: DType,
    dims: Vec<i64>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    optional: bool,
}

impl ModelConfig {
    /// The configuration of a model.
    pub fn new(info: &ModelInfo) -> Self {
        let tensors = |specs: &[crate::TensorSpec]| specs.iter().map(TensorConfig::new).collect();
        Self {
            name: info.name.to_string(),
            platform: platform(info.engine),
            backend: info.engine.as_str(),
            max_batch_size: 0,
            input: tensors(&info.signature.inputs),
            output: tensors(&info.signature.outputs),
        }
    }

    /// As `ModelConfigResponse`.
    pub fn to_protobuf(&self) -> Bytes {
        Message::of(|m| m.message(1, |m| self.write(m)))
    }

    fn write(&self, m: &mut Message) {
        m.text(1, &self.name);
        m.text(2, self.platform);
        m.integer(4, self.max_batch_size.into());
        for tensor in &self.input {
            m.message(5, |m| {
                tensor.write(m, 4);
                m.flag(8, tensor.optional);
            });
        }
        for tensor in &self.output {
            m.message(6, |m| tensor.write(m, 3));
        }
        m.text(17, self.backend);
    }
}

impl TensorConfig {
    fn new(spec: &crate::TensorSpec) -> Self {
        let metadata = TensorMetadata::from(spec);
        Self {
            name: metadata.name,
            data_type: metadata.datatype,
            dims: metadata.shape,
            optional: spec.optional,
        }
    }

    fn write(&self, m: &mut Message, dims: u32) {
        m.text(1, &self.name);
        m.integer(2, type_number(self.data_type));
        m.integers(dims, self.dims.iter().copied());
    }
}

// Triton's `DataType`, whose names are those of the protocol but for strings.
fn type_name<S: Serializer>(dtype: &DType, serializer: S) -> Result<S::Ok, S::Error> {
    match dtype {
        DType::String => serializer.serialize_str("TYPE_STRING"),
        dtype => serializer.collect_str(&format_args!("TYPE_{dtype}")),
    }
}

fn type_number(dtype: DType) -> u64 {
    match dtype {
        DType::Bool => 1,
        DType::U8 => 2,
        DType::U16 => 3,
        DType::U32 => 4,
        DType::U64 => 5,
        DType::I8 => 6,
        DType::I16 => 7,
        DType::I32 => 8,
        DType::I64 => 9,
        DType::F16 => 10,
        DType::F32 => 11,
        DType::F64 => 12,
        DType::String => 13,
        DType::BF16 => 14,
    }
}

/// What a model has done since it was uploaded.
#[derive(Clone, Debug, Serialize)]
pub struct ModelStatistics {
    pub name: String,
    pub version: String,
    /// When the last request ended well, in milliseconds since 1970; 0 for never.
    pub last_inference: u64,
    pub inference_count: u64,
    pub execution_count: u64,
    pub inference_stats: InferenceStatistics,
}

/// How requests ended.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct InferenceStatistics {
    pub success: Durations,
    pub fail: Durations,
}

/// So many, and how long they took together.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Durations {
    pub count: u64,
    /// Nanoseconds.
    pub ns: u64,
}

impl Durations {
    /// Counts one more.
    pub fn add(&mut self, taken: Duration) {
        self.count += 1;
        self.ns += u64::try_from(taken.as_nanos()).unwrap_or(u64::MAX / 2);
    }
}

/// The answer to `GET /v2/models/{model}/stats`.
#[derive(Clone, Debug, Serialize)]
pub struct StatisticsList {
    pub model_stats: Vec<ModelStatistics>,
}

impl StatisticsList {
    /// As `ModelStatisticsResponse`.
    pub fn to_protobuf(&self) -> Bytes {
        Message::of(|m| {
            for model in &self.model_stats {
                m.message(1, |m| model.write(m));
            }
        })
    }
}

impl ModelStatistics {
    fn write(&self, m: &mut Message) {
        m.text(1, &self.name);
        m.text(2, &self.version);
        m.integer(3, self.last_inference);
        m.integer(4, self.inference_count);
        m.integer(5, self.execution_count);
        let stats = &self.inference_stats;
        m.message(6, |m| {
            for (number, durations) in [(1, &stats.success), (2, &stats.fail)] {
                m.message(number, |m| {
                    m.integer(1, durations.count);
                    m.integer(2, durations.ns);
                });
            }
        });
    }
}

/// An element of the answer to `POST /v2/repository/index`.
#[derive(Clone, Debug, Serialize)]
pub struct IndexEntry {
    pub name: String,
    pub version: String,
    pub state: &'static str,
    pub reason: &'static str,
}

impl IndexEntry {
    /// A model is ready in memory. Out of memory it is unavailable, in Triton's word, though a request
    /// is answered: who looks here wants to know what takes memory.
    pub fn new(info: &ModelInfo) -> Self {
        let (state, reason) = match info.loaded {
            true => ("READY", ""),
            false => ("UNAVAILABLE", "unloaded: the next request loads it"),
        };
        Self {
            name: info.name.to_string(),
            version: info.version.to_string(),
            state,
            reason,
        }
    }

    /// As `RepositoryIndexResponse`.
    pub fn list_to_protobuf(entries: &[Self]) -> Bytes {
        Message::of(|m| {
            for entry in entries {
                m.message(1, |m| {
                    m.text(1, &entry.name);
                    m.text(2, &entry.version);
                    m.text(3, entry.state);
                    m.text(4, entry.reason);
                });
            }
        })
    }
}
