//! The Open Inference Protocol (KServe V2) over HTTP: JSON with the binary tensor extension.
//!
//! A message is a JSON header, followed, when the HTTP header [`HEADER_LENGTH`] says so, by the raw
//! bytes of the tensors in the header's order. Both ends use this module, so what one writes the
//! other reads.
//!
//! Tensors stay where they are: a decoded tensor is a slice of the body, and an encoded message is
//! a list of parts that is never joined.

mod json;
mod message;
mod metadata;

pub use message::{
    Encoded, HEADER_LENGTH, InferRequest, InferResponse, OutputFormat, RequestedOutput,
    decode_request, decode_response, encode_request, encode_response,
};
pub use metadata::{ModelMetadata, ServerMetadata, TensorMetadata};
