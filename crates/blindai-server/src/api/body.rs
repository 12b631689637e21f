use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{HeaderMap, header};
use blindai_core::{Code, Error, Result};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt as _;

use super::coding::{Coding, Decoder};
use crate::budget::Reservation;
use crate::service::Service;

/// The largest body of a request, or message of a method, that brings no tensors.
pub const CONTROL_BYTES: u64 = 64 * 1024;

/// The length that the sender announces; `None` when the body is chunked.
pub fn announced_length(headers: &HeaderMap) -> Option<u64> {
    headers
        .get(header::CONTENT_LENGTH)?
        .to_str()
        .ok()?
        .parse()
        .ok()
}

/// Reads a whole body of at most `limit` bytes, compressed or not. The reservation is to be held as
/// long as the bytes.
pub async fn collect(
    service: &Service,
    headers: &HeaderMap,
    body: Body,
    limit: u64,
    deadline: Instant,
) -> Result<(Bytes, Reservation)> {
    let mut decoder = Decoder::new(
        service,
        Coding::named(headers, "content-encoding")?,
        announced_length(headers),
        limit,
    )?;
    let mut incoming = Chunks::new(body, service.limits().idle(), deadline);
    while let Some(chunk) = incoming.next().await? {
        decoder.push(&chunk)?;
    }
    decoder.finish()
}

/// The chunks of a body, each of which must come before the sender counts as gone, and all before
/// the deadline.
pub struct Chunks {
    body: Body,
    idle: Duration,
    deadline: Instant,
}

impl Chunks {
    pub fn new(body: Body, idle: Duration, deadline: Instant) -> Self {
        Self {
            body,
            idle,
            deadline,
        }
    }

    /// Changes when all must have come.
    pub fn set_deadline(&mut self, deadline: Instant) {
        self.deadline = deadline;
    }

    /// The next chunk; `None` at the end.
    ///
    /// # Errors
    /// [`Code::BodyIncomplete`], [`Code::DeadlineExceeded`]
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        self.next_until(Instant::now() + self.idle).await
    }

    /// As [`Chunks::next`], from a sender who may take his time.
    pub async fn next_patiently(&mut self) -> Result<Option<Bytes>> {
        self.next_until(self.deadline).await
    }

    async fn next_until(&mut self, until: Instant) -> Result<Option<Bytes>> {
        let until = self.deadline.min(until);
        loop {
            let frame = tokio::time::timeout_at(until.into(), self.body.frame()).await;
            match frame.map_err(|_| self.too_late())? {
                None => return Ok(None),
                Some(Err(_)) => {
                    let fact = "the connection ended within the body";
                    return Err(Error::new(Code::BodyIncomplete, fact));
                }
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    fn too_late(&self) -> Error {
        if Instant::now() >= self.deadline {
            let fact = "the body did not arrive within the time for the request";
            return Error::new(Code::DeadlineExceeded, fact);
        }
        let seconds = self.idle.as_secs();
        let fact = format!("nothing came for limits.idle_seconds, {seconds}");
        Error::new(Code::BodyIncomplete, fact)
    }
}

/// A body of parts that are sent one after the other, without being joined. It holds on to `H`
/// until it is sent.
pub struct Parts<H> {
    parts: VecDeque<Bytes>,
    trailers: Option<HeaderMap>,
    _held: H,
}

impl<H: Send + Unpin + 'static> Parts<H> {
    /// A body of `parts`. Small ones are joined: one write beats two.
    pub fn body(parts: Vec<Bytes>, held: H) -> Body {
        Body::new(Self::new(parts, None, held))
    }

    /// A body of `parts`, after which come trailers.
    pub fn with_trailers(parts: Vec<Bytes>, trailers: HeaderMap, held: H) -> Body {
        Body::new(Self::new(parts, Some(trailers), held))
    }

    fn new(parts: Vec<Bytes>, trailers: Option<HeaderMap>, held: H) -> Self {
        let total: usize = parts.iter().map(Bytes::len).sum();
        let parts = match total <= JOIN_BYTES {
            true => VecDeque::from([parts.concat().into()]),
            false => parts.into(),
        };
        Self {
            parts,
            trailers,
            _held: held,
        }
    }
}

const JOIN_BYTES: usize = 16 * 1024;

impl<H: Unpin> http_body::Body for Parts<H> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let frame = match self.parts.pop_front() {
            Some(part) => Some(Frame::data(part)),
            None => self.trailers.take().map(Frame::trailers),
        };
        Poll::Ready(frame.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.parts.is_empty() && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.parts.iter().map(|part| part.len() as u64).sum())
    }
}
