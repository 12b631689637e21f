//! The part that every emulation shares: a tree of made-up files, mounted through FUSE.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem,
    FopenFlags, Generation, INodeNo, IoctlFlags, LockOwner, OpenFlags, ReplyAttr, ReplyData,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyOpen, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

/// What is behind the files. Paths are relative to the mount, without a slash in front.
pub trait Tree: Send + Sync + 'static {
    /// Whether something is there, and whether it is a folder.
    fn kind(&self, path: &str) -> Option<FileType>;

    /// The content, made up when the first byte is read.
    fn read(&self, path: &str) -> Result<Vec<u8>, Errno>;

    /// How much of a piece is taken.
    fn take(&self, _path: &str, piece: &[u8]) -> Result<usize, Errno> {
        Ok(piece.len())
    }

    /// All that was written, when the file is closed. Who closes does not learn of an error.
    fn written(&self, path: &str, bytes: &[u8]);

    /// A system call on an open file (ioctl): what the message becomes.
    fn control(&self, _call: u32, _message: &[u8]) -> Result<Vec<u8>, Errno> {
        Err(Errno::ENOTTY)
    }

    fn make_folder(&self, _path: &str) -> Result<(), Errno> {
        Err(Errno::EPERM)
    }

    fn remove_folder(&self, _path: &str) -> Result<(), Errno> {
        Err(Errno::EPERM)
    }
}

/// A mounted emulation; it goes when this is dropped.
pub struct Mounted<T> {
    /// What is behind the files, for faults and counts.
    pub tree: Arc<T>,
    // Before the folder: it has to be unmounted first.
    _session: BackgroundSession,
    folder: tempfile::TempDir,
}

impl<T: Tree> Mounted<T> {
    pub fn new(tree: T) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let tree = Arc::new(tree);
        let files = Files {
            tree: tree.clone(),
            paths: Mutex::new(vec![String::new()]),
            open: Mutex::default(),
        };
        let session = fuser::spawn_mount(files, folder.path(), &Config::default());
        let session = session.unwrap_or_else(|error| {
            panic!(
                "the emulated devices cannot be mounted: {error}. These tests need /dev/fuse, and \
                 root or fusermount3 (Debian package fuse3)"
            )
        });
        Self {
            tree,
            _session: session,
            folder,
        }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn file(&self, path: &str) -> PathBuf {
        self.path().join(path)
    }
}

struct Files<T> {
    tree: Arc<T>,
    /// A path's place is its inode number minus one.
    paths: Mutex<Vec<String>>,
    open: Mutex<HashMap<u64, Open>>,
}

#[derive(Default)]
struct Open {
    content: Option<Vec<u8>>,
    written: Option<Vec<u8>>,
}

impl<T: Tree> Files<T> {
    fn path(&self, inode: INodeNo) -> String {
        self.paths.lock().unwrap()[inode.0 as usize - 1].clone()
    }

    fn child(&self, parent: INodeNo, name: &OsStr) -> String {
        let (parent, name) = (self.path(parent), name.to_str().unwrap());
        match parent.is_empty() {
            true => name.to_owned(),
            false => format!("{parent}/{name}"),
        }
    }

    fn inode(&self, path: &str) -> INodeNo {
        let mut paths = self.paths.lock().unwrap();
        let place = paths.iter().position(|known| known == path);
        let place = place.unwrap_or_else(|| {
            paths.push(path.to_owned());
            paths.len() - 1
        });
        INodeNo(place as u64 + 1)
    }

    fn attributes(&self, path: &str) -> Option<FileAttr> {
        let kind = self.tree.kind(path)?;
        let owner = rustix::process::getuid().as_raw();
        Some(FileAttr {
            ino: self.inode(path),
            size: 0,
            blocks: 0,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            perm: 0o700,
            kind,
            nlink: 1,
            uid: owner,
            gid: owner,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }

    fn answer(&self, path: &str, reply: ReplyEntry) {
        match self.attributes(path) {
            Some(attributes) => reply.entry(&UNCACHED, &attributes, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn content(&self, path: &str, handle: FileHandle, offset: usize) -> Result<Vec<u8>, Errno> {
        let mut open = self.open.lock().unwrap();
        let content = &mut open.get_mut(&handle.0).ok_or(Errno::EBADF)?.content;
        if content.is_none() {
            *content = Some(self.tree.read(path)?);
        }
        let content = content.as_deref().unwrap_or_default();
        Ok(content.get(offset..).unwrap_or_default().to_vec())
    }

    fn take(&self, path: &str, handle: FileHandle, piece: &[u8]) -> Result<usize, Errno> {
        let taken = self.tree.take(path, piece)?;
        let mut open = self.open.lock().unwrap();
        let written = &mut open.get_mut(&handle.0).ok_or(Errno::EBADF)?.written;
        let written = written.get_or_insert_default();
        written.extend_from_slice(&piece[..taken]);
        Ok(taken)
    }
}

impl<T: Tree> Filesystem for Files<T> {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.answer(&self.child(parent, name), reply);
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(&self.path(inode)) {
            Some(attributes) => reply.attr(&UNCACHED, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    /// Truncation, which does nothing to such files.
    fn setattr(
        &self,
        request: &Request,
        inode: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        _size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.getattr(request, inode, handle, reply);
    }

    fn mkdir(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let path = self.child(parent, name);
        match self.tree.make_folder(&path) {
            Ok(()) => self.answer(&path, reply),
            Err(error) => reply.error(error),
        }
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        match self.tree.remove_folder(&self.child(parent, name)) {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let mut open = self.open.lock().unwrap();
        let handle = open.keys().max().map_or(1, |last| last + 1);
        open.insert(handle, Open::default());
        // Sizes are unknown and nothing is cached.
        reply.opened(FileHandle(handle), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.content(&self.path(inode), handle, offset as usize) {
            Ok(rest) => reply.data(&rest[..rest.len().min(size as usize)]),
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _: &Request,
        inode: INodeNo,
        handle: FileHandle,
        _offset: u64,
        piece: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.take(&self.path(inode), handle, piece) {
            Ok(taken) => reply.written(taken as u32),
            Err(error) => reply.error(error),
        }
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        call: u32,
        message: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        match self.tree.control(call, message) {
            Ok(message) => reply.ioctl(0, &message),
            Err(error) => reply.error(error),
        }
    }

    fn flush(
        &self,
        _: &Request,
        inode: INodeNo,
        handle: FileHandle,
        _: LockOwner,
        reply: ReplyEmpty,
    ) {
        let mut open = self.open.lock().unwrap();
        let written = open.get_mut(&handle.0).and_then(|open| open.written.take());
        drop(open);
        if let Some(bytes) = written {
            self.tree.written(&self.path(inode), &bytes);
        }
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.open.lock().unwrap().remove(&handle.0);
        reply.ok();
    }
}

const UNCACHED: Duration = Duration::ZERO;
