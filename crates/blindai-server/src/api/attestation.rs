//! `/v1/attestation`: evidence, on both ports.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use blindai_core::{Code, Error, Nonce, Result};

use super::ApiError;
use crate::identity::Share;
use crate::service::Service;

/// The route of `/v1/attestation`, with a share of the platform for itself.
pub fn routes() -> Router<Arc<Service>> {
    Router::new()
        .route(blindai_core::api::ATTESTATION, get(attestation))
        .layer(Extension(Share::default()))
}

async fn attestation(
    State(service): State<Arc<Service>>,
    Extension(share): Extension<Share>,
    RawQuery(query): RawQuery,
) -> std::result::Result<Response, ApiError> {
    let nonce = nonce(query.as_deref())?;
    let document = service.attest(nonce, &share).await?;
    let headers = [
        (header::CONTENT_TYPE, "application/json"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    Ok((headers, Body::from(document)).into_response())
}

fn nonce(query: Option<&str>) -> Result<Option<Nonce>> {
    let Some(query) = query.filter(|query| !query.is_empty()) else {
        return Ok(None);
    };
    let nonce = query.strip_prefix("nonce=").and_then(Nonce::from_hex);
    nonce.map(Some).ok_or_else(|| {
        let fact = "the query is not nonce=<64 hexadecimal digits>";
        Error::new(Code::InvalidRequest, fact)
    })
}
