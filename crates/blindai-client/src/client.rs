use std::borrow::Cow;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use blindai_collateral::Fetcher;
use blindai_core::api::{self, Deleted, ModelList};
use blindai_core::oip::{self, InferRequest, InferResponse};
use blindai_core::pins::ModelPins;
use blindai_core::receipt::{self, ReceiptRequest};
use blindai_core::{EvidenceDocument, ModelInfo, ModelName, ModelVersion, Token};
use blindai_verify::{ExpectedReceipt, Policy, VerifiedReport};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method};
use serde::de::DeserializeOwned;

use crate::accepted::{check_answer, check_info, told_digest};
use crate::address::Address;
use crate::credentials::{ClientCertificate, Credentials, authorization};
use crate::http1::{Answer, Broken, Head, Outgoing};
use crate::receipt::{answered, asked};
use crate::trust::{Channel, Clock, CollateralFrom, Dialer, Proof, holds};
use crate::upload::check_digest;
use crate::{ClientError, ErrorKind, Receipt, Upload};

/// What a connection is made with: the policy, and limits.
#[derive(Clone)]
pub struct ConnectOptions {
    policy: Policy,
    collateral: CollateralFrom,
    connect_timeout: Duration,
    request_timeout: Duration,
    max_response_bytes: usize,
    idle_connections: usize,
    clock: Clock,
    token: Option<Token>,
    certificate: Option<ClientCertificate>,
}

impl ConnectOptions {
    /// Trusts the servers that `policy` accepts. All else has a default.
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            collateral: CollateralFrom::Server,
            connect_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(300),
            max_response_bytes: 1 << 30,
            idle_connections: 32,
            clock: Arc::new(system_time),
            token: None,
            certificate: None,
        }
    }

    /// Sends this token with each request, to no server before it is verified. A
    /// [`Connector`](crate::Connector) sends nothing by itself, and so not this.
    pub fn token(mut self, token: Token) -> Self {
        self.token = Some(token);
        self
    }

    /// Shows this certificate in each handshake.
    pub fn client_certificate(mut self, certificate: ClientCertificate) -> Self {
        self.certificate = Some(certificate);
        self
    }

    /// Fetches collateral here and does without what the server staples, save for the certificate
    /// that names the signer of a report of SEV-SNP. By default what the server staples is verified:
    /// it cannot forge it, but hold back news until the old ends.
    ///
    /// Fetching counts towards the connect timeout.
    pub fn collateral(mut self, fetcher: Fetcher) -> Self {
        self.collateral = CollateralFrom::Fetched(fetcher);
        self
    }

    /// As [`ConnectOptions::collateral`], and takes what the server staples when the source cannot be
    /// reached, refuses, or knows nothing of the platform.
    ///
    /// Whoever can keep the source from answering then decides that old news counts, until the lists
    /// of the server's collateral end. An answer that cannot be read, and evidence that names no
    /// platform, are errors all the same.
    pub fn collateral_or_stapled(mut self, fetcher: Fetcher) -> Self {
        self.collateral = CollateralFrom::FetchedOrServer(fetcher);
        self
    }

    /// How long a new connection may take, with its attestation; 10 s by default.
    pub fn connect_timeout(mut self, limit: Duration) -> Self {
        self.connect_timeout = limit;
        self
    }

    /// How long a request may take, and how long an upload may make no progress; 300 s by default.
    pub fn request_timeout(mut self, limit: Duration) -> Self {
        self.request_timeout = limit;
        self
    }

    /// The longest answer that is taken; 1 GiB by default.
    pub fn max_response_bytes(mut self, limit: usize) -> Self {
        self.max_response_bytes = limit;
        self
    }

    /// How many connections are kept for later requests; 32 by default. A caller with more requests
    /// at a time than this pays a handshake for each beyond it.
    pub fn idle_connections(mut self, limit: usize) -> Self {
        self.idle_connections = limit;
        self
    }

    /// Where the time comes from, in seconds since 1970; the system's clock by default. Evidence
    /// is as fresh as this clock says, so it must not come from the server or its operator.
    pub fn clock(mut self, clock: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// What makes trusted connections to `address`.
    pub(crate) fn dialer(self, address: &str) -> Result<Dialer, ClientError> {
        let address = Address::parse(address)?;
        let limit = self.connect_timeout;
        let credentials = Credentials {
            authorization: self.token.as_ref().map(authorization),
            certificate: self.certificate,
        };
        Ok(Dialer::new(
            address,
            self.policy,
            self.collateral,
            limit,
            self.clock,
            credentials,
        ))
    }
}

impl fmt::Debug for ConnectOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectOptions")
            .field("connect_timeout", &self.connect_timeout)
            .field("request_timeout", &self.request_timeout)
            .field("max_response_bytes", &self.max_response_bytes)
            .field("idle_connections", &self.idle_connections)
            .finish_non_exhaustive()
    }
}

/// A server that proved what it is, and the connections to it.
///
/// There is no way to make one without a [`VerifiedReport`]. Clones share their connections. A
/// request fails with an error of kind [`Attestation`](crate::ErrorKind::Attestation), and sends
/// nothing, when the report has expired or the server has a new key and it does not prove itself
/// anew.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
    accepted: Arc<ModelPins>,
}

impl Client {
    /// Connects to `address` (`host`, `host:port` or `[IPv6]:port`; the port is 50051 by default)
    /// and verifies the server.
    ///
    /// # Errors
    /// Of kind `Attestation` when the policy does not accept the server, `Connection` when it
    /// cannot be reached, `Local` for an address that is none.
    pub async fn connect(address: &str, options: ConnectOptions) -> Result<Self, ClientError> {
        let (request_timeout, max_response_bytes) =
            (options.request_timeout, options.max_response_bytes);
        let idle_connections = options.idle_connections;
        let dialer = options.dialer(address)?;
        let accepted = Arc::new(dialer.policy.models().clone());
        let channel = dialer.attest().await?;
        let shared = Arc::new(Shared {
            dialer,
            known: Mutex::new(channel.proof().clone()),
            is_refuted: AtomicBool::new(false),
            idle: Mutex::default(),
            request_timeout,
            max_response_bytes,
            idle_connections,
        });
        shared.park(channel);
        Ok(Self { shared, accepted })
    }

    /// The same client, which accepts of the models that its policy accepts only these.
    #[must_use]
    pub fn accepting(&self, models: ModelPins) -> Self {
        let accepted = ModelPins::clone(&self.accepted).and(models);
        Self {
            shared: self.shared.clone(),
            accepted: Arc::new(accepted),
        }
    }

    /// Which models it accepts: those that the policy does, unless it was told to be stricter.
    pub fn accepted(&self) -> &ModelPins {
        &self.accepted
    }

    /// What the server proved last.
    pub fn report(&self) -> Arc<VerifiedReport> {
        lock(&self.shared.known).report.clone()
    }

    /// Asks for new evidence, with a new nonce, and verifies it. The document can be kept and
    /// verified again without the server.
    ///
    /// # Errors
    /// As for [`Client::connect`]. What the server proved before is worth nothing then: the next request
    /// asks for evidence, too.
    pub async fn attest(&self) -> Result<(EvidenceDocument, Arc<VerifiedReport>), ClientError> {
        let attested = self.shared.dialer.attest().await;
        let channel = attested.inspect_err(|error| self.shared.refused(error))?;
        let Proof { report, evidence } = channel.proof().clone();
        self.shared.remember(channel.proof());
        self.shared.park(channel);
        Ok(((*evidence).clone(), report))
    }

    /// Whether the server says that it takes requests.
    ///
    /// # Errors
    /// Of kind `Attestation` or `Connection`.
    pub async fn ready(&self) -> Result<bool, ClientError> {
        let head = Head::new(Method::GET, "/v2/health/ready".to_owned());
        let (answer, _) = self.shared.repeatable(&head, &[]).await?;
        Ok(answer.status().is_success())
    }

    /// Sends a model and waits until it is loaded. The server's digest is compared with that of
    /// what was sent. Never repeated by itself.
    ///
    /// # Errors
    /// Of kind `Local` when the file cannot be read; of kind `Server` with
    /// [`Code::ModelInvalid`](blindai_core::Code::ModelInvalid),
    /// [`Code::ModelExists`](blindai_core::Code::ModelExists),
    /// [`Code::ModelNotAccepted`](blindai_core::Code::ModelNotAccepted) and others when it is refused.
    pub async fn upload(&self, upload: Upload) -> Result<ModelInfo, ClientError> {
        let head = self.upload_head(&upload);
        Ok(self.send_model(upload, &head).await?.0)
    }

    /// [`Client::upload`], with a receipt of it, which has been checked.
    ///
    /// # Errors
    /// As there; of kind `Attestation` when the receipt does not hold. The model is there then.
    pub async fn upload_with_receipt(
        &self,
        upload: Upload,
    ) -> Result<(ModelInfo, Receipt), ClientError> {
        let (mut head, name) = (self.upload_head(&upload), upload.name.clone());
        let nonce = asked(&mut head, &self.shared.dialer)?;
        let (info, (answer, proof)) = self.send_model(upload, &head).await?;
        let expected = ExpectedReceipt {
            kind: Some(receipt::Kind::Upload),
            model_name: Some(&name),
            model_version: Some(&info.version),
            model_digest: Some(info.digest),
            complete: true,
            nonce: Some(&nonce),
            ..ExpectedReceipt::default()
        };
        let receipt = answered(&answer, proof, &expected)?;
        Ok((info, receipt))
    }

    async fn send_model(
        &self,
        upload: Upload,
        head: &Head,
    ) -> Result<(ModelInfo, (Answer, Proof)), ClientError> {
        let (body, reading) = upload.start().await?;
        let answer = self.shared.upload(head, body).await;
        // When the file broke off, that is the reason, and the broken connection its consequence.
        let sent = reading.digest().await?;
        let answered = answer?;
        let info = json(&answered.0)?;
        check_digest(sent, &info)?;
        Ok((check_info(&self.accepted, info)?, answered))
    }

    fn upload_head(&self, upload: &Upload) -> Head {
        let mut head = Head::new(Method::PUT, upload.path());
        head.accept(&self.accepted, &upload.name);
        head
    }

    /// Runs a model: its newest version unless one is named.
    ///
    /// # Errors
    /// Of kind `Server` when the model does not exist, is not one that the policy accepts (it has not
    /// run then), the inputs do not fit it, or it fails on them.
    pub async fn infer(
        &self,
        name: &ModelName,
        version: Option<&ModelVersion>,
        request: &InferRequest,
    ) -> Result<InferResponse, ClientError> {
        let prepared = PreparedRequest::new(name, version, request);
        self.infer_prepared(&prepared).await
    }

    /// [`Client::infer`] with a request that was encoded before, for those who send it many times.
    ///
    /// # Errors
    /// As there.
    pub async fn infer_prepared(
        &self,
        request: &PreparedRequest,
    ) -> Result<InferResponse, ClientError> {
        let (response, ..) = self.send(request).await?;
        Ok(response)
    }

    async fn send(
        &self,
        request: &PreparedRequest,
    ) -> Result<(InferResponse, Answer, Proof), ClientError> {
        let (name, mut head) = (&request.name, Cow::Borrowed(&request.head));
        if !self.accepted.is_empty() {
            head.to_mut().accept(&self.accepted, name);
        }
        let (answer, proof) = self.shared.repeatable(&head, &request.parts).await?;
        let answer = succeeded(answer)?;
        let response = decode(&answer)?;
        let version = response.model_version.as_deref();
        check_answer(&self.accepted, name, version, &answer)?;
        Ok((response, answer, proof))
    }

    /// [`Client::infer`], with a receipt of it, which has been checked against what was sent and what
    /// came.
    ///
    /// # Errors
    /// As there; of kind `Attestation` when the receipt does not hold.
    pub async fn infer_with_receipt(
        &self,
        name: &ModelName,
        version: Option<&ModelVersion>,
        request: &InferRequest,
    ) -> Result<(InferResponse, Receipt), ClientError> {
        let mut prepared = PreparedRequest::new(name, version, request);
        let nonce = asked(&mut prepared.head, &self.shared.dialer)?;
        let (response, answer, proof) = self.send(&prepared).await?;
        let ran: Option<ModelVersion> = response
            .model_version
            .as_deref()
            .and_then(|v| v.parse().ok());
        let expected = ExpectedReceipt {
            kind: Some(receipt::Kind::Infer),
            model_name: Some(name),
            model_version: version.or(ran.as_ref()),
            // Which was compared with what is accepted.
            model_digest: told_digest(&answer),
            inputs: &request.inputs,
            outputs: &response.outputs,
            complete: true,
            nonce: Some(&nonce),
            ..ExpectedReceipt::default()
        };
        let receipt = answered(&answer, proof, &expected)?;
        Ok((response, receipt))
    }

    /// Every model of the server, in every version, whether it is accepted or not:
    /// [`ModelPins::accept_model`] says which.
    ///
    /// # Errors
    /// Of kind `Attestation`, `Connection` or `Server`.
    pub async fn models(&self) -> Result<Vec<ModelInfo>, ClientError> {
        let head = Head::new(Method::GET, api::MODELS.to_owned());
        let list: ModelList = json(&self.shared.repeatable(&head, &[]).await?.0)?;
        Ok(list.models)
    }

    /// One model with its signature: its newest version unless one is named.
    ///
    /// # Errors
    /// Of kind `Server` with [`Code::ModelNotFound`](blindai_core::Code::ModelNotFound) when there
    /// is none, [`Code::ModelNotAccepted`](blindai_core::Code::ModelNotAccepted) when the policy pins
    /// another.
    pub async fn model(
        &self,
        name: &ModelName,
        version: Option<&ModelVersion>,
    ) -> Result<ModelInfo, ClientError> {
        let mut head = Head::new(Method::GET, model_path(api::MODELS, name, version));
        head.accept(&self.accepted, name);
        let info: ModelInfo = json(&self.shared.repeatable(&head, &[]).await?.0)?;
        // By the name that was asked for: the pins of another say nothing of it.
        self.accepted.accept(name, &info.version, &info.digest)?;
        Ok(info)
    }

    /// Deletes one version of a model, or all of them, and says what was deleted. Never repeated
    /// by itself.
    ///
    /// # Errors
    /// Of kind `Server` with [`Code::ModelNotFound`](blindai_core::Code::ModelNotFound) when there
    /// is none.
    pub async fn delete(
        &self,
        name: &ModelName,
        version: Option<&ModelVersion>,
    ) -> Result<Vec<ModelInfo>, ClientError> {
        let head = Head::new(Method::DELETE, model_path(api::MODELS, name, version));
        let deleted: Deleted = json(&self.shared.once(&head).await?.0)?;
        Ok(deleted.deleted)
    }
}

impl Client {
    /// Sends a request that may be sent twice.
    pub(crate) async fn repeatable(
        &self,
        head: &Head,
        parts: &[Bytes],
    ) -> Result<Answer, ClientError> {
        let (answer, _) = self.shared.repeatable(head, parts).await?;
        Ok(answer)
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client({})", self.shared.dialer.address)
    }
}

/// A model's name and the inputs for it, encoded once to be sent any number of times with
/// [`Client::infer_prepared`]. Clones share the bytes.
#[derive(Clone)]
pub struct PreparedRequest {
    name: ModelName,
    head: Head,
    parts: Vec<Bytes>,
}

impl PreparedRequest {
    /// A request to the model's newest version unless one is named.
    pub fn new(name: &ModelName, version: Option<&ModelVersion>, request: &InferRequest) -> Self {
        let path = model_path("/v2/models", name, version) + "/infer";
        let encoded = oip::encode_request(request);
        let mut head = Head::new(Method::POST, path);
        let length = encoded.header_length.map(HeaderValue::from);
        let length = length.map(|length| (HeaderName::from_static(oip::HEADER_LENGTH), length));
        head.headers.extend(length);
        Self {
            name: name.clone(),
            head,
            parts: encoded.parts,
        }
    }

    /// Asks for a receipt, which [`Client::infer_prepared`] does not look at: to measure what it
    /// costs.
    pub fn with_unchecked_receipt(mut self, wish: &ReceiptRequest) -> Self {
        self.head.ask(wish);
        self
    }
}

impl fmt::Debug for PreparedRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes: usize = self.parts.iter().map(Bytes::len).sum();
        write!(f, "PreparedRequest({bytes} bytes)")
    }
}

struct Shared {
    dialer: Dialer,
    /// The newest one. Each channel holds its own besides.
    known: Mutex<Proof>,
    /// After it, new evidence was refused.
    is_refuted: AtomicBool,
    idle: Mutex<Vec<Idle>>,
    request_timeout: Duration,
    max_response_bytes: usize,
    idle_connections: usize,
}

struct Idle {
    channel: Channel,
    since: Instant,
}

impl Shared {
    /// Sends a request that may be sent twice: it changes nothing on the server.
    async fn repeatable(
        &self,
        head: &Head,
        parts: &[Bytes],
    ) -> Result<(Answer, Proof), ClientError> {
        let body = || Outgoing::parts(parts.to_vec());
        self.in_time(async {
            if let Some(channel) = self.idle_channel() {
                match self.exchange(channel, head, body()).await {
                    // The server closed the connection while nobody looked.
                    Err(Broken::BeforeAnswer(_)) => {}
                    done => return Ok(done?),
                }
            }
            let channel = self.new_channel().await?;
            Ok(self.exchange(channel, head, body()).await?)
        })
        .await
    }

    /// Sends a request that must not be sent twice, hence on a new connection: on an old one, a
    /// failure would not tell whether the server has seen it.
    async fn once(&self, head: &Head) -> Result<(Answer, Proof), ClientError> {
        self.in_time(async {
            let channel = self.new_channel().await?;
            Ok(self.exchange(channel, head, Outgoing::empty()).await?)
        })
        .await
    }

    /// Like [`Shared::once`]; a long body may take any time while it makes progress.
    async fn upload(&self, head: &Head, body: Outgoing) -> Result<(Answer, Proof), ClientError> {
        let sent = body.progress();
        let channel = self.new_channel().await?;
        let exchange = self.exchange(channel, head, body);
        Ok(self.while_moving(&sent, exchange).await??)
    }

    async fn exchange(
        &self,
        mut channel: Channel,
        head: &Head,
        body: Outgoing,
    ) -> Result<(Answer, Proof), Broken> {
        let answer = channel
            .exchange(head, body, self.max_response_bytes)
            .await?;
        let proof = channel.proof().clone();
        if answer.reusable {
            self.park(channel);
        }
        Ok((answer, proof))
    }

    /// A connection that waits for work. Those whose report no longer holds are closed.
    fn idle_channel(&self) -> Option<Channel> {
        let now = (self.dialer.clock)();
        let mut idle = lock(&self.idle);
        idle.retain(|idle| idle.since.elapsed() < IDLE_TIME && holds(idle.channel.report(), now));
        Some(idle.pop()?.channel)
    }

    async fn new_channel(&self) -> Result<Channel, ClientError> {
        if self.is_refuted.load(Ordering::Acquire) {
            let channel = self.dialer.attest().await?;
            self.remember(channel.proof());
            return Ok(channel);
        }
        let known = lock(&self.known).clone();
        let before = known.report.clone();
        let channel = self.dialer.open(known).await?;
        // Otherwise an older one could take the place of one that came meanwhile.
        if !Arc::ptr_eq(channel.report(), &before) {
            self.remember(channel.proof());
        }
        Ok(channel)
    }

    /// Evidence was asked for and refused: nothing goes out for what was proved before.
    fn refused(&self, error: &ClientError) {
        if error.kind() == ErrorKind::Attestation {
            self.is_refuted.store(true, Ordering::Release);
            lock(&self.idle).clear();
        }
    }

    fn park(&self, channel: Channel) {
        let since = Instant::now();
        let mut idle = lock(&self.idle);
        if idle.len() < self.idle_connections && !self.is_refuted.load(Ordering::Acquire) {
            idle.push(Idle { channel, since });
        }
    }

    fn remember(&self, proof: &Proof) {
        *lock(&self.known) = proof.clone();
        self.is_refuted.store(false, Ordering::Release);
    }

    async fn in_time<T>(
        &self,
        work: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, ClientError> {
        let limit = self.request_timeout;
        let done = tokio::time::timeout(limit, work).await;
        done.unwrap_or_else(|_| Err(ClientError::request_timeout(limit)))
    }

    async fn while_moving<T>(
        &self,
        sent: &AtomicU64,
        work: impl Future<Output = T>,
    ) -> Result<T, ClientError> {
        let mut work = std::pin::pin!(work);
        loop {
            let before = sent.load(Ordering::Relaxed);
            match tokio::time::timeout(self.request_timeout, &mut work).await {
                Ok(done) => return Ok(done),
                Err(_) if sent.load(Ordering::Relaxed) > before => {}
                Err(_) => return Err(ClientError::request_timeout(self.request_timeout)),
            }
        }
    }
}

pub(crate) fn model_path(root: &str, name: &ModelName, version: Option<&ModelVersion>) -> String {
    match version {
        Some(version) => format!("{root}/{name}/versions/{version}"),
        None => format!("{root}/{name}"),
    }
}

fn decode(answer: &Answer) -> Result<InferResponse, ClientError> {
    let header_length = header_length(answer)?;
    oip::decode_response(answer.body.clone(), header_length)
        .map_err(|error| ClientError::response_invalid(error.fact()))
}

fn succeeded(answer: Answer) -> Result<Answer, ClientError> {
    if answer.status().is_success() {
        return Ok(answer);
    }
    Err(ClientError::refused(answer.status(), &answer.body))
}

fn json<T: DeserializeOwned>(answer: &Answer) -> Result<T, ClientError> {
    if !answer.status().is_success() {
        return Err(ClientError::refused(answer.status(), &answer.body));
    }
    serde_json::from_slice(&answer.body).map_err(ClientError::response_invalid)
}

fn header_length(answer: &Answer) -> Result<Option<usize>, ClientError> {
    let Some(value) = answer.headers().get(oip::HEADER_LENGTH) else {
        return Ok(None);
    };
    let length = value.to_str().ok().and_then(|text| text.parse().ok());
    let invalid = || ClientError::response_invalid(oip::HEADER_LENGTH);
    length.ok_or_else(invalid).map(Some)
}

fn system_time() -> u64 {
    // A clock before 1970 reads as 1970: evidence is then not valid yet, and refused.
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing under these locks can be left half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Servers and the boxes in between drop idle connections, often without a word.
const IDLE_TIME: Duration = Duration::from_secs(60);
