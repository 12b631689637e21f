use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use blindai_core::{Code, Error, NamedTensor, Result, Signature, Tensor};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{Mutex, OwnedMutexGuard, Semaphore};
use tokio::time::Instant;

use crate::nowhere::Nowhere;
use crate::process::{Lost, Worker, ending};
use crate::protocol::{ALIGNMENT, Failure, Place, Run};
use crate::{EngineOptions, ModelFile, runtime};

/// Loads models. Cheap to share; needs a Tokio runtime with I/O and time.
pub struct Engine {
    context: Arc<Context>,
}

impl Engine {
    /// Checks the ONNX Runtime library and keeps it in sealed memory.
    ///
    /// # Errors
    /// [`Code::Internal`] when the library is missing or another build, or an option cannot be.
    pub fn new(options: EngineOptions) -> Result<Self> {
        if options.threads == 0 || options.input_bytes == 0 || options.output_bytes == 0 {
            let fact = "threads, input_bytes and output_bytes must be at least 1";
            return Err(Error::new(Code::Internal, fact));
        }
        let library = runtime::load(&options.onnxruntime)?;
        let nowhere = Nowhere::new().map_err(no_folder)?;
        let context = Arc::new(Context {
            options,
            library,
            nowhere,
        });
        Ok(Self { context })
    }

    /// Starts a worker for the model and waits until it can run.
    ///
    /// # Errors
    /// [`Code::ModelInvalid`], [`Code::ModelUnsupported`], [`Code::ModelMemory`]: the model;
    /// [`Code::WorkerCrashed`] or [`Code::DeadlineExceeded`] when loading killed the worker or took
    /// too long; [`Code::Internal`]: the system.
    pub async fn load(&self, file: Arc<ModelFile>) -> Result<LoadedModel> {
        let (worker, signature) = self.context.start(&file).await?;
        let shared = Shared {
            pid: AtomicU32::new(worker.pid()),
            slot: Arc::new(Mutex::new(Slot {
                worker: Some(worker),
                failure: None,
            })),
            admission: Semaphore::new(self.context.options.queue.saturating_add(1)),
            context: self.context.clone(),
            file,
            signature,
        };
        Ok(LoadedModel {
            shared: Arc::new(shared),
        })
    }
}

/// A model that answers requests, one at a time, in the order of their arrival.
///
/// Dropping it ends its worker, without waiting.
pub struct LoadedModel {
    shared: Arc<Shared>,
}

impl LoadedModel {
    /// The inputs the model takes and the outputs it gives.
    pub fn signature(&self) -> &Signature {
        &self.shared.signature
    }

    /// Runs the model and returns the named outputs in that order; all of them when none is named.
    ///
    /// `deadline` covers waiting for the worker and computing. Dropping the future cancels.
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
        deadline: Duration,
    ) -> Result<Vec<NamedTensor>> {
        let shared = &self.shared;
        shared.signature.check_inputs(&inputs)?;
        let run = Run {
            id: 0,
            inputs: shared.place(&inputs)?,
            outputs: shared.choose(outputs)?,
        };
        let full = |_| Error::new(Code::TooManyRequests, "the queue of the model is full");
        let _admitted = shared.admission.try_acquire().map_err(full)?;
        let until = Instant::now() + deadline.min(LONGEST_DEADLINE);
        let late = |_| late(deadline);
        let slot = tokio::time::timeout_at(until, shared.ready());
        let mut flight = Flight::new(shared, slot.await.map_err(late)??);
        let outcome = tokio::time::timeout_at(until, flight.fly(run, inputs));
        outcome.await.map_err(late)?
    }

    /// Memory of the worker, in bytes: what is resident, shared libraries included. 0 while there
    /// is no worker.
    pub fn resident_bytes(&self) -> u64 {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.worker_pid()));
        let pages = |statm: String| statm.split(' ').nth(1)?.parse::<u64>().ok();
        let pages = statm.ok().and_then(pages).unwrap_or(0);
        pages * rustix::param::page_size() as u64
    }

    /// The process id of the worker that was started last.
    pub fn worker_pid(&self) -> u32 {
        self.shared.pid.load(Ordering::Relaxed)
    }
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
/// Up to here wiping is done before the answer goes out; it costs less than handing it over.
const SHORT_WIPE_BYTES: u64 = 64 * 1024;

struct Context {
    options: EngineOptions,
    library: OwnedFd,
    nowhere: Nowhere,
}

impl Context {
    async fn start(&self, file: &ModelFile) -> Result<(Worker, Signature)> {
        Worker::start(&self.options, &self.library, &self.nowhere, file).await
    }
}

struct Shared {
    context: Arc<Context>,
    file: Arc<ModelFile>,
    signature: Signature,
    slot: Arc<Mutex<Slot>>,
    admission: Semaphore,
    pid: AtomicU32,
}

/// Whoever holds the lock has the worker to himself. Tokio's mutex is fair: first come, first served.
struct Slot {
    worker: Option<Worker>,
    /// Why there is no worker; told once, then the next request tries again.
    failure: Option<Error>,
}

type Held = OwnedMutexGuard<Slot>;

impl Shared {
    /// The slot, with a worker in it.
    async fn ready(self: &Arc<Self>) -> Result<Held> {
        loop {
            let mut slot = self.slot.clone().lock_owned().await;
            if slot.worker.is_some() {
                return Ok(slot);
            }
            if let Some(failure) = slot.failure.take() {
                return Err(failure);
            }
            // In a task of its own, so that a deadline shorter than loading does not start over
            // and over again.
            let _ = tokio::spawn(self.clone().restart(slot)).await;
        }
    }

    async fn restart(self: Arc<Self>, mut slot: Held) {
        slot.worker = None;
        match self.context.start(&self.file).await {
            Ok((worker, signature)) if signature == self.signature => {
                self.pid.store(worker.pid(), Ordering::Relaxed);
                slot.worker = Some(worker);
            }
            Ok(_) => {
                let fact = "the restarted model has another signature";
                slot.failure = Some(Error::new(Code::Internal, fact));
            }
            Err(error) => {
                tracing::warn!(code = error.code().as_str(), "worker not restarted");
                slot.failure = Some(error);
            }
        }
    }

    /// Where the inputs go: one after the other, aligned.
    fn place(&self, inputs: &[NamedTensor]) -> Result<Vec<Place>> {
        let mut offset = 0u64;
        let mut places = Vec::with_capacity(inputs.len());
        for input in inputs {
            let same = |spec: &blindai_core::TensorSpec| spec.name == input.name;
            let index = self.signature.inputs.iter().position(same);
            let bytes = input.tensor.data().len() as u64;
            places.push(Place {
                index: index.unwrap_or(usize::MAX),
                shape: input.tensor.shape().to_vec(),
                offset,
                bytes,
            });
            offset = offset.saturating_add(bytes).next_multiple_of(ALIGNMENT);
        }
        let limit = self.context.options.input_bytes;
        if offset > limit.next_multiple_of(ALIGNMENT) {
            let fact = format!("the inputs take {offset} bytes, the limit is {limit}");
            return Err(Error::new(Code::BodyTooLarge, fact));
        }
        Ok(places)
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
}

/// A request that has the worker. However it ends, even by being dropped, the slot is handed on only
/// with an idle worker that has forgotten the request, or with none.
struct Flight<'a> {
    shared: &'a Arc<Shared>,
    slot: Option<Held>,
}

impl<'a> Flight<'a> {
    fn new(shared: &'a Arc<Shared>, slot: Held) -> Self {
        let slot = Some(slot);
        Self { shared, slot }
    }

    async fn fly(&mut self, run: Run, inputs: Vec<NamedTensor>) -> Result<Vec<NamedTensor>> {
        for attempt in 0.. {
            let worker = self.worker()?;
            write_inputs(worker, &run.inputs, &inputs)?;
            match worker.send(run.clone())? {
                Ok(()) => break,
                // It died between two requests, so this one is not to blame.
                Err(Lost) if attempt == 0 => self.replace().await?,
                Err(Lost) => return Err(self.crashed().await),
            }
        }
        drop(inputs);
        let Ok(ran) = self.worker()?.answer().await else {
            return Err(self.crashed().await);
        };
        let outcome = match ran.result {
            Ok(places) => self.read_outputs(&run.outputs, places),
            Err(failure) => Ok(Err(self.failure(failure))),
        };
        match outcome {
            Ok(result) => {
                self.land();
                result
            }
            Err(Lost) => Err(self.crashed().await),
        }
    }

    fn worker(&mut self) -> Result<&mut Worker> {
        let worker = self.slot.as_mut().and_then(|slot| slot.worker.as_mut());
        worker.ok_or_else(|| Error::new(Code::Internal, "the worker is gone"))
    }

    /// Checks and copies what the worker claims to have put out.
    fn read_outputs(
        &mut self,
        chosen: &[usize],
        places: Vec<Place>,
    ) -> Result<Result<Vec<NamedTensor>>, Lost> {
        let shared = self.shared;
        let limit = shared.context.options.output_bytes;
        let total = places
            .iter()
            .try_fold(0u64, |sum, place| sum.checked_add(place.bytes));
        let as_asked = places
            .iter()
            .map(|place| place.index)
            .eq(chosen.iter().copied());
        let total = total
            .filter(|total| *total <= limit && as_asked)
            .ok_or(Lost)?;
        let worker = self.worker().map_err(|_| Lost)?;
        let read = |place: Place| {
            let spec = &shared.signature.outputs[place.index];
            let data = worker
                .outputs
                .read(place.offset, place.bytes as usize)
                .map_err(|_| Lost)?;
            let tensor = Tensor::new(spec.dtype, place.shape, data.into());
            let tensor = tensor.map_err(|error| {
                let fact = format!("output {:?}: {}", spec.name, error.fact());
                Error::new(Code::ModelFailed, fact)
            });
            Ok(tensor.map(|tensor| NamedTensor::new(spec.name.clone(), tensor)))
        };
        let tensors: Result<Vec<_>, Lost> = busy(total, || places.into_iter().map(read).collect());
        Ok(tensors?.into_iter().collect())
    }

    fn failure(&self, failure: Failure) -> Error {
        let options = &self.shared.context.options;
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
                let outputs = &self.shared.signature.outputs;
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

    /// The worker died between two requests: starts another and waits for it.
    async fn replace(&mut self) -> Result<()> {
        if let Some(slot) = self.slot.take() {
            let _ = tokio::spawn(self.shared.clone().restart(slot)).await;
        }
        self.slot = Some(self.shared.ready().await?);
        Ok(())
    }

    /// The worker died of this request: says so, and starts another for the next.
    async fn crashed(&mut self) -> Error {
        let mut status = None;
        if let Some(mut slot) = self.slot.take() {
            if let Some(worker) = slot.worker.take() {
                status = worker.end().await;
            }
            tokio::spawn(self.shared.clone().restart(slot));
        }
        let ending = ending(status);
        let fact = format!("the worker died of this request ({ending})");
        Error::new(Code::WorkerCrashed, fact)
    }

    /// Hands the worker on after it has forgotten the request.
    fn land(&mut self) {
        let Some(mut slot) = self.slot.take() else {
            return;
        };
        let Some(worker) = &mut slot.worker else {
            return;
        };
        if worker.inputs.used() + worker.outputs.used() <= SHORT_WIPE_BYTES {
            forget(&mut slot);
        } else {
            tokio::spawn(async move { forget(&mut slot) });
        }
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        let Some(mut slot) = self.slot.take() else {
            return;
        };
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(abandon(self.shared.clone(), slot))),
            Err(_) => slot.worker = None,
        }
    }
}

/// Stops a request that nobody waits for: by a word, then by force.
async fn abandon(shared: Arc<Shared>, mut slot: Held) {
    let Some(worker) = &mut slot.worker else {
        return;
    };
    if worker.cancel() {
        let answer = tokio::time::timeout(shared.context.options.grace, worker.answer());
        if !matches!(answer.await, Ok(Ok(_))) {
            return shared.restart(slot).await;
        }
    }
    forget(&mut slot);
}

fn forget(slot: &mut Slot) {
    let Some(worker) = &mut slot.worker else {
        return;
    };
    let used = worker.inputs.used() + worker.outputs.used();
    // What cannot be wiped must not be handed on.
    if busy(used, || worker.wipe()).is_err() {
        slot.worker = None;
    }
}

fn write_inputs(worker: &mut Worker, places: &[Place], inputs: &[NamedTensor]) -> Result<()> {
    let total = inputs.iter().map(|input| input.tensor.data().len() as u64);
    let write = || {
        let mut pairs = places.iter().zip(inputs);
        pairs.try_for_each(|(place, input)| worker.inputs.write(place.offset, input.tensor.data()))
    };
    busy(total.sum(), write).map_err(|error| {
        let fact = format!("the inputs cannot be handed to the worker: {error}");
        Error::new(Code::Internal, fact)
    })
}

/// Does a copy of so many bytes. It is not moved to another thread: a copy that outlives its request
/// would write into the next one.
fn busy<T>(bytes: u64, copy: impl FnOnce() -> T) -> T {
    let handle = Handle::try_current();
    let many = handle.is_ok_and(|h| h.runtime_flavor() == RuntimeFlavor::MultiThread);
    match many && bytes > LONG_COPY_BYTES {
        true => tokio::task::block_in_place(copy),
        false => copy(),
    }
}

fn no_folder(error: std::io::Error) -> Error {
    let fact = format!("no empty folder can be made for the workers: {error}");
    Error::new(Code::Internal, fact).with_remedy("let the server write to /dev/shm or to TMPDIR")
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
