//! A worker in a thread of its parent's process.

use std::io;
use std::sync::{Arc, mpsc};

use blindai_core::Result;
use ort::environment::Environment;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::UnboundedSender;

use super::model::Model;
use super::onnx;
use super::work::{Current, Outputs, Parent, work};
use crate::heap::Heap;
use crate::protocol::{Run, Setup};

/// What a worker process would get as descriptors and messages.
pub(crate) struct Given {
    pub environment: Option<Environment>,
    pub model: Arc<Vec<u8>>,
    pub setup: Setup,
    pub inputs: Heap,
    pub outputs: Heap,
    pub current: Arc<Current>,
    pub from_parent: mpsc::Receiver<Vec<u8>>,
    pub to_parent: UnboundedSender<Vec<u8>>,
    /// Held until the model is loaded.
    pub turn: OwnedSemaphorePermit,
}

/// Serves one model until the parent lets go of the channel.
pub(crate) fn serve(given: Given) {
    let loaded = load(given.environment.as_ref(), &given.model, &given.setup);
    drop((given.model, given.turn));
    let (inputs, outputs, current) = (given.inputs, given.outputs, given.current);
    let mut parent = Channel {
        from_parent: given.from_parent,
        to_parent: given.to_parent,
    };
    // When it cannot be told anything, the parent is gone.
    let _ = work(&mut parent, loaded, &outputs, |model, run| {
        inputs.look(|inputs| current.run(model, run, inputs, &outputs))
    });
}

fn load(environment: Option<&Environment>, model: &[u8], setup: &Setup) -> Result<Model> {
    let graph = onnx::check(model)?;
    Model::load(environment, model, &graph, setup)
}

struct Channel {
    from_parent: mpsc::Receiver<Vec<u8>>,
    to_parent: UnboundedSender<Vec<u8>>,
}

impl Parent for Channel {
    fn receive(&mut self) -> io::Result<Option<Run>> {
        match self.from_parent.recv() {
            Ok(message) => Ok(Some(serde_json::from_slice(&message)?)),
            Err(mpsc::RecvError) => Ok(None),
        }
    }

    fn send(&self, message: Vec<u8>) -> io::Result<()> {
        let sent = self.to_parent.send(message);
        sent.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Outputs for Heap {
    fn put(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write(offset, data)
    }
}
