//! Memory that a lane shares with a worker that is a thread of the same process.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::memory::KEPT_BYTES;

/// Bytes of this process, from nothing up to a limit. Each holder sees the same.
///
/// Lane and worker use it in turns, as the protocol has it, so nobody ever waits for the lock.
#[derive(Clone)]
pub(crate) struct Heap {
    bytes: Arc<Mutex<Bytes>>,
    limit: u64,
}

/// In elements that are aligned as every type of tensor wants.
#[derive(Default)]
struct Bytes {
    elements: Vec<u128>,
    used: usize,
}

impl Heap {
    pub(crate) fn new(limit: u64) -> Self {
        let bytes = Arc::default();
        Self { bytes, limit }
    }

    /// # Errors
    /// When it would go beyond the limit, or there is no memory.
    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let end = offset.checked_add(bytes.len() as u64);
        let end = end.filter(|end| *end <= self.limit);
        let end = end.ok_or(io::ErrorKind::FileTooLarge)? as usize;
        self.lock().grown(end)?[offset as usize..end].copy_from_slice(bytes);
        Ok(())
    }

    /// # Errors
    /// When so much was not written.
    pub(crate) fn read(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let end = offset.checked_add(length as u64);
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        self.look(|bytes| {
            let part = bytes.get(offset as usize..end as usize);
            Ok(part.ok_or(io::ErrorKind::UnexpectedEof)?.to_vec())
        })
    }

    /// Shows what was written. Nobody can write meanwhile.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&[u8]) -> T) -> T {
        look(self.lock().written())
    }

    /// How many bytes [`wipe`](Self::wipe) has to wipe.
    pub(crate) fn used(&self) -> u64 {
        self.lock().used as u64
    }

    /// Forgets the last request: a little is kept, as zeros; a lot goes back, and is zeros first.
    pub(crate) fn wipe(&self) {
        let mut bytes = self.lock();
        bytes.elements.fill(0);
        // It is read before it is freed, so that the compiler leaves the zeros in.
        let zeros = std::hint::black_box(&bytes.elements);
        let kept = size_of_val(zeros.as_slice()) as u64 <= KEPT_BYTES;
        bytes.used = 0;
        if !kept {
            bytes.elements = Vec::new();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Bytes> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bytes {
    fn written(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.elements)[..self.used]
    }

    /// At least so many bytes; the new ones are zeros.
    fn grown(&mut self, length: usize) -> io::Result<&mut [u8]> {
        let more = length
            .div_ceil(size_of::<u128>())
            .saturating_sub(self.elements.len());
        let reserved = self.elements.try_reserve(more);
        reserved.map_err(|_| io::ErrorKind::OutOfMemory)?;
        self.elements.resize(self.elements.len() + more, 0);
        self.used = self.used.max(length);
        Ok(bytemuck::cast_slice_mut(&mut self.elements))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_there_up_to_the_limit_and_is_forgotten() {
        let heap = Heap::new(4 << 20);
        let other = heap.clone();
        for (offset, length) in [(0, 10), (7, 5000), (3 << 20, 1 << 20)] {
            let bytes: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
            heap.write(offset, &bytes).unwrap();
            assert_eq!(other.read(offset, length).unwrap(), bytes);
        }
        assert_eq!(other.used(), 4 << 20);
        assert!(heap.write((4 << 20) - 1, &[1; 2]).is_err());
        assert!(heap.write(u64::MAX, &[1; 2]).is_err());
        assert!(heap.read(4 << 20, 1).is_err());
        heap.wipe();
        assert_eq!((heap.used(), other.used()), (0, 0));
        assert!(other.read(0, 1).is_err());
    }

    #[test]
    fn what_was_forgotten_does_not_come_back() {
        let heap = Heap::new(1 << 20);
        heap.write(0, &[7; 4096]).unwrap();
        heap.wipe();
        heap.write(4095, &[1]).unwrap();
        assert_eq!(heap.read(0, 4095).unwrap(), [0; 4095]);
    }

    #[test]
    fn it_is_aligned_for_every_type() {
        let heap = Heap::new(64);
        heap.write(0, &[0; 33]).unwrap();
        heap.look(|bytes| assert_eq!((bytes.as_ptr().align_offset(16), bytes.len()), (0, 33)));
    }
}
