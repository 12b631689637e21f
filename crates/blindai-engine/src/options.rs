use std::ffi::OsString;
use std::path::PathBuf;
use std::thread::available_parallelism;
use std::time::Duration;

use blindai_core::EngineKind;

use crate::{Isolation, WORKER_ARGUMENT};

/// How models are run. Every limit holds per model.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// What runs a model, unless it has [options of its own](ModelOptions).
    pub kind: EngineKind,
    /// The ONNX Runtime library. Only the build with the digest
    /// [`ONNXRUNTIME_SHA256`](crate::ONNXRUNTIME_SHA256) is accepted. Without it nothing is looked
    /// for or loaded, and models run on tract only.
    pub onnxruntime: Option<PathBuf>,
    /// What is executed as a worker; by default this very program.
    pub worker: WorkerCommand,
    /// Workers per model, each with the model loaded. Default: 1.
    pub workers: usize,
    /// Whether requests are computed together, and how. Default: they are not.
    pub batching: Option<Batching>,
    /// Whether a new model computes something made up before its first caller comes. Default: true.
    pub warm_up: bool,
    /// What must stand between a worker and the machine. Default: filtered system calls.
    pub isolation: Isolation,
    /// Threads that compute one request, the calling one included. Default: the available cores.
    pub threads: usize,
    /// Memory that a worker may allocate for weights and activations together. Default: 8 GiB. Nothing
    /// holds a thread to it.
    pub memory_bytes: u64,
    /// Inputs of one request. Default: 64 MiB.
    pub input_bytes: u64,
    /// Outputs of one request. Default: 256 MiB.
    pub output_bytes: u64,
    /// Time to validate, load and optimise a model. Default: 120 s.
    pub load_timeout: Duration,
    /// How long a worker may take to heed a cancellation before it is killed. Default: 500 ms. Nobody can
    /// kill a thread: with [`Isolation::None`] as long as it takes.
    pub grace: Duration,
    /// Requests that may wait for a model while one runs. Default: 128.
    pub queue: usize,
    /// Whether idle compute threads spin before they sleep. Default: true. Alone on the machine,
    /// sleeping costs a request a fifth of its time; where models share cores, spinning takes up to
    /// 40 % from the others and should be off.
    pub spinning: bool,
}

impl EngineOptions {
    /// The defaults, with the library at this path.
    pub fn new(onnxruntime: impl Into<PathBuf>) -> Self {
        Self {
            kind: EngineKind::OnnxRuntime,
            onnxruntime: Some(onnxruntime.into()),
            ..Self::tract()
        }
    }

    /// The defaults, without ONNX Runtime.
    pub fn tract() -> Self {
        Self {
            kind: EngineKind::Tract,
            onnxruntime: None,
            worker: WorkerCommand::default(),
            workers: 1,
            batching: None,
            warm_up: true,
            isolation: Isolation::default(),
            threads: available_parallelism().map_or(1, usize::from),
            memory_bytes: 8 << 30,
            input_bytes: 64 << 20,
            output_bytes: 256 << 20,
            load_timeout: Duration::from_secs(120),
            grace: Duration::from_millis(500),
            queue: 128,
            spinning: true,
        }
    }
}

/// What a model may have of its own, in the place of what all have.
#[derive(Clone, Debug)]
pub struct ModelOptions {
    pub kind: EngineKind,
    pub workers: usize,
    pub threads: usize,
    pub warm_up: bool,
    pub batching: Option<Batching>,
}

impl EngineOptions {
    /// What a model gets that has nothing of its own.
    pub fn of_a_model(&self) -> ModelOptions {
        ModelOptions {
            kind: self.kind,
            workers: self.workers,
            threads: self.threads,
            warm_up: self.warm_up,
            batching: self.batching.clone(),
        }
    }

    /// These, with the model's own in their places.
    pub(crate) fn with(&self, own: &ModelOptions) -> Self {
        let own = own.clone();
        Self {
            kind: own.kind,
            workers: own.workers,
            threads: own.threads,
            warm_up: own.warm_up,
            batching: own.batching,
            ..self.clone()
        }
    }
}

/// How requests are computed together, where the model names its first dimension and it is the same
/// on all inputs and outputs.
#[derive(Clone, Debug)]
pub struct Batching {
    /// The most rows of one batch.
    pub max_rows: usize,
    /// How long the first request may wait for others, in whole milliseconds. What waits already is
    /// taken in any case.
    pub max_delay: Duration,
    /// Whether requests of several callers may stand in one batch. They then meet in one
    /// computation, which a model could use to carry something from one to the other.
    pub across_callers: bool,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_those_of_the_documentation() {
        let documented = include_str!("../../../docs/configuration.md");
        let default = |key: &str| {
            let row = format!("| `{key}` | ");
            let row = documented.lines().find_map(|line| line.strip_prefix(&row));
            let cell = row.and_then(|row| row.split(" |").next()).unwrap();
            let (number, unit) = cell.split_once(' ').unwrap_or((cell, ""));
            let shift = match unit {
                "GiB" => 30,
                "MiB" => 20,
                _ => 0,
            };
            number.parse::<u64>().unwrap() << shift
        };
        let options = EngineOptions::new("");
        assert_eq!(options.memory_bytes, default("limits.model_memory_bytes"));
        assert_eq!(options.input_bytes, default("limits.body_bytes"));
        assert_eq!(options.output_bytes, default("limits.output_bytes"));
        assert_eq!(options.queue as u64, default("limits.queue"));
        let load_seconds = default("limits.load_seconds");
        assert_eq!(options.load_timeout, Duration::from_secs(load_seconds));
    }
}
