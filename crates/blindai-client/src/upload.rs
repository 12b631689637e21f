use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use blindai_core::{Code, Digest, Error, ModelInfo, ModelName, ModelVersion, api};
use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::ClientError;
use crate::client::model_path;
use crate::http1::Outgoing;

/// Called with the bytes sent so far and the bytes in all, from the thread that sends.
pub type Progress = Arc<dyn Fn(u64, u64) + Send + Sync>;

/// A model to be sent to the server.
pub struct Upload {
    pub(crate) name: ModelName,
    pub(crate) version: Option<ModelVersion>,
    pub(crate) replaces: bool,
    source: Source,
    progress: Option<Progress>,
}

enum Source {
    File(PathBuf),
    Bytes(Bytes),
}

impl Upload {
    /// Sends the file at `path`, chunk by chunk: it is never in memory as a whole.
    pub fn file(name: &ModelName, path: impl AsRef<Path>) -> Self {
        Self::new(name, Source::File(path.as_ref().to_owned()))
    }

    /// Sends `model`, which is not copied.
    pub fn bytes(name: &ModelName, model: impl Into<Bytes>) -> Self {
        Self::new(name, Source::Bytes(model.into()))
    }

    /// Under this version; the server counts up when there is none.
    pub fn version(mut self, version: ModelVersion) -> Self {
        self.version = Some(version);
        self
    }

    /// Takes the place of other content that the version holds, without a gap: requests get the old
    /// answer or the new one. Needs a [version](Self::version).
    pub fn replace(mut self, replaces: bool) -> Self {
        self.replaces = replaces;
        self
    }

    /// Calls `progress` as the upload goes on.
    pub fn progress(mut self, progress: Progress) -> Self {
        self.progress = Some(progress);
        self
    }

    pub(crate) fn path(&self) -> String {
        let path = model_path(api::MODELS, &self.name, self.version.as_ref());
        match self.replaces {
            true => format!("{path}?{}", api::REPLACE),
            false => path,
        }
    }

    fn new(name: &ModelName, source: Source) -> Self {
        Self {
            name: name.clone(),
            version: None,
            replaces: false,
            source,
            progress: None,
        }
    }

    /// Opens the source and starts to read and hash it, on a thread of its own so that hashing and
    /// encryption go on side by side.
    pub(crate) async fn start(self) -> Result<(Outgoing, Reading), ClientError> {
        let path = match &self.source {
            Source::File(path) => path.clone(),
            Source::Bytes(_) => PathBuf::new(),
        };
        let opened = on_thread(move || self.source.open()).await;
        let (chunks, length) = opened.map_err(|error| ClientError::file(&path, &error))?;
        let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
        let body = Outgoing::stream(receiver, length, self.progress);
        let task = tokio::task::spawn_blocking(move || send_all(chunks, &sender));
        Ok((body, Reading { path, task }))
    }
}

impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Upload");
        out.field("name", &self.name)
            .field("version", &self.version)
            .field("replaces", &self.replaces);
        match &self.source {
            Source::File(path) => out.field("file", path),
            Source::Bytes(bytes) => out.field("bytes", &bytes.len()),
        };
        out.finish_non_exhaustive()
    }
}

/// The thread that reads and hashes a model while it is sent.
pub(crate) struct Reading {
    path: PathBuf,
    task: JoinHandle<io::Result<Option<Digest>>>,
}

impl Reading {
    /// The digest of what was sent; `None` when the connection took only a part.
    pub async fn digest(self) -> Result<Option<Digest>, ClientError> {
        let read = self.task.await;
        let read = read.unwrap_or_else(|panic| Err(io::Error::other(panic)));
        read.map_err(|error| ClientError::file(&self.path, &error))
    }
}

/// Checks that the server holds what was sent: the digest is the model's identity.
pub(crate) fn check_digest(sent: Option<Digest>, info: &ModelInfo) -> Result<(), ClientError> {
    if sent == Some(info.digest) {
        return Ok(());
    }
    let fact = match sent {
        Some(sent) => format!("{sent} was sent, the server holds {}", info.digest),
        None => "the server answered before it had the whole model".to_owned(),
    };
    Err(Error::new(Code::DigestMismatch, fact).into())
}

type Chunks = Box<dyn Iterator<Item = io::Result<Bytes>> + Send>;

impl Source {
    fn open(self) -> io::Result<(Chunks, u64)> {
        match self {
            Source::Bytes(bytes) => {
                let length = bytes.len() as u64;
                Ok((Box::new(slices(bytes).map(Ok)), length))
            }
            Source::File(path) => {
                let file = File::open(path)?;
                let metadata = file.metadata()?;
                if !metadata.is_file() {
                    return Err(io::Error::other("it is not a file"));
                }
                let length = metadata.len();
                Ok((Box::new(file_chunks(file, length)), length))
            }
        }
    }
}

fn slices(mut bytes: Bytes) -> impl Iterator<Item = Bytes> {
    std::iter::from_fn(move || {
        let length = bytes.len().min(CHUNK_BYTES);
        (length > 0).then(|| bytes.split_to(length))
    })
}

fn file_chunks(mut file: File, length: u64) -> impl Iterator<Item = io::Result<Bytes>> {
    let mut left = length;
    std::iter::from_fn(move || {
        let length = left.min(CHUNK_BYTES as u64);
        left -= length;
        (length > 0).then(|| {
            let mut chunk = vec![0; length as usize];
            file.read_exact(&mut chunk)?;
            Ok(Bytes::from(chunk))
        })
    })
}

fn send_all(chunks: Chunks, sender: &mpsc::Sender<Bytes>) -> io::Result<Option<Digest>> {
    let mut hasher = Sha256::new();
    for chunk in chunks {
        let chunk = chunk?;
        hasher.update(&chunk);
        if sender.blocking_send(chunk).is_err() {
            return Ok(None);
        }
    }
    Ok(Some(Digest::from_bytes(hasher.finalize().into())))
}

async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|panic| Err(io::Error::other(panic)))
}

/// Large enough that the hand-over costs nothing, small enough to stay in the cache.
const CHUNK_BYTES: usize = 256 * 1024;
/// How far reading may be ahead of sending.
const CHUNKS_AHEAD: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upload_replaces_only_when_it_is_told_to() {
        let name = "m".parse().unwrap();
        let upload = || Upload::bytes(&name, vec![1]).version("7".parse().unwrap());
        assert_eq!(upload().path(), "/v1/models/m/versions/7");
        let replacing = upload().replace(true).path();
        assert_eq!(replacing, "/v1/models/m/versions/7?replace=true");
    }

    fn info(digest: Digest) -> ModelInfo {
        ModelInfo {
            name: "m".parse().unwrap(),
            version: "1".parse().unwrap(),
            digest,
            size_bytes: 1,
            signature: blindai_core::Signature::default(),
            engine: blindai_core::EngineKind::OnnxRuntime,
            uploaded_at: 0,
            loaded: true,
            metrics_slot: None,
        }
    }

    #[test]
    fn the_server_must_hold_what_was_sent() {
        let (ours, other) = (Digest::of(b"ours"), Digest::of(b"other"));
        check_digest(Some(ours), &info(ours)).unwrap();
        for sent in [Some(other), None] {
            let error = check_digest(sent, &info(ours)).unwrap_err();
            assert_eq!(error.code(), "digest-mismatch");
        }
    }

    #[test]
    fn every_source_is_read_whole_and_hashed() {
        let model: Vec<u8> = (0..CHUNK_BYTES * 2 + 7).map(|i| (i % 251) as u8).collect();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        io::Write::write_all(&mut file, &model).unwrap();
        let sources = [
            Source::Bytes(model.clone().into()),
            Source::File(file.path().to_owned()),
        ];
        for source in sources {
            let (chunks, length) = source.open().unwrap();
            assert_eq!(length, model.len() as u64);
            let (sender, mut receiver) = mpsc::channel(16);
            let digest = send_all(chunks, &sender).unwrap();
            drop(sender);
            let received = std::iter::from_fn(|| receiver.blocking_recv());
            assert_eq!(received.collect::<Vec<_>>().concat(), model);
            assert_eq!(digest, Some(Digest::of(&model)));
        }
    }

    #[test]
    fn a_file_that_becomes_shorter_is_an_error() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(10).unwrap();
        let chunks = Box::new(file_chunks(file, 11));
        let (sender, _receiver) = mpsc::channel(16);
        assert!(send_all(chunks, &sender).is_err());
    }

    #[test]
    fn a_folder_is_not_a_model() {
        assert!(Source::File("/".into()).open().is_err());
    }
}
