use std::borrow::Cow;
use std::fmt;

/// Why there is no collateral: a class, the fact and what to do.
///
/// Prints as `code: fact · remedy`. Never repeats what a service answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CollateralError {
    kind: CollateralErrorKind,
    fact: String,
    remedy: Cow<'static, str>,
}

/// The class of a [`CollateralError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CollateralErrorKind {
    /// The source cannot be one: no URL that can be asked, a file of authorities that cannot be read.
    SourceInvalid,
    /// The quote or report does not say of which platform it is.
    PlatformUnknown,
    /// No answer in time, or only failures of the service, however often it was asked.
    Unreachable,
    /// The service answered, and does not give it.
    Refused,
    /// The source knows nothing of this platform.
    NotFound,
    /// The answer is longer than any real one.
    TooLarge,
    /// The answer is not what was asked for.
    Unreadable,
}

impl CollateralErrorKind {
    fn as_str(self) -> &'static str {
        match self {
            Self::SourceInvalid => "collateral-source-invalid",
            Self::PlatformUnknown => "collateral-platform-unknown",
            Self::Unreachable => "collateral-unreachable",
            Self::Refused => "collateral-refused",
            Self::NotFound => "collateral-not-found",
            Self::TooLarge => "collateral-too-large",
            Self::Unreadable => "collateral-unreadable",
        }
    }

    fn remedy(self) -> &'static str {
        match self {
            Self::SourceInvalid => "name \"vendor\", an http or https URL, a file or a folder",
            Self::PlatformUnknown => "have the platform put its PCK certificates into the quote",
            Self::Unreachable => "check the network and the service, or name another source",
            Self::Refused => {
                "check the URL: it names a PCCS, Intel's PCS or AMD's KDS, or a mirror"
            }
            Self::NotFound => {
                "register the platform with the service, or add its file to the folder"
            }
            Self::TooLarge | Self::Unreadable => "check that the source is what it should be",
        }
    }
}

impl CollateralError {
    pub(crate) fn new(kind: CollateralErrorKind, fact: impl Into<String>) -> Self {
        Self {
            kind,
            fact: fact.into(),
            remedy: Cow::Borrowed(kind.remedy()),
        }
    }

    pub(crate) fn with_remedy(mut self, remedy: &'static str) -> Self {
        self.remedy = Cow::Borrowed(remedy);
        self
    }

    /// The class.
    pub fn kind(&self) -> CollateralErrorKind {
        self.kind
    }

    /// The stable code, for programs.
    pub fn code(&self) -> &'static str {
        self.kind.as_str()
    }

    /// What happened, for people.
    pub fn fact(&self) -> &str {
        &self.fact
    }

    /// What to do, for people.
    pub fn remedy(&self) -> &str {
        &self.remedy
    }
}

impl fmt::Display for CollateralError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} · {}", self.code(), self.fact, self.remedy)
    }
}

impl std::error::Error for CollateralError {}

#[cfg(test)]
mod tests {
    use super::CollateralErrorKind::*;

    #[test]
    fn every_code_stands_in_the_page_with_its_remedy() {
        let page = include_str!("../../../docs/verification.md");
        for kind in [
            SourceInvalid,
            PlatformUnknown,
            Unreachable,
            Refused,
            NotFound,
            TooLarge,
            Unreadable,
        ] {
            let (code, remedy) = (format!("| `{}` |", kind.as_str()), kind.remedy());
            let row = page.lines().find(|line| line.starts_with(&code));
            let row = row.unwrap_or_else(|| panic!("no row {code}"));
            assert!(row.ends_with(&format!("| {remedy} |")), "{row}");
        }
    }
}
