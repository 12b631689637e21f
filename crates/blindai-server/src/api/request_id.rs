use std::time::Instant;

use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderName, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::Response;
use blindai_core::api::REQUEST_ID;
use blindai_core::{Code, Error};

use super::grpc::is_reply;

const ID_BYTES: usize = 64;

/// Gives every request an id, writes the body of errors, and logs the shape of what happened.
///
/// The log holds the route's pattern and never the path: names of models belong to their owners.
pub async fn observe(request: Request, next: Next) -> Response {
    let started = Instant::now();
    let id = request_id(&request);
    let method = method(&request);
    let path = request.extensions().get::<MatchedPath>().cloned();
    let mut response = next.run(request).await;
    let error = response.extensions_mut().remove::<Error>();
    if let Some(error) = error.as_ref().filter(|_| !is_reply(&response)) {
        write_error(&mut response, error, &id);
    }
    if let Ok(value) = HeaderValue::from_str(&id) {
        response
            .headers_mut()
            .insert(HeaderName::from_static(REQUEST_ID), value);
    }
    let code = error.as_ref().map_or("", |error| error.code().as_str());
    let status = response.status().as_u16();
    let route = path.as_ref().map_or("-", MatchedPath::as_str);
    let us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
    if error.is_some() {
        tracing::info!(method, route, status, code, us, id, "refused");
    } else {
        tracing::debug!(method, route, status, us, id, "answered");
    }
    if let Some(error) = error.filter(|error| error.code() == Code::Internal) {
        // Facts of our own faults speak of devices and files, never of a caller's data.
        tracing::error!(id, fact = error.fact(), "internal error");
    }
    response
}

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
