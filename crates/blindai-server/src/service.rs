//! What the server does, whatever the spelling of the request: upload, infer, list, describe,
//! delete, attest. The protocols in [`crate::api`] are thin codecs over it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use blindai_core::oip::{InferRequest, InferResponse, StatisticsList};
use blindai_core::receipt::{Deed, ReceiptRequest};
use blindai_core::{
    Code, CollateralState, Digest, Error, ModelInfo, ModelName, ModelVersion, Nonce, Result,
};
use blindai_engine::{Answer, Engine, Isolation, ModelFile, ModelWriter};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::access::{Access, Held, Owner, Principal, QuotaPlace, Right};
use crate::budget::{Budget, Reservation};
use crate::config::{Config, Limits, ModelConfig};
use crate::identity::{Identity, Share, unix_now};
use crate::model::Model;
use crate::origin::Origin;
use crate::registry::{Claim, Content, Registry};
use crate::residency::{Arrived, Residency};
use crate::storage::{KeptModel, Storage};
use crate::telemetry::{self, Gauges, LoadCause, ModelGauges, Telemetry, exposition};

/// The product.
pub struct Service {
    config: Config,
    access: Access,
    identity: Arc<Identity>,
    registry: Arc<Registry>,
    residency: Arc<Residency>,
    requests: Arc<Semaphore>,
    uploads: Arc<Semaphore>,
    bodies: Budget,
    storage: Option<Arc<Storage>>,
    telemetry: Arc<Telemetry>,
    ready: AtomicBool,
}

/// The right to be worked on; dropping it gives the place to the next.
pub struct Admission {
    _permit: OwnedSemaphorePermit,
    _place: QuotaPlace,
    /// When the request must have ended.
    pub deadline: Instant,
}

/// Whose request it is, and when it must have ended.
#[derive(Clone, Copy)]
pub struct Turn<'a> {
    pub principal: &'a Principal,
    pub deadline: Instant,
}

impl Service {
    /// A service that holds the models of the storage, out of memory, and is not ready yet.
    pub fn new(
        config: Config,
        access: Access,
        engine: Engine,
        identity: Arc<Identity>,
        telemetry: Arc<Telemetry>,
        storage: Option<Storage>,
    ) -> Self {
        let limits = &config.limits;
        let registry = Arc::<Registry>::default();
        let residency = Residency::new(
            engine,
            Budget::new(limits.total_memory_bytes),
            registry.clone(),
            telemetry.clone(),
            Duration::from_secs(limits.load_seconds),
        );
        Self {
            access,
            telemetry,
            identity,
            registry,
            residency: Arc::new(residency),
            requests: Arc::new(Semaphore::new(limits.concurrent_requests)),
            uploads: Arc::new(Semaphore::new(limits.concurrent_uploads)),
            bodies: Budget::new(limits.inflight_bytes),
            storage: storage.map(Arc::new),
            ready: AtomicBool::new(false),
            config,
        }
    }

    /// Has everything answer that is kept, once what the configuration names is there: that goes before,
    /// or who once uploaded something under its name could keep the server from starting.
    pub fn restore_kept(&self) {
        let kept = self.storage.iter().flat_map(|storage| storage.models());
        let mut kept: Vec<_> = kept.collect();
        // Those of a name that the configuration had before are not hidden by what is older and another's.
        kept.sort_by_key(|model| model.owner != Owner::Operator);
        let answers = kept.into_iter().map(|model| self.restore(model));
        let left_out = answers.filter(|answers| !answers).count();
        if left_out > 0 {
            tracing::warn!(
                models = left_out,
                "kept models do not answer: the configuration has their version or their name"
            );
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
        &self.config.limits
    }

    /// What the configuration asks to stand between a worker and the machine.
    pub fn isolation(&self) -> Isolation {
        self.config.engine.isolation
    }

    /// What is counted.
    pub fn telemetry(&self) -> &Arc<Telemetry> {
        &self.telemetry
    }

    /// The metrics as text.
    pub fn exposition(&self) -> String {
        exposition(&self.telemetry, &self.gauges())
    }

    /// Who is known.
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// Admits a request, before anything of its body is read.
    ///
    /// # Errors
    /// Those of [`Principal::require`], [`Code::QuotaExceeded`], [`Code::NotReady`],
    /// [`Code::TooManyRequests`]
    pub fn admit(&self, principal: &Principal) -> Result<Admission> {
        principal.require(Right::Use)?;
        let place = principal.take_place()?;
        let limit = self.config.limits.request();
        self.admit_to(&self.requests, place, "limits.concurrent_requests", limit)
    }

    /// Admits an upload, before anything of its body is read.
    ///
    /// # Errors
    /// As for [`Service::admit`].
    pub fn admit_upload(&self, principal: &Principal) -> Result<Admission> {
        principal.require(Right::Manage)?;
        let place = principal.take_place()?;
        let limit = self.config.limits.upload();
        self.admit_to(&self.uploads, place, "limits.concurrent_uploads", limit)
    }

    /// Checks that a body is not larger than any may be.
    ///
    /// # Errors
    /// [`Code::BodyTooLarge`]
    pub fn check_body(&self, bytes: u64) -> Result<()> {
        let limit = self.config.limits.body_bytes;
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

    /// Begins an upload under `name` of `announced` bytes, if the sender says so.
    ///
    /// # Errors
    /// [`Code::Forbidden`], [`Code::QuotaExceeded`], [`Code::ModelTooLarge`], before a byte is taken.
    /// Memory is reserved as bytes arrive: who only announces much must not keep others out.
    pub fn begin_upload(
        &self,
        principal: &Principal,
        name: &ModelName,
        announced: Option<u64>,
    ) -> Result<Incoming> {
        self.registry.check_manages(principal, name)?;
        let limit = self.config.limits.model_bytes;
        if let Some(bytes) = announced.filter(|&bytes| bytes > limit) {
            let fact = format!("the model has {bytes} bytes, limits.model_bytes is {limit}");
            return Err(Error::new(Code::ModelTooLarge, fact));
        }
        principal.check_room(Held::default(), announced.unwrap_or(0))?;
        Ok(Incoming {
            principal: principal.clone(),
            writer: ModelWriter::new(limit, self.isolation())?,
            memory: self.residency.memory.empty(),
            residency: self.residency.clone(),
            written: 0,
            replaces: false,
        })
    }

    /// Loads what was uploaded and makes it answer under `name`.
    ///
    /// Content that the name holds already is not loaded again. Without `version`, new content gets
    /// the next number. The Boolean says whether the model is new.
    ///
    /// # Errors
    /// [`Code::Forbidden`], [`Code::QuotaExceeded`], [`Code::DigestMismatch`], [`Code::ModelExists`],
    /// [`Code::TooManyModels`], [`Code::MemoryExhausted`], and what the engine says of the model.
    pub async fn upload(
        &self,
        name: &ModelName,
        version: Option<&ModelVersion>,
        expected: Option<Digest>,
        incoming: Incoming,
    ) -> Result<(ModelInfo, bool)> {
        let file = incoming.writer.finish()?;
        check_digest(&file, expected)?;
        let size_bytes = file.size_bytes();
        let arrived = Arrived {
            file,
            memory: incoming.memory,
            origin: None,
            cause: LoadCause::Upload,
            replaces: incoming.replaces,
        };
        let installed = self.install(&incoming.principal, name, version, arrived);
        let (info, new) = installed.await?;
        if new {
            self.telemetry.uploaded(size_bytes);
        }
        Ok((info, new))
    }

    /// Loads a model that the configuration has read from there.
    ///
    /// # Errors
    /// [`Code::ModelUnavailable`], [`Code::DigestMismatch`], [`Code::ModelTooLarge`],
    /// [`Code::MemoryExhausted`], and what the engine says of the model.
    pub async fn load_configured(&self, entry: &ModelConfig, origin: Origin) -> Result<()> {
        let limit = self.config.limits.model_bytes;
        let arrived = self.residency.read(origin, limit, entry.sha256).await?;
        let (operator, version) = (Principal::operator(), entry.version.as_ref());
        let installed = self.install(&operator, &entry.name, version, arrived);
        installed.await.map(|_| ())
    }

    /// Runs a model. The inputs are taken out of the request; what it says of the answer stays.
    /// Callers take turns. Beside the answer comes the digest of the model that gave it.
    ///
    /// # Errors
    /// [`Code::ModelNotFound`], the input codes, and what the engine says of the run.
    pub async fn infer(
        &self,
        name: &str,
        version: Option<&str>,
        request: &mut InferRequest,
        turn: Turn<'_>,
    ) -> Result<(InferResponse, Digest)> {
        turn.principal.require(Right::Use)?;
        let model = self.registry.find(turn.principal, name, version)?;
        let begun = Instant::now();
        telemetry::decoded(&model.metrics);
        let answer = self.run(&model, request, turn).await;
        model.statistics.add(answer.is_ok(), begun.elapsed());
        let answer = answer?;
        telemetry::computed(answer.stages);
        let response = InferResponse {
            id: request.id.clone(),
            model_name: model.info.name.to_string(),
            model_version: Some(model.info.version.to_string()),
            outputs: answer.outputs,
            receipt: None,
        };
        Ok((response, model.info.digest))
    }

    /// Signs a receipt of what was done with a model: its name, its version and its digest.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] when it would be too long.
    pub fn receipt(
        &self,
        wish: ReceiptRequest,
        deed: Deed,
        model: (ModelName, ModelVersion, Digest),
    ) -> Result<Vec<u8>> {
        self.identity.receipt(wish, deed, model)
    }

    /// All models that the principal may use.
    ///
    /// # Errors
    /// Those of [`Principal::require`].
    pub fn list(&self, principal: &Principal) -> Result<Vec<ModelInfo>> {
        principal.require(Right::Use)?;
        let models = self.registry.list(principal);
        Ok(models.iter().map(|model| model.describe()).collect())
    }

    /// One model, in this version or the newest, and the versions there are.
    ///
    /// # Errors
    /// [`Code::ModelNotFound`]
    pub fn describe(
        &self,
        principal: &Principal,
        name: &str,
        version: Option<&str>,
    ) -> Result<(ModelInfo, Vec<String>)> {
        principal.require(Right::Use)?;
        let model = self.registry.find(principal, name, version)?;
        Ok((model.describe(), self.registry.versions(principal, name)))
    }

    /// What models have done: one version or all of a name, or all models without a name.
    ///
    /// # Errors
    /// [`Code::ModelNotFound`]
    pub fn statistics(
        &self,
        principal: &Principal,
        name: Option<&str>,
        version: Option<&str>,
    ) -> Result<StatisticsList> {
        principal.require(Right::Use)?;
        let models = match (name, version) {
            (None, _) => self.registry.list(principal),
            (Some(name), Some(_)) => vec![self.registry.find(principal, name, version)?],
            (Some(name), None) => {
                self.registry.find(principal, name, None)?;
                let mut models = self.registry.list(principal);
                models.retain(|model| model.info.name.as_str() == name);
                models
            }
        };
        let statistics = models.iter().map(|model| model.statistics.of(&model.info));
        Ok(StatisticsList {
            model_stats: statistics.collect(),
        })
    }

    /// Brings the newest version of a name into memory, if it is not there.
    ///
    /// # Errors
    /// [`Code::ModelNotFound`], and what keeps it from being loaded.
    pub async fn load(&self, principal: &Principal, name: &str, deadline: Instant) -> Result<()> {
        principal.require(Right::Use)?;
        let model = self.registry.find(principal, name, None)?;
        let lease = self
            .residency
            .lease(&model, LoadCause::Repository, deadline);
        lease.await.map(|_| ())
    }

    /// Lets all versions of a name leave memory that can be read again. Requests in progress still end
    /// well, and the next one brings its version back. Whether there was any such version.
    ///
    /// # Errors
    /// [`Code::Forbidden`], [`Code::ModelNotFound`]
    pub fn unload(&self, principal: &Principal, name: &str) -> Result<bool> {
        principal.require(Right::Manage)?;
        let newest = self.registry.find(principal, name, None)?;
        self.registry.check_manages(principal, &newest.info.name)?;
        let mut models = self.registry.list(principal);
        models.retain(|model| model.info.name.as_str() == name && model.origin.is_some());
        models.iter().for_each(|model| self.residency.unload(model));
        Ok(!models.is_empty())
    }

    /// Deletes a version, or all versions of a name. Requests in progress still end well.
    ///
    /// # Errors
    /// [`Code::Forbidden`], [`Code::ModelNotFound`], and what the store says; then nothing was deleted.
    pub async fn delete(
        &self,
        principal: &Principal,
        name: &str,
        version: Option<&str>,
    ) -> Result<Vec<ModelInfo>> {
        principal.require(Right::Manage)?;
        let selection = self.registry.select(principal, name, version)?;
        let (registry, storage) = (self.registry.clone(), self.storage.clone());
        to_its_end(async move {
            if let Some(storage) = storage {
                storage.forget(&selection).await?;
            }
            registry.remove(&selection.chosen);
            let deleted = selection.chosen.iter();
            Ok(deleted.map(|model| model.describe()).collect())
        })
        .await
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

    /// Makes content answer under a name, unless the name holds it already.
    async fn install(
        &self,
        principal: &Principal,
        name: &ModelName,
        version: Option<&ModelVersion>,
        arrived: Arrived,
    ) -> Result<(ModelInfo, bool)> {
        let (digest, size_bytes) = (arrived.file.digest(), arrived.file.size_bytes());
        let content = Content { digest, size_bytes };
        let (replaces, limit) = (arrived.replaces, self.config.limits.models);
        let claim = self
            .registry
            .claim(principal, name, version, content, replaces, limit);
        let place = match claim? {
            Claim::Held(model) => {
                principal.accept(name, &model.info.version, &digest)?;
                return Ok((model.describe(), false));
            }
            Claim::Reserved(place) => place,
        };
        principal.accept(name, place.version(), &digest)?;
        let options = self.config.model_options(name, place.version());
        // What the configuration names is there after a restart, whatever took its place meanwhile.
        let is_named = self.config.reads(name, place.version());
        let storage = self.storage.clone().filter(|_| !is_named);
        let content = arrived.file.reader()?;
        let load = self
            .residency
            .load(arrived.file, arrived.memory, &options, arrived.cause);
        let resident = load.await?;
        let metrics = self.telemetry.slots.take();
        let info = ModelInfo {
            name: name.clone(),
            version: place.version().clone(),
            digest,
            size_bytes,
            signature: resident.loaded().signature().clone(),
            engine: options.kind,
            uploaded_at: unix_now(),
            loaded: true,
            metrics_slot: self.telemetry.metrics.then(|| metrics.slot()),
            kept: storage.as_ref().map(|storage| storage.kept()),
        };
        to_its_end(async move {
            let mut origin = arrived.origin;
            if let Some(storage) = storage {
                let (bytes, before) = (resident.bytes(), place.before()?);
                origin = Some(storage.put(content, &info, bytes, before).await?);
            }
            let model = Model::new(info.clone(), metrics, options, origin, resident);
            place.fill(Arc::new(model))?;
            Ok((info, true))
        })
        .await
    }

    /// Has a kept model answer, which its first request brings into memory; false when something else
    /// has its place.
    fn restore(&self, kept: KeptModel) -> bool {
        let options = self
            .config
            .model_options(&kept.info.name, &kept.info.version);
        let metrics = self.telemetry.slots.take();
        let info = ModelInfo {
            engine: options.kind,
            metrics_slot: self.telemetry.metrics.then(|| metrics.slot()),
            ..kept.info
        };
        let model = Model::stored(info, metrics, options, kept.origin, kept.memory_bytes);
        let model = Arc::new(model);
        self.registry.restore(model, &kept.owner, kept.last)
    }

    async fn run(
        &self,
        model: &Arc<Model>,
        request: &mut InferRequest,
        turn: Turn<'_>,
    ) -> Result<Answer> {
        let begun = Instant::now();
        let wanted = request.output_names();
        let left = turn.deadline.saturating_duration_since(begun);
        let deadline = begun + request.timeout.map_or(left, |timeout| left.min(timeout));
        let inputs = std::mem::take(&mut request.inputs);
        if !model.is_loaded() {
            // What cannot be answered is no reason to put others out of memory.
            model.info.signature.check_inputs(&inputs)?;
        }
        let lease = self
            .residency
            .lease(model, LoadCause::Request, deadline)
            .await?;
        let waited = begun.elapsed();
        let left = deadline.saturating_duration_since(Instant::now());
        let mut answer = lease
            .run(inputs, &wanted, turn.principal.caller(), left)
            .await?;
        answer.stages.queued += waited;
        Ok(answer)
    }

    fn gauges(&self) -> Gauges {
        let taken = |places: &Semaphore, limit| (limit - places.available_permits(), limit);
        let limits = &self.config.limits;
        let models = self.registry.all();
        let models = models.iter().map(|model| ModelGauges {
            metrics: model.metrics.clone(),
            loaded: model.is_loaded(),
            status: model.status(),
        });
        let (evidence, memory) = (self.identity.state(), &self.residency.memory);
        Gauges {
            ready: self.is_ready(),
            tee: evidence.tee.as_str(),
            simulated: evidence.simulated,
            requests: taken(&self.requests, limits.concurrent_requests),
            uploads: taken(&self.uploads, limits.concurrent_uploads),
            bodies: (self.bodies.used(), self.bodies.limit()),
            memory: (memory.used(), memory.limit()),
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
        place: QuotaPlace,
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
            _place: place,
            deadline: Instant::now() + limit,
        })
    }

    fn bodies_full(&self) -> Error {
        let limit = self.bodies.limit();
        let fact = format!("requests and answers fill limits.inflight_bytes, {limit}");
        Error::new(Code::TooManyRequests, fact)
    }
}

/// An upload on its way in.
pub struct Incoming {
    principal: Principal,
    writer: ModelWriter,
    memory: Reservation,
    residency: Arc<Residency>,
    written: u64,
    replaces: bool,
}

impl Incoming {
    /// Whether the model may take the place of other content in its version.
    pub fn replacing(mut self, replaces: bool) -> Self {
        self.replaces = replaces;
        self
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// [`Code::QuotaExceeded`], [`Code::ModelTooLarge`], [`Code::MemoryExhausted`]
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.written += bytes.len() as u64;
        // Who announced nothing must not fill the memory beyond its quota.
        self.principal.check_room(Held::default(), self.written)?;
        let reserved = self.memory.bytes();
        if self.written > reserved {
            let reserved = self.written.max(reserved + RESERVE_BYTES);
            self.residency.reserve(&mut self.memory, reserved)?;
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

/// A client that goes away must not leave behind what is kept and does not answer, or the reverse.
async fn to_its_end<T: Send + 'static>(
    change: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    let ended = tokio::spawn(change).await;
    ended.unwrap_or_else(|_| Err(Error::new(Code::Internal, "a change was given up")))
}
