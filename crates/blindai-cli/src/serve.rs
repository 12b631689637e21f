//! `blindai serve`

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use blindai_core::{EngineKind, Tee};
use blindai_engine::Isolation;
use blindai_server::{Config, Server, StartKind};
use clap::{Args, ValueEnum};
use rustix::io::Errno;
use tokio::signal::unix::{SignalKind, signal};

use crate::log;

/// Exit codes of a server that does not start.
const EXIT_CONFIG: u8 = 3;
const EXIT_ENGINE: u8 = 4;
const EXIT_LISTEN: u8 = 5;
const EXIT_ATTESTATION: u8 = 6;
const EXIT_MODEL: u8 = 7;
const EXIT_STORE: u8 = 8;

#[derive(Args)]
pub struct Arguments {
    /// Simulate a TEE: the one named here, the one in the configuration, or SGX. This protects
    /// nothing: it is for trying things out and for tests.
    #[arg(long, value_name = "TEE", num_args = 0..=1, require_equals = true)]
    simulation: Option<Option<Simulated>>,
    /// The configuration file; every setting has a default.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Simulated {
    Sgx,
    Tdx,
    SevSnp,
}

pub fn run(arguments: &Arguments) -> ExitCode {
    let config = match read_config(arguments) {
        Ok(config) => config,
        Err(message) => return refuse(&message, EXIT_CONFIG),
    };
    let hidden = match harden(config.engine.isolation) {
        Ok(hidden) => hidden,
        Err(message) => return refuse(&message, EXIT_CONFIG),
    };
    log::start(&config.log);
    if !hidden {
        tracing::warn!("there is no prctl to turn core dumps off with: an enclave makes none");
    }
    let runtime = match runtime(config.listen.threads) {
        Ok(runtime) => runtime,
        Err(error) => return give_up(&config, &format!("no threads: {error}"), EXIT_CONFIG),
    };
    runtime.block_on(serve(&config))
}

/// Keys and user data are in this process: no core dump may hold them, and no other process of this
/// user, a worker that was taken over least of all, may read them through /proc.
///
/// A library OS in an enclave has no call for it, makes no dumps, and has no other process; the host
/// that dumps the enclave gets what the processor encrypted. Whoever measured `isolation = "none"` says
/// that this is such a place; then the answer is false. Elsewhere the call exists, and when it fails the
/// server does not start.
pub fn harden(isolation: Isolation) -> Result<bool, String> {
    use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    let failed = |error| format!("core dumps cannot be turned off: {error}");
    setrlimit(Resource::Core, none).map_err(failed)?;
    match set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        Err(Errno::NOSYS) if isolation == Isolation::None => Ok(false),
        hidden => hidden.map(|()| true).map_err(failed),
    }
}

fn runtime(threads: usize) -> std::io::Result<tokio::runtime::Runtime> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = match threads {
        0 => cores.div_ceil(2),
        threads => threads,
    };
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(threads).enable_all().build()
}

async fn serve(config: &Config) -> ExitCode {
    let (Ok(mut terminate), Ok(mut interrupt)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) else {
        return give_up(config, "signals cannot be received", EXIT_CONFIG);
    };
    let server = match Server::start(config).await {
        Ok(server) => server,
        Err(error) => return give_up(config, &error.to_string(), exit_code(error.kind())),
    };
    announce(config, &server);
    let stop = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    match server.run(stop).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => give_up(config, &error.to_string(), exit_code(error.kind())),
    }
}

fn announce(config: &Config, server: &Server) {
    let (attested, public) = server.addresses();
    log::announce(
        &config.log,
        &log::Announcement {
            attested,
            public,
            engine: &engines(config),
            evidence: server.description(),
            workers: server.barriers(),
            access: &config.access.describe(),
            store: server.store(),
            configuration: config.digest(),
            simulated: config.tee.simulation.is_some(),
        },
    );
}

/// What runs the models, and whether any C++ may.
fn engines(config: &Config) -> String {
    let engine = &config.engine;
    let own = config.models.iter().filter_map(|model| model.kind);
    let others = match own.filter(|kind| *kind != engine.kind).count() {
        0 => "",
        _ => ", and another for some models",
    };
    let library = match config.uses(EngineKind::OnnxRuntime) {
        true => "",
        false => "; ONNX Runtime is not loaded",
    };
    format!("{}{others}{library}", engine.kind)
}

fn read_config(arguments: &Arguments) -> Result<Config, String> {
    let mut config = match &arguments.config {
        Some(path) => read_file(path).map_err(|error| format!("{}: {error}", path.display()))?,
        None => Config::default(),
    };
    if let Some(named) = arguments.simulation {
        let tee = match named {
            Some(Simulated::Sgx) => Tee::Sgx,
            Some(Simulated::Tdx) => Tee::Tdx,
            Some(Simulated::SevSnp) => Tee::SevSnp,
            None => config.tee.simulation.unwrap_or(Tee::Sgx),
        };
        config.tee.simulation = Some(tee);
    }
    Ok(config)
}

fn read_file(path: &Path) -> Result<Config, String> {
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    Config::from_toml(&text).map_err(|error| error.to_string())
}

fn exit_code(kind: StartKind) -> u8 {
    match kind {
        StartKind::Config => EXIT_CONFIG,
        StartKind::Engine => EXIT_ENGINE,
        StartKind::Listen => EXIT_LISTEN,
        StartKind::Attestation => EXIT_ATTESTATION,
        StartKind::Model => EXIT_MODEL,
        StartKind::Store => EXIT_STORE,
    }
}

fn refuse(message: &str, code: u8) -> ExitCode {
    eprintln!("blindai: {message}");
    ExitCode::from(code)
}

/// As [`refuse`], in the form that the log has by now.
fn give_up(config: &Config, message: &str, code: u8) -> ExitCode {
    log::not_started(&config.log, message);
    ExitCode::from(code)
}
