//! Connections: accept, handshake, serve, drain. What is served comes as a router.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response};
use blindai_engine::Caller;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use tokio::io::BufReader;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::telemetry::{Metered, PortCounters, Watched, watch};

/// How long a stranger may take for the TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a connection may stay without a request, and a request head take.
const IDLE: Duration = Duration::from_secs(60);
/// How often connections are looked at.
const LOOK: Duration = Duration::from_secs(5);
/// Bytes read from a connection at a time.
const READ_BYTES: usize = 32 * 1024;
/// Requests that one HTTP/2 connection may have open.
const STREAMS: u32 = 64;
/// Bytes of an HTTP/2 request head.
const HEAD_BYTES: u32 = 32 * 1024;

/// One port.
pub struct Port {
    pub listener: TcpListener,
    pub tls: Arc<ServerConfig>,
    pub router: Router,
    /// Connections at one time; further ones wait in the kernel.
    pub connections: usize,
    /// How long a peer may take to read an answer.
    pub patience: Duration,
    pub counters: Arc<PortCounters>,
}

impl Port {
    /// Serves until `stop` turns true, then lets requests in progress end for as long as `drain`.
    pub async fn serve(self, mut stop: watch::Receiver<bool>, drain: Duration) {
        let acceptor = TlsAcceptor::from(self.tls);
        let slots = Arc::new(Semaphore::new(self.connections));
        let graceful = GracefulShutdown::new();
        // Dropped at the end, which ends whatever did not end by itself.
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = accept(&self.listener, &slots) => accepted,
                _ = stop.wait_for(|stop| *stop) => break,
            };
            if let Some((stream, permit)) = accepted {
                let (acceptor, router) = (acceptor.clone(), self.router.clone());
                // Small answers must not wait for more.
                let _ = stream.set_nodelay(true);
                let stream = Metered::new(stream, self.counters.clone());
                let watcher = graceful.watcher();
                let patience = self.patience;
                let connection = async move {
                    serve_connection(stream, acceptor, router, watcher, patience).await;
                    drop(permit);
                };
                connections.spawn(connection);
                while connections.try_join_next().is_some() {}
            }
        }
        drop(self.listener);
        if tokio::time::timeout(drain, graceful.shutdown())
            .await
            .is_err()
        {
            tracing::warn!("requests were still in progress when the time to drain ran out");
        }
    }
}

async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    let permit = slots.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, permit)),
        Err(error) => {
            // Out of descriptors, most likely: accepting again at once would spin.
            tracing::warn!(%error, "a connection could not be accepted");
            tokio::time::sleep(Duration::from_millis(100)).await;
            None
        }
    }
}

async fn serve_connection(
    stream: Metered<TcpStream>,
    acceptor: TlsAcceptor,
    router: Router,
    watcher: Watcher,
    patience: Duration,
) {
    let counters = stream.counters().clone();
    // rustls reads 4 KiB at a time, which for a picture would be 150 system calls.
    let stream = BufReader::with_capacity(READ_BYTES, stream);
    let handshake = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await;
    let Ok(Ok(stream)) = handshake else {
        counters.handshake_failed();
        tracing::debug!("a TLS handshake failed");
        return;
    };
    let life = Arc::new(Life::default());
    let service = Tracked {
        inner: TowerToHyperService::new(router),
        life: life.clone(),
        caller: Caller(CONNECTIONS.fetch_add(1, Ordering::Relaxed)),
    };
    let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let io = TokioIo::new(stream);
    let served = async {
        // An error here is a peer that went away; what it was doing has ended with it.
        let _ = match is_h2 {
            true => watcher.watch(h2().serve_connection(io, service)).await,
            false => watcher.watch(h1().serve_connection(io, service)).await,
        };
    };
    tokio::select! {
        () = served => {}
        () = life.outlived(patience) => tracing::debug!("a connection was closed: idle, or its peer does not read"),
    }
}

fn h1() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(IDLE);
    builder
}

fn h2() -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(HEAD_BYTES)
        .keep_alive_interval(IDLE);
    builder
}

/// What a connection is doing. HTTP/1 and HTTP/2 have timeouts for heads only: without this, a peer
/// that never speaks, or one that never reads its answers, would keep its place for ever.
#[derive(Default)]
struct Life(Mutex<Activity>);

struct Activity {
    requests: usize,
    idle_since: Instant,
    /// Answers on their way, by the time from which on they were ready.
    answers: BTreeMap<u64, Instant>,
    next: u64,
}

impl Default for Activity {
    fn default() -> Self {
        Self {
            requests: 0,
            idle_since: Instant::now(),
            answers: BTreeMap::new(),
            next: 0,
        }
    }
}

impl Life {
    /// Ends when nothing was asked for longer than [`IDLE`], or an answer was not read in
    /// `patience`.
    async fn outlived(&self, patience: Duration) {
        loop {
            tokio::time::sleep(LOOK).await;
            let activity = self.lock();
            let idle = activity.requests == 0 && activity.idle_since.elapsed() > IDLE;
            let oldest = activity.answers.values().next();
            if idle || oldest.is_some_and(|ready| ready.elapsed() > patience) {
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Activity> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request of a connection, until its answer has been sent.
struct Exchange {
    life: Arc<Life>,
    answer: Option<u64>,
    _watched: Option<Watched>,
}

impl Exchange {
    fn begin(life: Arc<Life>) -> Self {
        life.lock().requests += 1;
        Self {
            life,
            answer: None,
            _watched: None,
        }
    }

    fn answered(mut self, watched: Watched) -> Self {
        self._watched = Some(watched);
        let mut activity = self.life.lock();
        activity.next += 1;
        let id = activity.next;
        activity.answers.insert(id, Instant::now());
        drop(activity);
        self.answer = Some(id);
        self
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let mut activity = self.life.lock();
        activity.requests -= 1;
        activity.idle_since = Instant::now();
        if let Some(id) = self.answer {
            activity.answers.remove(&id);
        }
    }
}

/// Connections so far. Each is a caller of its own, for who takes turns and who meets whom in a batch.
static CONNECTIONS: AtomicU64 = AtomicU64::new(0);

struct Tracked {
    inner: TowerToHyperService<Router>,
    life: Arc<Life>,
    caller: Caller,
}

impl hyper::service::Service<Request<Incoming>> for Tracked {
    type Response = Response<TrackedBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        request.extensions_mut().insert(self.caller);
        let exchange = Exchange::begin(self.life.clone());
        let answer = self.inner.call(request);
        Box::pin(async move {
            let (answer, watched) = watch(answer).await;
            let _exchange = exchange.answered(watched);
            Ok(answer?.map(|body| TrackedBody { body, _exchange }))
        })
    }
}

struct TrackedBody {
    body: Body,
    _exchange: Exchange,
}

impl http_body::Body for TrackedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
