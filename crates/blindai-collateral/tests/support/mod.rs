#![allow(dead_code, reason = "each test program uses its own part")]
//! A service on a real socket that answers as the vendors do, or as they should not.

use std::convert::Infallible;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use blindai_collateral::FetchOptions;
use blindai_core::DcapCollateral;
use bytes::Bytes;
use http::{HeaderName, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::net::TcpListener;

pub fn file(name: &str) -> Vec<u8> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../testdata/evidence");
    let path = root.join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

pub fn text(name: &str) -> String {
    String::from_utf8(file(name)).unwrap()
}

pub fn recorded(name: &str) -> DcapCollateral {
    serde_json::from_slice(&file(&format!("collateral/{name}.json"))).unwrap()
}

/// Short pauses: what is tested is what happens, not how long it takes.
pub fn options() -> FetchOptions {
    FetchOptions {
        pause: Duration::from_millis(1),
        ..FetchOptions::default()
    }
}

pub type Answer = Response<BoxBody<Bytes, std::io::Error>>;

pub fn ok(body: impl Into<Bytes>) -> Answer {
    let body = Full::new(body.into()).map_err(|never| match never {});
    Response::new(body.boxed())
}

pub fn status(status: StatusCode) -> Answer {
    let mut answer = ok("<html>no</html>");
    *answer.status_mut() = status;
    answer
}

pub fn with_header(mut answer: Answer, name: &str, value: &str) -> Answer {
    let name = HeaderName::try_from(name).unwrap();
    answer.headers_mut().insert(name, value.parse().unwrap());
    answer
}

/// A body without an announced length and without an end.
pub fn endless() -> Answer {
    repeating(|| Ok(Frame::data(Bytes::from_static(&[b' '; 8192]))))
}

/// An answer that is announced and never comes.
pub fn broken_off() -> Answer {
    let broken = repeating(|| Err(std::io::ErrorKind::BrokenPipe.into()));
    with_header(broken, "content-length", "1000")
}

fn repeating(frame: fn() -> std::io::Result<Frame<Bytes>>) -> Answer {
    struct Repeating(fn() -> std::io::Result<Frame<Bytes>>);
    impl Body for Repeating {
        type Data = Bytes;
        type Error = std::io::Error;
        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<std::io::Result<Frame<Bytes>>>> {
            Poll::Ready(Some(self.0()))
        }
    }
    Response::new(Repeating(frame).boxed())
}

pub type Handler = dyn Fn(&str, usize) -> Option<Answer> + Send + Sync;

/// Answers what its handler says to a path with its query, asked for the nth time (from 0). `None`
/// is never answered.
pub struct Service {
    pub url: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Service {
    pub async fn start(
        handler: impl Fn(&str, usize) -> Option<Answer> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (asked, handler) = (Arc::default(), Arc::new(handler) as Arc<Handler>);
        let log: Arc<Mutex<Vec<String>>> = Arc::clone(&asked);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(TokioIo::new(stream), handler.clone(), log.clone()));
            }
        });
        Self { url, asked }
    }

    /// The paths with their queries, in the order in which they were asked for.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

pub async fn serve<S>(stream: S, handler: Arc<Handler>, log: Arc<Mutex<Vec<String>>>)
where
    S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let answer = service_fn(move |request: Request<Incoming>| {
        let path = request.uri().path_and_query().unwrap().to_string();
        let mut asked = log.lock().unwrap();
        let times = asked.iter().filter(|earlier| **earlier == path).count();
        let answer = handler(&path, times);
        asked.push(path);
        async move {
            match answer {
                Some(answer) => Ok::<_, Infallible>(answer),
                None => std::future::pending().await,
            }
        }
    });
    let _ = http1::Builder::new().serve_connection(stream, answer).await;
}

/// Recorded collateral, cut again into the answers that it was put together from.
#[derive(Clone)]
pub struct Pcs {
    pub collateral: DcapCollateral,
    /// Which spelling of the headers: that of Intel's version 4, or the older one.
    pub old_headers: bool,
    /// Whether revocation lists are written in hexadecimal, as by some caches.
    pub hex: bool,
}

impl Pcs {
    pub fn answer(&self, path: &str) -> Answer {
        let c = &self.collateral;
        let (route, query) = path.split_once('?').unwrap_or((path, ""));
        let (tee, what) = route.split_once("/certification/v4/").unwrap_or(("", ""));
        let pick = |new, old| if self.old_headers { old } else { new };
        match (tee, what) {
            ("/sgx" | "/tdx", "tcb") => chained(
                signed("tcbInfo", &c.tcb_info, &c.tcb_info_signature),
                pick("TCB-Info-Issuer-Chain", "SGX-TCB-Info-Issuer-Chain"),
                &c.tcb_info_issuer_chain,
            ),
            ("/sgx" | "/tdx", "qe/identity") => chained(
                signed("enclaveIdentity", &c.qe_identity, &c.qe_identity_signature),
                "SGX-Enclave-Identity-Issuer-Chain",
                &c.qe_identity_issuer_chain,
            ),
            ("/sgx", "pckcrl") if query.ends_with("&encoding=der") => chained(
                self.list(&c.pck_crl),
                "SGX-PCK-CRL-Issuer-Chain",
                &c.pck_crl_issuer_chain,
            ),
            ("/sgx", "rootcacrl") => self.list(&c.root_ca_crl),
            _ => status(StatusCode::NOT_FOUND),
        }
    }

    fn list(&self, der: &[u8]) -> Answer {
        match self.hex {
            true => ok(hex::encode(der)),
            false => ok(der.to_vec()),
        }
    }
}

fn signed(member: &str, text: &str, signature: &[u8]) -> Answer {
    let signature = hex::encode(signature);
    ok(format!(
        r#"{{"{member}":{text},"signature":"{signature}"}}"#
    ))
}

fn chained(answer: Answer, header: &str, pem: &str) -> Answer {
    let encoded = utf8_percent_encode(pem, NON_ALPHANUMERIC).to_string();
    with_header(answer, header, &encoded)
}
