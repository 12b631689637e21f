use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use blindai_core::{Code, EngineKind, Error, NamedTensor, Result, Signature};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::lane::{Job, Lane, index_of};
use crate::parent::{Worker, Workers};
use crate::protocol::Failure;
use crate::queue::{Pushed, Queue};
use crate::{Barriers, Caller, EngineOptions, Isolation, ModelFile, ModelOptions, batch};

/// Loads models. Cheap to share; needs a Tokio runtime with I/O and time.
pub struct Engine {
    context: Arc<Context>,
}

impl Engine {
    /// Checks the ONNX Runtime library, if the options name one, and keeps it in sealed memory, or loads
    /// it where workers are threads.
    ///
    /// # Errors
    /// [`Code::Internal`] when the library is missing or another build, this program was built without
    /// tract and the options choose it, or an option cannot be.
    pub fn new(mut options: EngineOptions) -> Result<Self> {
        check_options(&options)?;
        if options.kind == EngineKind::Tract && !TRACT {
            return Err(no_tract());
        }
        if options.isolation == Isolation::None {
            // Nobody can kill a thread, and a second one in its place would compute beside it.
            options.grace = Duration::MAX;
        }
        let workers = Workers::new(&options)?;
        let context = Arc::new(Context { options, workers });
        Ok(Self { context })
    }

    /// What its options say of isolation.
    pub fn isolation(&self) -> Isolation {
        self.context.options.isolation
    }

    /// What keeps workers apart from the machine, if it is as much as the options ask for.
    ///
    /// # Errors
    /// [`Code::Internal`] when it is less, or no worker can be started.
    pub async fn barriers(&self) -> Result<Barriers> {
        let context = &self.context;
        let isolation = context.options.isolation;
        match context.workers.probe(&context.options).await {
            Ok(barriers) => barriers.require(isolation).map(|()| barriers),
            // Nothing is asked for, so nothing has to be found.
            Err(_) if isolation == Isolation::Process => Ok(Barriers {
                process: true,
                ..Barriers::default()
            }),
            Err(error) => Err(error),
        }
    }

    /// Starts the workers of the model and waits until they can run, as the options say.
    ///
    /// # Errors
    /// As [`Engine::load_with`].
    pub async fn load(&self, file: Arc<ModelFile>) -> Result<LoadedModel> {
        let own = self.context.options.of_a_model();
        self.load_with(&own, file).await
    }

    /// As [`Engine::load`], with options of the model's own.
    ///
    /// # Errors
    /// [`Code::ModelInvalid`], [`Code::ModelUnsupported`], [`Code::ModelMemory`]: the model;
    /// [`Code::WorkerCrashed`] or [`Code::DeadlineExceeded`] when loading killed the worker or took
    /// too long; [`Code::Internal`]: the system, or an option cannot be.
    pub async fn load_with(&self, own: &ModelOptions, file: Arc<ModelFile>) -> Result<LoadedModel> {
        let options = self.context.options.with(own);
        check_options(&options)?;
        let (first, signature) = Lane::first(&self.context, &options, &file).await?;
        let workers = options.workers.max(1);
        let shared = Arc::new(Shared {
            batchable: options.batching.is_some() && batch::is_batchable(&signature),
            queue: Queue::new(options.queue, workers),
            pids: (0..workers).map(|_| AtomicU32::new(0)).collect(),
            running: AtomicUsize::new(0),
            restarts: AtomicU64::new(0),
            crashes: AtomicU64::new(0),
            context: self.context.clone(),
            options,
            file,
            signature,
        });
        let mut lanes = JoinSet::new();
        let mut worker = Some(first);
        for number in 0..workers {
            let worker = match worker.take() {
                Some(worker) => worker,
                None => self.context.start(&shared.options, &shared.file).await?.0,
            };
            lanes.spawn(Lane::new(shared.clone(), number, worker).serve());
        }
        Ok(LoadedModel {
            shared,
            _lanes: lanes,
        })
    }
}

/// A model that answers requests: callers take turns, and each caller's are started in the order
/// of their arrival.
///
/// Dropping it ends its workers, without waiting.
pub struct LoadedModel {
    shared: Arc<Shared>,
    _lanes: JoinSet<()>,
}

/// What came out, and how.
#[derive(Debug)]
pub struct Answer {
    pub outputs: Vec<NamedTensor>,
    pub stages: Stages,
}

/// How long a request took where.
#[derive(Clone, Copy, Debug)]
pub struct Stages {
    /// From its arrival to the moment a worker was there for it.
    pub queued: Duration,
    /// Handing over, computing and handing back, of all requests in the batch together.
    pub computed: Duration,
    /// How many requests were computed together.
    pub batch: usize,
}

/// How a model stands.
#[derive(Clone, Copy, Debug, Default)]
pub struct ModelStatus {
    pub queued: usize,
    pub running: usize,
    pub workers: usize,
    /// How often a worker was started in the place of one that ended.
    pub restarts: u64,
    /// How often a request killed its worker.
    pub crashes: u64,
    /// What is resident of all its workers, shared libraries included. Of threads, which cannot be seen
    /// apart from the rest of the process, the length of the model's file for each.
    pub resident_bytes: u64,
}

impl LoadedModel {
    /// The file it was loaded from.
    pub fn file(&self) -> &ModelFile {
        &self.shared.file
    }

    /// The inputs the model takes and the outputs it gives.
    pub fn signature(&self) -> &Signature {
        &self.shared.signature
    }

    /// Runs the model and returns the named outputs in that order; all of them when none is named.
    ///
    /// `deadline` covers waiting for a worker and computing. Dropping the future cancels.
    ///
    /// # Errors
    /// - What [`Signature::check_inputs`] and [`Signature::check_outputs`] find, before the worker
    ///   sees anything; [`Code::BodyTooLarge`] when the inputs exceed their limit.
    /// - [`Code::TooManyRequests`], [`Code::DeadlineExceeded`].
    /// - [`Code::ModelFailed`], [`Code::ModelMemory`], [`Code::WorkerCrashed`]: this request; the
    ///   next is answered.
    pub async fn run(
        &self,
        inputs: Vec<NamedTensor>,
        outputs: &[String],
        caller: Caller,
        deadline: Duration,
    ) -> Result<Answer> {
        self.shared.signature.check_inputs(&inputs)?;
        let (reply, answer) = oneshot::channel();
        let job = self.shared.job(inputs, outputs, caller, reply)?;
        let mut place = self.shared.enqueue(job)?;
        let deadline = deadline.min(LONGEST_DEADLINE);
        let answer = tokio::time::timeout(deadline, answer).await;
        let answer = answer.map_err(|_| late(deadline))?;
        place.taken = true;
        answer.unwrap_or_else(|_| Err(Error::new(Code::Internal, "nobody works for this model")))
    }

    /// How it stands.
    pub fn status(&self) -> ModelStatus {
        let pids = self.worker_pids();
        ModelStatus {
            queued: self.shared.queue.len(),
            running: self.shared.running.load(Ordering::Relaxed),
            workers: pids.len(),
            restarts: self.shared.restarts.load(Ordering::Relaxed),
            crashes: self.shared.crashes.load(Ordering::Relaxed),
            resident_bytes: self.resident_bytes(&pids),
        }
    }

    fn resident_bytes(&self, pids: &[u32]) -> u64 {
        match self.shared.options.isolation {
            Isolation::None => self.file().size_bytes().saturating_mul(pids.len() as u64),
            _ => pids.iter().map(|pid| resident_bytes(*pid)).sum(),
        }
    }

    /// The process ids of its workers, as they were started last; 0 for those that are threads.
    pub fn worker_pids(&self) -> Vec<u32> {
        let pids = self.shared.pids.iter();
        pids.map(|pid| pid.load(Ordering::Relaxed)).collect()
    }
}

/// What is resident of a process, in bytes; 0 when there is none.
fn resident_bytes(pid: u32) -> u64 {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm"));
    let pages = |statm: String| statm.split(' ').nth(1)?.parse::<u64>().ok();
    let pages = statm.ok().and_then(pages).unwrap_or(0);
    pages * rustix::param::page_size() as u64
}

impl fmt::Debug for LoadedModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LoadedModel({})", self.shared.file.digest())
    }
}

/// A time far enough away for everybody, and not so far that adding it overflows.
const LONGEST_DEADLINE: Duration = Duration::from_secs(365 * 24 * 3600);
/// From here on a copy is worth telling the runtime that its thread is busy.
const LONG_COPY_BYTES: u64 = 4 << 20;

pub(crate) struct Context {
    pub options: EngineOptions,
    workers: Workers,
}

impl Context {
    pub(crate) async fn start(
        &self,
        options: &EngineOptions,
        file: &ModelFile,
    ) -> Result<(Worker, Signature)> {
        if options.kind == EngineKind::Tract && !TRACT {
            return Err(no_tract());
        }
        Worker::start(&self.workers, options, file).await
    }
}

/// What a model's lanes share.
pub(crate) struct Shared {
    pub context: Arc<Context>,
    /// Those of the engine, with the model's own in their places.
    pub options: EngineOptions,
    pub file: Arc<ModelFile>,
    pub signature: Signature,
    pub queue: Queue<Job>,
    /// By the number of the lane; 0 where there never was a worker.
    pub pids: Box<[AtomicU32]>,
    pub running: AtomicUsize,
    pub restarts: AtomicU64,
    pub crashes: AtomicU64,
    batchable: bool,
}

impl Shared {
    fn job(
        &self,
        mut inputs: Vec<NamedTensor>,
        outputs: &[String],
        caller: Caller,
        reply: oneshot::Sender<Result<Answer>>,
    ) -> Result<Job> {
        inputs.sort_by_cached_key(|input| index_of(&self.signature, &input.name));
        let rows = self
            .batchable
            .then(|| batch::rows(&self.signature, &inputs));
        let job = Job {
            rows: rows.flatten(),
            outputs: self.choose(outputs)?,
            arrived: Instant::now(),
            inputs,
            caller,
            reply,
        };
        let (bytes, limit) = (job.input_bytes(), self.options.input_bytes);
        if bytes > limit {
            let fact = format!("the inputs take {bytes} bytes, the limit is {limit}");
            return Err(Error::new(Code::BodyTooLarge, fact));
        }
        Ok(job)
    }

    fn enqueue(&self, job: Job) -> Result<Waiting<'_>> {
        let full = || Error::new(Code::TooManyRequests, "the queue of the model is full");
        let caller = job.caller;
        let number = match self.queue.push(caller, job) {
            Pushed::Waits(number) => number,
            Pushed::WaitsInsteadOf(number, shed) => {
                shed.tell(Err(full()));
                number
            }
            Pushed::Refused(_) => return Err(full()),
        };
        Ok(Waiting {
            queue: &self.queue,
            caller,
            number,
            taken: false,
        })
    }

    /// The outputs as indices.
    fn choose(&self, names: &[String]) -> Result<Vec<usize>> {
        let outputs = &self.signature.outputs;
        if names.is_empty() {
            return Ok((0..outputs.len()).collect());
        }
        self.signature.check_outputs(names)?;
        let mut chosen = Vec::with_capacity(names.len());
        for name in names {
            let index = outputs.iter().position(|spec| spec.name == *name);
            if index.is_some_and(|index| chosen.contains(&index)) {
                let fact = format!("output {name:?} was asked for twice");
                return Err(Error::new(Code::InvalidRequest, fact));
            }
            chosen.extend(index);
        }
        Ok(chosen)
    }

    pub(crate) fn failure(&self, failure: Failure) -> Error {
        let options = &self.options;
        match failure {
            Failure::Memory => {
                let limit = options.memory_bytes;
                let fact = format!("the model needs more than its {limit} bytes for this input");
                Error::new(Code::ModelMemory, fact)
            }
            Failure::OutputsTooLarge => {
                let limit = options.output_bytes;
                let fact = format!("the outputs take more than {limit} bytes");
                Error::new(Code::ModelMemory, fact)
                    .with_remedy("ask for fewer outputs, or send a smaller batch")
            }
            Failure::Output(index) => {
                let outputs = &self.signature.outputs;
                let name = outputs.get(index).map_or("", |spec| &spec.name);
                let fact = format!("output {name:?} is not what the signature says");
                Error::new(Code::ModelFailed, fact)
            }
            Failure::Node { operator, name } => {
                let (operator, name) = (printable(&operator), printable(&name));
                let fact = format!("the model failed at node {name:?} ({operator})");
                Error::new(Code::ModelFailed, fact)
            }
            Failure::Other | Failure::Cancelled => {
                Error::new(Code::ModelFailed, "the model failed on this input")
            }
        }
    }
}

/// A place in the queue, which is given up when nobody waits any more.
struct Waiting<'a> {
    queue: &'a Queue<Job>,
    caller: Caller,
    number: u64,
    taken: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.taken {
            self.queue.remove(self.caller, self.number);
        }
    }
}

/// Does a copy of so many bytes. It is not moved to another thread: a copy that outlives its request
/// would write into the next one.
pub(crate) fn busy<T>(bytes: u64, copy: impl FnOnce() -> T) -> T {
    let handle = Handle::try_current();
    let many = handle.is_ok_and(|h| h.runtime_flavor() == RuntimeFlavor::MultiThread);
    match many && bytes > LONG_COPY_BYTES {
        true => tokio::task::block_in_place(copy),
        false => copy(),
    }
}

fn check_options(options: &EngineOptions) -> Result<()> {
    if options.threads == 0 || options.input_bytes == 0 || options.output_bytes == 0 {
        let fact = "threads, input_bytes and output_bytes must be at least 1";
        return Err(Error::new(Code::Internal, fact));
    }
    Ok(())
}

/// Whether this program has the engine tract in it.
pub const TRACT: bool = cfg!(feature = "tract");

pub(crate) fn no_tract() -> Error {
    let fact = "this program was built without tract";
    let remedy = "choose onnxruntime, or build with the feature `tract`";
    Error::new(Code::Internal, fact).with_remedy(remedy)
}

pub(crate) fn no_library() -> Error {
    Error::new(
        Code::Internal,
        "the engine was started without ONNX Runtime",
    )
}

fn late(deadline: Duration) -> Error {
    let fact = format!("no answer within {} s", deadline.as_secs_f32());
    Error::new(Code::DeadlineExceeded, fact)
}

/// Names come from the model, but by way of a worker that may be anybody's by now.
fn printable(text: &str) -> String {
    let printable = |c: &char| c.is_ascii_graphic() || *c == ' ';
    text.chars().filter(printable).take(128).collect()
}
