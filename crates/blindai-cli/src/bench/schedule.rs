//! When requests are meant to be sent, and waiting until then.

use std::io;
use std::time::Duration;

use clap::ValueEnum;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use serde::Serialize;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

/// How requests are spaced in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Arrivals {
    /// At equal distances.
    Constant,
    /// At random, each independent of the others: as from many users who do not know each other.
    Poisson,
}

/// The times, since the start, at which requests are meant to be sent: without end.
pub struct Schedule {
    per_second: f64,
    arrivals: Arrivals,
    random: fastrand::Rng,
    count: u64,
    /// In seconds.
    last: f64,
}

impl Schedule {
    /// `per_second` must be positive.
    pub fn new(per_second: f64, arrivals: Arrivals, seed: u64) -> Self {
        Self {
            per_second,
            arrivals,
            random: fastrand::Rng::with_seed(seed),
            count: 0,
            last: 0.0,
        }
    }
}

impl Iterator for Schedule {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        match self.arrivals {
            // Multiplied, not added up: sums of rounded gaps drift.
            Arrivals::Constant => self.last = self.count as f64 / self.per_second,
            Arrivals::Poisson => self.last -= (1.0 - self.random.f64()).ln() / self.per_second,
        }
        self.count += 1;
        Some(Duration::from_secs_f64(self.last))
    }
}

/// Waits for a moment more exactly than the runtime's timers, which count milliseconds: thousands of
/// requests a second would go out in bursts.
pub struct Pacer(Option<AsyncFd<std::os::fd::OwnedFd>>);

impl Pacer {
    /// # Errors
    /// When the system gives no timer, or there is no runtime.
    pub fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        // What is unsound is to close or replace the descriptor meanwhile, which nothing here does;
        // the function that took its place is `unsafe`, and this program has none of that.
        #[expect(deprecated)]
        let timer = AsyncFd::new(timer)?;
        Ok(Self(Some(timer)))
    }

    /// One that follows the runtime's clock, which tests set.
    #[cfg(test)]
    pub fn virtual_time() -> Self {
        Self(None)
    }

    /// Returns at `moment`, at once when it has passed.
    pub async fn until(&self, moment: Instant) {
        let Some(timer) = &self.0 else {
            return tokio::time::sleep_until(moment).await;
        };
        loop {
            let left = moment.saturating_duration_since(Instant::now());
            if left.is_zero() || set(timer, left).is_err() {
                return;
            }
            match timer.readable().await {
                Ok(mut ready) => ready.clear_ready(),
                Err(_) => return,
            }
        }
    }
}

fn set(timer: &AsyncFd<std::os::fd::OwnedFd>, left: Duration) -> io::Result<()> {
    let once = Itimerspec {
        it_interval: Timespec::default(),
        it_value: Timespec::try_from(left).map_err(io::Error::other)?,
    };
    timerfd_settime(timer.get_ref(), TimerfdTimerFlags::empty(), &once)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_constant_schedule_does_not_drift() {
        let times: Vec<_> = Schedule::new(3.0, Arrivals::Constant, 0)
            .take(3001)
            .collect();
        assert_eq!(times[0], Duration::ZERO);
        assert_eq!(times[3], Duration::from_secs(1));
        assert_eq!(times[3000], Duration::from_secs(1000));
    }

    #[test]
    fn poisson_arrivals_have_the_rate_and_the_spread_of_their_kind() {
        let times: Vec<_> = Schedule::new(1000.0, Arrivals::Poisson, 7)
            .take(100_001)
            .collect();
        let gaps: Vec<_> = times
            .windows(2)
            .map(|pair| (pair[1] - pair[0]).as_secs_f64())
            .collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((mean - 1e-3).abs() < 2e-5, "{mean}");
        // An exponential distribution's deviation is its mean.
        assert!((variance.sqrt() - mean).abs() < 2e-5, "{}", variance.sqrt());
        // Of the gaps, 1/e are longer than the mean.
        let longer = gaps.iter().filter(|&&gap| gap > mean).count() as f64 / gaps.len() as f64;
        assert!((longer - (-1f64).exp()).abs() < 0.01, "{longer}");
    }

    #[test]
    fn a_seed_gives_the_same_schedule_again() {
        let draw = |seed| {
            Schedule::new(50.0, Arrivals::Poisson, seed)
                .take(100)
                .collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }

    #[tokio::test]
    async fn the_pacer_returns_no_sooner_than_asked() {
        let pacer = Pacer::new().unwrap();
        for micros in [0, 1, 300, 2000] {
            let moment = Instant::now() + Duration::from_micros(micros);
            pacer.until(moment).await;
            assert!(Instant::now() >= moment);
        }
    }
}
