//! The Open Inference Protocol (KServe V2): over HTTP as JSON with the binary tensor extension, over
//! gRPC in [`grpc`].
//!
//! Over HTTP, a message is a JSON header, followed, when the HTTP header [`HEADER_LENGTH`] says so, by the raw
//! bytes of the tensors in the header's order. Both ends use this module, so what one writes the
//! other reads.
//!
//! Tensors stay where they are: a decoded tensor is a slice of the body, and an encoded message is
//! a list of parts that is never joined.

mod classification;
mod extensions;
pub mod grpc;
mod json;
mod message;
mod metadata;
mod parameters;
pub(crate) mod protobuf;

pub use classification::classify_outputs;
pub use extensions::{
    Durations, EXTENSIONS, IndexEntry, InferenceStatistics, ModelConfig, ModelStatistics,
    NO_ISOLATION, StatisticsList,
};
pub use message::{
    Encoded, HEADER_LENGTH, InferRequest, InferResponse, OutputFormat, RequestedOutput,
    decode_request, decode_response, encode_request, encode_response,
};
pub use metadata::{ModelMetadata, ServerMetadata, TensorMetadata};

/// Is asked for room for so many bytes before they are taken. What a few bytes of a message may
/// become is the reader's to bound, and what an answer may become the writer's.
pub type Room<'a> = &'a mut dyn FnMut(u64) -> crate::Result<()>;
