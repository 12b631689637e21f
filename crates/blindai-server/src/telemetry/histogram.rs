use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Counts values by their size, without a lock.
pub struct Histogram<const N: usize> {
    bounds: &'static [u64; N],
    counts: [AtomicU64; N],
    over: AtomicU64,
    sum: AtomicU64,
}

/// Times, in microseconds.
pub type Durations = Histogram<16>;

/// An empty histogram of times, from 100 µs to a minute.
pub const fn durations() -> Durations {
    Histogram::new(&MICROSECONDS)
}

const MICROSECONDS: [u64; 16] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000, 10_000_000, 60_000_000,
];

/// A histogram at one time.
#[derive(Debug, Clone)]
pub struct Counted {
    pub sum: f64,
    pub count: u64,
    /// Upper bounds with the values between them and the bound before; the last is infinite.
    pub buckets: Vec<(f64, u64)>,
}

impl<const N: usize> Histogram<N> {
    /// An empty histogram; the bounds rise.
    pub const fn new(bounds: &'static [u64; N]) -> Self {
        Self {
            bounds,
            counts: [const { AtomicU64::new(0) }; N],
            over: AtomicU64::new(0),
            sum: AtomicU64::new(0),
        }
    }

    /// Counts a value: two atomic additions.
    pub fn add(&self, value: u64) {
        let place = self.bounds.partition_point(|&bound| bound < value);
        let count = self.counts.get(place).unwrap_or(&self.over);
        count.fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(value, Ordering::Relaxed);
    }

    /// What was counted, in a unit that holds `parts` of what was added.
    pub fn read(&self, parts: f64) -> Counted {
        let counts = self
            .counts
            .iter()
            .map(|count| count.load(Ordering::Relaxed));
        let bounds = self.bounds.iter().map(|&bound| bound as f64 / parts);
        let mut buckets: Vec<_> = bounds.zip(counts).collect();
        buckets.push((f64::INFINITY, self.over.load(Ordering::Relaxed)));
        Counted {
            sum: self.sum.load(Ordering::Relaxed) as f64 / parts,
            // From the buckets, so that both agree while others count on.
            count: buckets.iter().map(|(_, count)| count).sum(),
            buckets,
        }
    }
}

impl Durations {
    /// Counts a time.
    pub fn record(&self, time: Duration) {
        self.add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }

    /// What was counted, in seconds.
    pub fn seconds(&self) -> Counted {
        self.read(1e6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_on_a_bound_belongs_below_it() {
        let times = durations();
        for us in [0, 100, 101, 60_000_000, 60_000_001] {
            times.record(Duration::from_micros(us));
        }
        let counted = times.seconds();
        let filled: Vec<_> = counted.buckets.iter().filter(|(_, n)| *n > 0).collect();
        assert_eq!(filled.len(), 4);
        assert_eq!(*filled[0], (0.0001, 2));
        assert_eq!(*filled[3], (f64::INFINITY, 1));
        assert_eq!(counted.count, 5);
        assert!((counted.sum - 120.000_202).abs() < 1e-6);
    }
}
