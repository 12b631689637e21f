//! Callers: accept, serve, drain.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use blindai_client::{Connector, authorization};
use blindai_core::Token;
use http::uri::Authority;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body_util::Either;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use super::forward;
use super::guard::Guard;
use super::page::Page;
use super::refusal::{Answer, Refusal, empty, is_grpc};
use super::upstream::{Link, Pool};
use crate::output;

/// What answers requests.
pub struct Proxy {
    connector: Arc<Connector>,
    pool: Pool,
    guard: Guard,
    page: Page,
    server: Authority,
    /// For requests that bring none.
    authorization: Option<HeaderValue>,
    /// Which models the policy accepts.
    models: Option<HeaderValue>,
}

impl Proxy {
    pub fn new(
        connector: Arc<Connector>,
        next: Arc<AtomicU64>,
        guard: Guard,
        policy_id: Option<String>,
        token: Option<&Token>,
    ) -> Self {
        let server = connector.address();
        Self {
            pool: Pool::new(connector.clone()),
            page: Page::new(connector.clone(), next, policy_id),
            server: server.parse().expect("the client has read this address"),
            authorization: token.map(authorization),
            models: connector.models(),
            connector,
            guard,
        }
    }

    async fn answer(&self, link: &Link, request: Request<Incoming>) -> Response<Answer> {
        let grpc = is_grpc(&request);
        let origin = match self.guard.admit(&request) {
            Ok(origin) => origin,
            Err(refusal) => return refusal.answer(grpc),
        };
        let preflight = origin.as_ref().and_then(|_| Guard::preflight(&request));
        let mut response = match preflight {
            Some(response) => response,
            None => {
                let done = self.route(link, request).await;
                done.unwrap_or_else(|refusal| refusal.answer(grpc))
            }
        };
        Guard::seal(&mut response, origin);
        response
    }

    /// Two pages are the proxy's own; all others are the server's.
    async fn route(
        &self,
        link: &Link,
        request: Request<Incoming>,
    ) -> Result<Response<Answer>, Refusal> {
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        match request.uri().path() {
            "/" | READY if !reads => Err(Refusal::method(request.method())),
            "/" => Ok(self.page.answer(&request)),
            READY => self.check_trust().map(|()| empty(StatusCode::OK)),
            _ => self.forward(link, request).await,
        }
    }

    async fn forward(
        &self,
        link: &Link,
        request: Request<Incoming>,
    ) -> Result<Response<Answer>, Refusal> {
        forward::check(&request)?;
        self.check_trust()?;
        let (authorization, models) = (self.authorization.as_ref(), self.models.as_ref());
        let request = forward::to_server(request, &self.server, authorization, models);
        let response = match request.version() {
            Version::HTTP_2 => link.send(request).await,
            _ => self.pool.send(request).await,
        };
        Ok(forward::to_caller(response?).map(Either::Right))
    }

    fn check_trust(&self) -> Result<(), Refusal> {
        let report = self.connector.report().map(|_| ());
        report.map_err(|error| Refusal::distrusted(&error))
    }
}

/// Serves until `stop` completes, then lets requests in progress end for as long as [`DRAIN`].
pub async fn serve(listener: TcpListener, proxy: Arc<Proxy>, stop: impl Future<Output = ()>) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    let graceful = GracefulShutdown::new();
    // Dropped at the end, which ends whatever did not end by itself.
    let mut connections = JoinSet::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &slots) => accepted,
            () = &mut stop => break,
        };
        if let Some((stream, permit)) = accepted {
            let (proxy, watcher) = (proxy.clone(), graceful.watcher());
            connections.spawn(async move {
                serve_connection(stream, proxy, watcher).await;
                drop(permit);
            });
            while connections.try_join_next().is_some() {}
        }
    }
    drop(listener);
    let drained = tokio::time::timeout(DRAIN, graceful.shutdown()).await;
    if drained.is_err() {
        output::warn(
            "blindai proxy: requests were still in progress when the time to drain ran out",
        );
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
            output::warn(format_args!(
                "blindai proxy: no connection was accepted: {error}"
            ));
            tokio::time::sleep(Duration::from_millis(100)).await;
            None
        }
    }
}

async fn serve_connection(stream: TcpStream, proxy: Arc<Proxy>, watcher: Watcher) {
    // Small answers must not wait for more.
    let _ = stream.set_nodelay(true);
    let link = Arc::new(Link::new(proxy.connector.clone()));
    let spoken = Arc::new(AtomicBool::new(false));
    let heard = spoken.clone();
    let service = service_fn(move |request| {
        heard.store(true, Ordering::Relaxed);
        let (proxy, link) = (proxy.clone(), link.clone());
        async move { Ok::<_, Infallible>(proxy.answer(&link, request).await) }
    });
    let http = http();
    let serving = http.serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        // An error here is a caller that went away; what it was doing has ended with it.
        _ = watcher.watch(serving) => {}
        () = silence(&spoken) => {}
    }
}

fn http() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .max_buf_size(HEAD_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(HEAD_BYTES as u32)
        .keep_alive_interval(IDLE);
    builder
}

/// Completes when a caller has not asked for anything in its first minute. HTTP has timeouts only
/// once it is known which version is spoken.
async fn silence(spoken: &AtomicBool) {
    tokio::time::sleep(IDLE).await;
    if spoken.load(Ordering::Relaxed) {
        std::future::pending::<()>().await;
    }
}

/// Whether requests are forwarded: 200, or 503 and why not.
const READY: &str = "/-/ready";
/// Callers at one time; further ones wait in the kernel.
const CONNECTIONS: usize = 256;
/// How long a caller may take for a request head, and stay without a request.
const IDLE: Duration = Duration::from_secs(60);
/// How long requests may take to end when the proxy is stopped.
const DRAIN: Duration = Duration::from_secs(30);
/// Requests that one HTTP/2 connection may have open: as many as the server takes.
const STREAMS: u32 = 64;
/// Bytes of a request head.
const HEAD_BYTES: usize = 64 * 1024;
