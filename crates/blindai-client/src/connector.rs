//! Connections for programs that bring their own protocol, a proxy for one.
//!
//! One report at a time is trusted: the newest. A connection is handed out when that report names
//! the TLS key at its other end, and it carries bytes for as long as this stays so: with another
//! key, a report that has ended or a verification that failed, reading and writing are refused, on
//! connections that are open, too.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use blindai_verify::VerifiedReport;
use http::HeaderValue;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{Mutex, watch};
use tokio_rustls::client::TlsStream;

use crate::accepted::header;
use crate::http1::AnswerOutlivesReset;
use crate::trust::{Clock, Dialer, Protocol, Unproven, covers, holds};
use crate::{ClientError, ConnectOptions};

/// What is known of a server.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    report: Option<Arc<VerifiedReport>>,
    failure: Option<Failure>,
}

/// A verification that failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// When, in seconds since 1970.
    pub at: u64,
    /// Why.
    pub error: ClientError,
}

impl Trust {
    /// What the server proved, when its last verification succeeded. It may have ended since.
    pub fn report(&self) -> Option<&Arc<VerifiedReport>> {
        self.report.as_ref()
    }

    /// The last verification that failed; later ones may have succeeded.
    pub fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref()
    }

    fn covers(&self, tls_spki_sha256: &[u8; 32], now: u64) -> bool {
        let report = self.report.as_ref();
        report.is_some_and(|report| covers(report, tls_spki_sha256, now))
    }

    fn refusal(&self) -> ClientError {
        let failure = self.failure.as_ref();
        failure.map_or_else(ClientError::not_verified, |failure| failure.error.clone())
    }
}

/// Makes connections to one server, to none before [`Connector::attest`] has succeeded, and to none
/// after it has failed.
pub struct Connector {
    dialer: Dialer,
    trust: watch::Sender<Trust>,
    /// Those who meet a new key at the same time wait for one verification.
    attesting: Mutex<()>,
}

impl Connector {
    /// Nothing is sent yet. Addresses are those of [`Client::connect`](crate::Client::connect).
    ///
    /// # Errors
    /// Of kind `Local` for an address that is none.
    pub fn new(address: &str, options: ConnectOptions) -> Result<Self, ClientError> {
        Ok(Self {
            dialer: options.dialer(address)?,
            trust: watch::Sender::default(),
            attesting: Mutex::default(),
        })
    }

    /// The server's address, as `host:port`.
    pub fn address(&self) -> String {
        self.dialer.address.to_string()
    }

    /// Which models the policy accepts, as the header [`MODELS`](blindai_core::pins::MODELS) of
    /// requests: without it, whoever speaks over these connections gets any.
    pub fn models(&self) -> Option<HeaderValue> {
        let models = self.dialer.policy.models();
        (!models.is_empty()).then(|| header(models))
    }

    /// What is known of the server, and each change of it.
    pub fn trust(&self) -> watch::Receiver<Trust> {
        self.trust.subscribe()
    }

    /// What the server proved, when that still holds.
    ///
    /// # Errors
    /// The one of the last verification when that failed; of kind `Attestation` with the code
    /// `not-verified` when there was none, `report-expired` when its report has ended.
    pub fn report(&self) -> Result<Arc<VerifiedReport>, ClientError> {
        let trust = self.trust.borrow();
        match trust.report() {
            Some(report) if holds(report, (self.dialer.clock)()) => Ok(report.clone()),
            Some(_) => Err(ClientError::report_expired()),
            None => Err(trust.refusal()),
        }
    }

    /// Verifies the server anew. When this fails, every connection to it is closed.
    ///
    /// # Errors
    /// As for [`Client::connect`](crate::Client::connect).
    pub async fn attest(&self) -> Result<Arc<VerifiedReport>, ClientError> {
        let _one_at_a_time = self.attesting.lock().await;
        self.verify().await
    }

    /// A connection to the server that was verified. When it shows another key, as after a restart,
    /// it is verified anew.
    ///
    /// # Errors
    /// Those of [`Connector::report`], before anybody is called; of kind `Attestation` when a new
    /// key is not proved, `Connection` when the server cannot be reached.
    pub async fn open(&self, protocol: Protocol) -> Result<Connection, ClientError> {
        self.report()?;
        let unproven = self.dialer.reach(protocol).await?;
        if !self.covers(&unproven) {
            self.attest_for(&unproven).await?;
        }
        match self.covers(&unproven) {
            true => Ok(self.connection(unproven)),
            false => Err(ClientError::key_unknown()),
        }
    }

    async fn attest_for(&self, unproven: &Unproven) -> Result<(), ClientError> {
        let _one_at_a_time = self.attesting.lock().await;
        let known = self.trust.borrow().clone();
        match known.report() {
            // Another request has met the same key, and had it verified.
            Some(_) if self.covers(unproven) => Ok(()),
            Some(_) => self.verify().await.map(|_| ()),
            // Refused while this one waited: when to try again, the owner decides.
            None => Err(known.refusal()),
        }
    }

    async fn verify(&self) -> Result<Arc<VerifiedReport>, ClientError> {
        match self.dialer.attest().await {
            Ok(channel) => {
                let report = channel.report().clone();
                self.trust
                    .send_modify(|trust| trust.report = Some(report.clone()));
                Ok(report)
            }
            Err(error) => {
                let failure = Failure {
                    at: (self.dialer.clock)(),
                    error: error.clone(),
                };
                self.trust.send_replace(Trust {
                    report: None,
                    failure: Some(failure),
                });
                Err(error)
            }
        }
    }

    fn covers(&self, unproven: &Unproven) -> bool {
        let now = (self.dialer.clock)();
        self.trust.borrow().covers(&unproven.tls_spki_sha256(), now)
    }

    fn connection(&self, proven: Unproven) -> Connection {
        let trusted = Trusted {
            tls_spki_sha256: proven.tls_spki_sha256(),
            trust: self.trust.subscribe(),
            clock: self.dialer.clock.clone(),
        };
        Connection {
            end: Some(Box::pin(trusted.clone().distrusted())),
            stream: proven.stream,
            trusted,
        }
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Connector({})", self.dialer.address)
    }
}

/// A connection that ends inside the TEE of a [`Connector`]'s newest report.
///
/// Reading and writing fail with [`io::ErrorKind::PermissionDenied`] as soon as that report has
/// ended, or is replaced by one that does not name this connection's TLS key. Whoever waits for
/// something to read is woken when it is replaced, and a connection that failed so does not come back.
pub struct Connection {
    stream: TlsStream<AnswerOutlivesReset>,
    trusted: Trusted,
    /// Completes when trust ends; none after that.
    end: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Connection {
    /// Completes when the newest report does not name this connection's key any longer: whoever
    /// drives the connection has to drop it then, for it may wait for something else than to read. A
    /// report that ends by itself completes nothing; it ends with the next byte.
    pub fn distrusted(&self) -> impl Future<Output = ()> + Send + 'static {
        self.trusted.clone().distrusted()
    }

    fn check(&mut self) -> io::Result<()> {
        if self.end.is_some() && self.trusted.holds() {
            return Ok(());
        }
        self.end = None;
        let error = ClientError::key_unknown();
        Err(io::Error::new(io::ErrorKind::PermissionDenied, error))
    }

    fn check_and_wake(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let end = self.end.as_mut();
        if end.is_some_and(|end| end.as_mut().poll(context).is_ready()) {
            self.end = None;
        }
        self.check()
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connection(..)")
    }
}

#[derive(Clone)]
struct Trusted {
    tls_spki_sha256: [u8; 32],
    trust: watch::Receiver<Trust>,
    clock: Clock,
}

impl Trusted {
    fn holds(&self) -> bool {
        let now = (self.clock)();
        self.trust.borrow().covers(&self.tls_spki_sha256, now)
    }

    async fn distrusted(mut self) {
        while self.holds() {
            if self.trust.changed().await.is_err() {
                // The connector is gone, and with it whoever would verify anew.
                return;
            }
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check_and_wake(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
