use std::fmt::Display;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use blindai_core::{Code, Digest, Error, Result};
use ort::environment::Environment;

use crate::memory;

/// SHA-256 of the only accepted ONNX Runtime: 1.28.0 for x86-64, from its PyPI wheel.
///
/// Later wheels carry telemetry that is on by default.
pub const ONNXRUNTIME_SHA256: &str =
    "aa4079d18f4ea7a5f3a94d80cd4bbe0f2740436626622d64d793803a20381083";

/// Reads the library once, checks it and keeps the checked bytes in sealed memory, so that nobody
/// can swap the file between the check and a later load.
pub(crate) fn seal(path: &Path) -> Result<OwnedFd> {
    let bytes = read(path)?;
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

/// Checks the library and loads it into this process, where it stays.
///
/// Between the two whoever can write the file can exchange it. Where there are no memory files, as in an
/// enclave, whatever measures the program has to measure this file too.
pub(crate) fn load(path: &Path) -> Result<Environment> {
    // There can be one only, even when nobody uses it any more.
    static LOADED: Mutex<Option<Environment>> = Mutex::new(None);
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    read(path)?;
    match &mut *loaded {
        Some(environment) => Ok(environment.clone()),
        none => Ok(none.insert(environment(path)?).clone()),
    }
}

/// Loads a library that was checked. To be called once in a process.
pub(crate) fn environment(path: &Path) -> Result<Environment> {
    let failed = |what: &dyn Display| {
        let fact = format!("ONNX Runtime cannot be loaded: {what}");
        Error::new(Code::Internal, fact)
    };
    let builder = ort::init_from(path).map_err(|error| failed(&error))?;
    // Node names and errors belong to the model's owner; the streams belong to the host.
    let silence = Arc::new(|_, _: &str, _: &str, _: &str, _: &str| {});
    let builder = builder.with_telemetry(false).with_logger(silence);
    let environment = builder.build().map_err(|error| failed(&error))?;
    environment.set_log_level(ort::logging::LogLevel::Fatal);
    Ok(environment)
}

fn read(path: &Path) -> Result<Vec<u8>> {
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
    Ok(bytes)
}

const REMEDY: &str = "fetch it with tools/onnxruntime.py, or name the file in BLINDAI_ONNXRUNTIME";
