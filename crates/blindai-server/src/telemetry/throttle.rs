use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Lines of the log about refused requests. Strangers cause them, so there are only so many in a second;
/// the next line after that says how many were left out.
pub struct Throttle {
    start: Instant,
    second: AtomicU64,
    lines: AtomicU64,
    left_out: AtomicU64,
}

impl Default for Throttle {
    fn default() -> Self {
        Self {
            start: Instant::now(),
            second: AtomicU64::default(),
            lines: AtomicU64::default(),
            left_out: AtomicU64::default(),
        }
    }
}

impl Throttle {
    /// Whether a line may be written now, and how many were left out since the last.
    pub fn admit(&self) -> Option<u64> {
        self.admit_at(self.start.elapsed())
    }

    // Two threads that enter a second together may let a line too many through; that harms nobody.
    fn admit_at(&self, now: Duration) -> Option<u64> {
        if self.second.swap(now.as_secs(), Ordering::Relaxed) != now.as_secs() {
            self.lines.store(0, Ordering::Relaxed);
        }
        if self.lines.fetch_add(1, Ordering::Relaxed) < LINES {
            return Some(self.left_out.swap(0, Ordering::Relaxed));
        }
        self.left_out.fetch_add(1, Ordering::Relaxed);
        None
    }
}

/// In one second.
const LINES: u64 = 50;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_and_counted() {
        let throttle = Throttle::default();
        let at = |ms| throttle.admit_at(Duration::from_millis(ms));
        let written = (0..1000).filter(|&ms| at(ms).is_some()).count();
        assert_eq!(written as u64, LINES);
        assert_eq!(at(1000), Some(1000 - LINES));
        assert_eq!(at(1001), Some(0));
    }
}
