//! Moves models into the store and out of it, in parts of a few MiB. Digesting takes longest, so it has
//! a thread of its own, and everything else happens beside it. The parts go round: there are never more
//! than a few, whatever is moved.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use blindai_core::{Code, Digest, Error, Result};
use bytes::{Bytes, BytesMut};
use object_store::path::Path;
use object_store::{
    Error as Backend, GetOptions, GetResultPayload, ObjectStore, ObjectStoreExt as _, PutPayload,
};
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
    type Whole;

    /// Takes the next piece, which is authentic; whether the whole is, is known at the end only.
    ///
    /// # Errors
    /// What speaks against taking it. Nothing further is read then.
    fn write(&mut self, piece: &[u8]) -> Result<()>;

    /// Everything came, and has this SHA-256.
    ///
    /// # Errors
    /// What speaks against it.
    fn finish(self, digest: Digest) -> Result<Self::Whole>;
}

impl Destination for Vec<u8> {
    type Whole = Self;

    fn write(&mut self, piece: &[u8]) -> Result<()> {
        self.extend_from_slice(piece);
        Ok(())
    }

    fn finish(self, _: Digest) -> Result<Self> {
        Ok(self)
    }
}

impl Destination for File {
    type Whole = Self;

    fn write(&mut self, piece: &[u8]) -> Result<()> {
        let written = io::Write::write_all(self, piece);
        written.map_err(|error| Error::new(Code::Internal, format!("writing a copy: {error}")))
    }

    fn finish(self, _: Digest) -> Result<Self> {
        Ok(self)
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
    let (free, freed) = buffers();
    let (plain, to_seal) = sync_channel(1);
    let (sealed, mut to_send) = mpsc::channel(1);
    let reading = spawn_blocking(move || read_parts(content, layout, digest, &freed, &plain));
    let sealing = spawn_blocking(move || seal_parts(&stream, header, &to_seal, &sealed));
    let sent = put_parts(backend, path, layout, &mut to_send, &free).await;
    // Ends the others when the backend failed.
    drop((to_send, free));
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
    let (path, layout) = (entry.path(), entry.layout());
    let stream = Stream::new(key, BOUND_TO, entry.header(), layout);
    let (fetched, to_open) = mpsc::channel(1);
    let source = match find(backend, key, entry, &path).await? {
        Some(file) => Source::File(file),
        None => Source::Parts(to_open),
    };
    let remote = matches!(source, Source::Parts(_));
    let (free, freed) = buffers();
    let (plain, to_write) = sync_channel(0);
    let (written, to_digest) = sync_channel(0);
    let opening = spawn_blocking(move || open_parts(&stream, source, &freed, &plain));
    let writing = spawn_blocking(move || write_parts(layout, &to_write, into, &written));
    let digesting = spawn_blocking(move || digest_parts(layout, &to_digest, &free));
    let got = match remote {
        true => get_parts(backend, &path, layout, &fetched).await,
        false => Ok(()),
    };
    drop(fetched);
    let opened = opening.await.map_err(|_| stopped())?;
    let written = writing.await.map_err(|_| stopped())?;
    let digest = digesting.await.map_err(|_| stopped())?;
    // A part that did not come looks like an early end to those who wait for it, and who refuses one
    // looks so to those who bring it.
    got?;
    opened?;
    let into = written?;
    if digest != entry.digest() {
        // The seal holds already; this is against faults of ours.
        let fact = format!("a model has {digest}, {} was stored", entry.digest());
        return Err(Error::new(Code::StoreCorrupt, fact));
    }
    into.finish(digest)
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
const READ_BYTES: usize = 128 << 10;
/// One for each stage, and two on their way.
const BUFFERS: usize = 5;

/// Buffers that go round, so that there are never more, and the system makes pages for them once.
fn buffers() -> (Sender<BytesMut>, Receiver<BytesMut>) {
    let (free, freed) = channel();
    for _ in 0..BUFFERS {
        free.send(BytesMut::new()).expect("the receiver is here");
    }
    (free, freed)
}

/// The numbers of the parts' first segments.
fn parts(layout: Layout) -> impl Iterator<Item = u64> {
    (0..layout.segments()).step_by(PART_SEGMENTS as usize)
}

/// Where a part lies in the stream.
fn part(layout: Layout, first: u64) -> Range<u64> {
    let start = first * SEGMENT_BYTES as u64;
    start..layout.sealed_bytes().min(start + PART_BYTES)
}

fn part_bytes(layout: Layout, first: u64) -> usize {
    as_usize(part(layout, first)).len()
}

/// The numbers of a part's segments, and their places in it, header left out.
fn segments(layout: Layout, first: u64) -> impl Iterator<Item = (u64, Range<usize>)> {
    let start = part(layout, first).start;
    let end = layout.segments().min(first + PART_SEGMENTS);
    (first..end).map(move |number| {
        let segment = layout.segment(number);
        (number, as_usize(segment.start - start..segment.end - start))
    })
}

fn read_parts(
    mut content: impl Read,
    layout: Layout,
    expected: Digest,
    freed: &Receiver<BytesMut>,
    to: &SyncSender<Part>,
) -> Result<()> {
    let mut hash = Sha256::new();
    for first in parts(layout) {
        let Ok(mut bytes) = freed.recv() else {
            return Ok(());
        };
        bytes.resize(part_bytes(layout, first), 0);
        for (_, place) in segments(layout, first) {
            // Digested while it is still in the processor's cache.
            for plain in bytes[without_tag(place)].chunks_mut(READ_BYTES) {
                content.read_exact(plain).map_err(|error| unread(&error))?;
                hash.update(plain);
            }
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
    Error::new(
        Code::BodyIncomplete,
        format!("reading what is to be stored: {error}"),
    )
}

fn seal_parts(stream: &Stream, header: Header, from: &Receiver<Part>, to: &mpsc::Sender<Bytes>) {
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
    free: &Sender<BytesMut>,
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
        if let Err(error) = upload.put_part(PutPayload::from_bytes(part.clone())).await {
            let _ = upload.abort().await;
            return Err(failed(error));
        }
        // A backend that still holds it gets to keep it.
        let _ = free.send(part.try_into_mut().unwrap_or_default());
    }
    if left > 0 {
        let _ = upload.abort().await;
        return Err(stopped());
    }
    upload.complete().await.map(drop).map_err(failed)
}

/// Where the bytes of a stream come from.
enum Source {
    /// A file of this machine.
    File(File),
    /// Parts that are fetched.
    Parts(mpsc::Receiver<Bytes>),
}

impl Source {
    /// `None` when the parts end early, which somebody else explains.
    fn next(&mut self, place: Range<u64>, freed: &Receiver<BytesMut>) -> Result<Option<BytesMut>> {
        match self {
            Self::Parts(parts) => Ok(parts.blocking_recv().map(BytesMut::from)),
            Self::File(file) => {
                let Ok(mut bytes) = freed.recv() else {
                    return Ok(None);
                };
                bytes.resize(as_usize(place.clone()).len(), 0);
                // Small reads, so that the system's reading ahead stays ahead of them.
                let places = place.step_by(READ_BYTES);
                for (piece, start) in bytes.chunks_mut(READ_BYTES).zip(places) {
                    let read = file.read_exact_at(piece, start);
                    read.map_err(|error| unread_file(&error))?;
                }
                Ok(Some(bytes))
            }
        }
    }
}

/// Looks at the length and the header of what is there; gives back the file when it is one.
async fn find(
    backend: &dyn ObjectStore,
    key: &StreamKey,
    entry: &Entry,
    path: &Path,
) -> Result<Option<File>> {
    let size = backend.head(path).await.map_err(missing)?.size;
    if size == 0 {
        return Err(too_short(size, entry));
    }
    let range = 0..size.min(HEADER_BYTES as u64);
    let options = GetOptions::new().with_range(Some(range.clone()));
    let found = backend.get_opts(path, options).await.map_err(missing)?;
    let file = match &found.payload {
        GetResultPayload::File(file, _) => Some(file.try_clone().map_err(|e| unread_file(&e))?),
        GetResultPayload::Stream(_) => None,
    };
    let header = Header::read(&found.bytes().await.map_err(missing)?);
    let same = header == Some(entry.header());
    if !same && is_sealed_here(backend, key, path, size).await {
        let fact = "another model lies where this one was stored";
        return Err(Error::new(Code::StoreSwapped, fact));
    }
    match size.cmp(&entry.layout().sealed_bytes()) {
        std::cmp::Ordering::Less => Err(too_short(size, entry)),
        std::cmp::Ordering::Equal if same => Ok(file),
        _ => Err(corrupt()),
    }
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
    to: &mpsc::Sender<Bytes>,
) -> Result<()> {
    for first in parts(layout) {
        let place = part(layout, first);
        let bytes = backend
            .get_range(path, place.clone())
            .await
            .map_err(missing)?;
        if bytes.len() < as_usize(place).len() {
            return Err(became_shorter());
        }
        // Who takes it no more says why.
        if to.send(bytes).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

fn open_parts(
    stream: &Stream,
    mut from: Source,
    freed: &Receiver<BytesMut>,
    to: &SyncSender<Part>,
) -> Result<()> {
    let layout = stream.layout();
    for first in parts(layout) {
        let Some(mut bytes) = from.next(part(layout, first), freed)? else {
            return Ok(());
        };
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

fn write_parts<D: Destination>(
    layout: Layout,
    from: &Receiver<Part>,
    mut into: D,
    to: &SyncSender<Part>,
) -> Result<D> {
    while let Ok(part) = from.recv() {
        for (_, place) in segments(layout, part.first) {
            into.write(&part.bytes[without_tag(place)])?;
        }
        to.send(part).map_err(|_| stopped())?;
    }
    Ok(into)
}

fn digest_parts(layout: Layout, from: &Receiver<Part>, free: &Sender<BytesMut>) -> Digest {
    let mut hash = Sha256::new();
    while let Ok(Part { first, bytes }) = from.recv() {
        for (_, place) in segments(layout, first) {
            hash.update(&bytes[without_tag(place)]);
        }
        let _ = free.send(bytes);
    }
    Digest::from_bytes(hash.finalize().into())
}

fn missing(error: Backend) -> Error {
    match error {
        Backend::NotFound { .. } => Error::new(
            Code::StoreContentMissing,
            "a model that is listed is not there",
        ),
        error => unavailable("reading a model", &error),
    }
}

fn unread_file(error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => became_shorter(),
        _ => Error::new(Code::StoreUnavailable, format!("reading a model: {error}")),
    }
}

fn too_short(size: u64, entry: &Entry) -> Error {
    let stored = entry.layout().sealed_bytes();
    let fact = format!("a model has {size} bytes, {stored} were stored");
    Error::new(Code::StoreTruncated, fact)
}

fn became_shorter() -> Error {
    Error::new(
        Code::StoreTruncated,
        "a model became shorter while it was read",
    )
}

fn corrupt() -> Error {
    Error::new(Code::StoreCorrupt, "what was stored of a model was changed")
}
