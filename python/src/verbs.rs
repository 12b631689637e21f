//! The verbs of the client, with arguments and answers as Python has them.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use blindai_client::{
    Client, ClientCertificate, ClientError, ConnectOptions, Digest, InferRequest, ModelInfo,
    ModelName, ModelPins, ModelVersion, Policy, Receipt, Upload, VerifiedReport,
};
use blindai_core::oip::RequestedOutput;
use blindai_core::{Code, Error};
use bytes::Bytes;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBytes, PyTuple};
use serde::Serialize;
use tokio::sync::Notify;

use crate::error::{self, refused, to_python};
use crate::tensor::{Input, Outputs};

/// A report as JSON and as a table.
pub type Report = (String, String);

/// What a connection is made with.
pub struct Connect {
    pub address: String,
    pub simulation: bool,
    pub policy: Option<PolicySource>,
    pub timeout: Option<f64>,
    pub token: Option<String>,
    pub client_certificate: Option<(PathBuf, PathBuf)>,
}

impl Connect {
    pub async fn run(self) -> PyResult<Client> {
        let policy = read_policy(self.policy.as_ref(), self.simulation)?;
        let mut options = ConnectOptions::new(policy);
        if let Some(limit) = self.timeout.map(Duration::from_secs_f64) {
            options = options.connect_timeout(limit).request_timeout(limit);
        }
        if let Some(token) = &self.token {
            options = options.token(token.parse().map_err(refused)?);
        }
        if let Some((certificate, key)) = &self.client_certificate {
            let read = ClientCertificate::from_pem_files(certificate, key);
            options = options.client_certificate(read.map_err(to_python)?);
        }
        let connected = Client::connect(&self.address, options).await;
        connected.map_err(|error| self.explain(error))
    }

    /// When all but the measurements would do, it is the policy that is missing.
    fn explain(&self, error: ClientError) -> PyErr {
        if self.policy.is_some() || error.code() != "measurement-mismatch" {
            return to_python(error);
        }
        no_policy()
    }
}

/// A policy: a file, or its text as bytes.
#[derive(FromPyObject)]
pub enum PolicySource {
    Text(PyBackedBytes),
    Path(PathBuf),
}

impl PolicySource {
    fn read(&self) -> PyResult<(String, String)> {
        let (name, text) = match self {
            Self::Path(path) => (path.display().to_string(), std::fs::read_to_string(path)),
            Self::Text(text) => {
                let text = String::from_utf8(text.to_vec());
                ("the policy".to_owned(), text.map_err(std::io::Error::other))
            }
        };
        let text = text.map_err(|error| {
            let fact = format!("{name}: {error}");
            error::policy("policy-unreadable", &fact, "pass the path of a policy file")
        })?;
        Ok((name, text))
    }
}

/// The policy, which accepts simulation where that is wanted; without one nothing else.
pub fn read_policy(source: Option<&PolicySource>, simulation: bool) -> PyResult<Policy> {
    let Some(source) = source else {
        return Ok(match simulation {
            true => Policy::dangerous().accept_simulation(),
            false => Policy::accept_nothing(),
        });
    };
    let (name, text) = source.read()?;
    let policy = Policy::from_toml(&text)
        .map_err(|error| error::policy("policy-invalid", &format!("{name}: {error}"), ""))?;
    Ok(match simulation {
        true => policy.dangerous_accept_simulation(),
        false => policy,
    })
}

/// The exception where a policy is needed and there is none.
pub fn no_policy() -> PyErr {
    let fact = "no policy says which code to trust";
    let remedy = "pass policy=, the path of a policy file";
    error::policy("policy-missing", fact, remedy)
}

pub fn report(report: &VerifiedReport) -> Report {
    (report.to_json().to_string(), report.to_string())
}

pub async fn attest(client: Client) -> PyResult<Report> {
    let (_, verified) = client.attest().await.map_err(to_python)?;
    Ok(report(&verified))
}

pub async fn ready(client: Client) -> PyResult<bool> {
    client.ready().await.map_err(to_python)
}

/// A model's name and version, checked.
pub struct Id(ModelName, Option<ModelVersion>);

impl Id {
    pub fn parse(name: &str, version: Option<&str>) -> PyResult<Self> {
        let version = version.map(str::parse).transpose().map_err(refused)?;
        Ok(Self(name.parse().map_err(refused)?, version))
    }
}

/// The client, which accepts under this name what it did, and of that only this digest.
pub fn accepting(client: &Client, id: &Id, digest: Option<&str>) -> PyResult<Client> {
    let digest = digest.map(read_digest).transpose()?;
    Ok(client.accepting(ModelPins::digest(&id.0, digest)))
}

/// Reads a digest, with or without its prefix.
pub fn read_digest(text: &str) -> PyResult<Digest> {
    text.parse()
        .map_err(|fact: String| refused(Error::new(Code::InvalidRequest, fact)))
}

/// Reads the inputs; their buffers stay numpy's.
pub fn request(inputs: Vec<Input<'_>>, outputs: Vec<String>) -> PyResult<InferRequest> {
    let inputs = inputs.into_iter().map(Input::into_tensor);
    let mut request = InferRequest::new(inputs.collect::<PyResult<_>>()?);
    let wanted = outputs.into_iter();
    request.outputs = wanted.map(RequestedOutput::new).collect();
    Ok(request)
}

/// A receipt as bytes, and its evidence as JSON.
pub struct Kept(Receipt);

impl<'py> IntoPyObject<'py> for Kept {
    type Target = PyTuple;
    type Output = Bound<'py, PyTuple>;
    type Error = PyErr;

    fn into_pyobject(self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        let evidence = String::from_utf8(self.0.evidence().to_json())?;
        (PyBytes::new(py, self.0.bytes()), evidence).into_pyobject(py)
    }
}

pub async fn infer(
    client: Client,
    id: Id,
    request: InferRequest,
    receipt: bool,
) -> PyResult<(Outputs, Option<Kept>)> {
    let (name, version) = (&id.0, id.1.as_ref());
    let (answer, receipt) = match receipt {
        true => {
            let answer = client.infer_with_receipt(name, version, &request).await;
            let (answer, receipt) = answer.map_err(to_python)?;
            (answer, Some(Kept(receipt)))
        }
        false => {
            let answer = client.infer(name, version, &request).await;
            (answer.map_err(to_python)?, None)
        }
    };
    Ok((Outputs(answer.outputs), receipt))
}

#[derive(FromPyObject)]
pub enum Source {
    Path(PathBuf),
    Bytes(PyBackedBytes),
}

pub async fn upload(
    client: Client,
    id: Id,
    replace: bool,
    source: Source,
    progress: Option<Py<PyAny>>,
    receipt: bool,
) -> PyResult<(String, Option<Kept>)> {
    let mut upload = match source {
        Source::Path(path) => Upload::file(&id.0, path),
        Source::Bytes(bytes) => Upload::bytes(&id.0, Bytes::from_owner(bytes)),
    };
    upload = upload.replace(replace);
    if let Some(version) = id.1 {
        upload = upload.version(version);
    }
    let Some(callback) = progress else {
        return send(&client, upload, receipt).await;
    };
    let observer = Arc::new(Observer::new(callback));
    let observed = observer.clone();
    let upload = upload.progress(Arc::new(move |sent, total| observed.tell(sent, total)));
    tokio::select! {
        done = send(&client, upload, receipt) => done,
        error = observer.failed() => Err(error),
    }
}

async fn send(client: &Client, upload: Upload, receipt: bool) -> PyResult<(String, Option<Kept>)> {
    if !receipt {
        return Ok((json(client.upload(upload).await)?, None));
    }
    let (info, receipt) = client
        .upload_with_receipt(upload)
        .await
        .map_err(to_python)?;
    Ok((json(Ok(info))?, Some(Kept(receipt))))
}

/// Every model, and whether the client accepts it.
pub async fn models(client: Client) -> PyResult<String> {
    #[derive(Serialize)]
    struct Listed<'a> {
        #[serde(flatten)]
        info: &'a ModelInfo,
        accepted: bool,
    }
    let models = client.models().await.map_err(to_python)?;
    let listed = models.iter().map(|info| Listed {
        info,
        accepted: client.accepted().accept_model(info).is_ok(),
    });
    json(Ok(listed.collect::<Vec<_>>()))
}

pub async fn model(client: Client, id: Id) -> PyResult<String> {
    json(client.model(&id.0, id.1.as_ref()).await)
}

pub async fn delete(client: Client, id: Id) -> PyResult<String> {
    json(client.delete(&id.0, id.1.as_ref()).await)
}

fn json(answer: Result<impl Serialize, ClientError>) -> PyResult<String> {
    let answer = answer.map_err(to_python)?;
    // What came as JSON goes as JSON.
    Ok(serde_json::to_string(&answer).expect("an answer is JSON"))
}

/// A Python function that watches an upload, and the exception it raised.
struct Observer {
    callback: Py<PyAny>,
    last_call: Mutex<Option<Instant>>,
    error: Mutex<Option<PyErr>>,
    failed: Notify,
}

impl Observer {
    fn new(callback: Py<PyAny>) -> Self {
        Self {
            callback,
            last_call: Mutex::new(None),
            error: Mutex::new(None),
            failed: Notify::new(),
        }
    }

    fn tell(&self, sent: u64, total: u64) {
        if sent < total && !self.due() {
            return;
        }
        if let Err(error) = Python::attach(|py| self.callback.call1(py, (sent, total))) {
            *self.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            self.failed.notify_one();
        }
    }

    // Each call takes the GIL, and the upload waits for it.
    fn due(&self) -> bool {
        let mut last = self
            .last_call
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let due = last.is_none_or(|last| last.elapsed() >= PROGRESS_PERIOD);
        if due {
            *last = Some(Instant::now());
        }
        due
    }

    async fn failed(&self) -> PyErr {
        loop {
            self.failed.notified().await;
            let error = self
                .error
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
            if let Some(error) = error {
                return error;
            }
        }
    }
}

const PROGRESS_PERIOD: Duration = Duration::from_millis(100);
