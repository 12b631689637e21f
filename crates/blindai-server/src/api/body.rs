use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, header};
use blindai_core::{Code, Error, Result};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt as _;

use crate::budget::Reservation;
use crate::service::Service;

/// The length that the sender announces; `None` when the body is chunked.
pub fn announced_length(headers: &HeaderMap) -> Option<u64> {
    headers
        .get(header::CONTENT_LENGTH)?
        .to_str()
        .ok()?
        .parse()
        .ok()
}

/// Reads a whole body of bounded size. The reservation is to be held as long as the bytes.
pub async fn collect(
    service: &Service,
    headers: &HeaderMap,
    body: Body,
) -> Result<(Bytes, Reservation)> {
    let announced = announced_length(headers);
    let limit = service.limits().body_bytes;
    let reservation = service.reserve_body(announced.unwrap_or(limit))?;
    let mut bytes = Vec::with_capacity(announced.unwrap_or(0) as usize);
    let mut incoming = Chunks::new(body, service.limits().idle());
    while let Some(chunk) = incoming.next().await? {
        if (bytes.len() + chunk.len()) as u64 > limit {
            let fact = format!("the body has more than limits.body_bytes, {limit}");
            return Err(Error::new(Code::BodyTooLarge, fact));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok((bytes.into(), reservation))
}

/// The chunks of a body, each of which must come before the sender counts as gone.
pub struct Chunks {
    body: Body,
    idle: Duration,
}

impl Chunks {
    pub fn new(body: Body, idle: Duration) -> Self {
        Self { body, idle }
    }

    /// The next chunk; `None` at the end.
    ///
    /// # Errors
    /// [`Code::BodyIncomplete`]
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            let frame = tokio::time::timeout(self.idle, self.body.frame()).await;
            let frame = frame.map_err(|_| {
                let seconds = self.idle.as_secs();
                let fact = format!("nothing came for limits.idle_seconds, {seconds}");
                Error::new(Code::BodyIncomplete, fact)
            })?;
            match frame {
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
}

/// A body of parts that are sent one after the other, without being joined.
pub struct Parts(VecDeque<Bytes>);

impl Parts {
    /// A body of `parts`. Small ones are joined after all: one write beats two.
    pub fn body(parts: Vec<Bytes>) -> Body {
        let total: usize = parts.iter().map(Bytes::len).sum();
        if total <= JOIN_BYTES {
            return Body::from(parts.concat());
        }
        Body::new(Self(parts.into()))
    }
}

const JOIN_BYTES: usize = 16 * 1024;

impl http_body::Body for Parts {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.pop_front().map(|part| Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.iter().map(|part| part.len() as u64).sum())
    }
}
