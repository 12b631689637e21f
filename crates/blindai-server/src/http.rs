//! Connections: accept, handshake, serve, drain. What is served comes as a router.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response};
use blindai_core::Code;
use blindai_core::api::ATTESTATION;
use blindai_engine::Caller;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch as channel;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::access::PeerKey;
use crate::api::{LastSent, Refused};
use crate::places::{self, Exchange, IDLE, Life, Place, Places};
use crate::reader::Reader;
use crate::telemetry::{Metered, PortCounters, Watched, watch};

/// How long a stranger may take for the TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Bytes that an HTTP/1 connection buffers each way, and of its request head. Who sends one request
/// after the other and reads no answer fills this and no more.
const BUFFER_BYTES: usize = 64 * 1024;
/// Requests that one HTTP/2 connection may have open.
const STREAMS: u32 = 64;
/// Bytes of an HTTP/2 request head, its continuations included; h2 derives from it how many frames a
/// head may be spread over.
const HEAD_BYTES: u32 = 32 * 1024;
/// Bytes that an HTTP/2 peer may send ahead of what is read, for a request: as much as fills a line of
/// 80 Mbit/s over 100 ms.
const WINDOW_BYTES: u32 = 1 << 20;
/// The same for all of its connection. A stream of gRPC is not read while one of its messages is worked
/// on, and must leave room for the other requests.
const CONNECTION_BYTES: u32 = 2 * WINDOW_BYTES;
/// Bytes of answers that an HTTP/2 stream takes from the service before the peer reads them.
const SEND_BYTES: usize = 64 * 1024;
/// An answer goes out in pieces of this size.
const PIECE_BYTES: usize = 64 * 1024;
/// Requests that a peer may have taken back before they were looked at: rapid reset.
const RESETS: usize = 32;
/// Errors of a peer's own that are answered with a reset, over the life of its connection.
const ERRORS: usize = 256;

/// One port.
pub struct Port {
    pub listener: TcpListener,
    pub tls: Arc<ServerConfig>,
    pub router: Router,
    /// Connections at one time; a further one takes the place of another.
    pub connections: usize,
    /// How long a peer may take to read an answer.
    pub patience: Duration,
    pub counters: Arc<PortCounters>,
}

impl Port {
    /// Serves until `stop` turns true, then lets requests in progress end for as long as `drain`.
    pub async fn serve(self, mut stop: channel::Receiver<bool>, drain: Duration) {
        let speaker = Arc::new(Speaker {
            acceptor: TlsAcceptor::from(self.tls),
            router: self.router,
            patience: self.patience,
            counters: self.counters,
        });
        let places = Places::new(self.connections);
        let graceful = GracefulShutdown::new();
        // Dropped at the end, which ends whatever did not end by itself.
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = accept(&self.listener, &places) => accepted,
                _ = stop.wait_for(|stop| *stop) => break,
            };
            if let Some((stream, place)) = accepted {
                let speaker = speaker.clone();
                let stop = stop.clone();
                connections.spawn(speaker.serve(stream, place, graceful.watcher(), stop));
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

async fn accept(listener: &TcpListener, places: &Arc<Places>) -> Option<(TcpStream, Place)> {
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, places.take().await)),
        Err(error) => {
            // Out of descriptors, most likely: accepting again at once would spin.
            tracing::warn!(%error, "a connection could not be accepted");
            places.shed();
            tokio::time::sleep(Duration::from_millis(100)).await;
            None
        }
    }
}

/// What all connections of a port share.
struct Speaker {
    acceptor: TlsAcceptor,
    router: Router,
    patience: Duration,
    counters: Arc<PortCounters>,
}

impl Speaker {
    async fn serve(
        self: Arc<Self>,
        stream: TcpStream,
        place: Place,
        watcher: Watcher,
        stop: channel::Receiver<bool>,
    ) {
        let life = place.life.clone();
        tokio::select! {
            () = self.speak(stream, life.clone(), watcher, stop) => {}
            () = life.outlived(self.patience) => {
                tracing::debug!("a connection was closed: its peer was waited for too long");
            }
        }
        // The place is free when the stream is closed, and not before.
        drop(place);
    }

    async fn speak(
        &self,
        stream: TcpStream,
        life: Arc<Life>,
        watcher: Watcher,
        mut stop: channel::Receiver<bool>,
    ) {
        // Small answers must not wait for more.
        let _ = stream.set_nodelay(true);
        let stream = Reader::new(Metered::new(stream, self.counters.clone()));
        let handshake = tokio::time::timeout(HANDSHAKE, self.acceptor.accept(stream));
        let handshake = tokio::select! {
            handshake = handshake => handshake,
            // Who has asked for nothing yet does not hold up the end.
            _ = stop.wait_for(|stop| *stop) => return,
        };
        let Ok(Ok(stream)) = handshake else {
            self.counters.handshake_failed();
            tracing::debug!("a TLS handshake failed");
            return;
        };
        let key = PeerKey::of(stream.get_ref().1.peer_certificates());
        let service = Tracked {
            key,
            inner: TowerToHyperService::new(self.router.clone()),
            life,
            sent: LastSent::default(),
        };
        let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let io = TokioIo::new(stream);
        // An error here is a peer that went away; what it was doing has ended with it. Boxed, so that
        // the many that are silent take no more room than their protocol needs.
        let _ = match is_h2 {
            true => Box::pin(watcher.watch(h2().serve_connection(io, service))).await,
            false => Box::pin(watcher.watch(h1().serve_connection(io, service))).await,
        };
    }
}

fn h1() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .max_buf_size(BUFFER_BYTES);
    builder
}

fn h2() -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(HEAD_BYTES)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_BYTES)
        .max_send_buf_size(SEND_BYTES)
        .max_pending_accept_reset_streams(RESETS)
        .max_local_error_reset_streams(ERRORS)
        .keep_alive_interval(IDLE)
        .keep_alive_timeout(HANDSHAKE);
    builder
}

struct Tracked {
    key: Option<PeerKey>,
    inner: TowerToHyperService<Router>,
    life: Arc<Life>,
    sent: LastSent,
}

impl hyper::service::Service<Request<Incoming>> for Tracked {
    type Response = Response<Outgoing>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        // For who takes turns, and who meets whom in a batch, where the caller has no name.
        request.extensions_mut().insert(Caller(self.life.id()));
        if let Some(key) = self.key {
            request.extensions_mut().insert(key);
        }
        request.extensions_mut().insert(self.sent.clone());
        // Quotes are not what slow peers keep from others, and anybody can ask for too many.
        let counts = request.uri().path() != ATTESTATION;
        let has_body = !http_body::Body::is_end_stream(request.body());
        let exchange = Exchange::begin(&self.life, has_body);
        let progress = exchange.incoming();
        request.extensions_mut().insert(exchange.course());
        let answer = self
            .inner
            .call(request.map(|body| Received { body, progress }));
        Box::pin(async move {
            let (answer, watched) = watch(answer).await;
            let answer = answer?;
            if counts && is_for_want_of_room(&answer) {
                exchange.refused();
            }
            exchange.answered();
            Ok(answer.map(|body| Outgoing::new(body, exchange, watched)))
        })
    }
}

// By the code, because gRPC refuses with the status 200. Who is over a quota of its own, or finds no room
// for a model, says nothing of the room for requests, and must not have slow peers lose their places.
fn is_for_want_of_room(answer: &Response<Body>) -> bool {
    answer.extensions().get() == Some(&Refused(Code::TooManyRequests))
}

/// A request's body, whose sender may be too slow.
struct Received {
    body: Incoming,
    progress: places::Incoming,
}

impl http_body::Body for Received {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        match &frame {
            Some(Ok(frame)) => {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                self.progress.received(bytes);
            }
            _ => self.progress.ended(),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An answer, whose reader may be too slow.
///
/// It goes out piece by piece. HTTP/1 takes a part of any size and lets go of the body with it, so that
/// what the service reserved for an answer would be free again before the peer has read of it.
struct Outgoing {
    body: Body,
    rest: Bytes,
    exchange: Exchange,
    /// Tells how the request went when it is dropped.
    _watched: Watched,
}

impl Outgoing {
    fn new(body: Body, exchange: Exchange, watched: Watched) -> Self {
        Self {
            body,
            rest: Bytes::new(),
            exchange,
            _watched: watched,
        }
    }

    fn piece(&mut self) -> Bytes {
        let piece = match self.rest.len() <= PIECE_BYTES {
            // A copy, or the last piece would keep all that came before it in memory.
            true => Bytes::copy_from_slice(&std::mem::take(&mut self.rest)),
            false => self.rest.split_to(PIECE_BYTES),
        };
        self.exchange.sent(piece.len());
        piece
    }
}

impl http_body::Body for Outgoing {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if data.len() > PIECE_BYTES => self.rest = data,
                    Ok(data) => {
                        self.exchange.sent(data.len());
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                },
                other => return Poll::Ready(other),
            }
        }
        Poll::Ready(Some(Ok(Frame::data(self.piece()))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, body) = (self.rest.len() as u64, self.body.size_hint());
        let mut hint = SizeHint::new();
        hint.set_lower(body.lower().saturating_add(rest));
        if let Some(upper) = body.upper() {
            hint.set_upper(upper.saturating_add(rest));
        }
        hint
    }
}
