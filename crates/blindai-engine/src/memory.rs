//! Memory files: sealed ones for what must not change, shared ones for tensors.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};

use crate::heap::Heap;

/// Where lane and worker exchange tensors.
pub(crate) enum Exchange {
    /// With a worker that is a process.
    Region(Region),
    /// With a worker that is a thread.
    Heap(Heap),
}

impl Exchange {
    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Region(region) => region.write(offset, bytes),
            Self::Heap(heap) => heap.write(offset, bytes),
        }
    }

    /// Copies bytes out, once.
    pub(crate) fn read(&mut self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        match self {
            Self::Region(region) => region.read(offset, length),
            Self::Heap(heap) => heap.read(offset, length),
        }
    }

    /// From here on the worker may write anywhere.
    pub(crate) fn hand_over(&mut self) {
        if let Self::Region(region) = self {
            region.unread = true;
        }
    }

    /// All that the worker wrote was read.
    pub(crate) fn was_read(&mut self) {
        if let Self::Region(region) = self {
            region.unread = false;
        }
    }

    /// How many bytes [`wipe`](Self::wipe) has to wipe.
    pub(crate) fn used(&self) -> u64 {
        match self {
            Self::Region(region) => region.used(),
            Self::Heap(heap) => heap.used(),
        }
    }

    /// Forgets the last request.
    pub(crate) fn wipe(&mut self) -> io::Result<()> {
        match self {
            Self::Region(region) => region.wipe(),
            Self::Heap(heap) => {
                heap.wipe();
                Ok(())
            }
        }
    }
}

/// A new, empty memory file.
pub(crate) fn memory_file(name: &str) -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    Ok(File::from(rustix::fs::memfd_create(name, flags)?))
}

/// Makes a file that nobody has mapped immutable for everybody, for ever.
pub(crate) fn seal(file: File) -> io::Result<OwnedFd> {
    // Not `WRITE`, which forbids the same to a file without mappings, but fails while the system itself
    // holds on to any page: when it compacts memory, for instance, for as long as that takes.
    let all = SealFlags::FUTURE_WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, all)?;
    Ok(file.into())
}

/// Memory that parent and worker share, of one size for its whole life.
///
/// The size is the limit itself; pages exist only where somebody wrote. Its seals keep a worker from
/// growing it beyond the limit and from shrinking it under the other's feet.
///
/// What is small is written through a mapping, at half the cost of a system call that looks up every
/// page. Through it nothing is ever read: the worker may change these bytes at any moment.
pub(crate) struct Region {
    file: File,
    size: u64,
    /// Up to here something was written or read from this side.
    used: u64,
    /// The other side may have written more, of a run that failed or that nobody waited for.
    unread: bool,
    /// Of the first [`KEPT_BYTES`].
    map: MmapRaw,
    /// Up to here there are pages, so that writing through the mapping asks the system for nothing it
    /// could refuse, which would end this process.
    present: u64,
}

impl Region {
    pub(crate) fn new(name: &str, size: u64) -> io::Result<Self> {
        let file = memory_file(name)?;
        file.set_len(size)?;
        let seals = SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&file, seals)?;
        let kept = size.min(KEPT_BYTES) as usize;
        let map = MmapOptions::new().len(kept).map_raw(&file)?;
        Ok(Self {
            file,
            size,
            used: 0,
            unread: false,
            map,
            present: 0,
        })
    }

    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let end = offset.saturating_add(bytes.len() as u64);
        self.used = self.used.max(end);
        let mapped = self.present.saturating_sub(offset).min(bytes.len() as u64);
        let (through_map, through_file) = bytes.split_at(mapped as usize);
        self.copy(offset, through_map);
        if through_file.is_empty() {
            return Ok(());
        }
        let start = offset + mapped;
        self.file.write_all_at(through_file, start)?;
        // Only what follows on without a gap: pages in between may not be there.
        if start <= self.present.next_multiple_of(PAGE_BYTES) {
            self.present = self.present.max(end.min(self.map.len() as u64));
        }
        Ok(())
    }

    fn copy(&mut self, offset: u64, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        assert!(offset.saturating_add(bytes.len() as u64) <= self.map.len() as u64);
        // SAFETY: the range was checked to lie within the mapping, whose file cannot shrink, and
        // `bytes` is memory of this process alone, so they do not overlap. No reference into the
        // mapping exists anywhere: what the worker does to it concerns nobody here.
        unsafe {
            let target = self.map.as_mut_ptr().add(offset as usize);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), target, bytes.len());
        }
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
        match self.unread {
            true => self.size,
            false => self.used,
        }
    }

    /// Forgets the last request: a little is overwritten, the pages of a lot go back to the system, and so
    /// do those of which only the other side knows whether it used them.
    pub(crate) fn wipe(&mut self) -> io::Result<()> {
        let used = self.used().min(self.size);
        let zeroed = self.used.min(used).min(KEPT_BYTES);
        for offset in (0..zeroed).step_by(ZEROS.len()) {
            let length = (zeroed - offset).min(ZEROS.len() as u64) as usize;
            self.write(offset, &ZEROS[..length])?;
        }
        if used > zeroed {
            self.present = self.present.min(zeroed);
            let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(&self.file, punch, zeroed, used - zeroed)?;
        }
        (self.used, self.unread) = (0, false);
        Ok(())
    }
}

impl AsFd for Region {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Kept for the next request rather than given back.
pub(crate) const KEPT_BYTES: u64 = 1 << 20;
const PAGE_BYTES: u64 = 4096;
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
    fn what_the_other_side_wrote_is_forgotten_too() {
        let mut region = Region::new("test", 4 << 20).unwrap();
        for used in [0, 10, 2 << 20] {
            region.write(0, &vec![7; used]).unwrap();
            for offset in [8, 5000, 2 << 20, (4 << 20) - 8] {
                region.file.write_all_at(&[7; 8], offset).unwrap();
            }
            region.unread = true;
            region.wipe().unwrap();
            assert_eq!(region.used(), 0);
            let mut bytes = vec![1; 4 << 20];
            region.file.read_exact_at(&mut bytes, 0).unwrap();
            assert!(bytes.iter().all(|&byte| byte == 0));
            assert!(region.present <= used as u64);
        }
    }

    #[test]
    fn what_is_written_is_there_whichever_way_it_goes() {
        let mut region = Region::new("test", 4 << 20).unwrap();
        let bytes = |length: usize| (0..length).map(|i| (i % 251) as u8).collect::<Vec<_>>();
        // Over the end of what is mapped, over the end of what is present, with and without gaps.
        let writes = [
            (0, 10),
            (0, 5000),
            (4096, 9000),
            (50_000, 10),
            (3, 70_000),
            (1_000_000, 100_000),
        ];
        for (offset, length) in writes {
            for _ in 0..2 {
                region.write(offset, &bytes(length)).unwrap();
                assert_eq!(region.read(offset, length).unwrap(), bytes(length));
            }
        }
        region.wipe().unwrap();
        assert!(
            region
                .read(0, 2 << 20)
                .unwrap()
                .iter()
                .all(|&byte| byte == 0)
        );
        assert!(region.write((4 << 20) - 1, &[1; 2]).is_err());
    }

    #[test]
    fn a_small_region_is_mapped_whole() {
        let mut region = Region::new("test", 100).unwrap();
        for _ in 0..2 {
            region.write(90, &[7; 10]).unwrap();
            region.write(0, &[7; 90]).unwrap();
            assert_eq!(region.read(0, 100).unwrap(), [7; 100]);
        }
        assert!(region.write(90, &[7; 11]).is_err());
    }

    #[test]
    fn a_sealed_file_cannot_change() {
        let file = memory_file("test").unwrap();
        file.write_all_at(b"model", 0).unwrap();
        let sealed = File::from(seal(file).unwrap());
        assert!(sealed.write_all_at(b"other", 0).is_err());
        assert!(sealed.set_len(0).is_err());
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        assert!(rustix::fs::fallocate(&sealed, punch, 0, 5).is_err());
        assert!(MmapOptions::new().map_raw(&sealed).is_err());
        assert!(rustix::fs::fcntl_add_seals(&sealed, SealFlags::empty()).is_err());
    }

    #[test]
    fn a_file_is_sealed_while_the_system_holds_a_page() {
        let file = memory_file("test").unwrap();
        file.write_all_at(b"model", 0).unwrap();
        let (_reading, writing) = rustix::pipe::pipe().unwrap();
        let none = rustix::pipe::SpliceFlags::empty();
        let held = rustix::pipe::splice(&file, Some(&mut 0), &writing, None, 5, none);
        assert_eq!(held.unwrap(), 5);
        assert!(rustix::fs::fcntl_add_seals(&file, SealFlags::WRITE).is_err());
        let sealed = File::from(seal(file).unwrap());
        assert!(sealed.write_all_at(b"other", 0).is_err());
    }
}
