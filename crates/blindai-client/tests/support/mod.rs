//! A small attested server on real sockets, with the faults and attacks that the tests need.
#![allow(dead_code)] // Each test file uses its own part.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use blindai_client::{ConnectOptions, InferRequest, NamedTensor, Policy, Tensor};
use blindai_core::oip::{self, InferResponse, OutputFormat};
use blindai_core::receipt::{Deed, RECEIPT, ReceiptRequest, Statement, TensorDigest};
use blindai_core::{
    Claims, Code, DType, Digest, Error, Evidence, EvidenceDocument, ModelInfo, Nonce, ReportData,
    Signature, api,
};
use blindai_tee::{Attester, Measurement, Simulation, SimulationOptions};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, CustomExtension, Issuer, KeyPair, PublicKeyData as _};
use rustls::HandshakeKind;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, ServerSessionMemoryCache};
use rustls::sign::CertifiedKey;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

pub const MEASUREMENT: [u8; 32] = [0x11; 32];
pub const LIFETIME_SECONDS: u64 = 3600;
pub const CONFIG: Digest = Digest::from_bytes([0x22; 32]);
pub const VERSION: &str = "0.1.0";

/// The time of client and server, moved by the test.
#[derive(Clone)]
pub struct Time(Arc<AtomicU64>);

impl Time {
    pub fn now() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        Self(Arc::new(AtomicU64::new(now.as_secs())))
    }

    pub fn seconds(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    pub fn advance(&self, seconds: u64) {
        self.0.fetch_add(seconds, Ordering::SeqCst);
    }
}

/// A TLS key, and a platform that signs evidence for it.
pub struct Identity {
    pub key: KeyPair,
    pub receipt_key: Ed25519KeyPair,
    pub platform: Simulation,
    pub time: Time,
}

impl Identity {
    pub fn new(measurement: [u8; 32], time: &Time) -> Arc<Self> {
        Self::of(Measurement::MrEnclave(measurement), time)
    }

    pub fn of(measurement: Measurement, time: &Time) -> Arc<Self> {
        let options = SimulationOptions::new(measurement);
        Arc::new(Self {
            key: KeyPair::generate().unwrap(),
            receipt_key: Ed25519KeyPair::generate().unwrap(),
            platform: Simulation::new(options).unwrap(),
            time: time.clone(),
        })
    }

    /// One whose collateral holds for so many seconds, by the clock of the test.
    pub fn with_collateral_for(seconds: u64) -> (Arc<Self>, Time) {
        let time = Time::now();
        let mut options = SimulationOptions::new(Measurement::MrEnclave(MEASUREMENT));
        options.collateral_validity = Duration::from_secs(seconds);
        let clock = time.clone();
        options.clock = Arc::new(move || UNIX_EPOCH + Duration::from_secs(clock.seconds()));
        let identity = Self {
            key: KeyPair::generate().unwrap(),
            receipt_key: Ed25519KeyPair::generate().unwrap(),
            platform: Simulation::new(options).unwrap(),
            time: time.clone(),
        };
        (Arc::new(identity), time)
    }

    pub fn spki_sha256(&self) -> [u8; 32] {
        *Digest::of(&self.key.subject_public_key_info()).as_bytes()
    }

    pub fn evidence(&self, nonce: Option<Nonce>) -> Evidence {
        let now = self.time.seconds();
        let claims = Claims {
            tls_spki_sha256: self.spki_sha256(),
            receipt_key: self.receipt_key.public_key().as_ref().try_into().ok(),
            hpke_key: None,
            config_digest: Some(CONFIG),
            nonce,
            issued_at: Some(now),
            expires_at: Some(now + LIFETIME_SECONDS),
            version: Some(VERSION.to_owned()),
        };
        let claims = claims.encode();
        let quote = self.platform.quote(&ReportData::of_claims(&claims));
        let quote = quote.unwrap();
        Evidence { quote, claims }
    }

    /// A receipt of what `deed` says, as this server would give it.
    pub fn statement(&self, deed: Deed, asked: &str, name: &str, digest: Digest) -> Statement {
        Statement {
            deed,
            model_name: name.parse().unwrap(),
            model_version: "1".parse().unwrap(),
            model_digest: digest,
            nonce: ReceiptRequest::parse(asked).unwrap().nonce,
            issued_at: self.time.seconds(),
            config_digest: CONFIG,
            replica: self.spki_sha256(),
            server_version: VERSION.to_owned(),
        }
    }

    pub fn sign(&self, statement: &Statement) -> Vec<u8> {
        let sign = |bytes: &[u8]| self.receipt_key.sign(bytes).as_ref().to_vec();
        let key = self.receipt_key.public_key();
        statement.sign(key.as_ref(), sign).unwrap()
    }

    pub fn document(&self, nonce: Nonce) -> Vec<u8> {
        let collateral = self.platform.collateral().unwrap();
        let evidence = self.evidence(Some(nonce));
        EvidenceDocument::new(self.platform.tee(), evidence, collateral).to_json()
    }

    pub fn certificate(&self) -> Vec<u8> {
        certificate_with(&self.key, &self.evidence(None))
    }
}

/// A certificate for `key` that carries `evidence`, whoever's that is.
pub fn certificate_with(key: &KeyPair, evidence: &Evidence) -> Vec<u8> {
    let params = carrying(std::slice::from_ref(evidence));
    params.self_signed(key).unwrap().der().to_vec()
}

/// What a certificate says that carries so much evidence.
pub fn carrying(evidence: &[Evidence]) -> CertificateParams {
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    for (oid, value) in evidence.iter().map(Evidence::to_extension) {
        let extension = CustomExtension::from_oid_content(oid, value);
        params.custom_extensions.push(extension);
    }
    params
}

/// A certificate for `key` that carries `evidence` and is signed by a host, not by the key itself.
pub fn certificate_of_a_host(key: &KeyPair, evidence: &Evidence) -> Vec<u8> {
    let host = Issuer::new(CertificateParams::default(), KeyPair::generate().unwrap());
    let params = carrying(std::slice::from_ref(evidence));
    params.signed_by(key, &host).unwrap().der().to_vec()
}

/// TLS as the certificate and the key say, fitting or not.
pub fn tls(
    certificate: Vec<u8>,
    key: &KeyPair,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> rustls::ServerConfig {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let key = provider.key_provider.load_private_key(key).unwrap();
    let certified = CertifiedKey::new(vec![certificate.into()], key);
    let mut config = rustls::ServerConfig::builder_with_provider(provider.into())
        .with_protocol_versions(versions)
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Fixed(certified.into())));
    // As tempting as a server can be for a client that would resume.
    config.session_storage = ServerSessionMemoryCache::new(64);
    config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().unwrap();
    config.send_tls13_tickets = 4;
    config
}

#[derive(Debug)]
struct Fixed(Arc<CertifiedKey>);

impl ResolvesServerCert for Fixed {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

type Receipts = Box<dyn Fn(Deed, &str, &str, Digest) -> Vec<u8> + Send + Sync>;
type Attest = Box<dyn Fn(Nonce) -> Vec<u8> + Send + Sync>;

/// A running server; what it saw, and what it shall do.
pub struct Server {
    pub address: String,
    tls: Mutex<Arc<rustls::ServerConfig>>,
    attest: Mutex<Attest>,
    /// `GET /v1/models` and so on, in order of arrival.
    pub requests: Mutex<Vec<String>>,
    /// Of each request, the header `Authorization`.
    pub authorizations: Mutex<Vec<Option<String>>>,
    pub handshakes: Mutex<Vec<HandshakeKind>>,
    /// Answers an upload before it was read, and closes.
    pub refuse_uploads: AtomicBool,
    /// Refused uploads are read to their end.
    pub read_on: AtomicBool,
    /// Closes each connection when it gets its next request, without an answer.
    pub hang_up: AtomicBool,
    /// Says another digest than that of what came.
    pub lie_about_digest: AtomicBool,
    /// Errors to answer with instead of an inference.
    pub errors: Mutex<VecDeque<Error>>,
    /// Makes receipts of a deed, what was asked, a model's name and its digest. Without it there are
    /// none.
    pub receipts: Mutex<Option<Receipts>>,
}

impl Server {
    pub async fn honest(identity: &Arc<Identity>) -> Arc<Self> {
        let tls = tls(identity.certificate(), &identity.key, TLS13);
        let identity = identity.clone();
        Self::start(tls, move |nonce| identity.document(nonce)).await
    }

    pub async fn start(
        tls: rustls::ServerConfig,
        attest: impl Fn(Nonce) -> Vec<u8> + Send + Sync + 'static,
    ) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Arc::new(Self {
            address: listener.local_addr().unwrap().to_string(),
            tls: Mutex::new(tls.into()),
            attest: Mutex::new(Box::new(attest)),
            requests: Mutex::default(),
            authorizations: Mutex::default(),
            handshakes: Mutex::default(),
            refuse_uploads: AtomicBool::new(false),
            read_on: AtomicBool::new(false),
            hang_up: AtomicBool::new(false),
            lie_about_digest: AtomicBool::new(false),
            errors: Mutex::default(),
            receipts: Mutex::default(),
        });
        tokio::spawn(server.clone().accept(listener));
        server
    }

    /// Another server takes this one's place, as after a restart.
    pub fn become_identity(&self, identity: &Arc<Identity>) {
        let config = tls(identity.certificate(), &identity.key, TLS13);
        *self.tls.lock().unwrap() = config.into();
        let identity = identity.clone();
        *self.attest.lock().unwrap() = Box::new(move |nonce| identity.document(nonce));
        self.hang_up.store(true, Ordering::SeqCst);
    }

    pub fn attest_with(&self, attest: impl Fn(Nonce) -> Vec<u8> + Send + Sync + 'static) {
        *self.attest.lock().unwrap() = Box::new(attest);
    }

    /// The requests other than for evidence: those that may carry user data.
    pub fn user_requests(&self) -> Vec<String> {
        let requests = self.requests.lock().unwrap();
        let user = requests.iter().filter(|r| !r.contains(api::ATTESTATION));
        user.cloned().collect()
    }

    pub fn attestations(&self) -> usize {
        let all = self.requests.lock().unwrap().len();
        all - self.user_requests().len()
    }

    async fn accept(self: Arc<Self>, listener: TcpListener) {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            tokio::spawn(self.clone().serve(socket));
        }
    }

    async fn serve(self: Arc<Self>, socket: TcpStream) {
        socket.set_nodelay(true).unwrap();
        let acceptor = TlsAcceptor::from(self.tls.lock().unwrap().clone());
        let Ok(stream) = acceptor.accept(socket).await else {
            return;
        };
        let kind = stream.get_ref().1.handshake_kind().unwrap();
        self.handshakes.lock().unwrap().push(kind);
        // A connection that is new after a restart serves.
        self.hang_up.store(false, Ordering::SeqCst);
        let service = service_fn(|request| self.clone().answer(request));
        let serving = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        let _ = serving.await;
    }

    async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, Gone> {
        if self.hang_up.load(Ordering::SeqCst) {
            return Err(Gone);
        }
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let line = format!("{method} {path}");
        self.requests.lock().unwrap().push(line);
        let sent = request.headers().get(http::header::AUTHORIZATION);
        let sent = sent.map(|value| value.to_str().unwrap().to_owned());
        self.authorizations.lock().unwrap().push(sent);
        if path == api::ATTESTATION {
            let nonce = request.uri().query().unwrap().strip_prefix("nonce=");
            let nonce = Nonce::from_hex(nonce.unwrap()).unwrap();
            let document = (self.attest.lock().unwrap())(nonce);
            return Ok(ok(document));
        }
        Ok(match method {
            Method::PUT if self.refuse_uploads.load(Ordering::SeqCst) => {
                let error = Error::new(Code::ModelTooLarge, "over 1000 bytes");
                let mut response = refuse(&error, StatusCode::PAYLOAD_TOO_LARGE);
                let close = http::HeaderValue::from_static("close");
                response
                    .headers_mut()
                    .insert(http::header::CONNECTION, close);
                if self.read_on.load(Ordering::SeqCst) {
                    tokio::spawn(request.into_body().collect());
                }
                response
            }
            Method::PUT => self.store(request).await,
            Method::POST => self.infer(request).await,
            Method::DELETE => ok(br#"{"deleted":[]}"#.to_vec()),
            _ if path == api::MODELS => ok(br#"{"models":[]}"#.to_vec()),
            _ if path == "/v2/health/ready" => ok(Vec::new()),
            _ => refuse(
                &Error::new(Code::ModelNotFound, "no such model"),
                StatusCode::NOT_FOUND,
            ),
        })
    }

    /// Puts a receipt to an answer, when one was asked for and can be made.
    fn add_receipt(
        &self,
        response: &mut Response<Full<Bytes>>,
        asked: Option<&http::HeaderValue>,
        (deed, name, digest): (Deed, &str, Digest),
    ) {
        let receipts = self.receipts.lock().unwrap();
        if let (Some(make), Some(asked)) = (&*receipts, asked) {
            let receipt = make(deed, asked.to_str().unwrap(), name, digest);
            let text = BASE64_STANDARD.encode(receipt);
            response
                .headers_mut()
                .insert(RECEIPT, text.try_into().unwrap());
        }
    }

    async fn store(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let asked = request.headers().get(RECEIPT).cloned();
        let path = request.uri().path().to_owned();
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let lie = self.lie_about_digest.load(Ordering::SeqCst);
        let digest = Digest::of(if lie { b"another model" } else { &body });
        let name = path.split('/').nth(3).unwrap();
        let info = ModelInfo {
            name: name.parse().unwrap(),
            version: "1".parse().unwrap(),
            digest,
            size_bytes: body.len() as u64,
            signature: Signature::default(),
            engine: blindai_core::EngineKind::OnnxRuntime,
            uploaded_at: 0,
            loaded: true,
            metrics_slot: None,
            kept: None,
        };
        let mut response = ok(serde_json::to_vec(&info).unwrap());
        self.add_receipt(&mut response, asked.as_ref(), (Deed::Upload, name, digest));
        response
    }

    /// Every input comes back as an output of its name.
    async fn infer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let asked = request.headers().get(RECEIPT).cloned();
        let name = request.uri().path().split('/').nth(3).unwrap().to_owned();
        let length = request.headers().get(oip::HEADER_LENGTH);
        let length = length.map(|value| value.to_str().unwrap().parse().unwrap());
        let body = request.into_body().collect().await.unwrap().to_bytes();
        if let Some(error) = self.errors.lock().unwrap().pop_front() {
            return refuse(&error, StatusCode::BAD_REQUEST);
        }
        let request = oip::decode_request(body, length, &mut |_| Ok(())).unwrap();
        let digests = TensorDigest::of_all(&request.inputs);
        let deed = Deed::Infer {
            inputs: digests.clone(),
            outputs: digests,
        };
        let response = InferResponse {
            id: request.id,
            model_name: "echo".to_owned(),
            model_version: Some("1".to_owned()),
            outputs: request.inputs,
            receipt: None,
        };
        let encoded =
            oip::encode_response(&response, |_| OutputFormat::Binary, &mut |_| Ok(())).unwrap();
        let length = encoded.header_length.unwrap();
        let mut response = ok(encoded.parts.concat());
        response
            .headers_mut()
            .insert(oip::HEADER_LENGTH, length.into());
        let model = Digest::of(b"model");
        self.add_receipt(&mut response, asked.as_ref(), (deed, &name, model));
        response
    }
}

/// Ends a connection without an answer.
#[derive(Debug)]
pub struct Gone;

impl std::fmt::Display for Gone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("gone")
    }
}

impl std::error::Error for Gone {}

impl From<Infallible> for Gone {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

fn ok(body: Vec<u8>) -> Response<Full<Bytes>> {
    Response::new(Full::new(body.into()))
}

fn refuse(error: &Error, status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = ok(serde_json::to_vec(&error.to_body(Some("r1"))).unwrap());
    *response.status_mut() = status;
    response
}

pub const TLS13: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];

/// Accepts the simulation, and within it only [`MEASUREMENT`].
pub fn pinned_policy() -> Policy {
    production_policy().dangerous_accept_simulation()
}

pub fn production_policy() -> Policy {
    let measurement = "11".repeat(32);
    let text = format!("tee = [\"sgx\"]\n[sgx]\nmrenclave = [\"{measurement}\"]\n");
    Policy::from_toml(&text).unwrap()
}

pub fn options(time: &Time) -> ConnectOptions {
    let time = time.clone();
    ConnectOptions::new(pinned_policy())
        .clock(move || time.seconds())
        .request_timeout(Duration::from_secs(20))
}

pub fn request(bytes: Vec<u8>) -> InferRequest {
    let tensor = Tensor::new(DType::U8, vec![bytes.len()], bytes.into()).unwrap();
    InferRequest::new(vec![NamedTensor::new("x", tensor)])
}
