//! A running server whose collateral is missing, ends and is replaced, on both ports.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use blindai_core::{
    Collateral, CollateralState, CollateralStatus, EvidenceDocument, Nonce, ReportData, Tee,
};
use blindai_server::{Config, Server};
use blindai_tee::{Attester, Measurement, Simulation, SimulationOptions, TeeError};
use blindai_verify::{Binding, Policy, Rejection, VerifiedReport};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::Request;
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Collateral of the simulation holds for this long.
const VALIDITY: Duration = Duration::from_secs(3600);

/// A platform that signs and, like most hardware, supplies no collateral.
struct Bare(Arc<Simulation>);

impl Attester for Bare {
    fn tee(&self) -> Tee {
        self.0.tee()
    }

    fn quote(&self, report_data: &ReportData) -> Result<Vec<u8>, TeeError> {
        self.0.quote(report_data)
    }

    fn collateral(&self) -> Result<Option<Collateral>, TeeError> {
        Ok(None)
    }

    fn is_simulated(&self) -> bool {
        true
    }

    fn describe(&self) -> String {
        self.0.describe()
    }
}

/// The platform, and a clock by which its collateral is made.
fn platform() -> (Arc<Simulation>, Arc<AtomicU64>) {
    let seconds = Arc::new(AtomicU64::new(now()));
    let clock = seconds.clone();
    let mut options = SimulationOptions::new(Measurement::MrEnclave([1; 32]));
    options.collateral_validity = VALIDITY;
    options.clock =
        Arc::new(move || UNIX_EPOCH + Duration::from_secs(clock.load(Ordering::SeqCst)));
    (Arc::new(Simulation::new(options).unwrap()), seconds)
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    since.as_secs()
}

fn config(folder: &Path, source: &Path) -> Config {
    let library = std::env::var_os("BLINDAI_ONNXRUNTIME").map_or_else(
        || {
            let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
            root.join(".cache/onnxruntime/libonnxruntime.so.1.28.0")
        },
        PathBuf::from,
    );
    // This program cannot become a worker, and loads no model.
    let text = format!(
        "[listen]\nattested = '127.0.0.1:0'\npublic = '127.0.0.1:0'\n[tls]\nfolder = {:?}\n\
         [engine]\nonnxruntime = {library:?}\nisolation = 'process'\n[collateral]\nsource = {source:?}\nrefresh_seconds = 1\n",
        folder.join("tls")
    );
    Config::from_toml(&text).unwrap()
}

async fn get(port: SocketAddr, path: &str) -> Bytes {
    let socket = TcpStream::connect(port).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let stream = TlsConnector::from(Arc::new(tls()));
    let stream = TokioIo::new(stream.connect(name, socket).await.unwrap());
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get(path).header("host", "localhost");
    let request = request.body(Empty::<Bytes>::new()).unwrap();
    let answer = sender.send_request(request).await.unwrap();
    assert_eq!(answer.status(), 200, "{path}");
    answer.into_body().collect().await.unwrap().to_bytes()
}

const NONCE: [u8; 32] = [7; 32];

async fn attestation(port: SocketAddr) -> EvidenceDocument {
    let nonce = hex::encode(NONCE);
    let document = get(port, &format!("/v1/attestation?nonce={nonce}")).await;
    EvidenceDocument::from_json(&document).unwrap()
}

/// The document of the public port, once its collateral stands as `wanted` says.
async fn until(
    port: SocketAddr,
    wanted: impl Fn(&CollateralStatus) -> bool,
) -> (EvidenceDocument, CollateralStatus) {
    let patience = Instant::now() + Duration::from_secs(60);
    loop {
        let document = attestation(port).await;
        let status = document.collateral_status.clone().unwrap();
        if wanted(&status) {
            return (document, status);
        }
        assert!(Instant::now() < patience, "{status:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn verify(document: &EvidenceDocument) -> Result<VerifiedReport, Rejection> {
    let binding = Binding {
        tls_spki_sha256: None,
        nonce: Some(Nonce::from_bytes(NONCE)),
    };
    let collateral = document.collateral.as_ref().unwrap();
    let policy = Policy::dangerous().accept_simulation();
    blindai_verify::verify(&document.evidence(), collateral, &binding, &policy, now())
}

#[tokio::test]
async fn collateral_is_replaced_while_the_server_runs_and_its_state_is_stated() {
    let (platform, clock) = platform();
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("collateral.json");
    let config = config(folder.path(), &source);
    let bring = |at: u64| {
        clock.store(at, Ordering::SeqCst);
        let collateral = platform.collateral().unwrap().unwrap();
        // Whole at every moment, as whoever brings files should do it.
        let part = folder.path().join("part");
        std::fs::write(&part, serde_json::to_vec(&collateral).unwrap()).unwrap();
        std::fs::rename(&part, &source).unwrap();
    };
    let server = Server::start_on(&config, Box::new(Bare(platform.clone())));
    let server = server.await.unwrap();
    let (attested, public) = server.addresses();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(server.run(async move { drop(stopped.await) }));

    let problem = |status: &CollateralStatus, code: &str| status.problem.as_deref() == Some(code);
    let (document, status) = until(public, |status| status.state == CollateralState::None).await;
    assert_eq!(document.collateral, None);
    assert!(problem(&status, "collateral-not-found"), "{status:?}");

    bring(now() - 2 * VALIDITY.as_secs());
    let (document, status) = until(public, |status| status.state == CollateralState::Stale).await;
    assert!(problem(&status, "collateral-stale"), "{status:?}");
    assert!(status.expires_at.unwrap() < now());
    assert_eq!(
        verify(&document).unwrap_err().code().as_str(),
        "crl-expired"
    );
    let health = get(attested, "/v2/health/ready").await;
    assert_eq!(&health[..], br#"{"ready":true,"collateral":"stale"}"#);

    bring(now());
    let (document, status) = until(public, |status| status.state == CollateralState::Fresh).await;
    assert_eq!(status.problem, None);
    assert!(status.fetched_at.unwrap() <= now());
    assert!(verify(&document).unwrap().valid_until() <= status.expires_at.unwrap());
    verify(&attestation(attested).await).unwrap();

    std::fs::remove_file(&source).unwrap();
    let missing = |status: &CollateralStatus| problem(status, "collateral-not-found");
    let (document, status) = until(public, missing).await;
    assert_eq!(status.state, CollateralState::Fresh);
    verify(&document).unwrap();
    let health = get(public, "/v2/health/ready").await;
    assert_eq!(&health[..], br#"{"ready":true,"collateral":"fresh"}"#);

    stop.send(()).unwrap();
    running.await.unwrap().unwrap();
}

/// TLS without a look at the certificate: what proves the server is the evidence.
fn tls() -> ClientConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth()
}

#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        unreachable!("TLS 1.3 only")
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}
