//! The format of what is sealed: the streaming AEAD of Google's Tink, AES256_GCM_HKDF_1MB.
//!
//! ```text
//! header   40 (1 byte), salt (32 bytes), nonce prefix (7 bytes)
//! segments of 1 MiB with their tags of 16 bytes; the header is part of the first, the last is shorter
//! key      HKDF-SHA256(key of the store, salt, what the stream is bound to)
//! nonce    prefix, number of the segment (4 bytes, big-endian), 1 for the last segment, otherwise 0
//! ```
//!
//! So each segment opens alone, and none can be changed, moved, left out, or cut off behind.

use std::ops::Range;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use blindai_core::Error;

use crate::error::no_randomness;
use crate::key::StreamKey;

/// A segment as it is stored, in bytes.
pub(crate) const SEGMENT_BYTES: usize = 1 << 20;
pub(crate) const HEADER_BYTES: usize = 1 + SALT_BYTES + PREFIX_BYTES;
const SALT_BYTES: usize = 32;
const PREFIX_BYTES: usize = 7;
const TAG_BYTES: usize = 16;

/// What a stream begins with: random, so no two streams have the same.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header([u8; HEADER_BYTES]);

impl Header {
    /// Of a new stream.
    pub(crate) fn draw() -> Result<Self, Error> {
        let mut bytes = [HEADER_BYTES as u8; HEADER_BYTES];
        aws_lc_rs::rand::fill(&mut bytes[1..]).map_err(|_| no_randomness())?;
        Ok(Self(bytes))
    }

    /// `None` when no stream begins so.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let bytes: [u8; HEADER_BYTES] = bytes.get(..HEADER_BYTES)?.try_into().ok()?;
        (usize::from(bytes[0]) == HEADER_BYTES).then_some(Self(bytes))
    }

    pub(crate) fn as_bytes(&self) -> &[u8; HEADER_BYTES] {
        &self.0
    }
}

/// The cipher of one stream of known length.
pub(crate) struct Stream {
    key: LessSafeKey,
    header: Header,
    layout: Layout,
}

/// A segment that was changed, or is not of this stream.
#[derive(Debug)]
pub(crate) struct NotAuthentic;

impl Stream {
    pub(crate) fn new(key: &StreamKey, bound_to: &[u8], header: Header, layout: Layout) -> Self {
        let key = key.derive(&header.0[1..=SALT_BYTES], bound_to);
        let key = UnboundKey::new(&AES_256_GCM, &*key).expect("the key has 32 bytes");
        Self {
            key: LessSafeKey::new(key),
            header,
            layout,
        }
    }

    pub(crate) fn layout(&self) -> Layout {
        self.layout
    }

    /// Seals a segment in its place; `bytes` are its plaintext, and room for the tag.
    pub(crate) fn seal(&self, number: u64, bytes: &mut [u8]) {
        let plain = bytes.len() - TAG_BYTES;
        let (plain, tag) = bytes.split_at_mut(plain);
        let nonce = self.nonce(number);
        let made = self
            .key
            .seal_in_place_separate_tag(nonce, Aad::empty(), plain);
        tag.copy_from_slice(made.expect("a segment is short enough").as_ref());
    }

    /// Opens a segment in its place, and gives back its plaintext.
    pub(crate) fn open<'b>(
        &self,
        number: u64,
        bytes: &'b mut [u8],
    ) -> Result<&'b [u8], NotAuthentic> {
        let nonce = self.nonce(number);
        let opened = self.key.open_in_place(nonce, Aad::empty(), bytes);
        opened.map(|plain| &*plain).map_err(|_| NotAuthentic)
    }

    /// No nonce comes twice under a key: the salt, and so the key, is drawn for each stream, and each
    /// segment is sealed once.
    fn nonce(&self, number: u64) -> Nonce {
        let mut nonce = [0; 12];
        nonce[..PREFIX_BYTES].copy_from_slice(&self.header.0[1 + SALT_BYTES..]);
        nonce[PREFIX_BYTES..11].copy_from_slice(&(number as u32).to_be_bytes());
        nonce[11] = u8::from(number + 1 == self.layout.segments());
        Nonce::assume_unique_for_key(nonce)
    }
}

/// Where the segments of a stream lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    sealed_bytes: u64,
    plain_bytes: u64,
}

impl Layout {
    /// For so many bytes of plaintext; `None` beyond 4 PiB, where the numbers of segments end.
    pub(crate) fn of_plain(plain_bytes: u64) -> Option<Self> {
        let first = (SEGMENT_BYTES - HEADER_BYTES - TAG_BYTES) as u64;
        let more = plain_bytes.saturating_sub(first);
        let segments = 1 + more.div_ceil((SEGMENT_BYTES - TAG_BYTES) as u64);
        u32::try_from(segments).ok()?;
        let sealed_bytes = HEADER_BYTES as u64 + plain_bytes + segments * TAG_BYTES as u64;
        Some(Self {
            sealed_bytes,
            plain_bytes,
        })
    }

    /// Of a stream of so many bytes; `None` when none is of this length.
    pub(crate) fn of_sealed(sealed_bytes: u64) -> Option<Self> {
        let tags = sealed_bytes.div_ceil(SEGMENT_BYTES as u64) * TAG_BYTES as u64;
        let plain_bytes = sealed_bytes.checked_sub(HEADER_BYTES as u64 + tags)?;
        Self::of_plain(plain_bytes).filter(|layout| layout.sealed_bytes == sealed_bytes)
    }

    pub(crate) fn sealed_bytes(&self) -> u64 {
        self.sealed_bytes
    }

    pub(crate) fn plain_bytes(&self) -> u64 {
        self.plain_bytes
    }

    pub(crate) fn segments(&self) -> u64 {
        self.sealed_bytes.div_ceil(SEGMENT_BYTES as u64)
    }

    /// Where a segment lies in the stream, its tag included and the header left out.
    pub(crate) fn segment(&self, number: u64) -> Range<u64> {
        let start = number * SEGMENT_BYTES as u64;
        let end = (start + SEGMENT_BYTES as u64).min(self.sealed_bytes);
        start.max(HEADER_BYTES as u64)..end
    }
}

/// Seals what is small enough to be held: header and segments.
pub(crate) fn seal(key: &StreamKey, bound_to: &[u8], plain: &[u8]) -> Result<Vec<u8>, Error> {
    let layout = Layout::of_plain(plain.len() as u64).expect("what is held in memory has a layout");
    let header = Header::draw()?;
    let stream = Stream::new(key, bound_to, header, layout);
    let mut sealed = vec![0; layout.sealed_bytes() as usize];
    sealed[..HEADER_BYTES].copy_from_slice(header.as_bytes());
    let mut rest = plain;
    for number in 0..layout.segments() {
        let segment = &mut sealed[as_usize(layout.segment(number))];
        let (piece, after) = rest.split_at(segment.len() - TAG_BYTES);
        segment[..piece.len()].copy_from_slice(piece);
        stream.seal(number, segment);
        rest = after;
    }
    Ok(sealed)
}

/// Opens what [`seal`] made.
pub(crate) fn open(
    key: &StreamKey,
    bound_to: &[u8],
    sealed: &[u8],
) -> Result<Vec<u8>, NotAuthentic> {
    let header = Header::read(sealed).ok_or(NotAuthentic)?;
    let layout = Layout::of_sealed(sealed.len() as u64).ok_or(NotAuthentic)?;
    let stream = Stream::new(key, bound_to, header, layout);
    let mut plain = Vec::with_capacity(layout.plain_bytes() as usize);
    for number in 0..layout.segments() {
        let mut segment = sealed[as_usize(layout.segment(number))].to_vec();
        plain.extend_from_slice(stream.open(number, &mut segment)?);
    }
    Ok(plain)
}

pub(crate) fn as_usize(range: Range<u64>) -> Range<usize> {
    range.start as usize..range.end as usize
}

/// The plaintext within a segment as it is stored.
pub(crate) fn without_tag(segment: Range<usize>) -> Range<usize> {
    segment.start..segment.end - TAG_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::StoreKey;

    const FIRST: u64 = (SEGMENT_BYTES - HEADER_BYTES - TAG_BYTES) as u64;
    const NEXT: u64 = (SEGMENT_BYTES - TAG_BYTES) as u64;

    #[test]
    fn both_lengths_lead_to_the_same_layout() {
        let lengths = [
            0,
            1,
            FIRST - 1,
            FIRST,
            FIRST + 1,
            FIRST + NEXT,
            FIRST + NEXT + 1,
            1 << 40,
        ];
        for plain in lengths {
            let layout = Layout::of_plain(plain).unwrap();
            assert_eq!(Layout::of_sealed(layout.sealed_bytes()), Some(layout));
            let last = layout.segment(layout.segments() - 1);
            assert_eq!(last.end, layout.sealed_bytes());
            assert!(last.end - last.start >= TAG_BYTES as u64);
        }
        assert_eq!(Layout::of_plain(FIRST).unwrap().segments(), 1);
        assert_eq!(Layout::of_plain(FIRST + 1).unwrap().segments(), 2);
        assert_eq!(Layout::of_plain(u64::MAX - 100), None);
        for sealed in [0, 40, 55, SEGMENT_BYTES as u64 + 16] {
            assert_eq!(Layout::of_sealed(sealed), None, "{sealed}");
        }
    }

    #[test]
    fn a_stream_opens_whole_and_unmoved_or_not_at_all() {
        let key = StoreKey::new(&[7; 32]).content();
        for length in [0, 5, FIRST, FIRST + 1, FIRST + NEXT] {
            let plain: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
            let sealed = seal(&key, b"here", &plain).unwrap();
            assert_eq!(open(&key, b"here", &sealed).unwrap(), plain);
            assert!(open(&key, b"there", &sealed).is_err());
            assert!(open(&key, b"here", &sealed[..sealed.len() - 1]).is_err());
            assert!(open(&StoreKey::new(&[8; 32]).content(), b"here", &sealed).is_err());
        }
    }

    #[test]
    fn segments_cannot_change_places_or_become_the_last() {
        let key = StoreKey::new(&[7; 32]).content();
        let sealed = seal(&key, b"", &vec![1; (FIRST + 2 * NEXT) as usize]).unwrap();
        assert_eq!(sealed.len(), 3 * SEGMENT_BYTES);
        assert!(open(&key, b"", &sealed[..2 * SEGMENT_BYTES]).is_err());
        let mut moved = sealed.clone();
        moved[SEGMENT_BYTES..].rotate_left(SEGMENT_BYTES);
        assert!(open(&key, b"", &moved).is_err());
    }
}
