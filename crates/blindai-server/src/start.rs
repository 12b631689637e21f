use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use blindai_core::{Code, EngineKind, Error, Tee};
use blindai_engine::{Barriers, Engine, EngineOptions, TRACT};
use blindai_tee::{
    Attester, Gramine, RUNNING_EXECUTABLE, Simulation, SimulationOptions, TeeError, Tsm,
    measure_executable,
};
use rustls::server::danger::ClientCertVerifier;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::access::Access;
use crate::collateral::Stapling;
use crate::config::{self, Config, ModelConfig, Provider};
use crate::http::Port;
use crate::identity::Identity;
use crate::service::Service;
use crate::storage::{Sealed, Storage};
use crate::telemetry::{Endpoint, Exporter, PortCounters, Telemetry, Traces};
use crate::{api, descriptors, tls};

/// A server that has its keys, its evidence and its ports.
pub struct Server {
    service: Arc<Service>,
    identity: Arc<Identity>,
    attested: Port,
    public: Port,
    exporter: Option<Exporter>,
    models: Vec<ModelConfig>,
    drain: Duration,
    addresses: (SocketAddr, SocketAddr),
    description: String,
    barriers: Barriers,
    store: Option<String>,
}

impl Server {
    /// Does everything that can fail before the first request: finds the engine's library, opens
    /// both ports, draws the keys and has them attested.
    ///
    /// # Errors
    /// One [`StartError`], whose kind tells what to mend.
    pub async fn start(config: &Config) -> Result<Self, StartError> {
        Self::start_on(config, attester(config)?).await
    }

    /// As [`Server::start`], on a platform of the caller's choice.
    ///
    /// # Errors
    /// As there.
    pub async fn start_on(
        config: &Config,
        attester: Box<dyn Attester>,
    ) -> Result<Self, StartError> {
        require_built_in(config)?;
        let engine = Engine::new(engine_options(config))
            .map_err(|error| StartError::new(StartKind::Engine, error))?;
        let barriers = engine.barriers().await;
        let barriers = barriers.map_err(|error| StartError::new(StartKind::Engine, error))?;
        let description = attester.describe();
        let attested = bind(config.listen.attested, "listen.attested").await?;
        let public = bind(config.listen.public, "listen.public").await?;
        let addresses = (local(&attested)?, local(&public)?);
        let validity = Duration::from_secs(config.tee.evidence_seconds);
        let stapling = Stapling::new(&config.collateral)
            .map_err(|error| StartError::new(StartKind::Config, error))?;
        let sealed = Sealed::new(&config.store, &*attester).map_err(not_stored)?;
        let identity = Identity::new(attester, config.digest(), validity, stapling)
            .map_err(|error| StartError::new(StartKind::Attestation, error))?;
        let identity = Arc::new(identity);
        // Who connects first should find it. Without it the server starts all the same.
        identity.refresh_collateral().await;
        let host = tls::host_certificate(&config.tls.folder)
            .map_err(|error| StartError::new(StartKind::Config, error))?;
        let (telemetry, exporter) = telemetry(config)?;
        let access = Access::new(&config.access);
        let clients = access.pinned_clients();
        // Last, because it takes the store from whoever has it.
        let storage = match sealed {
            Some(sealed) => Some(sealed.open().await.map_err(not_stored)?),
            None => None,
        };
        let store = storage.as_ref().map(Storage::description);
        let store = store.map(str::to_owned);
        let service = Arc::new(Service::new(
            config.clone(),
            access,
            engine,
            identity.clone(),
            telemetry.clone(),
            storage,
        ));
        let connections = descriptors::connections(&config.limits, config.most_processes());
        let port = |listener,
                    resolver,
                    clients: Option<Arc<dyn ClientCertVerifier>>,
                    router,
                    counters: &Arc<PortCounters>|
         -> Result<Port, StartError> {
            Ok(Port {
                listener,
                tls: tls::server_config(resolver, clients)
                    .map_err(|error| StartError::new(StartKind::Config, error))?,
                router,
                connections,
                patience: config.limits.request(),
                counters: counters.clone(),
            })
        };
        Ok(Self {
            attested: port(
                attested,
                identity.clone(),
                clients.map(|clients| clients as Arc<dyn ClientCertVerifier>),
                api::attested(service.clone(), config.legacy.enabled),
                &telemetry.attested,
            )?,
            public: port(
                public,
                host,
                None,
                api::public(service.clone(), config.legacy.enabled),
                &telemetry.public,
            )?,
            exporter,
            service,
            identity,
            models: config.models.clone(),
            drain: Duration::from_secs(config.limits.drain_seconds),
            addresses,
            description,
            barriers,
            store,
        })
    }

    /// The attested and the public address, with the ports that were really taken.
    pub fn addresses(&self) -> (SocketAddr, SocketAddr) {
        self.addresses
    }

    /// What attests this server, for the log.
    pub fn description(&self) -> &str {
        &self.description
    }

    /// What keeps the workers apart from the machine, for the log.
    pub fn barriers(&self) -> Barriers {
        self.barriers
    }

    /// Where models are kept and what they are sealed to, for the log; `None` where nothing is kept.
    pub fn store(&self) -> Option<&str> {
        self.store.as_deref()
    }

    /// Loads the models of the configuration, then serves until `stop` ends; then takes no new
    /// requests, ends those in progress and returns. While it loads, the ports say that it is not ready.
    ///
    /// # Errors
    /// [`StartKind::Model`] when a model of the configuration cannot be loaded.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Result<(), StartError> {
        let (sender, receiver) = watch::channel(false);
        let attested = tokio::spawn(self.attested.serve(receiver.clone(), self.drain));
        let public = tokio::spawn(self.public.serve(receiver, self.drain));
        let (ended, end) = watch::channel(false);
        let exporter = self
            .exporter
            .map(|exporter| tokio::spawn(exporter.run(end)));
        let renewal = tokio::spawn(self.identity.keep_fresh());
        let served = serve(&self.service, &self.models, stop).await;
        tracing::info!("stopping: requests in progress may end");
        self.service.set_ready(false);
        let _ = sender.send(true);
        let _ = tokio::join!(attested, public);
        renewal.abort();
        let _ = ended.send(true);
        if let Some(exporter) = exporter {
            let _ = exporter.await;
        }
        self.service.unload_all();
        tracing::info!("stopped");
        served
    }
}

async fn serve(
    service: &Service,
    models: &[ModelConfig],
    stop: impl Future<Output = ()>,
) -> Result<(), StartError> {
    let mut stop = pin!(stop);
    tokio::select! {
        loaded = load(service, models) => loaded?,
        () = &mut stop => return Ok(()),
    }
    service.restore_kept();
    service.set_ready(true);
    tracing::info!("ready");
    stop.await;
    Ok(())
}

async fn load(service: &Service, models: &[ModelConfig]) -> Result<(), StartError> {
    for (number, model) in models.iter().enumerate() {
        let entry = format!("models[{number}]");
        let loaded = load_one(service, model, &entry).await;
        loaded.map_err(|error| {
            let place = model.path.as_ref().map(|path| format!("path = {path:?}"));
            let object = || format!("object = {:?}", model.object.as_deref().unwrap_or_default());
            let place = place.unwrap_or_else(object);
            let (code, fact) = (error.code().as_str(), error.fact());
            let told = Error::new(error.code(), format!("{entry}.{place}: {code}: {fact}"));
            let told = told.with_remedy(error.remedy().to_owned());
            StartError::new(StartKind::Model, told)
        })?;
    }
    Ok(())
}

async fn load_one(service: &Service, model: &ModelConfig, entry: &str) -> Result<(), Error> {
    let Some(origin) = model.origin()? else {
        return Ok(());
    };
    if model.sha256.is_none() {
        tracing::warn!(
            entry,
            "a model is not pinned: the evidence says nothing of its content"
        );
    }
    service.load_configured(model, origin).await
}

/// Why a server did not start. The kind gives the exit code.
#[derive(Debug)]
pub struct StartError {
    kind: StartKind,
    error: Box<Error>,
}

/// What to mend before the next start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartKind {
    /// The configuration, or a file it names.
    Config,
    /// The inference engine's library.
    Engine,
    /// A port that cannot be opened.
    Listen,
    /// The platform gives no evidence.
    Attestation,
    /// A model of the configuration.
    Model,
    /// The store, or the key to it.
    Store,
}

impl StartError {
    fn new(kind: StartKind, error: Error) -> Self {
        Self {
            kind,
            error: Box::new(error),
        }
    }

    /// What to mend.
    pub fn kind(&self) -> StartKind {
        self.kind
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} · {}", self.error.fact(), self.error.remedy())
    }
}

impl std::error::Error for StartError {}

fn not_stored(error: Error) -> StartError {
    let fact = format!("store: {}: {}", error.code().as_str(), error.fact());
    let told = Error::new(error.code(), fact).with_remedy(error.remedy().to_owned());
    StartError::new(StartKind::Store, told)
}

fn telemetry(config: &Config) -> Result<(Arc<Telemetry>, Option<Exporter>), StartError> {
    let endpoint = config.traces.endpoint.as_deref().map(Endpoint::parse);
    let endpoint = endpoint.transpose().map_err(|fact| {
        let error = Error::new(Code::InvalidRequest, format!("traces.endpoint: {fact}"));
        StartError::new(StartKind::Config, error)
    })?;
    let traces = endpoint.map(|endpoint| Traces::new(endpoint, config.traces.sample_ratio));
    let (traces, exporter) = traces.unzip();
    let telemetry = Telemetry::new(config.metrics.enabled, traces);
    Ok((Arc::new(telemetry), exporter))
}

fn require_built_in(config: &Config) -> Result<(), StartError> {
    if TRACT || !config.uses(EngineKind::Tract) {
        return Ok(());
    }
    let fact = "engine: tract is chosen, and this program was built without it";
    let error = Error::new(Code::InvalidRequest, fact)
        .with_remedy("choose onnxruntime, or build with the feature `tract`");
    Err(StartError::new(StartKind::Config, error))
}

fn engine_options(config: &Config) -> EngineOptions {
    let (engine, limits) = (&config.engine, &config.limits);
    let mut options = match config.uses(EngineKind::OnnxRuntime) {
        true => EngineOptions::new(engine.onnxruntime.clone().unwrap_or_else(find_library)),
        false => EngineOptions::tract(),
    };
    let of_all = config::options(engine, None);
    options.kind = of_all.kind;
    options.threads = of_all.threads;
    options.workers = of_all.workers;
    options.warm_up = of_all.warm_up;
    options.batching = of_all.batching;
    options.isolation = engine.isolation;
    options.spinning = engine.spinning;
    options.memory_bytes = limits.model_memory_bytes;
    options.input_bytes = limits.body_bytes;
    options.output_bytes = limits.output_bytes;
    options.load_timeout = Duration::from_secs(limits.load_seconds);
    options.queue = limits.queue;
    options
}

fn find_library() -> PathBuf {
    if let Some(path) = std::env::var_os("BLINDAI_ONNXRUNTIME") {
        return path.into();
    }
    let program = std::env::current_exe().unwrap_or_default();
    program.with_file_name(LIBRARY)
}

fn attester(config: &Config) -> Result<Box<dyn Attester>, StartError> {
    let found = match (config.tee.simulation, config.tee.provider) {
        (Some(tee), _) => simulate(tee),
        (None, Provider::Auto) => blindai_tee::detect(),
        (None, Provider::Gramine) => Gramine::open().map(boxed),
        (None, Provider::Tsm) => Tsm::open().map(boxed),
    };
    found.map_err(|error| {
        let told = Error::new(Code::NotReady, error.fact());
        let told = told.with_remedy(error.remedy().to_owned());
        StartError::new(StartKind::Attestation, told)
    })
}

fn simulate(tee: Tee) -> Result<Box<dyn Attester>, TeeError> {
    let measurement = measure_executable(tee, RUNNING_EXECUTABLE)?;
    Simulation::new(SimulationOptions::new(measurement)).map(boxed)
}

fn boxed(attester: impl Attester + 'static) -> Box<dyn Attester> {
    Box::new(attester)
}

async fn bind(address: SocketAddr, setting: &str) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|error| {
        let fact = format!("{setting} = {address}: {error}");
        let remedy = format!("stop what listens there, or set {setting}");
        let error = Error::new(Code::NotReady, fact).with_remedy(remedy);
        StartError::new(StartKind::Listen, error)
    })
}

fn local(listener: &TcpListener) -> Result<SocketAddr, StartError> {
    listener.local_addr().map_err(|error| {
        let error = Error::new(Code::NotReady, error.to_string());
        StartError::new(StartKind::Listen, error)
    })
}

/// How the library is called where nothing names it.
const LIBRARY: &str = "libonnxruntime.so.1.28.0";
