//! Connections to the verified server, for HTTP/1.1 and HTTP/2.
//!
//! A caller's connection of HTTP/2 has one of its own to the server: streams, flow control and their
//! limits then mean the same on both, and a caller that does not read holds up nobody else. Those of
//! HTTP/1.1 share a pool.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use blindai_client::{Connection, Connector, Protocol};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};

use super::refusal::Refusal;

/// Connections for HTTP/1.1 that are used again. Clones share them.
#[derive(Clone)]
pub struct Pool {
    connector: Arc<Connector>,
    idle: Arc<Mutex<Vec<Idle>>>,
}

struct Idle {
    sender: http1::SendRequest<Incoming>,
    since: Instant,
}

impl Pool {
    pub fn new(connector: Arc<Connector>) -> Self {
        let idle = Arc::default();
        Self { connector, idle }
    }

    /// Sends a request, once, and gives the answer as soon as its head is here.
    pub async fn send(
        &self,
        mut request: Request<Incoming>,
    ) -> Result<Response<Incoming>, Refusal> {
        while let Some(mut sender) = self.take() {
            match sender.try_send_request(request).await {
                Ok(response) => return Ok(self.answered(sender, response)),
                Err(mut error) => match error.take_message() {
                    // Closed while nobody looked: not a byte of the request has left.
                    Some(unsent) => request = unsent,
                    None => return Err(Refusal::broken(error.error())),
                },
            }
        }
        let mut sender = Box::pin(self.connect()).await?;
        let response = sender.send_request(request).await;
        let response = response.map_err(|error| Refusal::broken(&error))?;
        Ok(self.answered(sender, response))
    }

    async fn connect(&self) -> Result<http1::SendRequest<Incoming>, Refusal> {
        let connection = open(&self.connector, Protocol::Http1).await?;
        let distrusted = connection.distrusted();
        let spoken = http1::Builder::new().handshake(TokioIo::new(connection));
        let (sender, driver) = spoken.await.map_err(|error| Refusal::broken(&error))?;
        tokio::spawn(until(driver, distrusted));
        Ok(sender)
    }

    /// Keeps the connection when request and answer have gone through, which is still to come.
    fn answered(
        &self,
        mut sender: http1::SendRequest<Incoming>,
        response: Response<Incoming>,
    ) -> Response<Incoming> {
        let pool = self.clone();
        tokio::spawn(async move {
            if sender.ready().await.is_ok() {
                pool.park(sender);
            }
        });
        response
    }

    fn park(&self, sender: http1::SendRequest<Incoming>) {
        let since = Instant::now();
        let mut idle = self.lock();
        idle.retain(|idle| idle.is_usable());
        if idle.len() < IDLE_CONNECTIONS {
            idle.push(Idle { sender, since });
        }
    }

    fn take(&self) -> Option<http1::SendRequest<Incoming>> {
        let mut idle = self.lock();
        idle.retain(|idle| idle.is_usable());
        Some(idle.pop()?.sender)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Idle {
    fn is_usable(&self) -> bool {
        self.sender.is_ready() && self.since.elapsed() < IDLE_TIME
    }
}

/// The connection to the server of one caller's connection of HTTP/2, made when it is needed.
pub struct Link {
    connector: Arc<Connector>,
    sender: tokio::sync::Mutex<Option<http2::SendRequest<Incoming>>>,
}

impl Link {
    pub fn new(connector: Arc<Connector>) -> Self {
        let sender = tokio::sync::Mutex::default();
        Self { connector, sender }
    }

    /// Sends a request, once, and gives the answer as soon as its head is here.
    pub async fn send(&self, request: Request<Incoming>) -> Result<Response<Incoming>, Refusal> {
        let mut sender = self.sender().await?;
        let response = sender.send_request(request).await;
        response.map_err(|error| Refusal::broken(&error))
    }

    async fn sender(&self) -> Result<http2::SendRequest<Incoming>, Refusal> {
        let mut known = self.sender.lock().await;
        if let Some(sender) = known.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(sender.clone());
        }
        let sender = Box::pin(self.connect()).await?;
        Ok(known.insert(sender).clone())
    }

    async fn connect(&self) -> Result<http2::SendRequest<Incoming>, Refusal> {
        let connection = open(&self.connector, Protocol::Http2).await?;
        let distrusted = connection.distrusted();
        let spoken = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEP_ALIVE)
            .handshake(TokioIo::new(connection));
        let (sender, driver) = spoken.await.map_err(|error| Refusal::broken(&error))?;
        tokio::spawn(until(driver, distrusted));
        Ok(sender)
    }
}

async fn open(connector: &Connector, protocol: Protocol) -> Result<Connection, Refusal> {
    let opened = connector.open(protocol).await;
    opened.map_err(|error| Refusal::unreachable(&error))
}

/// Drives a connection until it ends or is trusted no longer. What was on its way then breaks off
/// with an error: an answer that was cut does not look like one that ended.
async fn until(driver: impl Future, distrusted: impl Future) {
    tokio::select! {
        _ = driver => {}
        _ = distrusted => {}
    }
}

/// The server closes connections that were idle for 60 s; a request should not meet that.
const IDLE_TIME: Duration = Duration::from_secs(30);
/// More connections than this are not kept.
const IDLE_CONNECTIONS: usize = 32;
/// How often a connection with calls in progress is asked whether it still is one.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
