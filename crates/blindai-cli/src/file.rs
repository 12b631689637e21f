//! Files that somebody gave: read whole, up to a limit.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

/// Reads a file of at most `limit` bytes.
pub fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let name = path.display();
    let mut bytes = Vec::new();
    let file = File::open(path).with_context(|| format!("{name} cannot be read"))?;
    let mut start = file.take(limit + 1);
    start
        .read_to_end(&mut bytes)
        .with_context(|| format!("{name} cannot be read"))?;
    if bytes.len() as u64 > limit {
        bail!("{name} is over {limit} bytes, so it is not what is looked for");
    }
    Ok(bytes)
}

/// The same, as text.
pub fn read_text(path: &Path, limit: u64) -> Result<String> {
    let text = String::from_utf8(read(path, limit)?);
    text.with_context(|| format!("{} is not text", path.display()))
}
