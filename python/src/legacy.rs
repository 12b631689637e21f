//! What the API of BlindAI 0.3 needs beside the verbs: signed answers, and the files they are kept in.

use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use blindai_client::{Client, ClientError, ModelPins, SignedAnswer, is_simulated, judge_kept};
use blindai_core::Digest;
use blindai_core::legacy::numbers::{self, Number};
use blindai_core::legacy::{Answer, Datum, ModelChoice, Payload, Proof, RunModel, SendModel};
use bytes::Bytes;
use pyo3::IntoPyObjectExt as _;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBytes, PyList};

use crate::error::{refused, to_python};
use crate::verbs::{PolicySource, Report, read_policy, report};

/// A document as JSON, the key that signs answers, and until when the claims hold.
pub type Evidence = (String, Option<[u8; 32]>, u64);

/// Evidence made now, and verified.
pub async fn evidence(client: Client) -> PyResult<Evidence> {
    let (document, report) = client.attest().await.map_err(to_python)?;
    let json = String::from_utf8_lossy(&document.to_json()).into_owned();
    let claims = report.claims();
    let until = claims.expires_at.unwrap_or_default();
    Ok((json, claims.receipt_key, until))
}

/// A model that the server holds, and what is said of it: name, version, SHA-256, shape, types, nonce.
#[derive(FromPyObject)]
pub struct Held(String, String, [u8; 32], Vec<i32>, (u64, u64), Vec<u8>);

/// A model and its input: name, version, SHA-256, shape, CBOR list, nonce.
#[derive(FromPyObject)]
pub struct Run(String, String, [u8; 32], Vec<i32>, PyBackedBytes, Vec<u8>);

/// Payload and signature.
#[derive(IntoPyObject)]
pub struct Signed(Data, Data);

/// Has the server vouch for a model.
pub async fn vouch(client: Client, held: Held) -> PyResult<Signed> {
    let Held(name, version, hash, input_fact, (datum, datum_output), nonce) = held;
    let request = SendModel {
        length: 0,
        input_fact,
        datum: Datum::from_number(datum).map_err(refused)?,
        datum_output: Datum::from_number(datum_output).map_err(refused)?,
        sign: true,
        model_name: name,
        nonce: nonce.into(),
        held: Some((Digest::from_bytes(hash), version)),
    };
    signed(client.vouch(&request).await)
}

/// Runs this model and no other, and has the answer signed.
pub async fn run_signed(client: Client, run: Run) -> PyResult<Signed> {
    let Run(name, version, hash, input_fact, list, nonce) = run;
    let only = Some(Digest::from_bytes(hash));
    let client = client.accepting(ModelPins::digest(&name.parse().map_err(refused)?, only));
    let request = RunModel {
        sign: true,
        nonce: nonce.into(),
        model: ModelChoice {
            name,
            version,
            input_fact,
        },
    };
    signed(client.run_signed(&request, &Bytes::from_owner(list)).await)
}

/// What a payload says: when it was made, its nonce, and of an upload the model's digest and shape,
/// of a run the output, the digest of the input and that of the model.
#[pyfunction]
pub fn read_payload(py: Python<'_>, payload: PyBackedBytes) -> PyResult<Py<PyAny>> {
    let payload = Payload::read(Bytes::from_owner(payload)).map_err(refused)?;
    let (issued_at, nonce) = (payload.issued_at.as_secs_f64(), Data(payload.nonce));
    let digest = |digest: Option<Digest>| digest.map(|digest| *digest.as_bytes());
    let digest = |given| digest(given).map(|digest| Data(digest.to_vec().into()));
    match payload.answer {
        Answer::Upload {
            model_hash,
            input_fact,
        } => ("upload", issued_at, nonce, digest(model_hash), input_fact).into_py_any(py),
        Answer::Run {
            output,
            datum_output: _,
            input_hash,
            model_hash,
        } => {
            let output = Data(output);
            let (input_hash, model_hash) = (digest(input_hash), digest(model_hash));
            ("run", issued_at, nonce, model_hash, output, input_hash).into_py_any(py)
        }
    }
}

/// The numbers of a flat CBOR list.
#[pyfunction]
pub fn read_numbers<'py>(py: Python<'py>, list: &[u8]) -> PyResult<Bound<'py, PyList>> {
    let numbers = PyList::empty(py);
    let mut failure = None;
    let read = numbers::each(list, |_, number| {
        let appended = match number {
            Number::Integer(value) => numbers.append(value),
            Number::Float(value) => numbers.append(value),
        };
        failure = failure.take().or(appended.err());
        Ok(())
    });
    read.map_err(refused)?;
    failure.map_or(Ok(numbers), Err)
}

/// The file of a proof: an evidence document or none, payload, signature.
#[pyfunction]
pub fn write_proof(evidence: Option<Vec<u8>>, payload: Vec<u8>, signature: Vec<u8>) -> Data {
    let proof = Proof {
        evidence: evidence.map(Bytes::from),
        foreign: false,
        payload: payload.into(),
        signature: signature.into(),
    };
    Data(proof.write())
}

/// What is in the file of a proof: evidence, whether there is an attestation of the original,
/// payload, signature, and whether it is of a simulation as far as it can be told.
#[pyfunction]
pub fn read_proof(file: PyBackedBytes) -> PyResult<(Option<Data>, bool, Data, Data, bool)> {
    let proof = Proof::read(Bytes::from_owner(file)).map_err(refused)?;
    let simulated = match &proof.evidence {
        None => !proof.foreign,
        Some(evidence) => is_simulated(evidence),
    };
    Ok((
        proof.evidence.map(Data),
        proof.foreign,
        Data(proof.payload),
        Data(proof.signature),
        simulated,
    ))
}

/// Whether an Ed25519 signature holds.
#[pyfunction]
pub fn signature_holds(key: &[u8], message: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ED25519, key)
        .verify(message, signature)
        .is_ok()
}

/// Judges the evidence in a proof, and answers the report and the key that it vouches for.
#[pyfunction]
pub fn judge_proof(
    evidence: &[u8],
    policy: Option<PolicySource>,
    simulation: bool,
    signed_at: f64,
) -> PyResult<(Report, Option<Data>)> {
    let policy = read_policy(policy.as_ref(), simulation)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.unwrap_or_default().as_secs();
    let judged = judge_kept(evidence, &policy, signed_at as u64, now).map_err(to_python)?;
    let key = judged.claims().receipt_key;
    let key = key.map(|key| Data(key.to_vec().into()));
    Ok((report(&judged), key))
}

/// A TOML file as JSON.
#[pyfunction]
pub fn read_toml(text: &str) -> PyResult<String> {
    let table: toml::Table = text
        .parse()
        .map_err(|error: toml::de::Error| PyValueError::new_err(error.message().to_owned()))?;
    serde_json::to_string(&table).map_err(|error| PyValueError::new_err(error.to_string()))
}

/// Bytes, for Python.
pub struct Data(Bytes);

impl<'py> IntoPyObject<'py> for Data {
    type Target = PyBytes;
    type Output = Bound<'py, PyBytes>;
    type Error = std::convert::Infallible;

    fn into_pyobject(self, py: Python<'py>) -> Result<Self::Output, Self::Error> {
        Ok(PyBytes::new(py, &self.0))
    }
}

fn signed(answer: Result<SignedAnswer, ClientError>) -> PyResult<Signed> {
    let SignedAnswer { payload, signature } = answer.map_err(to_python)?;
    Ok(Signed(Data(payload), Data(signature)))
}
