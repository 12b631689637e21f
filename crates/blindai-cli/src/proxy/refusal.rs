//! What the proxy answers by itself: errors in the shape of the server's, and what fits into memory.

use blindai_client::{ClientError, ErrorKind};
use blindai_core::{ErrorBody, printable};
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

/// The body of an answer: of the proxy itself, or of the server on its way.
pub type Answer = Either<Full<Bytes>, Incoming>;

/// Why a request is not forwarded, or has no answer.
#[derive(Debug)]
pub struct Refusal {
    status: StatusCode,
    code: &'static str,
    fact: String,
    remedy: String,
}

impl Refusal {
    /// The server is not trusted, so nothing was sent to it.
    pub fn distrusted(error: &ClientError) -> Self {
        Self::of(StatusCode::SERVICE_UNAVAILABLE, error)
    }

    /// There is no connection to the server, so nothing was sent to it.
    pub fn unreachable(error: &ClientError) -> Self {
        match error.kind() {
            ErrorKind::Attestation => Self::distrusted(error),
            _ if error.code() == "connect-timeout" => Self::of(StatusCode::GATEWAY_TIMEOUT, error),
            _ => Self::of(StatusCode::BAD_GATEWAY, error),
        }
    }

    /// The connection to the server ended before the answer began.
    pub fn broken(error: &hyper::Error) -> Self {
        let fact = format!("the connection to the server broke: {error}");
        let remedy = "try again if the request may be made twice; the server may have seen it";
        Self::new(StatusCode::BAD_GATEWAY, "connection-lost", fact, remedy)
    }

    pub fn host(named: &str) -> Self {
        let fact = format!("the proxy does not answer to the host {named:?}");
        let remedy = "call it by localhost or a loopback address, or start it with --allow-host";
        Self::new(
            StatusCode::MISDIRECTED_REQUEST,
            "host-refused",
            fact,
            remedy,
        )
    }

    pub fn origin(origin: &str) -> Self {
        let fact = format!("pages of the origin {origin:?} may not use the proxy");
        let remedy = "if you trust all code of that origin, start the proxy with --allow-origin";
        Self::new(StatusCode::FORBIDDEN, "origin-refused", fact, remedy)
    }

    pub fn site(site: &str) -> Self {
        let fact = format!("a browser sends this for another page (Sec-Fetch-Site: {site})");
        let remedy = "type the address into the browser yourself; pages need --allow-origin";
        Self::new(StatusCode::FORBIDDEN, "origin-refused", fact, remedy)
    }

    pub fn method(method: &Method) -> Self {
        let fact = format!("the proxy does not take {method} here");
        let status = StatusCode::METHOD_NOT_ALLOWED;
        Self::new(status, "method-not-allowed", fact, "")
    }

    pub fn upgrade() -> Self {
        let fact = "the proxy upgrades to no other protocol";
        let remedy = "speak HTTP/1.1, or HTTP/2 from the first byte";
        Self::new(StatusCode::NOT_IMPLEMENTED, "upgrade-refused", fact, remedy)
    }

    pub fn expectation() -> Self {
        let fact = "the proxy meets no expectation but 100-continue";
        let status = StatusCode::EXPECTATION_FAILED;
        Self::new(
            status,
            "expectation-refused",
            fact,
            "leave out the header Expect",
        )
    }

    /// The stable code, for programs.
    #[cfg(test)]
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// The answer, in the words of gRPC for those who speak it.
    pub fn answer(self, grpc: bool) -> Response<Answer> {
        match grpc {
            true => self.grpc(),
            false => self.json(),
        }
    }

    fn json(self) -> Response<Answer> {
        let error = self.line();
        let body = ErrorBody {
            error,
            code: self.code.to_owned(),
            fact: self.fact,
            remedy: self.remedy,
            request_id: None,
        };
        let body = serde_json::to_vec(&body).expect("strings are JSON");
        let mut response = whole(body, "application/json");
        *response.status_mut() = self.status;
        response
    }

    fn grpc(self) -> Response<Answer> {
        let message = utf8_percent_encode(&self.line(), GRPC_MESSAGE).to_string();
        let mut response = empty(StatusCode::OK);
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(GRPC_STATUS, HeaderValue::from_static(self.grpc_status()));
        if let Ok(message) = HeaderValue::from_str(&message) {
            headers.insert(GRPC_MESSAGE_NAME, message);
        }
        response
    }

    fn grpc_status(&self) -> &'static str {
        match self.status {
            StatusCode::FORBIDDEN | StatusCode::MISDIRECTED_REQUEST => "7", // PERMISSION_DENIED
            status if status.is_client_error() => "3",                      // INVALID_ARGUMENT
            StatusCode::NOT_IMPLEMENTED => "12",                            // UNIMPLEMENTED
            _ => "14",                                                      // UNAVAILABLE
        }
    }

    fn line(&self) -> String {
        let line = format!("{}: {}", self.code, self.fact);
        match self.remedy.as_str() {
            "" => line,
            remedy => format!("{line} · {remedy}"),
        }
    }

    fn of(status: StatusCode, error: &ClientError) -> Self {
        Self::new(status, error.code(), error.fact(), error.remedy())
    }

    fn new(
        status: StatusCode,
        code: &'static str,
        fact: impl AsRef<str>,
        remedy: impl AsRef<str>,
    ) -> Self {
        Self {
            status,
            code,
            fact: printable(fact.as_ref(), TEXT_BYTES),
            remedy: printable(remedy.as_ref(), TEXT_BYTES),
        }
    }
}

/// Whether the request is a call of gRPC, whose errors are no HTTP errors.
pub fn is_grpc<B>(request: &Request<B>) -> bool {
    let kind = request.headers().get(CONTENT_TYPE);
    kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// An answer of the proxy itself. Nobody may keep it: it says what holds now.
pub fn whole(body: impl Into<Bytes>, kind: &'static str) -> Response<Answer> {
    let mut response = Response::new(Either::Left(Full::new(body.into())));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// An answer without a body.
pub fn empty(status: StatusCode) -> Response<Answer> {
    let mut response = Response::new(Either::Left(Full::default()));
    *response.status_mut() = status;
    response
}

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE_NAME: HeaderName = HeaderName::from_static("grpc-message");
/// What `grpc-message` does not hold as it is.
const GRPC_MESSAGE: &AsciiSet = &CONTROLS.add(b'%');
/// Keeps `grpc-message` well within what clients take as headers.
const TEXT_BYTES: usize = 1024;
