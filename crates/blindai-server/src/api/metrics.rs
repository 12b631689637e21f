//! `/metrics`: on the public port, where the configuration turns it on.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use bytes::Bytes;

use crate::service::Service;

/// The route of `/metrics`.
pub fn routes() -> Router<Arc<Service>> {
    Router::new()
        .route("/metrics", get(metrics))
        .layer(Extension(Arc::<Latest>::default()))
}

/// The text that was written last. However often somebody asks, it costs no more, and nobody sees
/// single requests by asking between them.
#[derive(Default)]
struct Latest(Mutex<Option<(Instant, Bytes)>>);

async fn metrics(
    State(service): State<Arc<Service>>,
    Extension(latest): Extension<Arc<Latest>>,
) -> Response {
    let headers = [
        (header::CONTENT_TYPE, CONTENT_TYPE),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (headers, latest.read(&service)).into_response()
}

impl Latest {
    fn read(&self, service: &Service) -> Bytes {
        let mut latest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*latest {
            Some((at, text)) if at.elapsed() < INTERVAL => text.clone(),
            _ => {
                let text = Bytes::from(service.exposition());
                *latest = Some((Instant::now(), text.clone()));
                text
            }
        }
    }
}

/// How old the text may be.
const INTERVAL: Duration = Duration::from_secs(1);
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
