//! Another server of the Open Inference Protocol, for comparison: TLS with a certificate that was
//! given, HTTP/1.1, the same bytes in the body. It proves nothing about what runs there.

use std::cell::RefCell;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use blindai_client::{InferRequest, ModelName, ModelVersion};
use blindai_core::oip::{self, Encoded, HEADER_LENGTH, InferResponse, OutputFormat};
use blindai_core::printable;
use bytes::Bytes;
use clap::ValueEnum;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::target::Target;
use crate::file;

/// How a request's tensors travel; answers come in the same form where the server can.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Tensors {
    /// The protocol's binary extension.
    Binary,
    /// For servers without it.
    Json,
}

/// A server that is measured beside ours.
pub struct Peer {
    address: String,
    name: ServerName<'static>,
    tls: TlsConnector,
    request: Request<Full<Bytes>>,
    timeout: Duration,
    idle: RefCell<Vec<SendRequest<Full<Bytes>>>>,
}

impl Peer {
    /// The server at `address` (`host:port`), whose certificate is the one in the file or was signed
    /// by it.
    ///
    /// # Errors
    /// When the address or the certificate is none.
    pub fn new(
        address: &str,
        certificate: &Path,
        model: &ModelName,
        version: Option<&ModelVersion>,
        request: &InferRequest,
        tensors: Tensors,
        timeout: Duration,
    ) -> Result<Self> {
        let (host, _) = address
            .rsplit_once(':')
            .with_context(|| format!("{address:?} is not host:port"))?;
        let name = ServerName::try_from(host.to_owned())
            .with_context(|| format!("{host:?} is not the name of a server"))?;
        Ok(Self {
            address: address.to_owned(),
            name,
            tls: TlsConnector::from(Arc::new(tls(certificate)?)),
            request: encode(address, model, version, encoded(request, tensors)?)?,
            timeout,
            idle: RefCell::default(),
        })
    }

    async fn exchange(&self) -> Result<(), PeerError> {
        let idle = self.idle.borrow_mut().pop();
        let mut sender = match idle {
            Some(sender) => sender,
            None => self.connect().await?,
        };
        let lost = |error| PeerError::connection("connection-lost", error);
        sender.ready().await.map_err(lost)?;
        let answer = sender
            .send_request(self.request.clone())
            .await
            .map_err(lost)?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MOST_BYTES).collect().await;
        let body = body.map_err(|error| PeerError::connection("response-invalid", error))?;
        self.idle.borrow_mut().push(sender);
        match status.is_success() {
            true => Ok(()),
            false => Err(PeerError::status(status.as_u16(), &body.to_bytes())),
        }
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, PeerError> {
        let failed = |error| PeerError::connection("connect-failed", error);
        let socket = TcpStream::connect(&self.address).await.map_err(failed)?;
        socket.set_nodelay(true).map_err(failed)?;
        let stream = self.tls.connect(self.name.clone(), socket).await;
        let stream = stream.map_err(|error| PeerError::connection("tls-failed", error))?;
        let handshake = http1::handshake(TokioIo::new(stream)).await;
        let (sender, connection) =
            handshake.map_err(|error| PeerError::connection("connection-lost", error))?;
        // The exchange that it breaks hears of the error too.
        tokio::spawn(async move { drop(connection.await) });
        Ok(sender)
    }
}

impl Target for Peer {
    async fn send(&self) -> Result<()> {
        let exchange = tokio::time::timeout(self.timeout, self.exchange()).await;
        let late = |_| PeerError::connection("request-timeout", "no answer in time");
        Ok(exchange.map_err(late)??)
    }
}

/// Why a peer gave no answer.
#[derive(Debug)]
pub struct PeerError {
    code: String,
    fact: String,
}

impl PeerError {
    /// Nothing came, or nothing that could be read.
    pub fn connection(code: &'static str, fact: impl fmt::Display) -> Self {
        Self {
            code: code.to_owned(),
            fact: fact.to_string(),
        }
    }

    /// What the server said; it may have said anything.
    pub fn told(code: &str, fact: &str) -> Self {
        Self {
            code: printable(code, SHOWN_BYTES),
            fact: printable(fact, SHOWN_BYTES),
        }
    }

    fn status(status: u16, body: &[u8]) -> Self {
        Self::told(&format!("http-{status}"), &String::from_utf8_lossy(body))
    }

    /// A stable code: as our client's, or `http-` and the status.
    pub fn code(&self) -> &str {
        &self.code
    }
}

impl fmt::Display for PeerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.fact)
    }
}

impl std::error::Error for PeerError {}

fn tls(certificate: &Path) -> Result<ClientConfig> {
    let pem = file::read(certificate, CERTIFICATE_BYTES)?;
    let read = CertificateDer::from_pem_slice(&pem);
    let read = read.map_err(|error| anyhow::anyhow!("{error}"));
    let mut roots = RootCertStore::empty();
    read.and_then(|certificate| Ok(roots.add(certificate)?))
        .with_context(|| format!("{} holds no certificate", certificate.display()))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

fn encode(
    address: &str,
    model: &ModelName,
    version: Option<&ModelVersion>,
    encoded: Encoded,
) -> Result<Request<Full<Bytes>>> {
    let version = version.map_or(String::new(), |version| format!("/versions/{version}"));
    let path: Uri = format!("/v2/models/{model}{version}/infer").parse()?;
    let mut post = Request::new(Full::new(encoded.parts.concat().into()));
    *post.method_mut() = Method::POST;
    *post.uri_mut() = path;
    let headers = post.headers_mut();
    headers.insert(HOST, HeaderValue::try_from(address)?);
    let kind = match encoded.header_length {
        Some(length) => {
            headers.insert(HEADER_LENGTH, HeaderValue::from(length));
            "application/octet-stream"
        }
        None => "application/json",
    };
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    Ok(post)
}

fn encoded(request: &InferRequest, tensors: Tensors) -> Result<Encoded> {
    if tensors == Tensors::Binary {
        return Ok(oip::encode_request(request));
    }
    // Tensors look the same on both ways.
    let mirrored = InferResponse {
        id: None,
        model_name: String::new(),
        model_version: None,
        outputs: request.inputs.clone(),
        receipt: None,
    };
    let mirrored = oip::encode_response(&mirrored, |_| OutputFormat::Json, &mut |_| Ok(()))?;
    let mirrored: Value = serde_json::from_slice(&mirrored.parts.concat())?;
    Ok(Encoded {
        header_length: None,
        parts: vec![json!({ "inputs": mirrored["outputs"] }).to_string().into()],
    })
}

const CERTIFICATE_BYTES: u64 = 64 * 1024;
/// The largest answer.
pub const MOST_BYTES: usize = 1 << 30;
const SHOWN_BYTES: usize = 1024;

#[cfg(test)]
mod tests {
    use blindai_core::{DType, NamedTensor, Tensor};

    use super::*;

    #[test]
    fn both_forms_of_a_request_read_the_same() {
        let data = [1.5f32, -2.0].iter().flat_map(|x| x.to_le_bytes());
        let tensor = Tensor::new(DType::F32, vec![1, 2], data.collect::<Vec<_>>().into());
        let request = InferRequest::new(vec![NamedTensor::new("x", tensor.unwrap())]);
        for tensors in [Tensors::Binary, Tensors::Json] {
            let encoded = encoded(&request, tensors).unwrap();
            let body = encoded.parts.concat().into();
            let read = oip::decode_request(body, encoded.header_length, &mut |_| Ok(())).unwrap();
            assert_eq!(read.inputs, request.inputs, "{tensors:?}");
        }
    }

    #[test]
    fn what_a_peer_answers_does_not_steer_a_terminal() {
        let error = PeerError::status(503, "\u{1b}[2Kgone".as_bytes());
        assert_eq!(error.code(), "http-503");
        assert!(!error.to_string().contains('\u{1b}'));
    }
}
