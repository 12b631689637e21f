"""Arrays become tensors and come back as they were; what does not fit is refused by name."""

from __future__ import annotations

import sys
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

import blindai
from blindai._models import Signature, TensorSpec
from blindai._tensors import DTYPES, Wire, as_dtype, decode, encode, needs_signature


def signature(dtype: str) -> Signature:
    return Signature((TensorSpec("x", dtype, None),), ())


def one(value: Any, dtype: str | None = None) -> Wire:
    [wire] = encode({"x": value}, signature(dtype) if dtype else None)
    return wire


def round_trip(value: Any, dtype: str | None = None) -> npt.NDArray[Any]:
    return decode([one(value, dtype)])["x"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 3), (), (0,), (4, 0, 2)])
def test_every_dtype_and_shape_comes_back(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(DTYPES[dtype])
    wire = one(array)
    assert wire[1:3] == (dtype, shape)
    back = decode([wire])["x"]
    assert back.dtype == array.dtype
    assert back.shape == shape
    np.testing.assert_array_equal(back, array)


def test_a_contiguous_array_is_not_copied() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    data = one(array)[3]
    assert isinstance(data, np.ndarray)
    assert np.shares_memory(data, array)


def test_other_layouts_arrive_row_major_and_little_endian() -> None:
    array = np.arange(6, dtype=np.int32).reshape(2, 3)
    for same in (array.T.copy().T, array[::1, ::1], array.astype(">i4"), array.copy(order="F")):
        wire = one(same)
        assert wire[:3] == ("x", "INT32", (2, 3))
        assert bytes(wire[3]) == array.astype("<i4").tobytes()  # type: ignore[arg-type]
    np.testing.assert_array_equal(round_trip(array[:, ::2]), array[:, ::2])


def test_a_read_only_array_can_be_sent() -> None:
    array = np.ones(3)
    array.flags.writeable = False
    np.testing.assert_array_equal(round_trip(array), array)


@pytest.mark.parametrize(
    "strings",
    [
        np.array(["a", "ü", ""]),
        np.array([b"a", b"\xc3\xbc", b""]),
        np.array(["a", b"\xc3\xbc", ""], object),
    ],
)
def test_texts_in_every_form(strings: npt.NDArray[Any]) -> None:
    wire = one(strings.reshape(3, 1))
    assert wire == ("x", "BYTES", (3, 1), ["a", "ü", ""])
    back = decode([wire])["x"]
    assert back.dtype == object
    assert back.tolist() == [["a"], ["ü"], [""]]


def test_texts_from_python() -> None:
    assert one("hello\0", "BYTES") == ("x", "BYTES", (), ["hello\0"])
    assert one([["a"], [b"b"]], "BYTES") == ("x", "BYTES", (2, 1), ["a", "b"])
    assert one([], "BYTES") == ("x", "BYTES", (0,), [])


@pytest.mark.parametrize("bad", [[1.5], [b"\xff"], ["\ud800"], [None], [["a"], ["b", "c"]]])
def test_what_is_no_text_is_refused_without_being_quoted(bad: Any) -> None:
    with pytest.raises(blindai.InvalidInputError, match='"x"') as caught:
        one(bad, "BYTES")
    assert "xff" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "dtype", "expected"),
    [
        (7, "INT8", np.int8(7)),
        ([1, 2], "FP32", np.float32([1, 2])),
        ([0.1], "FP32", np.float32([0.1])),
        ([1.0, 2], "INT64", np.int64([1, 2])),
        ([0.0, 2**53 + 1], "INT64", np.int64([0, 2**53 + 1])),
        ([2**64 - 1], "UINT64", np.uint64([2**64 - 1])),
        ([-1, 2**62], "INT64", np.int64([-1, 2**62])),
        ([[True], [False]], "BOOL", np.array([[True], [False]])),
        ([True, False], "INT64", np.int64([1, 0])),
        ([], "INT64", np.empty(0, np.int64)),
        ([[]], "FP16", np.empty((1, 0), np.float16)),
        (float("inf"), "FP16", np.float16("inf")),
        ((1, (2)), "UINT8", np.uint8([1, 2])),
    ],
)
def test_python_numbers_take_the_models_dtype(value: Any, dtype: str, expected: Any) -> None:
    back = round_trip(value, dtype)
    assert back.dtype == DTYPES[dtype]
    np.testing.assert_array_equal(back, expected)
    assert back.shape == np.shape(expected)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (300, "UINT8"),
        (-1, "UINT64"),
        (2**64, "UINT64"),
        (1.5, "INT32"),
        (float("nan"), "INT32"),
        (float("inf"), "INT64"),
        ([0.5, 10**400], "INT64"),
        (1e300, "FP32"),
        (70000.0, "FP16"),
        (2049, "FP16"),
        (2**24 + 1, "FP32"),
        (2**53 + 1, "FP64"),
        (257, "BF16"),
        (3.4e38, "BF16"),
        (1, "BOOL"),
        ("1", "FP32"),
        (b"1", "INT8"),
        (1j, "FP32"),
        ([None], "FP32"),
        ([[1], [2, 3]], "INT64"),
        ([[1], 2], "INT64"),
    ],
)
def test_what_would_change_a_value_is_refused(value: Any, dtype: str) -> None:
    with pytest.raises(blindai.InvalidInputError, match='"x"'):
        one(value, dtype)


def test_arrays_are_never_cast() -> None:
    array = np.float64([0.5])
    for value in (array, array[0], [array[0]], [array]):
        assert not needs_signature({"x": value})
        assert one(value, "FP32")[1] == "FP64"


def test_untyped_inputs_ask_for_the_signature() -> None:
    for value in (1, 1.0, True, "a", b"a", [], [[1]], (1,)):
        assert needs_signature({"x": value})
    with pytest.raises(blindai.InvalidInputError, match='"y"') as caught:
        encode({"y": 1}, signature("INT8"))
    assert caught.value.code == "input-unknown"


def test_what_reads_as_an_array_is_one() -> None:
    class Like:
        def __array__(self, dtype: Any = None, copy: Any = None) -> npt.NDArray[np.int16]:
            return np.int16([1, 2])

    assert one(Like())[1:3] == ("INT16", (2,))


@pytest.mark.parametrize(
    "bad", [np.complex64([1]), np.datetime64("2020"), np.longdouble(1), {}, None]
)
def test_other_types_are_refused(bad: Any) -> None:
    with pytest.raises(blindai.InvalidInputError, match='"x"'):
        one(bad)


def test_inputs_are_a_mapping() -> None:
    inputs: Any = np.ones(3)
    with pytest.raises(blindai.InvalidInputError, match="mapping"):
        needs_signature(inputs)


def test_bf16_comes_back_with_ml_dtypes() -> None:
    array = np.array([[1.5, -2.0, 3e38]], ml_dtypes.bfloat16)
    wire = one(array)
    assert wire[1:3] == ("BF16", (1, 3))
    back = decode([wire])["x"]
    assert back.dtype == ml_dtypes.bfloat16
    assert back.tolist() == array.tolist()


def test_bf16_without_ml_dtypes_is_widened(monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.array([1.5, -2.0, np.nan, np.inf], ml_dtypes.bfloat16)
    raw = blindai.Tensor("BF16", (4,), array.tobytes())
    wire = one(raw)
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    back = decode([wire])["x"]
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, array.astype(np.float32))


def test_bf16_from_python_rounds_as_ml_dtypes_does() -> None:
    values = [0.1, -0.3, 1.00390625, 1.01171875, 65504.0, 1e-40, float("inf"), float("nan"), -0.0]
    raw = as_dtype("x", values, "BF16")
    assert isinstance(raw, blindai.Tensor)
    expected = np.array(values, np.float32).astype(ml_dtypes.bfloat16)
    got = np.frombuffer(raw.data, np.uint16).view(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(got.astype(np.float32), expected.astype(np.float32))
    assert one(2.0, "BF16")[2] == ()
    assert one([], "BF16")[2] == (0,)


@pytest.mark.parametrize(
    ("dtype", "shape", "data"),
    [("BF16", (2,), b"123"), ("FP31", (), b""), ("BYTES", (), b""), ("INT8", (-1,), b"")],
)
def test_raw_tensors_are_checked(dtype: str, shape: tuple[int, ...], data: bytes) -> None:
    with pytest.raises(blindai.InvalidInputError):
        blindai.Tensor(dtype, shape, data)


def test_a_raw_tensor_does_not_show_its_contents() -> None:
    assert "secret" not in repr(blindai.Tensor("INT8", (6,), b"secret"))


def test_misaligned_buffers_are_copied() -> None:
    buffer = np.zeros(9, np.uint8)
    buffer[1:] = np.frombuffer(np.float64([1.5]).tobytes(), np.uint8)
    back = decode([("y", "FP64", (1,), buffer[1:])])["y"]
    assert back.flags.aligned
    assert back.tolist() == [1.5]
