"""BlindAI 0.3: its original client against this server, and its API here with signed answers."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cbor2
import graphs
import grpc
import inputs
import legacy
import numpy as np
import pytest
from conftest import SUMMARY
from onnx import TensorProto
from support import PATIENCE, Server, wait_for

import blindai
from blindai.client import (
    BlindAiClient,
    ModelDatumType,
    RunModelResponse,
    SignatureError,
    SignedResponse,
    UploadModelResponse,
    VersionError,
)
from blindai.dcap_attestation import Policy
from tools import legacy_client, models

TITLE = "BlindAI 0.3.1, the original client"
TYPES = {
    "F32": (TensorProto.FLOAT, [0.5, -2.0, 300]),
    "F64": (TensorProto.DOUBLE, [0.1, -2.0, 3]),
    "I32": (TensorProto.INT32, [1, -2, 2**31 - 1]),
    "I64": (TensorProto.INT64, [1, -(2**63), 2**40]),
    "U32": (TensorProto.UINT32, [0, 1, 2**32 - 1]),
    "U64": (TensorProto.UINT64, [0, 1, 2**64 - 1]),
}
OLD_POLICY = """
mr_enclave = "{mr_enclave}"
misc_select_hex = "0x0"
misc_mask_hex = "0xffffffff"
attributes_flags_hex = "0x4"
attributes_xfrm_hex = "0x3"
attributes_mask_flags_hex = "0x7"
attributes_mask_xfrm_hex = "0x3"
allow_debug = {allow_debug}
"""
THREE = cbor2.dumps([1.0, 2.0, 3.0])


class Genuine:
    """The original client, under an old Python."""

    def __init__(self, python: Path):
        self.python = python

    def __call__(self, step: str, server: Server, **arguments: Any) -> Any:
        arguments["ports"] = [server.public_port, server.port]
        done = subprocess.run(
            [self.python, Path(__file__).parent / "genuine.py"],
            input=json.dumps([step, arguments]),
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE,
            check=False,
            env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")},
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


def environment(version: str) -> Path:
    python = legacy_client.environment(version)
    if python is None:
        reason = f"Python {version} is not installed"
        SUMMARY.setdefault(TITLE, []).append(f"NOT TESTED on Python {version}: {reason}")
        pytest.skip(reason)
    return python


@pytest.fixture(scope="module", params=legacy_client.VERSIONS)
def genuine(request: pytest.FixtureRequest) -> Genuine:
    return Genuine(environment(request.param))


@pytest.fixture(scope="module")
def newest() -> Genuine:
    """One of them, for what does not depend on the Python."""
    for version in reversed(legacy_client.VERSIONS):
        if legacy_client.find(version):
            return Genuine(environment(version))
    reason = "no Python is installed that it runs on"
    SUMMARY.setdefault(TITLE, []).append(f"NOT TESTED: {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("legacy"), limits={"models": 200}) as server:
        yield server


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(graphs.identity(shape=[1, 3]))
    return path


@pytest.fixture
def client(server: Server) -> Iterator[BlindAiClient]:
    with BlindAiClient() as client:
        connect(client, server)
        yield client


@pytest.fixture
def exchange(server: Server) -> Iterator[legacy.Exchange]:
    with legacy.Exchange(server) as exchange:
        yield exchange


def connect(client: BlindAiClient, server: Server, **options: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", blindai.SimulationWarning)
        client.connect_server("localhost", simulation=True, attested_port=server.port, **options)


def sha256(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


def code(call: Callable[[], object]) -> tuple[str, str]:
    """How a call was refused: the status of gRPC, and our code."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    codes = dict(caught.value.trailing_metadata()) | dict(caught.value.initial_metadata() or ())
    return caught.value.code().name, codes.get("blindai-code", "")


def test_the_original_client_is_served(genuine: Genuine, server: Server, tmp_path: Path):
    session = []
    for name, (kind, data) in TYPES.items():
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(graphs.identity(kind, [1, 3]))
        session.append([name, str(path), [1, 3], name, data])
    done = genuine("session", server, folder=str(tmp_path), models=session)
    assert done["connected"] is False
    assert done["answers"] == [[data, data] for _, data in TYPES.values()]
    # Its files are read here, and the key that it saw is the one that signed them.
    for name, (_, data) in TYPES.items():
        upload, run = UploadModelResponse(), RunModelResponse()
        upload.load_from_file(tmp_path / f"{name}.upload")
        run.load_from_file(tmp_path / f"{name}.run")
        assert upload.is_simulation_mode()
        assert upload.is_signed()
        assert run.output == data
        digest = sha256(tmp_path / f"{name}.onnx")
        key = {"enclave_signing_key": bytes.fromhex(done["key"]), "allow_simulation_mode": True}
        upload.validate(digest, **key)
        run.validate(data, **key, model_hash=digest)
        with pytest.raises(SignatureError, match="enclave_signing_key"):
            upload.validate(digest, allow_simulation_mode=True)
        with pytest.raises(SignatureError, match="signature"):
            upload.validate(digest, enclave_signing_key=bytes(32), allow_simulation_mode=True)
    SUMMARY.setdefault(TITLE, []).append(f"connect, upload, run, sign, load: {genuine.python}")


def test_our_proofs_are_valid_in_the_original(
    genuine: Genuine, server: Server, client: BlindAiClient, model: Path, tmp_path: Path
):
    paths = [str(tmp_path / "upload"), str(tmp_path / "run")]
    client.upload_model(model, shape=(1, 3), sign=True).save_to_file(paths[0])
    data = [1.5, 2, 3.0]
    client.run_model(data, sign=True).save_to_file(paths[1])
    key, digest = client.enclave_signing_key, sha256(model).hex()
    assert key
    assert genuine("validate", server, paths=paths, key=key.hex(), digest=digest, data=data)


def test_the_tutorial_with_the_original_client(newest: Genuine, server: Server, tmp_path: Path):
    samples = tmp_path / "samples.json"
    samples.write_text(json.dumps(inputs.normalised_speech().flatten().tolist()))
    path = models.build("wav2vec2_hello_world")
    done = newest("tutorial", server, model=str(path), samples=str(samples))
    assert inputs.ctc_text(done["output"]) == "HELLO WORLD"
    size = path.stat().st_size / 1e6
    SUMMARY.setdefault(TITLE, []).append(
        f"tutorial: {size:.0f} MB sent and loaded in {done['upload']:.1f} s, "
        f"run in {done['run']:.1f} s"
    )


def test_the_evidence_may_be_renewed(newest: Genuine, tmp_path: Path, model: Path):
    with Server(tmp_path / "renewal", tee={"evidence_seconds": 2}) as server:
        done = newest("renewal", server, model=str(model), shape=[1, 3], seconds=2.5)
        assert server.log.count("evidence renewed") >= 2
    # The last connection sent no model: it runs what was sent last.
    assert done == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]


def test_the_original_refuses_what_it_cannot_verify(
    newest: Genuine, server: Server, tmp_path: Path
):
    policy = tmp_path / "policy.toml"
    policy.write_text(OLD_POLICY.format(mr_enclave="00" * 32, allow_debug="false"))
    certificate = str(server.folder / "tls" / "host_server.pem")
    refused = newest("hardware", server, policy=str(policy), certificate=certificate)
    assert refused == "AttestationError"


def test_it_can_be_switched_off(newest: Genuine, tmp_path: Path, model: Path):
    with Server(tmp_path / "off", legacy={"enabled": False}) as server:
        name, text = newest("refused", server)
        assert name == "ConnectionError"
        assert "switched off" in text
        assert "UNIMPLEMENTED" in text
        with legacy.Exchange(server) as exchange:
            assert code(lambda: exchange.run(THREE)) == ("UNIMPLEMENTED", "method-not-allowed")
        with BlindAiClient() as client:
            connect(client, server)
            client.upload_model(model)
            assert client.run_model([1.0, 2.0, 3.0]).output == [1, 2, 3]
            with pytest.raises(VersionError, match=r"legacy\.enabled"):
                client.run_model([1.0, 2.0, 3.0], sign=True)


def test_each_connection_runs_what_it_sent(server: Server):
    def times(factor: float) -> bytes:
        node = graphs.helper.make_node("Mul", ["x", "factor"], ["y"])
        x, y = (graphs.value(name, graphs.FLOAT, [3]) for name in "xy")
        return graphs.model([node], [x], [y], {"factor": np.float32(factor)})

    def ran(exchange: legacy.Exchange) -> float:
        return cbor2.loads(exchange.run(THREE).run_model_payload.output)[0]

    name = {"model_name": "same.onnx", "input_fact": [3]}
    with legacy.Exchange(server) as one, legacy.Exchange(server) as two:
        one.send(times(2), **name)
        two.send(times(3), **name)
        assert [ran(one), ran(two)] == [2, 3]
        with legacy.Exchange(server) as idle:
            assert ran(idle) == 3
        # What nobody runs any more goes when it is replaced.
        for factor in range(4, 9):
            one.send(times(factor), **name)
        assert [ran(one), ran(two)] == [8, 3]
        with blindai_client(server) as client:
            held = [model for model in client.models.list() if model.name == "same.onnx"]
            assert len(held) == 2
            client.models.delete("same.onnx")
        assert code(lambda: ran(one)) == ("NOT_FOUND", "model-not-found")


def blindai_client(server: Server) -> blindai.Client:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", blindai.SimulationWarning)
        return blindai.connect(server.address, simulation=True)


def test_what_is_declared_of_a_model_must_hold(exchange: legacy.Exchange):
    model = graphs.identity(graphs.INT64, ["n", 3])
    right = {"input_fact": [1, 3], "datum": 3, "datum_output": 3, "model_name": "declared"}
    for wrong, want in (
        ({"datum": 0}, "input-dtype"),
        ({"datum_output": 0}, "input-dtype"),
        ({"datum": 6}, "input-dtype"),
        ({"input_fact": [1, 4]}, "input-shape"),
        ({"input_fact": [3]}, "input-shape"),
        ({"input_fact": [-1, 3]}, "input-shape"),
        ({"input_fact": []}, "input-shape"),
        ({"input_fact": [1] * 65}, "input-shape"),
    ):
        call = {**right, **wrong}
        assert code(lambda call=call: exchange.send(model, **call)) == ("INVALID_ARGUMENT", want)
    for strange in (graphs.identity(TensorProto.BOOL, [3]), graphs.add([3])):
        refused = code(lambda model=strange: exchange.send(model, input_fact=[3]))
        assert refused == ("FAILED_PRECONDITION", "model-unsupported")
    assert code(lambda: exchange.send(b"no model")) == ("FAILED_PRECONDITION", "model-invalid")
    # What was refused is not there, and an open dimension is what was declared.
    exchange.send(model, **right)
    assert code(lambda: exchange.run(cbor2.dumps([1] * 6)))[1] == "input-shape"
    exchange.send(model, **{**right, "input_fact": [2, 3]})
    exchange.run(cbor2.dumps([1] * 6))


@pytest.mark.parametrize(
    ("numbers", "want"),
    [
        (cbor2.dumps([1.0, 2.0]), "input-shape"),
        (cbor2.dumps([1.0] * 4), "input-shape"),
        (cbor2.dumps([[1.0, 2.0, 3.0]]), "input-data"),
        (cbor2.dumps([1.0, 2.0, "3"]), "input-data"),
        (cbor2.dumps([1.0, 2.0, 1e300]), "input-data"),
        (cbor2.dumps(2**70), "input-data"),
        (THREE[:-1], "input-data"),
        (THREE + b"\0", "input-data"),
        (b"\x9b" + b"\xff" * 8, "input-data"),
        (b"", "input-data"),
    ],
)
def test_an_input_must_fit(exchange: legacy.Exchange, numbers: bytes, want: str):
    exchange.send(graphs.identity(shape=[3]), input_fact=[3])
    assert code(lambda: exchange.run(numbers)) == ("INVALID_ARGUMENT", want)


def test_pieces_must_make_one_request(exchange: legacy.Exchange):
    m, model = legacy.messages(), graphs.identity(shape=[3])
    half = len(model) // 2
    fields = {"length": len(model), "input_fact": [3], "model_name": "pieces"}
    pieces = [model[:half], model[half:]]
    exchange.send(model, pieces, **fields)
    exchange.send(model, [model[i : i + 1] for i in range(len(model))], **fields)

    def send(*requests: Any) -> tuple[str, str]:
        return code(lambda: exchange.call("SendModel", requests))

    first = m.SendModelRequest(data=pieces[0], **fields)
    for change in ({"sign": True}, {"length": 1}, {"datum": 1}, {"model_name": "other"}):
        second = m.SendModelRequest(data=pieces[1], **{**fields, **change})
        assert send(first, second) == ("INVALID_ARGUMENT", "invalid-request")
    assert send(first)[1] == "body-incomplete"
    assert send()[1] == send(first, first, first, first)[1] == "invalid-request"
    runs = [m.RunModelRequest(input=THREE[:5]), m.RunModelRequest(input=THREE[5:], sign=True)]
    assert code(lambda: exchange.call("RunModel", runs))[1] == "invalid-request"
    runs[1].sign = False
    assert cbor2.loads(exchange.call("RunModel", runs).run_model_payload.output) == [1, 2, 3]


def test_a_call_that_is_cut_off_leaves_nothing(server: Server, exchange: legacy.Exchange):
    model = graphs.identity(shape=[5])
    piece = legacy.messages().SendModelRequest(
        data=model[:10], length=len(model), input_fact=[5], model_name="cut"
    )

    def cut_off() -> Iterator[Any]:
        yield piece
        raise RuntimeError("the sender is gone")

    assert code(lambda: exchange.call("SendModel", cut_off()))[0] in ("CANCELLED", "UNKNOWN")
    with blindai_client(server) as client:
        assert "cut" not in [held.name for held in client.models.list()]


def test_sizes_are_limited_before_anything_is_held(tmp_path: Path):
    limits = {"body_bytes": 1 << 16, "model_bytes": 1 << 16, "idle_seconds": 1}
    with (
        Server(tmp_path / "small", limits=limits) as server,
        legacy.Exchange(server) as exchange,
    ):
        m = legacy.messages()
        announced = m.SendModelRequest(data=b"x", length=1 << 40, model_name="large")
        refused = code(lambda: exchange.call("SendModel", [announced]))
        assert refused == ("INVALID_ARGUMENT", "model-too-large")
        exchange.send(graphs.identity(shape=[3]), input_fact=[3])
        pieces = [m.RunModelRequest(input=bytes(1 << 15))] * 3
        refused = code(lambda: exchange.call("RunModel", pieces))
        assert refused == ("INVALID_ARGUMENT", "body-too-large")

        def stalled() -> Iterator[Any]:
            yield m.RunModelRequest(input=THREE)
            time.sleep(3)

        assert code(lambda: exchange.call("RunModel", stalled()))[1] == "body-incomplete"


def test_our_answers_are_signed_and_kept(
    server: Server, client: BlindAiClient, model: Path, tmp_path: Path
):
    data = [1, 2.5, -3]
    upload, run = client.upload_model(model, sign=True), client.run_model(data, sign=True)
    assert upload.is_signed()
    assert upload.is_simulation_mode()
    assert client.simulation_mode
    assert run.output == client.run_model(data).output == data
    assert run.model_hash == sha256(model)
    upload.save_to_file(tmp_path / "upload")
    run.save_to_file(tmp_path / "run")
    upload, run = UploadModelResponse(), RunModelResponse()
    upload.load_from_file(tmp_path / "upload")
    run.load_from_file(tmp_path / "run")
    assert run.output == data
    assert run.is_signed()
    assert run.is_simulation_mode()
    upload.validate(sha256(model), allow_simulation_mode=True)
    run.validate(data, allow_simulation_mode=True, model_hash=sha256(model))
    key = client.enclave_signing_key
    run.validate(data, None, None, False, key, True)
    for refused in (
        lambda: upload.validate(sha256(model)),
        lambda: upload.validate(bytes(32), allow_simulation_mode=True),
        lambda: run.validate(data),
        lambda: run.validate([1, 2.5, -3.0], allow_simulation_mode=True),
        lambda: run.validate(data, allow_simulation_mode=True, model_hash=bytes(32)),
        lambda: run.validate(data, allow_simulation_mode=True, validate_quote=False),
        lambda: run.validate(data, enclave_signing_key=bytes(32), allow_simulation_mode=True),
        lambda: UploadModelResponse().load_from_file(tmp_path / "run"),
        lambda: client.run_model(data).validate(data),
    ):
        with pytest.raises(SignatureError):
            refused()


@pytest.mark.parametrize("sign", [False, True])
def test_no_other_model_runs_than_the_one_uploaded(
    server: Server, client: BlindAiClient, model: Path, sign: bool
):
    client.upload_model(model)
    name = f"sha256-{sha256(model).hex()[:16]}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", blindai.SimulationWarning)
        other = blindai.connect(server.address, simulation=True)
    with other:
        other.models.upload(graphs.identity(shape=["n", 3]), name=name, version="1", replace=True)
        with pytest.raises(blindai.ConnectionError) as caught:
            client.run_model([1, 2, 3], sign=sign)
        assert caught.value.code == "model-not-accepted"
        other.models.upload(model, name=name, version="1", replace=True)
    assert client.run_model([1, 2, 3], sign=sign).is_signed() == sign


def test_a_proof_is_judged_by_a_policy(server: Server, client: BlindAiClient, model: Path):
    upload = client.upload_model(model, sign=True)
    measured = client._connected().report.measurements["mrenclave"]
    simulated = {"allow_simulation_mode": True}
    policy = server.folder / "policy.toml"
    for mr_enclave, trusted in ((measured, True), ("ab" * 32, False)):
        policy.write_text(OLD_POLICY.format(mr_enclave=mr_enclave, allow_debug="true"))
        of_today = server.folder / "today.toml"
        of_today.write_text(Policy.from_file(policy).to_toml())
        for given in (
            {"policy_file": policy},
            {"policy_file": of_today},
            {"policy": Policy.from_file(policy)},
        ):
            if trusted:
                upload.validate(sha256(model), **given, **simulated)
                continue
            with pytest.raises(blindai.AttestationError):
                upload.validate(sha256(model), **given, **simulated)
    with pytest.raises(FileNotFoundError):
        upload.validate(sha256(model), policy_file="absent.toml", **simulated)


def test_a_changed_proof_is_refused(client: BlindAiClient, model: Path):
    client.upload_model(model)
    data = [1.0, 2.0, 3.0]
    run = client.run_model(data, sign=True)
    assert run.payload
    assert run.signature
    proof = bytearray(run.as_bytes())
    # Both stand at the end, with their heads; before them the evidence, which has its own tests.
    signed = len(run.payload) + 3 + len(run.signature) + 2
    for place in range(len(proof) - signed, len(proof)):
        proof[place] ^= 1
        with pytest.raises(blindai.BlindAIError):
            changed = RunModelResponse()
            changed.load_from_bytes(proof)
            changed.validate(data, allow_simulation_mode=True)
        proof[place] ^= 1
    for end in range(0, len(proof), 97):
        with pytest.raises(blindai.BlindAIError):
            cut = RunModelResponse()
            cut.load_from_bytes(proof[:end])
            cut.validate(data, allow_simulation_mode=True)
    for noise in (b"\xff", os.urandom(300)):
        with pytest.raises(SignatureError):
            SignedResponse().load_from_bytes(b"\x0f" + noise)


def test_a_proof_outlives_its_evidence(tmp_path: Path, model: Path):
    short = Server(tmp_path / "short", tee={"evidence_seconds": 2})
    with short as server, BlindAiClient() as client:
        connect(client, server)
        upload = client.upload_model(model, sign=True)
        until = client._signing_evidence().until
    wait_for(lambda: time.time() > until + 1, "the evidence to end")
    upload.validate(sha256(model), allow_simulation_mode=True)


def test_the_arguments_are_those_of_0_3(server: Server, tmp_path: Path):
    client = BlindAiClient(debug_mode=True)
    assert not client.is_connected()
    assert client.enclave_signing_key is client.attestation is client.server_version is None
    with pytest.raises(ConnectionError, match="connect_server"):
        client.run_model([1.0])
    with pytest.raises(FileNotFoundError):
        client.connect_server("localhost", policy=str(tmp_path / "absent.toml"))
    policy = tmp_path / "policy.toml"
    policy.write_text(OLD_POLICY.format(mr_enclave="00" * 32, allow_debug="false"))
    with pytest.raises(blindai.AttestationError):
        client.connect_server("localhost", policy=str(policy), attested_port=server.port)
    connect(client, server, policy=str(policy), certificate="ignored", server_name="any")
    with pytest.raises(FileNotFoundError):
        client.upload_model(str(tmp_path / "absent.onnx"))
    assert [kind.name for kind in ModelDatumType] == list(TYPES)
    assert client.server_version
    assert client.attestation
    client.close_connection()
    client.close_connection()
