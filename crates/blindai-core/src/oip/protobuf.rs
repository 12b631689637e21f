//! Protocol Buffers on the wire: fields in, fields out.
//!
//! Strangers send these messages. A generated reader makes a value of some hundred bytes out of
//! every empty submessage of two; here a field is a slice of the message, and what becomes of it is
//! the caller's decision.

use bytes::{Buf as _, Bytes};

use crate::{Code, Error, Result};

/// The value of a field, as far as the wire says what it is.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Integers, Booleans and enumerations.
    Varint(u64),
    /// A double.
    Fixed64([u8; 8]),
    /// Text, bytes, a message, or packed elements: a slice of the message.
    Bytes(Bytes),
    /// A float.
    Fixed32([u8; 4]),
}

/// The fields of a message, in the order in which they were sent.
pub struct Fields(Bytes);

impl Fields {
    pub fn of(message: Bytes) -> Self {
        Self(message)
    }

    fn next_field(&mut self) -> Option<(u32, Value)> {
        let key = read_varint(&mut self.0)?;
        let number = u32::try_from(key >> 3).ok().filter(|&n| n != 0)?;
        let value = match key & 7 {
            0 => Value::Varint(read_varint(&mut self.0)?),
            1 => Value::Fixed64(self.take(8)?.as_ref().try_into().ok()?),
            2 => {
                let length = usize::try_from(read_varint(&mut self.0)?).ok()?;
                Value::Bytes(self.take(length)?)
            }
            5 => Value::Fixed32(self.take(4)?.as_ref().try_into().ok()?),
            // Groups were given up before this protocol was written.
            _ => return None,
        };
        Some((number, value))
    }

    fn take(&mut self, length: usize) -> Option<Bytes> {
        (length <= self.0.len()).then(|| self.0.split_to(length))
    }
}

impl Iterator for Fields {
    type Item = Result<(u32, Value)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.next_field();
        if field.is_none() {
            self.0.clear();
        }
        Some(field.ok_or_else(malformed))
    }
}

/// Calls `take` with each element of a repeated integer field, packed or not.
pub fn each_varint(value: Value, mut take: impl FnMut(u64) -> Result<()>) -> Result<()> {
    match value {
        Value::Varint(element) => take(element),
        Value::Bytes(mut packed) => {
            while !packed.is_empty() {
                take(read_varint(&mut packed).ok_or_else(malformed)?)?;
            }
            Ok(())
        }
        _ => Err(malformed()),
    }
}

/// Text in a field.
pub fn text(value: &Bytes) -> Result<String> {
    let text = std::str::from_utf8(value).map(str::to_owned);
    text.map_err(|_| malformed())
}

/// The message is not one. Nothing of it is repeated: it may be anything.
pub fn malformed() -> Error {
    let fact = "the message is not of this method in Protocol Buffers";
    Error::new(Code::InvalidRequest, fact)
}

fn read_varint(bytes: &mut Bytes) -> Option<u64> {
    let mut value = 0;
    for (i, &byte) in bytes.iter().take(10).enumerate() {
        let bits = u64::from(byte & 0x7f);
        let shifted = bits << (7 * i);
        if shifted >> (7 * i) != bits {
            return None;
        }
        value |= shifted;
        if byte & 0x80 == 0 {
            bytes.advance(i + 1);
            return Some(value);
        }
    }
    None
}

/// A message that is being written. Fields of the default value are left out, as in proto3.
#[derive(Default)]
pub struct Message(Vec<u8>);

impl Message {
    /// The message of these fields.
    pub fn of(write: impl FnOnce(&mut Self)) -> Bytes {
        let mut message = Self::default();
        write(&mut message);
        message.0.into()
    }

    pub fn integer(&mut self, number: u32, value: u64) {
        if value != 0 {
            self.key(number, 0);
            self.varint(value);
        }
    }

    pub fn flag(&mut self, number: u32, value: bool) {
        self.integer(number, value.into());
    }

    pub fn text(&mut self, number: u32, value: &str) {
        if !value.is_empty() {
            self.element(number, value.as_bytes());
        }
    }

    /// An element of a repeated field, or a message: written even when it is empty.
    pub fn element(&mut self, number: u32, value: &[u8]) {
        self.announce(number, value.len());
        self.0.extend_from_slice(value);
    }

    pub fn message(&mut self, number: u32, write: impl FnOnce(&mut Self)) {
        self.element(number, &Self::of(write));
    }

    /// Packed signed integers.
    pub fn integers(&mut self, number: u32, values: impl IntoIterator<Item = i64>) {
        let mut packed = Self::default();
        values
            .into_iter()
            .for_each(|value| packed.varint(value as u64));
        if !packed.0.is_empty() {
            self.element(number, &packed.0);
        }
    }

    /// The head of a field whose bytes the caller sends himself, after this message.
    pub fn announce(&mut self, number: u32, length: usize) {
        self.key(number, 2);
        self.varint(length as u64);
    }

    fn key(&mut self, number: u32, wire: u64) {
        self.varint(u64::from(number) << 3 | wire);
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: impl Into<Bytes>) -> Result<Vec<(u32, Value)>> {
        Fields::of(bytes.into()).collect()
    }

    #[test]
    fn what_is_written_is_read() {
        let message = Message::of(|m| {
            m.integer(1, u64::MAX);
            m.text(2, "ü");
            m.integers(3, [1, -1]);
            m.message(4, |_| {});
            m.flag(5, false);
            m.text(6, "");
        });
        let fields = read(message).unwrap();
        let numbers: Vec<_> = fields.iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers, [1, 2, 3, 4]);
        assert_eq!(fields[0].1, Value::Varint(u64::MAX));
        let mut elements = Vec::new();
        each_varint(fields[2].1.clone(), |element| {
            elements.push(element as i64);
            Ok(())
        })
        .unwrap();
        assert_eq!(elements, [1, -1]);
    }

    // The example of the public encoding guide: field 1 is 150, field 2 "testing".
    #[test]
    fn the_wire_is_that_of_protocol_buffers() {
        let message = Message::of(|m| {
            m.integer(1, 150);
            m.text(2, "testing");
        });
        assert_eq!(message[..], *b"\x08\x96\x01\x12\x07testing");
        let floats = read(&b"\x0d\x00\x00\x80\x3f\x11\x00\x00\x00\x00\x00\x00\xf0\x3f"[..]);
        let want = [
            (1, Value::Fixed32(1f32.to_le_bytes())),
            (2, Value::Fixed64(1f64.to_le_bytes())),
        ];
        assert_eq!(floats.unwrap(), want);
    }

    #[test]
    fn what_is_cut_or_no_field_is_refused() {
        let cases: [&[u8]; 8] = [
            b"\x08",
            b"\x08\x80",
            b"\x12\x05abc",
            b"\x0d\x00\x00",
            // Field 0, a group, and an unknown kind.
            b"\x00\x00",
            b"\x0b\x0c",
            b"\x0e",
            // A number of more than 64 bits.
            b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
        ];
        for case in cases {
            assert_eq!(read(case).unwrap_err().code(), Code::InvalidRequest);
        }
        // A length that would wrap around.
        assert!(read(&b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"[..]).is_err());
    }

    #[test]
    fn fields_are_slices_of_the_message() {
        let message = Message::of(|m| m.text(1, "tensor"));
        let place = message.as_ptr();
        let Some(Ok((1, Value::Bytes(slice)))) = Fields::of(message.clone()).next() else {
            panic!("no field");
        };
        assert_eq!(slice.as_ptr(), place.wrapping_add(2));
    }
}
