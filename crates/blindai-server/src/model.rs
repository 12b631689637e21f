//! A model of the registry, and whether it is in memory.

use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use blindai_core::{ModelInfo, Result};
use blindai_engine::{LoadedModel, ModelOptions, ModelStatus};
use tokio::sync::watch;

use crate::budget::Reservation;
use crate::origin::Origin;
use crate::statistics::Statistics;
use crate::telemetry::ModelMetrics;

/// A model that answers, in memory or, when it can be read again, out of it. It stays until its last
/// request has ended.
pub struct Model {
    /// As when it was loaded; [`Model::describe`] says how it is now.
    pub info: ModelInfo,
    pub metrics: Arc<ModelMetrics>,
    pub statistics: Statistics,
    pub options: ModelOptions,
    /// Without one it never leaves memory.
    pub origin: Option<Origin>,
    residence: Mutex<Residence>,
}

struct Residence {
    presence: Presence,
    used: Instant,
    /// What it takes when it is in memory, as was seen the last time.
    bytes: u64,
}

enum Presence {
    Here(Arc<Resident>),
    Coming(Loading),
    Away,
}

/// What becomes of a load; everybody who needs the model waits for the same one.
pub type Loading = watch::Receiver<Option<Result<Arc<Resident>>>>;

/// A model in memory, and what it takes there.
pub struct Resident {
    loaded: LoadedModel,
    memory: Reservation,
}

/// The right to run a model: as long as somebody holds one, it stays in memory.
pub struct Lease {
    model: Arc<Model>,
    resident: Arc<Resident>,
}

/// A model as somebody finds it who wants to run it.
pub enum Found {
    Here(Lease),
    Coming(Loading),
}

impl Model {
    /// A model that is in memory.
    pub fn new(
        info: ModelInfo,
        metrics: Arc<ModelMetrics>,
        options: ModelOptions,
        origin: Option<Origin>,
        resident: Resident,
    ) -> Self {
        let residence = Residence {
            used: Instant::now(),
            bytes: resident.bytes(),
            presence: Presence::Here(Arc::new(resident)),
        };
        Self {
            info,
            metrics,
            statistics: Statistics::default(),
            options,
            origin,
            residence: Mutex::new(residence),
        }
    }

    /// A model that is out of memory, for tests without an engine.
    #[cfg(test)]
    pub fn away(info: ModelInfo) -> Self {
        let config = crate::Config::default();
        Self {
            metrics: crate::telemetry::Slots::default().take(),
            statistics: Statistics::default(),
            options: config.model_options(&info.name, &info.version),
            origin: Some(Origin::File("/nowhere".into())),
            residence: Mutex::new(Residence {
                presence: Presence::Away,
                used: Instant::now(),
                bytes: 0,
            }),
            info,
        }
    }

    /// What is said of it.
    pub fn describe(&self) -> ModelInfo {
        ModelInfo {
            loaded: self.is_loaded(),
            ..self.info.clone()
        }
    }

    /// Whether it is in memory.
    pub fn is_loaded(&self) -> bool {
        matches!(self.lock().presence, Presence::Here(_))
    }

    /// How its workers stand; nothing runs when it is not in memory.
    pub fn status(&self) -> ModelStatus {
        // Under the lock: who held the model to look at it would keep it from leaving.
        match &self.lock().presence {
            Presence::Here(resident) => resident.loaded.status(),
            _ => ModelStatus::default(),
        }
    }

    /// What it takes when it is in memory, in bytes.
    pub fn bytes(&self) -> u64 {
        self.lock().bytes
    }

    /// The right to run it, or the load to wait for; `load` begins one when there is none.
    pub fn find(self: &Arc<Self>, load: impl FnOnce() -> Loading) -> Found {
        let mut residence = self.lock();
        match &residence.presence {
            Presence::Here(resident) => {
                let resident = resident.clone();
                residence.used = Instant::now();
                return Found::Here(self.lease(resident));
            }
            // One that is over, or whose task is gone, is not waited for.
            Presence::Coming(loading) if loading.has_changed().is_ok() => {
                return Found::Coming(loading.clone());
            }
            _ => {}
        }
        // Under the lock, which the new load needs when it ends.
        let loading = load();
        residence.presence = Presence::Coming(loading.clone());
        Found::Coming(loading)
    }

    /// The right to run what a load has brought.
    pub fn lease(self: &Arc<Self>, resident: Arc<Resident>) -> Lease {
        Lease {
            model: self.clone(),
            resident,
        }
    }

    /// A load has ended.
    pub fn settle(&self, loaded: Option<Arc<Resident>>) {
        let mut residence = self.lock();
        residence.used = Instant::now();
        residence.presence = match loaded {
            Some(resident) => {
                residence.bytes = resident.bytes();
                Presence::Here(resident)
            }
            None => Presence::Away,
        };
    }

    /// Since when it could leave memory: nobody uses it, and it can be read again.
    pub fn idle_since(&self) -> Option<Instant> {
        let residence = self.lock();
        (self.origin.is_some() && residence.is_idle()).then_some(residence.used)
    }

    /// Whether it has memory that it would give back if it were idle.
    pub fn could_leave(&self) -> bool {
        self.origin.is_some() && !matches!(self.lock().presence, Presence::Away)
    }

    /// Leaves memory if nobody uses it.
    pub fn leave_if_idle(&self) -> bool {
        let mut residence = self.lock();
        let leaves = self.origin.is_some() && residence.is_idle();
        leaves && residence.leave()
    }

    /// Leaves memory when the requests end that are in progress.
    pub fn leave(&self) -> bool {
        self.origin.is_some() && self.lock().leave()
    }

    // Every change is one assignment.
    fn lock(&self) -> MutexGuard<'_, Residence> {
        self.residence
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Residence {
    /// Leases are given out under the lock, so that nobody can get one in between.
    fn is_idle(&self) -> bool {
        matches!(&self.presence, Presence::Here(resident) if Arc::strong_count(resident) == 1)
    }

    fn leave(&mut self) -> bool {
        let is_here = matches!(self.presence, Presence::Here(_));
        if is_here {
            self.presence = Presence::Away;
        }
        is_here
    }
}

impl Resident {
    /// A model whose room is `memory`.
    pub fn new(loaded: LoadedModel, memory: Reservation) -> Self {
        Self { loaded, memory }
    }

    /// The model.
    pub fn loaded(&self) -> &LoadedModel {
        &self.loaded
    }

    /// What it takes.
    pub fn bytes(&self) -> u64 {
        self.memory.bytes()
    }
}

impl Deref for Lease {
    type Target = LoadedModel;

    fn deref(&self) -> &LoadedModel {
        &self.resident.loaded
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // A use lasts until its end.
        self.model.lock().used = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use blindai_core::{Code, Digest, EngineKind, Error, Signature};

    use super::*;

    fn model() -> Arc<Model> {
        Arc::new(Model::away(ModelInfo {
            name: "m".parse().unwrap(),
            version: "1".parse().unwrap(),
            digest: Digest::of(b"m"),
            size_bytes: 1,
            signature: Signature::default(),
            engine: EngineKind::OnnxRuntime,
            uploaded_at: 0,
            loaded: true,
            metrics_slot: None,
        }))
    }

    fn coming(model: &Arc<Model>, load: impl FnOnce() -> Loading) -> Loading {
        match model.find(load) {
            Found::Coming(loading) => loading,
            Found::Here(_) => panic!("nothing was loaded"),
        }
    }

    #[tokio::test]
    async fn one_load_is_begun_however_many_ask() {
        let model = model();
        assert!(!model.describe().loaded && !model.could_leave());
        let (ended, loading) = watch::channel(None);
        let mut waiting = [
            coming(&model, || loading),
            coming(&model, || panic!("there is one")),
        ];
        // It may not leave before it has come.
        assert!(model.could_leave() && !model.leave() && model.idle_since().is_none());
        model.settle(None);
        ended
            .send(Some(Err(Error::new(Code::ModelUnavailable, ""))))
            .unwrap();
        for waiting in &mut waiting {
            let ended = waiting.wait_for(Option::is_some).await.unwrap().clone();
            let error = ended.unwrap().err().unwrap();
            assert_eq!(error.code(), Code::ModelUnavailable);
        }
        // The failure was of that load; the next one is another.
        let (_ended, loading) = watch::channel(None);
        let next = coming(&model, || loading);
        assert!(next.borrow().is_none());
    }

    #[test]
    fn a_load_whose_task_is_gone_is_not_waited_for() {
        let model = model();
        let (ended, loading) = watch::channel(None);
        coming(&model, || loading);
        drop(ended);
        let (_ended, loading) = watch::channel(None);
        let begun = std::cell::Cell::new(false);
        coming(&model, || {
            begun.set(true);
            loading
        });
        assert!(begun.get());
    }
}
