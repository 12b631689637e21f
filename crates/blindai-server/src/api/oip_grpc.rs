//! The Open Inference Protocol over gRPC, with the methods of Triton that its clients call.

use std::sync::Arc;

use axum::Router;
use axum::response::Response;
use axum::routing::post;
use blindai_core::oip::grpc::{self as messages, InferCall, ModelId, decode_model};
use blindai_core::oip::{IndexEntry, InferResponse, ModelConfig, ModelMetadata};
use blindai_core::{Code, Error, Result};
use bytes::Bytes;

use super::grpc::{Call, Method, refuse};
use super::{busy, oip};
use crate::service::{Service, Turn};
use crate::telemetry;

macro_rules! path {
    ($method:literal) => {
        concat!("/inference.GRPCInferenceService/", $method)
    };
}

/// The methods of `inference.GRPCInferenceService`.
pub fn routes() -> Router<Arc<Service>> {
    Router::new()
        .route(path!("ServerLive"), post(server_live))
        .route(path!("ServerReady"), post(server_ready))
        .route(path!("ServerMetadata"), post(server_metadata))
        .route(path!("ModelReady"), post(model_ready))
        .route(path!("ModelMetadata"), post(model_metadata))
        .route(path!("ModelInfer"), post(model_infer))
        .route(path!("ModelStreamInfer"), post(model_stream_infer))
        .route(path!("ModelConfig"), post(model_config))
        .route(path!("ModelStatistics"), post(model_statistics))
        .route(path!("RepositoryIndex"), post(repository_index))
        .route(path!("RepositoryModelLoad"), post(load))
        .route(path!("RepositoryModelUnload"), post(unload))
        .route(path!("{method}"), post(unknown))
}

async fn server_live(call: Call) -> Response {
    call.tell_anybody(|_| Ok(messages::encode_flag(true))).await
}

async fn server_ready(call: Call) -> Response {
    call.tell_anybody(|service| Ok(messages::encode_flag(service.is_ready())))
        .await
}

async fn server_metadata(call: Call) -> Response {
    call.tell_anybody(|service| Ok(oip::server(service).to_protobuf()))
        .await
}

/// A model that is not there is not ready; that is no error, but who may ask for none is refused.
async fn model_ready(call: Call) -> Response {
    call.tell_at_once(|service, principal, message| {
        let ModelId { name, version } = decode_model(message)?;
        match service.describe(principal, &name, version.as_deref()) {
            Err(error) if error.code() != Code::ModelNotFound => Err(error),
            found => Ok(messages::encode_flag(found.is_ok())),
        }
    })
    .await
}

async fn model_metadata(call: Call) -> Response {
    call.tell(|service, principal, message| {
        let ModelId { name, version } = decode_model(message)?;
        let (info, versions) = service.describe(principal, &name, version.as_deref())?;
        Ok(ModelMetadata::new(&info, versions).to_protobuf())
    })
    .await
}

async fn model_config(call: Call) -> Response {
    call.tell(|service, principal, message| {
        let ModelId { name, version } = decode_model(message)?;
        let (info, _) = service.describe(principal, &name, version.as_deref())?;
        Ok(ModelConfig::new(&info).to_protobuf())
    })
    .await
}

async fn model_statistics(call: Call) -> Response {
    call.tell(|service, principal, message| {
        let ModelId { name, version } = decode_model(message)?;
        let name = Some(name.as_str()).filter(|name| !name.is_empty());
        Ok(service
            .statistics(principal, name, version.as_deref())?
            .to_protobuf())
    })
    .await
}

async fn repository_index(call: Call) -> Response {
    call.tell(|service, principal, message| {
        let ready = messages::decode_index(message)?;
        let entries = oip::index(service, principal, ready)?;
        Ok(IndexEntry::list_to_protobuf(&entries))
    })
    .await
}

async fn load(call: Call) -> Response {
    call.answer(Load).await
}

async fn unload(call: Call) -> Response {
    call.tell(|service, principal, message| {
        let (name, _) = messages::decode_load(message)?;
        oip::unload(service, principal, &name).map(|()| Bytes::new())
    })
    .await
}

async fn unknown(_: Call) -> Response {
    let fact = "the service has no such method";
    refuse(Error::new(Code::RouteNotFound, fact))
}

async fn model_infer(call: Call) -> Response {
    call.answer(Infer).await
}

async fn model_stream_infer(call: Call) -> Response {
    call.stream(StreamInfer)
}

struct Load;

impl Method for Load {
    async fn call(&self, service: &Service, message: Bytes, turn: Turn<'_>) -> Result<Vec<Bytes>> {
        let (name, with_parameters) = messages::decode_load(message)?;
        let Turn {
            principal,
            deadline,
        } = turn;
        oip::load(service, principal, &name, with_parameters, deadline).await?;
        Ok(vec![Bytes::new()])
    }
}

struct Infer;

impl Method for Infer {
    async fn call(&self, service: &Service, message: Bytes, turn: Turn<'_>) -> Result<Vec<Bytes>> {
        let response = infer(service, message, turn).await?;
        Ok(messages::encode_infer(&response))
    }
}

struct StreamInfer;

impl Method for StreamInfer {
    /// An answer or an error: a request that cannot be answered does not end the stream.
    async fn call(&self, service: &Service, message: Bytes, turn: Turn<'_>) -> Result<Vec<Bytes>> {
        let id = messages::request_id(message.clone());
        Ok(match infer(service, message, turn).await {
            Ok(response) => messages::encode_stream_infer(&response),
            Err(error) => {
                telemetry::refused(&error);
                vec![messages::encode_stream_error(&error, id.as_deref())]
            }
        })
    }
}

async fn infer(service: &Service, message: Bytes, turn: Turn<'_>) -> Result<InferResponse> {
    let mut held = service.reserve_body(0)?;
    let InferCall { model, mut request } = busy(message.len(), || {
        messages::decode_infer(message, &mut oip::room(service, &mut held))
    })?;
    let version = model.version.as_deref();
    let (response, _) = oip::infer(service, &model.name, version, &mut request, turn).await?;
    Ok(response)
}
