//! numpy's buffers as tensors and back, without copying them where that can be had.

use blindai_core::{Code, DType, Error, NamedTensor, Tensor};
use bytes::Bytes;
use numpy::{PyArray1, PyArrayMethods as _};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyList;

use crate::error::refused;

/// A tensor from Python: name, dtype, shape, data.
#[derive(FromPyObject)]
pub struct Input<'py>(String, String, Vec<usize>, Data<'py>);

#[derive(FromPyObject)]
enum Data<'py> {
    Raw(Bound<'py, PyArray1<u8>>),
    Texts(Vec<String>),
}

impl Input<'_> {
    /// The tensor, over numpy's own buffer.
    pub fn into_tensor(self) -> PyResult<NamedTensor> {
        let Input(name, dtype, shape, data) = self;
        let tensor = match data {
            Data::Raw(array) => raw_tensor(&dtype, shape, lend(array)?),
            Data::Texts(texts) => Tensor::from_strings(shape, &texts),
        };
        let tensor = tensor.map_err(|error| {
            let fact = format!("input {name:?}: {}", error.fact());
            refused(Error::new(error.code(), fact).with_remedy(error.remedy().to_owned()))
        })?;
        Ok(NamedTensor { name, tensor })
    }
}

/// Tensors for Python, each as name, dtype, shape, data.
pub struct Outputs(pub Vec<NamedTensor>);

impl<'py> IntoPyObject<'py> for Outputs {
    type Target = PyList;
    type Output = Bound<'py, PyList>;
    type Error = PyErr;

    fn into_pyobject(self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let list = PyList::empty(py);
        for NamedTensor { name, tensor } in self.0 {
            let dtype = tensor.dtype().as_str();
            let shape = pyo3::types::PyTuple::new(py, tensor.shape())?;
            list.append((name, dtype, shape, give(py, tensor)?))?;
        }
        Ok(list)
    }
}

fn raw_tensor(dtype: &str, shape: Vec<usize>, data: Bytes) -> blindai_core::Result<Tensor> {
    let unknown = || Error::new(Code::InputDType, format!("there is no type {dtype:?}"));
    Tensor::new(DType::parse(dtype).ok_or_else(unknown)?, shape, data)
}

/// Lends numpy's buffer to a request.
fn lend(array: Bound<'_, PyArray1<u8>>) -> PyResult<Bytes> {
    let readonly = array
        .try_readonly()
        .map_err(|e| PyValueError::new_err(e.to_string()))?;
    let slice = readonly.as_slice()?;
    let (start, length) = (slice.as_ptr(), slice.len());
    drop(readonly);
    // SAFETY: `start` and `length` are those of the array's own contiguous slice, and the array
    // lives as long as `Lent`, which the bytes own: nothing else ever sees the slice. numpy neither
    // moves nor frees the buffer of an array that is referred to (`resize` refuses; the array is
    // moreover a view, which holds its base). Nothing in this process writes to it, except Python
    // code that changes an array during the call although the documentation forbids it; every
    // Python package that releases the GIL over a buffer rests on the same. The bytes are read for
    // three purposes: they are copied into TLS records, BOOL elements are compared with 1, which
    // the server does again, and they are digested where there is a receipt, which then does not fit
    // them; a torn read does none of it any harm.
    let data = unsafe { std::slice::from_raw_parts(start, length) };
    Ok(Bytes::from_owner(Lent {
        data,
        _array: array.unbind(),
    }))
}

struct Lent {
    data: &'static [u8],
    _array: Py<PyArray1<u8>>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        self.data
    }
}

/// Hands a tensor's buffer over to numpy. It is copied only while another output shares it.
fn give(py: Python<'_>, tensor: Tensor) -> PyResult<Bound<'_, PyAny>> {
    if tensor.dtype() == DType::String {
        return Ok(PyList::new(py, tensor.strings().collect::<Vec<_>>())?.into_any());
    }
    let data = Vec::from(tensor.into_data());
    Ok(PyArray1::from_vec(py, data).into_any())
}
