//! A worker that is a process: how it is started, spoken to and ended.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use blindai_core::{Code, EngineKind, Error, Result};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use tokio::net::UnixDatagram;
use tokio::sync::oneshot;

use crate::engine::no_library;
use crate::memory::Region;
use crate::nowhere::Nowhere;
use crate::parent::{Ended, encode, no_worker};
use crate::protocol::{MESSAGE_BYTES, SETUP_DESCRIPTORS, SIGNATURE_BYTES, Setup};
use crate::worker::PROBE_ARGUMENT;
use crate::{Barriers, EngineOptions, ModelFile, runtime};

/// What every worker process is given.
pub(crate) struct Processes {
    library: Option<OwnedFd>,
    nowhere: Nowhere,
}

impl Processes {
    pub(crate) fn new(library: Option<&Path>) -> Result<Self> {
        Ok(Self {
            library: library.map(runtime::seal).transpose()?,
            nowhere: Nowhere::new().map_err(no_folder)?,
        })
    }

    /// Starts one and tells it what to load, with memory for inputs and outputs.
    pub(crate) async fn start(
        &self,
        options: &EngineOptions,
        model: &ModelFile,
    ) -> Result<(Process, Region, Region)> {
        let (process, cancel) = self.spawn(options, &[]).await?;
        let inputs = Region::new("blindai-inputs", options.input_bytes).map_err(no_worker)?;
        let output_bytes = options.output_bytes.max(SIGNATURE_BYTES);
        let outputs = Region::new("blindai-outputs", output_bytes).map_err(no_worker)?;
        let library = match options.kind {
            EngineKind::OnnxRuntime => Some(self.library.as_ref().ok_or_else(no_library)?),
            EngineKind::Tract => None,
        };
        let descriptors: [_; SETUP_DESCRIPTORS] = [
            model.descriptor()?,
            inputs.as_fd(),
            outputs.as_fd(),
            cancel.as_fd(),
        ];
        let descriptors: Vec<_> = descriptors
            .into_iter()
            .chain(library.map(OwnedFd::as_fd))
            .collect();
        process.set_up(options, &descriptors)?;
        Ok((process, inputs, outputs))
    }

    /// What the kernel gives to keep workers apart, as one of them found it.
    pub(crate) async fn probe(&self, options: &EngineOptions) -> Result<Barriers> {
        let (mut process, _cancel) = self.spawn(options, &[PROBE_ARGUMENT]).await?;
        let told = tokio::time::timeout(options.load_timeout, process.receive()).await;
        let told = told.ok().flatten();
        match told.and_then(|message| serde_json::from_slice(message).ok()) {
            Some(barriers) => Ok(barriers),
            None => {
                let ended = Ended::from(process.end().await);
                let fact = format!("a worker could not be set up ({ended})");
                Err(Error::new(Code::Internal, fact))
            }
        }
    }

    /// Also the end of the cancel socket that belongs to the worker.
    async fn spawn(
        &self,
        options: &EngineOptions,
        arguments: &[&str],
    ) -> Result<(Process, OwnedFd)> {
        let (control, control_of_worker) = socket_pair().map_err(no_worker)?;
        let (cancel, cancel_of_worker) = socket_pair().map_err(no_worker)?;
        rustix::io::ioctl_fionbio(&control, true).map_err(|e| no_worker(e.into()))?;
        rustix::io::ioctl_fionbio(&cancel, true).map_err(|e| no_worker(e.into()))?;
        let mut command = Command::new(&options.worker.program);
        command
            .args(&options.worker.arguments)
            .args(arguments)
            .env_clear()
            .env("ORT_DISABLE_TELEMETRY", "1")
            // Weights in large pages: a few percent of a run.
            .env("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
            .current_dir(self.nowhere.path())
            // Of its own: Ctrl-C is for the server, which lets its workers finish.
            .process_group(0)
            .stdin(Stdio::from(control_of_worker))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let process = Process {
            child: Spawned::new(command).await.map_err(no_worker)?,
            control: UnixDatagram::from_std(control.into()).map_err(no_worker)?,
            cancel,
            message: vec![0; MESSAGE_BYTES + 1],
        };
        Ok((process, cancel_of_worker))
    }
}

/// A worker process. Dropping it kills it, without waiting.
pub(crate) struct Process {
    child: Spawned,
    /// Of packets in sequence, in truth: so the end of the worker is seen.
    control: UnixDatagram,
    cancel: OwnedFd,
    message: Vec<u8>,
}

impl Process {
    pub(crate) fn pid(&self) -> u32 {
        self.child.pid
    }

    pub(crate) fn send(&self, message: &[u8]) -> bool {
        let sent = rustix::net::send(&self.control, message, SendFlags::NOSIGNAL);
        sent == Ok(message.len())
    }

    pub(crate) async fn receive(&mut self) -> Option<&[u8]> {
        let length = self.control.recv(&mut self.message).await.ok()?;
        self.message.get(..length).filter(|_| length > 0)
    }

    pub(crate) fn cancel(&self, id: u64) {
        // A worker that does not take it is killed when its grace has passed.
        let _ = rustix::net::send(&self.cancel, &id.to_le_bytes(), SendFlags::NOSIGNAL);
    }

    /// Kills it and says how it had ended; nothing where it had not, though it no longer spoke.
    pub(crate) async fn end(self) -> Option<ExitStatus> {
        self.child.end().await
    }

    fn set_up(&self, options: &EngineOptions, descriptors: &[BorrowedFd<'_>]) -> Result<()> {
        let setup = encode(&Setup::from(options))?;
        let mut space =
            [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SETUP_DESCRIPTORS + 1))];
        let mut rights = SendAncillaryBuffer::new(&mut space);
        rights.push(SendAncillaryMessage::ScmRights(descriptors));
        let message = [IoSlice::new(&setup)];
        match rustix::net::sendmsg(&self.control, &message, &mut rights, SendFlags::NOSIGNAL) {
            Ok(_) => Ok(()),
            // Killed from outside: it has not seen the model yet.
            Err(Errno::PIPE | Errno::CONNRESET | Errno::CONNREFUSED) => Err(died_starting()),
            Err(error) => Err(no_worker(error.into())),
        }
    }
}

/// A child that is killed, with its group, and reaped when it is dropped.
struct Spawned {
    child: Option<Child>,
    pid: u32,
}

impl Spawned {
    /// Spawns from one thread that lives as long as this program: the worker asks the kernel to be
    /// killed when its parent dies, and to the kernel the parent is the *thread* that forked.
    async fn new(command: Command) -> io::Result<Self> {
        let spawner = SPAWNER.get_or_init(start_spawner);
        let (reply, spawned) = oneshot::channel();
        let gone = || io::Error::other("the spawning thread is gone");
        spawner.send((command, reply)).map_err(|_| gone())?;
        spawned.await.map_err(|_| gone())?
    }

    async fn end(mut self) -> Option<ExitStatus> {
        let child = self.child.take()?;
        let reap = move || {
            let ended = has_ended(&child);
            kill_and_reap(child).filter(|_| ended)
        };
        tokio::task::spawn_blocking(reap).await.ok().flatten()
    }
}

impl From<Child> for Spawned {
    fn from(child: Child) -> Self {
        let pid = child.id();
        let child = Some(child);
        Self { child, pid }
    }
}

impl Drop for Spawned {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // At once, so that a new worker does not share memory and cores with the old one; only
            // the reaping is left to a thread.
            kill(&mut child);
            let _ = thread::Builder::new().spawn(move || kill_and_reap(child));
        }
    }
}

/// Whether it ends without being killed here: its sockets close a moment before. It stays to be reaped.
fn has_ended(child: &Child) -> bool {
    let Some(pid) = Pid::from_raw(child.id() as i32) else {
        return false;
    };
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    let ended = || {
        matches!(
            rustix::process::waitid(WaitId::Pid(pid), options),
            Ok(Some(_))
        )
    };
    let patience = Instant::now() + LONGEST_END;
    while !ended() {
        if Instant::now() > patience {
            return false;
        }
        thread::sleep(Duration::from_millis(1));
    }
    true
}

/// From the last word of a process to its end.
const LONGEST_END: Duration = Duration::from_millis(500);

fn kill_and_reap(mut child: Child) -> Option<ExitStatus> {
    kill(&mut child);
    child.wait().ok()
}

/// Kills what a worker may have started as well. To be called before the worker is reaped: until
/// then nobody else can have its number.
fn kill(child: &mut Child) {
    if let Some(group) = Pid::from_raw(child.id() as i32) {
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
    }
    // The worker itself, had it left its group.
    let _ = child.kill();
}

type Order = (Command, oneshot::Sender<io::Result<Spawned>>);
static SPAWNER: OnceLock<mpsc::Sender<Order>> = OnceLock::new();

fn start_spawner() -> mpsc::Sender<Order> {
    let (orders, queue) = mpsc::channel::<Order>();
    let serve = move || {
        for (mut command, reply) in queue {
            // Where the load is dropped, so is its child, whether or not it had got here by then.
            let _ = reply.send(command.spawn().map(Spawned::from));
        }
    };
    let thread = thread::Builder::new().name("blindai-spawner".into());
    // Without the thread the receiver is dropped, and every order fails with a clear error.
    let _ = thread.spawn(serve);
    orders
}

fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
    Ok(rustix::net::socketpair(
        AddressFamily::UNIX,
        kind,
        flags,
        None,
    )?)
}

fn died_starting() -> Error {
    Error::new(
        Code::WorkerCrashed,
        "the worker ended before it was given the model",
    )
    .with_remedy("try again")
}

fn no_folder(error: io::Error) -> Error {
    let fact = format!("no empty folder can be made for the workers: {error}");
    Error::new(Code::Internal, fact).with_remedy("let the server write to /dev/shm or to TMPDIR")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    #[tokio::test]
    async fn how_a_child_ended_is_told_apart_from_being_ended() {
        let end = async |script: &str| {
            let mut command = Command::new("/bin/sh");
            command.args(["-c", script]).process_group(0);
            Spawned::new(command).await.unwrap().end().await
        };
        let killed = end("kill -9 $$").await.unwrap();
        assert_eq!(killed.signal(), Some(Signal::KILL.as_raw()));
        assert_eq!(end("exit 3").await.unwrap().code(), Some(3));
        assert_eq!(end("exec sleep 1000").await, None);
    }

    #[tokio::test]
    async fn a_child_that_nobody_took_is_ended_and_reaped() {
        let spawner = SPAWNER.get_or_init(start_spawner);
        let file = std::env::temp_dir().join(format!("blindai-spawned-{}", std::process::id()));
        let order = |script: &str| {
            let mut command = Command::new("/bin/sh");
            command.args(["-c", script, "sh"]).arg(&file);
            command.process_group(0);
            let (reply, spawned) = oneshot::channel();
            spawner.send((command, reply)).unwrap();
            spawned
        };
        let unseen = order("echo $$ > \"$1.new\" && mv \"$1.new\" \"$1\" && exec sleep 1000");
        // Orders are served one after the other: when this one was, the first is in its channel.
        drop(order("exit").await.unwrap());
        wait_until(|| file.exists());
        let pid = fs::read_to_string(&file).unwrap();
        fs::remove_file(&file).unwrap();
        let process = format!("/proc/{}", pid.trim());
        assert!(fs::exists(&process).unwrap());
        drop(unseen);
        wait_until(|| !fs::exists(&process).unwrap());
    }

    fn wait_until(condition: impl Fn() -> bool) {
        let started = Instant::now();
        while !condition() {
            assert!(started.elapsed() < Duration::from_secs(10));
            thread::sleep(Duration::from_millis(2));
        }
    }
}
