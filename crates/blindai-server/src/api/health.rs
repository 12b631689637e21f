//! `/v2/health`: on both ports.

use std::sync::Arc;

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use blindai_core::{Code, CollateralState, Error};
use serde::Serialize;

use super::ApiError;
use crate::service::Service;

/// The routes of `/v2/health`.
pub fn routes() -> Router<Arc<Service>> {
    Router::new()
        .route("/v2/health/live", get(live))
        .route("/v2/health/ready", get(ready))
}

async fn live() -> Json<Live> {
    Json(Live { live: true })
}

/// Ready also without fresh collateral: clients may fetch their own. But it says so.
async fn ready(State(service): State<Arc<Service>>) -> Result<Json<Ready>, ApiError> {
    if service.is_ready() {
        return Ok(Json(Ready {
            ready: true,
            collateral: service.collateral_state(),
        }));
    }
    let fact = "the server is starting or stopping";
    Err(Error::new(Code::NotReady, fact).into())
}

#[derive(Serialize)]
struct Live {
    live: bool,
}

#[derive(Serialize)]
struct Ready {
    ready: bool,
    collateral: CollateralState,
}
