//! One worker of a model, and the requests it computes.
//!
//! A lane takes requests from the model's queue, alone or several together, and sees each of them to
//! an answer. However a request ends, the next one finds an idle worker that has forgotten it.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use blindai_core::{Code, DType, Dim, Error, NamedTensor, Result, Signature, Tensor, TensorSpec};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::engine::{Answer, Context, Shared, Stages, busy};
use crate::parent::{Ended, Trouble, Worker};
use crate::protocol::{ALIGNMENT, Place, Run};
use crate::{Batching, Caller, EngineOptions, ModelFile, batch};

/// A request on its way through the engine.
pub(crate) struct Job {
    /// In the order of the signature, which they fit.
    pub inputs: Vec<NamedTensor>,
    /// Indices into the signature's outputs.
    pub outputs: Vec<usize>,
    pub caller: Caller,
    /// How many rows it has, when it may be computed together with others.
    pub rows: Option<usize>,
    pub arrived: Instant,
    pub reply: oneshot::Sender<Result<Answer>>,
}

impl Job {
    pub(crate) fn input_bytes(&self) -> u64 {
        let bytes = self
            .inputs
            .iter()
            .map(|input| input.tensor.data().len() as u64 + ALIGNMENT);
        bytes.sum()
    }

    pub(crate) fn tell(self, result: Result<Answer>) {
        // Whoever has gone needs no answer.
        let _ = self.reply.send(result);
    }
}

pub(crate) struct Lane {
    shared: Arc<Shared>,
    number: usize,
    worker: Option<Worker>,
    /// Why there is no worker, and since when; told once and soon, then the next request tries again.
    failure: Option<(Instant, Error)>,
    soon: Soon,
}

/// Who is about to be there: whoever was just answered asks again, if he asks one thing after the other,
/// and whoever waited meanwhile.
#[derive(Default)]
struct Soon {
    caller: Caller,
    requests: usize,
    /// How long it took to answer.
    took: Duration,
}

impl Lane {
    /// Starts the first worker of a model that is new here, and has it compute once, so that no
    /// caller pays for what only the first run does.
    ///
    /// # Errors
    /// As for [`Worker::start`].
    pub(crate) async fn first(
        context: &Context,
        options: &EngineOptions,
        file: &ModelFile,
    ) -> Result<(Worker, Signature)> {
        let (mut worker, signature) = context.start(options, file).await?;
        if options.warm_up && !warm_up(&mut worker, &signature).await {
            // Two of them at once are more than the model may have.
            drop(worker);
            return context.start(options, file).await;
        }
        Ok((worker, signature))
    }

    pub(crate) fn new(shared: Arc<Shared>, number: usize, worker: Worker) -> Self {
        shared.pids[number].store(worker.pid(), Ordering::Relaxed);
        Self {
            shared,
            number,
            worker: Some(worker),
            failure: None,
            soon: Soon::default(),
        }
    }

    /// Serves until it is dropped, and its worker with it.
    pub(crate) async fn serve(mut self) {
        loop {
            let first = self.shared.queue.next().await;
            let jobs = self.gather(first).await;
            let (running, caller, started) = (jobs.len(), jobs[0].caller, Instant::now());
            self.shared.running.fetch_add(running, Ordering::Relaxed);
            self.answer(jobs).await;
            self.shared.running.fetch_sub(running, Ordering::Relaxed);
            if self.shared.options.batching.is_some() {
                self.soon = Soon {
                    caller,
                    requests: running + self.shared.queue.len(),
                    took: started.elapsed(),
                };
            }
            self.prepare().await;
            self.shared.queue.finished();
        }
    }

    /// Adds what fits to a request, as long as it may wait, and as long as those come who are about to be
    /// there: otherwise the first to ask again would be computed alone.
    async fn gather(&self, first: Job) -> Vec<Job> {
        let queue = &self.shared.queue;
        let (Some(policy), Some(rows)) = (&self.shared.options.batching, first.rows) else {
            return vec![first];
        };
        let allowed = first.arrived + policy.max_delay;
        let last = Instant::now() + (self.soon.took / 8).min(LONGEST_GATHERING);
        let mut they_come = policy.across_callers || first.caller == self.soon.caller;
        let mut group = Group::new(first, rows);
        loop {
            let arrival = queue.arrival();
            while let Some(job) =
                queue.take_if(|caller, job| self.fits(policy, &group, caller, job))
            {
                group.add(job);
            }
            // Whoever is in the queue now does not fit, and is not to wait for those who may come.
            they_come &= group.jobs.len() < self.soon.requests && queue.len() == 0;
            let until = match they_come {
                true => allowed.max(last.min(Instant::now() + self.soon.took / 64)),
                false => allowed,
            };
            if group.rows >= policy.max_rows || Instant::now() >= until {
                return group.jobs;
            }
            they_come &= tokio::time::timeout_at(until, arrival).await.is_ok();
        }
    }

    fn fits(&self, policy: &Batching, group: &Group, caller: Caller, job: &Job) -> bool {
        let first = &group.jobs[0];
        let rows = job
            .rows
            .is_some_and(|rows| group.rows.saturating_add(rows) <= policy.max_rows);
        let bytes = group.bytes.saturating_add(job.input_bytes());
        rows && (policy.across_callers || caller == first.caller)
            && bytes <= self.shared.options.input_bytes
            && job.outputs == first.outputs
            && batch::fit_together(&first.inputs, &job.inputs)
    }

    /// Sees every request to its answer.
    async fn answer(&mut self, mut jobs: Vec<Job>) {
        let mut again = true;
        loop {
            jobs.retain(|job| !job.reply.is_closed());
            if jobs.is_empty() {
                return;
            }
            match self.fly(&mut jobs).await {
                Ok(answers) => {
                    return answers
                        .into_iter()
                        .zip(jobs)
                        .for_each(|(answer, job)| job.tell(Ok(answer)));
                }
                Err(Trouble::Abandoned) => return,
                Err(trouble) => {
                    let (error, blameless) = self.told(trouble, again).await;
                    // Nobody is to suffer from whom he happened to be with.
                    if jobs.len() > 1 {
                        return self.answer_each(jobs).await;
                    }
                    if !blameless {
                        return jobs
                            .into_iter()
                            .for_each(|job| job.tell(Err(error.clone())));
                    }
                    again = false;
                }
            }
        }
    }

    async fn answer_each(&mut self, jobs: Vec<Job>) {
        for job in jobs {
            self.prepare().await;
            Box::pin(self.answer(vec![job])).await;
        }
    }

    /// What to tell the callers, and whether the request had no part in it: then it may be tried
    /// again, once, since an input that kills workers must not go round for ever. What ends two of them is
    /// to blame, even where each ended as if it was killed from outside.
    async fn told(&mut self, trouble: Trouble, again: bool) -> (Error, bool) {
        let idle = matches!(trouble, Trouble::Gone);
        if let Trouble::Refused(error) = trouble {
            return (error, false);
        }
        let ended = match self.worker.take() {
            Some(worker) => worker.end().await,
            None => Ended::default(),
        };
        let blameless = again && (idle || ended.was_killed());
        if !blameless {
            self.shared.crashes.fetch_add(1, Ordering::Relaxed);
        }
        let fact = format!("the worker died of this request ({ended})");
        (Error::new(Code::WorkerCrashed, fact), blameless)
    }

    /// Has the worker forget the last requests; replaces it when it is gone.
    async fn prepare(&mut self) {
        if let Some(worker) = &mut self.worker {
            // The answer goes out first.
            if worker.used() > SHORT_WIPE_BYTES {
                tokio::task::yield_now().await;
            }
            // What cannot be wiped must not be handed on.
            if busy(worker.used(), || worker.wipe()).is_err() {
                self.worker = None;
            }
        }
        if self.worker.is_none() && self.failure.is_none() {
            let failure = self.start().await.err();
            self.failure = failure.map(|failure| (Instant::now(), failure));
        }
    }

    async fn start(&mut self) -> Result<()> {
        let shared = &self.shared;
        let started = shared.context.start(&shared.options, &shared.file).await;
        let same = started.and_then(|(worker, signature)| {
            let other = || Error::new(Code::Internal, "the restarted model has another signature");
            (signature == shared.signature)
                .then_some(worker)
                .ok_or_else(other)
        });
        let worker = same.inspect_err(|error| {
            tracing::warn!(code = error.code().as_str(), "worker not restarted");
        })?;
        shared.pids[self.number].store(worker.pid(), Ordering::Relaxed);
        shared.restarts.fetch_add(1, Ordering::Relaxed);
        self.worker = Some(worker);
        Ok(())
    }

    async fn fly(&mut self, jobs: &mut [Job]) -> Result<Vec<Answer>, Trouble> {
        let mut run = Run {
            id: 0,
            inputs: place(&self.shared.signature, jobs),
            outputs: jobs[0].outputs.clone(),
        };
        let started = Instant::now();
        let shared = self.shared.clone();
        let worker = self.ready().await?;
        write_inputs(worker, &run.inputs, jobs)?;
        worker.send(&mut run)?;
        let ran = tokio::select! {
            biased;
            ran = worker.answer() => ran?,
            () = abandoned(jobs) => return Err(self.abandon().await),
        };
        let computed = started.elapsed();
        let places = ran.result.map_err(|failure| shared.failure(failure))?;
        let outputs = read_outputs(&shared, worker, &run.outputs, &places, jobs)?;
        let batch = jobs.len();
        let answer = |(outputs, job): (_, &Job)| {
            let queued = started.saturating_duration_since(job.arrived);
            let stages = Stages {
                queued,
                computed,
                batch,
            };
            Answer { outputs, stages }
        };
        Ok(outputs.into_iter().zip(&*jobs).map(answer).collect())
    }

    async fn ready(&mut self) -> Result<&mut Worker> {
        if self.worker.is_none() {
            let failure = self.failure.take();
            match failure.filter(|(since, _)| since.elapsed() < FRESH_FAILURE) {
                Some((_, failure)) => return Err(failure),
                None => self.start().await?,
            }
        }
        self.worker
            .as_mut()
            .ok_or_else(|| Error::new(Code::Internal, "the worker is gone"))
    }

    /// Stops requests that nobody waits for: by a word, then by force.
    async fn abandon(&mut self) -> Trouble {
        if let Some(worker) = &mut self.worker {
            worker.cancel();
            let grace = self.shared.options.grace;
            let heeded = tokio::time::timeout(grace, worker.answer()).await;
            if !matches!(heeded, Ok(Ok(_))) {
                self.worker = None;
            }
        }
        Trouble::Abandoned
    }
}

/// Requests that go to the worker together.
struct Group {
    jobs: Vec<Job>,
    rows: usize,
    bytes: u64,
}

impl Group {
    fn new(first: Job, rows: usize) -> Self {
        let bytes = first.input_bytes();
        Self {
            jobs: vec![first],
            rows,
            bytes,
        }
    }

    fn add(&mut self, job: Job) {
        self.rows += job.rows.unwrap_or(0);
        self.bytes += job.input_bytes();
        self.jobs.push(job);
    }
}

/// Ends when nobody waits for any of the answers.
async fn abandoned(jobs: &mut [Job]) {
    poll_fn(|context| {
        // Each is polled, so that each can wake this task.
        let mut waiting = false;
        for job in &mut *jobs {
            waiting |= job.reply.poll_closed(context).is_pending();
        }
        match waiting {
            true => Poll::Pending,
            false => Poll::Ready(()),
        }
    })
    .await;
}

/// Where the inputs go: one tensor after the other, aligned, each with the rows of all requests.
fn place(signature: &Signature, jobs: &[Job]) -> Vec<Place> {
    let mut offset = 0u64;
    let mut places = Vec::with_capacity(jobs[0].inputs.len());
    for (number, input) in jobs[0].inputs.iter().enumerate() {
        let bytes = jobs
            .iter()
            .map(|job| job.inputs[number].tensor.data().len() as u64)
            .sum();
        let mut shape = input.tensor.shape().to_vec();
        if jobs.len() > 1 {
            shape[0] = jobs.iter().filter_map(|job| job.rows).sum();
        }
        places.push(Place {
            index: index_of(signature, &input.name),
            shape,
            offset,
            bytes,
        });
        offset = offset.saturating_add(bytes).next_multiple_of(ALIGNMENT);
    }
    places
}

pub(crate) fn index_of(signature: &Signature, name: &str) -> usize {
    let position = signature.inputs.iter().position(|spec| spec.name == name);
    position.unwrap_or(usize::MAX)
}

fn write_inputs(worker: &mut Worker, places: &[Place], jobs: &[Job]) -> Result<()> {
    let write = || -> std::io::Result<()> {
        for (number, place) in places.iter().enumerate() {
            let mut offset = place.offset;
            for job in jobs {
                let data = job.inputs[number].tensor.data();
                worker.inputs.write(offset, data)?;
                offset += data.len() as u64;
            }
        }
        Ok(())
    };
    busy(places.iter().map(|place| place.bytes).sum(), write).map_err(|error| {
        let fact = format!("the inputs cannot be handed to the worker: {error}");
        Error::new(Code::Internal, fact)
    })
}

/// Checks and copies what the worker claims to have put out, to each request its own rows.
fn read_outputs(
    shared: &Shared,
    worker: &mut Worker,
    chosen: &[usize],
    places: &[Place],
    jobs: &[Job],
) -> Result<Vec<Vec<NamedTensor>>, Trouble> {
    let limit = shared.options.output_bytes;
    let total = places
        .iter()
        .try_fold(0u64, |sum, place| sum.checked_add(place.bytes));
    let as_asked = places
        .iter()
        .map(|place| place.index)
        .eq(chosen.iter().copied());
    let total = total.filter(|total| *total <= limit && as_asked);
    let total = total.ok_or_else(|| worker.distrust())?;
    let outputs = busy(total, || match jobs {
        [_] => {
            let whole =
                |place: &Place| read(shared, worker, place, place.shape.clone(), 0, place.bytes);
            Ok(vec![places.iter().map(whole).collect::<Result<_, _>>()?])
        }
        jobs => read_rows(shared, worker, places, jobs),
    });
    if outputs.is_ok() {
        worker.outputs.was_read();
    }
    outputs
}

fn read_rows(
    shared: &Shared,
    worker: &mut Worker,
    places: &[Place],
    jobs: &[Job],
) -> Result<Vec<Vec<NamedTensor>>, Trouble> {
    let rows = |job: &Job| job.rows.unwrap_or(0);
    let all: usize = jobs.iter().map(rows).sum();
    let mut first = 0;
    let mut outputs = Vec::with_capacity(jobs.len());
    for job in jobs {
        let mut tensors = Vec::with_capacity(places.len());
        for place in places {
            let mut shape = place.shape.clone();
            let bytes = place.bytes / all as u64;
            if shape.first() != Some(&all) || bytes * all as u64 != place.bytes {
                let fact = "the outputs have other rows than the inputs";
                return Err(Error::new(Code::ModelFailed, fact).into());
            }
            shape[0] = rows(job);
            tensors.push(read(
                shared,
                worker,
                place,
                shape,
                bytes * first,
                bytes * rows(job) as u64,
            )?);
        }
        outputs.push(tensors);
        first += rows(job) as u64;
    }
    Ok(outputs)
}

/// A part of an output, of this shape.
fn read(
    shared: &Shared,
    worker: &mut Worker,
    place: &Place,
    shape: Vec<usize>,
    skip: u64,
    bytes: u64,
) -> Result<NamedTensor, Trouble> {
    let spec = &shared.signature.outputs[place.index];
    let offset = place.offset.saturating_add(skip);
    let data = worker
        .outputs
        .read(offset, bytes as usize)
        .map_err(|_| worker.distrust())?;
    let tensor = Tensor::new(spec.dtype, shape, data.into()).map_err(|error| {
        let fact = format!("output {:?}: {}", spec.name, error.fact());
        Error::new(Code::ModelFailed, fact)
    })?;
    Ok(NamedTensor::new(spec.name.clone(), tensor))
}

/// Whether the worker is fit to go on after it computed something made up, in the smallest shapes.
async fn warm_up(worker: &mut Worker, signature: &Signature) -> bool {
    let Some(inputs) = made_up(signature) else {
        return true;
    };
    let (reply, _answer) = oneshot::channel();
    let job = Job {
        inputs,
        outputs: (0..signature.outputs.len()).collect(),
        caller: Caller::default(),
        rows: None,
        arrived: Instant::now(),
        reply,
    };
    let jobs = [job];
    let mut run = Run {
        id: 0,
        inputs: place(signature, &jobs),
        outputs: jobs[0].outputs.clone(),
    };
    if write_inputs(worker, &run.inputs, &jobs).is_err() || worker.send(&mut run).is_err() {
        return false;
    }
    // That the model fails on such inputs is its right.
    let computed = tokio::time::timeout(WARM_UP, worker.answer()).await;
    matches!(computed, Ok(Ok(_))) && worker.wipe().is_ok()
}

/// All that a run needs, unless it is too much: a small file can declare more than there is memory.
fn made_up(signature: &Signature) -> Option<Vec<NamedTensor>> {
    let mut left = WARM_UP_BYTES;
    let needed = signature.inputs.iter().filter(|spec| !spec.optional);
    needed.map(|spec| made_up_input(spec, &mut left)).collect()
}

/// Zeros for what is measured and ones for what is counted: no model should divide by it.
fn made_up_input(spec: &TensorSpec, left: &mut u64) -> Option<NamedTensor> {
    let dims = spec.shape.as_ref()?.iter();
    let shape: Vec<usize> = dims
        .map(|dim| match dim {
            Dim::Fixed(size) => *size,
            Dim::Symbolic(_) => 1,
        })
        .collect();
    let size = spec.dtype.size()?;
    let elements = shape
        .iter()
        .try_fold(1usize, |product, size| product.checked_mul(*size))?;
    let bytes = elements.checked_mul(size)?;
    *left = left.checked_sub(bytes as u64)?;
    let mut data = vec![0; bytes];
    let is_counted = !matches!(
        spec.dtype,
        DType::F16 | DType::BF16 | DType::F32 | DType::F64 | DType::Bool
    );
    if is_counted {
        data.chunks_exact_mut(size)
            .for_each(|element| element[0] = 1);
    }
    Tensor::new(spec.dtype, shape, data.into())
        .ok()
        .map(|tensor| NamedTensor::new(&*spec.name, tensor))
}

/// As an eighth of what the last answer took: how long others are waited for in all. When nobody comes for
/// a sixty-fourth, it is over.
const LONGEST_GATHERING: Duration = Duration::from_millis(20);
/// Up to here why there is no worker is told to the next request, of which it says nothing later.
const FRESH_FAILURE: Duration = Duration::from_secs(1);
/// Up to here wiping is done before the answer goes out; it costs less than handing it over.
const SHORT_WIPE_BYTES: u64 = 64 * 1024;
/// What a model may be warmed up with, and how long.
const WARM_UP_BYTES: u64 = 16 << 20;
const WARM_UP: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_up_is_bounded_however_many_inputs_it_goes_to() {
        let input = |number: u64| TensorSpec {
            name: number.to_string(),
            dtype: DType::F32,
            shape: Some(vec![Dim::Fixed(4 << 10)]),
            optional: false,
        };
        let fit = WARM_UP_BYTES / (16 << 10);
        for (inputs, expected) in [(fit, Some(fit)), (fit + 1, None), (2 * fit, None)] {
            let signature = Signature {
                inputs: (0..inputs).map(input).collect(),
                outputs: Vec::new(),
            };
            let made_up = made_up(&signature).map(|made_up| made_up.len() as u64);
            assert_eq!(made_up, expected);
        }
    }
}
