use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::histogram::{Durations, Histogram, durations};

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
        }
    }

    /// The model's number.
    pub fn slot(&self) -> u32 {
        self.slot
    }
}

const BATCHES: [u64; 8] = [1, 2, 4, 8, 16, 32, 64, 128];

#[cfg(test)]
mod tests {
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
}
