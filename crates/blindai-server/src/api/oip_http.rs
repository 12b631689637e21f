//! The Open Inference Protocol over HTTP, with the pages of Triton that its clients ask for. Health is
//! in [`super::health`].

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Json, Router};
use blindai_core::oip::{
    Encoded, HEADER_LENGTH, IndexEntry, InferRequest, ModelConfig, ModelMetadata, ServerMetadata,
    StatisticsList, decode_request, encode_response,
};
use blindai_core::pins::MODEL;
use blindai_core::{Code, Error, Result};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::body::{CONTROL_BYTES, Parts, collect};
use super::coding::Coding;
use super::params::Params;
use super::{ApiError, busy, oip, receipt};
use crate::access::Principal;
use crate::budget::Reservation;
use crate::service::{Service, Turn};

type Answer<T> = std::result::Result<T, ApiError>;

/// The routes of `/v2`.
pub fn routes() -> Router<Arc<Service>> {
    Router::new()
        .route("/v2", get(server))
        .route("/v2/repository/index", post(index))
        .route("/v2/repository/models/{name}/load", post(load))
        .route("/v2/repository/models/{name}/unload", post(unload))
        .route("/v2/models/stats", get(all_statistics))
        .merge(model_routes("/v2/models/{name}"))
        .merge(model_routes("/v2/models/{name}/versions/{version}"))
}

fn model_routes(path: &str) -> Router<Arc<Service>> {
    Router::new()
        .route(path, get(model))
        .route(&format!("{path}/ready"), get(ready))
        .route(&format!("{path}/config"), get(config))
        .route(&format!("{path}/stats"), get(statistics))
        .route(&format!("{path}/infer"), post(infer))
}

/// The model in a path, in whatever version.
#[derive(Deserialize)]
struct Id {
    name: String,
    version: Option<String>,
}

async fn server(State(service): State<Arc<Service>>) -> Json<ServerMetadata> {
    Json(oip::server(&service))
}

async fn model(
    State(service): State<Arc<Service>>,
    principal: Principal,
    Params(id): Params<Id>,
) -> Answer<Json<ModelMetadata>> {
    let _admission = service.admit(&principal)?;
    let (info, versions) = service.describe(&principal, &id.name, id.version.as_deref())?;
    Ok(Json(ModelMetadata::new(&info, versions)))
}

async fn ready(
    State(service): State<Arc<Service>>,
    principal: Principal,
    Params(id): Params<Id>,
) -> Answer<Json<ModelReady>> {
    service.describe(&principal, &id.name, id.version.as_deref())?;
    Ok(Json(ModelReady {
        name: id.name,
        ready: true,
    }))
}

#[derive(Serialize)]
struct ModelReady {
    name: String,
    ready: bool,
}

async fn config(
    State(service): State<Arc<Service>>,
    principal: Principal,
    Params(id): Params<Id>,
) -> Answer<Json<ModelConfig>> {
    let _admission = service.admit(&principal)?;
    let (info, _) = service.describe(&principal, &id.name, id.version.as_deref())?;
    Ok(Json(ModelConfig::new(&info)))
}

async fn statistics(
    State(service): State<Arc<Service>>,
    principal: Principal,
    Params(id): Params<Id>,
) -> Answer<Json<StatisticsList>> {
    let _admission = service.admit(&principal)?;
    let statistics = service.statistics(&principal, Some(&id.name), id.version.as_deref())?;
    Ok(Json(statistics))
}

async fn all_statistics(
    State(service): State<Arc<Service>>,
    principal: Principal,
) -> Answer<Json<StatisticsList>> {
    let _admission = service.admit(&principal)?;
    Ok(Json(service.statistics(&principal, None, None)?))
}

async fn index(
    State(service): State<Arc<Service>>,
    principal: Principal,
    headers: HeaderMap,
    body: Body,
) -> Answer<Json<Vec<IndexEntry>>> {
    let admission = service.admit(&principal)?;
    let deadline = admission.deadline;
    let (body, _held) = collect(&service, &headers, body, CONTROL_BYTES, deadline).await?;
    let ready = only_ready(&body)?;
    Ok(Json(oip::index(&service, &principal, ready)?))
}

fn only_ready(body: &[u8]) -> Result<bool> {
    #[derive(Deserialize)]
    struct Index {
        #[serde(default)]
        ready: bool,
    }
    if body.is_empty() {
        return Ok(false);
    }
    let index: Index = serde_json::from_slice(body).map_err(|_| {
        let fact = "the body is not an object in which ready is a Boolean";
        Error::new(Code::InvalidRequest, fact)
    })?;
    Ok(index.ready)
}

async fn load(
    State(service): State<Arc<Service>>,
    principal: Principal,
    Params(name): Params<String>,
    headers: HeaderMap,
    body: Body,
) -> Answer<StatusCode> {
    let admission = service.admit(&principal)?;
    let (limit, deadline) = (service.limits().body_bytes, admission.deadline);
    let (body, _held) = collect(&service, &headers, body, limit, deadline).await?;
    let with_parameters = has_parameters(&body)?;
    oip::load(
        &service,
        &principal,
        &name,
        with_parameters,
        admission.deadline,
    )
    .await?;
    Ok(StatusCode::OK)
}

async fn unload(
    State(service): State<Arc<Service>>,
    principal: Principal,
    Params(name): Params<String>,
) -> Answer<StatusCode> {
    let _admission = service.admit(&principal)?;
    oip::unload(&service, &principal, &name)?;
    Ok(StatusCode::OK)
}

async fn infer(
    State(service): State<Arc<Service>>,
    principal: Principal,
    Params(id): Params<Id>,
    headers: HeaderMap,
    body: Body,
) -> Answer<Response> {
    Ok(run(&service, &principal, &id, &headers, body).await?)
}

async fn run(
    service: &Service,
    principal: &Principal,
    id: &Id,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response> {
    let admission = service.admit(principal)?;
    let header_length = header_length(headers)?;
    let asked = receipt::asked(headers)?;
    let (limit, deadline) = (service.limits().body_bytes, admission.deadline);
    let (body, mut held) = collect(service, headers, body, limit, deadline).await?;
    let version = id.version.as_deref();
    let mut request = match header_length {
        // Nothing of it is JSON.
        Some(0) => {
            let (model, _) = service.describe(principal, &id.name, version)?;
            InferRequest::new(vec![model.signature.raw_input(body)?])
        }
        _ => decode(service, body, header_length, &mut held)?,
    };
    let turn = Turn {
        principal,
        deadline,
    };
    let in_header = asked.is_some();
    request.receipt = asked.or(request.receipt);
    let answered = oip::infer(service, &id.name, version, &mut request, turn).await?;
    let (mut response, model) = answered;
    let receipt = response.receipt.take_if(|_| in_header);
    let (size, coding) = (oip::size(&response), Coding::wanted(headers));
    service.grow_held(&mut held, size as u64)?;
    let encoded = busy(size, || {
        let format = |output: &str| request.format_of(output);
        let mut grow = |bytes| service.grow_held(&mut held, bytes);
        let mut encoded = encode_response(&response, format, &mut grow)?;
        if coding != Coding::Identity {
            // As much again: that anything becomes shorter is not certain.
            grow(encoded.len() as u64)?;
            encoded.parts = coding.compress(encoded.parts);
        }
        Ok(encoded)
    })?;
    let mut response = write(encoded, coding, (admission, held))?;
    if let Some(receipt) = receipt {
        receipt::tell(response.headers_mut(), &receipt);
    }
    if principal.is_choosy() {
        let digest = HeaderValue::try_from(model.to_string()).expect("a digest is text");
        response.headers_mut().insert(MODEL, digest);
    }
    Ok(response)
}

fn decode(
    service: &Service,
    body: Bytes,
    header_length: Option<usize>,
    held: &mut Reservation,
) -> Result<InferRequest> {
    let text = header_length.unwrap_or(body.len());
    // The names in it, and what else is read from it beside tensors.
    service.grow_held(held, text as u64)?;
    busy(text, || {
        decode_request(body, header_length, &mut oip::room(service, held))
    })
}

fn has_parameters(body: &[u8]) -> Result<bool> {
    // Files may stand in it: nothing of them is kept.
    #[derive(Deserialize)]
    struct Load<'a> {
        #[serde(borrow)]
        parameters: Option<&'a RawValue>,
    }
    if body.is_empty() {
        return Ok(false);
    }
    let misread = || {
        let fact = "the body is not an object with parameters";
        Error::new(Code::InvalidRequest, fact)
    };
    let load: Load<'_> = serde_json::from_slice(body).map_err(|_| misread())?;
    let Some(parameters) = load.parameters else {
        return Ok(false);
    };
    let inside = parameters.get().strip_prefix('{').ok_or_else(misread)?;
    Ok(inside.trim_start() != "}")
}

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
fn write(encoded: Encoded, coding: Coding, held: impl Send + Unpin + 'static) -> Result<Response> {
    let (length, header_length) = (encoded.len(), encoded.header_length);
    let mut response = Response::new(Parts::body(encoded.parts, held));
    let headers = response.headers_mut();
    if let Some(name) = coding.name() {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(name));
    }
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
