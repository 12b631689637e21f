use std::ffi::OsString;
use std::path::PathBuf;
use std::thread::available_parallelism;
use std::time::Duration;

use crate::WORKER_ARGUMENT;

/// How models are run. Every limit holds per model.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// The ONNX Runtime library. Only the build with the digest
    /// [`ONNXRUNTIME_SHA256`](crate::ONNXRUNTIME_SHA256) is accepted.
    pub onnxruntime: PathBuf,
    /// What is executed as a worker; by default this very program.
    pub worker: WorkerCommand,
    /// Threads that compute one request, the calling one included. Default: the available cores.
    pub threads: usize,
    /// Memory that a worker may allocate for weights and activations together. Default: 4 GiB.
    pub memory_bytes: u64,
    /// Inputs of one request. Default: 256 MiB.
    pub input_bytes: u64,
    /// Outputs of one request. Default: 256 MiB.
    pub output_bytes: u64,
    /// Time to validate, load and optimise a model. Default: 120 s.
    pub load_timeout: Duration,
    /// How long a worker may take to heed a cancellation before it is killed. Default: 500 ms.
    pub grace: Duration,
    /// Requests that may wait for a model while one runs. Default: 64.
    pub queue: usize,
    /// Whether idle compute threads spin before they sleep. Default: true. Alone on the machine,
    /// sleeping costs a request a fifth of its time; where models share cores, spinning takes up to
    /// 40 % from the others and should be off.
    pub spinning: bool,
    /// Whether ONNX Runtime keeps freed memory in an arena and plans it by pattern. Default: false.
    /// With inputs of many lengths the arena took a third more memory and gained under 3 %.
    pub arena: bool,
}

impl EngineOptions {
    /// The defaults, with the library at this path.
    pub fn new(onnxruntime: impl Into<PathBuf>) -> Self {
        Self {
            onnxruntime: onnxruntime.into(),
            worker: WorkerCommand::default(),
            threads: available_parallelism().map_or(1, usize::from),
            memory_bytes: 4 << 30,
            input_bytes: 256 << 20,
            output_bytes: 256 << 20,
            load_timeout: Duration::from_secs(120),
            grace: Duration::from_millis(500),
            queue: 64,
            spinning: true,
            arena: false,
        }
    }
}

/// The program that becomes a worker: it must call [`worker_main`](crate::worker_main).
#[derive(Clone, Debug)]
pub struct WorkerCommand {
    pub program: PathBuf,
    pub arguments: Vec<OsString>,
}

impl Default for WorkerCommand {
    /// This program again, with [`WORKER_ARGUMENT`]. The kernel's link and not a path, so that the
    /// host cannot put another file in its place.
    fn default() -> Self {
        Self {
            program: "/proc/self/exe".into(),
            arguments: vec![WORKER_ARGUMENT.into()],
        }
    }
}
