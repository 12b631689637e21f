use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue};
use blindai_core::Result;
use blindai_core::pins::{MODELS, ModelPins};
use blindai_engine::Caller;

use super::ApiError;
use crate::access::{PeerKey, Principal};
use crate::service::Service;

/// As an argument of a handler in front of the body, it is known before a byte of that is read.
impl FromRequestParts<Arc<Service>> for Principal {
    type Rejection = ApiError;

    async fn from_request_parts(
        parts: &mut Parts,
        service: &Arc<Service>,
    ) -> std::result::Result<Self, ApiError> {
        Ok(identify(parts, service)?)
    }
}

/// Who sends the request with this head, and which models it accepts.
///
/// # Errors
/// Those of [`Access::authenticate`](crate::access::Access::authenticate), and
/// [`Code::InvalidRequest`](blindai_core::Code::InvalidRequest).
pub fn identify(head: &Parts, service: &Service) -> Result<Principal> {
    let connection = head.extensions.get::<Caller>().copied();
    let key = head.extensions.get::<PeerKey>().copied();
    let connection = connection.unwrap_or_default();
    let access = service.access();
    let principal = access.authenticate(&head.headers, key, connection)?;
    Ok(principal.accepting(accepted(&head.headers)?))
}

// All lines count: none takes the place of another.
fn accepted(headers: &HeaderMap) -> Result<ModelPins> {
    let mut lines = headers.get_all(MODELS).iter().map(HeaderValue::to_str);
    lines.try_fold(ModelPins::default(), |accepted, line| {
        // What is not even text cannot be read either.
        Ok(accepted.and(line.unwrap_or_default().parse()?))
    })
}
