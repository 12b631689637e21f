"""numpy in, numpy out: the only place that knows how arrays become tensors."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Union

import numpy as np
import numpy.typing as npt

from blindai._errors import InvalidInputError

if TYPE_CHECKING:
    from blindai._models import Signature, TensorSpec

Array = npt.NDArray[Any]
#: What the native module takes and gives: name, dtype, shape, and raw bytes or texts.
Wire = tuple[str, str, tuple[int, ...], Union[npt.NDArray[np.uint8], list[str]]]


@dataclass(frozen=True)
class Tensor:
    """A tensor as raw bytes, for element types that numpy does not have.

    Args:
        dtype: the Open Inference Protocol's name of the element type, such as ``"BF16"``.
        shape: the size of each dimension; empty for a scalar.
        data: the elements, little-endian and row-major.

    Raises:
        InvalidInputError: the dtype is not known, or the data does not fill the shape.
    """

    dtype: str
    shape: tuple[int, ...]
    data: bytes = field(repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(size) for size in self.shape))
        if self.dtype != "BF16" and self.dtype not in DTYPES:
            known = ", ".join([*DTYPES, "BF16"])
            raise InvalidInputError(
                "input-dtype", f"there is no raw tensor of {self.dtype!r}", f"use one of {known}"
            )
        size = 2 if self.dtype == "BF16" else DTYPES[self.dtype].itemsize
        want = math.prod(self.shape) * size
        if want != len(self.data) or any(size < 0 for size in self.shape):
            fact = f"{self.dtype}{list(self.shape)} takes {want} bytes, got {len(self.data)}"
            raise InvalidInputError("input-data", fact)


def needs_signature(inputs: Mapping[str, Any]) -> bool:
    """Whether an input has no element type of its own, so that the model's must be known."""
    if not isinstance(inputs, Mapping):
        fact = f"the inputs are {_type_name(inputs)}, not a mapping of names to arrays"
        raise InvalidInputError("input-data", fact, 'pass {"name": array, …}')
    return any(_is_untyped(value) for value in inputs.values())


def encode(inputs: Mapping[str, Any], signature: Signature | None) -> list[Wire]:
    """The inputs as the native module takes them; contiguous arrays are not copied.

    Raises:
        InvalidInputError: names the input that cannot be sent and why.
    """
    return [_encode(name, value, signature) for name, value in inputs.items()]


def decode(outputs: Iterable[Wire]) -> dict[str, Array]:
    """The outputs as arrays over the buffers that the native module hands over."""
    return {name: _decode(dtype, shape, data) for name, dtype, shape, data in outputs}


def as_dtype(name: str, value: Any, dtype: str) -> Array | Tensor:
    """Python numbers, texts and (nested) lists of them as the element type of the model.

    Floats are rounded to the nearest value of the type, as numpy does with Python's floats;
    everything else must be exact.

    Raises:
        InvalidInputError: a value does not fit the type, or the lists are ragged.
    """
    natural = _from_lists(name, value, object if dtype == "BYTES" else None)
    if dtype == "BYTES":
        return natural
    kind = natural.dtype.kind
    if natural.size and kind not in ("b" if dtype == "BOOL" else "biuf"):
        raise _misfit(name, dtype, f"{_KINDS.get(kind, natural.dtype.name)} values")
    if dtype in ("BF16", "FP16", "FP32", "FP64"):
        return _to_floats(name, natural, dtype)
    if kind == "f":
        natural = _whole_numbers(name, value, dtype)
    limits = np.iinfo(DTYPES[dtype]) if dtype != "BOOL" else None
    if limits and natural.size and not limits.min <= natural.min() <= natural.max() <= limits.max:
        raise _misfit(name, dtype, "a value out of its range")
    return natural.astype(DTYPES[dtype])


def quote(name: str) -> str:
    """A name in an error's text, quoted as the server quotes it."""
    return json.dumps(name, ensure_ascii=False)


def _encode(name: str, value: Any, signature: Signature | None) -> Wire:
    if not isinstance(name, str):
        raise InvalidInputError("input-unknown", f"an input's name is {_type_name(name)}, not str")
    if _is_untyped(value):
        value = as_dtype(name, value, _spec(name, signature).dtype)
    if isinstance(value, Tensor):
        return name, value.dtype, value.shape, np.frombuffer(value.data, np.uint8)
    try:
        array = np.asarray(value)
    except Exception as error:
        fact = f"input {quote(name)} is {_type_name(value)}, which numpy does not read"
        raise InvalidInputError("input-data", fact, "pass a numpy array") from error
    dtype = _dtype_name(name, value, array)
    if dtype == "BYTES":
        return name, dtype, array.shape, _texts(name, array)
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return name, dtype, array.shape, np.ascontiguousarray(little).reshape(-1).view(np.uint8)


def _decode(dtype: str, shape: tuple[int, ...], data: Array | list[str]) -> Array:
    if isinstance(data, list):
        texts = np.empty(len(data), object)
        texts[:] = data
        return texts.reshape(shape)
    if dtype == "BF16":
        return _read_bf16(data).reshape(shape)
    array = data.view(DTYPES[dtype])
    return (array if array.flags.aligned else array.copy()).reshape(shape)


def _spec(name: str, signature: Signature | None) -> TensorSpec:
    specs = signature.inputs if signature else ()
    for spec in specs:
        if spec.name == name:
            return spec
    names = ", ".join(quote(spec.name) for spec in specs)
    fact = f"there is no input {quote(name)}; the model takes {names}"
    raise InvalidInputError("input-unknown", fact, "send only the inputs of the model's signature")


def _is_untyped(value: Any) -> bool:
    leaf = value
    while isinstance(leaf, (list, tuple)) and leaf:
        leaf = leaf[0]
    # numpy's own numbers have an element type: converting them would be a silent cast.
    python = isinstance(leaf, (bool, int, float, str, bytes, list, tuple))
    return python and not isinstance(leaf, np.generic)


def _dtype_name(name: str, value: Any, array: Array) -> str:
    known = _NAMES.get((array.dtype.kind, array.dtype.itemsize))
    if known:
        return known
    if array.dtype.name == "bfloat16":
        return "BF16"
    if array.dtype.kind in "OUST":
        return "BYTES"
    fact = f"input {quote(name)} is {_type_name(value)} of {array.dtype}, which no model takes"
    raise InvalidInputError("input-dtype", fact, "convert the input to the model's type")


def _texts(name: str, array: Array) -> list[str]:
    texts = array.reshape(-1).tolist()
    for i, text in enumerate(texts):
        if not isinstance(text, (str, bytes)):
            fact = f"input {quote(name)}: element {i} is {_type_name(text)}, not str or bytes"
            raise InvalidInputError("input-dtype", fact)
        try:
            if isinstance(text, bytes):
                texts[i] = text.decode()
            else:
                text.encode()
        except UnicodeError:
            fact = f"input {quote(name)}: string element {i} is not UTF-8"
            # The cause would quote the data.
            raise InvalidInputError("input-data", fact) from None
    return texts


def _from_lists(name: str, value: Any, dtype: type[object] | None) -> Array:
    try:
        return np.array(value, dtype)
    except (ValueError, OverflowError):
        fact = f"input {quote(name)}: the nested lists are not of equal length"
        raise InvalidInputError("input-shape", fact) from None


def _whole_numbers(name: str, value: Any, dtype: str) -> Array:
    # numpy may have rounded a large int beside a float: look at Python's own numbers again.
    exact = _from_lists(name, value, object)
    if not all(isinstance(number, int) or number.is_integer() for number in exact.flat):
        raise _misfit(name, dtype, "a fraction")
    whole = np.empty(exact.size, object)
    whole[:] = [int(number) for number in exact.flat]
    return whole.reshape(exact.shape)


def _to_floats(name: str, natural: Array, dtype: str) -> Array | Tensor:
    with np.errstate(over="ignore"):
        if dtype == "BF16":
            bits = _to_bf16(natural.astype(np.float32))
            floats = _widen_bf16(bits)
        else:
            floats = natural.astype(DTYPES[dtype])
    if np.any(np.isinf(floats) & np.isfinite(natural)):
        raise _misfit(name, dtype, "a value out of its range")
    if natural.dtype.kind in "iu":
        pairs = zip(floats.reshape(-1).tolist(), natural.reshape(-1).tolist())
        if not all(int(float_) == integer for float_, integer in pairs):
            raise _misfit(name, dtype, "an integer that it would round")
    return Tensor("BF16", natural.shape, bits.tobytes()) if dtype == "BF16" else floats


def _to_bf16(floats: Array) -> Array:
    # To the nearest, ties to even. A sum that overflows was a NaN's.
    bits = floats.reshape(-1).view(np.uint32)
    half = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    rounded = np.where(np.isnan(floats.reshape(-1)), 0x7FC0, (bits + half) >> np.uint32(16))
    return rounded.astype("<u2").reshape(floats.shape)


def _widen_bf16(bits: Array) -> Array:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _read_bf16(data: Array) -> Array:
    try:
        import ml_dtypes
    except ImportError:
        # float32 holds every BF16 value.
        return _widen_bf16(data.view("<u2"))
    native = data.view("<u2").astype(np.uint16, copy=False)
    return native.view(ml_dtypes.bfloat16)


def _misfit(name: str, dtype: str, got: str) -> InvalidInputError:
    fact = f"input {quote(name)} takes {dtype}, got {got}"
    return InvalidInputError("input-dtype", fact, "convert the input to the model's type")


def _type_name(value: Any) -> str:
    return type(value).__name__


#: The element types that numpy has, as they lie on the wire.
DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
_NAMES = {(dtype.kind, dtype.itemsize): name for name, dtype in DTYPES.items()}
_KINDS = {"b": "bool", "i": "int", "u": "int", "f": "float", "U": "str", "S": "bytes", "O": "mixed"}
