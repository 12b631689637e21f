//! One worker as its parent sees it: hostile input.

use std::fmt;
use std::io;
use std::process::ExitStatus;

use std::os::unix::process::ExitStatusExt as _;

use blindai_core::{Code, Error, Result, Signature};
use rustix::process::Signal;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::memory::Exchange;
use crate::names::{check_names, printable};
use crate::process::{Process, Processes};
use crate::protocol::{Loaded, MESSAGE_BYTES, Ran, Run, SIGNATURE_BYTES};
use crate::thread::{Thread, Threads};
use crate::{Barriers, EngineOptions, Isolation, ModelFile};

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

/// What workers are made of, and given.
pub(crate) enum Workers {
    Processes(Processes),
    Threads(Threads),
}

impl Workers {
    /// # Errors
    /// [`Code::Internal`] when the library that the options name is missing or another build, or the
    /// system refuses what workers need.
    pub(crate) fn new(options: &EngineOptions) -> Result<Self> {
        let library = options.onnxruntime.as_deref();
        Ok(match options.isolation {
            Isolation::None => Self::Threads(Threads::new(library)?),
            _ => Self::Processes(Processes::new(library)?),
        })
    }

    /// What keeps workers apart from the machine, as one of them found it.
    ///
    /// # Errors
    /// When none can be started.
    pub(crate) async fn probe(&self, options: &EngineOptions) -> Result<Barriers> {
        match self {
            Self::Processes(processes) => processes.probe(options).await,
            Self::Threads(_) => Ok(Barriers::default()),
        }
    }

    async fn start(
        &self,
        options: &EngineOptions,
        model: &ModelFile,
    ) -> Result<(Runs, Exchange, Exchange)> {
        Ok(match self {
            Self::Processes(processes) => {
                let (process, inputs, outputs) = processes.start(options, model).await?;
                let (inputs, outputs) = (Exchange::Region(inputs), Exchange::Region(outputs));
                (Runs::AsProcess(process), inputs, outputs)
            }
            Self::Threads(threads) => {
                let (thread, inputs, outputs) = threads.start(options, model).await?;
                let (inputs, outputs) = (Exchange::Heap(inputs), Exchange::Heap(outputs));
                (Runs::AsThread(thread), inputs, outputs)
            }
        })
    }
}

/// What a worker runs as: all that differs between the two, but for their memory.
enum Runs {
    AsProcess(Process),
    AsThread(Thread),
}

impl Runs {
    fn pid(&self) -> u32 {
        match self {
            Self::AsProcess(process) => process.pid(),
            Self::AsThread(_) => 0,
        }
    }

    /// False when it is gone.
    fn send(&self, message: Vec<u8>) -> bool {
        match self {
            Self::AsProcess(process) => process.send(&message),
            Self::AsThread(thread) => thread.send(message),
        }
    }

    /// The next message, of at most one byte more than there may be; `None` when it is gone.
    async fn receive(&mut self) -> Option<&[u8]> {
        match self {
            Self::AsProcess(process) => process.receive().await,
            Self::AsThread(thread) => thread.receive().await,
        }
    }

    fn cancel(&self, id: u64) {
        match self {
            Self::AsProcess(process) => process.cancel(id),
            Self::AsThread(thread) => thread.cancel(id),
        }
    }

    async fn end(self) -> Option<ExitStatus> {
        match self {
            Self::AsProcess(process) => process.end().await,
            Self::AsThread(_) => None,
        }
    }
}

/// A running worker. Dropping it kills the process, without waiting; a thread is told to stop.
pub(crate) struct Worker {
    runs: Runs,
    pub(crate) inputs: Exchange,
    pub(crate) outputs: Exchange,
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
        workers: &Workers,
        options: &EngineOptions,
        model: &ModelFile,
    ) -> Result<(Self, Signature)> {
        let (runs, inputs, outputs) = workers.start(options, model).await?;
        let mut worker = Self {
            runs,
            inputs,
            outputs,
            requests: 0,
            in_flight: None,
            distrusted: false,
        };
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

    /// The process id; 0 for a thread.
    pub(crate) fn pid(&self) -> u32 {
        self.runs.pid()
    }

    /// Hands a request over, under a number of its own. The inputs must be in place.
    pub(crate) fn send(&mut self, run: &mut Run) -> Result<(), Trouble> {
        self.requests += 1;
        run.id = self.requests;
        self.outputs.hand_over();
        if !self.runs.send(encode(run)?) {
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
            self.runs.cancel(id);
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

    /// Ends it and says how it had ended.
    pub(crate) async fn end(self) -> Ended {
        let distrusted = self.distrusted;
        Ended {
            distrusted,
            ..self.runs.end().await.into()
        }
    }

    async fn receive<T: DeserializeOwned>(&mut self) -> Result<T, Trouble> {
        let message = self.runs.receive().await.ok_or(Trouble::Lost)?;
        // A full buffer may be the start of something longer.
        let message = Some(message).filter(|message| message.len() <= MESSAGE_BYTES);
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

impl From<Option<ExitStatus>> for Ended {
    fn from(status: Option<ExitStatus>) -> Self {
        let distrusted = false;
        Self { status, distrusted }
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

pub(crate) fn encode(message: &impl Serialize) -> Result<Vec<u8>> {
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

pub(crate) fn no_worker(error: io::Error) -> Error {
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
