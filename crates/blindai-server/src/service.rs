//! What the server does, whatever the spelling of the request: upload, infer, list, describe,
//! delete, attest. The protocols in [`crate::api`] are thin codecs over it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use blindai_core::oip::{InferRequest, InferResponse, StatisticsList};
use blindai_core::{
    Code, CollateralState, Digest, Error, ModelInfo, ModelName, ModelVersion, Nonce, Result,
};
use blindai_engine::{Caller, Engine, ModelFile, ModelWriter};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::budget::{Budget, Reservation};
use crate::config::{EngineConfig, Limits};
use crate::identity::{Identity, Share};
use crate::registry::{Claim, Model, Registry};
use crate::telemetry::{self, Gauges, ModelGauges, Telemetry, exposition};

/// The product.
pub struct Service {
    limits: Limits,
    choice: EngineConfig,
    engine: Engine,
    identity: Arc<Identity>,
    registry: Arc<Registry>,
    requests: Arc<Semaphore>,
    uploads: Arc<Semaphore>,
    bodies: Budget,
    memory: Budget,
    telemetry: Arc<Telemetry>,
    ready: AtomicBool,
}

/// The right to be worked on; dropping it gives the place to the next.
pub struct Admission {
    _permit: OwnedSemaphorePermit,
    /// When the request must have ended.
    pub deadline: Instant,
}

/// Whose request it is, and when it must have ended.
#[derive(Clone, Copy)]
pub struct Turn {
    pub caller: Caller,
    pub deadline: Instant,
}

impl Service {
    /// A service that holds no models and is not ready yet.
    pub fn new(
        limits: Limits,
        choice: EngineConfig,
        engine: Engine,
        identity: Arc<Identity>,
        telemetry: Arc<Telemetry>,
    ) -> Self {
        Self {
            choice,
            telemetry,
            engine,
            identity,
            registry: Arc::default(),
            requests: Arc::new(Semaphore::new(limits.concurrent_requests)),
            uploads: Arc::new(Semaphore::new(limits.concurrent_uploads)),
            bodies: Budget::new(limits.inflight_bytes),
            memory: Budget::new(limits.total_memory_bytes),
            ready: AtomicBool::new(false),
            limits,
        }
    }

    /// Whether requests are taken.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// Starts or stops taking requests; those in progress go on.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Release);
    }

    /// The limits in force.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// What is counted.
    pub fn telemetry(&self) -> &Arc<Telemetry> {
        &self.telemetry
    }

    /// The metrics as text.
    pub fn exposition(&self) -> String {
        exposition(&self.telemetry, &self.gauges())
    }

    /// Admits a request, before anything of its body is read.
    ///
    /// # Errors
    /// [`Code::NotReady`], [`Code::TooManyRequests`]
    pub fn admit(&self) -> Result<Admission> {
        let limit = self.limits.request();
        self.admit_to(&self.requests, "limits.concurrent_requests", limit)
    }

    /// Admits an upload, before anything of its body is read.
    ///
    /// # Errors
    /// [`Code::NotReady`], [`Code::TooManyRequests`]
    pub fn admit_upload(&self) -> Result<Admission> {
        let limit = self.limits.upload();
        self.admit_to(&self.uploads, "limits.concurrent_uploads", limit)
    }

    /// Checks that a body is not larger than any may be.
    ///
    /// # Errors
    /// [`Code::BodyTooLarge`]
    pub fn check_body(&self, bytes: u64) -> Result<()> {
        let limit = self.limits.body_bytes;
        if bytes > limit {
            let fact = format!("the body has {bytes} bytes, limits.body_bytes is {limit}");
            return Err(Error::new(Code::BodyTooLarge, fact));
        }
        Ok(())
    }

    /// Reserves room for a request body.
    ///
    /// # Errors
    /// [`Code::BodyTooLarge`], [`Code::TooManyRequests`] when other bodies fill the room.
    pub fn reserve_body(&self, bytes: u64) -> Result<Reservation> {
        self.check_body(bytes)?;
        self.bodies.reserve(bytes).ok_or_else(|| self.bodies_full())
    }

    /// Reserves room for an answer beside its request.
    ///
    /// # Errors
    /// [`Code::TooManyRequests`] when others fill the room.
    pub fn grow_held(&self, held: &mut Reservation, bytes: u64) -> Result<()> {
        match held.grow(bytes) {
            true => Ok(()),
            false => Err(self.bodies_full()),
        }
    }

    /// Begins an upload of `announced` bytes, if the sender says so.
    ///
    /// # Errors
    /// [`Code::ModelTooLarge`], before a byte is taken. Memory is reserved as bytes arrive: who only
    /// announces much must not keep others out.
    pub fn begin_upload(&self, announced: Option<u64>) -> Result<Incoming> {
        let limit = self.limits.model_bytes;
        if let Some(bytes) = announced.filter(|&bytes| bytes > limit) {
            let fact = format!("the model has {bytes} bytes, limits.model_bytes is {limit}");
            return Err(Error::new(Code::ModelTooLarge, fact));
        }
        Ok(Incoming {
            writer: ModelWriter::new(limit)?,
            memory: self.memory.empty(),
            reserved: 0,
            written: 0,
        })
    }

    /// Loads what was uploaded and makes it answer under `name`.
    ///
    /// Content that the name holds already is not loaded again. Without `version`, new content gets
    /// the next number. The Boolean says whether the model is new.
    ///
    /// # Errors
    /// [`Code::DigestMismatch`], [`Code::ModelExists`], [`Code::TooManyModels`],
    /// [`Code::MemoryExhausted`], and what the engine says of the model.
    pub async fn upload(
        &self,
        name: &ModelName,
        version: Option<&ModelVersion>,
        expected: Option<Digest>,
        incoming: Incoming,
    ) -> Result<(ModelInfo, bool)> {
        let file = incoming.writer.finish()?;
        check_digest(&file, expected)?;
        let digest = file.digest();
        let limit = self.limits.models;
        let place = match self.registry.claim(name, version, digest, limit)? {
            Claim::Held(model) => return Ok((model.info.clone(), false)),
            Claim::Reserved(place) => place,
        };
        let size_bytes = file.size_bytes();
        let mut memory = incoming.memory;
        // The weights at least will stand in the worker's memory too; the rest is seen afterwards.
        if !memory.grow(size_bytes) {
            return Err(self.memory_exhausted());
        }
        let begun = Instant::now();
        let engine = self.choice.kind_of(name);
        let loaded = self.engine.load_on(engine, Arc::new(file)).await?;
        self.telemetry.loaded(size_bytes, begun.elapsed());
        let resident_bytes = loaded.status().resident_bytes;
        if !memory.grow(resident_bytes.saturating_sub(size_bytes)) {
            return Err(self.memory_exhausted());
        }
        let metrics = self.telemetry.slots.take();
        let info = ModelInfo {
            name: name.clone(),
            version: place.version().clone(),
            digest,
            size_bytes,
            signature: loaded.signature().clone(),
            engine,
            uploaded_at: unix_seconds(),
            metrics_slot: self.telemetry.metrics.then(|| metrics.slot()),
        };
        let model = Model::new(info.clone(), loaded, metrics, memory);
        place.fill(Arc::new(model))?;
        Ok((info, true))
    }

    /// Runs a model. The inputs are taken out of the request; what it says of the answer stays.
    /// Callers take turns.
    ///
    /// # Errors
    /// [`Code::ModelNotFound`], the input codes, and what the engine says of the run.
    pub async fn infer(
        &self,
        name: &str,
        version: Option<&str>,
        request: &mut InferRequest,
        turn: Turn,
    ) -> Result<InferResponse> {
        let model = self.registry.find(name, version)?;
        let wanted = request.output_names();
        let begun = Instant::now();
        let left = turn.deadline.saturating_duration_since(begun);
        let left = request.timeout.map_or(left, |timeout| left.min(timeout));
        let inputs = std::mem::take(&mut request.inputs);
        telemetry::decoded(&model.metrics);
        let answer = model.loaded.run(inputs, &wanted, turn.caller, left).await;
        model.statistics.add(answer.is_ok(), begun.elapsed());
        let answer = answer?;
        telemetry::computed(answer.stages);
        Ok(InferResponse {
            id: request.id.clone(),
            model_name: model.info.name.to_string(),
            model_version: Some(model.info.version.to_string()),
            outputs: answer.outputs,
        })
    }

    /// All models.
    pub fn list(&self) -> Vec<ModelInfo> {
        let models = self.registry.list();
        models.iter().map(|model| model.info.clone()).collect()
    }

    /// One model, in this version or the newest, and the versions there are.
    ///
    /// # Errors
    /// [`Code::ModelNotFound`]
    pub fn describe(&self, name: &str, version: Option<&str>) -> Result<(ModelInfo, Vec<String>)> {
        let model = self.registry.find(name, version)?;
        Ok((model.info.clone(), self.registry.versions(name)))
    }

    /// What models have done: one version or all of a name, or all models without a name.
    ///
    /// # Errors
    /// [`Code::ModelNotFound`]
    pub fn statistics(&self, name: Option<&str>, version: Option<&str>) -> Result<StatisticsList> {
        let models = match (name, version) {
            (None, _) => self.registry.list(),
            (Some(name), Some(_)) => vec![self.registry.find(name, version)?],
            (Some(name), None) => {
                self.registry.find(name, None)?;
                let mut models = self.registry.list();
                models.retain(|model| model.info.name.as_str() == name);
                models
            }
        };
        let statistics = models.iter().map(|model| model.statistics.of(&model.info));
        Ok(StatisticsList {
            model_stats: statistics.collect(),
        })
    }

    /// Deletes a version, or all versions of a name. Requests in progress still end well.
    ///
    /// # Errors
    /// [`Code::ModelNotFound`]
    pub fn delete(&self, name: &str, version: Option<&str>) -> Result<Vec<ModelInfo>> {
        let removed = self.registry.remove(name, version)?;
        Ok(removed.iter().map(|model| model.info.clone()).collect())
    }

    /// Evidence: with a nonce fresh, without the one in use. Each port has its own share of the
    /// platform, so that a flood on the public one cannot keep clients from verifying.
    ///
    /// # Errors
    /// [`Code::TooManyRequests`], and when the platform gives no quote.
    pub async fn attest(&self, nonce: Option<Nonce>, share: &Share) -> Result<Vec<u8>> {
        self.identity.document(nonce, share).await
    }

    /// The certificate of the attested port, DER.
    pub fn certificate(&self) -> Vec<u8> {
        self.identity.certificate()
    }

    /// Signs an answer with the key that the evidence names for it.
    pub fn sign(&self, answer: &[u8]) -> [u8; 64] {
        self.identity.sign(answer)
    }

    /// How the collateral beside the evidence stands.
    pub fn collateral_state(&self) -> CollateralState {
        self.identity.collateral_state()
    }

    /// Lets go of all models, and so of their workers.
    pub fn unload_all(&self) {
        self.registry.clear();
    }

    fn gauges(&self) -> Gauges {
        let taken = |places: &Semaphore, limit| (limit - places.available_permits(), limit);
        let limits = &self.limits;
        let models = self.registry.list();
        let models = models.iter().map(|model| ModelGauges {
            metrics: model.metrics.clone(),
            status: model.loaded.status(),
        });
        let evidence = self.identity.state();
        Gauges {
            ready: self.is_ready(),
            tee: evidence.tee.as_str(),
            simulated: evidence.simulated,
            requests: taken(&self.requests, limits.concurrent_requests),
            uploads: taken(&self.uploads, limits.concurrent_uploads),
            bodies: (self.bodies.used(), self.bodies.limit()),
            memory: (self.memory.used(), self.memory.limit()),
            models_limit: limits.models,
            models: models.collect(),
            evidence: (evidence.age, evidence.remaining),
            collateral: Some(evidence.collateral.state),
            collateral_remaining: evidence.collateral_remaining,
        }
    }

    fn admit_to(
        &self,
        places: &Arc<Semaphore>,
        setting: &str,
        limit: Duration,
    ) -> Result<Admission> {
        if !self.is_ready() {
            return Err(Error::new(
                Code::NotReady,
                "the server is starting or stopping",
            ));
        }
        let permit = places.clone().try_acquire_owned().map_err(|_| {
            let fact = format!("as many requests are in progress as {setting} allows");
            Error::new(Code::TooManyRequests, fact)
        })?;
        Ok(Admission {
            _permit: permit,
            deadline: Instant::now() + limit,
        })
    }

    fn bodies_full(&self) -> Error {
        let limit = self.bodies.limit();
        let fact = format!("requests and answers fill limits.inflight_bytes, {limit}");
        Error::new(Code::TooManyRequests, fact)
    }

    fn memory_exhausted(&self) -> Error {
        let limit = self.memory.limit();
        let fact = format!("the models fill limits.total_memory_bytes, {limit}");
        Error::new(Code::MemoryExhausted, fact)
    }
}

/// An upload on its way in.
pub struct Incoming {
    writer: ModelWriter,
    memory: Reservation,
    reserved: u64,
    written: u64,
}

impl Incoming {
    /// Takes the next bytes.
    ///
    /// # Errors
    /// [`Code::ModelTooLarge`], [`Code::MemoryExhausted`]
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.written += bytes.len() as u64;
        if self.written > self.reserved {
            let more = (self.written - self.reserved).max(RESERVE_BYTES);
            if !self.memory.grow(more) {
                let fact = "the models fill limits.total_memory_bytes";
                return Err(Error::new(Code::MemoryExhausted, fact));
            }
            self.reserved += more;
        }
        self.writer.write(bytes)
    }
}

/// An upload reserves memory in steps of this size.
const RESERVE_BYTES: u64 = 1 << 20;

fn check_digest(file: &ModelFile, expected: Option<Digest>) -> Result<()> {
    let got = file.digest();
    match expected {
        Some(expected) if expected != got => {
            let fact = format!("announced {expected}, received {got}");
            Err(Error::new(Code::DigestMismatch, fact))
        }
        _ => Ok(()),
    }
}

fn unix_seconds() -> u64 {
    let age = SystemTime::now().duration_since(UNIX_EPOCH);
    age.map_or(0, |age| age.as_secs())
}
