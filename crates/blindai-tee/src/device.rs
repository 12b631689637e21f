//! Files that a kernel or a library OS makes up while they are read and written.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::Path;

/// All of a file.
///
/// # Errors
/// Also when it holds more than `limit` bytes: such files have no length to ask for, and one that
/// never ends must not fill the memory.
pub(crate) fn read(path: &Path, limit: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = File::open(path)?;
    file.take(limit as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > limit {
        let fact = format!("over {limit} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, fact));
    }
    Ok(bytes)
}

/// A line of text without what ends it.
///
/// # Errors
/// Also when it is longer than a line of these files may be, or not UTF-8.
pub(crate) fn read_line(path: &Path) -> io::Result<String> {
    let text = String::from_utf8(read(path, LINE_BYTES)?);
    let text = text.map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not UTF-8"))?;
    Ok(text.trim_end_matches(['\n', '\0']).to_owned())
}

/// Writes `bytes` in one call, because each call is a message of its own there, and closes the file:
/// both configfs and Gramine act on the message only then.
///
/// # Errors
/// Also when not all was taken.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let taken = OpenOptions::new().write(true).open(path)?.write(bytes)?;
    if taken == bytes.len() {
        return Ok(());
    }
    let fact = format!("{taken} of {} bytes were taken", bytes.len());
    Err(io::Error::new(io::ErrorKind::WriteZero, fact))
}

const LINE_BYTES: usize = 128;
