//! A BlindAI server that proved itself, asked over gRPC: a connection of HTTP/2 for each caller.

use std::cell::RefCell;
use std::time::Duration;

use anyhow::Result;
use blindai_client::{Connector, Protocol, blocking};
use blindai_core::NamedTensor;
use blindai_core::oip::grpc::{ModelId, encode_infer_request};
use blindai_core::pins::MODELS;
use bytes::{BufMut as _, Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http2::{self, SendRequest};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue, TE};
use hyper::{Method, Request, Uri, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use percent_encoding::percent_decode_str;

use super::peer::{MOST_BYTES, PeerError};
use super::target::Target;

/// A server, a request, and the connections that are free.
pub struct Grpc {
    connector: Connector,
    request: Request<Full<Bytes>>,
    timeout: Duration,
    alone: bool,
    idle: RefCell<Vec<SendRequest<Full<Bytes>>>>,
}

impl Grpc {
    /// Sends these inputs to the model, on connections of a connector that has verified the server.
    /// `alone`: see [`super::target::Attested::new`].
    pub fn new(
        connector: Connector,
        model: &ModelId,
        inputs: &[NamedTensor],
        timeout: Duration,
        alone: bool,
    ) -> Result<Self> {
        let authority = connector.address();
        let uri = Uri::try_from(format!("https://{authority}{METHOD}"))?;
        let mut request = Request::new(Full::new(framed(&encode_infer_request(model, inputs))));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = uri;
        *request.version_mut() = Version::HTTP_2;
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        if let Some(models) = connector.models() {
            headers.insert(MODELS, models);
        }
        headers.insert(TE, HeaderValue::from_static("trailers"));
        Ok(Self {
            connector,
            request,
            timeout,
            alone,
            idle: RefCell::default(),
        })
    }

    async fn exchange(&self) -> Result<()> {
        let idle = self.idle.borrow_mut().pop();
        let mut sender = match idle {
            Some(sender) => sender,
            // In a box, or each request would carry the room that a connection takes.
            None => Box::pin(self.connect()).await?,
        };
        let lost = |error| PeerError::connection("connection-lost", error);
        sender.ready().await.map_err(lost)?;
        let answer = sender.send_request(self.request.clone()).await;
        let (head, body) = answer.map_err(lost)?.into_parts();
        let body = Limited::new(body, MOST_BYTES).collect().await;
        let body = body.map_err(|error| PeerError::connection("response-invalid", error))?;
        self.idle.borrow_mut().push(sender);
        // An answer of nothing but trailers has its status among the headers.
        check(body.trailers().unwrap_or(&head.headers))
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>> {
        let connection = self.connector.open(Protocol::Http2).await?;
        let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(connection)).await;
        let (sender, driver) =
            handshake.map_err(|error| PeerError::connection("connection-lost", error))?;
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

const METHOD: &str = "/inference.GRPCInferenceService/ModelInfer";
