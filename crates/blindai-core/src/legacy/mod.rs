//! The protocol of BlindAI 0.3, whose schema is `proto/blindai-0.3.proto` of this crate: its
//! [messages](SendModel), its lists of [numbers], and its signed answers in [files](Proof).
//!
//! Strangers write all of these. Nothing is allocated that they did not send.

mod message;
pub mod numbers;
mod proof;

pub use message::{
    Answer, Datum, ModelChoice, Payload, Piece, RunModel, SendModel, SgxEvidence, read_reply,
    write_reply, write_text,
};
pub use proof::Proof;
