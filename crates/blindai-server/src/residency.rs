//! Which models are in memory.
//!
//! All of them share `limits.total_memory_bytes`. When a model needs more than is left, the one leaves
//! that was used least recently, if it can be read again and nobody uses it; the next request for it
//! brings it back. One load serves all who wait for it, and ends whether they wait or not: a model that
//! takes longer to load than its callers have patience would otherwise never come.

use std::sync::Arc;
use std::time::{Duration, Instant};

use blindai_core::{Code, Digest, Error, Result};
use blindai_engine::{Engine, ModelFile, ModelOptions};
use tokio::sync::watch;

use crate::budget::{Budget, Reservation};
use crate::model::{Found, Lease, Loading, Model, Resident};
use crate::origin::Origin;
use crate::registry::Registry;
use crate::telemetry::{LoadCause, Telemetry, UnloadCause};

/// Brings models into memory and lets them leave it.
pub struct Residency {
    pub memory: Budget,
    engine: Engine,
    registry: Arc<Registry>,
    telemetry: Arc<Telemetry>,
    /// How long a load waits for others to be idle.
    patience: Duration,
}

/// Content that was read, in the memory that was reserved for it.
pub struct Arrived {
    pub file: ModelFile,
    pub memory: Reservation,
    pub origin: Option<Origin>,
    pub cause: LoadCause,
    /// Whether it may take the place of other content.
    pub replaces: bool,
}

impl Residency {
    /// Nothing is in memory yet.
    pub fn new(
        engine: Engine,
        memory: Budget,
        registry: Arc<Registry>,
        telemetry: Arc<Telemetry>,
        patience: Duration,
    ) -> Self {
        Self {
            memory,
            engine,
            registry,
            telemetry,
            patience,
        }
    }

    /// The right to run a model, as soon as it is in memory.
    ///
    /// # Errors
    /// What kept it from being loaded, for everybody who waited; the next one tries again.
    /// [`Code::DeadlineExceeded`]: it is still being loaded.
    pub async fn lease(
        self: &Arc<Self>,
        model: &Arc<Model>,
        cause: LoadCause,
        deadline: Instant,
    ) -> Result<Lease> {
        let mut loading = match model.find(|| self.begin(model.clone(), cause)) {
            Found::Here(lease) => return Ok(lease),
            Found::Coming(loading) => loading,
        };
        let ended = loading.wait_for(Option::is_some);
        let ended = tokio::time::timeout_at(deadline.into(), ended).await;
        let ended = ended.map_err(|_| late())?.map_err(|_| gone())?.clone();
        Ok(model.lease(ended.unwrap_or_else(|| Err(gone()))?))
    }

    /// Reads a model for the first time.
    ///
    /// # Errors
    /// [`Code::ModelUnavailable`], [`Code::ModelTooLarge`], [`Code::MemoryExhausted`],
    /// [`Code::DigestMismatch`].
    pub async fn read(
        &self,
        origin: Origin,
        limit: u64,
        expected: Option<Digest>,
    ) -> Result<Arrived> {
        let content = origin.open().await?;
        let size = content.size_bytes();
        if size > limit {
            let fact = format!("the model has {size} bytes, limits.model_bytes is {limit}");
            return Err(Error::new(Code::ModelTooLarge, fact));
        }
        let mut memory = self.memory.empty();
        self.reserve(&mut memory, size)?;
        let file = content.read(self.engine.isolation()).await?;
        match expected {
            Some(expected) if expected != file.digest() => Err(changed(expected, file.digest())),
            _ => Ok(Arrived {
                file,
                memory,
                origin: Some(origin),
                cause: LoadCause::Start,
                replaces: false,
            }),
        }
    }

    /// Loads content for which there is room in `memory`, which grows by what the worker takes.
    ///
    /// # Errors
    /// [`Code::MemoryExhausted`], and what the engine says of the model.
    pub async fn load(
        &self,
        file: ModelFile,
        mut memory: Reservation,
        options: &ModelOptions,
        cause: LoadCause,
    ) -> Result<Resident> {
        let size = file.size_bytes();
        // The weights at least will stand in the worker's memory too; the rest is seen afterwards.
        self.reserve(&mut memory, size.saturating_mul(2))?;
        let begun = Instant::now();
        let loaded = self.engine.load_with(options, Arc::new(file)).await?;
        self.telemetry.loaded(cause, begun.elapsed());
        let resident = loaded.status().resident_bytes;
        self.reserve(&mut memory, size.saturating_add(resident))?;
        Ok(Resident::new(loaded, memory))
    }

    /// Makes a reservation this large; others leave for it if they can.
    ///
    /// # Errors
    /// [`Code::MemoryExhausted`]; then nobody has left.
    pub fn reserve(&self, memory: &mut Reservation, bytes: u64) -> Result<()> {
        let more = bytes.saturating_sub(memory.bytes());
        while !memory.grow(more) {
            let idle = self.idle();
            let free: u64 = idle.iter().map(|model| model.bytes()).sum();
            let used = self.memory.used().saturating_sub(free);
            // Those who would leave in vain stay.
            match idle.first() {
                Some(oldest) if used.saturating_add(more) <= self.memory.limit() => {
                    self.put_out(oldest);
                }
                _ => return Err(self.exhausted()),
            }
        }
        Ok(())
    }

    /// Lets go of a model that can be read again; requests in progress still end well.
    pub fn unload(&self, model: &Model) {
        if model.leave() {
            self.telemetry.unloaded(UnloadCause::Repository);
        }
    }

    fn begin(self: &Arc<Self>, model: Arc<Model>, cause: LoadCause) -> Loading {
        let (ended, loading) = watch::channel(None);
        let residency = self.clone();
        tokio::spawn(async move {
            let loaded = residency.load_again(&model, cause).await.map(Arc::new);
            if let Err(error) = &loaded {
                let (code, model) = (error.code().as_str(), model.metrics.slot());
                tracing::warn!(code, model, "a model was not loaded again");
            }
            model.settle(loaded.as_ref().ok().cloned());
            let _ = ended.send(Some(loaded));
        });
        loading
    }

    async fn load_again(&self, model: &Model, cause: LoadCause) -> Result<Resident> {
        let origin = model.origin.as_ref().ok_or_else(gone)?;
        let (size, digest) = (model.info.size_bytes, model.info.digest);
        let content = origin.open().await?;
        if content.size_bytes() != size {
            return Err(other_size(size, content.size_bytes()));
        }
        let mut memory = self.memory.empty();
        self.reserve_patiently(&mut memory, model).await?;
        let file = content.read(self.engine.isolation()).await?;
        if file.digest() != digest {
            return Err(changed(digest, file.digest()));
        }
        self.load(file, memory, &model.options, cause).await
    }

    /// As [`Residency::reserve`], but waits for models that could leave if they were idle.
    async fn reserve_patiently(&self, memory: &mut Reservation, model: &Model) -> Result<()> {
        let bytes = model.bytes();
        let until = Instant::now() + self.patience;
        loop {
            let reserved = self.reserve(memory, bytes);
            let waits = reserved.is_err() && Instant::now() < until;
            if !(waits && self.could_fit(model, bytes)) {
                return reserved;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Whether there would be room if every other model were idle.
    fn could_fit(&self, model: &Model, bytes: u64) -> bool {
        let models = self.registry.all().into_iter();
        let others = models.filter(|other| !std::ptr::eq(&**other, model) && other.could_leave());
        let free: u64 = others.map(|other| other.bytes()).sum();
        let used = self.memory.used().saturating_sub(free);
        used.saturating_add(bytes) <= self.memory.limit()
    }

    /// The models that could leave, the least recently used first.
    fn idle(&self) -> Vec<Arc<Model>> {
        let models = self.registry.all().into_iter();
        let idle = models.filter_map(|model| Some((model.idle_since()?, model)));
        let mut idle: Vec<_> = idle.collect();
        idle.sort_by_key(|(since, _)| *since);
        idle.into_iter().map(|(_, model)| model).collect()
    }

    fn put_out(&self, model: &Model) {
        if model.leave_if_idle() {
            self.telemetry.unloaded(UnloadCause::Pressure);
        }
    }

    fn exhausted(&self) -> Error {
        let limit = self.memory.limit();
        let fact = format!("the models fill limits.total_memory_bytes, {limit}");
        Error::new(Code::MemoryExhausted, fact)
    }
}

fn changed(expected: Digest, got: Digest) -> Error {
    let fact = format!("the content of the model is to be {expected}, and is {got}");
    Error::new(Code::DigestMismatch, fact).with_remedy(PUT_BACK)
}

fn other_size(expected: u64, got: u64) -> Error {
    let fact = format!("the content of the model had {expected} bytes, and has {got}");
    Error::new(Code::DigestMismatch, fact).with_remedy(PUT_BACK)
}

fn late() -> Error {
    let fact = "the model was out of memory and is still being loaded";
    Error::new(Code::DeadlineExceeded, fact).with_remedy("try again, or allow more time")
}

fn gone() -> Error {
    Error::new(Code::Internal, "the load of the model was given up")
}

/// How often to look whether others are idle.
const LOOK: Duration = Duration::from_millis(20);
const PUT_BACK: &str = "have the operator put the content back, or upload the new as a new version";
