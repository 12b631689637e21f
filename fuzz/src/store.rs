//! What whoever holds a store may put there. `crates/blindai-store/tests/corpus.rs` runs the kept inputs
//! through it with an ordinary compiler.

use std::sync::{Arc, LazyLock};

use blindai_core::Digest;
use blindai_store::{Store, StoreKey};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};
use tokio::runtime::{Builder, Runtime};

/// Any bytes as a manifest, and in the place of a model: nothing that we did not seal opens.
pub fn store(data: &[u8]) {
    RUNTIME.block_on(async {
        as_manifest(data).await;
        as_model(data).await;
    });
}

async fn as_manifest(data: &[u8]) {
    let backend = Arc::new(InMemory::new());
    let path = Path::from("manifest-00000000000000000001");
    backend
        .put(&path, data.to_vec().into())
        .await
        .expect("memory");
    assert!(Store::on(backend, key(), None).await.is_err());
}

async fn as_model(data: &[u8]) {
    let backend = Arc::new(InMemory::new());
    let store = Store::on(backend.clone(), key(), None)
        .await
        .expect("a new store");
    let (digest, size) = (Digest::of(MODEL), MODEL.len() as u64);
    let put = store
        .put(MODEL, digest, size, serde_json::Value::Null)
        .await;
    let entry = put.expect("memory");
    let path = only_model(&backend).await;
    backend
        .put(&path, data.to_vec().into())
        .await
        .expect("memory");
    assert!(store.read(&entry, Vec::new()).await.is_err());
}

async fn only_model(backend: &InMemory) -> Path {
    let folder = Path::from("content");
    let listed = backend
        .list_with_delimiter(Some(&folder))
        .await
        .expect("memory");
    listed.objects[0].location.clone()
}

fn key() -> StoreKey {
    StoreKey::new(&[7; 32])
}

const MODEL: &[u8] = b"a model";

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Builder::new_current_thread().build().expect("a runtime"));
