//! How a connection becomes trusted.
//!
//! 1. TCP, then TLS 1.3 without resumption. The verifier in the handshake reads the evidence from
//!    the certificate, checks that the claims name the certificate's key and that the quote names
//!    the claims, and that the peer holds that key. That is all it checks: whose quote it is and
//!    what it says is not known yet. The result is an [`Unproven`] connection.
//! 2. On it, before any byte of the user: a nonce goes out, evidence with that nonce comes back,
//!    collateral is taken from it or fetched,
//!    and `blindai_verify::verify` appraises it for *this* TLS key and *this* nonce. The result is
//!    a [`Channel`] with its [`VerifiedReport`]. Nothing else makes one.
//! 3. A later connection needs no step 2 when its TLS key is the one in a report that still holds:
//!    the key never leaves the TEE. With another key, or an expired report, step 2 is done again.
//!
//! Programs that bring their own protocol get a [`Connection`](crate::Connection) instead of a
//! [`Channel`]; only step 3 makes one, in `connector.rs`.
//!
//! A resumed TLS session would skip the verifier of step 1, hence none is ever stored.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use blindai_collateral::{CollateralErrorKind, Fetcher};
use blindai_core::{Collateral, EvidenceDocument, Nonce, Seen, api};
use blindai_verify::{Binding, CertificateEvidence, Policy, Rejection, VerifiedReport};
use http::{HeaderValue, Method, StatusCode};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, OtherError, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::ClientError;
use crate::address::Address;
use crate::credentials::{ClientCertificate, Credentials};
use crate::http1::{Answer, AnswerOutlivesReset, Broken, Head, Outgoing, Wire};

/// Makes trusted connections to one server.
pub(crate) struct Dialer {
    pub address: Address,
    pub policy: Policy,
    pub collateral: CollateralFrom,
    pub connect_timeout: Duration,
    pub clock: Clock,
    tls: TlsConnector,
    /// Only a [`Channel`] sends it.
    authorization: Option<HeaderValue>,
    random: &'static dyn rustls::crypto::SecureRandom,
}

/// Where the collateral comes from that evidence is verified with.
#[derive(Clone)]
pub(crate) enum CollateralFrom {
    Server,
    Fetched(Fetcher),
    FetchedOrServer(Fetcher),
}

impl CollateralFrom {
    /// Puts the collateral to verify with into the document, instead of what was stapled to it.
    async fn complete(&self, document: &mut EvidenceDocument) -> Result<(), ClientError> {
        let fetcher = match self {
            Self::Server => return Ok(()),
            Self::Fetched(fetcher) | Self::FetchedOrServer(fetcher) => fetcher,
        };
        let quote = document.evidence().quote;
        match (
            fetcher.fetch(&quote, document.collateral.as_ref()).await,
            self,
        ) {
            (Ok(fetched), _) => {
                document.collateral = Some(fetched.collateral);
                // It spoke of the other.
                document.collateral_status = None;
                Ok(())
            }
            (Err(error), Self::FetchedOrServer(_))
                if document.collateral.is_some() && is_absent(error.kind()) =>
            {
                // The platform that was asked for is the one whose certificates stand in the quote, where
                // no signature covers them. Others beside it could make a source know nothing of a
                // machine that it would call revoked.
                if let Some(Collateral::Dcap(stapled)) = &mut document.collateral {
                    stapled.pck_certificate_chain = None;
                }
                Ok(())
            }
            (Err(error), _) => Err(error.into()),
        }
    }
}

/// Whether a source gives nothing. Any other error may be the server's doing: evidence that names no
/// platform would make every client that brings its own collateral take the server's.
fn is_absent(error: CollateralErrorKind) -> bool {
    use CollateralErrorKind::{NotFound, Refused, Unreachable};
    matches!(error, NotFound | Refused | Unreachable)
}

/// Gives the time in seconds since 1970.
pub(crate) type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// A connection that ends inside a TEE which the policy accepts: user data may go here.
pub(crate) struct Channel {
    wire: Wire,
    authorization: Option<HeaderValue>,
    proof: Proof,
}

/// A report, and the evidence that it is about.
#[derive(Clone)]
pub(crate) struct Proof {
    pub report: Arc<VerifiedReport>,
    pub evidence: Arc<EvidenceDocument>,
}

impl Channel {
    /// What the server proved for this connection.
    pub fn proof(&self) -> &Proof {
        &self.proof
    }

    /// The report of it.
    pub fn report(&self) -> &Arc<VerifiedReport> {
        &self.proof.report
    }

    /// Sends a request and collects its answer, of at most `limit` bytes.
    pub async fn exchange(
        &mut self,
        head: &Head,
        body: Outgoing,
        limit: usize,
    ) -> Result<Answer, Broken> {
        let authorization = self.authorization.as_ref();
        self.wire.exchange(head, authorization, body, limit).await
    }
}

/// Whether what was proved still holds. Asked before each request.
pub(crate) fn holds(report: &VerifiedReport, now: u64) -> bool {
    now < report.valid_until()
}

/// Whether a report that still holds was made for this TLS key: its claims name the key.
pub(crate) fn covers(report: &VerifiedReport, tls_spki_sha256: &[u8; 32], now: u64) -> bool {
    report.claims().tls_spki_sha256 == *tls_spki_sha256 && holds(report, now)
}

/// What is spoken on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http1 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
        })
    }
}

impl Protocol {
    fn alpn(self) -> &'static [u8] {
        match self {
            Self::Http1 => b"http/1.1",
            Self::Http2 => b"h2",
        }
    }

    /// A server that names nothing speaks HTTP/1.1.
    fn check(self, chosen: Option<&[u8]>) -> Result<(), ClientError> {
        match chosen.unwrap_or(b"http/1.1") == self.alpn() {
            true => Ok(()),
            false => Err(ClientError::protocol_refused(self)),
        }
    }
}

impl Dialer {
    pub fn new(
        address: Address,
        policy: Policy,
        collateral: CollateralFrom,
        connect_timeout: Duration,
        clock: Clock,
        credentials: Credentials,
    ) -> Self {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let random = provider.secure_random;
        Self {
            address,
            policy,
            collateral,
            connect_timeout,
            clock,
            tls: TlsConnector::from(Arc::new(tls_config(provider, credentials.certificate))),
            authorization: credentials.authorization,
            random,
        }
    }

    /// A new connection with fresh evidence: steps 1 and 2.
    ///
    /// # Errors
    /// Of kind `Attestation` when the server does not prove itself, `Connection` when it cannot be
    /// reached within the connect timeout.
    pub async fn attest(&self) -> Result<Channel, ClientError> {
        let dialed = async { self.dial(Protocol::Http1).await?.prove(self).await };
        self.in_time(Box::pin(dialed)).await
    }

    /// A new connection, with fresh evidence only when `known` does not cover it: step 3.
    ///
    /// # Errors
    /// As for [`Dialer::attest`].
    pub async fn open(&self, known: Proof) -> Result<Channel, ClientError> {
        let dialed = async {
            let connection = self.dial(Protocol::Http1).await?;
            if connection.is_covered_by(&known.report, (self.clock)()) {
                let wire = connection.wire(self).await?;
                return Ok(self.channel(wire, known));
            }
            connection.prove(self).await
        };
        // Boxed here and above: every request could need a new connection, and carried room for
        // this one, 18 KB that were moved several times, where few do.
        self.in_time(Box::pin(dialed)).await
    }

    fn channel(&self, wire: Wire, proof: Proof) -> Channel {
        let authorization = self.authorization.clone();
        Channel {
            wire,
            authorization,
            proof,
        }
    }

    /// A connection to a server that nobody has appraised: step 1 alone.
    ///
    /// # Errors
    /// As for [`Dialer::attest`].
    pub async fn reach(&self, protocol: Protocol) -> Result<Unproven, ClientError> {
        self.in_time(Box::pin(self.dial(protocol))).await
    }

    /// Step 1.
    async fn dial(&self, protocol: Protocol) -> Result<Unproven, ClientError> {
        let refused = |error| ClientError::connect_failed(&self.address, &error);
        let socket = TcpStream::connect(self.address.target()).await;
        let socket = socket.map_err(refused)?;
        // Requests are written whole: waiting for more to send only adds latency.
        socket.set_nodelay(true).map_err(refused)?;
        let socket = AnswerOutlivesReset::new(socket);
        let tls = self.tls.with_alpn(vec![protocol.alpn().to_vec()]);
        let stream = tls.connect(self.address.server_name(), socket).await;
        let stream = stream.map_err(handshake_error)?;
        protocol.check(stream.get_ref().1.alpn_protocol())?;
        let certificate = peer_evidence(&stream)?;
        Ok(Unproven {
            stream,
            certificate,
        })
    }

    async fn in_time<T>(
        &self,
        work: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, ClientError> {
        let done = tokio::time::timeout(self.connect_timeout, work).await;
        done.unwrap_or_else(|_| {
            let limit = self.connect_timeout;
            Err(ClientError::connect_timeout(&self.address, limit))
        })
    }

    /// 32 bytes that nobody can foresee.
    ///
    /// # Errors
    /// When the system gives none.
    pub fn nonce(&self) -> Result<Nonce, ClientError> {
        let mut bytes = [0; 32];
        let filled = self.random.fill(&mut bytes);
        filled.map_err(|_| ClientError::no_randomness())?;
        Ok(Nonce::from_bytes(bytes))
    }
}

/// A TLS connection to a peer that has shown evidence which nobody has appraised.
pub(crate) struct Unproven {
    pub stream: TlsStream<AnswerOutlivesReset>,
    certificate: CertificateEvidence,
}

impl Unproven {
    /// The TLS key at the other end.
    pub fn tls_spki_sha256(&self) -> [u8; 32] {
        self.certificate.tls_spki_sha256()
    }

    /// Step 3.
    fn is_covered_by(&self, report: &VerifiedReport, now: u64) -> bool {
        covers(report, &self.tls_spki_sha256(), now)
    }

    /// Step 2.
    async fn prove(self, dialer: &Dialer) -> Result<Channel, ClientError> {
        let nonce = dialer.nonce()?;
        let tls_spki_sha256 = self.tls_spki_sha256();
        let mut wire = self.wire(dialer).await?;
        let mut document = fetch(&mut wire, &nonce).await?;
        dialer.collateral.complete(&mut document).await?;
        let now = (dialer.clock)();
        document.seen = Some(Seen {
            at: now,
            nonce: *nonce.as_bytes(),
            tls_spki_sha256,
        });
        let binding = Binding {
            tls_spki_sha256: Some(tls_spki_sha256),
            nonce: Some(nonce),
        };
        let collateral = document.collateral.as_ref();
        let collateral = collateral.ok_or_else(ClientError::collateral_missing)?;
        let evidence = document.evidence();
        match blindai_verify::verify(&evidence, collateral, &binding, &dialer.policy, now) {
            Ok(report) => {
                let (report, evidence) = (Arc::new(report), Arc::new(document));
                Ok(dialer.channel(wire, Proof { report, evidence }))
            }
            Err(rejection) => Err(ClientError::rejected(rejection, document)),
        }
    }

    async fn wire(self, dialer: &Dialer) -> Result<Wire, ClientError> {
        let host = HeaderValue::try_from(dialer.address.to_string());
        let host = host.map_err(ClientError::response_invalid)?;
        Wire::new(self.stream, host).await
    }
}

async fn fetch(wire: &mut Wire, nonce: &Nonce) -> Result<EvidenceDocument, ClientError> {
    let path = format!("{}?nonce={}", api::ATTESTATION, nonce.to_hex());
    let head = Head::new(Method::GET, path);
    let answer = wire.exchange(&head, None, Outgoing::empty(), DOCUMENT_BYTES);
    let answer = answer.await?;
    if answer.status() != StatusCode::OK {
        return Err(ClientError::evidence_unavailable(answer.status()));
    }
    EvidenceDocument::from_json(&answer.body).map_err(|e| ClientError::evidence_malformed(&e))
}

fn tls_config(provider: CryptoProvider, certificate: Option<ClientCertificate>) -> ClientConfig {
    let verifier = EvidenceInCertificate(provider.clone());
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has cipher suites of TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    if let Some(certificate) = certificate {
        config.client_auth_cert_resolver = certificate.resolver();
    }
    config.resumption = Resumption::disabled();
    config
}

/// The verifier in the handshake: evidence and key belong together, and the peer holds the key.
///
/// Names, issuers and dates of the certificate say nothing here: the server issued it to itself.
#[derive(Debug)]
struct EvidenceInCertificate(CryptoProvider);

impl ServerCertVerifier for EvidenceInCertificate {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        read_bound(certificate).map_err(|rejection| {
            let carried = OtherError(Arc::new(Refused(rejection)));
            rustls::Error::InvalidCertificate(CertificateError::Other(carried))
        })?;
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
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Carries a rejection out of the handshake.
#[derive(Debug)]
struct Refused(Rejection);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Refused {}

fn read_bound(certificate: &CertificateDer<'_>) -> Result<CertificateEvidence, Rejection> {
    let evidence = blindai_verify::read_certificate(certificate)?;
    evidence.check_binding()?;
    Ok(evidence)
}

fn peer_evidence<S>(stream: &TlsStream<S>) -> Result<CertificateEvidence, ClientError> {
    let certificates = stream.get_ref().1.peer_certificates();
    let first = certificates.and_then(<[_]>::first);
    let first = first.ok_or_else(ClientError::certificate_missing)?;
    Ok(read_bound(first)?)
}

fn handshake_error(error: std::io::Error) -> ClientError {
    use rustls::CertificateError::{BadSignature, Other};
    use rustls::Error::InvalidCertificate;
    let inner = error.get_ref().and_then(|e| e.downcast_ref());
    match inner {
        Some(InvalidCertificate(Other(OtherError(carried)))) => match carried.downcast_ref() {
            Some(Refused(rejection)) => rejection.clone().into(),
            None => ClientError::tls_failed(&error),
        },
        Some(InvalidCertificate(BadSignature)) => ClientError::key_not_held(),
        _ => ClientError::tls_failed(&error),
    }
}

/// The longest evidence document that is read, in bytes. Real ones are under 64 KiB.
const DOCUMENT_BYTES: usize = 1024 * 1024;
