"""ONNX's own operator tests: through the server as with the bare library.

Each case is one operator with inputs and the outputs it must give. The library does not pass all
of them; the server must pass exactly those that it passes, and say clearly what is wrong with the
rest. On tract it passes fewer, but gives no answer that is wrong where the library is right.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import SUMMARY, connect
from onnx import TensorProto, numpy_helper
from support import Server

import blindai

CASES = Path(onnx.__file__).parent / "backend" / "test" / "data" / "node"
# How many there are in the pinned wheel: fewer would mean that something is not looked at.
COUNT = 1615
# The element types of the Open Inference Protocol, which the server carries.
CARRIED = {
    *(TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16),
    *(TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64),
    *(TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64),
    *(TensorProto.BOOL, TensorProto.STRING),
}
BF16 = "tensor(bfloat16)"
THREADS = 4
RELATIVE, ABSOLUTE = 1e-3, 1e-7


@dataclass
class Result:
    """What became of one case."""

    name: str
    carried: bool
    bare: str
    served: str

    @property
    def passed(self) -> tuple[bool, bool]:
        return self.bare == "pass", self.served == "pass"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    """Every case, both ways, on a server of its own."""
    return run_all(tmp_path_factory.mktemp("node"), "onnxruntime")


@pytest.fixture(scope="module")
def tract_results(tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    """Every case, with the bare library and on a server without it."""
    return run_all(tmp_path_factory.mktemp("node-tract"), "tract")


def run_all(folder: Path, engine: str) -> list[Result]:
    with (
        Server(folder, engine={"threads": 1, "kind": engine}) as server,
        connect(server) as client,
        ThreadPoolExecutor(THREADS) as pool,
    ):
        found = list(pool.map(lambda folder: run(folder, client), sorted(CASES.iterdir())))
        assert client.models.list() == []
    counts = Counter((r.carried, r.bare.split(":")[0], r.served.split(":")[0]) for r in found)
    SUMMARY[f"ONNX node tests, {engine}"] = [
        f"{number:5}  {'tensors' if carried else 'other types'}: library {bare}, server {served}"
        for (carried, bare, served), number in sorted(counts.items(), reverse=True)
    ]
    return found


def test_there_are_as_many_as_there_should_be(results: list[Result]):
    assert len(results) == COUNT
    assert sum(result.bare == "pass" for result in results if result.carried) > 1200


def test_the_server_passes_what_the_library_passes(results: list[Result]):
    differing = [r for r in results if r.carried and r.passed[0] != r.passed[1]]
    assert not differing, "\n".join(map(str, differing))


def test_the_rest_is_refused_clearly(results: list[Result]):
    refused = [r for r in results if not r.passed[1]]
    unclear = [r for r in refused if not r.served.startswith(("wrong", "model-", "input-"))]
    assert not unclear, "\n".join(map(str, unclear))


def test_what_cannot_be_carried_is_refused_at_the_upload(results: list[Result]):
    others = [r for r in results if not r.carried]
    wrong = [r for r in others if not r.served.startswith("model-")]
    assert others
    assert not wrong, "\n".join(map(str, wrong))


def test_tract_gives_no_wrong_answer(tract_results: list[Result]):
    wrong = [r for r in tract_results if r.carried and r.passed == (True, False)]
    wrong = [r for r in wrong if r.served == "wrong"]
    assert not wrong, "\n".join(map(str, wrong))


def test_tract_passes_many(tract_results: list[Result]):
    assert sum(result.served == "pass" for result in tract_results if result.carried) > 700


def test_tract_refuses_the_rest_clearly(tract_results: list[Result]):
    refused = [r for r in tract_results if r.served not in ("pass", "wrong")]
    unclear = [r for r in refused if not r.served.startswith(("model-", "input-"))]
    assert not unclear, "\n".join(map(str, unclear))


def run(folder: Path, client: blindai.Client) -> Result:
    """One case, in process and through the server."""
    model = onnx.load(folder / "model.onnx")
    carried = all(is_carried(v) for v in [*model.graph.input, *model.graph.output])
    sets = sorted(folder.glob("test_data_set_*")) if carried else []
    data = [(tensors(s, "input"), tensors(s, "output")) for s in sets]
    return Result(folder.name, carried, run_bare(folder, data), run_served(folder, client, data))


def is_carried(spec: onnx.ValueInfoProto) -> bool:
    kind = spec.type
    return kind.WhichOneof("value") == "tensor_type" and kind.tensor_type.elem_type in CARRIED


Tensors = list[onnx.TensorProto]


def tensors(folder: Path, kind: str) -> Tensors:
    """The stored inputs or outputs of a case, in their order."""
    paths = sorted(folder.glob(f"{kind}_*.pb"), key=lambda p: int(p.stem.rpartition("_")[2]))
    return [onnx.load_tensor(path) for path in paths]


def run_bare(folder: Path, data: list[tuple[Tensors, Tensors]]) -> str:
    """What the library does in this process."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(
            folder / "model.onnx", options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        return f"cannot load: {type(error).__name__}"
    if not data:
        return "not compared"
    for inputs, expected in data:
        try:
            got = run_session(session, inputs)
        except Exception as error:
            return f"cannot run: {type(error).__name__}"
        if not all(equal(g, to_array(e)) for g, e in zip(got, expected, strict=True)):
            return "wrong"
    return "pass"


def run_session(session: onnxruntime.InferenceSession, inputs: Tensors) -> list[np.ndarray]:
    """The outputs of a model; its numpy interface lacks BF16, its other one lacks strings."""
    names = [spec.name for spec in session.get_inputs()]
    specs = [*session.get_inputs(), *session.get_outputs()]
    if not any(spec.type == BF16 for spec in specs):
        arrays = {name: to_array(t) for name, t in zip(names, inputs, strict=False)}
        return session.run(None, arrays)
    values = {name: to_ort(t) for name, t in zip(names, inputs, strict=False)}
    outputs = [spec.name for spec in session.get_outputs()]
    return [from_ort(value) for value in session.run_with_ort_values(outputs, values)]


def run_served(folder: Path, client: blindai.Client, data: list[tuple[Tensors, Tensors]]) -> str:
    """What the server does: "pass", "wrong", or the code of its error."""
    name = folder.name
    try:
        model = client.models.upload(folder / "model.onnx", name=name, progress=False)
    except blindai.BlindAIError as error:
        return f"{error.code}: {error.fact}"
    try:
        for inputs, expected in data:
            names = [spec.name for spec in model.signature.inputs]
            given = {n: to_array(t) for n, t in zip(names, inputs, strict=False)}
            got = list(client.infer(name, given).values())
            if not all(equal(g, to_array(e)) for g, e in zip(got, expected, strict=True)):
                return "wrong"
        return "pass"
    except blindai.BlindAIError as error:
        return f"{error.code}: {error.fact}"
    finally:
        client.models.delete(name)


def to_array(tensor: onnx.TensorProto) -> np.ndarray:
    """A stored tensor as numpy has it; strings as str."""
    array = numpy_helper.to_array(tensor)
    if tensor.data_type == TensorProto.STRING:
        texts = [t.decode() if isinstance(t, bytes) else t for t in array.ravel()]
        array = np.array(texts, object).reshape(array.shape)
    return array


def to_ort(tensor: onnx.TensorProto) -> onnxruntime.OrtValue:
    array = to_array(tensor)
    if tensor.data_type == TensorProto.BFLOAT16:
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(
            array.view(np.uint16), TensorProto.BFLOAT16
        )
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def from_ort(value: onnxruntime.OrtValue) -> np.ndarray:
    if value.data_type() != BF16:
        return value.numpy()
    # numpy has no BF16, so that the library does not hand it out: read its memory.
    shape = value.shape()
    count = int(np.prod(shape))
    bits = np.array((ctypes.c_uint16 * count).from_address(value.data_ptr()), np.uint32)
    return (bits << np.uint32(16)).view(np.float32).reshape(shape)


def equal(got: np.ndarray, expected: np.ndarray) -> bool:
    """Whether an output is what it should be, by the tolerances of ONNX's own runner."""
    got, expected = widen(got), widen(expected)
    if got.dtype != expected.dtype or got.shape != expected.shape:
        return False
    if expected.dtype == object:
        return got.tolist() == expected.tolist()
    return np.allclose(got, expected, RELATIVE, ABSOLUTE, equal_nan=True)


def widen(array: np.ndarray) -> np.ndarray:
    """BF16 as float32, which holds all its values; everything else as it is."""
    if array.dtype.name == "bfloat16":
        return array.astype(np.float32)
    return array
