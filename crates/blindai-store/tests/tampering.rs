//! Whoever holds the store changes it: refused, each with its own code.

mod support;

use std::sync::Arc;

use blindai_core::Code;
use blindai_store::{Entry, Store, StoreKey};
use object_store::ObjectStoreExt as _;
use object_store::memory::InMemory;
use object_store::path::Path;
use support::{
    Backend, bytes, contents, manifests, model, named, open, put, read, refusal, try_open, write,
};

fn memory() -> Backend {
    Arc::new(InMemory::new())
}

/// A store with two models of one length.
async fn filled(length: usize) -> (Backend, Store) {
    let backend = memory();
    let store = open(&backend).await;
    put(&store, "a", &model(1, length)).await.unwrap();
    put(&store, "b", &model(2, length)).await.unwrap();
    (backend, store)
}

async fn newest(backend: &Backend) -> (Path, Vec<u8>) {
    let path = manifests(backend).await.pop().unwrap();
    let whole = bytes(backend, &path).await;
    (path, whole)
}

/// The object of one model.
async fn object_of(backend: &Backend, store: &Store, entry: &Entry) -> Path {
    for path in contents(backend).await {
        let whole = bytes(backend, &path).await;
        backend.delete(&path).await.unwrap();
        let gone = read(store, entry)
            .await
            .is_err_and(|e| e.code() == Code::StoreContentMissing);
        write(backend, &path, whole).await;
        if gone {
            return path;
        }
    }
    panic!("the model has no object");
}

async fn code(store: &Store, entry: &Entry) -> Code {
    read(store, entry).await.expect_err("it was read").code()
}

#[tokio::test]
async fn every_bit_of_a_manifest_matters() {
    let (backend, _) = filled(10).await;
    let (path, whole) = newest(&backend).await;
    for at in 0..whole.len() {
        for bit in 0..8 {
            let mut changed = whole.clone();
            changed[at] ^= 1 << bit;
            write(&backend, &path, changed).await;
            let expected = match at {
                0..16 => Code::StoreFormat,
                16..32 => Code::StoreSealedElsewhere,
                40..48 if changed_length(&whole, at, bit) => Code::StoreTruncated,
                _ => Code::StoreCorrupt,
            };
            assert_eq!(refusal(&backend).await, expected, "byte {at}, bit {bit}");
        }
    }
    write(&backend, &path, whole).await;
    open(&backend).await;
}

/// Whether the head then announces more than there is, and not less.
fn changed_length(whole: &[u8], at: usize, bit: u32) -> bool {
    whole[at] & (1 << bit) == 0
}

#[tokio::test]
async fn a_manifest_cut_off_anywhere_is_refused() {
    let (backend, _) = filled(10).await;
    let (path, whole) = newest(&backend).await;
    for length in 0..whole.len() {
        write(&backend, &path, whole[..length].to_vec()).await;
        assert_eq!(refusal(&backend).await, Code::StoreTruncated, "{length}");
    }
    let longer = [whole.clone(), vec![0]].concat();
    write(&backend, &path, longer).await;
    assert_eq!(refusal(&backend).await, Code::StoreCorrupt);
}

#[tokio::test]
async fn every_bit_of_a_model_matters() {
    let (backend, store) = filled(100).await;
    let (a, b) = (named(&store, "a").unwrap(), named(&store, "b").unwrap());
    let path = object_of(&backend, &store, &a).await;
    let whole = bytes(&backend, &path).await;
    for at in 0..whole.len() {
        for bit in 0..8 {
            let mut changed = whole.clone();
            changed[at] ^= 1 << bit;
            write(&backend, &path, changed).await;
            assert_eq!(
                code(&store, &a).await,
                Code::StoreCorrupt,
                "byte {at}, bit {bit}"
            );
        }
    }
    // The others are none the worse for it, also after a restart.
    let store = open(&backend).await;
    assert_eq!(code(&store, &a).await, Code::StoreCorrupt);
    assert_eq!(read(&store, &b).await.unwrap(), model(2, 100));
    write(&backend, &path, whole).await;
    assert_eq!(read(&store, &a).await.unwrap(), model(1, 100));
}

#[tokio::test]
async fn a_model_cut_off_anywhere_is_refused() {
    let (backend, store) = filled(100).await;
    let entry = named(&store, "a").unwrap();
    let path = object_of(&backend, &store, &entry).await;
    let whole = bytes(&backend, &path).await;
    for length in 0..whole.len() {
        write(&backend, &path, whole[..length].to_vec()).await;
        assert_eq!(code(&store, &entry).await, Code::StoreTruncated, "{length}");
    }
    write(&backend, &path, [whole, vec![0]].concat()).await;
    assert_eq!(code(&store, &entry).await, Code::StoreCorrupt);
}

#[tokio::test]
async fn a_large_model_cut_off_or_changed_around_its_borders_is_refused() {
    let (backend, store) = filled(11 << 20).await;
    let entry = named(&store, "a").unwrap();
    let path = object_of(&backend, &store, &entry).await;
    let whole = bytes(&backend, &path).await;
    let segment = 1 << 20;
    for border in (segment..whole.len()).step_by(segment) {
        for length in [
            border - 17,
            border - 16,
            border - 1,
            border,
            border + 1,
            border + 16,
        ] {
            let length = length.min(whole.len() - 1);
            write(&backend, &path, whole[..length].to_vec()).await;
            assert_eq!(code(&store, &entry).await, Code::StoreTruncated, "{length}");
            let mut changed = whole.clone();
            changed[length] ^= 1;
            write(&backend, &path, changed).await;
            assert_eq!(code(&store, &entry).await, Code::StoreCorrupt, "{length}");
        }
    }
    // Two segments change places.
    let mut changed = whole.clone();
    changed[segment..3 * segment].rotate_left(segment);
    write(&backend, &path, changed).await;
    assert_eq!(code(&store, &entry).await, Code::StoreCorrupt);
}

#[tokio::test]
async fn exchanged_models_are_called_so() {
    for (left, right) in [(100, 100), (100, 200), (100, 7 << 20), (7 << 20, 100)] {
        let backend = memory();
        let store = open(&backend).await;
        let a = put(&store, "a", &model(1, left)).await.unwrap();
        let b = put(&store, "b", &model(2, right)).await.unwrap();
        let at_a = object_of(&backend, &store, &a).await;
        let at_b = object_of(&backend, &store, &b).await;
        let (was_a, was_b) = (bytes(&backend, &at_a).await, bytes(&backend, &at_b).await);
        write(&backend, &at_a, was_b).await;
        write(&backend, &at_b, was_a).await;
        assert_eq!(code(&store, &a).await, Code::StoreSwapped);
        assert_eq!(code(&store, &b).await, Code::StoreSwapped);
    }
}

#[tokio::test]
async fn an_earlier_sealing_of_the_same_model_is_another() {
    let backend = memory();
    let store = open(&backend).await;
    let old = put(&store, "a", &model(1, 100)).await.unwrap();
    let at_old = object_of(&backend, &store, &old).await;
    let was_old = bytes(&backend, &at_old).await;
    store.remove(&[old.id()]).await.unwrap();
    let new = put(&store, "a", &model(1, 100)).await.unwrap();
    let at_new = object_of(&backend, &store, &new).await;
    assert_ne!(at_old, at_new);
    write(&backend, &at_new, was_old).await;
    assert_eq!(code(&store, &new).await, Code::StoreSwapped);
}

#[tokio::test]
async fn what_another_key_sealed_is_called_so() {
    let (backend, store) = filled(100).await;
    let other = StoreKey::new(&[8; 32]);
    let error = Store::on(backend.clone(), other, None).await.unwrap_err();
    assert_eq!(error.code(), Code::StoreSealedElsewhere);
    assert!(error.remedy().contains("machine"));
    // It took nothing away from whom it belongs to.
    put(&store, "c", &model(3, 100)).await.unwrap();
}

#[tokio::test]
async fn a_manifest_under_another_number_is_exchanged() {
    let (backend, _) = filled(100).await;
    let (_, whole) = newest(&backend).await;
    write(&backend, &"manifest-00000000000000000099".into(), whole).await;
    assert_eq!(refusal(&backend).await, Code::StoreSwapped);
}

#[tokio::test]
async fn an_older_manifest_is_never_taken_for_a_newer_that_does_not_open() {
    let backend = memory();
    let store = open(&backend).await;
    let (old_path, old) = newest(&backend).await;
    put(&store, "a", &model(1, 100)).await.unwrap();
    let (path, whole) = newest(&backend).await;
    write(&backend, &old_path, old).await;
    write(&backend, &path, whole[..20].to_vec()).await;
    assert_eq!(refusal(&backend).await, Code::StoreTruncated);
    write(&backend, &path, whole).await;
    assert!(named(&open(&backend).await, "a").is_some());
}

#[tokio::test]
async fn models_without_a_manifest_are_refused() {
    let (backend, _) = filled(100).await;
    let (path, _) = newest(&backend).await;
    backend.delete(&path).await.unwrap();
    assert_eq!(refusal(&backend).await, Code::StoreManifestMissing);
    assert_eq!(contents(&backend).await.len(), 2, "the evidence was swept");
}

#[tokio::test]
async fn a_manifest_put_back_under_a_running_server_is_noticed() {
    let backend = memory();
    let store = open(&backend).await;
    let (old_path, old) = newest(&backend).await;
    put(&store, "a", &model(1, 100)).await.unwrap();
    let (path, _) = newest(&backend).await;
    write(&backend, &old_path, old).await;
    backend.delete(&path).await.unwrap();
    for _ in 0..2 {
        let error = put(&store, "b", &model(2, 100)).await.unwrap_err();
        assert_eq!(error.code(), Code::StoreRolledBack);
    }
}

#[tokio::test]
async fn what_was_seen_tells_that_a_store_was_put_back() {
    let folder = tempfile::tempdir().unwrap();
    let seen = folder.path().join("seen");
    let open = |backend: &Backend| {
        let (backend, seen) = (backend.clone(), Some(seen.clone()));
        async move { Store::on(backend, support::key(), seen).await }
    };
    let backend = memory();
    let store = open(&backend).await.unwrap();
    let a = put(&store, "a", &model(1, 100)).await.unwrap();
    let kept = copy(&backend).await;
    store.remove(&[a.id()]).await.unwrap();
    for put_back in [kept, memory()] {
        let error = open(&put_back).await.unwrap_err();
        assert_eq!(error.code(), Code::StoreRolledBack, "{error}");
    }
    open(&backend).await.unwrap();
    // Without it this cannot be noticed, as docs/store.md says.
    std::fs::remove_file(&seen).unwrap();
    let put_back = copy(&backend).await;
    open(&backend).await.unwrap();
    try_open(&put_back).await.unwrap();
}

async fn copy(backend: &Backend) -> Backend {
    let copy = memory();
    for path in support::objects(backend).await {
        write(&copy, &path, bytes(backend, &path).await).await;
    }
    copy
}

#[tokio::test]
async fn a_manifest_too_long_to_be_one_is_not_read() {
    let (backend, _) = filled(10).await;
    let (path, _) = newest(&backend).await;
    write(&backend, &path, vec![0; (64 << 20) + 1]).await;
    assert_eq!(refusal(&backend).await, Code::StoreCorrupt);
}
