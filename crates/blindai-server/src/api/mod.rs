//! The protocols: each decodes a request, calls one verb of the [`Service`] and encodes the answer.

mod attestation;
mod body;
mod coding;
mod error;
mod grpc;
mod health;
mod legacy;
mod metrics;
mod models;
mod oip;
mod oip_grpc;
mod oip_http;
mod params;
mod receipt;
mod request_id;

use std::sync::Arc;

use axum::Router;
use axum::middleware::from_fn_with_state;

pub use error::ApiError;
pub(crate) use error::status;
pub use legacy::LastSent;
pub use request_id::ANSWERED;

use crate::service::Service;
use crate::telemetry::Port;
use request_id::Observer;

/// The attested port: all data and all models. `legacy` says whether BlindAI 0.3 is spoken.
pub fn attested(service: Arc<Service>, legacy: bool) -> Router {
    let router = models::routes()
        .merge(legacy::exchange(legacy))
        .merge(oip_http::routes())
        .merge(oip_grpc::routes())
        .merge(attestation::routes())
        .merge(health::routes());
    finish(router, service, Port::Attested)
}

/// The public port: evidence and health, metrics where they are on, no user data.
pub fn public(service: Arc<Service>, legacy: bool) -> Router {
    let router = attestation::routes()
        .merge(legacy::attestation(legacy))
        .merge(health::routes());
    let router = match service.telemetry().metrics {
        true => router.merge(metrics::routes()),
        false => router,
    };
    finish(router, service, Port::Public)
}

fn finish(router: Router<Arc<Service>>, service: Arc<Service>, port: Port) -> Router {
    let telemetry = service.telemetry().clone();
    let observer = Observer { telemetry, port };
    router
        .fallback(error::route_not_found)
        .method_not_allowed_fallback(error::method_not_allowed)
        .layer(from_fn_with_state(observer, request_id::observe))
        .with_state(service)
}

/// Runs work on so many bytes; much of it not on the threads that serve connections.
fn busy<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    match bytes > BUSY_BYTES {
        true => tokio::task::block_in_place(work),
        false => work(),
    }
}

const BUSY_BYTES: usize = 1 << 20;
