//! Models at rest: sealed, in a folder or an object store.
//!
//! ```
//! use blindai_core::Digest;
//! use blindai_store::{Location, Options, Store, StoreKey};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().to_str().unwrap();
//! // Of the platform's sealer, for `StoreKey::PURPOSE`.
//! # let sealing_key = [7; 32];
//! let key = StoreKey::new(&sealing_key);
//! let store = Store::open(&Location::parse(path)?, key, Options::default()).await?;
//!
//! let model = b"the bytes of a model";
//! let record = serde_json::json!({ "name": "resnet50" });
//! let size_bytes = model.len() as u64;
//! let put = store.put(&model[..], Digest::of(model), size_bytes, record).await?;
//!
//! let copy = store.read(&put, Vec::new()).await?;
//! assert_eq!(copy, model);
//! # Ok(())
//! # }
//! ```
//!
//! What is acknowledged is on the disk, or with the object store, and survives the end of the process
//! at any moment; what is not acknowledged is there whole or not at all. Nothing is given out that is
//! not authentic. `docs/store.md` holds the format and the rules.
//!
//! # What is not protected
//! Whoever holds the store sees how many models there are, their sizes to the byte, and when they are
//! put and removed. He can take all of it away. After a restart he can put an old store back, as a
//! whole, unless [`Options::seen`] names a file that he cannot.
#![forbid(unsafe_code)]

mod entry;
mod error;
mod folder;
mod key;
mod location;
mod manifest;
mod object;
mod seen;
mod store;
mod stream;
mod transfer;

pub use entry::{Entry, EntryId};
pub use folder::Folder;
pub use key::StoreKey;
pub use location::{Credentials, Location};
pub use object::{Object, ObjectLocation};
pub use store::{Options, Store};
pub use transfer::Destination;
