//! The proxy between callers in plain HTTP and attested servers that come, go and change.

#[path = "../../blindai-client/tests/support/mod.rs"]
mod attested;

use std::convert::Infallible;
use std::io::{BufRead as _, BufReader};
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use attested::{Identity, MEASUREMENT, TLS13, Time, tls};
use blindai_core::{Nonce, api};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;

/// An attested server for HTTP/1.1 and HTTP/2 that gives back what it gets.
struct Upstream {
    address: String,
    identity: Mutex<Arc<Identity>>,
    /// Requests other than for evidence, with the headers they came with.
    seen: Mutex<Vec<(Method, String, HeaderMap)>>,
    /// Whether an endless answer is still wanted.
    wanted: watch::Sender<bool>,
    /// Ends each connection that is open.
    end: watch::Sender<()>,
}

impl Upstream {
    async fn start(measurement: [u8; 32]) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let upstream = Arc::new(Self {
            address: listener.local_addr().unwrap().to_string(),
            identity: Mutex::new(Identity::new(measurement, &Time::now())),
            seen: Mutex::default(),
            wanted: watch::Sender::default(),
            end: watch::Sender::default(),
        });
        tokio::spawn(upstream.clone().accept(listener));
        upstream
    }

    /// Another server answers at this address from now on. Connections stay open unless it restarts.
    fn become_another(&self, measurement: [u8; 32], restart: bool) {
        *self.identity.lock().unwrap() = Identity::new(measurement, &Time::now());
        if restart {
            self.end.send_replace(());
        }
    }

    fn paths(&self) -> Vec<String> {
        let seen = self.seen.lock().unwrap();
        seen.iter().map(|(_, path, _)| path.clone()).collect()
    }

    async fn accept(self: Arc<Self>, listener: TcpListener) {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            tokio::spawn(self.clone().serve(socket));
        }
    }

    async fn serve(self: Arc<Self>, socket: TcpStream) {
        let identity = self.identity.lock().unwrap().clone();
        let mut config = tls(identity.certificate(), &identity.key, TLS13);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let mut end = self.end.subscribe();
        let Ok(stream) = TlsAcceptor::from(Arc::new(config)).accept(socket).await else {
            return;
        };
        let service = service_fn(|request| self.clone().answer(identity.clone(), request));
        let http = auto::Builder::new(TokioExecutor::new());
        tokio::select! {
            _ = http.serve_connection(TokioIo::new(stream), service) => {}
            _ = end.changed() => {}
        }
    }

    async fn answer(
        self: Arc<Self>,
        identity: Arc<Identity>,
        request: Request<Incoming>,
    ) -> Result<Response<Reply>, Infallible> {
        let path = request.uri().path().to_owned();
        if path == api::ATTESTATION {
            let nonce = request.uri().query().unwrap().strip_prefix("nonce=");
            let nonce = Nonce::from_hex(nonce.unwrap()).unwrap();
            return Ok(Response::new(Reply::whole(identity.document(nonce))));
        }
        let mut headers = request.headers().clone();
        if let Some(authority) = request.uri().authority() {
            headers.insert("x-authority", authority.as_str().parse().unwrap());
        }
        let line = (request.method().clone(), path.clone(), headers);
        self.seen.lock().unwrap().push(line);
        Ok(Response::new(match path.as_str() {
            "/echo" => Reply::Echo(request.into_body(), false),
            "/sink" => Reply::whole(count(request.into_body()).await.to_string().into()),
            "/endless" => {
                self.wanted.send_replace(true);
                Reply::Endless {
                    _wanted: Wanted(self),
                }
            }
            _ => Reply::whole(path.into()),
        }))
    }
}

async fn count(mut body: Incoming) -> u64 {
    let mut total = 0;
    while let Some(Ok(frame)) = body.frame().await {
        total += frame.data_ref().map_or(0, Bytes::len) as u64;
    }
    total
}

enum Reply {
    Whole(Full<Bytes>),
    /// Every frame comes back, and trailers after the last.
    Echo(Incoming, bool),
    /// For as long as somebody reads.
    Endless {
        _wanted: Wanted,
    },
}

struct Wanted(Arc<Upstream>);

impl Drop for Wanted {
    fn drop(&mut self) {
        self.0.wanted.send_replace(false);
    }
}

impl Reply {
    fn whole(body: Vec<u8>) -> Self {
        Self::Whole(Full::new(body.into()))
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut *self {
            Self::Whole(body) => Pin::new(body)
                .poll_frame(context)
                .map_err(|never| match never {}),
            Self::Echo(_, true) => Poll::Ready(None),
            Self::Echo(body, done) => {
                let frame = std::task::ready!(Pin::new(body).poll_frame(context));
                Poll::Ready(Some(frame.unwrap_or_else(|| {
                    *done = true;
                    let mut trailers = HeaderMap::new();
                    trailers.insert("grpc-status", "0".parse().unwrap());
                    Ok(Frame::trailers(trailers))
                })))
            }
            Self::Endless { .. } => {
                Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[0; 1024])))))
            }
        }
    }
}

/// A proxy that trusts [`MEASUREMENT`] alone.
struct Proxy {
    child: Child,
    address: String,
    _folder: tempfile::TempDir,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Proxy {
    fn start(server: &Upstream, arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let policy = folder.path().join("policy.toml");
        let pinned = "11".repeat(32);
        std::fs::write(
            &policy,
            format!("tee = [\"sgx\"]\n[sgx]\nmrenclave = [\"{pinned}\"]\n"),
        )
        .unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_blindai"))
            .args(["proxy", "--simulation", "--listen", "127.0.0.1:0"])
            .args(["--server", &server.address, "--policy"])
            .arg(&policy)
            .args(arguments)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        let address = line
            .split("http://")
            .nth(1)
            .and_then(|rest| rest.split(' ').next());
        let address = address.unwrap_or_else(|| panic!("{line}")).to_owned();
        // Whoever does not read would hold it up.
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        Self {
            child,
            address,
            _folder: folder,
        }
    }

    async fn trusting(server: &Upstream) -> Self {
        let proxy = Self::start(server, &["--reverify", "1"]);
        proxy
            .wait_for("the server to be verified", |status| {
                status["forwards"] == true
            })
            .await;
        proxy
    }

    async fn status(&self) -> Value {
        let body = self.get("/").await.into_body().collect().await.unwrap();
        serde_json::from_slice(&body.to_bytes()).unwrap()
    }

    async fn wait_for(&self, what: &str, reached: impl Fn(&Value) -> bool) -> Value {
        let patience = Instant::now() + Duration::from_secs(60);
        while Instant::now() < patience {
            let status = self.status().await;
            if reached(&status) {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("waited for {what}: {}", self.status().await);
    }

    async fn get(&self, path: &str) -> Response<Incoming> {
        self.send(Request::get(path).body(Empty::new()).unwrap())
            .await
    }

    /// What is answered once the end of the connections to the server has got around.
    async fn until(&self, status: StatusCode, path: &str) -> Response<Incoming> {
        loop {
            let answer = self.get(path).await;
            if answer.status() == status {
                return answer;
            }
            assert_eq!(refusal(answer).await.1, "connection-lost");
        }
    }

    /// Over HTTP/1.1.
    async fn send<B>(&self, mut request: Request<B>) -> Response<Incoming>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let host = self.address.parse().unwrap();
        request.headers_mut().entry("host").or_insert(host);
        let socket = TcpStream::connect(&self.address).await.unwrap();
        let (mut sender, driver) = http1::handshake(TokioIo::new(socket)).await.unwrap();
        tokio::spawn(driver);
        sender.send_request(request).await.unwrap()
    }

    async fn http2(&self) -> http2::SendRequest<Stream> {
        let socket = TcpStream::connect(&self.address).await.unwrap();
        let spoken = http2::handshake(TokioExecutor::new(), TokioIo::new(socket));
        let (sender, driver) = spoken.await.unwrap();
        tokio::spawn(driver);
        sender
    }

    /// A call of gRPC, and what it sends.
    fn call(&self, path: &str) -> (Request<Stream>, mpsc::Sender<Bytes>) {
        let (sender, chunks) = mpsc::channel(1);
        let request = Request::post(format!("http://{}{path}", self.address))
            .header("te", "trailers")
            .header("content-type", "application/grpc")
            .body(Stream(chunks))
            .unwrap();
        (request, sender)
    }

    /// The most memory it has had, in bytes.
    fn peak(&self) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmHWM:"))
            .unwrap();
        let kilobytes = line.split_whitespace().nth(1).unwrap();
        kilobytes.parse::<u64>().unwrap() * 1024
    }
}

/// A body of unknown length, which ends when its sender is dropped.
struct Stream(mpsc::Receiver<Bytes>);

impl Body for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0
            .poll_recv(context)
            .map(|chunk| Some(Ok(Frame::data(chunk?))))
    }
}

async fn data(body: &mut Incoming) -> Bytes {
    body.frame().await.unwrap().unwrap().into_data().unwrap()
}

async fn read(response: Response<Incoming>) -> (StatusCode, Bytes) {
    let status = response.status();
    (
        status,
        response.into_body().collect().await.unwrap().to_bytes(),
    )
}

async fn refusal(response: Response<Incoming>) -> (StatusCode, String) {
    let (status, body) = read(response).await;
    let error: Value = serde_json::from_slice(&body).unwrap();
    assert!(
        error["error"]
            .as_str()
            .unwrap()
            .contains(error["fact"].as_str().unwrap())
    );
    (status, error["code"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn calls_of_grpc_stream_both_ways_and_end_with_their_trailers() {
    let server = Upstream::start(MEASUREMENT).await;
    let proxy = Proxy::trusting(&server).await;
    let mut caller = proxy.http2().await;
    let (request, sender) = proxy.call("/echo");
    let (other, others) = proxy.call("/echo");
    let mut answer = caller.send_request(request).await.unwrap().into_body();
    let mut other = caller.send_request(other).await.unwrap().into_body();
    for word in ["one", "two"] {
        // Each comes back before the next is sent.
        sender.send(word.into()).await.unwrap();
        assert_eq!(data(&mut answer).await, word);
        others.send("other".into()).await.unwrap();
        assert_eq!(data(&mut other).await, "other");
    }
    drop(sender);
    let last = answer.frame().await.unwrap().unwrap();
    assert_eq!(last.into_trailers().unwrap()["grpc-status"], "0");

    let seen = server.seen.lock().unwrap();
    let (method, path, headers) = &seen[0];
    assert_eq!((method, path.as_str()), (&Method::POST, "/echo"));
    assert_eq!(headers["x-authority"], server.address);
    assert_eq!(headers["te"], "trailers");
    assert_eq!(headers["via"], "2 blindai");
}

#[tokio::test]
async fn requests_of_http1_keep_all_but_what_was_for_the_proxy() {
    let server = Upstream::start(MEASUREMENT).await;
    let proxy = Proxy::trusting(&server).await;
    for _ in 0..3 {
        let request = Request::post("/echo?x=1")
            .header("x-mine", "1")
            .header("connection", "x-secret")
            .header("x-secret", "1")
            .body(Full::from("body"));
        let (status, body) = read(proxy.send(request.unwrap()).await).await;
        assert_eq!((status, &body[..]), (StatusCode::OK, &b"body"[..]));
    }
    let seen = server.seen.lock().unwrap();
    for (_, _, headers) in &*seen {
        assert_eq!(headers["host"], server.address);
        assert_eq!(headers["x-mine"], "1");
        assert!(!headers.contains_key("x-secret") && !headers.contains_key("connection"));
    }
    assert_eq!(seen.len(), 3);
}

#[tokio::test]
async fn nothing_goes_to_a_server_that_the_policy_does_not_accept() {
    let server = Upstream::start([0x22; 32]).await;
    let proxy = Proxy::start(&server, &["--reverify", "1"]);
    let status = proxy
        .wait_for("a refusal", |status| status["state"] == "refused")
        .await;
    assert_eq!(status["last_failure"]["code"], "measurement-mismatch");
    assert_eq!(status["forwards"], false);
    assert!(
        !status["last_failure"]["checks"]
            .as_array()
            .unwrap()
            .is_empty()
    );

    let refused = (
        StatusCode::SERVICE_UNAVAILABLE,
        "measurement-mismatch".to_owned(),
    );
    assert_eq!(refusal(proxy.get("/echo").await).await, refused);
    assert_eq!(refusal(proxy.get("/-/ready").await).await, refused);
    let (request, _sender) = proxy.call("/echo");
    let answer = proxy.http2().await.send_request(request).await.unwrap();
    assert_eq!(
        (answer.status(), &answer.headers()["grpc-status"]),
        (StatusCode::OK, &"14".parse().unwrap())
    );
    let message = answer.headers()["grpc-message"].to_str().unwrap();
    assert!(message.starts_with("measurement-mismatch: "), "{message}");
    assert_eq!(server.paths(), [""; 0]);
}

#[tokio::test]
async fn a_server_that_is_replaced_in_between_loses_its_connections_and_its_trust() {
    let server = Upstream::start(MEASUREMENT).await;
    let proxy = Proxy::trusting(&server).await;
    let mut caller = proxy.http2().await;
    let (request, sender) = proxy.call("/echo");
    let mut stream = caller.send_request(request).await.unwrap().into_body();
    sender.send("before".into()).await.unwrap();
    assert_eq!(data(&mut stream).await, "before");
    let mut endless = proxy.get("/endless").await.into_body();
    data(&mut endless).await;

    // Nobody has closed anything: the next verification finds out.
    server.become_another([0x22; 32], false);
    assert!(stream.frame().await.unwrap().is_err());
    while let Some(Ok(_)) = endless.frame().await {}
    let before = server.paths().len();
    let (status, code) = refusal(proxy.get("/x").await).await;
    assert_eq!(
        (status.as_u16(), code.as_str()),
        (503, "measurement-mismatch")
    );
    assert_eq!(server.paths().len(), before);

    server.become_another(MEASUREMENT, false);
    let status = proxy
        .wait_for("trust to come back", |status| status["forwards"] == true)
        .await;
    assert_eq!(status["last_failure"]["code"], "measurement-mismatch");
    assert_eq!(read(proxy.get("/x").await).await.1, "/x");
}

#[tokio::test]
async fn a_server_that_restarts_is_verified_anew_on_the_way() {
    let server = Upstream::start(MEASUREMENT).await;
    let proxy = Proxy::start(&server, &["--reverify", "3600"]);
    let first = proxy
        .wait_for("the server", |status| status["forwards"] == true)
        .await;
    assert_eq!(read(proxy.get("/a").await).await.1, "/a");
    let mut caller = proxy.http2().await;
    server.become_another(MEASUREMENT, true);
    let answer = proxy.until(StatusCode::OK, "/b").await;
    assert_eq!(read(answer).await.1, "/b");
    let (request, sender) = proxy.call("/echo");
    drop(sender);
    let answer = caller.send_request(request).await.unwrap();
    assert!(!answer.headers().contains_key("grpc-status"));
    let second = proxy.status().await;
    let key = |status: &Value| status["report"]["claims"]["tls_spki_sha256"].clone();
    assert_ne!(key(&first), key(&second));

    server.become_another([0x22; 32], true);
    let answer = proxy.until(StatusCode::SERVICE_UNAVAILABLE, "/c").await;
    assert_eq!(refusal(answer).await.1, "measurement-mismatch");
    assert!(!server.paths().contains(&"/c".to_owned()));
}

#[tokio::test]
async fn an_answer_that_was_cut_does_not_look_like_one_that_ended() {
    let server = Upstream::start(MEASUREMENT).await;
    let proxy = Proxy::trusting(&server).await;
    let mut http1 = proxy.get("/endless").await.into_body();
    let (request, _sender) = proxy.call("/endless");
    let mut caller = proxy.http2().await;
    let mut http2 = caller.send_request(request).await.unwrap().into_body();
    server.end.send_replace(());
    for body in [&mut http1, &mut http2] {
        let end = loop {
            match body.frame().await {
                Some(Ok(_)) => {}
                end => break end,
            }
        };
        assert!(end.is_some_and(|frame| frame.is_err()));
    }
}

#[tokio::test]
async fn a_caller_who_goes_away_takes_the_request_with_him() {
    let server = Upstream::start(MEASUREMENT).await;
    let proxy = Proxy::trusting(&server).await;
    let mut wanted = server.wanted.subscribe();
    let mut caller = proxy.http2().await;
    for over_http2 in [false, true] {
        let mut body = match over_http2 {
            false => proxy.get("/endless").await.into_body(),
            true => {
                let (request, _sender) = proxy.call("/endless");
                caller.send_request(request).await.unwrap().into_body()
            }
        };
        data(&mut body).await;
        assert!(*wanted.borrow_and_update());
        drop(body);
        let gone = tokio::time::timeout(Duration::from_secs(60), wanted.wait_for(|wanted| !wanted));
        gone.await.expect("the server to be told").unwrap();
    }
}

#[tokio::test]
async fn bodies_of_any_length_pass_without_being_held() {
    const CHUNK: &[u8] = &[7; 64 * 1024];
    const CHUNKS: u64 = 4096;
    let server = Upstream::start(MEASUREMENT).await;
    let proxy = Proxy::trusting(&server).await;
    let before = proxy.peak();
    for over_http2 in [false, true] {
        let (mut request, sender) = proxy.call("/sink");
        request.headers_mut().remove("content-type");
        let writer = tokio::spawn(async move {
            for _ in 0..CHUNKS {
                sender.send(Bytes::from_static(CHUNK)).await.unwrap();
            }
        });
        let answer = match over_http2 {
            true => proxy.http2().await.send_request(request).await.unwrap(),
            false => proxy.send(request).await,
        };
        let total = CHUNKS * CHUNK.len() as u64;
        assert_eq!(read(answer).await.1, total.to_string());
        writer.await.unwrap();
    }
    let more = proxy.peak() - before;
    assert!(more < 32 << 20, "256 MiB made it grow by {more} bytes");
}
