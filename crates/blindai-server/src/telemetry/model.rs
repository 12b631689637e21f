use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use blindai_core::{Code, Result};

use super::histogram::{Durations, Histogram, durations};
use super::request;

/// Gives each model the lowest number that no other has. The host sees the number, never the name.
#[derive(Default)]
pub struct Slots(Mutex<Vec<Weak<ModelMetrics>>>);

impl Slots {
    /// A number for a model, free again when the last request of the model has ended.
    pub fn take(&self) -> Arc<ModelMetrics> {
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let free = slots.iter().position(|slot| slot.strong_count() == 0);
        let slot = free.unwrap_or(slots.len());
        let metrics = Arc::new(ModelMetrics::new(slot as u32));
        match slots.get_mut(slot) {
            Some(free) => *free = Arc::downgrade(&metrics),
            None => slots.push(Arc::downgrade(&metrics)),
        }
        metrics
    }
}

/// What is counted of one model.
pub struct ModelMetrics {
    slot: u32,
    pub receive: Durations,
    pub queue: Durations,
    pub compute: Durations,
    pub send: Durations,
    pub total: Durations,
    pub batches: Histogram<8>,
    in_progress: AtomicU64,
    last: Mutex<Option<Instant>>,
    workers: Restarts,
}

/// What the engine says of a run that gave an answer.
#[derive(Clone, Copy, Debug)]
pub struct Stages {
    /// From the request's arrival at the model until a worker took it.
    pub queued: Duration,
    /// In the worker, the way of the tensors there and back included.
    pub computed: Duration,
    /// Requests that the worker computed together.
    pub batch: usize,
}

impl ModelMetrics {
    fn new(slot: u32) -> Self {
        Self {
            slot,
            receive: durations(),
            queue: durations(),
            compute: durations(),
            send: durations(),
            total: durations(),
            batches: Histogram::new(&BATCHES),
            in_progress: AtomicU64::new(0),
            last: Mutex::new(None),
            workers: Restarts::default(),
        }
    }

    /// The model's number.
    pub fn slot(&self) -> u32 {
        self.slot
    }

    /// The inputs of a request are read, and it goes to the engine.
    pub fn begin(self: &Arc<Self>) -> Inference<'_> {
        self.in_progress.fetch_add(1, Ordering::Relaxed);
        let begun = Instant::now();
        request::decoded(self, begun);
        Inference {
            metrics: self,
            begun,
        }
    }

    /// Requests that wait, and those that are computed. A worker takes one at a time.
    pub fn queue_and_running(&self) -> (u64, u64) {
        let all = self.in_progress.load(Ordering::Relaxed);
        (all.saturating_sub(1), all.min(1))
    }

    /// Restarts of the worker by cause. `pid` is the worker that was started last.
    pub fn restarts(&self, pid: u32) -> [(&'static str, u64); 2] {
        self.workers.look(pid);
        [
            ("crash", self.workers.crashes.load(Ordering::Relaxed)),
            ("other", self.workers.others.load(Ordering::Relaxed)),
        ]
    }
}

/// A request in the engine, until it is dropped.
pub struct Inference<'a> {
    metrics: &'a Arc<ModelMetrics>,
    begun: Instant,
}

impl Inference<'_> {
    /// The engine is done with the request.
    pub fn end<T>(&self, outcome: &Result<T>, pid: u32) {
        let metrics = self.metrics;
        metrics.workers.look(pid);
        match outcome {
            Ok(_) => request::computed(self.stages()),
            Err(error) if error.code() == Code::WorkerCrashed => metrics.workers.crashed(),
            Err(_) => {}
        }
    }

    // The worker serves one request after the other, in the order of their arrival: it took this one
    // when the one before had ended.
    fn stages(&self) -> Stages {
        let now = Instant::now();
        let mut last = self
            .metrics
            .last
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let taken = last.map_or(self.begun, |last| last.max(self.begun));
        *last = Some(now);
        Stages {
            queued: taken.saturating_duration_since(self.begun),
            computed: now.saturating_duration_since(taken),
            batch: 1,
        }
    }
}

impl Drop for Inference<'_> {
    fn drop(&mut self) {
        self.metrics.in_progress.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Tells restarts from the process ids of the worker.
#[derive(Default)]
struct Restarts {
    pid: AtomicU32,
    /// Crashes whose new worker has not been seen.
    pending: AtomicU64,
    crashes: AtomicU64,
    others: AtomicU64,
}

impl Restarts {
    fn crashed(&self) {
        self.crashes.fetch_add(1, Ordering::Relaxed);
        self.pending.fetch_add(1, Ordering::Relaxed);
    }

    fn look(&self, pid: u32) {
        let known = self.pid.swap(pid, Ordering::Relaxed);
        if known == 0 || known == pid {
            return;
        }
        let took = |pending: u64| pending.checked_sub(1);
        let crash = self
            .pending
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, took);
        if crash.is_err() {
            self.others.fetch_add(1, Ordering::Relaxed);
        }
    }
}

const BATCHES: [u64; 8] = [1, 2, 4, 8, 16, 32, 64, 128];

#[cfg(test)]
mod tests {
    use blindai_core::Error;

    use super::*;

    #[test]
    fn numbers_are_reused() {
        let slots = Slots::default();
        let (first, second) = (slots.take(), slots.take());
        assert_eq!((first.slot(), second.slot()), (0, 1));
        drop(first);
        assert_eq!(slots.take().slot(), 0);
        assert_eq!(slots.take().slot(), 0, "the one before was dropped at once");
        assert_eq!(second.slot(), 1);
    }

    #[test]
    fn a_restart_has_one_cause() {
        let metrics = Slots::default().take();
        assert_eq!(metrics.restarts(7), [("crash", 0), ("other", 0)]);
        let crash: Result<()> = Err(Error::new(Code::WorkerCrashed, ""));
        metrics.begin().end(&crash, 7);
        assert_eq!(metrics.restarts(8), [("crash", 1), ("other", 0)]);
        assert_eq!(metrics.restarts(9), [("crash", 1), ("other", 1)]);
        assert_eq!(metrics.restarts(9), [("crash", 1), ("other", 1)]);
    }

    #[test]
    fn a_request_waits_for_the_one_before_it() {
        let metrics = Slots::default().take();
        let (first, second) = (metrics.begin(), metrics.begin());
        assert_eq!(metrics.queue_and_running(), (1, 1));
        std::thread::sleep(Duration::from_millis(2));
        let (one, two) = (first.stages(), second.stages());
        assert_eq!(one.queued, Duration::ZERO);
        assert!(one.computed >= Duration::from_millis(2));
        assert!(two.queued >= Duration::from_millis(2));
        drop((first, second));
        assert_eq!(metrics.queue_and_running(), (0, 0));
    }
}
