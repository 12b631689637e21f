//! `/v2/health`: on both ports.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use blindai_core::{Code, Error};

use super::ApiError;
use crate::service::Service;

/// The routes of `/v2/health`.
pub fn routes() -> Router<Arc<Service>> {
    Router::new()
        .route("/v2/health/live", get(live))
        .route("/v2/health/ready", get(ready))
}

async fn live() -> StatusCode {
    StatusCode::OK
}

async fn ready(State(service): State<Arc<Service>>) -> Result<StatusCode, ApiError> {
    if service.is_ready() {
        return Ok(StatusCode::OK);
    }
    let fact = "the server is starting or stopping";
    Err(Error::new(Code::NotReady, fact).into())
}
