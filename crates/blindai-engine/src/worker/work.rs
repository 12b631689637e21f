//! What a worker does, whatever it runs as: load one model, then compute what it is asked for.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use blindai_core::{Code, Error, Result};
use serde::Serialize;

use super::model::{Model, Stop};
use super::system;
use crate::protocol::{Failure, Loaded, MESSAGE_BYTES, Place, Ran, Run, SIGNATURE_BYTES};

/// The parent, as its worker speaks to it.
pub(super) trait Parent {
    /// The next request; nothing when there will be none.
    fn receive(&mut self) -> io::Result<Option<Run>>;

    fn send(&self, message: Vec<u8>) -> io::Result<()>;
}

/// Where outputs are put for the parent to read.
pub(super) trait Outputs {
    fn put(&self, offset: u64, data: &[u8]) -> io::Result<()>;
}

impl Outputs for File {
    fn put(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write_all_at(data, offset)
    }
}

/// Says whether the model was loaded, and answers requests until there are no more.
///
/// # Errors
/// When the parent cannot be understood or told.
pub(super) fn work(
    parent: &mut impl Parent,
    loaded: Result<Model>,
    outputs: &dyn Outputs,
    mut run: impl FnMut(&mut Model, &Run) -> Result<Vec<Place>, Failure>,
) -> io::Result<()> {
    let described = loaded.and_then(|model| Ok((write_signature(&model, outputs)?, model)));
    let (signature_bytes, mut model) = match described {
        Ok(described) => described,
        Err(error) => {
            let (code, fact) = (error.code().as_str().into(), error.fact().into());
            return send(parent, &Loaded::No { code, fact });
        }
    };
    send(parent, &Loaded::Yes { signature_bytes })?;
    while let Some(asked) = parent.receive()? {
        let id = asked.id;
        let result = run(&mut model, &asked);
        // Shapes of very many dimensions do not fit a message.
        if let Err(error) = send(parent, &Ran { id, result }) {
            match error.kind() {
                io::ErrorKind::InvalidData => {
                    let result = Err(Failure::OutputsTooLarge);
                    send(parent, &Ran { id, result })?;
                }
                _ => return Err(error),
            }
        }
    }
    Ok(())
}

/// The request being computed, as whoever cancels sees it.
#[derive(Default)]
pub(crate) struct Current(Mutex<State>);

#[derive(Default)]
struct State {
    request: Option<(u64, Arc<Stop>)>,
    cancelled: u64,
}

impl Current {
    pub(super) fn run(
        &self,
        model: &mut Model,
        run: &Run,
        inputs: &[u8],
        outputs: &dyn Outputs,
    ) -> Result<Vec<Place>, Failure> {
        let stop = Arc::new(model.stop()?);
        let mut state = self.lock();
        // The word to stop may have overtaken the request.
        if state.cancelled >= run.id {
            return Err(Failure::Cancelled);
        }
        state.request = Some((run.id, stop.clone()));
        drop(state);
        let result = model.run(run, inputs, outputs, &stop);
        let mut state = self.lock();
        state.request = None;
        match state.cancelled >= run.id {
            true => Err(Failure::Cancelled),
            false => result,
        }
    }

    /// Stops this request and those before it, also when they are still to come.
    pub(crate) fn cancel(&self, id: u64) {
        let mut state = self.lock();
        state.cancelled = state.cancelled.max(id);
        if let Some((_, stop)) = state.request.as_ref().filter(|(own, _)| *own <= id) {
            stop.set();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn send(parent: &impl Parent, message: &impl Serialize) -> io::Result<()> {
    let message = serde_json::to_vec(message)?;
    if message.len() > MESSAGE_BYTES {
        return Err(io::ErrorKind::InvalidData.into());
    }
    parent.send(message)
}

fn write_signature(model: &Model, outputs: &dyn Outputs) -> Result<u64> {
    let json = serde_json::to_vec(model.signature()).map_err(|error| system(error.into()))?;
    if json.len() as u64 > SIGNATURE_BYTES {
        let fact = format!("the inputs and outputs take over {SIGNATURE_BYTES} bytes to describe");
        return Err(Error::new(Code::ModelUnsupported, fact));
    }
    outputs.put(0, &json).map_err(system)?;
    Ok(json.len() as u64)
}
