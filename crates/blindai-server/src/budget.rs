//! Bytes that may be held at one time, reserved before they are taken.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A number of bytes shared by many holders.
#[derive(Clone, Debug)]
pub struct Budget {
    limit: u64,
    used: Arc<AtomicU64>,
}

impl Budget {
    /// A budget of `limit` bytes.
    pub fn new(limit: u64) -> Self {
        Self {
            limit,
            used: Arc::default(),
        }
    }

    /// The bytes of the whole budget.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// The bytes that are taken.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Takes nothing yet; [`Reservation::grow`] takes.
    pub fn empty(&self) -> Reservation {
        Reservation {
            budget: self.clone(),
            bytes: 0,
        }
    }

    /// Takes `bytes`, or `None` when they are not left.
    pub fn reserve(&self, bytes: u64) -> Option<Reservation> {
        let mut reservation = self.empty();
        reservation.grow(bytes).then_some(reservation)
    }
}

/// Bytes taken from a budget; dropping gives them back.
#[derive(Debug)]
pub struct Reservation {
    budget: Budget,
    bytes: u64,
}

impl Reservation {
    /// What is taken.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes `more` bytes; false when they are not left, and then nothing is taken.
    #[must_use]
    pub fn grow(&mut self, more: u64) -> bool {
        let limit = self.budget.limit;
        let taken = self
            .budget
            .used
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |used| {
                used.checked_add(more).filter(|&sum| sum <= limit)
            });
        if taken.is_ok() {
            self.bytes += more;
        }
        taken.is_ok()
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_comes_back() {
        let budget = Budget::new(10);
        let mut first = budget.reserve(6).unwrap();
        assert!(budget.reserve(5).is_none());
        assert!(!first.grow(5));
        assert!(first.grow(4));
        drop(first);
        assert!(budget.reserve(10).is_some());
    }

    #[test]
    fn a_huge_request_does_not_wrap_around() {
        let budget = Budget::new(10);
        let _held = budget.reserve(5).unwrap();
        assert!(budget.reserve(u64::MAX).is_none());
    }
}
