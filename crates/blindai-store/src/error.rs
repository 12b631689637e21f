//! What is said of a store that does not answer, and of one that answers wrongly.

use blindai_core::{Code, Error};
use object_store::Error as Backend;

/// The store did not do what was asked.
pub(crate) fn unavailable(doing: &str, error: &Backend) -> Error {
    let why = why(error);
    Error::new(Code::StoreUnavailable, format!("{doing}: {why}"))
}

/// In a few words. The store's own may name buckets and addresses and are left out: callers see these
/// errors.
pub(crate) fn why(error: &Backend) -> &'static str {
    match error {
        Backend::PermissionDenied { .. } => "permission denied",
        Backend::Unauthenticated { .. } => "the credentials were refused",
        Backend::NotFound { .. } => "not found",
        Backend::NotImplemented { .. } | Backend::NotSupported { .. } => {
            "the store does not support it"
        }
        _ => "the store failed or did not answer",
    }
}

pub(crate) fn no_randomness() -> Error {
    Error::new(Code::Internal, "the system gives no randomness")
}

pub(crate) fn stopped() -> Error {
    Error::new(Code::Internal, "a task of the store stopped")
}
