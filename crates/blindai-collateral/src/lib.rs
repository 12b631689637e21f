//! Fetches collateral: what it takes beside a quote (SGX, TDX) or report (SEV-SNP) to verify it.
//!
//! ```no_run
//! use blindai_collateral::{FetchOptions, Fetcher, Source};
//!
//! # async fn example(quote: &[u8]) -> Result<(), blindai_collateral::CollateralError> {
//! let fetcher = Fetcher::new(Source::parse("vendor")?, &FetchOptions::default())?;
//! let fetched = fetcher.fetch(quote, None).await?;
//! println!("holds until {}", fetched.validity.not_after);
//! # Ok(())
//! # }
//! ```
//!
//! Servers fetch it to staple it to their evidence, clients where they do not want to take it from
//! the server. Both meet here and not in each other.
//!
//! # Where it comes from
//! - `vendor`: Intel's PCS (`https://api.trustedservices.intel.com`) or AMD's KDS
//!   (`https://kdsintf.amd.com`), as the quote or report asks.
//! - `http://` or `https://` and a host: a PCCS, which caches Intel's, or a mirror of AMD's KDS.
//! - A file: JSON of [`Collateral`], as the member `collateral` of an evidence document.
//! - A folder, for networks that are closed: a file of that form for each platform, named
//!   `sgx-<fmspc>-<ca>.json`, `tdx-<fmspc>-<ca>.json`, `sev-snp-vcek-<chip id>-<tcb>.json` or
//!   `sev-snp-vlek-<chip id>-<tcb>.json`: hexadecimal in small letters as it stands in certificate
//!   and report, `<ca>` being `platform` or `processor`. [`file_name`] gives the name.
//!
//! # What is not done
//! **Nothing is verified.** Every part carries the vendor's signature, and `blindai-verify` checks
//! it. So plain `http` is enough where the network is one's own: who controls it can withhold
//! collateral or hold back news until the old ends, and nothing else. Who can be seen by it learns
//! the type of the processor (Intel) or the identity of the chip (AMD).
#![forbid(unsafe_code)]

mod error;
mod files;
mod http;
mod kds;
mod pcs;
mod platform;
mod validity;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use ::http::Uri;
use blindai_core::{Collateral, SnpCollateral};

pub use error::{CollateralError, CollateralErrorKind};
pub use validity::Validity;

use crate::http::Http;
use crate::platform::Platform;

/// Where collateral comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Intel's or AMD's own service, as the quote or report asks.
    Vendor,
    /// A service at this URL: a PCCS for SGX and TDX, a mirror of AMD's KDS for SEV-SNP.
    Service(String),
    /// A file, or a folder with a file per platform.
    Path(PathBuf),
}

impl Source {
    /// Reads `vendor`, a URL or a path.
    ///
    /// # Errors
    /// When a URL is neither `http` nor `https`, or holds a password or a query.
    pub fn parse(text: &str) -> Result<Self, CollateralError> {
        if text == VENDOR {
            return Ok(Self::Vendor);
        }
        if !text.contains("://") {
            return Ok(Self::Path(text.into()));
        }
        let can_be_asked = |uri: &Uri| {
            let scheme = matches!(uri.scheme_str(), Some("http" | "https"));
            let authority = uri.authority().is_some_and(|a| !a.as_str().contains('@'));
            scheme && authority && uri.query().is_none()
        };
        match text.parse::<Uri>() {
            Ok(uri) if can_be_asked(&uri) => Ok(Self::Service(text.to_owned())),
            _ => {
                let fact =
                    "the URL is not http or https and a host, or holds a password or a query";
                let kind = CollateralErrorKind::SourceInvalid;
                Err(CollateralError::new(kind, fact))
            }
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vendor => f.write_str(VENDOR),
            Self::Service(url) => f.write_str(url),
            Self::Path(path) => path.display().fmt(f),
        }
    }
}

/// How patiently a service is asked.
#[derive(Clone, Debug)]
pub struct FetchOptions {
    /// How long all of it may take. Default 30 s. A single answer may take a third of it.
    pub timeout: Duration,
    /// How long to wait before a failed question is put again; twice as long each further time, four
    /// times in all. Default 500 ms. A service that asks for longer gets longer.
    pub pause: Duration,
    /// A PEM file of authorities that may have signed the service's certificate, beside the public
    /// ones. Default none.
    pub authorities: Option<PathBuf>,
}

impl Default for FetchOptions {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(30),
            pause: Duration::from_millis(500),
            authorities: None,
        }
    }
}

/// Collateral as it came, and when it holds. Nothing of it is verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    pub collateral: Collateral,
    pub validity: Validity,
}

/// Fetches collateral from one source.
#[derive(Clone)]
pub struct Fetcher {
    source: Source,
    timeout: Duration,
    http: Http,
}

impl Fetcher {
    /// Gets ready; nothing is fetched yet.
    ///
    /// # Errors
    /// When the file of authorities cannot be read.
    pub fn new(source: Source, options: &FetchOptions) -> Result<Self, CollateralError> {
        let attempt = options.timeout / 3;
        Ok(Self {
            source,
            timeout: options.timeout,
            http: Http::new(attempt, options.pause, options.authorities.as_deref())?,
        })
    }

    /// Fetches the collateral for a quote or report.
    ///
    /// `supplied` is what the platform itself had, if anything: where it holds the certificate of
    /// the key that signed a report of SEV-SNP, that one is not asked for.
    ///
    /// # Errors
    /// [`CollateralErrorKind::PlatformUnknown`] when the bytes do not say of which platform they are,
    /// else what the source did wrong.
    pub async fn fetch(
        &self,
        quote: &[u8],
        supplied: Option<&Collateral>,
    ) -> Result<Fetched, CollateralError> {
        let platform = Platform::of(quote)?;
        let fetched = tokio::time::timeout(self.timeout, self.ask(&platform, supplied)).await;
        let collateral = fetched.unwrap_or_else(|_| {
            let fact = format!("{}: not all came within {:?}", self.source, self.timeout);
            let kind = CollateralErrorKind::Unreachable;
            Err(CollateralError::new(kind, fact))
        })?;
        let validity = Validity::of(&collateral)?;
        Ok(Fetched {
            collateral,
            validity,
        })
    }

    async fn ask(
        &self,
        platform: &Platform,
        supplied: Option<&Collateral>,
    ) -> Result<Collateral, CollateralError> {
        let service = match &self.source {
            Source::Path(path) => return fitting(files::read(path, platform).await?, platform),
            Source::Service(url) => Some(url.as_str()),
            Source::Vendor => None,
        };
        match platform {
            Platform::Dcap(dcap) => {
                pcs::fetch(&self.http, service.unwrap_or(pcs::INTEL_PCS), dcap).await
            }
            Platform::Snp(snp) => {
                let supplied = supplied.and_then(of_snp);
                kds::fetch(&self.http, service.unwrap_or(kds::AMD_KDS), snp, supplied).await
            }
        }
    }
}

impl fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fetcher({})", self.source)
    }
}

/// The name of the file of this quote's or report's platform in a folder of collateral.
///
/// # Errors
/// When the bytes do not say of which platform they are.
pub fn file_name(quote: &[u8]) -> Result<String, CollateralError> {
    Ok(Platform::of(quote)?.file_name())
}

fn of_snp(collateral: &Collateral) -> Option<&SnpCollateral> {
    match collateral {
        Collateral::Snp(collateral) => Some(collateral),
        Collateral::Dcap(_) => None,
    }
}

fn fitting(collateral: Collateral, platform: &Platform) -> Result<Collateral, CollateralError> {
    match (&collateral, platform) {
        (Collateral::Dcap(_), Platform::Dcap(_)) | (Collateral::Snp(_), Platform::Snp(_)) => {
            Ok(collateral)
        }
        _ => {
            let fact = "the file holds collateral of another vendor than the evidence is of";
            let kind = CollateralErrorKind::Unreadable;
            Err(CollateralError::new(kind, fact))
        }
    }
}

const VENDOR: &str = "vendor";
