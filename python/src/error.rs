//! Errors become the exceptions of `blindai._errors`: the one place that says which.

use blindai_client::{ClientError, ErrorKind, Rejection};
use blindai_core::{Error, Kind};
use pyo3::prelude::*;

/// The exception of a failed call.
pub fn to_python(error: ClientError) -> PyErr {
    Exception {
        class: class_of(&error),
        code: error.code(),
        fact: error.fact(),
        remedy: error.remedy(),
        rejection: error.rejection(),
        request_id: error.request_id(),
    }
    .into_err()
}

/// The exception of a request that is refused before it is sent.
pub fn refused(error: Error) -> PyErr {
    to_python(error.into())
}

/// The exception of a receipt or of evidence that cannot be read.
pub fn malformed(code: &'static str, error: &dyn std::fmt::Display) -> PyErr {
    let class = match code.starts_with(RECEIPT_CODES) {
        true => "ReceiptError",
        false => "AttestationError",
    };
    let remedy = "give the file as it was written";
    local(class, code, &error.to_string(), remedy)
}

/// The exception of a policy that cannot be used.
pub fn policy(code: &str, fact: &str, remedy: &str) -> PyErr {
    local("PolicyError", code, fact, remedy)
}

/// The exception of a blocking call where it would block the event loop that answers it.
pub fn inside_runtime() -> PyErr {
    let fact = "a blocking call was made from a progress callback";
    local(
        "BlindAIError",
        "inside-runtime",
        fact,
        "make the call after the upload",
    )
}

/// The exception of a client, or of what serves clients, that a forked process inherited.
pub fn forked(fact: &str) -> PyErr {
    let remedy = "connect again in this process; for blindai.aio start it with \"spawn\"";
    local("ConnectionError", "client-forked", fact, remedy)
}

fn local(class: &'static str, code: &str, fact: &str, remedy: &str) -> PyErr {
    Exception {
        class,
        code,
        fact,
        remedy,
        rejection: None,
        request_id: None,
    }
    .into_err()
}

/// What the codes of receipts begin with.
const RECEIPT_CODES: &str = "receipt-";

fn class_of(error: &ClientError) -> &'static str {
    match error.kind() {
        ErrorKind::Attestation if error.code().starts_with(RECEIPT_CODES) => "ReceiptError",
        ErrorKind::Attestation => "AttestationError",
        ErrorKind::Policy => "PolicyError",
        ErrorKind::Connection => "ConnectionError",
        ErrorKind::Local => "InvalidInputError",
        ErrorKind::Server(kind) => match kind {
            Kind::InvalidRequest | Kind::InvalidInput | Kind::TooLarge => "InvalidInputError",
            Kind::Model | Kind::NotFound | Kind::Conflict | Kind::Precondition => "ModelError",
            Kind::Unauthenticated | Kind::Forbidden => "AccessError",
            Kind::Overloaded | Kind::Unavailable | Kind::Timeout | Kind::Internal => "ServerError",
        },
        _ => "BlindAIError",
    }
}

struct Exception<'a> {
    class: &'static str,
    code: &'a str,
    fact: &'a str,
    remedy: &'a str,
    rejection: Option<&'a Rejection>,
    request_id: Option<&'a str>,
}

impl Exception<'_> {
    fn into_err(self) -> PyErr {
        Python::attach(|py| self.build(py).map_or_else(|error| error, PyErr::from_value))
    }

    fn build<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let class = py.import("blindai._errors")?.getattr(self.class)?;
        let exception = class.call1((self.code, self.fact, self.remedy))?;
        if let Some(rejection) = self.rejection {
            let report = py.import("blindai._report")?.getattr("Report")?;
            let report = report.call1((rejection.to_json().to_string(), rejection.table()))?;
            exception.setattr("report", report)?;
        }
        exception.setattr("request_id", self.request_id)?;
        Ok(exception)
    }
}
