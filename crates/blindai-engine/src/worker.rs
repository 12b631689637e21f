//! What runs in the worker process. Nothing here may be trusted once an engine has seen the model.

pub(crate) mod confine;
mod filter;
mod model;
mod onnx;
mod session;
#[cfg(feature = "tract")]
mod tract;
mod writer;

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use blindai_core::{Code, Error, Result};
use memmap2::Mmap;
use ort::environment::Environment;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags};
use rustix::process::Signal;
use serde::Serialize;

use crate::protocol::{
    Failure, Loaded, MESSAGE_BYTES, Place, Ran, Run, SETUP_DESCRIPTORS, SIGNATURE_BYTES, Setup,
};
use crate::{Barriers, Isolation};
use confine::Left;
use model::{Model, Stop};

/// The first argument of a program that is to become a worker.
pub const WORKER_ARGUMENT: &str = "blindai-worker";

/// Follows [`WORKER_ARGUMENT`] where a worker is only to tell what it could leave.
pub(crate) const PROBE_ARGUMENT: &str = "probe";

/// Becomes a worker and serves one model until the parent closes the control socket, which it has
/// put at descriptor 0.
///
/// A program that calls this must do so before it opens or starts anything: every descriptor but the
/// first three is closed.
pub fn worker_main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        // There is nobody to tell: the streams lead nowhere.
        Err(_) => ExitCode::FAILURE,
    }
}

fn serve() -> io::Result<()> {
    confine::ignore_requests_to_end()?;
    let control = confine::take_control_socket()?;
    let left = confine::leave_machine()?;
    confine::tie_to_parent()?;
    if std::env::args().next_back().as_deref() == Some(PROBE_ARGUMENT) {
        let filtered = filter::install(control.as_fd()).is_ok();
        return send(&control, &Barriers { filtered, left });
    }
    let mut message = vec![0; MESSAGE_BYTES];
    let (setup, descriptors, library) = receive_setup(&control, &mut message)?;
    let [model, inputs, outputs, cancel] = descriptors;
    let current = Arc::new(Current::default());
    watch(cancel, current.clone())?;
    let outputs = File::from(outputs);
    confine::limit_files(outputs.metadata()?.len())?;
    let inputs = map(&inputs.into())?;
    let loaded = load(library, model, &outputs, &setup, left);
    let loaded = loaded.and_then(|model| {
        let signature_bytes = write_signature(&model, &outputs)?;
        Ok((model, signature_bytes))
    });
    let (mut model, reply) = match loaded {
        Ok((model, signature_bytes)) => (Some(model), Loaded::Yes { signature_bytes }),
        Err(error) => {
            let (code, fact) = (error.code().as_str().into(), error.fact().into());
            (None, Loaded::No { code, fact })
        }
    };
    send(&control, &reply)?;
    let Some(model) = &mut model else {
        return Ok(());
    };
    while let Some(run) = receive_run(&control, &mut message)? {
        let id = run.id;
        let result = current.run(model, &run, &inputs, &outputs);
        let ran = Ran { id, result };
        // Shapes of very many dimensions do not fit a message.
        if let Err(error) = send(&control, &ran) {
            match error.kind() {
                io::ErrorKind::InvalidData => {
                    let result = Err(Failure::OutputsTooLarge);
                    send(&control, &Ran { id, result })?;
                }
                _ => return Err(error),
            }
        }
    }
    Ok(())
}

/// Does to this process what is done to a worker before it sees a model, for tests of what is left
/// possible then. It must have no threads.
///
/// # Errors
/// When the kernel refuses what every worker needs; with `filter`, also when it cannot filter.
#[doc(hidden)]
pub fn confine_for_test(filter: bool) -> io::Result<Barriers> {
    let left = confine::leave_machine()?;
    confine::tie_to_parent()?;
    confine::limit_threads(left, 1)?;
    if filter {
        filter::install(rustix::stdio::stdout())?;
    }
    let filtered = filter;
    Ok(Barriers { filtered, left })
}

fn load(
    library: Option<OwnedFd>,
    model: OwnedFd,
    outputs: &File,
    setup: &Setup,
    left: Left,
) -> Result<Model> {
    let environment = library.as_ref().map(runtime).transpose()?;
    drop(library);
    confine::limit_threads(left, setup.threads).map_err(system)?;
    confine::limit_memory(setup.memory_bytes, setup.threads).map_err(system)?;
    let model = map(&model.into()).map_err(system)?;
    // From here on a stranger's bytes are read.
    let filtered = filter::install(outputs.as_fd());
    if setup.isolation != Isolation::Process {
        filtered.map_err(system)?;
    }
    let graph = onnx::check(&model)?;
    Model::load(environment.as_ref(), &model, &graph, setup)
}

/// The library, from the sealed file: no path that the host could change is opened.
fn runtime(library: &OwnedFd) -> Result<Environment> {
    let failed = |what: &dyn std::fmt::Display| {
        Error::new(
            Code::Internal,
            format!("ONNX Runtime cannot be loaded: {what}"),
        )
    };
    let path = format!("/proc/self/fd/{}", library.as_raw_fd());
    let builder = ort::init_from(path).map_err(|error| failed(&error))?;
    // Node names and errors belong to the model's owner; the streams belong to the host.
    let silence = Arc::new(|_, _: &str, _: &str, _: &str, _: &str| {});
    let builder = builder.with_telemetry(false).with_logger(silence);
    let environment = builder.build().map_err(|error| failed(&error))?;
    environment.set_log_level(ort::logging::LogLevel::Fatal);
    Ok(environment)
}

/// The request being computed, as the cancelling thread sees it.
#[derive(Default)]
struct Current(Mutex<State>);

#[derive(Default)]
struct State {
    request: Option<(u64, Arc<Stop>)>,
    cancelled: u64,
}

impl Current {
    fn run(
        &self,
        model: &mut Model,
        run: &Run,
        inputs: &[u8],
        outputs: &File,
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

    fn cancel(&self, id: u64) {
        let mut state = self.lock();
        state.cancelled = state.cancelled.max(id);
        if let Some((_, stop)) = state.request.as_ref().filter(|(own, _)| *own == id) {
            stop.set();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits for requests to be cancelled, and for the parent to be gone: then the process ends at once,
/// whatever it is computing.
fn watch(cancel: OwnedFd, current: Arc<Current>) -> io::Result<()> {
    let watch = move || {
        let mut id = [0; 8];
        while let Ok((_, 8)) = rustix::net::recv(&cancel, &mut id, RecvFlags::empty()) {
            current.cancel(u64::from_le_bytes(id));
        }
        // Not `exit`: it would tear ONNX Runtime down under the threads that run in it, and hang.
        let worker = rustix::process::getpid();
        let _ = rustix::process::kill_process_group(worker, Signal::KILL);
        let _ = rustix::process::kill_process(worker, Signal::KILL);
    };
    let thread = thread::Builder::new().name("cancel".into());
    thread.stack_size(CANCEL_STACK_BYTES).spawn(watch)?;
    Ok(())
}

const CANCEL_STACK_BYTES: usize = 128 * 1024;

/// What to load, with its descriptors, and ONNX Runtime's library if it is needed.
fn receive_setup(
    control: &OwnedFd,
    message: &mut [u8],
) -> io::Result<(Setup, [OwnedFd; SETUP_DESCRIPTORS], Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SETUP_DESCRIPTORS + 1))];
    let mut rights = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        control,
        &mut [io::IoSliceMut::new(message)],
        &mut rights,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let whole = !received
        .flags
        .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
    let mut descriptors = Vec::new();
    for message in rights.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    let invalid = || io::Error::from(io::ErrorKind::InvalidData);
    let library = (descriptors.len() > SETUP_DESCRIPTORS).then(|| descriptors.pop());
    let descriptors = descriptors.try_into().map_err(|_| invalid())?;
    let setup = serde_json::from_slice(&message[..received.bytes])?;
    let received = (setup, descriptors, library.flatten());
    whole.then_some(received).ok_or_else(invalid)
}

/// The next request; nothing when the parent has closed the socket.
fn receive_run(control: &OwnedFd, message: &mut [u8]) -> io::Result<Option<Run>> {
    let (_, length) = rustix::net::recv(control, &mut *message, RecvFlags::empty())?;
    match length {
        0 => Ok(None),
        length => Ok(Some(serde_json::from_slice(&message[..length])?)),
    }
}

fn send(control: &OwnedFd, message: &impl Serialize) -> io::Result<()> {
    let message = serde_json::to_vec(message)?;
    if message.len() > MESSAGE_BYTES {
        return Err(io::ErrorKind::InvalidData.into());
    }
    rustix::net::send(control, &message, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn write_signature(model: &Model, outputs: &File) -> Result<u64> {
    let json = serde_json::to_vec(model.signature()).map_err(|error| system(error.into()))?;
    if json.len() as u64 > SIGNATURE_BYTES {
        let fact = format!("the inputs and outputs take over {SIGNATURE_BYTES} bytes to describe");
        return Err(Error::new(Code::ModelUnsupported, fact));
    }
    outputs.write_all_at(&json, 0).map_err(system)?;
    Ok(json.len() as u64)
}

fn map(file: &File) -> io::Result<Mmap> {
    // SAFETY: nobody can shrink these files: library and model are sealed, and a region is sealed
    // against changes of size. The model cannot change either. The parent writes to the inputs only
    // between a reply and the next request, while no slice of the map exists.
    unsafe { Mmap::map(file) }
}

fn system(error: io::Error) -> Error {
    Error::new(
        Code::Internal,
        format!("the worker cannot be set up: {error}"),
    )
}
