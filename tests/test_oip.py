"""The Open Inference Protocol as Triton's clients speak it: the same over HTTP and over gRPC."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator

import graphs
import ml_dtypes
import numpy as np
import pytest
import triton
from onnx import TensorProto
from support import Server

import blindai

EVERY_TYPE = {
    "BOOL": (TensorProto.BOOL, np.array([True, False])),
    "UINT8": (TensorProto.UINT8, np.array([0, 255], np.uint8)),
    "UINT16": (TensorProto.UINT16, np.array([1, 65535], np.uint16)),
    "UINT32": (TensorProto.UINT32, np.array([1, 2**32 - 1], np.uint32)),
    "UINT64": (TensorProto.UINT64, np.array([1, 2**64 - 1], np.uint64)),
    "INT8": (TensorProto.INT8, np.array([-128, 127], np.int8)),
    "INT16": (TensorProto.INT16, np.array([-(2**15), 2**15 - 1], np.int16)),
    "INT32": (TensorProto.INT32, np.array([-(2**31), 2**31 - 1], np.int32)),
    "INT64": (TensorProto.INT64, np.array([-(2**63), 2**63 - 1], np.int64)),
    "FP16": (TensorProto.FLOAT16, np.array([0.5, -65504], np.float16)),
    "BF16": (TensorProto.BFLOAT16, np.array([0.5, -3e38], ml_dtypes.bfloat16)),
    "FP32": (TensorProto.FLOAT, np.array([0.1, np.nan], np.float32)),
    "FP64": (TensorProto.DOUBLE, np.array([0.1, -np.inf], np.float64)),
    "BYTES": (TensorProto.STRING, np.array([b"", "ünïcode ☂".encode()], np.object_)),
}


@pytest.fixture(scope="module", params=["http", "grpc"])
def oip(request, server: Server, client: blindai.Client) -> Iterator[triton.Client]:
    module = getattr(triton.tritonclient, request.param)
    oip = triton.connect(module, server, client)
    yield oip
    oip.close()


@pytest.fixture
def split(client: blindai.Client, model: str) -> str:
    client.models.upload(graphs.split(), name=model)
    return model


def test_health_and_metadata(oip: triton.Client, split: str):
    assert oip.is_server_live()
    assert oip.is_server_ready()
    metadata = oip.get_server_metadata()
    assert metadata["name"] == "blindai"
    assert "classification" in metadata["extensions"]
    assert oip.is_model_ready(split)
    assert oip.is_model_ready(split, "1")
    assert not oip.is_model_ready(split, "2")
    assert not oip.is_model_ready("none")
    metadata = oip.get_model_metadata(split)
    assert (metadata["name"], metadata["versions"]) == (split, ["1"])
    assert [tensor["name"] for tensor in metadata["outputs"]] == ["sum", "difference"]
    first = metadata["inputs"][0]
    assert (first["name"], first["datatype"]) == ("a", "FP32")
    assert [int(size) for size in first["shape"]] == [-1]


def test_a_client_trusts_the_attested_key_only(client: blindai.Client, server: Server, tmp_path):
    with Server(tmp_path) as other:
        certificate = triton.attested_certificate(server, client)
        stranger = triton.Client(triton.tritonclient.http, other, certificate)
        with pytest.raises(ssl.SSLCertVerificationError):
            stranger.is_server_live()
        stranger = triton.Client(triton.tritonclient.grpc, other, certificate)
        error = stranger.refused(stranger.is_server_live)
        assert error.status() == "StatusCode.UNAVAILABLE"
        assert "CERTIFICATE_VERIFY_FAILED" in error.message()


@pytest.mark.parametrize("datatype", EVERY_TYPE)
def test_every_type(oip: triton.Client, client: blindai.Client, model: str, datatype: str):
    onnx_type, array = EVERY_TYPE[datatype]
    client.models.upload(graphs.identity(onnx_type), name=model)
    answer = oip.infer(model, oip.inputs(x=(array, datatype)))
    got = answer.as_numpy("y")
    assert got.dtype == array.dtype
    np.testing.assert_array_equal(got, array)


@pytest.mark.parametrize("shape", [[], [0], [2, 0, 3], [1, 1], [3, 2]])
def test_every_shape(oip: triton.Client, client: blindai.Client, model: str, shape: list[int]):
    sizes = [f"d{i}" for i in range(len(shape))]
    client.models.upload(graphs.identity(shape=sizes), name=model)
    array = np.asarray(np.random.RandomState(0).rand(*shape), np.float32)
    answer = oip.infer(model, oip.inputs(x=array))
    got = answer.as_numpy("y")
    assert list(got.shape) == shape
    np.testing.assert_array_equal(got, array)


def test_several_inputs_and_outputs(oip: triton.Client, split: str):
    a, b = np.array([3, 4], np.float32), np.array([1, 2], np.float32)
    # In whatever order they come.
    for inputs in (oip.inputs(a=a, b=b), oip.inputs(b=b, a=a)):
        answer = oip.infer(split, inputs)
        np.testing.assert_array_equal(answer.as_numpy("sum"), a + b)
        np.testing.assert_array_equal(answer.as_numpy("difference"), a - b)
        answer = oip.infer(split, inputs, outputs=oip.outputs("difference"))
        np.testing.assert_array_equal(answer.as_numpy("difference"), a - b)
        assert answer.as_numpy("sum") is None


def test_a_large_tensor(oip: triton.Client, client: blindai.Client, model: str):
    client.models.upload(graphs.identity(), name=model)
    array = np.random.RandomState(0).rand(3_000_000).astype(np.float32)
    answer = oip.infer(model, oip.inputs(x=array))
    np.testing.assert_array_equal(answer.as_numpy("y"), array)


def test_ids_and_versions(oip: triton.Client, client: blindai.Client, model: str):
    client.models.upload(graphs.identity(shape=[1]), name=model)
    client.models.upload(graphs.identity(shape=[2]), name=model)
    for version, size in (("1", 1), ("2", 2), ("", 2)):
        inputs = oip.inputs(x=np.ones(size, np.float32))
        answer = oip.infer(model, inputs, model_version=version, request_id=f"r-{size}")
        response = answer.get_response(as_json=True) if oip.is_grpc else answer.get_response()
        assert response["id"] == f"r-{size}"
        assert response["model_name"] == model
        assert response["model_version"] == (version or "2")
    assert sorted(oip.get_model_metadata(model, "1")["versions"]) == ["1", "2"]
    error = oip.refused(oip.infer, model, inputs, model_version="3")
    assert "model-not-found" in error.message()


def vector(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


@pytest.mark.parametrize(
    ("arrays", "code"),
    [
        ({"a": vector(1)}, "input-missing"),
        ({"a": vector(1), "b": vector(1), "c": vector(1)}, "input-unknown"),
        ({"a": np.array([1]), "b": vector(1)}, "input-dtype"),
        ({"a": vector(1).reshape(1, 1), "b": vector(1)}, "input-shape"),
        ({"a": vector(1, 2, 3), "b": vector(1, 2)}, "model-failed"),
    ],
)
def test_requests_that_do_not_fit(oip: triton.Client, split: str, arrays: dict, code: str):
    error = oip.refused(oip.infer, split, oip.inputs(**arrays))
    assert error.message().startswith(f"{code}: "), error
    status = {"model-failed": ("422", "FAILED_PRECONDITION")}
    http, grpc = status.get(code, ("400", "INVALID_ARGUMENT"))
    assert error.status() == (f"StatusCode.{grpc}" if oip.is_grpc else http)


def test_what_there_is_not(oip: triton.Client, split: str):
    inputs = oip.inputs(a=vector(1), b=vector(1))
    not_found = "StatusCode.NOT_FOUND" if oip.is_grpc else "404"
    assert oip.refused(oip.infer, "none", inputs).status() == not_found
    assert oip.refused(oip.get_model_metadata, "none").status() == not_found
    assert oip.refused(oip.get_model_config, "none").status() == not_found
    error = oip.refused(oip.infer, split, inputs, outputs=oip.outputs("product"))
    assert error.message().startswith("output-unknown: ")
    # Extensions that are not in the metadata.
    for call in (oip.get_trace_settings, oip.get_log_settings, oip.get_system_shared_memory_status):
        error = oip.refused(call)
        assert error.status() == ("StatusCode.UNIMPLEMENTED" if oip.is_grpc else "404")


def test_classification(oip: triton.Client, client: blindai.Client, model: str):
    client.models.upload(graphs.identity(shape=["batch", "classes"]), name=model)
    scores = np.array([[0.1, 0.7, 0.2], [3, -1, 3]], np.float32)
    inputs = oip.inputs(x=scores)
    answer = oip.infer(model, inputs, outputs=oip.outputs("y", class_count=2))
    got = [[text.decode() for text in row] for row in answer.as_numpy("y")]
    assert got == [["0.7:1", "0.2:2"], ["3.0:0", "3.0:2"]]
    answer = oip.infer(model, inputs, outputs=oip.outputs("y", class_count=9))
    assert answer.as_numpy("y").shape == (2, 3)


def test_parameters(oip: triton.Client, split: str):
    inputs = oip.inputs(a=vector(1), b=vector(1))
    others = {"text": "x", "flag": True, "number": 7, "fraction": 0.5}
    answer = oip.infer(split, inputs, priority=3, timeout=60_000_000, parameters=others)
    assert answer.as_numpy("sum") == [2]
    for refused in ({"sequence_id": 7}, {"sequence_id": "s", "sequence_start": True}):
        error = oip.refused(oip.infer, split, inputs, **refused)
        assert error.message().startswith("invalid-request: the parameter")


def test_a_request_ends_in_the_time_it_asks_for(
    oip: triton.Client, client: blindai.Client, model: str
):
    client.models.upload(graphs.loop(), name=model)
    forever = oip.inputs(rounds=np.array(2**62))
    error = oip.refused(oip.infer, model, forever, timeout=300_000)
    assert error.message().startswith("deadline-exceeded: ")
    assert error.status() == ("StatusCode.DEADLINE_EXCEEDED" if oip.is_grpc else "504")
    answer = oip.infer(model, oip.inputs(rounds=np.array(3)))
    assert answer.as_numpy("total") == 3


def test_configuration(oip: triton.Client, client: blindai.Client, model: str):
    client.models.upload(graphs.identity(TensorProto.STRING, [2, "n"]), name=model)
    config = oip.get_model_config(model)
    config = config["config"] if oip.is_grpc else config
    assert (config["name"], config["backend"]) == (model, "onnxruntime")
    (tensor,) = config["input"]
    assert (tensor["name"], tensor["data_type"]) == ("x", "TYPE_STRING")
    assert [int(size) for size in tensor["dims"]] == [2, -1]
    assert config["output"][0]["name"] == "y"
    assert oip.get_model_config(model, "1")


def test_statistics_count(oip: triton.Client, split: str):
    begun = time.time() * 1000
    good = oip.inputs(a=vector(1), b=vector(1))
    bad = oip.inputs(a=vector(1))
    for _ in range(3):
        oip.infer(split, good)
    oip.refused(oip.infer, split, bad)
    (stats,) = oip.get_inference_statistics(split)["model_stats"]
    assert (stats["name"], stats["version"]) == (split, "1")
    assert begun - 1000 <= int(stats["last_inference"]) <= time.time() * 1000 + 1000
    assert int(stats["inference_count"]) == 3
    ended = stats["inference_stats"]
    assert (int(ended["success"]["count"]), int(ended["fail"]["count"])) == (3, 1)
    assert int(ended["success"]["ns"]) > 0
    everything = oip.get_inference_statistics()["model_stats"]
    assert split in [model["name"] for model in everything]
    assert oip.get_inference_statistics(split, "1")
    assert "model-not-found" in oip.refused(oip.get_inference_statistics, split, "2").message()


def test_the_repository(oip: triton.Client, split: str):
    index = oip.get_model_repository_index()
    index = index["models"] if oip.is_grpc else index
    (entry,) = [entry for entry in index if entry["name"] == split]
    assert (entry["version"], entry["state"]) == ("1", "READY")
    # What is there is loaded; what is not has to be uploaded; nothing is lost by unloading it.
    oip.load_model(split)
    assert "PUT /v1/models" in oip.refused(oip.load_model, "none").message()
    error = oip.refused(oip.load_model, split, config="{}")
    assert error.status() == ("StatusCode.UNIMPLEMENTED" if oip.is_grpc else "405")
    error = oip.refused(oip.unload_model, split)
    assert error.status() == ("StatusCode.UNIMPLEMENTED" if oip.is_grpc else "405")
    assert oip.is_model_ready(split)
