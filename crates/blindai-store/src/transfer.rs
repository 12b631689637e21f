//! Moves models into the store and out of it, in parts of a few MiB: while one is read and digested,
//! another is sealed or opened, and a third is on its way to or from the backend.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use blindai_core::{Code, Digest, Error, Result};
use bytes::{Bytes, BytesMut};
use object_store::path::Path;
use object_store::{Error as Backend, ObjectStore, ObjectStoreExt as _, PutPayload};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use crate::entry::Entry;
use crate::error::{stopped, unavailable};
use crate::key::StreamKey;
use crate::stream::{
    HEADER_BYTES, Header, Layout, NotAuthentic, SEGMENT_BYTES, Stream, as_usize, without_tag,
};

/// What every stream of content is bound to.
pub(crate) const BOUND_TO: &[u8] = b"content";

/// Takes a model as it comes out of the store.
pub trait Destination: Send + 'static {
    /// What it becomes when it is whole.
    type Whole: Send + 'static;

    /// Takes the next piece, which is authentic; whether the whole is, is known at the end only.
    ///
    /// # Errors
    /// What speaks against taking it. Nothing further is read then.
    fn write(&mut self, piece: &[u8]) -> Result<()>;

    /// The SHA-256 of all pieces, and the whole.
    ///
    /// # Errors
    /// What speaks against it.
    fn finish(self) -> Result<(Digest, Self::Whole)>;
}

/// Digests what it passes on to a writer.
#[derive(Debug)]
pub struct Digesting<W> {
    writer: W,
    hash: Sha256,
}

impl<W: io::Write> Digesting<W> {
    /// Passes everything on to this writer.
    pub fn new(writer: W) -> Self {
        let hash = Sha256::new();
        Self { writer, hash }
    }
}

impl<W: io::Write + Send + 'static> Destination for Digesting<W> {
    type Whole = W;

    fn write(&mut self, piece: &[u8]) -> Result<()> {
        self.hash.update(piece);
        let written = self.writer.write_all(piece);
        written.map_err(|error| Error::new(Code::Internal, format!("writing a copy: {error}")))
    }

    fn finish(self) -> Result<(Digest, W)> {
        let digest = Digest::from_bytes(self.hash.finalize().into());
        Ok((digest, self.writer))
    }
}

/// Seals what the reader gives, which must have the digest, and puts it there.
pub(crate) async fn send(
    backend: &dyn ObjectStore,
    path: &Path,
    stream: Stream,
    header: Header,
    content: impl Read + Send + 'static,
    digest: Digest,
) -> Result<()> {
    let layout = stream.layout();
    let (plain, to_seal) = sync_channel(0);
    let (sealed, mut to_send) = mpsc::channel(1);
    let reading = spawn_blocking(move || read_parts(content, layout, digest, &plain));
    let sealing = spawn_blocking(move || seal_parts(&stream, header, &to_seal, &sealed));
    let sent = put_parts(backend, path, layout, &mut to_send).await;
    // Ends the others when the backend failed.
    drop(to_send);
    sealing.await.map_err(|_| stopped())?;
    reading.await.map_err(|_| stopped())??;
    sent
}

/// Opens what is there, and passes it on.
pub(crate) async fn receive<D: Destination>(
    backend: &dyn ObjectStore,
    key: &StreamKey,
    entry: &Entry,
    into: D,
) -> Result<D::Whole> {
    let path = entry.path();
    let found = check(backend, key, entry, &path).await?;
    let stream = Stream::new(key, BOUND_TO, entry.header(), entry.layout());
    let (sealed, to_open) = mpsc::channel(1);
    let (plain, to_write) = sync_channel(0);
    let opening = spawn_blocking(move || open_parts(&stream, to_open, &plain));
    let expected = entry.digest();
    let layout = entry.layout();
    let writing = spawn_blocking(move || write_parts(into, layout, &to_write, expected));
    let fetched = get_parts(backend, &path, layout, found, &sealed).await;
    drop(sealed);
    let opened = opening.await.map_err(|_| stopped())?;
    let written = writing.await.map_err(|_| stopped())?;
    // A missing part looks like an early end to those who come after.
    fetched?;
    opened?;
    written?.ok_or_else(stopped)
}

/// A part of the stream: whole segments, the last excepted.
struct Part {
    /// The number of its first segment.
    first: u64,
    bytes: BytesMut,
}

const PART_SEGMENTS: u64 = 5;
/// As small as S3 lets parts of an upload be.
const PART_BYTES: u64 = PART_SEGMENTS * SEGMENT_BYTES as u64;

/// The places of a part's segments within the part, header left out.
fn segments(layout: Layout, first: u64) -> impl Iterator<Item = (u64, std::ops::Range<usize>)> {
    let start = first * SEGMENT_BYTES as u64;
    let end = layout.segments().min(first + PART_SEGMENTS);
    (first..end).map(move |number| {
        let segment = layout.segment(number);
        (number, as_usize(segment.start - start..segment.end - start))
    })
}

fn part_bytes(layout: Layout, first: u64) -> usize {
    let left = layout.sealed_bytes() - first * SEGMENT_BYTES as u64;
    left.min(PART_BYTES) as usize
}

fn read_parts(
    mut content: impl Read,
    layout: Layout,
    expected: Digest,
    to: &SyncSender<Part>,
) -> Result<()> {
    let mut hash = Sha256::new();
    for first in (0..layout.segments()).step_by(PART_SEGMENTS as usize) {
        let mut bytes = BytesMut::zeroed(part_bytes(layout, first));
        for (_, place) in segments(layout, first) {
            let plain = &mut bytes[without_tag(place)];
            content.read_exact(plain).map_err(|error| unread(&error))?;
            hash.update(plain);
        }
        // Before the last part leaves, so that nothing wrong is ever complete.
        if first + PART_SEGMENTS >= layout.segments() {
            let got = Digest::from_bytes(hash.clone().finalize().into());
            check_whole(&mut content, got, expected)?;
        }
        if to.send(Part { first, bytes }).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

fn check_whole(content: &mut impl Read, got: Digest, expected: Digest) -> Result<()> {
    let more = content.read(&mut [0]).map_err(|error| unread(&error))?;
    if got == expected && more == 0 {
        return Ok(());
    }
    let fact = format!("announced {expected}, found {got} or more bytes");
    Err(Error::new(Code::DigestMismatch, fact))
}

fn unread(error: &io::Error) -> Error {
    Error::new(Code::BodyIncomplete, format!("reading what is to be stored: {error}"))
}

fn seal_parts(
    stream: &Stream,
    header: Header,
    from: &Receiver<Part>,
    to: &mpsc::Sender<Bytes>,
) {
    while let Ok(Part { first, mut bytes }) = from.recv() {
        if first == 0 {
            bytes[..HEADER_BYTES].copy_from_slice(header.as_bytes());
        }
        for (number, place) in segments(stream.layout(), first) {
            stream.seal(number, &mut bytes[place]);
        }
        if to.blocking_send(bytes.freeze()).is_err() {
            return;
        }
    }
}

async fn put_parts(
    backend: &dyn ObjectStore,
    path: &Path,
    layout: Layout,
    parts: &mut mpsc::Receiver<Bytes>,
) -> Result<()> {
    let failed = |error: Backend| unavailable("storing a model", &error);
    if layout.sealed_bytes() <= PART_BYTES {
        let Some(part) = parts.recv().await else {
            return Err(stopped());
        };
        let put = backend.put(path, PutPayload::from_bytes(part)).await;
        return put.map(drop).map_err(failed);
    }
    let mut upload = backend.put_multipart(path).await.map_err(failed)?;
    let mut left = layout.sealed_bytes();
    while let Some(part) = parts.recv().await {
        left -= part.len() as u64;
        if let Err(error) = upload.put_part(PutPayload::from_bytes(part)).await {
            let _ = upload.abort().await;
            return Err(failed(error));
        }
    }
    if left > 0 {
        let _ = upload.abort().await;
        return Err(stopped());
    }
    upload.complete().await.map(drop).map_err(failed)
}

/// Looks at the length and the header of what is there, and gives back its first part.
async fn check(
    backend: &dyn ObjectStore,
    key: &StreamKey,
    entry: &Entry,
    path: &Path,
) -> Result<Bytes> {
    let found = backend.head(path).await.map_err(missing)?;
    let end = part_bytes(entry.layout(), 0) as u64;
    let part = match found.size.min(end) {
        0 => Bytes::new(),
        end => backend.get_range(path, 0..end).await.map_err(missing)?,
    };
    let expected = entry.layout().sealed_bytes();
    let header = Header::read(&part);
    if header != Some(entry.header()) && is_sealed_here(backend, key, path, found.size).await {
        let fact = "another model lies where this one was stored";
        return Err(Error::new(Code::StoreSwapped, fact));
    }
    if found.size < expected {
        let fact = format!("a model has {} bytes, {expected} were stored", found.size);
        return Err(Error::new(Code::StoreTruncated, fact));
    }
    if header != Some(entry.header()) || found.size > expected {
        return Err(corrupt());
    }
    Ok(part)
}

/// Whether a stream of ours begins there, whichever it is.
async fn is_sealed_here(
    backend: &dyn ObjectStore,
    key: &StreamKey,
    path: &Path,
    size: u64,
) -> bool {
    let Some(layout) = Layout::of_sealed(size) else {
        return false;
    };
    let first = backend.get_range(path, 0..layout.segment(0).end).await;
    let mut first = first.map(BytesMut::from).unwrap_or_default();
    let Some(header) = Header::read(&first).filter(|_| first.len() > HEADER_BYTES) else {
        return false;
    };
    let stream = Stream::new(key, BOUND_TO, header, layout);
    stream.open(0, &mut first[HEADER_BYTES..]).is_ok()
}

async fn get_parts(
    backend: &dyn ObjectStore,
    path: &Path,
    layout: Layout,
    first: Bytes,
    to: &mpsc::Sender<Bytes>,
) -> Result<()> {
    let mut start = first.len() as u64;
    // Who does not take it says why.
    if to.send(first).await.is_err() {
        return Ok(());
    }
    while start < layout.sealed_bytes() {
        let end = layout.sealed_bytes().min(start + PART_BYTES);
        let part = backend.get_range(path, start..end).await.map_err(missing)?;
        if (part.len() as u64) < end - start {
            let fact = "a model became shorter while it was read";
            return Err(Error::new(Code::StoreTruncated, fact));
        }
        if to.send(part).await.is_err() {
            return Ok(());
        }
        start = end;
    }
    Ok(())
}

fn open_parts(
    stream: &Stream,
    mut from: mpsc::Receiver<Bytes>,
    to: &SyncSender<Part>,
) -> Result<()> {
    let layout = stream.layout();
    for first in (0..layout.segments()).step_by(PART_SEGMENTS as usize) {
        let Some(part) = from.blocking_recv() else {
            return Ok(());
        };
        // A copy only where the backend keeps the bytes, which the one in memory does.
        let mut bytes = BytesMut::from(part);
        for (number, place) in segments(layout, first) {
            let opened = stream.open(number, &mut bytes[place]);
            opened.map_err(|NotAuthentic| corrupt())?;
        }
        if to.send(Part { first, bytes }).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// `None` when not everything came, which somebody else explains.
fn write_parts<D: Destination>(
    mut into: D,
    layout: Layout,
    from: &Receiver<Part>,
    expected: Digest,
) -> Result<Option<D::Whole>> {
    let mut written = 0;
    while let Ok(Part { first, bytes }) = from.recv() {
        for (_, place) in segments(layout, first) {
            let piece = &bytes[without_tag(place)];
            into.write(piece)?;
            written += piece.len() as u64;
        }
        if first + PART_SEGMENTS >= layout.segments() {
            return finish(into, written, layout, expected);
        }
    }
    Ok(None)
}

/// The seal holds already; this is against faults of ours.
fn finish<D: Destination>(
    into: D,
    written: u64,
    layout: Layout,
    expected: Digest,
) -> Result<Option<D::Whole>> {
    let (digest, whole) = into.finish()?;
    if digest != expected || written != layout.plain_bytes() {
        let fact = format!("a model has {digest}, {expected} was stored");
        return Err(Error::new(Code::StoreCorrupt, fact));
    }
    Ok(Some(whole))
}

fn missing(error: Backend) -> Error {
    match error {
        Backend::NotFound { .. } => {
            Error::new(Code::StoreContentMissing, "a model that is listed is not there")
        }
        error => unavailable("reading a model", &error),
    }
}

fn corrupt() -> Error {
    Error::new(Code::StoreCorrupt, "what was stored of a model was changed")
}
