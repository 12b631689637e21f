//! What holds on every backend.

mod support;

use std::sync::Arc;

use blindai_core::{Code, Digest};
use blindai_store::{Folder, Location, Options, Store};
use object_store::memory::InMemory;
use object_store::{ObjectStoreExt as _, PutMode};
use serde_json::json;
use support::{
    Backend, contents, key, manifests, model, named, names, objects, open, put, read, try_open,
};

/// Runs each case on each backend.
macro_rules! on_every_backend {
    ($($case:ident)*) => {
        mod memory {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                super::$case(super::Arc::new(super::InMemory::new())).await;
            })*
        }

        mod folder {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                let folder = tempfile::tempdir().unwrap();
                let backend = super::Folder::at(folder.path()).unwrap();
                super::$case(super::Arc::new(backend)).await;
            })*
        }

        #[cfg(feature = "cloud")]
        mod s3 {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                super::$case(super::support::moto::s3(stringify!($case))).await;
            })*
        }

        #[cfg(feature = "cloud")]
        mod gcs {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                super::$case(super::support::moto::gcs(stringify!($case))).await;
            })*
        }

        #[cfg(feature = "cloud")]
        mod azure {
            $(#[tokio::test(flavor = "multi_thread")]
            #[ignore = "make soak, which installs Azurite"]
            async fn $case() {
                super::$case(super::support::azure::container(stringify!($case))).await;
            })*
        }
    };
}

on_every_backend! {
    what_was_put_is_there_after_a_restart
    every_length_comes_back
    what_is_not_as_announced_is_not_put
    replacing_is_one_step
    removed_is_gone_from_the_backend_too
    records_change
    the_server_that_opened_last_has_the_store
    who_loses_the_store_within_an_upload_leaves_nothing_of_it
    one_of_many_that_open_at_once_has_the_store
    what_is_there_is_not_created_again
    changes_at_once_are_all_kept
    neither_contents_nor_records_nor_digests_are_in_the_open
    leftovers_are_swept_and_foreign_files_are_not
}

async fn what_was_put_is_there_after_a_restart(backend: Backend) {
    let store = open(&backend).await;
    assert!(store.entries().is_empty());
    put(&store, "a", &model(1, 100)).await.unwrap();
    put(&store, "b", &model(2, 3000)).await.unwrap();
    drop(store);
    let store = open(&backend).await;
    assert_eq!(names(&store), ["a", "b"]);
    let b = named(&store, "b").unwrap();
    assert_eq!(
        (b.digest(), b.size_bytes()),
        (Digest::of(&model(2, 3000)), 3000)
    );
    assert_eq!(read(&store, &b).await.unwrap(), model(2, 3000));
    assert_eq!(
        read(&store, &named(&store, "a").unwrap()).await.unwrap(),
        model(1, 100)
    );
}

async fn every_length_comes_back(backend: Backend) {
    let store = open(&backend).await;
    let segment = 1 << 20;
    let first = segment - 56;
    let part = 5 * segment - 40 - 5 * 16;
    for length in [
        0,
        1,
        first,
        first + 1,
        part - 1,
        part,
        part + 1,
        2 * part + 7,
    ] {
        let bytes = model(3, length);
        let entry = put(&store, "m", &bytes).await.unwrap();
        assert!(read(&store, &entry).await.unwrap() == bytes, "{length}");
    }
}

async fn what_is_not_as_announced_is_not_put(backend: Backend) {
    let store = open(&backend).await;
    for length in [100_usize, 6 << 20] {
        let bytes = model(1, length);
        let digest = Digest::of(&bytes);
        let cases = [
            (
                bytes.clone(),
                Digest::of(b"other"),
                length,
                Code::DigestMismatch,
            ),
            (bytes.clone(), digest, length - 1, Code::DigestMismatch),
            (bytes.clone(), digest, length + 1, Code::BodyIncomplete),
        ];
        for (bytes, digest, size, code) in cases {
            let content = std::io::Cursor::new(bytes);
            let put = store.put(content, digest, size as u64, json!({})).await;
            assert_eq!(put.unwrap_err().code(), code);
        }
    }
    assert!(store.entries().is_empty());
    assert!(contents(&backend).await.is_empty());
}

async fn replacing_is_one_step(backend: Backend) {
    let store = open(&backend).await;
    let old = put(&store, "old", &model(1, 100)).await.unwrap();
    put(&store, "other", &model(2, 100)).await.unwrap();
    let bytes = model(3, 200);
    let digest = Digest::of(&bytes);
    let content = std::io::Cursor::new(bytes.clone());
    let record = json!({ "name": "new" });
    store
        .replace(&[old.id()], content, digest, 200, record)
        .await
        .unwrap();
    for store in [store, open(&backend).await] {
        assert_eq!(names(&store), ["new", "other"]);
        assert_eq!(
            read(&store, &named(&store, "new").unwrap()).await.unwrap(),
            bytes
        );
        let error = read(&store, &old).await.unwrap_err();
        assert_eq!(error.code(), Code::StoreContentMissing);
    }
    assert_eq!(contents(&backend).await.len(), 2);
}

async fn removed_is_gone_from_the_backend_too(backend: Backend) {
    let store = open(&backend).await;
    let a = put(&store, "a", &model(1, 100)).await.unwrap();
    let b = put(&store, "b", &model(1, 100)).await.unwrap();
    store.remove(&[a.id()]).await.unwrap();
    store.remove(&[a.id()]).await.unwrap();
    assert_eq!(names(&open(&backend).await), ["b"]);
    assert_eq!(contents(&backend).await.len(), 1);
    let store = open(&backend).await;
    assert_eq!(read(&store, &b).await.unwrap(), model(1, 100));
    store.remove(&[b.id()]).await.unwrap();
    assert!(contents(&backend).await.is_empty());
    assert_eq!(manifests(&backend).await.len(), 1);
}

async fn records_change(backend: Backend) {
    let store = open(&backend).await;
    let entry = put(&store, "a", &model(1, 100)).await.unwrap();
    store
        .update(
            &[],
            vec![(entry.id(), json!({ "name": "b", "owner": "me" }))],
        )
        .await
        .unwrap();
    for store in [store, open(&backend).await] {
        let entry = named(&store, "b").unwrap();
        assert_eq!(entry.record()["owner"], "me");
        assert_eq!(read(&store, &entry).await.unwrap(), model(1, 100));
    }
}

async fn the_server_that_opened_last_has_the_store(backend: Backend) {
    let first = open(&backend).await;
    let kept = put(&first, "kept", &model(1, 100)).await.unwrap();
    let second = open(&backend).await;
    for _ in 0..2 {
        let error = put(&first, "late", &model(2, 100)).await.unwrap_err();
        assert_eq!(error.code(), Code::StoreTaken);
        let error = first.remove(&[kept.id()]).await.unwrap_err();
        assert_eq!(error.code(), Code::StoreTaken);
        put(&second, "new", &model(3, 100)).await.unwrap();
    }
    // Nothing of what it was sent lies there, and it still reads what it knows of.
    assert_eq!(contents(&backend).await.len(), 3);
    assert_eq!(read(&first, &kept).await.unwrap(), model(1, 100));
    assert_eq!(names(&open(&backend).await), ["kept", "new", "new"]);
}

async fn who_loses_the_store_within_an_upload_leaves_nothing_of_it(backend: Backend) {
    let first = open(&backend).await;
    let (begun, is_begun) = tokio::sync::oneshot::channel();
    let (go_on, may_go_on) = std::sync::mpsc::channel();
    let whole = model(2, 100);
    let digest = Digest::of(&whole);
    let content = Paused {
        rest: std::io::Cursor::new(whole),
        pause: Some((begun, may_go_on)),
    };
    let late = tokio::spawn(async move { first.put(content, digest, 100, json!({})).await });
    is_begun.await.unwrap();
    let _second = open(&backend).await;
    go_on.send(()).unwrap();
    let error = late.await.unwrap().unwrap_err();
    assert_eq!(error.code(), Code::StoreTaken);
    assert!(contents(&backend).await.is_empty());
}

/// Content that says when it is read, and then waits.
struct Paused {
    rest: std::io::Cursor<Vec<u8>>,
    pause: Option<(
        tokio::sync::oneshot::Sender<()>,
        std::sync::mpsc::Receiver<()>,
    )>,
}

impl std::io::Read for Paused {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        if let Some((begun, may_go_on)) = self.pause.take() {
            let _ = begun.send(());
            let _ = may_go_on.recv();
        }
        self.rest.read(into)
    }
}

async fn one_of_many_that_open_at_once_has_the_store(backend: Backend) {
    put(&open(&backend).await, "kept", &model(1, 100))
        .await
        .unwrap();
    let openings: Vec<_> = (0..8)
        .map(|_| {
            let backend = backend.clone();
            tokio::spawn(async move { try_open(&backend).await })
        })
        .collect();
    let mut opened = Vec::new();
    for opening in openings {
        match opening.await.unwrap() {
            Ok(store) => opened.push(store),
            Err(error) => {
                let codes = [Code::StoreTaken, Code::StoreUnavailable];
                assert!(codes.contains(&error.code()), "{error}");
            }
        }
    }
    let mut acknowledged = vec!["kept".to_owned()];
    for (i, store) in opened.iter().enumerate() {
        let name = format!("of {i}");
        if put(store, &name, &model(2, 100)).await.is_ok() {
            acknowledged.push(name);
        }
    }
    assert_eq!(
        acknowledged.len(),
        2,
        "not one, but {acknowledged:?} had the store"
    );
    assert_eq!(names(&open(&backend).await), acknowledged);
}

/// On which it rests that one server has the store.
async fn what_is_there_is_not_created_again(backend: Backend) {
    let path = object_store::path::Path::from("manifest-1");
    let create =
        |bytes: &'static str| backend.put_opts(&path, bytes.into(), PutMode::Create.into());
    create("first").await.unwrap();
    let refused = create("second").await.unwrap_err();
    assert!(
        matches!(refused, object_store::Error::AlreadyExists { .. }),
        "{refused}"
    );
    let found = backend.get(&path).await.unwrap().bytes().await.unwrap();
    assert_eq!(found, "first");
}

async fn changes_at_once_are_all_kept(backend: Backend) {
    let store = open(&backend).await;
    let puts: Vec<_> = (0..8_u8)
        .map(|i| {
            let store = store.clone();
            tokio::spawn(async move { put(&store, &i.to_string(), &model(i, 1000)).await })
        })
        .collect();
    for put in puts {
        put.await.unwrap().unwrap();
    }
    let store = open(&backend).await;
    let mut found = names(&store);
    found.sort();
    assert_eq!(found, ["0", "1", "2", "3", "4", "5", "6", "7"]);
    for entry in store.entries() {
        read(&store, &entry).await.unwrap();
    }
}

async fn neither_contents_nor_records_nor_digests_are_in_the_open(backend: Backend) {
    let store = open(&backend).await;
    let bytes = b"the mark of a model".repeat(100_000);
    let entry = put(&store, "the mark of a name", &bytes).await.unwrap();
    let digest = entry.digest();
    let marks = [
        b"the mark of a".to_vec(),
        digest.as_bytes().to_vec(),
        digest.to_hex().into_bytes(),
        entry.id().to_string().into_bytes(),
    ];
    for path in objects(&backend).await {
        let mut text = support::bytes(&backend, &path).await;
        text.extend_from_slice(path.as_ref().as_bytes());
        for mark in &marks {
            assert!(
                !text.windows(mark.len()).any(|window| window == mark),
                "{path}"
            );
        }
    }
    assert!(!format!("{entry:?} {store:?}").contains("the mark"));
}

async fn leftovers_are_swept_and_foreign_files_are_not(backend: Backend) {
    let store = open(&backend).await;
    put(&store, "a", &model(1, 100)).await.unwrap();
    let orphan = object_store::path::Path::from(format!("content/{}", "ab".repeat(32)));
    let foreign = ["README", "content/README", "manifest-1", "content/x/y"];
    support::write(&backend, &orphan, vec![1]).await;
    for path in foreign {
        support::write(&backend, &path.into(), vec![1]).await;
    }
    let store = open(&backend).await;
    read(&store, &named(&store, "a").unwrap()).await.unwrap();
    let found = objects(&backend).await;
    assert!(!found.contains(&orphan));
    assert!(foreign.iter().all(|path| found.contains(&(*path).into())));
    assert_eq!(found.len(), 2 + foreign.len());
}

#[tokio::test]
async fn a_folder_is_made_and_its_unfinished_files_are_swept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new/store");
    let location = Location::parse(path.to_str().unwrap()).unwrap();
    let open = || async {
        Store::open(&location, key(), Options::default())
            .await
            .unwrap()
    };
    let store = open().await;
    put(&store, "a", &model(1, 100)).await.unwrap();
    let content = format!("content/{}#1", "ab".repeat(32));
    let ours = [content.as_str(), "manifest-00000000000000000009#12"];
    let foreign = ["notes#1", "content/x#1", "manifest-00000000000000000009#x"];
    for file in ours.iter().chain(&foreign) {
        std::fs::write(path.join(file), "x").unwrap();
    }
    open().await;
    assert!(ours.iter().all(|file| !path.join(file).exists()));
    assert!(foreign.iter().all(|file| path.join(file).exists()));
}

#[tokio::test]
async fn what_is_no_folder_is_told_before_anything_is_written_there() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "x").unwrap();
    for path in [file.clone(), file.join("below")] {
        let location = Location::parse(path.to_str().unwrap()).unwrap();
        let opened = Store::open(&location, key(), Options::default()).await;
        let error = opened.unwrap_err();
        assert_eq!(error.code(), Code::StoreUnavailable);
        assert!(error.fact().contains("the store at"), "{error}");
    }
}

/// As on a disk that has room for a model and for no manifest.
#[tokio::test]
async fn what_a_folder_cannot_list_does_not_stay_there() {
    let folder = tempfile::tempdir().unwrap();
    let location = Location::parse(folder.path().to_str().unwrap()).unwrap();
    let open = || Store::open(&location, key(), Options::default());
    let store = open().await.unwrap();
    put(&store, "kept", &model(1, 100)).await.unwrap();
    let in_the_way = folder.path().join("manifest-00000000000000000003");
    std::fs::create_dir(&in_the_way).unwrap();
    for length in [100, 6 << 20] {
        let error = put(&store, "large", &model(2, length)).await.unwrap_err();
        assert_eq!(error.code(), Code::StoreUnavailable);
        let content = folder.path().join("content");
        assert_eq!(std::fs::read_dir(content).unwrap().count(), 1);
    }
    std::fs::remove_dir(in_the_way).unwrap();
    put(&store, "next", &model(3, 100)).await.unwrap();
    assert_eq!(names(&open().await.unwrap()), ["kept", "next"]);
}

#[tokio::test]
async fn a_destination_that_refuses_is_heard() {
    struct Full(usize);
    impl blindai_store::Destination for Full {
        type Whole = ();
        fn write(&mut self, _: &[u8]) -> blindai_core::Result<()> {
            self.0 += 1;
            match self.0 {
                3 => Err(blindai_core::Error::new(Code::MemoryExhausted, "full")),
                _ => Ok(()),
            }
        }
        fn finish(self, _: Digest) -> blindai_core::Result<()> {
            unreachable!("it was refused")
        }
    }
    let backend: Backend = Arc::new(InMemory::new());
    let store = open(&backend).await;
    let entry = put(&store, "a", &model(1, 20 << 20)).await.unwrap();
    let error = store.read(&entry, Full(0)).await.unwrap_err();
    assert_eq!(error.code(), Code::MemoryExhausted);
    store.read(&entry, Vec::new()).await.unwrap();
}
