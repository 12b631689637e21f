"""Models, uploads and the API of 0.3, as far as they need no server."""

from __future__ import annotations

import io
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import blindai
from blindai._models import Model, prepare_upload
from blindai._progress import ProgressBar
from blindai.client import BlindAiClient, ModelDatumType, _Uploaded


def model(
    dtype: str = "FP32", shape: list[int | str] | None = None, inputs: int = 1, out: str = "FP32"
) -> Model:
    spec = {"name": "x", "dtype": dtype, "shape": shape}
    info = {
        "name": "m",
        "version": "1",
        "digest": "sha256:" + "0" * 64,
        "size_bytes": 5,
        "engine": "tract",
        "uploaded_at": 60,
        "signature": {
            "inputs": [spec] * inputs,
            "outputs": [{"name": "y", "dtype": out, "shape": None}],
        },
    }
    return Model._from_json(info)


def test_a_model_reads_like_its_signature() -> None:
    held = model(shape=["batch", 3, ""])
    [spec] = held.signature.inputs
    assert (spec.name, spec.dtype, spec.shape) == ("x", "FP32", ("batch", 3, None))
    assert held.signature.outputs[0].shape is None
    assert held.engine == "tract"
    assert held.uploaded_at == datetime(1970, 1, 1, 0, 1, tzinfo=timezone.utc)
    assert held.metrics_slot is None


def test_a_name_comes_from_the_file() -> None:
    assert prepare_upload(Path("/a/resnet50.v2.onnx"), None, False)[1] == "resnet50.v2"
    assert prepare_upload("x.onnx", "other", False) == ("x.onnx", "other", None)
    assert prepare_upload(bytearray(b"12"), "m", False) == (b"12", "m", None)
    with pytest.raises(blindai.InvalidInputError, match="name="):
        prepare_upload(b"12", None, False)


def test_progress_on_a_terminal_on_request_or_to_a_function(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr("sys.stderr", terminal)
    assert prepare_upload("x", None, None)[2] is None
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    assert isinstance(prepare_upload("x", None, None)[2], ProgressBar)
    assert prepare_upload("x", None, False)[2] is None
    assert prepare_upload("x", None, print)[2] is print
    bar = prepare_upload("x", None, True)[2]
    assert bar
    bar(1_000_000, 2_000_000)
    bar(2_000_000, 2_000_000)
    first, last = terminal.getvalue().split("\r")[1:]
    assert " 50%" in first and "1/2 MB" in first and "\n" not in first
    assert "100%" in last and last.endswith("\n")


def test_the_old_enum_has_its_numbers() -> None:
    assert [(kind.name, kind.value) for kind in ModelDatumType] == [
        ("F32", 0),
        ("F64", 1),
        ("I32", 2),
        ("I64", 3),
        ("U32", 4),
        ("U64", 5),
    ]


F32, I64 = ModelDatumType.F32, ModelDatumType.I64


@pytest.mark.parametrize(
    ("held", "shape", "count", "expected"),
    [
        (model(shape=[2, 3]), (2, 3), 6, (2, 3)),
        (model(shape=["n", 3]), np.zeros((2, 3)).shape, 6, (2, 3)),
        (model(shape=None), [6], 6, (6,)),
        (model(shape=[2, 3]), None, 6, (2, 3)),
        (model(shape=["n", 3]), None, 6, (2, 3)),
        (model(shape=["n"]), None, 0, (0,)),
        (model(shape=[]), None, 1, ()),
    ],
)
def test_old_data_takes_the_models_shape(
    held: Model, shape: Any, count: int, expected: tuple[int, ...]
) -> None:
    array = _Uploaded(held, shape, F32, F32).inputs([0.5] * count)["x"]
    assert (array.shape, array.dtype) == (expected, np.float32)


@pytest.mark.parametrize(
    ("held", "shape", "dtype", "dtype_out", "words"),
    [
        (model(shape=[2, 3]), (3, 2), F32, F32, "shape says"),
        (model(shape=[2, 3]), (6,), F32, F32, "shape says"),
        (model(shape=["n"]), (-1,), F32, F32, "shape says"),
        (model(shape=["n", "m"]), None, F32, F32, "pass shape="),
        (model(shape=None), None, F32, F32, "pass shape="),
        (model(), (1,), I64, F32, "dtype=ModelDatumType.F32"),
        (model(out="INT64"), (1,), F32, F32, "dtype_out=ModelDatumType.I64"),
        (model("BOOL"), (1,), F32, F32, "blindai.connect"),
        (model(inputs=2), (1,), F32, F32, "2 inputs"),
    ],
)
def test_what_contradicts_the_model_is_refused(
    held: Model, shape: Any, dtype: ModelDatumType, dtype_out: ModelDatumType, words: str
) -> None:
    with pytest.raises(blindai.InvalidInputError) as caught:
        _Uploaded(held, shape, dtype, dtype_out)
    assert words in str(caught.value)


@pytest.mark.parametrize("data", [[0.5] * 5, [], [[0.5] * 6], ["a"] * 6, [1e300] * 6])
def test_old_data_that_does_not_fit_is_refused(data: list[Any]) -> None:
    uploaded = _Uploaded(model(shape=["n", 3]), (2, 3), F32, F32)
    with pytest.raises(blindai.InvalidInputError):
        uploaded.inputs(data)


def test_the_old_client_says_that_it_is_not_connected() -> None:
    with BlindAiClient() as client:
        assert not client.is_connected()
        for call in (client.upload_model, client.run_model):
            with pytest.raises(ConnectionError, match="connect_server"):
                call("x")
        client.close_connection()
