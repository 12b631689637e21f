//! gRPC over the same HTTP/2 as everything else: messages with their lengths in front, and a status
//! in the trailers.
//!
//! A message is admitted and has its room reserved before it is read, like any other body; libraries
//! of gRPC read it first. Calls without admission bring next to nothing.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use blindai_core::{Code, Error, Kind, Result};
use bytes::Bytes;
use futures_util::stream;
use http_body::Frame;
use http_body_util::StreamBody;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use super::ApiError;
use super::body::{CONTROL_BYTES, Chunks, Parts};
use super::coding::{Coding, Decoder};
use super::principal::identify;
use super::request_id::Witness;
use crate::access::{Principal, Right};
use crate::budget::Reservation;
use crate::places::Course;
use crate::service::{Admission, Service, Turn};
use crate::telemetry::{self, Watched, watch};

const CONTENT_TYPE: &str = "application/grpc";
const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
/// When a client may try again, in milliseconds; generic retries of gRPC heed it.
const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");
/// The stable code of an error.
const CODE: HeaderName = HeaderName::from_static("blindai-code");
/// A flag, and the length of the message as four bytes.
const PREFIX_BYTES: usize = 5;
/// The largest message of a call that is not admitted: a name and a version.
const TINY_BYTES: usize = 1024;

/// A call, of which nothing but the head has been read.
pub struct Call {
    pub service: Arc<Service>,
    arrived: Instant,
    /// How long the caller waits.
    timeout: Option<Duration>,
    /// Who calls, or why that is not known. Some methods are for everybody.
    principal: Result<Principal>,
    deadline: Instant,
    messages: Messages,
    /// Tells the connection how a stream goes.
    course: Option<Course>,
    /// Tells the operator.
    witness: Option<Witness>,
}

/// What a method answers: the parts of one message, and what is held until it is sent.
pub struct Answer {
    parts: Vec<Bytes>,
    held: Option<(Admission, Reservation)>,
}

impl Call {
    /// Answers with what `method` makes of the one small message of this call.
    pub async fn tell(
        mut self,
        method: impl FnOnce(&Service, &Principal, Bytes) -> Result<Bytes>,
    ) -> Response {
        let (service, principal) = (self.service.clone(), self.known(Right::Use).cloned());
        let told = async {
            let principal = principal?;
            let _admission = service.admit(&principal)?;
            let (message, _held) = self.messages.only(&service, CONTROL_BYTES).await?;
            method(&service, &principal, message)
        };
        respond(told.await.map(Answer::from))
    }

    /// The same for what may be asked at any time, without a place among the requests in progress.
    pub async fn tell_at_once(
        mut self,
        method: impl FnOnce(&Service, &Principal, Bytes) -> Result<Bytes>,
    ) -> Response {
        let (service, principal) = (self.service.clone(), self.known(Right::Use).cloned());
        let told = async { method(&service, &principal?, self.messages.tiny().await?) };
        respond(told.await.map(Answer::from))
    }

    /// The same for methods that say nothing of models, and have nothing to be told.
    pub async fn tell_anybody(
        mut self,
        method: impl FnOnce(&Service) -> Result<Bytes>,
    ) -> Response {
        let read = self.messages.tiny().await;
        respond(read.and_then(|_| method(&self.service)).map(Answer::from))
    }

    /// Answers with what `method` makes of the one message of this call, which may be large.
    pub async fn answer(mut self, method: impl Method) -> Response {
        respond(self.answer_one(method).await)
    }

    /// Answers every message, one after the other, with what `method` makes of it. The next one is
    /// read when the answer before it has been taken, so that nothing piles up.
    pub fn stream<M: Method>(self, method: M) -> Response {
        let principal = match self.known(Right::Use) {
            Ok(principal) => principal.clone(),
            Err(error) => return refuse(error),
        };
        let Self {
            service,
            deadline,
            messages,
            course,
            witness,
            ..
        } = self;
        let exchange = Exchange {
            service,
            principal,
            deadline,
            messages,
            course,
            witness,
            method,
            began: Instant::now(),
            parts: VecDeque::new(),
            held: None,
            watched: None,
            ended: false,
        };
        let frames = stream::unfold(exchange, Exchange::next);
        reply(Body::new(StreamBody::new(frames)))
    }

    /// Lets the messages of this call come for so long, unless its caller waits less.
    pub fn allow(&mut self, limit: Duration) {
        let left = self.timeout.map_or(limit, |timeout| timeout.min(limit));
        self.deadline = self.arrived + left;
        self.messages.chunks.set_deadline(self.deadline);
    }

    /// When the call must have ended.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The next of several messages, of at most `limit` bytes; `None` after the last. The reservation
    /// is to be held as long as the bytes.
    pub async fn next(&mut self, limit: u64) -> Result<Option<(Bytes, Reservation)>> {
        let Some(prefix) = self.messages.prefix(false).await? else {
            return Ok(None);
        };
        let message = self.messages.message(&self.service, prefix, limit).await?;
        Ok(Some(message))
    }

    /// Who calls, when that is somebody who may do this at all.
    pub fn known(&self, right: Right) -> Result<&Principal> {
        let principal = self.principal.as_ref().map_err(Error::clone)?;
        principal.require(right).map(|()| principal)
    }

    async fn answer_one(&mut self, method: impl Method) -> Result<Answer> {
        let (service, deadline) = (self.service.as_ref(), self.deadline);
        let principal = match &self.principal {
            Ok(principal) => principal,
            Err(error) => return Err(error.clone()),
        };
        let admission = service.admit(principal)?;
        let limit = service.limits().body_bytes;
        let (message, mut held) = self.messages.only(service, limit).await?;
        let turn = Turn {
            principal,
            deadline,
        };
        let parts = framed(method.call(service, message, turn).await?)?;
        service.grow_held(&mut held, length(&parts))?;
        Ok(Answer {
            parts,
            held: Some((admission, held)),
        })
    }
}

/// A method that takes tensors.
pub trait Method: Send + Sync + 'static {
    /// The answer to one message, of whatever kind.
    fn call(
        &self,
        service: &Service,
        message: Bytes,
        turn: Turn<'_>,
    ) -> impl Future<Output = Result<Vec<Bytes>>> + Send;
}

impl Answer {
    /// One message; what is held is let go when it is sent.
    ///
    /// # Errors
    /// [`Code::BodyTooLarge`]
    pub fn holding(message: Bytes, admission: Admission, held: Reservation) -> Result<Self> {
        Ok(Self {
            parts: framed(vec![message])?,
            held: Some((admission, held)),
        })
    }
}

impl From<Bytes> for Answer {
    fn from(message: Bytes) -> Self {
        // Too short to be refused.
        let parts = framed(vec![message]).unwrap_or_default();
        Self { parts, held: None }
    }
}

impl FromRequest<Arc<Service>> for Call {
    type Rejection = Response;

    async fn from_request(request: Request, service: &Arc<Service>) -> Result<Self, Response> {
        let arrived = Instant::now();
        let (head, body) = request.into_parts();
        if !is_grpc(&head.headers) {
            return Err(unsupported());
        }
        let limits = service.limits();
        let timeout = timeout(&head.headers).map_err(refuse)?;
        let left = timeout.map_or(limits.request(), |timeout| timeout.min(limits.request()));
        let deadline = arrived + left;
        Ok(Self {
            service: service.clone(),
            principal: identify(&head, service),
            arrived,
            timeout,
            deadline,
            course: head.extensions.get().cloned(),
            witness: head.extensions.get().cloned(),
            messages: Messages {
                chunks: Chunks::new(body, limits.idle(), deadline),
                rest: Bytes::new(),
                coding: Coding::named(&head.headers, "grpc-encoding"),
            },
        })
    }
}

/// Whether an answer is in the form of gRPC already, errors included.
pub fn is_reply(response: &Response) -> bool {
    let content_type = response.headers().get(header::CONTENT_TYPE);
    content_type.is_some_and(|value| value == CONTENT_TYPE)
}

/// The answer to a call that is refused: nothing but trailers.
pub fn refuse(error: Error) -> Response {
    let mut response = reply(Body::empty());
    response.headers_mut().extend(trailers(Some(&error)));
    response.extensions_mut().insert(error);
    response
}

/// The messages of a call, as they arrive.
struct Messages {
    chunks: Chunks,
    /// Of the last chunk, what has not been read.
    rest: Bytes,
    /// How the messages are encoded that say they are.
    coding: Result<Coding>,
}

/// The prefix of a message.
struct Prefix {
    coding: Coding,
    length: usize,
}

impl Messages {
    /// The only message of a call.
    async fn only(&mut self, service: &Service, limit: u64) -> Result<(Bytes, Reservation)> {
        let prefix = self.prefix(false).await?.ok_or_else(incomplete)?;
        let message = self.message(service, prefix, limit).await?;
        self.end().await?;
        Ok(message)
    }

    async fn end(&mut self) -> Result<()> {
        if !self.rest.is_empty() || self.chunks.next().await?.is_some() {
            let fact = "the call has more than one message";
            return Err(Error::new(Code::InvalidRequest, fact));
        }
        Ok(())
    }

    /// The only message of a call for which no room is reserved: anybody may send many of them, so
    /// they must be small as they stand, and nothing is inflated for them.
    async fn tiny(&mut self) -> Result<Bytes> {
        let Prefix { coding, length } = self.prefix(false).await?.ok_or_else(incomplete)?;
        if coding != Coding::Identity || length > TINY_BYTES {
            let fact = format!("the message is compressed or has more than {TINY_BYTES} bytes");
            return Err(Error::new(Code::BodyTooLarge, fact));
        }
        let mut message = Vec::new();
        while message.len() < length {
            message.extend_from_slice(&self.piece(length - message.len()).await?);
        }
        self.end().await?;
        Ok(message.into())
    }

    /// What is said of the next message; `None` after the last.
    async fn prefix(&mut self, patiently: bool) -> Result<Option<Prefix>> {
        while self.rest.len() < PREFIX_BYTES {
            let chunk = match patiently && self.rest.is_empty() {
                true => self.chunks.next_patiently().await?,
                false => self.chunks.next().await?,
            };
            self.rest = match chunk {
                None if self.rest.is_empty() => return Ok(None),
                None => return Err(incomplete()),
                Some(chunk) if self.rest.is_empty() => chunk,
                Some(chunk) => [&self.rest[..], &chunk].concat().into(),
            };
        }
        let prefix = self.rest.split_to(PREFIX_BYTES);
        let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]);
        let coding = match prefix[0] {
            0 => Coding::Identity,
            1 => self.coding.clone()?,
            flag => {
                let fact = format!("a message has the flag {flag}");
                return Err(Error::new(Code::InvalidRequest, fact));
            }
        };
        Ok(Some(Prefix {
            coding,
            length: length as usize,
        }))
    }

    /// The message of this prefix. A small one is a slice of what the connection received.
    async fn message(
        &mut self,
        service: &Service,
        prefix: Prefix,
        limit: u64,
    ) -> Result<(Bytes, Reservation)> {
        let Prefix { coding, length } = prefix;
        if length as u64 > limit {
            let fact = format!("the message has {length} bytes, at most {limit} are taken");
            return Err(Error::new(Code::BodyTooLarge, fact));
        }
        if coding == Coding::Identity && length <= self.rest.len() {
            let reservation = service.reserve_body(length as u64)?;
            return Ok((self.rest.split_to(length), reservation));
        }
        let mut decoder = Decoder::new(service, coding, Some(length as u64), limit)?;
        let mut left = length;
        while left > 0 {
            let piece = self.piece(left).await?;
            left -= piece.len();
            decoder.push(&piece)?;
        }
        decoder.finish()
    }

    /// The next bytes of a message of which `left` are missing.
    async fn piece(&mut self, left: usize) -> Result<Bytes> {
        if self.rest.is_empty() {
            self.rest = self.chunks.next().await?.ok_or_else(incomplete)?;
        }
        Ok(self.rest.split_to(left.min(self.rest.len())))
    }
}

/// A stream of messages and their answers.
struct Exchange<M> {
    service: Arc<Service>,
    principal: Principal,
    deadline: Instant,
    messages: Messages,
    course: Option<Course>,
    witness: Option<Witness>,
    method: M,
    /// When the message began to come.
    began: Instant,
    /// Of the answer that is being sent.
    parts: VecDeque<Bytes>,
    held: Option<(Admission, Reservation)>,
    /// Tells how it went when it is dropped.
    watched: Option<Watched>,
    ended: bool,
}

type StreamFrame = Result<Frame<Bytes>, Infallible>;

impl<M: Method> Exchange<M> {
    async fn next(mut self) -> Option<(StreamFrame, Self)> {
        if self.ended {
            return None;
        }
        if self.parts.is_empty() {
            // The one before has been taken.
            (self.held, self.watched) = (None, None);
            let (answered, watched) = watch(self.answer()).await;
            self.tell(Course::answers);
            if let Some(error) = answered.as_ref().err().or(watched.refused.as_ref()) {
                self.refused(error);
            }
            self.watched = Some(watched);
            match answered {
                Ok(true) => {}
                Ok(false) => return Some(self.end(None)),
                Err(error) => return Some(self.end(Some(error))),
            }
        }
        let part = self.parts.pop_front()?;
        Some((Ok(Frame::data(part)), self))
    }

    /// Answers the next message; false when there is none.
    async fn answer(&mut self) -> Result<bool> {
        self.began = Instant::now();
        // Messages that are there already wait for no time to run out.
        if Instant::now() >= self.deadline {
            let fact = "the stream did not end within the time for the request";
            return Err(Error::new(Code::DeadlineExceeded, fact));
        }
        self.tell(Course::pauses);
        let Some(prefix) = self.messages.prefix(true).await? else {
            return Ok(false);
        };
        self.began = Instant::now();
        // Between messages a stream takes nobody's place.
        let service = &*self.service;
        let admission = service.admit(&self.principal)?;
        self.tell(Course::receives);
        let limit = service.limits().body_bytes;
        let (message, mut held) = self.messages.message(service, prefix, limit).await?;
        self.tell(Course::works);
        let turn = Turn {
            principal: &self.principal,
            deadline: self.deadline,
        };
        let answer = self.method.call(service, message, turn).await?;
        let parts = framed(answer)?;
        service.grow_held(&mut held, length(&parts))?;
        self.parts = parts.into();
        self.held = Some((admission, held));
        telemetry::answered(self.service.telemetry().clone(), self.began, None);
        Ok(true)
    }

    /// The status of the stream was sent long ago, and says nothing of this.
    fn refused(&self, error: &Error) {
        if error.code() == Code::TooManyRequests {
            self.tell(Course::refused);
        }
        if let Some(witness) = &self.witness {
            witness.refused(error, self.began);
        }
    }

    fn tell(&self, word: fn(&Course)) {
        self.course.iter().for_each(word);
    }

    fn end(mut self, error: Option<Error>) -> (StreamFrame, Self) {
        self.ended = true;
        let trailers = trailers(error.as_ref());
        (Ok(Frame::trailers(trailers)), self)
    }
}

/// The answer to a call, or its refusal.
pub fn respond(answer: Result<Answer>) -> Response {
    match answer {
        Ok(Answer { parts, held }) => reply(Parts::with_trailers(parts, trailers(None), held)),
        Err(error) => refuse(error),
    }
}

fn reply(body: Body) -> Response {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
    // What requests may be; answers come as they are.
    let accepted = HeaderValue::from_static("identity,gzip,deflate");
    headers.insert(HeaderName::from_static("grpc-accept-encoding"), accepted);
    response
}

/// The parts of a message, with its prefix in front.
fn framed(mut parts: Vec<Bytes>) -> Result<Vec<Bytes>> {
    let length = u32::try_from(length(&parts)).map_err(|_| {
        let fact = "the answer has more than 4 GiB, which a message of gRPC cannot have";
        Error::new(Code::BodyTooLarge, fact).with_remedy("ask over HTTP, or for fewer outputs")
    })?;
    let [a, b, c, d] = length.to_be_bytes();
    parts.insert(0, Bytes::copy_from_slice(&[0, a, b, c, d]));
    Ok(parts)
}

fn length(parts: &[Bytes]) -> u64 {
    parts.iter().map(|part| part.len() as u64).sum()
}

fn trailers(error: Option<&Error>) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert(STATUS, HeaderValue::from(error.map_or(OK, status)));
    let Some(error) = error else {
        return trailers;
    };
    let message = utf8_percent_encode(&error.to_string(), UNPRINTABLE).to_string();
    if let Ok(message) = HeaderValue::from_str(&message) {
        trailers.insert(MESSAGE, message);
    }
    trailers.insert(CODE, HeaderValue::from_static(error.code().as_str()));
    if let Some(seconds) = error.retry_after_seconds() {
        trailers.insert(PUSHBACK, HeaderValue::from(seconds * 1000));
    }
    trailers
}

/// What stands in a status message as `%` and two digits; bytes that are not ASCII always do.
const UNPRINTABLE: &AsciiSet = &CONTROLS.add(b'%');

const OK: u16 = 0;
const UNIMPLEMENTED: u16 = 12;

fn status(error: &Error) -> u16 {
    if matches!(error.code(), Code::MethodNotAllowed | Code::RouteNotFound) {
        return UNIMPLEMENTED;
    }
    match error.kind() {
        // INVALID_ARGUMENT. What is too large is so whenever it is sent again, unlike what is meant
        // by RESOURCE_EXHAUSTED.
        Kind::InvalidRequest | Kind::InvalidInput | Kind::TooLarge => 3,
        Kind::Timeout => 4,
        Kind::NotFound => 5,
        Kind::Conflict => 6,
        Kind::Forbidden => 7,
        Kind::Overloaded => 8,
        // FAILED_PRECONDITION: not to be tried again as it is.
        Kind::Model | Kind::Precondition => 9,
        Kind::Internal => 13,
        Kind::Unavailable => 14,
        Kind::Unauthenticated => 16,
    }
}

fn is_grpc(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE);
    content_type.is_some_and(|value| value == CONTENT_TYPE || value == "application/grpc+proto")
}

fn unsupported() -> Response {
    let fact = format!("the content-type is neither {CONTENT_TYPE} nor {CONTENT_TYPE}+proto");
    let mut response = ApiError(Error::new(Code::InvalidRequest, fact)).into_response();
    *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
    response
}

/// How long the caller waits: up to eight digits and a unit.
fn timeout(headers: &HeaderMap) -> Result<Option<Duration>> {
    let Some(value) = headers.get("grpc-timeout") else {
        return Ok(None);
    };
    let read = value.to_str().ok().and_then(read_timeout);
    read.map(Some).ok_or_else(|| {
        let fact = "grpc-timeout is not up to eight digits and one of H, M, S, m, u, n";
        Error::new(Code::InvalidRequest, fact)
    })
}

fn read_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

fn incomplete() -> Error {
    Error::new(Code::BodyIncomplete, "the call ended within a message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read() {
        let cases = [
            ("1S", Some(Duration::from_secs(1))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("250m", Some(Duration::from_millis(250))),
            ("7u", Some(Duration::from_micros(7))),
            ("7n", Some(Duration::from_nanos(7))),
            ("0M", Some(Duration::ZERO)),
        ];
        for (text, want) in cases {
            assert_eq!(read_timeout(text), want, "{text}");
        }
        for text in ["", "S", "1", "1s", "-1S", "+1S", "123456789S", "1ü", "ü"] {
            assert_eq!(read_timeout(text), None, "{text}");
        }
    }

    #[test]
    fn every_error_has_a_status_and_its_code() {
        for &code in Code::ALL {
            let trailers = trailers(Some(&Error::new(code, "100 % ü\n")));
            assert_ne!(trailers[STATUS], "0");
            assert_eq!(trailers[CODE], code.as_str());
            let message = trailers[MESSAGE].to_str().unwrap();
            assert!(message.contains("100 %25 %C3%BC"), "{message}");
        }
    }
}
