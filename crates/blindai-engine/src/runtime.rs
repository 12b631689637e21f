use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::path::Path;

use blindai_core::{Code, Digest, Error, Result};

use crate::memory;

/// SHA-256 of the only accepted ONNX Runtime: 1.28.0 for x86-64, from its PyPI wheel.
///
/// Later wheels carry telemetry that is on by default.
pub const ONNXRUNTIME_SHA256: &str =
    "aa4079d18f4ea7a5f3a94d80cd4bbe0f2740436626622d64d793803a20381083";

/// Reads the library once, checks it and keeps the checked bytes in sealed memory, so that nobody
/// can swap the file between the check and a later load.
pub(crate) fn load(path: &Path) -> Result<OwnedFd> {
    let shown = path.display();
    let bytes = std::fs::read(path).map_err(|error| {
        let fact = format!("ONNX Runtime is not at {shown}: {error}");
        Error::new(Code::Internal, fact).with_remedy(REMEDY)
    })?;
    let digest = Digest::of(&bytes);
    if digest.to_hex() != ONNXRUNTIME_SHA256 {
        let fact = format!("{shown} is {digest}, expected sha256:{ONNXRUNTIME_SHA256}");
        return Err(Error::new(Code::Internal, fact).with_remedy(REMEDY));
    }
    let keep = || {
        let mut file = memory::memory_file("onnxruntime")?;
        file.write_all(&bytes)?;
        memory::seal(file)
    };
    keep().map_err(|error| {
        let fact = format!("no memory file for ONNX Runtime: {error}");
        Error::new(Code::Internal, fact)
    })
}

const REMEDY: &str = "fetch it with tools/onnxruntime.py, or name the file in BLINDAI_ONNXRUNTIME";
