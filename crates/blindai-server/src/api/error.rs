use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use blindai_core::{Code, Error, Kind};

/// An error on its way to the caller. [`super::request_id::observe`] writes its body, because only
/// there the request's id is known.
pub struct ApiError(pub Error);

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = status(self.0.code()).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.0.retry_after_seconds() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.0.kind() == Kind::Unauthenticated {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.extensions_mut().insert(self.0);
        response
    }
}

/// No such path.
pub async fn route_not_found(uri: Uri) -> ApiError {
    let path: String = uri.path().chars().take(200).collect();
    Error::new(Code::RouteNotFound, format!("there is no page {path:?}")).into()
}

/// The path exists, with other methods.
pub async fn method_not_allowed(method: Method, uri: Uri) -> ApiError {
    let path: String = uri.path().chars().take(200).collect();
    let fact = format!("{path:?} does not answer to {method}");
    Error::new(Code::MethodNotAllowed, fact).into()
}

/// The HTTP status of a code.
pub fn status(code: Code) -> StatusCode {
    if code == Code::MethodNotAllowed {
        return StatusCode::METHOD_NOT_ALLOWED;
    }
    match code.kind() {
        Kind::InvalidRequest | Kind::InvalidInput => StatusCode::BAD_REQUEST,
        Kind::Model => StatusCode::UNPROCESSABLE_ENTITY,
        Kind::Unauthenticated => StatusCode::UNAUTHORIZED,
        Kind::Forbidden => StatusCode::FORBIDDEN,
        Kind::NotFound => StatusCode::NOT_FOUND,
        Kind::Conflict => StatusCode::CONFLICT,
        Kind::Precondition => StatusCode::PRECONDITION_FAILED,
        Kind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Kind::Overloaded => StatusCode::TOO_MANY_REQUESTS,
        Kind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Kind::Timeout => StatusCode::GATEWAY_TIMEOUT,
        Kind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
