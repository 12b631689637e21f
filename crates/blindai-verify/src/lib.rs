#![forbid(unsafe_code)]

mod appraise;
mod certificate;
mod check;
mod code;
mod dcap;
mod policy;
mod report;

pub use appraise::{Binding, appraise_quote, verify};
pub use certificate::{CertificateEvidence, read_certificate};
pub use check::{Check, Outcome, Rejection, checks};
pub use code::RejectionCode;
pub use policy::{DangerousPolicy, Policy, PolicyError};
pub use report::{QuoteReport, VerifiedReport};
