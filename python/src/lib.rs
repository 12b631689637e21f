//! The native module behind the Python package `blindai`: the Rust client, thinly wrapped.
//!
//! Private: its shape is what the typed facade in `blindai/` finds easy, not what a person does.
//! Documents cross the border as JSON texts, tensors as bytes with a name, dtype and shape. The GIL
//! is released during every wait.

mod client;
mod error;
mod legacy;
mod own;
mod receipt;
mod tensor;
mod verbs;

use pyo3::prelude::*;

#[pymodule]
mod _native {
    use pyo3::prelude::*;

    #[pymodule_export]
    use crate::client::{AsyncClient, Client, connect, connect_async};

    #[pymodule_export]
    use crate::legacy::{
        judge_proof, read_numbers, read_payload, read_proof, read_toml, signature_holds,
        write_proof,
    };

    #[pymodule_export]
    use crate::receipt::{read_receipt, verify_receipt};

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
