//! What became of the requests.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Error, Result};
use blindai_client::ClientError;
use hdrhistogram::Histogram;
use tokio::time::Instant;

use super::peer::PeerError;

/// Takes note of each request as it ends.
pub struct Recorder {
    begin: Instant,
    /// When sending is to end, if that is known.
    end: Option<Instant>,
    slice: Duration,
    /// Of the slice that is not over, with its number.
    current: (u64, Histogram<u64>, u64),
    last: Instant,
    /// Requests that succeeded, each with the share of its time that lies between `begin` and `end`.
    served: f64,
    recording: Recording,
}

/// All that was measured.
pub struct Recording {
    /// In nanoseconds, of the requests that succeeded, from when each was due.
    pub latency: Histogram<u64>,
    /// In nanoseconds, how long after it was due each request was sent.
    pub delay: Histogram<u64>,
    /// How many were sent more than [`LATE`] after they were due.
    pub late: u64,
    /// How many were due and not sent at all.
    pub unsent: u64,
    /// How many failed, by code.
    pub errors: BTreeMap<String, u64>,
    pub slices: Vec<Slice>,
    pub slice: Duration,
    /// From the end of the warm-up to the last answer, or to the end of sending if that was later.
    pub elapsed: Duration,
    /// Requests that succeeded while it was measured. Of those that were in progress at its beginning and
    /// at its end the part that lies within counts: with none of the first and all of the second, it
    /// would be too little by half of what is in progress at a time.
    pub per_second: f64,
    /// The generator's processor time, as a share of one core.
    pub generator_cpu: f64,
}

/// What ended within one short time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Slice {
    pub requests: u64,
    pub errors: u64,
    /// In nanoseconds, as the next.
    pub p50: u64,
    pub p99: u64,
    pub max: u64,
}

impl Recorder {
    /// Measures from `begin`, to `end` if that is known, with a line for each `slice` of time.
    pub fn new(begin: Instant, end: Option<Instant>, slice: Duration) -> Self {
        Self {
            begin,
            end,
            slice,
            current: (0, histogram(), 0),
            last: begin,
            served: 0.0,
            recording: Recording {
                latency: histogram(),
                delay: histogram(),
                late: 0,
                unsent: 0,
                errors: BTreeMap::new(),
                slices: Vec::new(),
                slice,
                elapsed: Duration::ZERO,
                per_second: 0.0,
                generator_cpu: 0.0,
            },
        }
    }

    /// Counts a request, unless it was due in the warm-up. They must come in the order of `done`.
    pub fn note(&mut self, due: Instant, sent: Instant, done: Instant, outcome: &Result<()>) {
        if outcome.is_ok() {
            self.served += self.share(sent, done);
        }
        if due < self.begin {
            return;
        }
        self.roll_to(done);
        let delay = sent.saturating_duration_since(due);
        self.recording.delay.saturating_record(nanoseconds(delay));
        self.recording.late += u64::from(delay > LATE);
        match outcome {
            Ok(()) => {
                let latency = nanoseconds(done.saturating_duration_since(due));
                self.recording.latency.saturating_record(latency);
                self.current.1.saturating_record(latency);
            }
            Err(error) => {
                *self.recording.errors.entry(code(error)).or_default() += 1;
                self.current.2 += 1;
            }
        }
        self.last = done;
    }

    /// Ends the recording: sending stopped at `stopped`.
    pub fn finish(
        mut self,
        stopped: Option<Instant>,
        unsent: u64,
        generator_cpu: f64,
    ) -> Recording {
        let end = stopped.map_or(self.last, |stopped| stopped.max(self.last));
        self.close_slice();
        self.recording.elapsed = end.saturating_duration_since(self.begin);
        let measured = match self.end {
            Some(planned) if stopped >= self.end => planned - self.begin,
            _ => self.recording.elapsed,
        };
        if !measured.is_zero() {
            self.recording.per_second = self.served / measured.as_secs_f64();
        }
        self.recording.unsent = unsent;
        self.recording.generator_cpu = generator_cpu;
        self.recording
    }

    fn share(&self, sent: Instant, done: Instant) -> f64 {
        let whole = done.saturating_duration_since(sent);
        if whole.is_zero() {
            return f64::from(u8::from(sent >= self.begin));
        }
        let until = self.end.map_or(done, |end| done.min(end));
        let within = until.saturating_duration_since(sent.max(self.begin));
        within.as_secs_f64() / whole.as_secs_f64()
    }

    fn roll_to(&mut self, done: Instant) {
        let since = done.saturating_duration_since(self.begin);
        let number = (since.as_nanos() / self.slice.as_nanos()) as u64;
        while self.current.0 < number {
            self.close_slice();
        }
    }

    fn close_slice(&mut self) {
        let (number, latency, errors) = &mut self.current;
        let mut slice = Slice {
            errors: std::mem::take(errors),
            ..Slice::default()
        };
        // Most slices of a long stall are empty, and looking through a histogram takes a while.
        if !latency.is_empty() {
            slice.requests = latency.len();
            slice.p50 = latency.value_at_quantile(0.5);
            slice.p99 = latency.value_at_quantile(0.99);
            slice.max = latency.max();
            latency.reset();
        }
        self.recording.slices.push(slice);
        *number += 1;
    }
}

/// The stable code of a failed request.
pub fn code(error: &Error) -> String {
    let ours = error
        .downcast_ref::<ClientError>()
        .map(|e| e.code().to_owned());
    let peers = || {
        error
            .downcast_ref::<PeerError>()
            .map(|e| e.code().to_owned())
    };
    ours.or_else(peers).unwrap_or_else(|| "failed".to_owned())
}

/// From a microsecond to an hour, to three digits.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1_000, 3_600_000_000_000, 3).expect("bounds that fit each other")
}

fn nanoseconds(time: Duration) -> u64 {
    time.as_nanos().try_into().unwrap_or(u64::MAX)
}

/// What nobody would call in time.
pub const LATE: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn slices_hold_what_ended_in_them() {
        let begin = Instant::now();
        let ms = |n| begin + Duration::from_millis(n);
        let mut recorder = Recorder::new(begin, None, Duration::from_millis(100));
        let failed = || Err(PeerError::connection("connect-failed", "x").into());
        recorder.note(ms(0), ms(0), ms(10), &Ok(()));
        recorder.note(ms(0), ms(2), ms(50), &Ok(()));
        recorder.note(ms(60), ms(60), ms(350), &failed());
        let done = recorder.finish(Some(ms(400)), 3, 0.5);
        let counts: Vec<_> = done.slices.iter().map(|s| (s.requests, s.errors)).collect();
        assert_eq!(counts, [(2, 0), (0, 0), (0, 0), (0, 1)]);
        assert_eq!(done.slices[0].max / 1_000_000, 50);
        assert_eq!((done.late, done.unsent), (1, 3));
        assert_eq!(done.errors["connect-failed"], 1);
        assert_eq!(done.elapsed, Duration::from_millis(400));
        assert_eq!(done.latency.len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn throughput_is_that_of_a_server_that_answers_many_at_once() {
        // Sixteen every 130 ms, of which the first are under way when measuring begins.
        let start = Instant::now();
        for warmup in [0, 20, 65, 129] {
            let begin = start + Duration::from_millis(warmup);
            let end = begin + Duration::from_secs(2);
            let mut recorder = Recorder::new(begin, Some(end), Duration::from_millis(100));
            let mut sent = start;
            while sent < end {
                let done = sent + Duration::from_millis(130);
                for _ in 0..16 {
                    recorder.note(sent, sent, done, &Ok(()));
                }
                sent = done;
            }
            let measured = recorder.finish(Some(end), 0, 0.0);
            let expected = 16.0 / 0.130;
            assert!(
                (measured.per_second - expected).abs() < 0.01,
                "{warmup}: {}",
                measured.per_second
            );
        }
    }

    #[test]
    fn a_histogram_keeps_three_digits_from_a_microsecond_to_an_hour() {
        for nanos in [1_500, 123_456, 98_765_432, 3_000_000_000_000] {
            let mut histogram = histogram();
            histogram.saturating_record(nanos);
            let kept = histogram.value_at_quantile(0.5) as f64;
            let tolerance = (nanos as f64 * 1e-3).max(512.0);
            assert!((kept - nanos as f64).abs() <= tolerance, "{nanos}: {kept}");
        }
        histogram().saturating_record(u64::MAX);
    }
}
