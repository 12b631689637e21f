//! What is said of a store that does not answer, and of one that answers wrongly.

use std::error::Error as Cause;

use blindai_core::{Code, Error, printable};
use object_store::Error as Backend;

/// The store did not do what was asked.
pub(crate) fn unavailable(doing: &str, error: &Backend) -> Error {
    tell(doing, error);
    let why = why(error);
    Error::new(Code::StoreUnavailable, format!("{doing}: {why}"))
}

/// Tells the operator the whole reason, of which callers learn a few words: a full disk, a wrong region,
/// a name that is not found.
pub(crate) fn tell(doing: &str, error: &Backend) {
    tracing::warn!(
        doing,
        error = reason(error),
        "an object or the store failed"
    );
}

fn reason(error: &Backend) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let deeper = error.to_string();
        if !text.contains(&deeper) {
            text = format!("{text}: {deeper}");
        }
        cause = error.source();
    }
    // After its message an object store may repeat the request, session tokens and all.
    let message = text.split("</Message>").next().unwrap_or_default();
    printable(message, REASON_BYTES)
}

const REASON_BYTES: usize = 1024;

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

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    fn failed(source: impl Into<Box<dyn Cause + Send + Sync>>) -> Backend {
        let (store, source) = ("folder", source.into());
        Backend::Generic { store, source }
    }

    #[test]
    fn the_operator_learns_the_reason_and_callers_do_not() {
        let full = failed(io::Error::from_raw_os_error(28));
        assert!(reason(&full).contains("No space left on device"));
        let told = unavailable("writing the manifest", &full);
        assert!(!told.to_string().contains("space"), "{told}");
    }

    #[test]
    fn what_lies_deeper_is_told_and_nothing_of_it_twice() {
        #[derive(Debug)]
        struct Request(io::Error);
        impl std::fmt::Display for Request {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("error sending request")
            }
        }
        impl Cause for Request {
            fn source(&self) -> Option<&(dyn Cause + 'static)> {
                Some(&self.0)
            }
        }
        let reason = reason(&failed(Request(io::Error::other("no such host"))));
        let expected = "Generic folder error: error sending request: no such host";
        assert_eq!(reason, expected);
    }

    #[test]
    fn nothing_is_told_that_repeats_the_request() {
        let body = "403 Forbidden: <Error><Code>SignatureDoesNotMatch</Code><Message>no\n\u{1b}[2J\
            </Message><CanonicalRequest>x-amz-security-token:hush</CanonicalRequest></Error>";
        let reason = reason(&failed(body));
        assert!(reason.ends_with("SignatureDoesNotMatch</Code><Message>no ?[2J"));
        assert!(super::reason(&failed("x".repeat(5000))).len() <= REASON_BYTES);
    }
}
