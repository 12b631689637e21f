//! One worker process as its parent sees it: hostile input.

use std::fmt;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{OnceLock, mpsc};
use std::thread;

use blindai_core::{Code, Error, Result, Signature};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use rustix::process::{Pid, Signal};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixDatagram;
use tokio::sync::oneshot;

use crate::memory::Region;
use crate::names::{check_names, printable};
use crate::nowhere::Nowhere;
use crate::protocol::{Loaded, MESSAGE_BYTES, Ran, Run, SETUP_DESCRIPTORS, SIGNATURE_BYTES, Setup};
use crate::worker::PROBE_ARGUMENT;
use crate::{Barriers, EngineOptions, ModelFile};

/// Why a run brought no outputs.
pub(crate) enum Trouble {
    /// The request, or the model on it.
    Refused(Error),
    /// The worker was gone before it got the request.
    Gone,
    /// The worker is gone, or no longer speaks the protocol.
    Lost,
    /// Nobody waits any more.
    Abandoned,
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

/// A running worker. Dropping it kills the process, without waiting.
pub(crate) struct Worker {
    process: Process,
    /// Of packets in sequence, in truth: so the end of the worker is seen.
    control: UnixDatagram,
    cancel: OwnedFd,
    message: Vec<u8>,
    pub(crate) inputs: Region,
    pub(crate) outputs: Region,
    requests: u64,
    in_flight: Option<u64>,
    /// It has said something that no worker says.
    distrusted: bool,
}

impl Worker {
    /// Starts a worker and has it load the model.
    ///
    /// # Errors
    /// What is wrong with the model, or what the system refuses.
    pub(crate) async fn start(
        options: &EngineOptions,
        library: Option<&OwnedFd>,
        nowhere: &Nowhere,
        model: &ModelFile,
    ) -> Result<(Self, Signature)> {
        let (mut worker, cancel) = Self::spawn(options, nowhere, &[]).await?;
        worker.set_up(options, library, model, &cancel)?;
        drop(cancel);
        let timeout = options.load_timeout;
        match tokio::time::timeout(timeout, worker.receive()).await {
            Ok(Ok(Loaded::Yes { signature_bytes })) => {
                let signature = worker.signature(signature_bytes)?;
                Ok((worker, signature))
            }
            Ok(Ok(Loaded::No { code, fact })) => Err(refusal(&code, &fact)),
            Ok(Err(_)) => Err(died_loading(&worker.end().await)),
            Err(_) => {
                let fact = format!(
                    "the model was not loaded within {} s",
                    timeout.as_secs_f32()
                );
                Err(Error::new(Code::DeadlineExceeded, fact)
                    .with_remedy("export a smaller model, or raise the time for loading"))
            }
        }
    }

    /// What the kernel gives to keep workers apart, as one of them found it.
    pub(crate) async fn probe(options: &EngineOptions, nowhere: &Nowhere) -> Result<Barriers> {
        let (mut worker, _cancel) = Self::spawn(options, nowhere, &[PROBE_ARGUMENT]).await?;
        let told = tokio::time::timeout(options.load_timeout, worker.receive()).await;
        match told {
            Ok(Ok(barriers)) => Ok(barriers),
            _ => {
                let ended = worker.end().await;
                let fact = format!("a worker could not be set up ({ended})");
                Err(Error::new(Code::Internal, fact))
            }
        }
    }

    /// The process id.
    pub(crate) fn pid(&self) -> u32 {
        self.process.pid
    }

    /// Hands a request over, under a number of its own. The inputs must be in place.
    pub(crate) fn send(&mut self, run: &mut Run) -> Result<(), Trouble> {
        self.requests += 1;
        run.id = self.requests;
        let message = encode(run)?;
        let sent = rustix::net::send(&self.control, &message, SendFlags::NOSIGNAL);
        if sent != Ok(message.len()) {
            return Err(Trouble::Gone);
        }
        self.in_flight = Some(self.requests);
        Ok(())
    }

    /// Waits for the answer to the request that was sent last.
    pub(crate) async fn answer(&mut self) -> Result<Ran, Trouble> {
        let ran: Ran = self.receive().await?;
        if Some(ran.id) != self.in_flight {
            return Err(self.distrust());
        }
        self.in_flight = None;
        Ok(ran)
    }

    /// Marks the worker as one that does not speak the protocol.
    pub(crate) fn distrust(&mut self) -> Trouble {
        self.distrusted = true;
        Trouble::Lost
    }

    /// Asks for the request in flight to be stopped.
    pub(crate) fn cancel(&self) {
        if let Some(id) = self.in_flight {
            // A worker that does not take it is killed when its grace has passed.
            let _ = rustix::net::send(&self.cancel, &id.to_le_bytes(), SendFlags::NOSIGNAL);
        }
    }

    /// How many bytes there are to forget.
    pub(crate) fn used(&self) -> u64 {
        self.inputs.used() + self.outputs.used()
    }

    /// Forgets the tensors of the last request.
    pub(crate) fn wipe(&mut self) -> io::Result<()> {
        self.inputs.wipe()?;
        self.outputs.wipe()
    }

    /// Kills the process and says how it had ended.
    pub(crate) async fn end(self) -> Ended {
        Ended {
            status: self.process.end().await,
            distrusted: self.distrusted,
        }
    }

    async fn spawn(
        options: &EngineOptions,
        nowhere: &Nowhere,
        arguments: &[&str],
    ) -> Result<(Self, OwnedFd)> {
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
            .current_dir(nowhere.path())
            // Of its own: Ctrl-C is for the server, which lets its workers finish.
            .process_group(0)
            .stdin(Stdio::from(control_of_worker))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let process = Process::spawn(command).await.map_err(no_worker)?;
        let inputs = Region::new("blindai-inputs", options.input_bytes).map_err(no_worker)?;
        let output_bytes = options.output_bytes.max(SIGNATURE_BYTES);
        let outputs = Region::new("blindai-outputs", output_bytes).map_err(no_worker)?;
        let worker = Self {
            process,
            control: UnixDatagram::from_std(control.into()).map_err(no_worker)?,
            cancel,
            message: vec![0; MESSAGE_BYTES + 1],
            inputs,
            outputs,
            requests: 0,
            in_flight: None,
            distrusted: false,
        };
        Ok((worker, cancel_of_worker))
    }

    fn set_up(
        &self,
        options: &EngineOptions,
        library: Option<&OwnedFd>,
        model: &ModelFile,
        cancel: &OwnedFd,
    ) -> Result<()> {
        let setup = encode(&Setup {
            engine: options.kind,
            threads: options.threads,
            spinning: options.spinning,
            memory_bytes: options.memory_bytes,
            output_bytes: options.output_bytes,
            isolation: options.isolation,
        })?;
        let descriptors: [_; SETUP_DESCRIPTORS] = [
            model.file.as_fd(),
            self.inputs.as_fd(),
            self.outputs.as_fd(),
            cancel.as_fd(),
        ];
        let descriptors: Vec<_> = descriptors
            .into_iter()
            .chain(library.map(OwnedFd::as_fd))
            .collect();
        let mut space =
            [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SETUP_DESCRIPTORS + 1))];
        let mut rights = SendAncillaryBuffer::new(&mut space);
        rights.push(SendAncillaryMessage::ScmRights(&descriptors));
        let message = [IoSlice::new(&setup)];
        match rustix::net::sendmsg(&self.control, &message, &mut rights, SendFlags::NOSIGNAL) {
            Ok(_) => Ok(()),
            // Killed from outside: it has not seen the model yet.
            Err(Errno::PIPE | Errno::CONNRESET | Errno::CONNREFUSED) => Err(died_starting()),
            Err(error) => Err(no_worker(error.into())),
        }
    }

    async fn receive<T: DeserializeOwned>(&mut self) -> Result<T, Trouble> {
        let length = self.control.recv(&mut self.message).await;
        let length = length.map_err(|_| Trouble::Lost)?;
        if length == 0 {
            return Err(Trouble::Lost);
        }
        // A full buffer may be the start of something longer.
        let message = self
            .message
            .get(..length)
            .filter(|_| length <= MESSAGE_BYTES);
        let message = message.and_then(|message| serde_json::from_slice(message).ok());
        message.ok_or_else(|| self.distrust())
    }

    fn signature(&mut self, bytes: u64) -> Result<Signature> {
        let invalid = || Error::new(Code::Internal, "the worker sent no readable signature");
        if bytes > SIGNATURE_BYTES {
            return Err(invalid());
        }
        let json = self.outputs.read(0, bytes as usize).map_err(no_worker)?;
        self.outputs.wipe().map_err(no_worker)?;
        let signature = serde_json::from_slice(&json).map_err(|_| invalid())?;
        check_names(&signature)?;
        Ok(signature)
    }
}

/// How a process ended. It prints for people: `SIGFPE`, or `exit code 3`.
#[derive(Default)]
pub(crate) struct Ended {
    status: Option<ExitStatus>,
    distrusted: bool,
}

impl Ended {
    /// Whether somebody else killed it: the system, or its operator. No computation does that.
    pub(crate) fn was_killed(&self) -> bool {
        let signal = self.status.and_then(|status| status.signal());
        signal == Some(Signal::KILL.as_raw()) && !self.distrusted
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(status) = self.status else {
            return f.write_str("unknown cause");
        };
        match (status.signal(), status.code()) {
            (Some(signal), _) => match SIGNALS.iter().find(|(number, _)| *number == signal) {
                Some((_, name)) => f.write_str(name),
                None => write!(f, "signal {signal}"),
            },
            (None, code) => write!(f, "exit code {}", code.unwrap_or(-1)),
        }
    }
}

const SIGNALS: [(i32, &str); 8] = [
    (4, "SIGILL"),
    (6, "SIGABRT"),
    (7, "SIGBUS"),
    (8, "SIGFPE"),
    (9, "SIGKILL"),
    (11, "SIGSEGV"),
    (25, "SIGXFSZ"),
    (31, "SIGSYS"),
];

/// A child that is killed, with its group, and reaped when it is dropped.
struct Process {
    child: Option<Child>,
    pid: u32,
}

impl Process {
    /// Spawns from one thread that lives as long as this program: the worker asks the kernel to be
    /// killed when its parent dies, and to the kernel the parent is the *thread* that forked.
    async fn spawn(command: Command) -> io::Result<Self> {
        let spawner = SPAWNER.get_or_init(start_spawner);
        let (reply, child) = oneshot::channel();
        let gone = || io::Error::other("the spawning thread is gone");
        spawner.send((command, reply)).map_err(|_| gone())?;
        let child = child.await.map_err(|_| gone())??;
        let pid = child.id();
        let child = Some(child);
        Ok(Self { child, pid })
    }

    async fn end(mut self) -> Option<ExitStatus> {
        let child = self.child.take()?;
        let reap = move || kill_and_reap(child);
        tokio::task::spawn_blocking(reap).await.ok().flatten()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // At once, so that a new worker does not share memory and cores with the old one; only
            // the reaping is left to a thread.
            kill(&mut child);
            let _ = thread::Builder::new().spawn(move || kill_and_reap(child));
        }
    }
}

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

type Order = (Command, oneshot::Sender<io::Result<Child>>);
static SPAWNER: OnceLock<mpsc::Sender<Order>> = OnceLock::new();

fn start_spawner() -> mpsc::Sender<Order> {
    let (orders, queue) = mpsc::channel::<Order>();
    let serve = move || {
        for (mut command, reply) in queue {
            // Nobody waits any more: the load was dropped, and so is its child.
            if let Err(Ok(orphan)) = reply.send(command.spawn()) {
                kill_and_reap(orphan);
            }
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

fn encode(message: &impl Serialize) -> Result<Vec<u8>> {
    let bytes = serde_json::to_vec(message)
        .map_err(|_| Error::new(Code::Internal, "a message to the worker has no encoding"))?;
    if bytes.len() > MESSAGE_BYTES {
        let fact = "the shapes of the request do not fit a message to the worker";
        return Err(Error::new(Code::InvalidRequest, fact));
    }
    Ok(bytes)
}

/// What a worker says of a model. Only codes that a worker may use; the text, which goes to the
/// model's owner, only as printable characters, and not many of them. Any other code is a failure of
/// the server, whose text its operator reads: none of the worker's goes there.
fn refusal(code: &str, fact: &str) -> Error {
    let Some(code) = Code::parse(code).filter(|code| WORKER_CODES.contains(code)) else {
        return Error::new(Code::Internal, "the worker could not be set up");
    };
    let fact: String = fact
        .chars()
        .filter(|c| printable(*c))
        .take(FACT_CHARACTERS)
        .collect();
    Error::new(code, fact)
}

const FACT_CHARACTERS: usize = 500;
const WORKER_CODES: [Code; 3] = [
    Code::ModelInvalid,
    Code::ModelUnsupported,
    Code::ModelMemory,
];

fn died_loading(ended: &Ended) -> Error {
    let fact = format!("the model killed its worker while loading ({ended})");
    Error::new(Code::WorkerCrashed, fact)
        .with_remedy("check the file with onnx.checker and export it again")
}

fn died_starting() -> Error {
    Error::new(
        Code::WorkerCrashed,
        "the worker ended before it was given the model",
    )
    .with_remedy("try again")
}

fn no_worker(error: io::Error) -> Error {
    Error::new(Code::Internal, format!("no worker can be started: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_chooses_its_words_only_to_the_owner_of_the_model() {
        let long = "\u{1b}[2J\u{202e}\n".to_owned() + &"x".repeat(1000);
        let error = refusal("model-invalid", &long);
        assert_eq!(error.code(), Code::ModelInvalid);
        assert_eq!(
            error.fact(),
            "[2J".to_owned() + &"x".repeat(FACT_CHARACTERS - 3)
        );
        for code in ["internal", "worker-crashed", "forbidden", "", &long] {
            let error = refusal(code, &long);
            assert_eq!(error.code(), Code::Internal);
            assert_eq!(error.fact(), "the worker could not be set up");
        }
    }
}
