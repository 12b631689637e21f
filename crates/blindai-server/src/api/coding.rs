//! Compressed bodies. What comes in is inflated piece by piece into memory that is reserved as it is
//! filled, and no further than the limit: a kilobyte may be a gigabyte.

use std::io::{self, Write};

use axum::http::HeaderMap;
use axum::http::header::ACCEPT_ENCODING;
use blindai_core::{Code, Error, Result};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::{GzDecoder, GzEncoder, ZlibDecoder, ZlibEncoder};

use super::busy;
use crate::budget::Reservation;
use crate::service::Service;

/// How bytes are written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    Identity,
    Gzip,
    /// As HTTP and gRPC mean it: in the envelope of zlib.
    Deflate,
}

impl Coding {
    /// The coding that a header names; none is identity.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] for one that is not taken.
    pub fn named(headers: &HeaderMap, header: &str) -> Result<Self> {
        let mut values = headers.get_all(header).iter();
        let coding = match (values.next(), values.next()) {
            (None, _) => Some(Coding::Identity),
            (Some(name), None) => name.to_str().ok().and_then(Self::parse),
            _ => None,
        };
        coding.ok_or_else(|| {
            let fact = format!("{header} is neither gzip nor deflate");
            Error::new(Code::InvalidRequest, fact).with_remedy("send the body as it is")
        })
    }

    /// The coding that the caller wants of the answer.
    ///
    /// Compressed, what an attacker chose and what is secret tell of each other by their length, which
    /// the network sees. So only who wants one coding, and nothing else, gets it: the lists of all
    /// that they could read are sent by HTTP libraries, whatever their users want.
    pub fn wanted(headers: &HeaderMap) -> Self {
        let wanted = headers.get(ACCEPT_ENCODING).and_then(|v| v.to_str().ok());
        wanted.and_then(Self::parse).unwrap_or(Coding::Identity)
    }

    /// The name in headers; `None` for identity, which has no need of one.
    pub fn name(self) -> Option<&'static str> {
        match self {
            Coding::Identity => None,
            Coding::Gzip => Some("gzip"),
            Coding::Deflate => Some("deflate"),
        }
    }

    fn parse(name: &str) -> Option<Self> {
        match name.trim().to_ascii_lowercase().as_str() {
            "identity" => Some(Coding::Identity),
            "gzip" | "x-gzip" => Some(Coding::Gzip),
            "deflate" => Some(Coding::Deflate),
            _ => None,
        }
    }

    /// The parts as one, compressed.
    pub fn compress(self, parts: Vec<Bytes>) -> Vec<Bytes> {
        let level = Compression::fast();
        let compressed = match self {
            Coding::Identity => return parts,
            Coding::Gzip => write_all(GzEncoder::new(Vec::new(), level), &parts, GzEncoder::finish),
            Coding::Deflate => write_all(
                ZlibEncoder::new(Vec::new(), level),
                &parts,
                ZlibEncoder::finish,
            ),
        };
        vec![compressed.into()]
    }
}

fn write_all<W: Write>(
    mut encoder: W,
    parts: &[Bytes],
    finish: impl FnOnce(W) -> io::Result<Vec<u8>>,
) -> Vec<u8> {
    let written = parts.iter().try_for_each(|part| encoder.write_all(part));
    written
        .and_then(|()| finish(encoder))
        .expect("memory can be written to")
}

/// A body on its way into memory.
pub enum Decoder<'a> {
    Identity(Held<'a>),
    Gzip(GzDecoder<Held<'a>>),
    Deflate(ZlibDecoder<Held<'a>>),
}

impl<'a> Decoder<'a> {
    /// A decoder of a body that says how many bytes it has, and of which `limit` may come out.
    ///
    /// # Errors
    /// [`Code::BodyTooLarge`], [`Code::TooManyRequests`]
    pub fn new(
        service: &'a Service,
        coding: Coding,
        announced: Option<u64>,
        limit: u64,
    ) -> Result<Self> {
        let held = |announced| Held::new(service, announced, limit);
        Ok(match coding {
            Coding::Identity => Self::Identity(held(announced.unwrap_or(0))?),
            Coding::Gzip => Self::Gzip(GzDecoder::new(held(0)?)),
            Coding::Deflate => Self::Deflate(ZlibDecoder::new(held(0)?)),
        })
    }

    /// Takes the next piece.
    ///
    /// # Errors
    /// [`Code::BodyTooLarge`], [`Code::TooManyRequests`], and [`Code::InvalidRequest`] for what was
    /// not compressed so.
    pub fn push(&mut self, piece: &[u8]) -> Result<()> {
        match self {
            Self::Identity(held) => held.push(piece),
            Self::Gzip(gzip) => {
                let written = busy(piece.len() * MOST, || gzip.write_all(piece));
                written.map_err(|_| gzip.get_mut().refusal())
            }
            Self::Deflate(zlib) => {
                let written = busy(piece.len() * MOST, || zlib.write_all(piece));
                written.map_err(|_| zlib.get_mut().refusal())
            }
        }
    }

    /// The whole body. The reservation is to be held as long as the bytes.
    ///
    /// # Errors
    /// As of [`Decoder::push`]; also what ends before its end is not compressed so.
    pub fn finish(self) -> Result<(Bytes, Reservation)> {
        let held = match self {
            Self::Identity(held) => held,
            Self::Gzip(mut gzip) => {
                let ended = gzip.try_finish();
                ended.map_err(|_| gzip.get_mut().refusal())?;
                gzip.finish().map_err(|_| not_compressed())?
            }
            Self::Deflate(mut zlib) => {
                // After its end it takes nothing more; that it has come to it, it does not say.
                let taken = zlib.write(&[0]);
                if taken.map_err(|_| zlib.get_mut().refusal())? != 0 {
                    return Err(not_compressed());
                }
                let ended = zlib.try_finish();
                ended.map_err(|_| zlib.get_mut().refusal())?;
                zlib.finish().map_err(|_| not_compressed())?
            }
        };
        Ok((held.bytes.into(), held.reservation))
    }
}

/// So many bytes at most may come out of one.
const MOST: usize = 1032;

/// Bytes of a body, for which room was reserved.
pub struct Held<'a> {
    service: &'a Service,
    bytes: Vec<u8>,
    /// As many as the sender announced, or 0.
    announced: u64,
    /// So many there may be.
    limit: u64,
    reservation: Reservation,
    refused: Option<Error>,
}

impl<'a> Held<'a> {
    /// Room for a body, of which little is taken before it comes: who only announces much must not
    /// keep others out.
    fn new(service: &'a Service, announced: u64, limit: u64) -> Result<Self> {
        service.check_body(announced)?;
        let first = announced.min(STEP_BYTES).min(limit);
        let reservation = service.reserve_body(first)?;
        Ok(Self {
            service,
            bytes: Vec::with_capacity(first as usize),
            announced,
            limit,
            reservation,
            refused: None,
        })
    }

    fn push(&mut self, piece: &[u8]) -> Result<()> {
        let length = self.bytes.len() + piece.len();
        if length as u64 > self.limit {
            return Err(self.too_large());
        }
        if length > self.bytes.capacity() {
            self.make_room(length)?;
        }
        self.bytes.extend_from_slice(piece);
        Ok(())
    }

    fn make_room(&mut self, length: usize) -> Result<()> {
        let most = match self.announced {
            0 => self.limit.max(FIRST_BYTES as u64),
            announced => announced.max(length as u64),
        };
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let capacity = (2 * length).max(FIRST_BYTES).min(most);
        let more = capacity - self.bytes.capacity();
        self.service.grow_held(&mut self.reservation, more as u64)?;
        self.bytes.reserve_exact(capacity - self.bytes.len());
        Ok(())
    }

    fn too_large(&self) -> Error {
        let limit = self.limit;
        let fact = match limit == self.service.limits().body_bytes {
            true => format!("the body has more than limits.body_bytes, {limit}"),
            false => format!("the message has more than {limit} bytes, at most so many are taken"),
        };
        Error::new(Code::BodyTooLarge, fact)
    }

    /// Why a decoder could not go on: it had no room, or it could not read.
    fn refusal(&mut self) -> Error {
        self.refused.take().unwrap_or_else(not_compressed)
    }
}

/// Room for a body of known length, to begin with.
const STEP_BYTES: u64 = 1 << 20;
/// The same for one of unknown length.
const FIRST_BYTES: usize = 4096;

impl Write for Held<'_> {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        match self.push(piece) {
            Ok(()) => Ok(piece.len()),
            Err(error) => {
                self.refused = Some(error);
                Err(io::ErrorKind::OutOfMemory.into())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn not_compressed() -> Error {
    let fact = "the body is not compressed as its header says, or it is cut short";
    Error::new(Code::InvalidRequest, fact)
}
