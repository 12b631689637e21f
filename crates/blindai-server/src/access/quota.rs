//! How much one principal may do and hold, so that it cannot use up what all share.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use blindai_core::{Code, Error, Result};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::config::Quota;

/// A principal's quota and what of it is used now.
#[derive(Default)]
pub struct Allowance {
    quota: Quota,
    rate: Option<Rate>,
    places: Option<Arc<Semaphore>>,
}

/// A place among the requests of one principal.
pub struct QuotaPlace(
    #[expect(dead_code, reason = "held until the request ends")] Option<OwnedSemaphorePermit>,
);

/// What a principal holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    pub models: usize,
    pub bytes: u64,
}

impl Held {
    /// For content that takes the place of other content: one model for another, and the bytes of both
    /// for as long as both are there.
    pub fn without_one_model(self) -> Self {
        Self {
            models: self.models.saturating_sub(1),
            ..self
        }
    }
}

impl Allowance {
    pub fn new(quota: &Quota) -> Self {
        let rate = quota.requests_per_second;
        Self {
            rate: rate.map(|rate| Rate::new(rate, quota.burst(), Instant::now())),
            places: quota
                .concurrent_requests
                .map(|places| Arc::new(Semaphore::new(places))),
            quota: *quota,
        }
    }

    pub fn take_place(&self) -> Result<QuotaPlace> {
        if let Some(rate) = &self.rate {
            rate.take(Instant::now())
                .map_err(|wait| self.too_fast(wait))?;
        }
        let place = self.places.clone().map(Semaphore::try_acquire_owned);
        let place = place.transpose().map_err(|_| self.too_many())?;
        Ok(QuotaPlace(place))
    }

    pub fn check_room(&self, held: Held, bytes: u64) -> Result<()> {
        let Quota {
            models,
            model_bytes,
            ..
        } = self.quota;
        if let Some(limit) = models.filter(|&limit| held.models >= limit) {
            let fact = format!(
                "the caller holds {} models, quota.models is {limit}",
                held.models
            );
            return Err(exceeded(&fact).with_remedy(DELETE));
        }
        if let Some(limit) = model_bytes.filter(|&limit| held.bytes.saturating_add(bytes) > limit) {
            let fact = format!(
                "the caller holds {} bytes of models and sends {bytes}, quota.model_bytes is {limit}",
                held.bytes
            );
            return Err(exceeded(&fact).with_remedy(DELETE));
        }
        Ok(())
    }

    fn too_fast(&self, wait: Duration) -> Error {
        let rate = self.quota.requests_per_second.unwrap_or_default();
        let fact = format!("the caller sends more than quota.requests_per_second, {rate}");
        // Whole seconds, and rounded up: who comes back sooner is refused again.
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        wait_for(exceeded(&fact), seconds.max(1))
    }

    fn too_many(&self) -> Error {
        let limit = self.quota.concurrent_requests.unwrap_or_default();
        let fact = format!(
            "the caller has as many requests in progress as quota.concurrent_requests allows, {limit}"
        );
        wait_for(exceeded(&fact), 1)
    }
}

fn exceeded(fact: &str) -> Error {
    Error::new(Code::QuotaExceeded, fact)
}

fn wait_for(error: Error, seconds: u64) -> Error {
    error
        .with_remedy("try again later")
        .with_retry_after(seconds)
}

const DELETE: &str = "delete a model, or ask the server's operator for a larger quota";

/// A token bucket: it holds up to `burst` requests and fills up at `per_second`.
struct Rate {
    per_second: f64,
    burst: f64,
    level: Mutex<Level>,
}

#[derive(Clone, Copy)]
struct Level {
    requests: f64,
    at: Instant,
}

impl Rate {
    fn new(per_second: f64, burst: f64, now: Instant) -> Self {
        let level = Level {
            requests: burst,
            at: now,
        };
        Self {
            per_second,
            burst,
            level: Mutex::new(level),
        }
    }

    /// Takes one request out, or says how long until there is one.
    fn take(&self, now: Instant) -> std::result::Result<(), Duration> {
        let mut level = self.level.lock().unwrap_or_else(PoisonError::into_inner);
        // Requests that race may bring their times in the wrong order.
        let passed = now.saturating_duration_since(level.at).as_secs_f64();
        level.requests = (level.requests + passed * self.per_second).min(self.burst);
        level.at = level.at.max(now);
        if level.requests < 1.0 {
            let missing = (1.0 - level.requests) / self.per_second;
            return Err(Duration::from_secs_f64(missing));
        }
        level.requests -= 1.0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quota(more: Quota) -> Allowance {
        Allowance::new(&more)
    }

    #[test]
    fn a_rate_lets_a_burst_through_and_then_its_share() {
        let start = Instant::now();
        let rate = Rate::new(2.0, 3.0, start);
        let at = |ms| rate.take(start + Duration::from_millis(ms));
        assert!((0..3).all(|_| at(0).is_ok()));
        assert_eq!(at(0), Err(Duration::from_millis(500)));
        assert_eq!(at(250), Err(Duration::from_millis(250)));
        assert_eq!(at(500), Ok(()));
        assert!(at(500).is_err());
        // It never holds more than a burst, however long nobody came.
        assert!((0..3).all(|_| at(3_600_000).is_ok()));
        assert!(at(3_600_000).is_err());
        // A time from before gives nothing.
        assert!(at(0).is_err());
        assert_eq!(at(3_600_500), Ok(()));
    }

    #[test]
    fn a_rate_below_one_says_how_long_to_wait() {
        let allowance = quota(Quota {
            requests_per_second: Some(0.01),
            ..Quota::default()
        });
        assert!(allowance.take_place().is_ok());
        let error = allowance.take_place().err().unwrap();
        assert_eq!(error.code(), Code::QuotaExceeded);
        // 100 s from the first, in which the test is not.
        let wait = error.retry_after_seconds().unwrap();
        assert!((2..=100).contains(&wait), "{wait}");
    }

    #[test]
    fn places_are_given_back() {
        let allowance = quota(Quota {
            concurrent_requests: Some(2),
            ..Quota::default()
        });
        let first = allowance.take_place().unwrap();
        let _second = allowance.take_place().unwrap();
        let error = allowance.take_place().err().unwrap();
        assert_eq!(error.retry_after_seconds(), Some(1));
        drop(first);
        assert!(allowance.take_place().is_ok());
    }

    #[test]
    fn models_and_their_bytes_are_counted_together() {
        let allowance = quota(Quota {
            models: Some(2),
            model_bytes: Some(100),
            ..Quota::default()
        });
        let room = |models, bytes, more| {
            let refused = allowance.check_room(Held { models, bytes }, more).err();
            // Waiting does not help.
            assert!(
                refused
                    .iter()
                    .all(|error| error.retry_after_seconds().is_none())
            );
            refused.is_none()
        };
        assert!(room(0, 0, 100));
        assert!(room(1, 60, 40));
        assert!(!room(1, 60, 41));
        assert!(!room(2, 0, 1));
        assert!(!room(1, u64::MAX, 1));
        assert!(
            quota(Quota::default())
                .check_room(Held::default(), u64::MAX)
                .is_ok()
        );
    }
}
