//! The same client for code that is not async.
//!
//! ```no_run
//! # fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use blindai_client::{ConnectOptions, Policy, blocking::Client};
//!
//! let policy = Policy::from_toml(&std::fs::read_to_string("policy.toml")?)?;
//! let client = Client::connect("localhost:50051", ConnectOptions::new(policy))?;
//! for model in client.models()? {
//!     println!("{} {}", model.name, model.digest);
//! }
//! # Ok(())
//! # }
//! ```

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use blindai_core::oip::{InferRequest, InferResponse};
use blindai_core::pins::ModelPins;
use blindai_core::{EvidenceDocument, ModelInfo, ModelName, ModelVersion};
use blindai_verify::VerifiedReport;
use tokio::runtime::{Builder, Handle, Runtime};

use crate::{ClientError, ConnectOptions, Receipt, Upload};

/// [`crate::Client`], waiting for each answer.
///
/// The event loop runs on the calling thread, so that a round trip changes no thread. Clones share
/// it and can be used from several threads at once. Inside async code every call is refused with
/// the code `inside-runtime`.
#[derive(Clone)]
pub struct Client {
    // In front of the runtime: its connections end first.
    client: crate::Client,
    events: Arc<Events>,
}

impl Client {
    /// See [`crate::Client::connect`].
    ///
    /// # Errors
    /// As there.
    pub fn connect(address: &str, options: ConnectOptions) -> Result<Self, ClientError> {
        let events = Arc::new(Events::new()?);
        let client = events.wait(crate::Client::connect(address, options))?;
        Ok(Self { client, events })
    }

    /// See [`crate::Client::report`].
    pub fn report(&self) -> Arc<VerifiedReport> {
        self.client.report()
    }

    /// See [`crate::Client::accepting`].
    #[must_use]
    pub fn accepting(&self, models: ModelPins) -> Self {
        Self {
            client: self.client.accepting(models),
            events: self.events.clone(),
        }
    }

    /// See [`crate::Client::accepted`].
    pub fn accepted(&self) -> &ModelPins {
        self.client.accepted()
    }

    /// See [`crate::Client::attest`].
    ///
    /// # Errors
    /// As there.
    pub fn attest(&self) -> Result<(EvidenceDocument, Arc<VerifiedReport>), ClientError> {
        self.events.wait(self.client.attest())
    }

    /// See [`crate::Client::ready`].
    ///
    /// # Errors
    /// As there.
    pub fn ready(&self) -> Result<bool, ClientError> {
        self.events.wait(self.client.ready())
    }

    /// See [`crate::Client::upload`].
    ///
    /// # Errors
    /// As there.
    pub fn upload(&self, upload: Upload) -> Result<ModelInfo, ClientError> {
        self.events.wait(self.client.upload(upload))
    }

    /// See [`crate::Client::infer`].
    ///
    /// # Errors
    /// As there.
    pub fn infer(
        &self,
        name: &ModelName,
        version: Option<&ModelVersion>,
        request: &InferRequest,
    ) -> Result<InferResponse, ClientError> {
        self.events.wait(self.client.infer(name, version, request))
    }

    /// See [`crate::Client::infer_with_receipt`].
    ///
    /// # Errors
    /// As there.
    pub fn infer_with_receipt(
        &self,
        name: &ModelName,
        version: Option<&ModelVersion>,
        request: &InferRequest,
    ) -> Result<(InferResponse, Receipt), ClientError> {
        let answer = self.client.infer_with_receipt(name, version, request);
        self.events.wait(answer)
    }

    /// See [`crate::Client::upload_with_receipt`].
    ///
    /// # Errors
    /// As there.
    pub fn upload_with_receipt(&self, upload: Upload) -> Result<(ModelInfo, Receipt), ClientError> {
        self.events.wait(self.client.upload_with_receipt(upload))
    }

    /// See [`crate::Client::models`].
    ///
    /// # Errors
    /// As there.
    pub fn models(&self) -> Result<Vec<ModelInfo>, ClientError> {
        self.events.wait(self.client.models())
    }

    /// See [`crate::Client::model`].
    ///
    /// # Errors
    /// As there.
    pub fn model(
        &self,
        name: &ModelName,
        version: Option<&ModelVersion>,
    ) -> Result<ModelInfo, ClientError> {
        self.events.wait(self.client.model(name, version))
    }

    /// See [`crate::Client::delete`].
    ///
    /// # Errors
    /// As there.
    pub fn delete(
        &self,
        name: &ModelName,
        version: Option<&ModelVersion>,
    ) -> Result<Vec<ModelInfo>, ClientError> {
        self.events.wait(self.client.delete(name, version))
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.client.fmt(f)
    }
}

/// An event loop without a thread of its own.
struct Events(Option<Runtime>);

impl Events {
    fn new() -> Result<Self, ClientError> {
        let runtime = Builder::new_current_thread().enable_all().build();
        runtime
            .map(|runtime| Self(Some(runtime)))
            .map_err(|error| ClientError::no_runtime(&error))
    }

    fn wait<T>(
        &self,
        work: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, ClientError> {
        match &self.0 {
            Some(runtime) if Handle::try_current().is_err() => runtime.block_on(awake(work)),
            _ => Err(ClientError::inside_runtime()),
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        // A plain drop waits for threads, which panics when it happens inside async code.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Keeps the thread awake for a moment while it waits, because an answer that comes soon is then met
/// sooner than a sleeping thread wakes up: some 80 µs of the 380 of a tiny model on the same machine.
///
/// For an event loop that runs on the waiting thread and on no other.
pub async fn awake<T>(work: impl Future<Output = T>) -> T {
    let vigil = async {
        let start = Instant::now();
        while start.elapsed() < VIGIL {
            // The server may be on this machine and need this core.
            std::thread::yield_now();
            tokio::task::yield_now().await;
        }
        std::future::pending().await
    };
    tokio::select! {
        biased;
        done = work => done,
        never = vigil => never,
    }
}

/// What a tiny model takes to answer over loopback. Longer work is not worth the core.
const VIGIL: Duration = Duration::from_micros(300);
