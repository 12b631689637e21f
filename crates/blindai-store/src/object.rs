//! An object that is not sealed: a model that somebody put into an object store in the clear.

use std::fmt;

use blindai_core::{Code, Error, Result};
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};
use url::Url;

use crate::error::{tell, why};
use crate::location::{parse, unknown_key};
use crate::{Credentials, Location};

/// Where an object is.
#[derive(Clone, Debug)]
pub struct ObjectLocation {
    url: Url,
    credentials: Credentials,
}

/// The content of an object, on its way.
pub struct Object {
    size_bytes: u64,
    pieces: BoxStream<'static, object_store::Result<Bytes>>,
}

impl ObjectLocation {
    /// `s3://bucket/path`, `gs://bucket/path` or `az://container/path`, down to the object. Names of
    /// credentials that the object store does not know are refused here, and not when it is read: whoever
    /// calls the model would learn of them, and the operator would not.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`]
    pub fn parse(text: &str, credentials: Credentials) -> Result<Self> {
        match Location::parse(text)? {
            Location::Cloud(url) if url.path().len() > 1 && !url.path().ends_with('/') => {
                if let Some(key) = unknown_key(&url, &credentials) {
                    let fact = format!("credentials: the object store knows no {key:?}");
                    return Err(Error::new(Code::InvalidRequest, fact));
                }
                Ok(Self { url, credentials })
            }
            _ => {
                let fact = format!("{text:?} is none of s3://bucket/path, gs://…, az://…");
                Err(Error::new(Code::InvalidRequest, fact))
            }
        }
    }

    /// Begins to read it.
    ///
    /// # Errors
    /// [`Code::ModelUnavailable`]
    pub async fn open(&self) -> Result<Object> {
        let (backend, path) = parse(&self.url, &self.credentials).map_err(unreadable)?;
        get(backend.as_ref(), &path).await.map_err(unreadable)
    }
}

impl Object {
    /// How much there is, in bytes, as the object store says.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The next piece; `None` after the last.
    ///
    /// # Errors
    /// [`Code::ModelUnavailable`]
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        let piece = self.pieces.next().await;
        piece.transpose().map_err(unreadable)
    }
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Object({} bytes)", self.size_bytes)
    }
}

async fn get(backend: &dyn ObjectStore, path: &Path) -> object_store::Result<Object> {
    let found = backend.get(path).await?;
    Ok(Object {
        size_bytes: found.meta.size,
        pieces: found.into_stream(),
    })
}

/// Whoever calls the model reads this: no bucket and no path.
fn unreadable(error: object_store::Error) -> Error {
    tell("reading the object of a model", &error);
    let fact = format!("the content of the model cannot be read: {}", why(&error));
    Error::new(Code::ModelUnavailable, fact)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "cloud")]
    #[test]
    fn an_object_is_named_down_to_its_path() {
        let parse = |text| ObjectLocation::parse(text, Credentials::default());
        assert!(parse("s3://bucket/models/m.onnx").is_ok());
        for text in ["s3://bucket", "s3://bucket/", "s3://b/folder/", "/m.onnx"] {
            let error = parse(text).unwrap_err();
            assert_eq!(error.code(), Code::InvalidRequest, "{text}");
        }
        let slip = [("aws_secret_acces_key".to_owned(), "hush".to_owned())];
        let error = ObjectLocation::parse("s3://b/m.onnx", slip.into_iter().collect());
        let error = error.unwrap_err().to_string();
        assert!(error.contains("aws_secret_acces_key") && !error.contains("hush"));
    }

    #[tokio::test]
    async fn an_object_is_read_whole_and_errors_name_nothing() {
        let backend = object_store::memory::InMemory::new();
        let path = Path::from("bucket/secret");
        let error = unreadable(get(&backend, &path).await.unwrap_err());
        assert_eq!(error.code(), Code::ModelUnavailable);
        assert!(!error.to_string().contains("secret"), "{error}");
        backend.put(&path, vec![7; 100_000].into()).await.unwrap();
        let mut object = get(&backend, &path).await.unwrap();
        assert_eq!(object.size_bytes(), 100_000);
        let mut read = Vec::new();
        while let Some(piece) = object.next().await.unwrap() {
            read.extend_from_slice(&piece);
        }
        assert_eq!(read, [7; 100_000]);
    }
}
