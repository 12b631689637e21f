//! HTTP/1.1 on one TLS connection: what is sent is never joined, what comes back is bounded.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http::header::HOST;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, BufReader, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_rustls::client::TlsStream;

use crate::ClientError;

/// A connection on which messages can be exchanged, trusted or not.
pub(crate) struct Wire {
    host: HeaderValue,
    sender: SendRequest<Outgoing>,
    driver: JoinHandle<()>,
}

impl Wire {
    /// Speaks HTTP/1.1 on a TLS connection. `host` goes into each request.
    pub async fn new(
        stream: TlsStream<AnswerOutlivesReset>,
        host: HeaderValue,
    ) -> Result<Self, ClientError> {
        let handshake = Builder::new().handshake(TokioIo::new(stream)).await;
        let (sender, connection) = handshake.map_err(ClientError::connection_lost)?;
        let driver = tokio::spawn(async move {
            // The exchange that it breaks hears of the error too.
            let _ = connection.await;
        });
        Ok(Self {
            host,
            sender,
            driver,
        })
    }

    /// Sends a request and collects its answer, of at most `limit` bytes.
    pub async fn exchange(
        &mut self,
        head: &Head,
        body: Outgoing,
        limit: usize,
    ) -> Result<Answer, Broken> {
        let early = |error| Broken::BeforeAnswer(ClientError::connection_lost(error));
        let sent = body.progress();
        let total = body.remaining;
        self.sender.ready().await.map_err(early)?;
        let request = head.request(&self.host, body);
        let response = self.sender.send_request(request).await.map_err(early)?;
        let (head, body) = response.into_parts();
        match collect(body, limit).await {
            Ok(body) => Ok(Answer {
                head,
                body,
                reusable: sent.load(Ordering::Relaxed) == total,
            }),
            // The status has come and says more than the broken connection.
            Err(_) if !head.status.is_success() => Ok(Answer {
                head,
                body: Bytes::new(),
                reusable: false,
            }),
            Err(error) => Err(Broken::AfterAnswer(error)),
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        // Without it a refused upload would go on to the end of the file.
        self.driver.abort();
    }
}

/// Why there is no answer.
pub(crate) enum Broken {
    /// Nothing of an answer came: the server may have closed the connection while it was idle.
    BeforeAnswer(ClientError),
    AfterAnswer(ClientError),
}

impl From<Broken> for ClientError {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::BeforeAnswer(error) | Broken::AfterAnswer(error) => error,
        }
    }
}

/// A request without its body.
#[derive(Clone)]
pub(crate) struct Head {
    pub method: Method,
    pub path: Uri,
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

impl Head {
    pub fn new(method: Method, path: String) -> Self {
        Self {
            method,
            // Paths are built from checked names and hexadecimal digits only.
            path: path.parse().expect("a path of checked parts"),
            headers: Vec::new(),
        }
    }

    fn request(&self, host: &HeaderValue, body: Outgoing) -> Request<Outgoing> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.path.clone();
        request.headers_mut().insert(HOST, host.clone());
        for (name, value) in &self.headers {
            request.headers_mut().insert(name, value.clone());
        }
        request
    }
}

/// An answer, whole.
pub(crate) struct Answer {
    head: http::response::Parts,
    pub body: Bytes,
    /// All of the request was sent: the connection can be used again.
    pub reusable: bool,
}

impl Answer {
    pub fn status(&self) -> StatusCode {
        self.head.status
    }

    pub fn headers(&self) -> &HeaderMap {
        &self.head.headers
    }
}

/// A request's body: parts that are never joined, or a stream of a known length.
pub(crate) struct Outgoing {
    source: Source,
    remaining: u64,
    sent: Arc<AtomicU64>,
    notify: Option<crate::Progress>,
}

enum Source {
    Parts(std::vec::IntoIter<Bytes>),
    Stream(mpsc::Receiver<Bytes>),
}

impl Outgoing {
    pub fn empty() -> Self {
        Self::parts(Vec::new())
    }

    pub fn parts(mut parts: Vec<Bytes>) -> Self {
        parts.retain(|part| !part.is_empty());
        let length = parts.iter().map(|part| part.len() as u64).sum();
        Self::new(Source::Parts(parts.into_iter()), length, None)
    }

    /// `length` bytes from `chunks`; a stream that ends before is an error.
    pub fn stream(
        chunks: mpsc::Receiver<Bytes>,
        length: u64,
        notify: Option<crate::Progress>,
    ) -> Self {
        Self::new(Source::Stream(chunks), length, notify)
    }

    /// How many bytes were handed to the connection.
    pub fn progress(&self) -> Arc<AtomicU64> {
        self.sent.clone()
    }

    fn new(source: Source, length: u64, notify: Option<crate::Progress>) -> Self {
        Self {
            source,
            remaining: length,
            sent: Arc::default(),
            notify,
        }
    }

    fn count(&mut self, part: &Bytes) -> io::Result<()> {
        let length = part.len() as u64;
        let too_long = || io::Error::other("the body is longer than announced");
        self.remaining = self.remaining.checked_sub(length).ok_or_else(too_long)?;
        let sent = self.sent.fetch_add(length, Ordering::Relaxed) + length;
        if let Some(notify) = &self.notify {
            notify(sent, sent + self.remaining);
        }
        Ok(())
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.remaining == 0 {
            return Poll::Ready(None);
        }
        let part = match &mut self.source {
            Source::Parts(parts) => parts.next(),
            Source::Stream(chunks) => std::task::ready!(chunks.poll_recv(context)),
        };
        Poll::Ready(Some(match part {
            Some(part) => self.count(&part).map(|()| Frame::data(part)),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.remaining == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.remaining)
    }
}

/// A socket that says nothing of a failed write, so that the answer can still be read.
///
/// A server that refuses a long body answers and closes while the body is still being written. The
/// write then fails, although the answer lies in our receive buffer. The reader meets the answer,
/// and after it the end or the reset of the connection: no failure goes unseen.
pub(crate) struct AnswerOutlivesReset(BufReader<TcpStream>);

/// Bytes read from the connection at a time; rustls alone would ask for 4 KiB each.
const READ_BYTES: usize = 32 * 1024;

impl AnswerOutlivesReset {
    pub fn new(socket: TcpStream) -> Self {
        Self(BufReader::with_capacity(READ_BYTES, socket))
    }

    fn forgive(written: Poll<io::Result<usize>>, offered: usize) -> Poll<io::Result<usize>> {
        use io::ErrorKind::{BrokenPipe, ConnectionReset};
        match written {
            Poll::Ready(Err(error)) if matches!(error.kind(), BrokenPipe | ConnectionReset) => {
                Poll::Ready(Ok(offered))
            }
            other => other,
        }
    }
}

impl AsyncRead for AnswerOutlivesReset {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for AnswerOutlivesReset {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Self::forgive(
            Pin::new(&mut self.0).poll_write(context, bytes),
            bytes.len(),
        )
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let offered = parts.iter().map(|part| part.len()).sum();
        Self::forgive(
            Pin::new(&mut self.0).poll_write_vectored(context, parts),
            offered,
        )
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

async fn collect(mut body: Incoming, limit: usize) -> Result<Bytes, ClientError> {
    let announced = body.size_hint().lower();
    let announced = usize::try_from(announced).ok().filter(|&n| n <= limit);
    let announced = announced.ok_or_else(|| ClientError::response_too_large(limit))?;
    let Some(first) = next(&mut body).await? else {
        return Ok(Bytes::new());
    };
    if body.is_end_stream() && first.len() <= limit {
        return Ok(first);
    }
    let mut all = BytesMut::with_capacity(announced);
    let mut chunk = Some(first);
    while let Some(data) = chunk {
        if data.len() > limit - all.len() {
            return Err(ClientError::response_too_large(limit));
        }
        all.extend_from_slice(&data);
        chunk = next(&mut body).await?;
    }
    Ok(all.freeze())
}

async fn next(body: &mut Incoming) -> Result<Option<Bytes>, ClientError> {
    loop {
        let Some(frame) = body.frame().await else {
            return Ok(None);
        };
        // Trailers say nothing to this client.
        if let Ok(data) = frame.map_err(ClientError::connection_lost)?.into_data() {
            return Ok(Some(data));
        }
    }
}
