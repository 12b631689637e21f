//! Memory files: sealed ones for what must not change, shared ones for tensors.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};

/// A new, empty memory file.
pub(crate) fn memory_file(name: &str) -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    Ok(File::from(rustix::fs::memfd_create(name, flags)?))
}

/// Makes the file immutable for everybody, for ever.
pub(crate) fn seal(file: File) -> io::Result<OwnedFd> {
    let all = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, all)?;
    Ok(file.into())
}

/// Memory that parent and worker share, of one size for its whole life.
///
/// The size is the limit itself; pages exist only where somebody wrote. Its seals keep a worker from
/// growing it beyond the limit and from shrinking it under the other's feet.
pub(crate) struct Region {
    file: File,
    size: u64,
    used: u64,
}

impl Region {
    pub(crate) fn new(name: &str, size: u64) -> io::Result<Self> {
        let file = memory_file(name)?;
        file.set_len(size)?;
        let seals = SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&file, seals)?;
        let used = 0;
        Ok(Self { file, size, used })
    }

    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.used = self.used.max(offset.saturating_add(bytes.len() as u64));
        self.file.write_all_at(bytes, offset)
    }

    /// Copies bytes out, once; the other side may change the originals at any time.
    pub(crate) fn read(&mut self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        self.used = self.used.max(offset.saturating_add(length as u64));
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    /// How many bytes [`wipe`](Self::wipe) has to wipe.
    pub(crate) fn used(&self) -> u64 {
        self.used
    }

    /// Forgets the last request: a little is overwritten, the pages of a lot go back to the system.
    pub(crate) fn wipe(&mut self) -> io::Result<()> {
        let used = std::mem::take(&mut self.used).min(self.size);
        let zeroed = used.min(KEPT_BYTES);
        for offset in (0..zeroed).step_by(ZEROS.len()) {
            let length = (zeroed - offset).min(ZEROS.len() as u64) as usize;
            self.file.write_all_at(&ZEROS[..length], offset)?;
        }
        if used > KEPT_BYTES {
            let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(&self.file, punch, KEPT_BYTES, used - KEPT_BYTES)?;
        }
        Ok(())
    }
}

impl AsFd for Region {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Pages kept for the next request rather than given back.
const KEPT_BYTES: u64 = 1 << 20;
static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_keeps_its_size_and_forgets() {
        let mut region = Region::new("test", 4 << 20).unwrap();
        assert!(region.file.set_len(8 << 20).is_err());
        assert!(region.file.set_len(0).is_err());
        for offset in [0, 1 << 20, (4 << 20) - 8] {
            region.write(offset, &[7; 8]).unwrap();
        }
        region.wipe().unwrap();
        let bytes = region.read(0, 4 << 20).unwrap();
        assert!(bytes.iter().all(|&byte| byte == 0));
    }

    #[test]
    fn a_sealed_file_cannot_change() {
        let file = memory_file("test").unwrap();
        file.write_all_at(b"model", 0).unwrap();
        let sealed = File::from(seal(file).unwrap());
        assert!(sealed.write_all_at(b"other", 0).is_err());
        assert!(sealed.set_len(0).is_err());
    }
}
