use std::borrow::Cow;
use std::fmt;

/// Why there is no evidence or no sealing key: a kind, the fact, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TeeError {
    kind: TeeErrorKind,
    fact: Cow<'static, str>,
    remedy: &'static str,
}

/// The class of a [`TeeError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TeeErrorKind {
    /// This kind of TEE is not available here.
    Unsupported,
    /// An option is out of its range.
    InvalidOption,
    /// The executable cannot be read.
    Measurement,
    /// The clock is outside of the validity of the certificates.
    Clock,
    /// The platform failed to sign.
    Platform,
    /// The platform gives no sealing key.
    NoSealingKey,
}

impl TeeError {
    pub(crate) fn new(
        kind: TeeErrorKind,
        fact: impl Into<Cow<'static, str>>,
        remedy: &'static str,
    ) -> Self {
        let fact = fact.into();
        Self { kind, fact, remedy }
    }

    /// The class, for programs.
    pub fn kind(&self) -> TeeErrorKind {
        self.kind
    }

    /// What happened, for people.
    pub fn fact(&self) -> &str {
        &self.fact
    }

    /// What to do, for people.
    pub fn remedy(&self) -> &str {
        self.remedy
    }
}

impl TeeErrorKind {
    /// The stable text.
    pub fn as_str(self) -> &'static str {
        match self {
            TeeErrorKind::Unsupported => "tee-unsupported",
            TeeErrorKind::InvalidOption => "tee-invalid-option",
            TeeErrorKind::Measurement => "tee-measurement",
            TeeErrorKind::Clock => "tee-clock",
            TeeErrorKind::Platform => "tee-platform",
            TeeErrorKind::NoSealingKey => "tee-no-sealing-key",
        }
    }
}

impl fmt::Display for TeeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, fact, remedy) = (self.kind.as_str(), &self.fact, self.remedy);
        write!(f, "{kind}: {fact} · {remedy}")
    }
}

impl std::error::Error for TeeError {}
