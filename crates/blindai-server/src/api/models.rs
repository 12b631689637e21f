//! `/v1/models`: upload, list, describe, delete.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use blindai_core::api::{CONTENT_DIGEST, Deleted, ModelList, REPLACE};
use blindai_core::receipt::Deed;
use blindai_core::{Code, Digest, Error, ModelInfo, ModelName, ModelVersion, Result};

use super::ApiError;
use super::body::{Chunks, announced_length};
use super::params::Params;
use super::receipt;
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

async fn list(State(service): State<Arc<Service>>) -> Answer<Json<ModelList>> {
    let _admission = service.admit()?;
    let models = service.list();
    Ok(Json(ModelList { models }))
}

async fn describe(
    State(service): State<Arc<Service>>,
    Params(name): Params<String>,
) -> Answer<Json<ModelInfo>> {
    let _admission = service.admit()?;
    Ok(Json(service.describe(&name, None)?.0))
}

async fn describe_version(
    State(service): State<Arc<Service>>,
    Params((name, version)): Params<(String, String)>,
) -> Answer<Json<ModelInfo>> {
    let _admission = service.admit()?;
    Ok(Json(service.describe(&name, Some(&version))?.0))
}

async fn delete(
    State(service): State<Arc<Service>>,
    Params(name): Params<String>,
) -> Answer<Json<Deleted>> {
    let _admission = service.admit()?;
    let deleted = service.delete(&name, None)?;
    Ok(Json(Deleted { deleted }))
}

async fn delete_version(
    State(service): State<Arc<Service>>,
    Params((name, version)): Params<(String, String)>,
) -> Answer<Json<Deleted>> {
    let _admission = service.admit()?;
    let deleted = service.delete(&name, Some(&version))?;
    Ok(Json(Deleted { deleted }))
}

async fn upload(
    State(service): State<Arc<Service>>,
    Params(name): Params<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Answer<Response> {
    if replaces(query.as_deref())? {
        let fact = "without a version there is nothing to replace";
        let error = Error::new(Code::InvalidRequest, fact);
        return Err(error.with_remedy("name the version to replace").into());
    }
    let upload = Upload {
        name: name.parse()?,
        version: None,
        replaces: false,
    };
    upload.receive(&service, &headers, body).await
}

async fn upload_version(
    State(service): State<Arc<Service>>,
    Params((name, version)): Params<(String, String)>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Answer<Response> {
    let upload = Upload {
        version: Some(version.parse()?),
        name: name.parse()?,
        replaces: replaces(query.as_deref())?,
    };
    upload.receive(&service, &headers, body).await
}

/// What the head of an upload says.
struct Upload {
    name: ModelName,
    version: Option<ModelVersion>,
    replaces: bool,
}

impl Upload {
    async fn receive(self, service: &Service, headers: &HeaderMap, body: Body) -> Answer<Response> {
        let admission = service.admit_upload()?;
        let expected = content_digest(headers)?;
        let asked = receipt::asked(headers)?;
        let incoming = service.begin_upload(announced_length(headers))?;
        let mut incoming = incoming.replacing(self.replaces);
        receive(service, body, &mut incoming, admission.deadline).await?;
        let (name, version) = (&self.name, self.version.as_ref());
        let (info, new) = service.upload(name, version, expected, incoming).await?;
        let status = match new {
            true => StatusCode::CREATED,
            false => StatusCode::OK,
        };
        let model = (info.name.clone(), info.version.clone(), info.digest);
        let mut response = (status, Json(info)).into_response();
        if let Some(wish) = asked {
            let signed = service.receipt(wish, Deed::Upload, model)?;
            receipt::tell(response.headers_mut(), &signed);
        }
        Ok(response)
    }
}

fn replaces(query: Option<&str>) -> Result<bool> {
    match query.unwrap_or_default() {
        "" | "replace=false" => Ok(false),
        REPLACE => Ok(true),
        _ => {
            let fact = "the query is neither replace=true nor replace=false";
            Err(Error::new(Code::InvalidRequest, fact))
        }
    }
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
