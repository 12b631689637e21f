//! Callers that send, and what tells them when.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Result;
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::Mutex;
use tokio::task::LocalSet;
use tokio::time::Instant;

use super::record::{Recorder, Recording, code};
use super::schedule::{Arrivals, Pacer, Schedule};
use super::target::Target;

/// How much is sent, and when.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Requests in progress at most.
    pub concurrency: usize,
    /// An open loop; `None` for a closed one.
    pub rate: Option<Rate>,
    /// Sent before measuring starts.
    pub warmup: Duration,
    /// Measured; `None` until `requests` were sent.
    pub duration: Option<Duration>,
    /// Measured at most.
    pub requests: Option<u64>,
    /// For one answer.
    pub timeout: Duration,
    pub seed: u64,
}

/// The rate of an open loop.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    pub per_second: f64,
    pub arrivals: Arrivals,
}

/// Puts the load on the target, and waits until every request that was sent has ended.
pub async fn run(plan: &Plan, target: Rc<impl Target + 'static>, pacer: Pacer) -> Recording {
    let (start, busy) = (Instant::now(), cpu_time());
    let source = Source::new(plan, start, pacer);
    let recorder = Recorder::new(source.begin, source.end, slice(plan));
    let source = Rc::new(Mutex::new(source));
    let recorder = Rc::new(RefCell::new(recorder));
    let local = LocalSet::new();
    for _ in 0..plan.concurrency {
        local.spawn_local(call(source.clone(), target.clone(), recorder.clone()));
    }
    local.await;
    let busy = (cpu_time() - busy).as_secs_f64() / start.elapsed().as_secs_f64();
    let source = Rc::into_inner(source).expect("no caller is left");
    let recorder = Rc::into_inner(recorder).expect("no caller is left");
    let end = source.into_inner();
    recorder.into_inner().finish(end.stopped, end.unsent, busy)
}

/// Sends requests, one at a time, for as long as there are any.
async fn call(source: Rc<Mutex<Source>>, target: Rc<impl Target>, recorder: Rc<RefCell<Recorder>>) {
    loop {
        // The lock is the queue of the callers that are free; its holder waits for the next moment.
        let Some(due) = source.lock().await.next().await else {
            return;
        };
        let sent = Instant::now();
        let outcome = target.send().await;
        let done = Instant::now();
        recorder.borrow_mut().note(due, sent, done, &outcome);
        if is_unreachable(&outcome) {
            // A server that is gone is not asked a hundred thousand times a second.
            tokio::time::sleep(BACK_OFF).await;
        }
    }
}

/// When the next request is due, and whether there is one.
struct Source {
    start: Instant,
    begin: Instant,
    end: Option<Instant>,
    left: Option<u64>,
    schedule: Option<Schedule>,
    pacer: Pacer,
    stopped: Option<Instant>,
    unsent: u64,
}

impl Source {
    fn new(plan: &Plan, start: Instant, pacer: Pacer) -> Self {
        let begin = start + plan.warmup;
        let schedule = |rate: Rate| Schedule::new(rate.per_second, rate.arrivals, plan.seed);
        Self {
            start,
            begin,
            end: plan.duration.map(|duration| begin + duration),
            left: plan.requests,
            schedule: plan.rate.map(schedule),
            pacer,
            stopped: None,
            unsent: 0,
        }
    }

    /// Waits until the next request is due and gives that moment, which has passed already when all
    /// callers were busy. `None` when there is no further one.
    async fn next(&mut self) -> Option<Instant> {
        if self.stopped.is_some() || self.left == Some(0) {
            return self.stop(None);
        }
        let due = match &mut self.schedule {
            Some(schedule) => self.start + schedule.next()?,
            None => Instant::now(),
        };
        let wake = self.end.map_or(due, |end| due.min(end));
        if self.schedule.is_some() {
            self.pacer.until(wake).await;
        }
        if self.end.is_some_and(|end| Instant::now() >= end) {
            return self.stop(Some(due));
        }
        if due >= self.begin {
            self.left = self.left.map(|left| left - 1);
        }
        Some(due)
    }

    fn stop(&mut self, due: Option<Instant>) -> Option<Instant> {
        if self.stopped.is_none() {
            self.stopped = Some(self.end.unwrap_or_else(Instant::now).min(Instant::now()));
            self.unsent = due.map_or(0, |due| self.count_unsent(due));
        }
        None
    }

    /// How many requests were due before the end, from this one on.
    fn count_unsent(&mut self, due: Instant) -> u64 {
        let (Some(schedule), Some(end)) = (&mut self.schedule, self.end) else {
            return 0;
        };
        let (start, begin) = (self.start, self.begin);
        let later = schedule.map(|offset| start + offset);
        let missed = std::iter::once(due).chain(later);
        let missed = missed.take_while(|due| *due < end);
        let missed = missed.filter(|due| *due >= begin).count() as u64;
        self.left.map_or(missed, |left| missed.min(left))
    }
}

fn is_unreachable(outcome: &Result<()>) -> bool {
    let error = outcome.as_ref().err();
    error.is_some_and(|error| CONNECTION_CODES.contains(&code(error).as_str()))
}

/// A hundred points in a plot, none shorter than what can be seen.
fn slice(plan: &Plan) -> Duration {
    plan.duration
        .map_or(SLICE, |duration| (duration / 100).max(SHORTEST_SLICE))
}

/// The processor time that this process has used, the generator's own price.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

const CONNECTION_CODES: [&str; 5] = [
    "connect-failed",
    "connect-timeout",
    "connection-lost",
    "tls-failed",
    "too-many-requests",
];
const BACK_OFF: Duration = Duration::from_millis(10);
const SLICE: Duration = Duration::from_millis(250);
const SHORTEST_SLICE: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Answers in `usual`, save that it does nothing at all from `from` to `to`.
    struct Stalling {
        start: Instant,
        usual: Duration,
        from: Duration,
        to: Duration,
        sent: Cell<u64>,
    }

    impl Stalling {
        fn new(usual: u64, from: u64, to: u64) -> Rc<Self> {
            let ms = Duration::from_millis;
            Rc::new(Self {
                start: Instant::now(),
                usual: ms(usual),
                from: ms(from),
                to: ms(to),
                sent: Cell::default(),
            })
        }
    }

    impl Target for Stalling {
        async fn send(&self) -> Result<()> {
            self.sent.set(self.sent.get() + 1);
            let now = self.start.elapsed();
            if now >= self.from && now < self.to {
                tokio::time::sleep_until(self.start + self.to).await;
            }
            tokio::time::sleep(self.usual).await;
            Ok(())
        }
    }

    fn plan(concurrency: usize, per_second: Option<f64>, seconds: u64) -> Plan {
        Plan {
            concurrency,
            rate: per_second.map(|per_second| Rate {
                per_second,
                arrivals: Arrivals::Constant,
            }),
            warmup: Duration::ZERO,
            duration: Some(Duration::from_secs(seconds)),
            requests: None,
            timeout: Duration::from_secs(30),
            seed: 0,
        }
    }

    fn ms(recording: &Recording, quantile: f64) -> u64 {
        (recording.latency.value_at_quantile(quantile) as f64 / 1e6).round() as u64
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_loop_hides_a_stall() {
        // 10 s at 10 ms each, of which 2 s nothing: 800 fast ones and one of two seconds.
        let done = run(
            &plan(1, None, 10),
            Stalling::new(10, 4000, 6000),
            Pacer::virtual_time(),
        )
        .await;
        assert!(
            (795..=805).contains(&done.latency.len()),
            "{}",
            done.latency.len()
        );
        assert_eq!(ms(&done, 0.99), 10);
        assert!((2008..=2012).contains(&ms(&done, 1.0)));
    }

    #[tokio::test(start_paused = true)]
    async fn an_open_loop_shows_a_stall_in_the_percentiles() {
        // A request each 10 ms. Those due in the stall, a fifth of all, wait for its end; with one
        // connection the backlog is then worked off at 5 ms a request.
        let done = run(
            &plan(1, Some(100.0), 10),
            Stalling::new(5, 4000, 6000),
            Pacer::virtual_time(),
        )
        .await;
        assert_eq!(done.latency.len(), 1000);
        assert_eq!(ms(&done, 0.5), 5);
        assert!((2003..=2007).contains(&ms(&done, 1.0)));
        // Latency falls from 2 s to nothing over 4 s: 400 of 1000 requests saw the stall.
        let p90 = ms(&done, 0.9);
        assert!((1450..=1550).contains(&p90), "{p90}");
        assert!((395..=405).contains(&done.late), "{}", done.late);
        assert_eq!(done.unsent, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_sent_in_time_is_counted() {
        // 100 a second are due, one connection at 20 ms takes 50.
        let target = Stalling::new(20, 0, 0);
        let done = run(
            &plan(1, Some(100.0), 10),
            target.clone(),
            Pacer::virtual_time(),
        )
        .await;
        assert_eq!(done.latency.len() + done.unsent, 1000);
        assert_eq!(target.sent.get(), done.latency.len());
        assert!((495..=505).contains(&done.unsent), "{}", done.unsent);
        // Each waited longer than the one before, up to half of the time.
        let longest = ms(&done, 1.0);
        assert!((4900..=5100).contains(&longest), "{longest}");
    }

    #[tokio::test(start_paused = true)]
    async fn more_connections_take_a_higher_rate() {
        let done = run(
            &plan(4, Some(100.0), 10),
            Stalling::new(20, 0, 0),
            Pacer::virtual_time(),
        )
        .await;
        assert_eq!((done.latency.len(), done.unsent, done.late), (1000, 0, 0));
        assert_eq!(ms(&done, 1.0), 20);
    }

    #[tokio::test(start_paused = true)]
    async fn a_warm_up_is_not_measured() {
        let mut plan = plan(1, Some(100.0), 2);
        plan.warmup = Duration::from_secs(1);
        let target = Stalling::new(1, 0, 500);
        let done = run(&plan, target.clone(), Pacer::virtual_time()).await;
        assert_eq!(target.sent.get(), 300);
        assert_eq!(done.latency.len(), 200);
        assert_eq!(ms(&done, 1.0), 1);
        assert_eq!(done.elapsed, Duration::from_secs(2));
        assert!(
            (done.per_second - 100.0).abs() < 1e-9,
            "{}",
            done.per_second
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_number_of_requests_ends_a_run() {
        for rate in [None, Some(10.0)] {
            let mut plan = plan(3, rate, 1);
            plan.duration = None;
            plan.requests = Some(100);
            let target = Stalling::new(5, 0, 0);
            let done = run(&plan, target.clone(), Pacer::virtual_time()).await;
            assert_eq!((target.sent.get(), done.latency.len()), (100, 100));
            assert_eq!(done.unsent, 0);
            let expected = 100.0 / done.elapsed.as_secs_f64();
            assert!((done.per_second - expected).abs() < 1e-9, "{rate:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_is_gone_is_asked_now_and_then() {
        struct Gone;
        impl Target for Gone {
            async fn send(&self) -> Result<()> {
                Err(super::super::peer::PeerError::connection("connect-failed", "gone").into())
            }
        }
        let done = run(&plan(2, None, 1), Rc::new(Gone), Pacer::virtual_time()).await;
        assert_eq!(done.latency.len(), 0);
        let failed = done.errors["connect-failed"];
        assert!((190..=210).contains(&failed), "{failed}");
    }
}
