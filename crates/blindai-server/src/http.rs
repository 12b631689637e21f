//! Connections: accept, handshake, serve, drain. What is served comes as a router.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_rustls::TlsAcceptor;

/// How long a stranger may take for the TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a connection may stay without a complete request head.
const IDLE: Duration = Duration::from_secs(60);
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
}

impl Port {
    /// Serves until `stop` turns true, then lets requests in progress end for as long as `drain`.
    pub async fn serve(self, mut stop: watch::Receiver<bool>, drain: Duration) {
        let acceptor = TlsAcceptor::from(self.tls);
        let slots = Arc::new(Semaphore::new(self.connections));
        let graceful = GracefulShutdown::new();
        loop {
            let accepted = tokio::select! {
                accepted = accept(&self.listener, &slots) => accepted,
                _ = stop.wait_for(|stop| *stop) => break,
            };
            if let Some((stream, permit)) = accepted {
                let (acceptor, router) = (acceptor.clone(), self.router.clone());
                let watcher = graceful.watcher();
                tokio::spawn(async move {
                    serve_connection(stream, acceptor, router, watcher).await;
                    drop(permit);
                });
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
    stream: TcpStream,
    acceptor: TlsAcceptor,
    router: Router,
    watcher: Watcher,
) {
    // Small answers must not wait for more.
    let _ = stream.set_nodelay(true);
    let handshake = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await;
    let Ok(Ok(stream)) = handshake else {
        tracing::debug!("a TLS handshake failed");
        return;
    };
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        // Counts from the end of the last request, so it bounds idle connections too.
        .header_read_timeout(IDLE);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(HEAD_BYTES)
        .keep_alive_interval(IDLE);
    let service = TowerToHyperService::new(router);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    // An error here is a peer that went away; what it was doing has ended with it.
    let _ = watcher.watch(connection.into_owned()).await;
}
