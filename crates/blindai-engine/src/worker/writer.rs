//! The shared memory as the engines see it.

use super::work::Outputs;
use crate::protocol::{ALIGNMENT, Failure, Place};

impl Place {
    /// The bytes of an input.
    pub(super) fn data<'a>(&self, inputs: &'a [u8]) -> Result<&'a [u8], Failure> {
        let end = self.offset.checked_add(self.bytes).ok_or(Failure::Other)?;
        let data = inputs.get(self.offset as usize..end as usize);
        data.ok_or(Failure::Other)
    }
}

/// Puts outputs into the shared memory, one after the other.
pub(super) struct Writer<'a> {
    outputs: &'a dyn Outputs,
    limit: u64,
    offset: u64,
}

impl<'a> Writer<'a> {
    pub(super) fn new(outputs: &'a dyn Outputs, limit: u64) -> Self {
        let offset = 0;
        Self {
            outputs,
            limit,
            offset,
        }
    }

    pub(super) fn write(
        &mut self,
        index: usize,
        shape: Vec<usize>,
        data: &[u8],
    ) -> Result<Place, Failure> {
        let bytes = data.len() as u64;
        let end = self.offset.checked_add(bytes);
        if end.is_none_or(|end| end > self.limit) {
            return Err(Failure::OutputsTooLarge);
        }
        let written = self.outputs.put(self.offset, data);
        written.map_err(|_| Failure::Other)?;
        let place = Place {
            index,
            shape,
            offset: self.offset,
            bytes,
        };
        self.offset = (self.offset + bytes).next_multiple_of(ALIGNMENT);
        Ok(place)
    }

    pub(super) fn write_strings(
        &mut self,
        index: usize,
        shape: Vec<usize>,
        strings: &[String],
    ) -> Result<Place, Failure> {
        let mut data = Vec::new();
        for string in strings {
            let length = u32::try_from(string.len()).map_err(|_| Failure::OutputsTooLarge)?;
            data.extend_from_slice(&length.to_le_bytes());
            data.extend_from_slice(string.as_bytes());
        }
        self.write(index, shape, &data)
    }
}
