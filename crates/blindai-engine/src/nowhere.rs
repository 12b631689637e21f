//! The folder that workers stand in.

use std::fs::DirBuilder;
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

/// A folder that was removed: it is empty, and the kernel lets nobody put anything into it, so a
/// relative name that a model brings to the worker leads to no file.
///
/// Paths that start with `/` or `..` are not affected.
pub(crate) struct Nowhere {
    folder: OwnedFd,
}

impl Nowhere {
    /// Makes and removes the folder, where the system has room for temporary files.
    pub(crate) fn new() -> io::Result<Self> {
        let shared_memory = Path::new("/dev/shm");
        Self::inside(shared_memory).or_else(|_| Self::inside(&std::env::temp_dir()))
    }

    /// A path to it that this process and its children can follow, and nobody else.
    pub(crate) fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.folder.as_raw_fd()).into()
    }

    fn inside(parent: &Path) -> io::Result<Self> {
        // A name that others cannot guess and take.
        let name = format!("blindai-{:016x}", RandomState::new().hash_one(()));
        let path = parent.join(name);
        DirBuilder::new().mode(0o700).create(&path)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = rustix::fs::open(&path, flags, Mode::empty());
        std::fs::remove_dir(&path)?;
        Ok(Self { folder: folder? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn nothing_is_there_and_nothing_can_be_put_there() {
        for nowhere in [Nowhere::new(), Nowhere::inside(&std::env::temp_dir())] {
            let path = nowhere.as_ref().unwrap().path();
            assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
            let error = fs::write(path.join("file"), "x").unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::NotFound);
            let error = fs::create_dir(path.join("folder")).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::NotFound);
        }
        assert!(Nowhere::inside(Path::new("/no/such/folder")).is_err());
    }
}
