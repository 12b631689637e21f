//! Where a store is.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use blindai_core::{Code, Error, Result};
use object_store::ObjectStore;
use object_store::prefix::PrefixStore;
use url::Url;

use crate::Folder;

/// A folder, or a place in an object store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A folder of this machine; made when it is not there.
    Folder(PathBuf),
    /// A bucket, or a path in one.
    Cloud(Url),
}

/// What an object store wants to know beside the location, by the names that the crate object_store
/// gives it, such as `aws_access_key_id`. Holds secrets and is not shown.
#[derive(Clone, Default)]
pub struct Credentials(BTreeMap<String, String>);

impl Location {
    /// A path, or `s3://bucket/path`, `gs://bucket/path`, `az://container/path`.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`]
    pub fn parse(text: &str) -> Result<Self> {
        let invalid = |why: &str| Err(Error::new(Code::InvalidRequest, format!("{text:?} {why}")));
        if text.is_empty() {
            return invalid("is no path");
        }
        if !text.contains("://") {
            return Ok(Self::Folder(text.into()));
        }
        let Ok(url) = Url::parse(text) else {
            return invalid("is no URL");
        };
        let plain = url.username().is_empty() && url.password().is_none();
        if !plain || url.query().is_some() || url.fragment().is_some() || url.port().is_some() {
            return invalid("says more than a bucket and a path");
        }
        if !SCHEMES.contains(&url.scheme()) || url.host_str().is_none() {
            return invalid("is none of s3://bucket, gs://bucket, az://container");
        }
        if !cfg!(feature = "cloud") {
            return invalid("is an object store, and this program was built without them");
        }
        Ok(Self::Cloud(url))
    }

    pub(crate) fn folder(&self) -> Option<&Path> {
        match self {
            Self::Folder(folder) => Some(folder),
            Self::Cloud(_) => None,
        }
    }

    pub(crate) fn backend(&self, credentials: &Credentials) -> Result<Arc<dyn ObjectStore>> {
        match self {
            Self::Folder(folder) => local(folder),
            Self::Cloud(url) => cloud(url, credentials),
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(folder) => folder.display().fmt(f),
            Self::Cloud(url) => url.fmt(f),
        }
    }
}

impl FromIterator<(String, String)> for Credentials {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(pairs: I) -> Self {
        Self(pairs.into_iter().collect())
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(..)")
    }
}

fn local(folder: &Path) -> Result<Arc<dyn ObjectStore>> {
    let backend = Folder::at(folder).map_err(|error| {
        let fact = format!("the store at {}: {error}", folder.display());
        Error::new(Code::StoreUnavailable, fact)
    })?;
    Ok(Arc::new(backend))
}

fn cloud(url: &Url, credentials: &Credentials) -> Result<Arc<dyn ObjectStore>> {
    let (backend, path) = parse(url, credentials).map_err(|error| {
        let fact = format!("the store at {url}: {error}");
        Error::new(Code::StoreUnavailable, fact)
    })?;
    Ok(Arc::new(PrefixStore::new(backend, path)))
}

/// The object store of a location, and the path in it.
#[cfg(feature = "cloud")]
pub(crate) fn parse(
    url: &Url,
    credentials: &Credentials,
) -> object_store::Result<(Box<dyn ObjectStore>, object_store::path::Path)> {
    if let Some(key) = unknown_key(url, credentials) {
        let (store, key) = ("object store", key.to_owned());
        return Err(object_store::Error::UnknownConfigurationKey { store, key });
    }
    object_store::parse_url_opts(url, &credentials.0)
}

/// object_store would pass over what it does not know, and ask elsewhere for a secret whose name has a slip.
#[cfg(feature = "cloud")]
pub(crate) fn unknown_key<'a>(url: &Url, credentials: &'a Credentials) -> Option<&'a str> {
    let mut keys = credentials.0.keys().map(String::as_str);
    keys.find(|key| !is_known(url, key))
}

#[cfg(not(feature = "cloud"))]
pub(crate) fn unknown_key<'a>(_: &Url, _: &'a Credentials) -> Option<&'a str> {
    None
}

#[cfg(feature = "cloud")]
fn is_known(url: &Url, key: &str) -> bool {
    use object_store::{aws::AmazonS3ConfigKey, azure::AzureConfigKey, gcp::GoogleConfigKey};
    let key = key.to_ascii_lowercase();
    match url.scheme() {
        "s3" => key.parse::<AmazonS3ConfigKey>().is_ok(),
        "gs" => key.parse::<GoogleConfigKey>().is_ok(),
        _ => key.parse::<AzureConfigKey>().is_ok(),
    }
}

#[cfg(not(feature = "cloud"))]
pub(crate) fn parse(
    _: &Url,
    credentials: &Credentials,
) -> object_store::Result<(Box<dyn ObjectStore>, object_store::path::Path)> {
    let _ = &credentials.0;
    let operation = "object stores, without which this program was built".to_owned();
    let implementer = "blindai-store".to_owned();
    Err(object_store::Error::NotImplemented {
        operation,
        implementer,
    })
}

const SCHEMES: [&str; 3] = ["s3", "gs", "az"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_is_a_folder_or_a_bucket_and_nothing_else() {
        let folder = Location::parse("/var/lib/blindai").unwrap();
        assert_eq!(folder, Location::Folder("/var/lib/blindai".into()));
        for text in [
            "",
            "file:///x",
            "http://h/b",
            "s3://u:p@b",
            "s3://b?x=1",
            "s3:///x",
            "gs://b#f",
        ] {
            let error = Location::parse(text).unwrap_err();
            assert_eq!(error.code(), Code::InvalidRequest, "{text}");
        }
    }

    #[cfg(feature = "cloud")]
    #[test]
    fn each_cloud_makes_a_backend() {
        for (text, key) in [
            ("s3://bucket/path", "AWS_region"),
            ("gs://bucket/path", "google_bucket"),
            ("az://container/path", "azure_storage_account_name"),
        ] {
            let location = Location::parse(text).unwrap();
            let with = |key: &str| [(key.to_owned(), "hush".to_owned())].into_iter().collect();
            let backend = location.backend(&with(key));
            assert!(backend.is_ok(), "{text}: {:?}", backend.err());
            let error = location.backend(&with("a_slip")).unwrap_err().to_string();
            assert!(
                error.contains("a_slip") && !error.contains("hush"),
                "{error}"
            );
        }
    }
}
