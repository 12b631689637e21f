//! `/v1/models`: upload, list, describe, delete.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use blindai_core::api::{CONTENT_DIGEST, Deleted, ModelList};
use blindai_core::{Code, Digest, Error, ModelInfo, ModelName, ModelVersion, Result};

use super::ApiError;
use super::body::{Chunks, announced_length};
use super::params::Params;
use crate::access::Principal;
use crate::service::{Incoming, Service};

type Answer<T> = std::result::Result<T, ApiError>;

/// The routes of `/v1/models`.
pub fn routes() -> Router<Arc<Service>> {
    Router::new()
        .route("/v1/models", get(list))
        .route(
            "/v1/models/{name}",
            get(describe).put(upload).delete(delete),
        )
        .route(
            "/v1/models/{name}/versions/{version}",
            get(describe_version)
                .put(upload_version)
                .delete(delete_version),
        )
}

async fn list(
    State(service): State<Arc<Service>>,
    principal: Principal,
) -> Answer<Json<ModelList>> {
    let _admission = service.admit(&principal)?;
    let models = service.list(&principal)?;
    Ok(Json(ModelList { models }))
}

async fn describe(
    State(service): State<Arc<Service>>,
    principal: Principal,
    Params(name): Params<String>,
) -> Answer<Json<ModelInfo>> {
    let _admission = service.admit(&principal)?;
    Ok(Json(service.describe(&principal, &name, None)?.0))
}

async fn describe_version(
    State(service): State<Arc<Service>>,
    principal: Principal,
    Params((name, version)): Params<(String, String)>,
) -> Answer<Json<ModelInfo>> {
    let _admission = service.admit(&principal)?;
    Ok(Json(service.describe(&principal, &name, Some(&version))?.0))
}

async fn delete(
    State(service): State<Arc<Service>>,
    principal: Principal,
    Params(name): Params<String>,
) -> Answer<Json<Deleted>> {
    let _admission = service.admit(&principal)?;
    let deleted = service.delete(&principal, &name, None)?;
    Ok(Json(Deleted { deleted }))
}

async fn delete_version(
    State(service): State<Arc<Service>>,
    principal: Principal,
    Params((name, version)): Params<(String, String)>,
) -> Answer<Json<Deleted>> {
    let _admission = service.admit(&principal)?;
    let deleted = service.delete(&principal, &name, Some(&version))?;
    Ok(Json(Deleted { deleted }))
}

async fn upload(
    State(service): State<Arc<Service>>,
    principal: Principal,
    Params(name): Params<String>,
    headers: HeaderMap,
    body: Body,
) -> Answer<Response> {
    store(&service, &principal, &name.parse()?, None, &headers, body).await
}

async fn upload_version(
    State(service): State<Arc<Service>>,
    principal: Principal,
    Params((name, version)): Params<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Answer<Response> {
    let version = version.parse()?;
    store(
        &service,
        &principal,
        &name.parse()?,
        Some(&version),
        &headers,
        body,
    )
    .await
}

async fn store(
    service: &Service,
    principal: &Principal,
    name: &ModelName,
    version: Option<&ModelVersion>,
    headers: &HeaderMap,
    body: Body,
) -> Answer<Response> {
    let admission = service.admit_upload(principal)?;
    let expected = content_digest(headers)?;
    let announced = announced_length(headers);
    let mut incoming = service.begin_upload(principal, name, announced)?;
    receive(service, body, &mut incoming, admission.deadline).await?;
    let (info, new) = service.upload(name, version, expected, incoming).await?;
    let status = if new {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    Ok((status, Json(info)).into_response())
}

// Chunk by chunk into the model file: the body is never held as a whole.
async fn receive(
    service: &Service,
    body: Body,
    incoming: &mut Incoming,
    deadline: Instant,
) -> Result<()> {
    let mut chunks = Chunks::new(body, service.limits().idle(), deadline);
    while let Some(chunk) = chunks.next().await? {
        incoming.write(&chunk)?;
    }
    Ok(())
}

// RFC 9530: a list of `algorithm=:base64:`; others than sha-256 are none of our business.
fn content_digest(headers: &HeaderMap) -> Result<Option<Digest>> {
    let Some(header) = headers.get(CONTENT_DIGEST) else {
        return Ok(None);
    };
    let malformed = || {
        let fact = "content-digest is not of the form sha-256=:<base64>:";
        Error::new(Code::InvalidRequest, fact)
    };
    let text = header.to_str().map_err(|_| malformed())?;
    let entries = text.split(',').map(str::trim);
    let Some(value) = entries.into_iter().find_map(|e| e.strip_prefix("sha-256=")) else {
        return Ok(None);
    };
    let inner = value.strip_prefix(':').and_then(|v| v.strip_suffix(':'));
    let bytes = inner.and_then(|inner| BASE64_STANDARD.decode(inner).ok());
    let digest = bytes.and_then(|bytes| bytes.try_into().ok());
    digest
        .map(Digest::from_bytes)
        .map(Some)
        .ok_or_else(malformed)
}
