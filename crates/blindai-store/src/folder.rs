//! A folder as an object store: object_store's own, but for what comes in parts.
//!
//! That one leaves the parts in the page cache until all are there, and then waits for the disk to take
//! them. Here each part goes to the disk past the page cache while the next is digested and sealed. That
//! needs no fresh pages, which a virtual machine may have to ask its host for, and leaves little to flush.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path as FilePath, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};
use rustix::fs::OFlags;
use tokio::task::spawn_blocking;

/// A folder of this machine. What it acknowledges outlives a loss of power.
#[derive(Debug)]
pub struct Folder(LocalFileSystem);

impl Folder {
    /// Makes the folder when it is not there.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn at(folder: &FilePath) -> Result<Self> {
        let folder = std::path::absolute(folder).map_err(failed)?;
        make_folder_of(&folder.join("manifest")).map_err(failed)?;
        let files = LocalFileSystem::new_with_prefix(folder)?;
        Ok(Self(files.with_fsync(true)))
    }
}

impl fmt::Display for Folder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[async_trait]
impl ObjectStore for Folder {
    async fn put_opts(&self, path: &Path, load: PutPayload, opts: PutOptions) -> Result<PutResult> {
        self.0.put_opts(path, load, opts).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        _: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let path = self.0.path_to_filesystem(path)?;
        let upload = blocking(move || Upload::begin(path)).await?;
        Ok(Box::new(upload))
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        self.0.get_opts(path, options).await
    }

    async fn get_ranges(&self, path: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.0.get_ranges(path, ranges).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.0.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.0.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.0.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.0.copy_opts(from, to, options).await
    }
}

/// An object on its way, in a file beside the place where it will be. It has a name that is none of an
/// object's: the same that object_store's own would give it.
#[derive(Debug)]
struct Upload {
    /// `None` once it is complete or given up.
    file: Option<Arc<Mutex<Output>>>,
    unfinished: PathBuf,
    whole: PathBuf,
    written_bytes: u64,
}

impl Upload {
    fn begin(whole: PathBuf) -> io::Result<Self> {
        make_folder_of(&whole)?;
        let (file, unfinished) = create_beside(&whole)?;
        let output = Output::new(file, &unfinished);
        Ok(Self {
            file: Some(Arc::new(Mutex::new(output))),
            unfinished,
            whole,
            written_bytes: 0,
        })
    }
}

#[async_trait]
impl MultipartUpload for Upload {
    fn put_part(&mut self, part: PutPayload) -> UploadPart {
        let (file, start) = (self.file.clone(), self.written_bytes);
        self.written_bytes += part.content_length() as u64;
        Box::pin(blocking(move || {
            let file = file.ok_or_else(ended)?;
            let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
            file.write(&part, start)
        }))
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let file = self.file.take().ok_or_else(|| failed(ended()))?;
        let (from, to) = (self.unfinished.clone(), self.whole.clone());
        let done = blocking(move || {
            let file = file.lock().unwrap_or_else(PoisonError::into_inner);
            let published = publish(&file.cached, &from, &to);
            // Nothing is left of it when the disk does not take it.
            published.inspect_err(|_| drop(fs::remove_file(&from)))
        });
        done.await?;
        Ok(PutResult {
            e_tag: None,
            version: None,
            extensions: Default::default(),
        })
    }

    async fn abort(&mut self) -> Result<()> {
        self.file.take().ok_or_else(|| failed(ended()))?;
        let unfinished = self.unfinished.clone();
        blocking(move || fs::remove_file(unfinished)).await
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            let _ = fs::remove_file(&self.unfinished);
        }
    }
}

/// A file that is written past the page cache, as far as its file system can.
#[derive(Debug)]
struct Output {
    cached: File,
    direct: Option<File>,
    /// Holds one piece, on a page of its own.
    buffer: Vec<u8>,
}

/// What goes past the page cache begins and ends with a page, in memory and in the file.
const PAGE_BYTES: usize = 4096;
const PIECE_BYTES: usize = 1 << 20;

impl Output {
    fn new(cached: File, path: &FilePath) -> Self {
        let mut options = OpenOptions::new();
        options.write(true);
        options.custom_flags(OFlags::DIRECT.bits().cast_signed());
        Self {
            cached,
            // Not every file system has this.
            direct: options.open(path).ok(),
            buffer: vec![0; PIECE_BYTES + PAGE_BYTES],
        }
    }

    fn write(&mut self, part: &PutPayload, mut place: u64) -> io::Result<()> {
        for piece in part.iter().flat_map(|bytes| bytes.chunks(PIECE_BYTES)) {
            let pages = piece.len() - piece.len() % PAGE_BYTES;
            let (pages, rest) = piece.split_at(pages);
            if !self.write_direct(pages, place)? {
                self.cached.write_all_at(pages, place)?;
            }
            self.cached.write_all_at(rest, place + pages.len() as u64)?;
            place += piece.len() as u64;
        }
        Ok(())
    }

    /// `false` when it cannot be done.
    fn write_direct(&mut self, pages: &[u8], place: u64) -> io::Result<bool> {
        let start = self.buffer.as_ptr().align_offset(PAGE_BYTES);
        let room = self
            .buffer
            .get_mut(start..start.saturating_add(pages.len()));
        let (Some(file), Some(room)) = (&self.direct, room) else {
            return Ok(false);
        };
        room.copy_from_slice(pages);
        match file.write_all_at(room, place) {
            // Another page size than ours.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                self.direct = None;
                Ok(false)
            }
            written => written.map(|()| true),
        }
    }
}

/// The content is on the disk before it has the name, and the name before this returns.
fn publish(file: &File, from: &FilePath, to: &FilePath) -> io::Result<()> {
    file.sync_all()?;
    fs::rename(from, to)?;
    sync_folder_of(to)
}

/// The folder, and those above it that are missing, each on the disk before what lies in it.
fn make_folder_of(path: &FilePath) -> io::Result<()> {
    let Some(folder) = path.parent() else {
        return Ok(());
    };
    if folder.is_dir() {
        return Ok(());
    }
    make_folder_of(folder)?;
    match fs::create_dir(folder) {
        // Somebody else may have made it at the same moment, or it is a file.
        Err(error) if !folder.is_dir() => Err(error),
        _ => sync_folder_of(folder),
    }
}

fn sync_folder_of(path: &FilePath) -> io::Result<()> {
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

fn create_beside(path: &FilePath) -> io::Result<(File, PathBuf)> {
    let mut number = 1;
    loop {
        let mut name = path.as_os_str().to_owned();
        name.push(format!("#{number}"));
        match OpenOptions::new().write(true).create_new(true).open(&name) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            created => return Ok((created?, name.into())),
        }
    }
}

async fn blocking<T: Send + 'static>(
    what: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T> {
    spawn_blocking(what).await?.map_err(failed)
}

fn ended() -> io::Error {
    io::Error::other("the upload has ended")
}

fn failed(error: io::Error) -> Error {
    Error::Generic {
        store: "folder",
        source: error.into(),
    }
}
