//! Receipts that somebody kept.

use blindai_client::{EvidenceDocument, ExpectedReceipt, NamedTensor, Receipt, ReceiptNonce};
use blindai_core::receipt::SignedStatement;
use blindai_core::{Code, Error};
use pyo3::prelude::*;

use crate::error::{malformed, refused, to_python};
use crate::tensor::Input;
use crate::verbs::{PolicySource, Report, no_policy, read_digest, read_policy};

/// What a receipt says, as JSON. Nothing of it is verified.
#[pyfunction]
pub fn read_receipt(receipt: &[u8]) -> PyResult<String> {
    let signed = SignedStatement::decode(receipt);
    let signed = signed.map_err(|error| malformed("receipt-malformed", &error))?;
    Ok(signed.statement.to_json().to_string())
}

/// Verifies a receipt under evidence that was kept with it.
#[pyfunction]
#[allow(clippy::too_many_arguments, reason = "the facade names them")]
pub fn verify_receipt(
    py: Python<'_>,
    receipt: Vec<u8>,
    evidence: &str,
    simulation: bool,
    policy: Option<PolicySource>,
    at: Option<u64>,
    model: Option<&str>,
    inputs: Vec<Input<'_>>,
    outputs: Vec<Input<'_>>,
    nonce: Option<&[u8]>,
) -> PyResult<Report> {
    if policy.is_none() && !simulation {
        return Err(no_policy());
    }
    let policy = read_policy(policy.as_ref(), simulation)?;
    let evidence = EvidenceDocument::from_json(evidence.as_bytes());
    let evidence = evidence.map_err(|error| malformed("evidence-malformed", &error))?;
    let receipt = Receipt::new(receipt, evidence);
    let nonce = nonce.map(read_nonce).transpose()?;
    let (inputs, outputs) = (tensors(inputs)?, tensors(outputs)?);
    let expected = ExpectedReceipt {
        model_digest: model.map(read_digest).transpose()?,
        inputs: &inputs,
        outputs: &outputs,
        nonce: nonce.as_ref(),
        ..ExpectedReceipt::default()
    };
    let verdict = py.detach(|| receipt.verify(&policy, at, &expected));
    let (verified, report) = verdict.map_err(to_python)?;
    let table = format!("{verified}\nits evidence:\n{report}");
    Ok((verified.to_json(&report).to_string(), table))
}

fn tensors(given: Vec<Input<'_>>) -> PyResult<Vec<NamedTensor>> {
    given.into_iter().map(Input::into_tensor).collect()
}

fn read_nonce(nonce: &[u8]) -> PyResult<ReceiptNonce> {
    let nonce = ReceiptNonce::from_bytes(nonce);
    nonce.ok_or_else(|| invalid("a receipt's nonce has 1 to 64 bytes".to_owned()))
}

fn invalid(fact: String) -> PyErr {
    refused(Error::new(Code::InvalidRequest, fact))
}
