use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use blindai_core::api::{REQUEST_ID, TRACEPARENT};
use blindai_core::{Code, Error};

use super::grpc::is_reply;
use crate::telemetry::{self, Outcome, Port, Telemetry, TraceContext};

const ID_BYTES: usize = 64;

/// Who watches a port.
#[derive(Clone)]
pub struct Observer {
    pub telemetry: Arc<Telemetry>,
    pub port: Port,
}

/// Why a request was refused, for what serves the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused(pub Code);

/// Gives every request an id, writes the body of errors, and logs, counts and traces the shape of what
/// happened.
///
/// All of these hold the route's pattern and never the path: names of models belong to their owners.
pub async fn observe(
    State(observer): State<Observer>,
    mut request: Request,
    next: Next,
) -> Response {
    let started = Instant::now();
    let mut trace = observer.trace(&request);
    let witness = Witness {
        id: request_id(&request).into(),
        method: method(&request),
        path: request.extensions().get().cloned(),
        observer,
    };
    request.extensions_mut().insert(witness.clone());
    let mut response = next.run(request).await;
    let error = response.extensions_mut().remove::<Error>();
    if let Some(error) = error.as_ref().filter(|_| !is_reply(&response)) {
        write_error(&mut response, error, &witness.id);
    }
    if let Some(error) = &error {
        response.extensions_mut().insert(Refused(error.code()));
    }
    if let Ok(value) = HeaderValue::from_str(&witness.id) {
        response
            .headers_mut()
            .insert(HeaderName::from_static(REQUEST_ID), value);
    }
    witness.tell(
        response.status(),
        error.as_ref(),
        started,
        trace.as_deref_mut(),
    );
    telemetry::answered(witness.observer.telemetry, started, trace);
    response
}

/// Who tells what became of a request; and of the messages of a stream, whose status has been sent
/// before any of them came.
#[derive(Clone)]
pub struct Witness {
    observer: Observer,
    id: Arc<str>,
    method: &'static str,
    path: Option<MatchedPath>,
}

impl Witness {
    /// A message that came at this time was refused, or ended its stream.
    pub fn refused(&self, error: &Error, came: Instant) {
        self.tell(StatusCode::OK, Some(error), came, None);
    }

    fn tell(
        &self,
        status: StatusCode,
        error: Option<&Error>,
        started: Instant,
        mut trace: Option<&mut TraceContext>,
    ) {
        let route = self.path.as_ref().map(MatchedPath::as_str);
        let seen = Seen {
            id: &self.id,
            method: self.method,
            route: route.unwrap_or("-"),
            status: status.as_u16(),
            code: error.map(Error::code),
            us: u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
        };
        if let Some(trace) = &mut trace {
            seen.describe(trace);
        }
        seen.log(&self.observer, trace.as_deref());
        if let Some(error) = error.filter(|error| error.code() == Code::Internal) {
            // Facts of our own faults speak of devices and files, never of a caller's data.
            tracing::error!(id = seen.id, fact = error.fact(), "internal error");
        }
        let outcome = seen.code.map_or(Outcome::of(status), Outcome::Refused);
        let requests = &self.observer.telemetry.requests;
        requests.count(self.observer.port, route, self.method, outcome);
    }
}

impl Observer {
    fn trace(&self, request: &Request) -> Option<Box<TraceContext>> {
        let traces = self.telemetry.traces.as_ref()?;
        traces.begin(request.headers().get(TRACEPARENT), self.port)
    }
}

/// The shape of a request and its answer.
struct Seen<'a> {
    id: &'a str,
    method: &'static str,
    route: &'a str,
    status: u16,
    code: Option<Code>,
    us: u64,
}

impl Seen<'_> {
    fn describe(&self, trace: &mut TraceContext) {
        self.route.clone_into(&mut trace.route);
        trace.method = self.method;
        trace.status = self.status;
        trace.code = self.code;
    }

    fn log(&self, observer: &Observer, trace: Option<&TraceContext>) {
        let &Self {
            id,
            method,
            route,
            status,
            us,
            ..
        } = self;
        let port = observer.port.as_str();
        let trace = trace.map(TraceContext::id);
        let Some(code) = self.code.map(Code::as_str) else {
            tracing::info!(target: ANSWERED, port, method, route, status, us, id, trace, "answered");
            return;
        };
        let Some(left_out) = observer.telemetry.refusals.admit() else {
            return;
        };
        if left_out > 0 {
            tracing::warn!(left_out, "more requests were refused than are logged");
        }
        tracing::info!(port, method, route, status, code, us, id, trace, "refused");
    }
}

/// The target of events about answered requests, for who wants to see those.
pub const ANSWERED: &str = "blindai_server::answered";

// A method may be any word that a caller makes up.
fn method(request: &Request) -> &'static str {
    match *request.method() {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        _ => "other",
    }
}

fn request_id(request: &Request) -> String {
    let sent = request
        .headers()
        .get(REQUEST_ID)
        .and_then(|value| value.to_str().ok());
    match sent {
        Some(id) if is_harmless(id) => id.to_owned(),
        _ => random_id(),
    }
}

// It will stand in logs: nothing that could forge a line or fill the disk.
fn is_harmless(id: &str) -> bool {
    let harmless = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=ID_BYTES).contains(&id.len()) && id.bytes().all(harmless)
}

fn random_id() -> String {
    let mut bytes = [0; 8];
    // An id that is not random harms nobody.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    hex::encode(bytes)
}

fn write_error(response: &mut Response, error: &Error, id: &str) {
    let body = serde_json::to_vec(&error.to_body(Some(id))).expect("an error is JSON");
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    *response.body_mut() = body.into();
}
