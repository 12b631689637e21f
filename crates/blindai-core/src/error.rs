use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::text::printable;

/// The result of everything that can be refused with a [`Code`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The longest fact, and the longest remedy that is made up, in bytes.
const FACT_BYTES: usize = 1024;

/// Why a request was refused: a stable code, the fact, and what to do about it.
///
/// The fact names the offending value where the caller sent it and may see it again; it never holds
/// tensor contents or model bytes, because the host can read logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    code: Code,
    fact: String,
    remedy: Cow<'static, str>,
    retry_after_seconds: Option<u64>,
}

impl Error {
    /// An error with the code's usual remedy. The fact is made [`printable`] and cut at 1 KiB: it
    /// may quote names that a stranger wrote as he liked.
    pub fn new(code: Code, fact: impl AsRef<str>) -> Self {
        Self {
            code,
            fact: printable(fact.as_ref(), FACT_BYTES),
            remedy: Cow::Borrowed(code.remedy()),
            retry_after_seconds: code.retry_after_seconds(),
        }
    }

    /// Replaces the remedy by one that fits this case better. What is not a constant is treated as
    /// the fact is.
    pub fn with_remedy(mut self, remedy: impl Into<Cow<'static, str>>) -> Self {
        self.remedy = match remedy.into() {
            Cow::Owned(remedy) => printable(&remedy, FACT_BYTES).into(),
            constant => constant,
        };
        self
    }

    /// Says that waiting for so long is all that it takes.
    pub fn with_retry_after(mut self, seconds: u64) -> Self {
        self.retry_after_seconds = Some(seconds);
        self
    }

    /// The stable code, for programs.
    pub fn code(&self) -> Code {
        self.code
    }

    /// The class of the error, for status codes and exception types.
    pub fn kind(&self) -> Kind {
        self.code.kind()
    }

    /// What happened, for people.
    pub fn fact(&self) -> &str {
        &self.fact
    }

    /// What to do, for people.
    pub fn remedy(&self) -> &str {
        &self.remedy
    }

    /// When to try again, in seconds, where waiting is all that it takes.
    pub fn retry_after_seconds(&self) -> Option<u64> {
        self.retry_after_seconds
    }

    /// The shape on the wire.
    pub fn to_body(&self, request_id: Option<&str>) -> ErrorBody {
        ErrorBody {
            error: self.to_string(),
            code: self.code.as_str().to_owned(),
            fact: self.fact.clone(),
            remedy: self.remedy.clone().into_owned(),
            request_id: request_id.map(str::to_owned),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.as_str(), self.fact)?;
        if !self.remedy.is_empty() {
            write!(f, " · {}", self.remedy)?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// An error in a JSON answer. `error` is the field the Open Inference Protocol asks for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ErrorBody {
    pub error: String,
    #[serde(default)]
    pub code: String,
    #[serde(default)]
    pub fact: String,
    #[serde(default)]
    pub remedy: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

impl ErrorBody {
    /// The error back from the wire; `None` when the code is not one of ours.
    pub fn to_error(&self) -> Option<Error> {
        let code = Code::parse(&self.code)?;
        Some(Error::new(code, self.fact.clone()).with_remedy(self.remedy.clone()))
    }
}

/// The class of an error. Each spelling of the service maps it to its own status in one match.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The request itself is malformed.
    InvalidRequest,
    /// The tensors do not fit the model.
    InvalidInput,
    /// The model cannot be loaded or failed on this input.
    Model,
    /// The caller has not shown who it is, and has to.
    Unauthenticated,
    /// The caller may not do this.
    Forbidden,
    /// There is no such model or page.
    NotFound,
    /// What exists is in the way.
    Conflict,
    /// What the caller asked for first does not hold.
    Precondition,
    /// A size limit.
    TooLarge,
    /// A limit that passes: try again later.
    Overloaded,
    /// Not now: starting, stopping or restarting.
    Unavailable,
    /// The time for the request ran out.
    Timeout,
    /// A fault of ours.
    Internal,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $kind:ident, $remedy:literal;)*) => {
        /// The stable codes of refused requests. Their texts never change meaning.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Code { $($(#[$doc])* $name,)* }

        impl Code {
            /// Every code, for documentation and tests.
            pub const ALL: &'static [Code] = &[$(Code::$name,)*];

            /// The text on the wire.
            pub fn as_str(self) -> &'static str {
                match self { $(Code::$name => $text,)* }
            }

            /// The class.
            pub fn kind(self) -> Kind {
                match self { $(Code::$name => Kind::$kind,)* }
            }

            /// The usual remedy; may be empty.
            pub fn remedy(self) -> &'static str {
                match self { $(Code::$name => $remedy,)* }
            }

            /// When to try again, in seconds, where waiting is always all that it takes.
            pub fn retry_after_seconds(self) -> Option<u64> {
                match self {
                    Code::TooManyRequests => Some(1),
                    // Another server may be in its place by then.
                    Code::NotReady => Some(3),
                    _ => None,
                }
            }

            /// The code with this text.
            pub fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some(Code::$name),)* _ => None }
            }
        }
    };
}

codes! {
    /// The request cannot be read: bad JSON, bad header, bad name.
    InvalidRequest = "invalid-request", InvalidRequest, "";
    /// No page at this path.
    RouteNotFound = "route-not-found", NotFound, "the paths are listed in docs/api.md";
    /// The page exists, the method does not.
    MethodNotAllowed = "method-not-allowed", InvalidRequest, "";
    /// An input that the model needs was not sent.
    InputMissing = "input-missing", InvalidInput, "send every input of the model's signature";
    /// An input was sent that the model does not have.
    InputUnknown = "input-unknown", InvalidInput, "send only the inputs of the model's signature";
    /// An input has another element type than the model takes.
    InputDType = "input-dtype", InvalidInput, "convert the input to the model's type";
    /// An input has another shape than the model takes.
    InputShape = "input-shape", InvalidInput, "reshape the input; -1 in a signature stands for any size";
    /// The bytes of a tensor do not fit its type and shape.
    InputData = "input-data", InvalidInput, "";
    /// An output was asked for that the model does not have.
    OutputUnknown = "output-unknown", InvalidInput, "ask only for outputs of the model's signature";
    /// An output cannot be written as JSON (a NaN or an infinity).
    OutputNotJson = "output-not-json", InvalidInput, "ask for binary outputs";
    /// The upload is not a model that can be loaded.
    ModelInvalid = "model-invalid", Model, "check the file with onnx.checker and export it again";
    /// The model uses something this server does not run.
    ModelUnsupported = "model-unsupported", Model, "";
    /// The model failed while running on this input.
    ModelFailed = "model-failed", Model, "";
    /// The worker process died on this request; it restarts for the next.
    WorkerCrashed = "worker-crashed", Model, "the worker restarts by itself; do not repeat an input that crashes it";
    /// The model needed more memory than it is allowed.
    ModelMemory = "model-memory", Model, "send a smaller batch, or raise limits.model_memory_bytes";
    /// No model of this name and version.
    ModelNotFound = "model-not-found", NotFound, "list the models with GET /v1/models";
    /// The name and version hold other content.
    ModelExists = "model-exists", Conflict, "leave the version out to get the next one, or ask for the old content to be replaced";
    /// The model is none that the caller accepts.
    ModelNotAccepted = "model-not-accepted", Precondition, "if the model was changed as you planned, put its digest in the policy; if not, somebody put another in its place: do not use it";
    /// The uploaded bytes do not have the announced digest.
    DigestMismatch = "digest-mismatch", InvalidRequest, "upload again; the bytes changed on the way";
    /// The body ended before it was complete.
    BodyIncomplete = "body-incomplete", InvalidRequest, "send the whole body";
    /// The request body is over the limit.
    BodyTooLarge = "body-too-large", TooLarge, "send less, or raise limits.body_bytes";
    /// The model file is over the limit.
    ModelTooLarge = "model-too-large", TooLarge, "raise limits.model_bytes";
    /// As many models as the server may hold.
    TooManyModels = "too-many-models", Overloaded, "delete a model, or raise limits.models";
    /// The memory for all models is used up.
    MemoryExhausted = "memory-exhausted", Overloaded, "delete a model, or raise limits.total_memory_bytes";
    /// As many requests as the server may hold.
    TooManyRequests = "too-many-requests", Overloaded, "try again later";
    /// Who calls has not shown a token or certificate that is known and holds.
    Unauthenticated = "unauthenticated", Unauthenticated, "send a token that this server knows, or use a client certificate that it knows";
    /// The caller may not do this.
    Forbidden = "forbidden", Forbidden, "ask the server's operator for the role; docs/access.md says who may do what";
    /// More than the caller may have or do at a time.
    QuotaExceeded = "quota-exceeded", Overloaded, "";
    /// The request did not end in time.
    DeadlineExceeded = "deadline-exceeded", Timeout, "send a smaller batch, or raise limits.request_seconds";
    /// The server is starting or stopping.
    NotReady = "not-ready", Unavailable, "try again later";
    /// The platform has no key to seal with.
    NoSealingKey = "no-sealing-key", Unavailable, "leave [store] out here: nothing is kept then; or get the key from a key broker that attests";
    /// What is stored was sealed by other code or another machine.
    StoreSealedElsewhere = "store-sealed-elsewhere", Internal, "run the code and the machine that sealed it, or name an empty location and upload again";
    /// A file of the store is shorter than it was.
    StoreTruncated = "store-truncated", Internal, "restore the store as it was, or upload the model again";
    /// A file of the store is authentic, and not the one that belongs there.
    StoreSwapped = "store-swapped", Internal, "somebody exchanged files of the store: restore it as it was, or upload the model again";
    /// A file of the store was changed.
    StoreCorrupt = "store-corrupt", Internal, "restore the store as it was, or upload the model again";
    /// The store is older than one that was seen before.
    StoreRolledBack = "store-rolled-back", Internal, "somebody put an old store back: restore the newest; only who means to go back removes the file store.seen";
    /// There are models in the store, but nothing that lists them.
    StoreManifestMissing = "store-manifest-missing", Internal, "restore the store as it was, or name an empty location and upload again";
    /// A model that is listed is not in the store.
    StoreContentMissing = "store-content-missing", Internal, "restore the store as it was, or upload the model again";
    /// A store, or a version of its format, that this program does not know.
    StoreFormat = "store-format", Internal, "run the version that wrote it, or newer; a folder of something else is none";
    /// Another server has opened the store since.
    StoreTaken = "store-taken", Unavailable, "let one server use the store: stop the other, then start this one again";
    /// The store does not answer.
    StoreUnavailable = "store-unavailable", Unavailable, "see whether the store can be reached and its disk has room, then try again";
    /// The content of a model that had left memory cannot be read again.
    ModelUnavailable = "model-unavailable", Unavailable, "have the operator put the model's file back";
    /// A fault of the server.
    Internal = "internal", Internal, "report it with the request id";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_distinct_and_parse_back() {
        for code in Code::ALL {
            assert_eq!(Code::parse(code.as_str()), Some(*code));
        }
    }

    #[test]
    fn a_fact_is_cut_between_characters() {
        let error = Error::new(Code::InputUnknown, "ä".repeat(5000));
        assert_eq!(error.fact(), "ä".repeat(512));
    }

    #[test]
    fn an_error_cannot_steer_the_terminal_it_is_printed_on() {
        let forged = "\u{1b}[1A\u{1b}[2Ktrusted\u{202e}".repeat(500);
        let error = Error::new(Code::Internal, &forged).with_remedy(forged);
        assert!(!error.to_string().contains(crate::is_steering));
        assert!(error.to_string().len() < 3 * FACT_BYTES);
    }

    #[test]
    fn an_error_survives_the_wire() {
        let error = Error::new(Code::InputShape, "input \"x\" is [2], the model takes [3]");
        let json = serde_json::to_string(&error.to_body(Some("r1"))).unwrap();
        let back: ErrorBody = serde_json::from_str(&json).unwrap();
        assert_eq!(back.to_error(), Some(error));
    }
}
