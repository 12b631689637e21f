//! The JSON of `/v1`: what both ends of the models API read and write.

use serde::{Deserialize, Serialize};

use crate::ModelInfo;

/// The path of the models API.
pub const MODELS: &str = "/v1/models";
/// The query of an upload to a version whose content may be replaced.
pub const REPLACE: &str = "replace=true";
/// The path of fresh evidence; takes `?nonce=<64 hex>`.
pub const ATTESTATION: &str = "/v1/attestation";
/// Announces or answers a body's digest (RFC 9530): `sha-256=:<base64>:`.
pub const CONTENT_DIGEST: &str = "content-digest";
/// Identifies a request in answers and logs; drawn by the server when the caller sends none.
pub const REQUEST_ID: &str = "x-request-id";
/// Ids of the caller's trace and span (W3C Trace Context).
pub const TRACEPARENT: &str = "traceparent";

/// The answer to `GET /v1/models`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelList {
    pub models: Vec<ModelInfo>,
}

/// The answer to `DELETE /v1/models/{name}[/versions/{version}]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deleted {
    pub deleted: Vec<ModelInfo>,
}
