#![no_main]

// Not in the library: its corpus is replayed by another crate than that of the others.
#[path = "../src/store.rs"]
mod store;

libfuzzer_sys::fuzz_target!(|data: &[u8]| store::store(data));
