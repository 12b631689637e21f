//! GET, bounded: by time, by size, by attempts, and to the host that was named.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::header::RETRY_AFTER;
use http::{HeaderMap, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};

use crate::{CollateralError, CollateralErrorKind};

/// An answer with status 200.
#[derive(Debug)]
pub(crate) struct Answer {
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// Asks services for collateral. It follows no redirects: whoever is asked was named by the caller.
#[derive(Clone)]
pub(crate) struct Http {
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
    attempt: Duration,
    pause: Duration,
}

impl Http {
    pub fn new(
        attempt: Duration,
        pause: Duration,
        authorities: Option<&Path>,
    ) -> Result<Self, CollateralError> {
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls(authorities)?)
            .https_or_http()
            .enable_http1()
            .build();
        let client = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(0)
            .http1_max_buf_size(HEAD_BYTES)
            .build(connector);
        Ok(Self {
            client,
            attempt,
            pause,
        })
    }

    /// The answer of `url`. Failures of the network and of the service are tried again.
    pub async fn get(&self, url: &str) -> Result<Answer, CollateralError> {
        let uri: Uri = url
            .parse()
            .map_err(|_| error(CollateralErrorKind::SourceInvalid, url, "is not a URL"))?;
        let mut pause = self.pause;
        for _ in 1..ATTEMPTS {
            match self.once(&uri).await {
                Ok(answer) => return Ok(answer),
                Err(Failed::ForGood(error)) => return Err(error),
                Err(Failed::ForNow(_, asked)) => {
                    tokio::time::sleep(asked.unwrap_or_default().max(pause)).await;
                    pause *= 2;
                }
            }
        }
        self.once(&uri).await.map_err(|failed| match failed {
            Failed::ForGood(error) | Failed::ForNow(error, _) => error,
        })
    }

    async fn once(&self, uri: &Uri) -> Result<Answer, Failed> {
        match tokio::time::timeout(self.attempt, self.exchange(uri)).await {
            Ok(done) => done,
            Err(_) => {
                let fact = format!("did not answer within {:?}", self.attempt);
                Err(Failed::ForNow(
                    error(CollateralErrorKind::Unreachable, uri, &fact),
                    None,
                ))
            }
        }
    }

    async fn exchange(&self, uri: &Uri) -> Result<Answer, Failed> {
        let lost = |fact: String| {
            Failed::ForNow(error(CollateralErrorKind::Unreachable, uri, &fact), None)
        };
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = uri.clone();
        let response = self.client.request(request).await;
        let response = response.map_err(|e| lost(format!("cannot be reached: {}", causes(&e))))?;
        let (head, body) = response.into_parts();
        check_status(head.status, &head.headers, uri)?;
        let body = Limited::new(body, ANSWER_BYTES).collect().await;
        let body = body.map_err(|e| match e.is::<LengthLimitError>() {
            true => {
                let fact = format!("answered more than {ANSWER_BYTES} bytes");
                Failed::ForGood(error(CollateralErrorKind::TooLarge, uri, &fact))
            }
            false => lost("broke off its answer".to_owned()),
        })?;
        Ok(Answer {
            headers: head.headers,
            body: body.to_bytes(),
        })
    }
}

enum Failed {
    ForGood(CollateralError),
    /// With how long the service asks to wait.
    ForNow(CollateralError, Option<Duration>),
}

fn check_status(status: StatusCode, headers: &HeaderMap, uri: &Uri) -> Result<(), Failed> {
    let fact = format!("answered {status}");
    let failed = |kind| error(kind, uri, &fact);
    match status {
        StatusCode::OK => Ok(()),
        StatusCode::NOT_FOUND => Err(Failed::ForGood(failed(CollateralErrorKind::NotFound))),
        StatusCode::TOO_MANY_REQUESTS => Err(Failed::ForNow(
            failed(CollateralErrorKind::Unreachable),
            retry_after(headers),
        )),
        status if status.is_server_error() => Err(Failed::ForNow(
            failed(CollateralErrorKind::Unreachable),
            retry_after(headers),
        )),
        _ => Err(Failed::ForGood(failed(CollateralErrorKind::Refused))),
    }
}

// In seconds; the other form, a date, is not worth a parser.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

fn tls(authorities: Option<&Path>) -> Result<ClientConfig, CollateralError> {
    let mut roots = RootCertStore {
        roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
    };
    if let Some(path) = authorities {
        let unusable = || {
            let fact = format!("{}: not a PEM file of authorities", path.display());
            CollateralError::new(CollateralErrorKind::SourceInvalid, fact)
                .with_remedy("name a file with the certificate that signed the service's")
        };
        let own = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
        let own: Vec<_> = own.map_err(|_| unusable())?;
        let (added, ignored) = roots.add_parsable_certificates(own);
        if added == 0 || ignored > 0 {
            return Err(unusable());
        }
    }
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    ClientConfig::builder_with_provider(provider.into())
        .with_safe_default_protocol_versions()
        .map(|builder| builder.with_root_certificates(roots).with_no_client_auth())
        .map_err(|e| CollateralError::new(CollateralErrorKind::SourceInvalid, e.to_string()))
}

fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

fn error(kind: CollateralErrorKind, url: impl std::fmt::Display, fact: &str) -> CollateralError {
    CollateralError::new(kind, format!("{url} {fact}"))
}

/// How often one URL is asked.
const ATTEMPTS: u32 = 4;
/// Real answers are under 64 KiB; a revocation list may grow.
const ANSWER_BYTES: usize = 1024 * 1024;
/// Intel sends chains of certificates in headers, some 4 KiB each.
const HEAD_BYTES: usize = 64 * 1024;
