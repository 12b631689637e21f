//! The two classes of the module: one waits for its answers, one gives futures.

use std::path::PathBuf;
use std::time::Duration;

use blindai_client::blocking::awake;
use pyo3::prelude::*;
use pyo3_async_runtimes::tokio::future_into_py;
use tokio::runtime::{Builder, Handle, Runtime};

use crate::error::inside_runtime;
use crate::legacy::{self, Evidence, Held, Run, Signed};
use crate::own::{Own, with_threads};
use crate::tensor::{Input, Outputs};
use crate::verbs::{self, Connect, Id, Kept, PolicySource, Report, Source};

/// Verifies a server and connects to it.
#[pyfunction]
pub fn connect(
    py: Python<'_>,
    address: String,
    simulation: bool,
    policy: Option<PolicySource>,
    timeout: Option<f64>,
    token: Option<String>,
    client_certificate: Option<(PathBuf, PathBuf)>,
) -> PyResult<Client> {
    let events = Events::new()?;
    let connect = Connect {
        address,
        simulation,
        policy,
        timeout,
        token,
        client_certificate,
    };
    let client = events.wait(py, connect.run())?;
    Ok(Client(Own::new(Blocking { client, events })))
}

/// Verifies a server and connects to it.
#[pyfunction]
pub fn connect_async(
    py: Python<'_>,
    address: String,
    simulation: bool,
    policy: Option<PolicySource>,
    timeout: Option<f64>,
    token: Option<String>,
    client_certificate: Option<(PathBuf, PathBuf)>,
) -> PyResult<Bound<'_, PyAny>> {
    let connect = Connect {
        address,
        simulation,
        policy,
        timeout,
        token,
        client_certificate,
    };
    with_threads()?;
    future_into_py(py, async {
        Ok(AsyncClient(Own::new(connect.run().await?)))
    })
}

/// A client that waits for each answer.
///
/// The event loop runs on the calling thread, so that a round trip changes no thread.
#[pyclass(frozen, module = "blindai._native")]
pub struct Client(Own<Blocking>);

struct Blocking {
    // In front of the event loop: its connections end first.
    client: blindai_client::Client,
    events: Events,
}

impl Client {
    /// Waits for what `work` makes of the client.
    fn wait<T: Send, W: Future<Output = PyResult<T>> + Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(blindai_client::Client) -> W,
    ) -> PyResult<T> {
        let Blocking { client, events } = self.0.get()?;
        events.wait(py, work(client.clone()))
    }
}

#[pymethods]
impl Client {
    fn report(&self) -> PyResult<Report> {
        Ok(verbs::report(&self.0.get()?.client.report()))
    }

    fn attest(&self, py: Python<'_>) -> PyResult<Report> {
        self.wait(py, verbs::attest)
    }

    fn ready(&self, py: Python<'_>) -> PyResult<bool> {
        self.wait(py, verbs::ready)
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "what Python calls has a name for each"
    )]
    fn infer(
        &self,
        py: Python<'_>,
        name: &str,
        version: Option<&str>,
        inputs: Vec<Input<'_>>,
        outputs: Vec<String>,
        receipt: bool,
        digest: Option<&str>,
    ) -> PyResult<(Outputs, Option<Kept>)> {
        let (id, request) = (Id::parse(name, version)?, verbs::request(inputs, outputs)?);
        let Blocking { client, events } = self.0.get()?;
        let client = verbs::accepting(client, &id, digest)?;
        events.wait(py, verbs::infer(client, id, request, receipt))
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "what Python calls has a name for each"
    )]
    fn upload(
        &self,
        py: Python<'_>,
        name: &str,
        version: Option<&str>,
        replace: bool,
        source: Source,
        progress: Option<Py<PyAny>>,
        receipt: bool,
    ) -> PyResult<(String, Option<Kept>)> {
        let id = Id::parse(name, version)?;
        self.wait(py, |client| {
            verbs::upload(client, id, replace, source, progress, receipt)
        })
    }

    fn models(&self, py: Python<'_>) -> PyResult<String> {
        self.wait(py, verbs::models)
    }

    fn model(&self, py: Python<'_>, name: &str, version: Option<&str>) -> PyResult<String> {
        let id = Id::parse(name, version)?;
        self.wait(py, |client| verbs::model(client, id))
    }

    fn delete(&self, py: Python<'_>, name: &str, version: Option<&str>) -> PyResult<String> {
        let id = Id::parse(name, version)?;
        self.wait(py, |client| verbs::delete(client, id))
    }

    fn evidence(&self, py: Python<'_>) -> PyResult<Evidence> {
        self.wait(py, legacy::evidence)
    }

    fn vouch(&self, py: Python<'_>, held: Held) -> PyResult<Signed> {
        self.wait(py, |client| legacy::vouch(client, held))
    }

    fn run_signed(&self, py: Python<'_>, run: Run) -> PyResult<Signed> {
        self.wait(py, |client| legacy::run_signed(client, run))
    }
}

/// A client whose methods give futures for asyncio.
#[pyclass(frozen, module = "blindai._native")]
pub struct AsyncClient(Own<blindai_client::Client>);

impl AsyncClient {
    fn client(&self) -> PyResult<blindai_client::Client> {
        self.0.get().cloned()
    }
}

#[pymethods]
impl AsyncClient {
    fn report(&self) -> PyResult<Report> {
        Ok(verbs::report(&self.client()?.report()))
    }

    fn attest<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        future_into_py(py, verbs::attest(self.client()?))
    }

    fn ready<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        future_into_py(py, verbs::ready(self.client()?))
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "what Python calls has a name for each"
    )]
    fn infer<'py>(
        &self,
        py: Python<'py>,
        name: &str,
        version: Option<&str>,
        inputs: Vec<Input<'py>>,
        outputs: Vec<String>,
        receipt: bool,
        digest: Option<&str>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (id, request) = (Id::parse(name, version)?, verbs::request(inputs, outputs)?);
        let client = verbs::accepting(&self.client()?, &id, digest)?;
        future_into_py(py, verbs::infer(client, id, request, receipt))
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "what Python calls has a name for each"
    )]
    fn upload<'py>(
        &self,
        py: Python<'py>,
        name: &str,
        version: Option<&str>,
        replace: bool,
        source: Source,
        progress: Option<Py<PyAny>>,
        receipt: bool,
    ) -> PyResult<Bound<'py, PyAny>> {
        let id = Id::parse(name, version)?;
        let upload = verbs::upload(self.client()?, id, replace, source, progress, receipt);
        future_into_py(py, upload)
    }

    fn models<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        future_into_py(py, verbs::models(self.client()?))
    }

    fn model<'py>(
        &self,
        py: Python<'py>,
        name: &str,
        version: Option<&str>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let id = Id::parse(name, version)?;
        future_into_py(py, verbs::model(self.client()?, id))
    }

    fn delete<'py>(
        &self,
        py: Python<'py>,
        name: &str,
        version: Option<&str>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let id = Id::parse(name, version)?;
        future_into_py(py, verbs::delete(self.client()?, id))
    }
}

/// An event loop without a thread of its own.
struct Events(Option<Runtime>);

impl Events {
    fn new() -> PyResult<Self> {
        Ok(Self(Some(
            Builder::new_current_thread().enable_all().build()?,
        )))
    }

    /// Waits without the GIL. Ctrl-C ends the wait and drops the work.
    fn wait<T: Send>(
        &self,
        py: Python<'_>,
        work: impl Future<Output = PyResult<T>> + Send,
    ) -> PyResult<T> {
        match &self.0 {
            Some(runtime) if Handle::try_current().is_err() => {
                py.detach(|| runtime.block_on(awake(interruptible(work))))
            }
            _ => Err(inside_runtime()),
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        // A plain drop waits for threads, which panics when Python collects garbage inside a
        // future.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

async fn interruptible<T>(work: impl Future<Output = PyResult<T>>) -> PyResult<T> {
    let mut work = std::pin::pin!(work);
    loop {
        match tokio::time::timeout(SIGNAL_PERIOD, &mut work).await {
            Ok(done) => return done,
            Err(_) => Python::attach(|py| py.check_signals())?,
        }
    }
}

/// How long Ctrl-C may go unheard.
const SIGNAL_PERIOD: Duration = Duration::from_millis(100);
