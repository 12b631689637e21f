//! The process ends, or the backend fails, at each of its calls: nothing acknowledged is lost, and what
//! was not acknowledged is there whole or not at all.

mod support;

use std::sync::{Arc, LazyLock};

use blindai_core::Digest;
use blindai_store::{Folder, Store};
use object_store::memory::InMemory;
use serde_json::json;
use support::{Backend, Fault, Faulty, contents, key, manifests, model, names, open, put, read};

/// What a server does, step by step, until something fails; the names that must be there.
struct Life {
    acknowledged: Vec<&'static str>,
    /// What may be there instead, because the step that failed may have happened.
    or: Vec<&'static str>,
}

/// Of more than one part.
static LARGE: LazyLock<Vec<u8>> = LazyLock::new(|| model(3, 6 << 20));

async fn live(backend: Backend) -> Life {
    let mut life = Life {
        acknowledged: vec!["kept"],
        or: vec!["kept"],
    };
    let Ok(store) = Store::on(backend, key(), None).await else {
        return life;
    };
    for step in 0..5 {
        life.or = after(step);
        let done = match step {
            0 => put(&store, "small", &model(2, 100)).await.is_ok(),
            1 => put(&store, "large", &LARGE).await.is_ok(),
            2 => {
                let kept = support::named(&store, "kept").unwrap();
                let bytes = model(4, 200);
                let digest = Digest::of(&bytes);
                let content = std::io::Cursor::new(bytes);
                let record = json!({ "name": "new" });
                store
                    .replace(&[kept.id()], content, digest, 200, record)
                    .await
                    .is_ok()
            }
            3 => {
                let large = support::named(&store, "large").unwrap();
                store.remove(&[large.id()]).await.is_ok()
            }
            _ => {
                let small = support::named(&store, "small").unwrap();
                store
                    .update(&[], vec![(small.id(), json!({ "name": "renamed" }))])
                    .await
                    .is_ok()
            }
        };
        if !done {
            return life;
        }
        life.acknowledged = life.or.clone();
    }
    life
}

fn after(step: usize) -> Vec<&'static str> {
    match step {
        0 => vec!["kept", "small"],
        1 => vec!["kept", "small", "large"],
        2 => vec!["new", "small", "large"],
        3 => vec!["new", "small"],
        _ => vec!["new", "renamed"],
    }
}

async fn begun() -> Backend {
    begun_on(Arc::new(InMemory::new())).await
}

async fn begun_on(backend: Backend) -> Backend {
    put(&open(&backend).await, "kept", &model(1, 100))
        .await
        .unwrap();
    backend
}

/// After a restart everything that is listed is whole, and nothing lies around.
async fn inspect(backend: &Backend, life: &Life, when: &str) {
    let store = open(backend).await;
    let found = names(&store);
    assert!(
        found == life.acknowledged || found == life.or,
        "{when}: {found:?}"
    );
    for entry in store.entries() {
        let bytes = read(&store, &entry).await;
        let bytes = bytes.unwrap_or_else(|error| panic!("{when}: {error}"));
        assert_eq!(Digest::of(&bytes), entry.digest(), "{when}");
    }
    assert_eq!(contents(backend).await.len(), found.len(), "{when}");
    assert_eq!(manifests(backend).await.len(), 1, "{when}");
}

fn memory(_: usize) -> Backend {
    Arc::new(InMemory::new())
}

/// Does it with the fault at each call in turn, as many as there are.
async fn at_every_call(fault: Fault, new: impl Fn(usize) -> Backend) {
    for at in 0.. {
        let backend = begun_on(new(at)).await;
        let faulty = Faulty::new(backend.clone(), at, fault);
        let life = live(Arc::new(faulty.clone())).await;
        inspect(&backend, &life, &format!("{fault:?} at {at}")).await;
        if faulty.calls() <= at {
            assert!(at > 20, "only {at} calls were made");
            assert_eq!(life.acknowledged, after(4));
            return;
        }
    }
}

#[tokio::test]
async fn a_process_may_end_before_any_call() {
    at_every_call(Fault::Stop, memory).await;
}

#[tokio::test]
async fn a_process_may_end_after_any_call() {
    at_every_call(Fault::StopAfter, memory).await;
}

#[tokio::test]
async fn a_process_may_end_after_any_call_on_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let new = |at: usize| -> Backend {
        let store = folder.path().join(at.to_string());
        Arc::new(Folder::at(&store).unwrap())
    };
    at_every_call(Fault::StopAfter, new).await;
}

#[tokio::test]
async fn any_call_may_be_refused() {
    at_every_call(Fault::Refuse, memory).await;
}

#[tokio::test]
async fn any_answer_may_be_lost() {
    at_every_call(Fault::LoseAnswer, memory).await;
}

/// The server lives on after a failure, and what failed is not there once something succeeded.
#[tokio::test]
async fn a_server_goes_on_after_a_failure() {
    for fault in [Fault::Refuse, Fault::LoseAnswer] {
        for at in 0..40 {
            let backend = begun().await;
            let faulty = Faulty::new(backend.clone(), at, fault);
            let Ok(store) = Store::on(Arc::new(faulty), key(), None).await else {
                continue;
            };
            let mut expected = vec!["kept"];
            for name in ["first", "second", "third"] {
                if put(&store, name, &model(5, 100)).await.is_ok() {
                    expected.push(name);
                }
            }
            assert!(expected.len() >= 3, "{fault:?} at {at}: {expected:?}");
            while put(&store, "last", &model(5, 100)).await.is_err() {}
            expected.push("last");
            assert_eq!(names(&store), expected);
            let lying = contents(&backend).await.len();
            assert_eq!(lying, expected.len(), "{fault:?} at {at}");
            assert_eq!(names(&open(&backend).await), expected, "{fault:?} at {at}");
        }
    }
}

/// Nobody waits for the answer, as when a client goes away.
#[tokio::test]
async fn a_change_goes_on_when_nobody_waits_for_it() {
    for polls in 0..30 {
        let backend = begun().await;
        let store = open(&backend).await;
        {
            let bytes = model(6, 100);
            let mut change = Box::pin(put(&store, "given up", &bytes));
            for _ in 0..polls {
                tokio::select! {
                    biased;
                    _ = &mut change => break,
                    () = tokio::task::yield_now() => {}
                }
            }
        }
        put(&store, "next", &model(7, 100)).await.unwrap();
        let mut found = names(&store);
        found.retain(|name| name != "given up");
        assert_eq!(found, ["kept", "next"]);
    }
}
