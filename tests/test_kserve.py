"""The unmodified clients of `kserve`: over TLS to a verified key, and through the proxy."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import graphs
import pytest
from conftest import connect
from cryptography.hazmat.primitives.serialization import Encoding
from onnx import TensorProto
from support import PATIENCE, ROOT, Server, attested_certificate
from test_proxy import Proxy

import blindai

PYTHON = ROOT / ".cache/kserve-client/bin/python"
ASKS = ROOT / "tests/kserve_client.py"
MODELS = {"FP32": TensorProto.FLOAT, "INT64": TensorProto.INT64, "BYTES": TensorProto.STRING}
PROTOCOLS = ("rest", "grpc")
WAYS = ("direct", "proxy")

TEXTS = [text.encode().hex() for text in ("", "ünïcode", "a\nb")]
VALUES = {"FP32": [0.5, -1.25, 3e38], "INT64": [0, 2**53 + 1, -(2**63)], "BYTES": TEXTS}
CASES = [
    {"datatype": datatype, "values": values, "binary": binary, "binary_output": output}
    for datatype, values in VALUES.items()
    for binary, output in ((True, True), (True, False), (False, True), (False, False))
]


@pytest.fixture(scope="module")
def models(client: blindai.Client) -> Iterator[dict[str, str]]:
    names = {datatype: f"kserve-{datatype.lower()}" for datatype in MODELS}
    for datatype, name in names.items():
        client.models.upload(graphs.identity(MODELS[datatype]), name=name)
    yield names
    for name in names.values():
        client.models.delete(name)


@pytest.fixture(scope="module")
def told(
    server: Server, client: blindai.Client, models: dict[str, str], tmp_path_factory
) -> dict[tuple[str, str], dict]:
    """What the clients say of their answers, by protocol and way."""
    folder = tmp_path_factory.mktemp("kserve")
    root = folder / "attested.pem"
    root.write_bytes(attested_certificate(server, client).public_bytes(Encoding.PEM))
    direct = {"url": f"https://{server.address}", "address": server.address, "root": str(root)}
    with Proxy(folder, server.address) as proxy:
        proxy.wait_until(forwards=True)
        address = f"127.0.0.1:{proxy.port}"
        through = {"url": f"http://{address}", "address": address, "root": None}
        return {
            (protocol, way): ask(protocol, models, reach)
            for protocol in PROTOCOLS
            for way, reach in (("direct", direct), ("proxy", through))
        }


def ask(protocol: str, models: dict[str, str], reach: dict) -> dict:
    done = run(protocol, models, reach)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def run(protocol: str, models: dict[str, str], reach: dict) -> subprocess.CompletedProcess[str]:
    asked = {"protocol": protocol, "models": models, "cases": CASES, **reach}
    # Not the folder of the script: its modules are for the other environment.
    return subprocess.run(
        [PYTHON, "-P", ASKS],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@pytest.fixture(params=[(protocol, way) for protocol in PROTOCOLS for way in WAYS], ids="-".join)
def answers(told, request: pytest.FixtureRequest) -> dict:
    return told[request.param]


def test_health(answers: dict):
    assert (answers["live"], answers["ready"], answers["model ready"]) == (True, True, True)


def test_metadata(answers: dict, models: dict[str, str]):
    metadata = answers["metadata"]
    assert (metadata["name"], metadata["versions"]) == (models["FP32"], ["1"])
    for side, name in (("inputs", "x"), ("outputs", "y")):
        (tensor,) = metadata[side]
        assert (tensor["name"], tensor["datatype"], tensor["shape"]) == (name, "FP32", [-1])


DTYPES = {"FP32": "float32", "INT64": "int64", "BYTES": "object"}


def test_tensors(answers: dict, models: dict[str, str]):
    assert len(answers["answers"]) == len(CASES)
    for case, got in zip(CASES, answers["answers"], strict=True):
        datatype = case["datatype"]
        assert got["values"] == approximate(case), case
        assert (got["name"], got["datatype"], got["shape"]) == ("y", datatype, [3]), case
        assert (got["dtype"], got["id"]) == (DTYPES[datatype], "mine"), case
        assert got["model"] == models[datatype]


def approximate(case: dict) -> list:
    """A float of 32 bits has fewer digits than JSON."""
    values = case["values"]
    return pytest.approx(values) if case["datatype"] == "FP32" else values


def test_refusals(answers: dict, request: pytest.FixtureRequest):
    is_rest = "rest" in request.node.name
    absent, wrong = answers["absent"], answers["wrong type"]
    assert absent["status"] == (404 if is_rest else "NOT_FOUND")
    assert "model-not-found: " in absent["text"]
    assert wrong["status"] == (400 if is_rest else "INVALID_ARGUMENT")
    assert "input-dtype: " in wrong["text"]
    assert answers["absent ready"] == {"gives": "False"}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_another_key_gets_nothing(server: Server, models: dict[str, str], tmp_path, protocol: str):
    """The root is that of another server: above, the key was looked at."""
    with Server(tmp_path / "other") as other, connect(other) as client:
        root = tmp_path / "other.pem"
        root.write_bytes(attested_certificate(other, client).public_bytes(Encoding.PEM))
    reach = {"url": f"https://{server.address}", "address": server.address, "root": str(root)}
    done = run(protocol, models, reach)
    assert done.returncode != 0
    assert "CERTIFICATE_VERIFY_FAILED" in done.stderr, done.stderr[-2000:]
