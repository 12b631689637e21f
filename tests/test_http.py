"""The HTTP API, spoken by hand: what any client of the Open Inference Protocol may rely on."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator

import graphs
import numpy as np
import pytest
from onnx import TensorProto
from support import Answer, Http, Server

HEADER = "Inference-Header-Content-Length"


@pytest.fixture
def http(server: Server) -> Iterator[Http]:
    with server.http() as connection:
        yield connection


@pytest.fixture
def add(http: Http, model: str) -> str:
    """The path of a model that adds two vectors of any length."""
    assert http.request("PUT", f"/v1/models/{model}", graphs.add(["n"])).status == 201
    return f"/v2/models/{model}"


def assert_error(answer: Answer, status: int, code: str) -> dict:
    """An error says the same in its status, code and words, and what to do about it."""
    error = answer.json
    assert (answer.status, error["code"]) == (status, code), error
    assert error["fact"]
    assert error["error"].startswith(f"{code}: {error['fact']}")
    assert error["remedy"] in error["error"]
    assert error["request_id"] == answer.headers["x-request-id"]
    assert answer.headers["content-type"] == "application/json"
    return error


def vector(name: str, *values: float) -> dict:
    return {"name": name, "datatype": "FP32", "shape": [len(values)], "data": list(values)}


def binary_request(*tensors: tuple[str, np.ndarray], **header) -> tuple[bytes, str]:
    """A body of the binary tensor extension, and the length of its header."""
    entries = [
        {
            "name": name,
            "datatype": "FP32",
            "shape": list(array.shape),
            "parameters": {"binary_data_size": array.nbytes},
        }
        for name, array in tensors
    ]
    head = json.dumps({"inputs": entries, **header}).encode()
    return head + b"".join(array.tobytes() for _, array in tensors), str(len(head))


def test_health_on_both_ports(server: Server):
    for port in (server.port, server.public_port):
        with Http(port) as http:
            assert http.get("/v2/health/live").json == {"live": True}
            assert http.get("/v2/health/ready").status == 200


def test_the_public_port_takes_no_data(server: Server):
    with Http(server.public_port) as http:
        assert_error(http.get("/v1/models"), 404, "route-not-found")
        assert_error(http.request("POST", "/v2/models/x/infer", {}), 404, "route-not-found")


def test_server_metadata(http: Http):
    metadata = http.get("/v2").json
    assert metadata["name"] == "blindai"
    assert metadata["version"]
    assert "binary_tensor_data" in metadata["extensions"]


def test_model_metadata_and_readiness(http: Http, add: str):
    metadata = http.get(add).json
    assert metadata["name"] == add.rpartition("/")[2]
    assert metadata["versions"] == ["1"]
    assert metadata["inputs"] == [
        {"name": name, "datatype": "FP32", "shape": [-1]} for name in ("a", "b")
    ]
    assert metadata["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [-1]}]
    assert http.get(f"{add}/versions/1").json == metadata
    assert http.get(f"{add}/ready").json == {"name": metadata["name"], "ready": True}
    assert http.get(f"{add}/versions/1/ready").status == 200
    assert_error(http.get(f"{add}/versions/2/ready"), 404, "model-not-found")


def test_inference_in_json(http: Http, add: str):
    body = {"id": "42", "inputs": [vector("a", 1, 2), vector("b", 0.5, -2)]}
    answer = http.request("POST", f"{add}/infer", body)
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json["id"] == "42"
    assert answer.json["model_name"] == add.rpartition("/")[2]
    assert answer.json["model_version"] == "1"
    (output,) = answer.json["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("y", "FP32", [2])
    assert output["data"] == [1.5, 0.0]


def test_nested_data_is_taken(http: Http, model: str):
    http.request("PUT", f"/v1/models/{model}", graphs.identity(shape=[2, 2]))
    tensor = {"name": "x", "datatype": "FP32", "shape": [2, 2], "data": [[1, 2], [3, 4]]}
    answer = http.request("POST", f"/v2/models/{model}/infer", {"inputs": [tensor]})
    assert answer.json["outputs"][0]["data"] == [1, 2, 3, 4]


def test_inference_in_binary(http: Http, add: str):
    a, b = np.arange(5, dtype=np.float32), np.ones(5, np.float32)
    body, length = binary_request(("a", a), ("b", b), parameters={"binary_data_output": True})
    answer = http.request("POST", f"{add}/versions/1/infer", body, **{HEADER: length})
    assert answer.status == 200, answer.body
    head = int(answer.headers[HEADER])
    (output,) = json.loads(answer.body[:head])["outputs"]
    assert output["parameters"]["binary_data_size"] == 20
    np.testing.assert_array_equal(np.frombuffer(answer.body[head:], np.float32), a + b)


def test_binary_in_and_json_out(http: Http, add: str):
    ones = np.ones(2, np.float32)
    body, length = binary_request(("a", ones), ("b", ones))
    answer = http.request("POST", f"{add}/infer", body, **{HEADER: length})
    assert answer.json["outputs"][0]["data"] == [2, 2]


def test_an_output_says_its_own_format(http: Http, add: str):
    wanted = [{"name": "y", "parameters": {"binary_data": True}}]
    body = {"inputs": [vector("a", 1), vector("b", 2)], "outputs": wanted}
    answer = http.request("POST", f"{add}/infer", body)
    head = int(answer.headers[HEADER])
    assert np.frombuffer(answer.body[head:], np.float32).tolist() == [3]


def test_strings(http: Http, model: str):
    http.request("PUT", f"/v1/models/{model}", graphs.identity(TensorProto.STRING))
    words = ["plain", "", "ünïcode ☂"]
    tensor = {"name": "x", "datatype": "BYTES", "shape": [3], "data": words}
    answer = http.request("POST", f"/v2/models/{model}/infer", {"inputs": [tensor]})
    assert answer.json["outputs"][0]["data"] == words


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"inputs": [vector("a", 1)]}, "input-missing"),
        ({"inputs": [vector("a", 1), vector("b", 1), vector("c", 1)]}, "input-unknown"),
        ({"inputs": [vector("a", 1), vector("a", 1), vector("b", 1)]}, "invalid-request"),
        ({"inputs": [{**vector("a", 1), "datatype": "INT8"}, vector("b", 1)]}, "input-dtype"),
        ({"inputs": [{**vector("a", 1), "shape": [1, 1]}, vector("b", 1)]}, "input-shape"),
        ({"inputs": [{**vector("a", 1), "shape": [2]}, vector("b", 1)]}, "input-data"),
        ({"inputs": [{**vector("a", 1), "data": ["x"]}, vector("b", 1)]}, "input-data"),
        ({"outputs": [{"name": "z"}]}, "output-unknown"),
        ({"inputs": "none"}, "invalid-request"),
    ],
)
def test_requests_that_do_not_fit(http: Http, add: str, change: dict, code: str):
    body = {"inputs": [vector("a", 1), vector("b", 1)], **change}
    assert_error(http.request("POST", f"{add}/infer", body), 400, code)


def test_bodies_that_cannot_be_read(http: Http, add: str):
    for body in (b"", b"{", b"[]", b"\xff\xfe", b'{"inputs": [' * 500):
        assert_error(http.request("POST", f"{add}/infer", body), 400, "invalid-request")
    for length in ("-1", "many", "99999"):
        answer = http.request("POST", f"{add}/infer", b"{}", **{HEADER: length})
        assert_error(answer, 400, "invalid-request")


def test_binary_sizes_must_add_up(http: Http, add: str):
    ones = np.ones(2, np.float32)
    body, length = binary_request(("a", ones), ("b", ones))
    for wrong in (body[:-1], body + b"\0", body[: int(length)]):
        answer = http.request("POST", f"{add}/infer", wrong, **{HEADER: length})
        assert answer.status == 400, answer.body
        assert answer.json["code"] in ("input-data", "invalid-request")


def test_wrong_paths_and_methods(http: Http):
    assert_error(http.get("/v3"), 404, "route-not-found")
    assert_error(http.request("POST", "/v1/models"), 405, "method-not-allowed")
    assert_error(http.get("/v2/models/none"), 404, "model-not-found")
    assert_error(
        http.request("POST", "/v2/models/none/infer", {"inputs": []}), 404, "model-not-found"
    )
    assert_error(http.request("DELETE", "/v1/models/none"), 404, "model-not-found")
    assert_error(http.request("PUT", "/v1/models/.hidden", b"x"), 400, "invalid-request")


def test_a_request_id_comes_back(http: Http):
    answer = http.get("/v3", X_Request_Id="mine-1")
    assert answer.json["request_id"] == answer.headers["x-request-id"] == "mine-1"
    forged = http.get("/v3", X_Request_Id="a b\tc")
    assert forged.headers["x-request-id"] != "a b\tc"


def test_upload_in_chunks_of_unknown_length(http: Http, model: str):
    content = graphs.add([3])
    chunks = (content[i : i + 7] for i in range(0, len(content), 7))
    answer = http.request("PUT", f"/v1/models/{model}", chunks)
    assert answer.status == 201, answer.body
    info = answer.json
    assert (info["name"], info["version"], info["size_bytes"]) == (model, "1", len(content))
    assert info["digest"] == f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert [(i["name"], i["dtype"], i["shape"]) for i in info["signature"]["inputs"]] == [
        ("a", "FP32", [3]),
        ("b", "FP32", [3]),
    ]


def test_versions(http: Http, model: str):
    path = f"/v1/models/{model}"
    first, second, third = (graphs.add([n]) for n in (1, 2, 3))
    assert http.request("PUT", path, first).json["version"] == "1"
    again = http.request("PUT", path, first)
    assert (again.status, again.json["version"]) == (200, "1")
    assert http.request("PUT", path, second).json["version"] == "2"
    assert http.request("PUT", f"{path}/versions/rc-1", third).json["version"] == "rc-1"
    assert_error(http.request("PUT", f"{path}/versions/1", third), 409, "model-exists")
    listed = [m for m in http.get("/v1/models").json["models"] if m["name"] == model]
    assert sorted(m["version"] for m in listed) == ["1", "2", "rc-1"]
    assert http.get(f"{path}/versions/1").json["signature"]["inputs"][0]["shape"] == [1]
    deleted = http.request("DELETE", f"{path}/versions/2").json["deleted"]
    assert [m["version"] for m in deleted] == ["2"]
    assert_error(http.get(f"{path}/versions/2"), 404, "model-not-found")
    deleted = http.request("DELETE", path).json["deleted"]
    assert sorted(m["version"] for m in deleted) == ["1", "rc-1"]
    assert_error(http.get(path), 404, "model-not-found")


def test_the_announced_digest_is_checked(http: Http, model: str):
    content, path = graphs.add([4]), f"/v1/models/{model}"

    def put(digest: bytes) -> Answer:
        text = f"sha-256=:{base64.b64encode(digest).decode()}:"
        return http.request("PUT", path, content, Content_Digest=text)

    assert_error(put(hashlib.sha256(b"other").digest()), 400, "digest-mismatch")
    assert_error(put(b"short"), 400, "invalid-request")
    assert_error(http.get(path), 404, "model-not-found")
    assert put(hashlib.sha256(content).digest()).status == 201


def test_evidence_for_a_nonce(server: Server):
    for port in (server.port, server.public_port):
        with Http(port) as http:
            answer = http.get(f"/v1/attestation?nonce={'ab' * 32}")
            assert answer.json["format"] == "blindai-evidence-v1"
            assert bytes.fromhex("ab" * 32) in base64.b64decode(answer.json["claims"])
            for query in ("nonce=short", "nonse=1", f"nonce={'xy' * 32}"):
                assert_error(http.get(f"/v1/attestation?{query}"), 400, "invalid-request")


@pytest.mark.parametrize("path", ["/v1/models/%ff", "/v2/models/%ff", "/v2/models/a/versions/%ff"])
def test_a_path_that_is_not_text(http: Http, path: str):
    assert_error(http.get(path), 400, "invalid-request")
