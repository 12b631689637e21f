//! Emulations of the kernel interfaces that attesters use, as file systems in user space (FUSE).
//!
//! They keep the traps of the real ones: files that appear with a directory, writes that count only
//! when the file is closed, state shared by everybody, lengths that are cut without a word. What they
//! answer is signed by a [`blindai_tee::Simulation`].
#![allow(dead_code)] // Each test file uses its own part.

pub mod files;
pub mod gramine;
pub mod sev_guest;
pub mod tsm;
