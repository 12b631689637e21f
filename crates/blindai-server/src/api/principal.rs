use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use blindai_core::Result;
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

/// Who sends the request with this head.
///
/// # Errors
/// Those of [`Access::authenticate`](crate::access::Access::authenticate).
pub fn identify(head: &Parts, service: &Service) -> Result<Principal> {
    let connection = head.extensions.get::<Caller>().copied();
    let key = head.extensions.get::<PeerKey>().copied();
    let connection = connection.unwrap_or_default();
    service
        .access()
        .authenticate(&head.headers, key, connection)
}
