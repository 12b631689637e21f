use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;
use blindai_core::{Code, Error};
use serde::de::DeserializeOwned;

use super::ApiError;

/// The names in a path; [`Path`] with errors of our shape.
pub struct Params<T>(pub T);

impl<S, T> FromRequestParts<S> for Params<T>
where
    S: Send + Sync,
    T: DeserializeOwned + Send,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(names)) => Ok(Self(names)),
            Err(_) => Err(Error::new(Code::InvalidRequest, "the path is not UTF-8").into()),
        }
    }
}
