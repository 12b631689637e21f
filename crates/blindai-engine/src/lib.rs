//! Runs ONNX models, each in a worker process of its own.
//!
//! ONNX Runtime is a million lines of C++ that here reads models and tensors from strangers. One
//! request can kill it (an `INT64_MIN` divided by -1 raises SIGFPE), so it never shares an address
//! space with keys or with other models:
//!
//! ```text
//!   LoadedModel::run ──▶ queue ──▶ lane ── copy ───▶ inputs  (memfd) ── mmap ───▶ worker ── ONNX Runtime
//!                                       ◀── pread ── outputs (memfd) ◀─ pwrite ──
//!                                       ── control socket: a few hundred bytes each way ──
//! ```
//!
//! In place of ONNX Runtime a worker may run tract, which is Rust: the library is then not needed.
//!
//! A model has a queue, in which callers take turns, and a lane for each of its workers. A lane takes
//! requests out of the queue, alone or several together, and sees each to an answer.
//!
//! The parent reads nothing through a mapping: it copies with `pread`, so a hostile worker cannot
//! change bytes under its feet, and the files cannot shrink, so it cannot take the memory away
//! (SIGBUS). Everything that comes back is checked before it is used. The worker gets the library and the model as sealed memory files
//! whose digests the parent knows, and has no environment, no other descriptors, no capabilities, a
//! removed folder to stand in and a memory limit. It is deaf to the signals that stop a server, which
//! drains first, and when it ends its process group ends with it.
//!
//! A crash, a hang or an exhausted limit costs one request; a new worker answers the next.
//!
//! Where there is but one process, as in an SGX enclave, [`Isolation::None`] makes threads of the workers.
//! Lane and worker then speak the same protocol over channels and share ordinary memory, and all the rest
//! of the above is not so: the [`Isolation`] says what is lost.
//!
//! *Not* protected here: two callers of one model share its worker. A crafted input that takes the
//! worker over sees the inputs that follow, until it is restarted.
//!
//! ```no_run
//! # async fn example() -> blindai_core::Result<()> {
//! use blindai_engine::{Caller, Engine, EngineOptions, ModelWriter};
//! use std::{sync::Arc, time::Duration};
//!
//! let engine = Engine::new(EngineOptions::new("/usr/lib/libonnxruntime.so.1.28.0"))?;
//! let mut upload = ModelWriter::new(1 << 30, engine.isolation())?; // at most 1 GiB
//! upload.write(&std::fs::read("model.onnx").unwrap())?;
//! let model = engine.load(Arc::new(upload.finish()?)).await?;
//! let answer = model.run(vec![], &[], Caller(1), Duration::from_secs(30)).await?;
//! # Ok(()) }
//! ```

mod batch;
mod engine;
mod heap;
mod isolation;
mod lane;
mod memory;
mod model_file;
mod names;
mod nowhere;
mod options;
mod parent;
mod process;
mod protocol;
mod queue;
mod runtime;
mod thread;
mod worker;

pub use blindai_core::EngineKind;
pub use engine::{Answer, Engine, LoadedModel, ModelStatus, Stages, TRACT};
pub use isolation::{Barriers, Isolation};
pub use model_file::{ModelCopy, ModelFile, ModelReader, ModelWriter};
pub use options::{Batching, EngineOptions, ModelOptions, WorkerCommand};
pub use queue::Caller;
pub use runtime::ONNXRUNTIME_SHA256;
pub use thread::MODEL_THREAD;
pub use worker::confine::Left;
pub use worker::{WORKER_ARGUMENT, confine_for_test, worker_main};
