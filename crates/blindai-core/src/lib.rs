//! The vocabulary that server and client share, and the only place where they meet.
//!
//! - [`Tensor`], [`DType`], [`Signature`]: what goes into a model and what comes out.
//! - [`Claims`] and [`ReportData`]: what the server says of itself, and the digest that the
//!   hardware signs over it.
//! - [`Evidence`] and [`EvidenceDocument`]: the quote with the claims it binds, in the TLS
//!   certificate and in a file.
//! - [`receipt`]: what the server states of one inference or upload, signed.
//! - [`oip`] and [`api`]: the wire formats of HTTP and gRPC, written once for both ends.
//! - [`legacy`]: those of BlindAI 0.3.
//! - [`Token`]: who calls, where the server wants to know.
//! - [`Error`]: one shape everywhere: a stable code, a fact, a remedy.
//!
//! This crate does no I/O and holds no `unsafe`. What it does *not* do: decide whether evidence is
//! to be trusted. That is `blindai-verify`.
#![forbid(unsafe_code)]

pub mod api;
mod claims;
mod digest;
mod error;
mod evidence;
pub mod legacy;
mod model;
pub mod oip;
pub mod pins;
pub mod receipt;
pub mod simulation;
mod tensor;
mod text;
mod token;

pub use claims::{Claims, ClaimsError, Nonce, ReportData};
pub use digest::Digest;
pub use error::{Code, Error, ErrorBody, Kind, Result};
pub use evidence::{
    CMW_OID, Collateral, CollateralState, CollateralStatus, DcapCollateral, Evidence,
    EvidenceDocument, EvidenceError, RA_TLS_OID, Seen, SnpCollateral, Tee,
};
pub use model::{Dim, EngineKind, Kept, ModelInfo, ModelName, ModelVersion, Signature, TensorSpec};
pub use tensor::{DType, NamedTensor, Shape, Tensor};
pub use text::{is_steering, printable};
pub use token::Token;
