use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use blindai_core::{ModelInfo, ModelName, ModelVersion, Shape};

use crate::access::Principal;
use crate::service::Service;

/// A model that somebody sent, and the shape he said its input has.
#[derive(Clone)]
pub struct Sent {
    pub model: Arc<Held>,
    pub shape: Shape,
}

/// A model that came over this protocol.
#[derive(PartialEq)]
pub struct Held {
    pub name: ModelName,
    pub version: ModelVersion,
}

/// What was sent last over one connection, and what it therefore runs.
#[derive(Clone, Default)]
pub struct LastSent(Arc<Mutex<Option<Sent>>>);

impl LastSent {
    pub fn get(&self) -> Option<Sent> {
        lock(&self.0).clone()
    }

    pub fn set(&self, sent: Sent) {
        *lock(&self.0) = Some(sent);
    }
}

/// What came over this protocol from anybody.
#[derive(Default)]
pub struct Uploads(Mutex<Books>);

#[derive(Default)]
struct Books {
    held: Vec<Arc<Held>>,
    newest: Option<Sent>,
}

impl Uploads {
    /// What was sent last over any connection.
    pub fn newest(&self) -> Option<Sent> {
        lock(&self.0).newest.clone()
    }

    /// Notes that a model was sent; `new` when the service did not hold it before. What the service
    /// does not hold any more is forgotten.
    pub fn note(&self, service: &Service, info: &ModelInfo, new: bool, shape: Shape) -> Sent {
        let held = Held {
            name: info.name.clone(),
            version: info.version.clone(),
        };
        let mut books = lock(&self.0);
        // Of anybody: what this caller may not see is there all the same.
        let operator = Principal::operator();
        let is_there = |held: &Arc<Held>| {
            let version = Some(held.version.as_str());
            let found = service.describe(&operator, held.name.as_str(), version);
            found.is_ok()
        };
        books.held.retain(is_there);
        let known = books.held.iter().find(|known| ***known == held).cloned();
        let model = known.unwrap_or_else(|| {
            let model = Arc::new(held);
            // What came in another way is its owner's to delete.
            books.held.extend(new.then(|| model.clone()));
            model
        });
        let sent = Sent { model, shape };
        books.newest = Some(sent.clone());
        sent
    }

    /// Deletes the other versions of a name that came over this protocol and that no connection runs
    /// any more: each new version would take memory until the server is full.
    pub async fn delete_replaced(&self, service: &Service, principal: &Principal, by: &Held) {
        let is_replaced = |held: &mut Arc<Held>| {
            held.name == by.name && held.version != by.version && Arc::strong_count(held) == 1
        };
        let replaced: Vec<_> = lock(&self.0).held.extract_if(.., is_replaced).collect();
        for held in replaced {
            // Somebody may have deleted it in the meantime, which is as well.
            let (name, version) = (held.name.as_str(), held.version.as_str());
            let _ = service.delete(principal, name, Some(version)).await;
        }
    }
}

// Every change under these locks is one call.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
