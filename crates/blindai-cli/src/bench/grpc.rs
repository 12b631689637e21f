//! A BlindAI server that proved itself, asked over gRPC: a connection of HTTP/2 for each caller.

use std::cell::RefCell;
use std::fmt::Display;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Result;
use blindai_client::{Connector, Protocol, Token, authorization, blocking};
use blindai_core::NamedTensor;
use blindai_core::oip::grpc::{ModelId, encode_infer_request};
use blindai_core::pins::MODELS;
use bytes::{BufMut as _, Bytes, BytesMut};
use h2::RecvStream;
use h2::client::{self, SendRequest};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, TE};
use hyper::{Method, Request, Uri, Version};
use percent_encoding::percent_decode_str;

use super::peer::{MOST_BYTES, PeerError};
use super::target::Target;

/// A server, a request, and the connections that are free.
pub struct Grpc {
    connector: Rc<Connector>,
    head: Request<()>,
    message: Bytes,
    timeout: Duration,
    alone: bool,
    idle: RefCell<Vec<SendRequest<Bytes>>>,
}

impl Grpc {
    /// Sends these inputs to the model, on connections of a connector that has verified the server.
    /// `alone`: see [`super::target::Attested::new`].
    pub fn new(
        connector: Rc<Connector>,
        model: &ModelId,
        inputs: &[NamedTensor],
        timeout: Duration,
        alone: bool,
    ) -> Result<Self> {
        let authority = connector.address();
        let uri = Uri::try_from(format!("https://{authority}{METHOD}"))?;
        let mut head = Request::new(());
        *head.method_mut() = Method::POST;
        *head.uri_mut() = uri;
        *head.version_mut() = Version::HTTP_2;
        let headers = head.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        if let Some(models) = connector.models() {
            headers.insert(MODELS, models);
        }
        headers.insert(TE, HeaderValue::from_static("trailers"));
        Ok(Self {
            connector,
            head,
            message: framed(&encode_infer_request(model, inputs)),
            timeout,
            alone,
            idle: RefCell::default(),
        })
    }

    /// Sends this token with each request; none goes to a server before it is verified.
    pub fn authorize(&mut self, token: &Token) {
        let headers = self.head.headers_mut();
        headers.insert(AUTHORIZATION, authorization(token));
    }

    async fn exchange(&self) -> Result<()> {
        let idle = self.idle.borrow_mut().pop();
        let sender = match idle {
            Some(sender) => sender,
            // In a box, or each request would carry the room that a connection takes.
            None => Box::pin(self.connect()).await?,
        };
        let mut sender = sender.ready().await.map_err(lost)?;
        let (answer, mut body) = sender
            .send_request(self.head.clone(), false)
            .map_err(lost)?;
        // The connection has written nothing yet, so head and message go out together, as from the
        // clients of gRPC. One that waits for its stream to be open sends two records, and the server
        // wakes up twice.
        body.send_data(self.message.clone(), true).map_err(lost)?;
        let (head, body) = answer.await.map_err(lost)?.into_parts();
        let trailers = finish(body).await?;
        self.idle.borrow_mut().push(sender);
        // An answer of nothing but trailers has its status among the headers.
        check(trailers.as_ref().unwrap_or(&head.headers))
    }

    async fn connect(&self) -> Result<SendRequest<Bytes>> {
        let connection = self.connector.open(Protocol::Http2).await?;
        let mut builder = client::Builder::new();
        builder
            .enable_push(false)
            .initial_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES);
        let (sender, driver) = builder.handshake(connection).await.map_err(lost)?;
        // The exchange that it breaks hears of the error too.
        tokio::spawn(async move { drop(driver.await) });
        Ok(sender)
    }
}

impl Target for Grpc {
    async fn send(&self) -> Result<()> {
        let exchange = tokio::time::timeout(self.timeout, self.exchange());
        let done = match self.alone {
            true => blocking::awake(exchange).await,
            false => exchange.await,
        };
        done.map_err(|_| PeerError::connection("request-timeout", "no answer in time"))?
    }
}

/// Reads an answer to its end, and gives its trailers.
async fn finish(mut body: RecvStream) -> Result<Option<HeaderMap>, PeerError> {
    let mut left = MOST_BYTES;
    while let Some(piece) = body.data().await {
        let length = piece.map_err(invalid)?.len();
        left = left
            .checked_sub(length)
            .ok_or_else(|| invalid(format_args!("it has more than {MOST_BYTES} bytes")))?;
        let flow = body.flow_control();
        flow.release_capacity(length).map_err(invalid)?;
    }
    body.trailers().await.map_err(invalid)
}

fn lost(error: h2::Error) -> PeerError {
    PeerError::connection("connection-lost", error)
}

fn invalid(error: impl Display) -> PeerError {
    PeerError::connection("response-invalid", error)
}

fn check(trailers: &HeaderMap) -> Result<()> {
    let text = |name| {
        trailers
            .get(name)
            .and_then(|value: &HeaderValue| value.to_str().ok())
    };
    match text("grpc-status") {
        Some("0") => Ok(()),
        status => {
            let code = text("blindai-code").unwrap_or("grpc-failed");
            let fact = text("grpc-message").or(status).unwrap_or("no status came");
            let fact = percent_decode_str(fact).decode_utf8_lossy();
            Err(PeerError::told(code, &fact).into())
        }
    }
}

/// The message with its prefix: no compression, and the length.
fn framed(message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    let mut framed = BytesMut::with_capacity(5 + message.len());
    framed.put_u8(0);
    framed.put_u32(length);
    framed.put_slice(message);
    framed.freeze()
}

/// Bytes that the server may send ahead of what is read.
const WINDOW_BYTES: u32 = 4 << 20;
const METHOD: &str = "/inference.GRPCInferenceService/ModelInfer";
