use std::borrow::Cow;
use std::fmt;
use std::io;
use std::path::Path;
use std::time::Duration;

use blindai_collateral::CollateralError;
use blindai_core::{Code, Error, ErrorBody, EvidenceDocument, EvidenceError, printable};
use blindai_verify::{PolicyError, Rejection};
use http::StatusCode;

use crate::address::Address;
use crate::trust::Protocol;

/// Why a call failed: a class, a stable code, the fact and what to do.
///
/// Prints as `code: fact · remedy`, in one line without what would steer a terminal, whatever the
/// server wrote. Holds no tensor contents and no model bytes.
#[derive(Clone)]
pub struct ClientError(Box<Inner>);

/// The class of a [`ClientError`], for exception types and exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The server did not prove that it is what the policy asks for: this request was not sent to it.
    /// Or a receipt does not hold (codes that begin with `receipt-`): then it was.
    Attestation,
    /// The policy itself cannot be used.
    Policy,
    /// The server refused the request, and its class; see [`ClientError::server_error`].
    Server(blindai_core::Kind),
    /// The connection failed, took too long, or carried what is not an answer.
    Connection,
    /// Something on this side: an address, a file.
    Local,
}

impl ClientError {
    /// The class.
    pub fn kind(&self) -> ErrorKind {
        match &self.0.cause {
            Cause::Refused(_) | Cause::Unproven(_) => ErrorKind::Attestation,
            Cause::Policy => ErrorKind::Policy,
            Cause::Server(error, _) => ErrorKind::Server(error.kind()),
            Cause::Connection(_) => ErrorKind::Connection,
            Cause::Local(_) => ErrorKind::Local,
        }
    }

    /// The stable code, for programs: of [`Rejection`], of [`blindai_core::Code`], or one of this
    /// crate's own.
    pub fn code(&self) -> &'static str {
        match &self.0.cause {
            Cause::Refused(rejection) => rejection.code().as_str(),
            Cause::Server(error, _) => error.code().as_str(),
            Cause::Policy => "policy-invalid",
            Cause::Unproven(code) | Cause::Connection(code) | Cause::Local(code) => code,
        }
    }

    /// What happened, for people.
    pub fn fact(&self) -> &str {
        match &self.0.cause {
            Cause::Refused(rejection) => rejection.fact(),
            Cause::Server(error, _) => error.fact(),
            _ => &self.0.fact,
        }
    }

    /// What to do, for people; may be empty.
    pub fn remedy(&self) -> &str {
        match &self.0.cause {
            Cause::Refused(rejection) => rejection.remedy(),
            Cause::Server(error, _) => error.remedy(),
            _ => &self.0.remedy,
        }
    }

    /// The verifier's rejection with its table of checks, when it was the verifier that refused.
    pub fn rejection(&self) -> Option<&Rejection> {
        match &self.0.cause {
            Cause::Refused(rejection) => Some(rejection),
            _ => None,
        }
    }

    /// The evidence that the verifier rejected, when it came as far as that: to keep, and to show
    /// to others.
    pub fn evidence(&self) -> Option<&EvidenceDocument> {
        self.0.evidence.as_ref()
    }

    /// The server's error, when it was the server that refused.
    pub fn server_error(&self) -> Option<&Error> {
        match &self.0.cause {
            Cause::Server(error, _) => Some(error),
            _ => None,
        }
    }

    /// The id under which the server knows the refused request.
    pub fn request_id(&self) -> Option<&str> {
        match &self.0.cause {
            Cause::Server(_, id) => id.as_deref(),
            _ => None,
        }
    }
}

#[derive(Clone)]
struct Inner {
    cause: Cause,
    fact: String,
    remedy: Cow<'static, str>,
    evidence: Option<EvidenceDocument>,
}

#[derive(Clone)]
enum Cause {
    Refused(Rejection),
    Unproven(&'static str),
    Policy,
    Server(Error, Option<String>),
    Connection(&'static str),
    Local(&'static str),
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code(), self.fact())?;
        if !self.remedy().is_empty() {
            write!(f, " · {}", self.remedy())?;
        }
        Ok(())
    }
}

impl fmt::Debug for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClientError({self})")
    }
}

impl std::error::Error for ClientError {}

impl From<Rejection> for ClientError {
    fn from(rejection: Rejection) -> Self {
        Self::of(Cause::Refused(rejection), "", "")
    }
}

impl From<CollateralError> for ClientError {
    fn from(error: CollateralError) -> Self {
        let remedy = error.remedy().to_owned();
        Self::of(Cause::Unproven(error.code()), error.fact(), remedy)
    }
}

impl From<PolicyError> for ClientError {
    fn from(error: PolicyError) -> Self {
        let remedy = "name what you accept, as docs/policy.md shows";
        let fact = error.problems().join("; ");
        Self::of(Cause::Policy, fact, remedy)
    }
}

/// For names that are not names, and other requests that are refused before they are sent.
impl From<Error> for ClientError {
    fn from(error: Error) -> Self {
        Self::of(Cause::Server(error, None), "", "")
    }
}

impl ClientError {
    pub(crate) fn address_invalid(text: &str) -> Self {
        let shown: String = text.chars().take(128).collect();
        let fact = format!("{shown:?} is not the address of a server");
        let remedy = "write host, host:port or [IPv6 address]:port, without a scheme or a path";
        Self::of(Cause::Local("address-invalid"), fact, remedy)
    }

    pub(crate) fn file(path: &Path, error: &io::Error) -> Self {
        let fact = format!("{}: {error}", path.display());
        Self::of(Cause::Local("file-unreadable"), fact, "")
    }

    pub(crate) fn file_unwritable(path: &Path, error: &io::Error) -> Self {
        let fact = format!("{}: {error}", path.display());
        Self::of(Cause::Local("file-unwritable"), fact, "")
    }

    // What cannot be read may be a key: nothing of it is repeated.
    pub(crate) fn certificate_unusable(path: &Path, error: &impl fmt::Display) -> Self {
        let fact = format!("{}: {error}", path.display());
        let remedy = "give a certificate and its private key, both as PEM";
        Self::of(Cause::Local("certificate-unusable"), fact, remedy)
    }

    pub(crate) fn inside_runtime() -> Self {
        let fact = "the blocking client was called from async code";
        let remedy = "use blindai_client::Client there";
        Self::of(Cause::Local("inside-runtime"), fact, remedy)
    }

    pub(crate) fn no_runtime(error: &io::Error) -> Self {
        let fact = format!("the event loop cannot start: {error}");
        Self::of(Cause::Local("no-runtime"), fact, "")
    }

    pub(crate) fn no_randomness() -> Self {
        let fact = "the system gives no random numbers for a nonce";
        Self::of(Cause::Local("no-randomness"), fact, "")
    }

    pub(crate) fn certificate_missing() -> Self {
        let fact = "the server showed no certificate";
        Self::of(Cause::Unproven("evidence-unavailable"), fact, "")
    }

    pub(crate) fn key_not_held() -> Self {
        let fact = "the peer shows a certificate whose key it does not hold";
        let remedy = "somebody stands between you and the server; do not go on";
        Self::of(Cause::Unproven("tls-key-not-held"), fact, remedy)
    }

    pub(crate) fn not_verified() -> Self {
        let fact = "the server has not been verified yet";
        Self::of(Cause::Unproven("not-verified"), fact, "try again shortly")
    }

    pub(crate) fn report_expired() -> Self {
        let fact = "what the server proved has expired";
        let remedy = "verify it anew";
        Self::of(Cause::Unproven("report-expired"), fact, remedy)
    }

    pub(crate) fn key_unknown() -> Self {
        let fact = "the TLS key at the other end is not the one that was verified";
        let remedy = "verify one server at a time: several behind one address have a key each";
        Self::of(Cause::Unproven("tls-key-unknown"), fact, remedy)
    }

    pub(crate) fn protocol_refused(protocol: Protocol) -> Self {
        let fact = format!("the server does not speak {protocol}");
        let remedy = "connect to the attested port of a BlindAI server (50051 by default)";
        Self::of(Cause::Connection("protocol-refused"), fact, remedy)
    }

    pub(crate) fn connect_failed(address: &Address, error: &io::Error) -> Self {
        let fact = format!("cannot reach {address}: {error}");
        let remedy = "check that the server runs, and that the port is its attested one";
        Self::of(Cause::Connection("connect-failed"), fact, remedy)
    }

    pub(crate) fn connect_timeout(address: &Address, limit: Duration) -> Self {
        let fact = format!("no attested connection to {address} within {limit:?}");
        let remedy = "check the network, or raise the connect timeout";
        Self::of(Cause::Connection("connect-timeout"), fact, remedy)
    }

    pub(crate) fn tls_failed(error: &io::Error) -> Self {
        let fact = format!("no TLS 1.3 connection: {error}");
        let remedy = "connect to the attested port of a BlindAI server (50051 by default)";
        Self::of(Cause::Connection("tls-failed"), fact, remedy)
    }

    pub(crate) fn connection_lost(error: hyper::Error) -> Self {
        if refuses_certificate(&error) {
            let fact = "the server does not know the key of the client certificate";
            return Error::new(Code::Unauthenticated, fact).into();
        }
        let fact = match std::error::Error::source(&error) {
            Some(source) => format!("the connection broke: {error}: {source}"),
            None => format!("the connection broke: {error}"),
        };
        let remedy = "try again; the server may have been restarted";
        Self::of(Cause::Connection("connection-lost"), fact, remedy)
    }

    pub(crate) fn request_timeout(limit: Duration) -> Self {
        let fact = format!("no answer within {limit:?}");
        let remedy = "send a smaller batch, or raise the request timeout";
        Self::of(Cause::Connection("request-timeout"), fact, remedy)
    }

    pub(crate) fn response_too_large(limit: usize) -> Self {
        let fact = format!("the answer is longer than {limit} bytes");
        let remedy = "ask for fewer outputs, or raise max_response_bytes";
        Self::of(Cause::Connection("response-too-large"), fact, remedy)
    }

    pub(crate) fn response_invalid(what: impl fmt::Display) -> Self {
        let fact = format!("the answer cannot be read: {what}");
        let remedy = "use a client and a server of the same version";
        Self::of(Cause::Connection("response-invalid"), fact, remedy)
    }

    // Nothing of the body is repeated: whoever wrote it has not proved anything yet.
    pub(crate) fn evidence_unavailable(status: StatusCode) -> Self {
        let fact = format!("the server answered {status} instead of evidence");
        let remedy = "connect to the attested port of a BlindAI server (50051 by default)";
        Self::of(Cause::Unproven("evidence-unavailable"), fact, remedy)
    }

    pub(crate) fn evidence_malformed(error: &EvidenceError) -> Self {
        let remedy = "use a client and a server of the same version";
        Self::of(
            Cause::Unproven("evidence-malformed"),
            error.to_string(),
            remedy,
        )
    }

    pub(crate) fn collateral_missing() -> Self {
        let fact = "the evidence came without the collateral to verify it";
        let remedy =
            "fetch it yourself, or have the server's operator check its collateral service";
        Self::of(Cause::Unproven("collateral-missing"), fact, remedy)
    }

    pub(crate) fn receipt_missing() -> Self {
        let fact = "the server gave no receipt, or none that can be read";
        let remedy = "use a client and a server of the same version";
        Self::of(Cause::Unproven("receipt-missing"), fact, remedy)
    }

    /// The error in a refusal, or one made up from its status when the body is not ours.
    pub(crate) fn refused(status: StatusCode, body: &[u8]) -> Self {
        let body: Option<ErrorBody> = serde_json::from_slice(body).ok();
        let id = body.as_ref().and_then(|body| body.request_id.as_deref());
        let id = id.map(|id| printable(id, ID_BYTES));
        let ours = body.as_ref().and_then(ErrorBody::to_error);
        let error = ours.unwrap_or_else(|| {
            let said = body.map_or(String::new(), |body| format!(": {}", body.error));
            let fact = format!("the server answered {status}{said}");
            Error::new(code_of(status), fact)
        });
        Self::of(Cause::Server(error, id), "", "")
    }

    /// What a server said of a request of this id, in another form than a body.
    pub(crate) fn told(error: Error, id: Option<&str>) -> Self {
        let id = id.map(|id| printable(id, ID_BYTES));
        Self::of(Cause::Server(error, id), "", "")
    }

    fn of(cause: Cause, fact: impl Into<String>, remedy: impl Into<Cow<'static, str>>) -> Self {
        let (fact, remedy) = (printable(&fact.into(), FACT_BYTES), remedy.into());
        Self(Box::new(Inner {
            cause,
            fact,
            remedy,
            evidence: None,
        }))
    }

    pub(crate) fn rejected(rejection: Rejection, evidence: EvidenceDocument) -> Self {
        let mut error = Self::from(rejection);
        error.0.evidence = Some(evidence);
        error
    }
}

/// Whether the other side ended the connection because of our certificate. In TLS 1.3 this comes when
/// the handshake is over on this side.
fn refuses_certificate(error: &hyper::Error) -> bool {
    use rustls::AlertDescription::{AccessDenied, BadCertificate, CertificateUnknown, UnknownCA};
    let io = std::error::Error::source(error).and_then(|source| source.downcast_ref());
    let inner = io.and_then(io::Error::get_ref);
    matches!(
        inner.and_then(|inner| inner.downcast_ref()),
        Some(rustls::Error::AlertReceived(
            AccessDenied | BadCertificate | CertificateUnknown | UnknownCA
        ))
    )
}

/// The nearest code, for refusals whose body says none: of another version or of a proxy.
fn code_of(status: StatusCode) -> Code {
    match status {
        StatusCode::UNAUTHORIZED => Code::Unauthenticated,
        StatusCode::FORBIDDEN => Code::Forbidden,
        StatusCode::NOT_FOUND => Code::RouteNotFound,
        StatusCode::METHOD_NOT_ALLOWED => Code::MethodNotAllowed,
        StatusCode::PRECONDITION_FAILED => Code::ModelNotAccepted,
        StatusCode::PAYLOAD_TOO_LARGE => Code::BodyTooLarge,
        StatusCode::TOO_MANY_REQUESTS => Code::TooManyRequests,
        StatusCode::SERVICE_UNAVAILABLE => Code::NotReady,
        StatusCode::GATEWAY_TIMEOUT | StatusCode::REQUEST_TIMEOUT => Code::DeadlineExceeded,
        status if status.is_client_error() => Code::InvalidRequest,
        _ => Code::Internal,
    }
}

/// Long enough for all problems of a policy; a parser that repeats its input would go on.
const FACT_BYTES: usize = 8 * 1024;
/// Ours have 16 digits.
const ID_BYTES: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_server_error_comes_back_as_it_was() {
        for &code in Code::ALL {
            let error = Error::new(code, "a fact");
            let body = serde_json::to_vec(&error.to_body(Some("r7"))).unwrap();
            let back = ClientError::refused(StatusCode::IM_A_TEAPOT, &body);
            assert_eq!(back.kind(), ErrorKind::Server(code.kind()));
            assert_eq!(back.code(), code.as_str());
            assert_eq!(back.server_error(), Some(&error));
            assert_eq!(back.request_id(), Some("r7"));
            assert_eq!(back.to_string(), error.to_string());
        }
    }

    #[test]
    fn other_bodies_are_mapped_by_their_status() {
        let cases = [
            (StatusCode::PAYLOAD_TOO_LARGE, "body-too-large"),
            (StatusCode::UNAUTHORIZED, "unauthenticated"),
            (StatusCode::FORBIDDEN, "forbidden"),
            (StatusCode::NOT_FOUND, "route-not-found"),
            (StatusCode::SERVICE_UNAVAILABLE, "not-ready"),
            (StatusCode::BAD_GATEWAY, "internal"),
            (StatusCode::CONFLICT, "invalid-request"),
        ];
        for (status, code) in cases {
            for body in ["", "<html>", r#"{"error":"x","code":"of-the-future"}"#] {
                let error = ClientError::refused(status, body.as_bytes());
                assert_eq!(error.code(), code);
                assert!(error.fact().contains(status.as_str()));
            }
        }
    }

    #[test]
    fn no_server_steers_the_terminal_that_its_refusal_is_printed_on() {
        let forged = "\u{1b}[1A\u{9b}2K\u{202e}trusted\n".repeat(10_000);
        for code in ["internal", "of-the-future"] {
            let body = ErrorBody {
                error: forged.clone(),
                code: code.to_owned(),
                fact: forged.clone(),
                remedy: forged.clone(),
                request_id: Some(forged.clone()),
            };
            let body = serde_json::to_vec(&body).unwrap();
            let error = ClientError::refused(StatusCode::BAD_GATEWAY, &body);
            let id = error.request_id().unwrap();
            for text in [&error.to_string(), error.fact(), error.remedy(), id] {
                assert!(!text.contains(blindai_core::is_steering), "{text:?}");
                assert!(text.len() < 3000, "{}", text.len());
            }
        }
        let invalid = ClientError::response_invalid(&forged);
        assert!(!invalid.fact().contains(blindai_core::is_steering));
        assert!(invalid.fact().len() <= FACT_BYTES);
    }

    #[test]
    fn an_error_prints_code_fact_and_remedy() {
        let error = ClientError::collateral_missing();
        assert_eq!(error.kind(), ErrorKind::Attestation);
        assert_eq!(
            error.to_string(),
            format!("collateral-missing: {} · {}", error.fact(), error.remedy())
        );
    }
}
