//! Reads the public port, verifying nothing: its certificate is the host's own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use blindai_core::api::ATTESTATION;
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::metrics::Metrics;

/// One look at a server.
pub struct Scrape {
    pub at: Instant,
    pub metrics: Metrics,
    /// What `/v2/health/ready` answers.
    pub ready: bool,
    /// The code of the last look for collateral that failed, from the evidence document.
    pub collateral_problem: Option<String>,
}

/// Looks at one server.
pub struct Scraper {
    address: String,
    name: ServerName<'static>,
    tls: TlsConnector,
}

impl Scraper {
    /// A server's public port, as `host:port`.
    pub fn new(address: &str) -> Result<Self> {
        let (host, port) = address.rsplit_once(':').context("write host:port")?;
        port.parse::<u16>().context("write host:port")?;
        let name = host.trim_matches(['[', ']']).to_owned();
        let name = ServerName::try_from(name).with_context(|| format!("{host:?} is no host"))?;
        Ok(Self {
            address: address.to_owned(),
            name,
            tls: TlsConnector::from(Arc::new(unverified()?)),
        })
    }

    /// Reads what the server says of itself.
    pub async fn look(&self) -> Result<Scrape> {
        let looked = tokio::time::timeout(PATIENCE, self.read()).await;
        let looked = looked.unwrap_or_else(|_| bail!("no answer within {} s", PATIENCE.as_secs()));
        looked.with_context(|| self.address.clone())
    }

    async fn read(&self) -> Result<Scrape> {
        let mut sender = self.connect().await?;
        let (status, metrics) = self.get(&mut sender, "/metrics").await?;
        ensure!(
            status != StatusCode::NOT_FOUND,
            "no metrics · set metrics.enabled = true in the server's configuration"
        );
        ensure!(status == StatusCode::OK, "/metrics: {status}");
        let metrics = Metrics::parse(&String::from_utf8_lossy(&metrics));
        let (ready, _) = self.get(&mut sender, "/v2/health/ready").await?;
        let (_, document) = self.get(&mut sender, ATTESTATION).await?;
        let document: serde_json::Value = serde_json::from_slice(&document).unwrap_or_default();
        let problem = document["collateral_status"]["problem"].as_str();
        Ok(Scrape {
            at: Instant::now(),
            metrics,
            ready: ready == StatusCode::OK,
            collateral_problem: problem.map(str::to_owned),
        })
    }

    async fn connect(&self) -> Result<SendRequest<Empty<Bytes>>> {
        let socket = TcpStream::connect(&self.address).await?;
        let stream = self.tls.connect(self.name.clone(), socket).await?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(sender)
    }

    async fn get(
        &self,
        sender: &mut SendRequest<Empty<Bytes>>,
        path: &str,
    ) -> Result<(StatusCode, Bytes)> {
        let request = Request::get(path).header(header::HOST, &self.address);
        let answer = sender.send_request(request.body(Empty::new())?).await?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES)
            .collect()
            .await;
        let body = body.map_err(|_| anyhow::anyhow!("{path}: no answer of under 16 MiB"))?;
        Ok((status, body.to_bytes()))
    }
}

fn unverified() -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Unverified(provider)))
        .with_no_client_auth();
    Ok(config)
}

/// Takes any certificate. Nothing is sent but the paths above, and what is read is shown as unverified.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        // Unreachable: the configuration offers TLS 1.3 alone.
        Err(rustls::PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

const PATIENCE: Duration = Duration::from_secs(10);
const ANSWER_BYTES: usize = 16 << 20;
