use bytes::Bytes;

use crate::oip::protobuf::{Fields, Message, Value};
use crate::{Code, Error, Result};

/// A signed answer as it is kept in a file: `ResponseProof`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Proof {
    /// What vouches for the key: an evidence document of today. The original keeps none of a
    /// simulated server.
    pub evidence: Option<Bytes>,
    /// Whether there is an attestation of the original, for a quote of that time.
    pub foreign: bool,
    pub payload: Bytes,
    pub signature: Bytes,
}

impl Proof {
    /// The file.
    pub fn write(&self) -> Bytes {
        Message::of(|m| {
            if let Some(evidence) = &self.evidence {
                m.message(1, |m| m.bytes(100, evidence));
            }
            m.bytes(2, &self.payload);
            m.bytes(3, &self.signature);
        })
    }

    /// Reads a file of a stranger. Nothing in it is verified.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`], [`Code::BodyTooLarge`]
    pub fn read(file: Bytes) -> Result<Self> {
        if file.len() > FILE_BYTES {
            let fact = format!(
                "a proof of {} bytes is longer than {FILE_BYTES}",
                file.len()
            );
            return Err(Error::new(Code::BodyTooLarge, fact));
        }
        let mut proof = Self::default();
        for field in Fields::of(file) {
            match field? {
                (1, Value::Bytes(attestation)) => proof.take_attestation(attestation)?,
                (2, Value::Bytes(payload)) => proof.payload = payload,
                (3, Value::Bytes(signature)) => proof.signature = signature,
                _ => {}
            }
        }
        Ok(proof)
    }

    fn take_attestation(&mut self, attestation: Bytes) -> Result<()> {
        for field in Fields::of(attestation) {
            match field? {
                (100, Value::Bytes(evidence)) => self.evidence = Some(evidence),
                (1, Value::Bytes(_)) => self.foreign = true,
                _ => {}
            }
        }
        Ok(())
    }
}

/// The largest file that is looked at: the largest answer of a model is no larger by default.
const FILE_BYTES: usize = 512 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_is_read_as_it_was_written() {
        let proof = Proof {
            evidence: Some(Bytes::from_static(b"{}")),
            foreign: false,
            payload: Bytes::from_static(b"payload"),
            signature: Bytes::from_static(&[7; 64]),
        };
        assert_eq!(Proof::read(proof.write()), Ok(proof.clone()));
        let file = proof.write();
        for end in 1..file.len() {
            // Cut between two fields it is a proof still, of less.
            assert_ne!(Proof::read(file.slice(..end)), Ok(proof.clone()));
        }
    }

    #[test]
    fn proofs_of_the_original_are_read() {
        let simulated = Bytes::from_static(b"\x12\x02pp\x1a\x02ss");
        let read = Proof::read(simulated).unwrap();
        assert_eq!((read.evidence, read.foreign), (None, false));
        assert_eq!(
            (&read.payload[..], &read.signature[..]),
            (&b"pp"[..], &b"ss"[..])
        );
        let attested = Bytes::from_static(b"\x0a\x06\x0a\x01q\x1a\x01c\x12\x02pp\x1a\x02ss");
        assert!(Proof::read(attested).unwrap().foreign);
    }
}
