#![allow(dead_code, unused_imports, reason = "each test takes what it needs")]

pub mod azure;
mod faulty;
pub mod moto;

use std::sync::Arc;

use blindai_core::{Code, Digest, Error};
use blindai_store::{Entry, Store, StoreKey};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};
use serde_json::json;

pub use faulty::{Fault, Faulty};

pub type Backend = Arc<dyn ObjectStore>;

pub fn key() -> StoreKey {
    StoreKey::new(&[7; 32])
}

/// Bytes that differ from place to place and from model to model.
pub fn model(seed: u8, length: usize) -> Vec<u8> {
    (0..length).map(|i| (i % 251) as u8 ^ seed).collect()
}

pub async fn open(backend: &Backend) -> Store {
    try_open(backend).await.unwrap()
}

pub async fn try_open(backend: &Backend) -> Result<Store, Error> {
    Store::on(backend.clone(), key(), None).await
}

/// Why it does not open.
pub async fn refusal(backend: &Backend) -> Code {
    try_open(backend).await.expect_err("it opened").code()
}

pub async fn put(store: &Store, name: &str, bytes: &[u8]) -> Result<Arc<Entry>, Error> {
    let digest = Digest::of(bytes);
    let content = std::io::Cursor::new(bytes.to_vec());
    store
        .put(content, digest, bytes.len() as u64, json!({ "name": name }))
        .await
}

pub async fn read(store: &Store, entry: &Entry) -> Result<Vec<u8>, Error> {
    store.read(entry, Vec::new()).await
}

pub fn named(store: &Store, name: &str) -> Option<Arc<Entry>> {
    let mut entries = store.entries().into_iter();
    entries.find(|entry| entry.record()["name"] == name)
}

pub fn names(store: &Store) -> Vec<String> {
    let entries = store.entries().into_iter();
    entries
        .map(|entry| entry.record()["name"].as_str().unwrap().to_owned())
        .collect()
}

pub async fn objects(backend: &Backend) -> Vec<Path> {
    use futures_util::TryStreamExt as _;
    let mut found: Vec<_> = backend
        .list(None)
        .map_ok(|object| object.location)
        .try_collect()
        .await
        .unwrap();
    found.sort();
    found
}

pub async fn manifests(backend: &Backend) -> Vec<Path> {
    let mut found = objects(backend).await;
    found.retain(|path| path.as_ref().starts_with("manifest-"));
    found
}

pub async fn contents(backend: &Backend) -> Vec<Path> {
    let mut found = objects(backend).await;
    found.retain(|path| path.as_ref().starts_with("content/"));
    found
}

pub async fn bytes(backend: &Backend, path: &Path) -> Vec<u8> {
    backend
        .get(path)
        .await
        .unwrap()
        .bytes()
        .await
        .unwrap()
        .to_vec()
}

pub async fn write(backend: &Backend, path: &Path, bytes: Vec<u8>) {
    backend.put(path, bytes.into()).await.unwrap();
}
