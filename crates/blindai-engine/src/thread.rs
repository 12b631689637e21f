//! A worker that is a thread of this process: how it is started, spoken to and told to stop.
//!
//! Nothing stands between it and the rest of the process. It cannot be killed: what it computes ends
//! when it heeds the word to stop, and a load when it is done.

use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread::Builder;
use std::time::Duration;

use blindai_core::{Code, EngineKind, Error, Result};
use ort::environment::Environment;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::engine::no_library;
use crate::heap::Heap;
use crate::parent::no_worker;
use crate::protocol::{SIGNATURE_BYTES, Setup};
use crate::worker::thread::{Given, serve};
use crate::worker::work::Current;
use crate::{EngineOptions, ModelFile, runtime};

/// How the names of threads begin that look at models in this process. When one panics, the model is to
/// blame, and its owner is told.
pub const MODEL_THREAD: &str = "blindai-model";

/// What every worker thread is given.
pub(crate) struct Threads {
    environment: Option<Environment>,
    loads: Arc<Semaphore>,
}

impl Threads {
    pub(crate) fn new(library: Option<&Path>) -> Result<Self> {
        Ok(Self {
            environment: library.map(runtime::load).transpose()?,
            // One at a time: a load that never ends must not be joined by more and more of its kind.
            loads: Arc::new(Semaphore::new(1)),
        })
    }

    /// Starts one and has it load the model, with memory for inputs and outputs.
    pub(crate) async fn start(
        &self,
        options: &EngineOptions,
        model: &ModelFile,
    ) -> Result<(Thread, Heap, Heap)> {
        let environment = match options.kind {
            EngineKind::OnnxRuntime => Some(self.environment.clone().ok_or_else(no_library)?),
            EngineKind::Tract => None,
        };
        let turn = self.turn(options.load_timeout).await?;
        let inputs = Heap::new(options.input_bytes);
        let outputs = Heap::new(options.output_bytes.max(SIGNATURE_BYTES));
        let (to_worker, from_parent) = mpsc::channel();
        let (to_parent, from_worker) = unbounded_channel();
        let current = Arc::new(Current::default());
        let given = Given {
            environment,
            model: model.bytes()?,
            setup: Setup::from(options),
            inputs: inputs.clone(),
            outputs: outputs.clone(),
            current: current.clone(),
            from_parent,
            to_parent,
            turn,
        };
        let builder = Builder::new().name(MODEL_THREAD.into());
        let started = builder.stack_size(STACK_BYTES).spawn(move || serve(given));
        started.map_err(no_worker)?;
        let thread = Thread {
            to_worker,
            from_worker,
            current,
            message: Vec::new(),
        };
        Ok((thread, inputs, outputs))
    }

    async fn turn(&self, patience: Duration) -> Result<OwnedSemaphorePermit> {
        let turn = self.loads.clone().acquire_owned();
        let turn = tokio::time::timeout(patience, turn).await;
        turn.ok().and_then(|turn| turn.ok()).ok_or_else(|| {
            let seconds = patience.as_secs_f32();
            let fact = format!("another model was still being loaded after {seconds} s");
            Error::new(Code::DeadlineExceeded, fact).with_remedy("try again later")
        })
    }
}

/// A worker thread. Dropping it tells the thread to stop, without waiting.
pub(crate) struct Thread {
    to_worker: mpsc::Sender<Vec<u8>>,
    from_worker: UnboundedReceiver<Vec<u8>>,
    current: Arc<Current>,
    message: Vec<u8>,
}

impl Thread {
    pub(crate) fn send(&self, message: Vec<u8>) -> bool {
        self.to_worker.send(message).is_ok()
    }

    pub(crate) async fn receive(&mut self) -> Option<&[u8]> {
        self.message = self.from_worker.recv().await?;
        Some(&self.message)
    }

    pub(crate) fn cancel(&self, id: u64) {
        self.current.cancel(id);
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.current.cancel(u64::MAX);
    }
}

/// As the main thread of a worker process has.
const STACK_BYTES: usize = 8 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_load_waits_for_the_one_before_it_but_not_for_ever() {
        let threads = Threads::new(None).unwrap();
        let first = threads.turn(Duration::MAX).await.unwrap();
        let error = threads.turn(Duration::from_millis(1)).await.unwrap_err();
        assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
        drop(first);
        drop(threads.turn(Duration::MAX).await.unwrap());
    }
}
