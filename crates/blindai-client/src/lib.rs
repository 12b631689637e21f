//! The client of BlindAI: it verifies *what code runs on what hardware* before one byte of data
//! leaves it, then talks over a channel that ends inside that hardware.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use blindai_client::{Client, ConnectOptions, InferRequest, NamedTensor, Policy, Tensor, Upload};
//! use blindai_core::DType;
//!
//! let policy = Policy::from_toml(&std::fs::read_to_string("policy.toml")?)?;
//! let client = Client::connect("localhost:50051", ConnectOptions::new(policy)).await?;
//! println!("{}", client.report());
//!
//! let name = "identity".parse()?;
//! client.upload(Upload::file(&name, "identity.onnx")).await?;
//! let x = Tensor::new(DType::F32, vec![1], vec![0; 4].into())?;
//! let request = InferRequest::new(vec![NamedTensor::new("x", x)]);
//! let answer = client.infer(&name, None, &request).await?;
//! println!("{:?}", answer.outputs);
//! # Ok(())
//! # }
//! ```
//!
//! How a connection becomes trusted is one straight line in `trust.rs`. Nothing but that line makes
//! a connection on which a request can be sent. A program that speaks for itself takes its
//! connections from a [`Connector`].
//!
//! The same verbs without async are in [`blocking`].
//!
//! What is *not* protected: the size and the time of every message, the server's address, and
//! everything when the policy accepts simulation (see [`VerifiedReport::simulated`]; this library
//! prints nothing, so its caller has to warn).
#![forbid(unsafe_code)]

mod accepted;
mod address;
pub mod blocking;
mod client;
mod connector;
mod credentials;
mod error;
mod http1;
mod kept;
mod legacy;
mod receipt;
mod trust;
mod upload;

pub use address::DEFAULT_PORT;
pub use blindai_collateral::{CollateralError, FetchOptions, Fetcher, Source};
pub use blindai_core::oip::{InferRequest, InferResponse};
pub use blindai_core::pins::{ModelPin, ModelPins};
pub use blindai_core::receipt::{ReceiptNonce, ReceiptRequest, Statement};
pub use blindai_core::{
    Digest, EvidenceDocument, ModelInfo, ModelName, ModelVersion, NamedTensor, Tensor, Token,
};
pub use blindai_verify::{
    ExpectedReceipt, Policy, PolicyError, Rejection, VerifiedReceipt, VerifiedReport,
};
pub use client::{Client, ConnectOptions, PreparedRequest};
pub use connector::{Connection, Connector, Failure, Trust};
pub use credentials::{ClientCertificate, authorization};
pub use error::{ClientError, ErrorKind};
pub use kept::{is_simulated, judge_kept};
pub use legacy::SignedAnswer;
pub use receipt::{Receipt, evidence_beside};
pub use trust::Protocol;
pub use upload::{Progress, Upload};
