//! What parent and worker say to each other: JSON, one message per packet.
//!
//! 1. parent → worker: [`Setup`] with the descriptors of model, inputs, outputs and cancel, and for ONNX Runtime of
//!    its library.
//! 2. worker → parent: [`Loaded`]; the signature stands as JSON at the start of the outputs.
//! 3. parent → worker: [`Run`]; worker → parent: [`Ran`]. One at a time.
//!
//! Where the worker is a thread of the same process, the messages are the same and go through channels; what is a
//! descriptor here is memory there.
//!
//! The cancel socket carries bare request numbers (8 bytes, little-endian), so that the worker's
//! main thread can sleep in `recv` and compute without looking up.

use crate::{EngineOptions, Isolation};
use blindai_core::EngineKind;
use serde::{Deserialize, Serialize};

/// The longest message, either way.
pub(crate) const MESSAGE_BYTES: usize = 128 * 1024;
/// The longest signature, as JSON.
pub(crate) const SIGNATURE_BYTES: u64 = 256 * 1024;
/// Descriptors in the packet of [`Setup`], without the library.
pub(crate) const SETUP_DESCRIPTORS: usize = 4;
/// Where tensors may start: what the widest vector instructions want.
pub(crate) const ALIGNMENT: u64 = 64;

#[derive(Serialize, Deserialize)]
pub(crate) struct Setup {
    pub engine: EngineKind,
    pub threads: usize,
    pub spinning: bool,
    pub memory_bytes: u64,
    pub output_bytes: u64,
    pub isolation: Isolation,
}

impl From<&EngineOptions> for Setup {
    fn from(options: &EngineOptions) -> Self {
        Self {
            engine: options.kind,
            threads: options.threads,
            spinning: options.spinning,
            memory_bytes: options.memory_bytes,
            output_bytes: options.output_bytes,
            isolation: options.isolation,
        }
    }
}

#[derive(Serialize, Deserialize)]
pub(crate) enum Loaded {
    Yes { signature_bytes: u64 },
    No { code: String, fact: String },
}

#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Run {
    pub id: u64,
    pub inputs: Vec<Place>,
    /// Indices into the signature's outputs.
    pub outputs: Vec<usize>,
}

/// Where a tensor lies in the shared memory.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Place {
    /// Index into the signature's inputs or outputs; it also says the element type.
    pub index: usize,
    pub shape: Vec<usize>,
    pub offset: u64,
    pub bytes: u64,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Ran {
    pub id: u64,
    pub result: Result<Vec<Place>, Failure>,
}

/// Why a run gave no outputs. No text from inside an engine: it may quote tensor values.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Failure {
    Cancelled,
    Memory,
    OutputsTooLarge,
    /// The named output came out as something else than the signature says.
    Output(usize),
    Node {
        operator: String,
        name: String,
    },
    Other,
}
