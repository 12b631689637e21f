//! What runs in the worker. Nothing here may be trusted once an engine has seen the model.

pub(crate) mod confine;
mod filter;
mod model;
mod onnx;
mod session;
pub(crate) mod thread;
#[cfg(feature = "tract")]
mod tract;
pub(crate) mod work;
mod writer;

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::Builder;

use blindai_core::{Code, Error, Result};
use memmap2::Mmap;
use ort::environment::Environment;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags};
use rustix::process::Signal;

use crate::protocol::{MESSAGE_BYTES, Run, SETUP_DESCRIPTORS, Setup};
use crate::{Barriers, Isolation, runtime};
use confine::Left;
use model::Model;
use work::{Current, Parent};

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
    let mut control = Control::new(confine::take_control_socket()?);
    let left = confine::leave_machine()?;
    confine::tie_to_parent()?;
    if std::env::args().next_back().as_deref() == Some(PROBE_ARGUMENT) {
        let filtered = filter::install(control.socket.as_fd()).is_ok();
        return work::send(&control, &found(filtered, left));
    }
    let (setup, descriptors, library) = control.receive_setup()?;
    let [model, inputs, outputs, cancel] = descriptors;
    let current = Arc::new(Current::default());
    watch(cancel, current.clone())?;
    let outputs = File::from(outputs);
    confine::limit_files(outputs.metadata()?.len())?;
    let inputs = map(&inputs.into())?;
    let loaded = load(library, model, &outputs, &setup, left);
    work::work(&mut control, loaded, &outputs, |model, run| {
        current.run(model, run, &inputs, &outputs)
    })
}

fn found(filtered: bool, left: Left) -> Barriers {
    Barriers {
        process: true,
        filtered,
        left,
    }
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
    Ok(found(filter, left))
}

fn load(
    library: Option<OwnedFd>,
    model: OwnedFd,
    outputs: &File,
    setup: &Setup,
    left: Left,
) -> Result<Model> {
    let environment = library.as_ref().map(environment).transpose()?;
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
fn environment(library: &OwnedFd) -> Result<Environment> {
    let path = format!("/proc/self/fd/{}", library.as_raw_fd());
    runtime::environment(path.as_ref())
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
    let thread = Builder::new().name("cancel".into());
    thread.stack_size(CANCEL_STACK_BYTES).spawn(watch)?;
    Ok(())
}

const CANCEL_STACK_BYTES: usize = 128 * 1024;

/// The socket to the parent.
struct Control {
    socket: OwnedFd,
    message: Vec<u8>,
}

impl Control {
    fn new(socket: OwnedFd) -> Self {
        let message = vec![0; MESSAGE_BYTES];
        Self { socket, message }
    }

    /// What to load, with its descriptors, and ONNX Runtime's library if it is needed.
    fn receive_setup(
        &mut self,
    ) -> io::Result<(Setup, [OwnedFd; SETUP_DESCRIPTORS], Option<OwnedFd>)> {
        let mut space =
            [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SETUP_DESCRIPTORS + 1))];
        let mut rights = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::net::recvmsg(
            &self.socket,
            &mut [io::IoSliceMut::new(&mut self.message)],
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
        let setup = serde_json::from_slice(&self.message[..received.bytes])?;
        let received = (setup, descriptors, library.flatten());
        whole.then_some(received).ok_or_else(invalid)
    }
}

impl Parent for Control {
    fn receive(&mut self) -> io::Result<Option<Run>> {
        let (_, length) = rustix::net::recv(&self.socket, &mut *self.message, RecvFlags::empty())?;
        match length {
            0 => Ok(None),
            length => Ok(Some(serde_json::from_slice(&self.message[..length])?)),
        }
    }

    fn send(&self, message: Vec<u8>) -> io::Result<()> {
        rustix::net::send(&self.socket, &message, SendFlags::NOSIGNAL)?;
        Ok(())
    }
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
