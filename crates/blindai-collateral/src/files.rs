//! Collateral that somebody brought: a file of one platform, or a folder with a file of each.

use std::io;
use std::path::Path;

use blindai_core::Collateral;
use tokio::fs::{File, metadata};
use tokio::io::AsyncReadExt as _;

use crate::platform::Platform;
use crate::{CollateralError, CollateralErrorKind};

/// Reads the file, or the one of this platform in the folder.
pub(crate) async fn read(path: &Path, platform: &Platform) -> Result<Collateral, CollateralError> {
    let is_folder = metadata(path).await.is_ok_and(|found| found.is_dir());
    let path = match is_folder {
        true => path.join(platform.file_name()),
        false => path.to_owned(),
    };
    let bytes = bounded(&path).await.map_err(|e| failed(&path, &e))?;
    if bytes.len() as u64 > FILE_BYTES {
        let fact = format!("{} is over {FILE_BYTES} bytes", path.display());
        return Err(CollateralError::new(CollateralErrorKind::TooLarge, fact));
    }
    serde_json::from_slice(&bytes).map_err(|_| {
        let fact = format!("{} is not collateral as JSON", path.display());
        CollateralError::new(CollateralErrorKind::Unreadable, fact)
    })
}

async fn bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = File::open(path).await?;
    file.take(FILE_BYTES + 1).read_to_end(&mut bytes).await?;
    Ok(bytes)
}

fn failed(path: &Path, error: &io::Error) -> CollateralError {
    let kind = match error.kind() {
        io::ErrorKind::NotFound => CollateralErrorKind::NotFound,
        _ => CollateralErrorKind::Unreachable,
    };
    let error = CollateralError::new(kind, format!("{}: {error}", path.display()));
    error.with_remedy("add the file, or name another source")
}

/// Twice what a service may answer: binaries stand there in hexadecimal.
const FILE_BYTES: u64 = 4 * 1024 * 1024;
