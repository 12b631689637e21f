//! What is of one process, and of none that was forked from it.

use std::mem;
use std::process;
use std::sync::OnceLock;

use pyo3::prelude::*;

use crate::error::forked;

/// What only the process that made it uses and drops.
///
/// After a fork both processes own the sockets and the keys of TLS: a record that the child sends is
/// encrypted under a nonce that the parent uses as well, which gives the network the difference of
/// the texts and the key of their authentication. And a socket that the child deregisters, the
/// parent waits for in vain.
pub struct Own<T> {
    held: Option<T>,
    process: u32,
}

impl<T> Own<T> {
    pub fn new(held: T) -> Self {
        Self {
            held: Some(held),
            process: process::id(),
        }
    }

    pub fn get(&self) -> PyResult<&T> {
        match &self.held {
            Some(held) if self.process == process::id() => Ok(held),
            _ => Err(forked("this client was made in another process")),
        }
    }
}

impl<T> Drop for Own<T> {
    fn drop(&mut self) {
        if self.process != process::id() {
            mem::forget(self.held.take());
        }
    }
}

/// Refuses where asyncio's connections were made before a fork: the threads that serve them are not
/// in the child, which would wait for ever.
pub fn with_threads() -> PyResult<()> {
    static PROCESS: OnceLock<u32> = OnceLock::new();
    match *PROCESS.get_or_init(process::id) == process::id() {
        true => Ok(()),
        false => Err(forked(
            "blindai.aio was used before this process was forked",
        )),
    }
}
