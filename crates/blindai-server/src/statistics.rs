//! What a model has done, counted.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use blindai_core::ModelInfo;
use blindai_core::oip::{InferenceStatistics, ModelStatistics};

/// How the requests to one model ended. Whoever may call a model may read it.
#[derive(Default)]
pub struct Statistics(Mutex<Counted>);

#[derive(Clone, Copy, Default)]
struct Counted {
    ended: InferenceStatistics,
    last_success: Duration,
}

impl Statistics {
    /// Counts a request that ended.
    pub fn add(&self, success: bool, taken: Duration) {
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if success {
            counted.ended.success.add(taken);
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            counted.last_success = now.unwrap_or_default();
        } else {
            counted.ended.fail.add(taken);
        }
    }

    /// What was counted so far of this model.
    pub fn of(&self, info: &ModelInfo) -> ModelStatistics {
        let counted = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let successes = counted.ended.success.count;
        ModelStatistics {
            name: info.name.to_string(),
            version: info.version.to_string(),
            last_inference: u64::try_from(counted.last_success.as_millis()).unwrap_or(u64::MAX),
            inference_count: successes,
            execution_count: successes,
            inference_stats: counted.ended,
        }
    }
}
