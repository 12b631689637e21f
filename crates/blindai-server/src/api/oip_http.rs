//! The Open Inference Protocol over HTTP: metadata and inference. Health is in [`super::health`].

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use blindai_core::oip::{self, HEADER_LENGTH, ModelMetadata, ServerMetadata};
use blindai_core::{Code, Error, Result};
use blindai_engine::Caller;

use super::ApiError;
use super::body::{Parts, collect};
use super::params::Params;
use crate::service::Service;

type Answer<T> = std::result::Result<T, ApiError>;

/// The routes of `/v2`.
pub fn routes() -> Router<Arc<Service>> {
    Router::new()
        .route("/v2", get(server))
        .route("/v2/models/{name}", get(model))
        .route("/v2/models/{name}/ready", get(ready))
        .route("/v2/models/{name}/infer", post(infer))
        .route("/v2/models/{name}/versions/{version}", get(model_version))
        .route(
            "/v2/models/{name}/versions/{version}/ready",
            get(ready_version),
        )
        .route(
            "/v2/models/{name}/versions/{version}/infer",
            post(infer_version),
        )
}

async fn server() -> Json<ServerMetadata> {
    Json(ServerMetadata {
        name: "blindai".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        extensions: vec!["binary_tensor_data".to_owned()],
    })
}

async fn model(
    State(service): State<Arc<Service>>,
    Params(name): Params<String>,
) -> Answer<Json<ModelMetadata>> {
    metadata(&service, &name, None)
}

async fn model_version(
    State(service): State<Arc<Service>>,
    Params((name, version)): Params<(String, String)>,
) -> Answer<Json<ModelMetadata>> {
    metadata(&service, &name, Some(&version))
}

async fn ready(
    State(service): State<Arc<Service>>,
    Params(name): Params<String>,
) -> Answer<StatusCode> {
    service.describe(&name, None)?;
    Ok(StatusCode::OK)
}

async fn ready_version(
    State(service): State<Arc<Service>>,
    Params((name, version)): Params<(String, String)>,
) -> Answer<StatusCode> {
    service.describe(&name, Some(&version))?;
    Ok(StatusCode::OK)
}

async fn infer(
    State(service): State<Arc<Service>>,
    Extension(caller): Extension<Caller>,
    Params(name): Params<String>,
    headers: HeaderMap,
    body: Body,
) -> Answer<Response> {
    Ok(run(&service, caller, &name, None, &headers, body).await?)
}

async fn infer_version(
    State(service): State<Arc<Service>>,
    Extension(caller): Extension<Caller>,
    Params((name, version)): Params<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Answer<Response> {
    Ok(run(&service, caller, &name, Some(&version), &headers, body).await?)
}

fn metadata(service: &Service, name: &str, version: Option<&str>) -> Answer<Json<ModelMetadata>> {
    let _admission = service.admit()?;
    let (info, versions) = service.describe(name, version)?;
    Ok(Json(ModelMetadata::new(&info, versions)))
}

async fn run(
    service: &Service,
    caller: Caller,
    name: &str,
    version: Option<&str>,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response> {
    let admission = service.admit()?;
    let header_length = header_length(headers)?;
    let (body, mut held) = collect(service, headers, body, admission.deadline).await?;
    let mut request = busy(header_length.unwrap_or(body.len()), || {
        oip::decode_request(body, header_length)
    })?;
    let response = service
        .infer(name, version, &mut request, caller, admission.deadline)
        .await?;
    let bytes = response
        .outputs
        .iter()
        .map(|output| output.tensor.data().len());
    let bytes: usize = bytes.sum();
    let format_of = |output: &str| request.format_of(output);
    let encoded = busy(bytes, || oip::encode_response(&response, format_of))?;
    service.grow_held(&mut held, encoded.len() as u64)?;
    write(encoded, (admission, held))
}

/// Runs work on so many bytes; much of it not on the threads that serve connections.
fn busy<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    match bytes > BUSY_BYTES {
        true => tokio::task::block_in_place(work),
        false => work(),
    }
}

const BUSY_BYTES: usize = 1 << 20;

fn header_length(headers: &HeaderMap) -> Result<Option<usize>> {
    let Some(value) = headers.get(HEADER_LENGTH) else {
        return Ok(None);
    };
    let number = value.to_str().ok().and_then(|text| text.parse().ok());
    number.map(Some).ok_or_else(|| {
        Error::new(
            Code::InvalidRequest,
            format!("{HEADER_LENGTH} is not a number"),
        )
    })
}

/// The answer holds what the request held until the caller has read it.
fn write(encoded: oip::Encoded, held: impl Send + Unpin + 'static) -> Result<Response> {
    let (length, header_length) = (encoded.len(), encoded.header_length);
    let mut response = Response::new(Parts::body(encoded.parts, held));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    let content_type = match header_length {
        Some(header_length) => {
            let name = HeaderName::from_static(HEADER_LENGTH);
            headers.insert(name, HeaderValue::from(header_length));
            "application/octet-stream"
        }
        None => "application/json",
    };
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    Ok(response)
}
