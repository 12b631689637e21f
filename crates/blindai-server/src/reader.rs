use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes read at a time from a peer that sends much.
const MUCH_BYTES: usize = 32 * 1024;

/// A stream that reads much at a time from a peer that sends much, and holds no buffer for one that is
/// silent.
///
/// rustls reads 4 KiB at a time, which for a picture would be 150 system calls. But a buffer for every
/// connection would cost 10,000 silent ones 320 MB.
pub struct Reader<S> {
    stream: S,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// The last read filled what it was given, so there is likely more.
    more: bool,
}

impl<S: AsyncRead + Unpin> Reader<S> {
    pub fn new(stream: S) -> Self {
        Self {
            stream,
            buffer: Vec::new(),
            start: 0,
            end: 0,
            more: false,
        }
    }

    /// Reads past the buffer: what is asked for and no more.
    fn poll_little(
        &mut self,
        context: &mut Context<'_>,
        target: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = target.remaining();
        ready!(Pin::new(&mut self.stream).poll_read(context, target))?;
        self.more = target.remaining() == 0 && before > 0;
        Poll::Ready(Ok(()))
    }

    fn poll_much(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.buffer.resize(MUCH_BYTES, 0);
        let mut read = ReadBuf::new(&mut self.buffer);
        ready!(Pin::new(&mut self.stream).poll_read(context, &mut read))?;
        (self.start, self.end) = (0, read.filled().len());
        self.more = self.end == MUCH_BYTES;
        Poll::Ready(Ok(()))
    }

    fn hand_over(&mut self, target: &mut ReadBuf<'_>) {
        let length = target.remaining().min(self.end - self.start);
        target.put_slice(&self.buffer[self.start..self.start + length]);
        self.start += length;
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Reader<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        target: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.start == self.end {
            let read = match self.more {
                true => self.poll_much(context),
                false => self.poll_little(context, target),
            };
            if read.is_pending() {
                self.buffer = Vec::new();
                (self.start, self.end) = (0, 0);
                self.more = false;
            }
            ready!(read)?;
        }
        self.hand_over(target);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Reader<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    #[tokio::test]
    async fn all_of_it_comes_in_order_and_no_buffer_is_kept() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let sent: Vec<u8> = (0..1_000_000u32).map(|i| (i % 251) as u8).collect();
        let mut peer = TcpStream::connect(address).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let copy = sent.clone();
        let sender = tokio::spawn(async move {
            peer.write_all(&copy).await.unwrap();
            peer
        });
        let mut reader = Reader::new(stream);
        let mut got = vec![0; sent.len()];
        let mut at = 0;
        // Of many sizes, as TLS records are.
        for size in (1..=4096).cycle().step_by(7) {
            let end = (at + size).min(got.len());
            reader.read_exact(&mut got[at..end]).await.unwrap();
            at = end;
            if at == got.len() {
                break;
            }
        }
        assert_eq!(got, sent);
        let peer = sender.await.unwrap();
        let silent = tokio::time::timeout(std::time::Duration::from_millis(10), reader.read_u8());
        assert!(silent.await.is_err());
        assert_eq!(reader.buffer.capacity(), 0);
        drop(peer);
        assert!(reader.read_u8().await.is_err());
    }
}
