"""A server without ONNX Runtime: the same models, the same signatures, the same answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import graphs
import numpy as np
import onnxruntime
import pytest
from answers import CASES, Tensors, local
from conftest import connect
from support import Server

import blindai
from tools import models

# To the largest magnitude of an output.
TOLERANCE = 2.3e-4
# Below it lies what a sigmoid gives for what should be nearly 0: 4.5e-7 was seen.
SMALLEST = 1e-6
# What tract does not run, and the node it fails at.
REFUSED = {"silero_vad": '"If_0" (If)'}
# What it does not even load.
NOT_TAKEN = ["isolation_forest", "local_outlier_factor", "one_class_svm"]
KINDS = {
    "tensor(bool)": "BOOL",
    "tensor(string)": "BYTES",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
}


@pytest.fixture(scope="module")
def tract(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose library is nowhere to be found."""
    engine = {"kind": "tract", "onnxruntime": "/nowhere/libonnxruntime.so"}
    with Server(tmp_path_factory.mktemp("tract"), engine=engine) as server:
        yield server


@pytest.fixture(scope="module")
def client(tract: Server) -> Iterator[blindai.Client]:
    with connect(tract) as client:
        yield client


def test_the_server_says_what_it_runs_and_what_it_does_not_load(tract: Server):
    assert "engine         tract; ONNX Runtime is not loaded\n" in tract.log


def test_no_process_has_the_library(tract: Server, client: blindai.Client):
    model = client.models.upload(graphs.add([1]), name="add")
    try:
        assert model.engine == "tract"
        for pid in [tract.pid, *tract.workers()]:
            maps = Path(f"/proc/{pid}/maps").read_text()
            assert "libc.so" in maps
            assert "onnxruntime" not in maps
            assert "stdc++" not in maps
    finally:
        client.models.delete("add")


@pytest.mark.parametrize("name", sorted(CASES.keys() - REFUSED.keys() - {*NOT_TAKEN}))
def test_tract_agrees_with_onnx_runtime(name: str, client: blindai.Client):
    tensors = CASES[name].given()
    model = client.models.upload(models.build(name), name=name)
    try:
        assert model.engine == "tract"
        assert_same_signature(name, model)
        got = client.infer(name, tensors)
    finally:
        client.models.delete(name)
    assert_equal(got, local(name)(**tensors))
    CASES[name].known(tensors, got)


@pytest.mark.parametrize("name", REFUSED)
def test_what_tract_cannot_run_fails_and_names_the_node(name: str, client: blindai.Client):
    client.models.upload(models.build(name), name=name)
    try:
        with pytest.raises(blindai.BlindAIError) as failure:
            client.infer(name, CASES[name].given())
    finally:
        client.models.delete(name)
    assert failure.value.code == "model-failed"
    assert REFUSED[name] in failure.value.fact


@pytest.mark.parametrize("name", NOT_TAKEN)
def test_what_tract_does_not_take_is_refused_by_its_operator(name: str, client: blindai.Client):
    with pytest.raises(blindai.BlindAIError) as failure:
        client.models.upload(models.build(name), name=name)
    assert failure.value.code == "model-unsupported"
    assert 'operator "Scaler" of domain "ai.onnx.ml"' in failure.value.fact


def test_one_model_may_run_on_another_engine(tmp_path: Path):
    with Server(tmp_path, models=[{"name": "small", "kind": "tract"}]) as server:
        assert "engine         onnxruntime, and another for some models\n" in server.log
        with connect(server) as client:
            for name, engine in [("small", "tract"), ("other", "onnxruntime")]:
                assert client.models.upload(graphs.add([1]), name=name).engine == engine
                assert client.models.get(name).engine == engine
                one = np.ones(1, np.float32)
                assert client.infer(name, {"a": one, "b": one})["y"] == [2]


def assert_same_signature(name: str, model: blindai.Model) -> None:
    """The server says of a model what the library says of it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        models.build(name), options, providers=["CPUExecutionProvider"]
    )
    inputs = [*session.get_inputs(), *session.get_overridable_initializers()]
    for ours, theirs in [
        (model.signature.inputs, inputs),
        (model.signature.outputs, session.get_outputs()),
    ]:
        got = [(spec.name, spec.dtype, len(spec.shape or [])) for spec in ours]
        assert got == [(spec.name, KINDS[spec.type], len(spec.shape)) for spec in theirs]
        for our, their in zip(ours, theirs, strict=True):
            assert all(map(is_same_dim, our.shape or [], their.shape)), (our, their.shape)


def is_same_dim(ours: int | str | None, theirs: int | str | None) -> bool:
    """The library finds the size of some dimensions that the file only names."""
    return ours == theirs or (isinstance(ours, str) and isinstance(theirs, int))


def assert_equal(got: Tensors, want: Tensors) -> None:
    assert list(got) == list(want)
    for name, expected in want.items():
        actual = got[name]
        assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape), name
        if expected.dtype.kind != "f":
            np.testing.assert_array_equal(actual, expected)
            continue
        scale = np.abs(expected).max(initial=0)
        tolerance = max(TOLERANCE * scale, SMALLEST)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)
        # A map over a picture offers no choice along its last axis.
        if scale > SMALLEST and 0 < expected.ndim < 4 and expected.shape[-1] > 1:
            np.testing.assert_array_equal(actual.argmax(-1), expected.argmax(-1))
