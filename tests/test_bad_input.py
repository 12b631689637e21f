"""Whatever comes in: a clear error, the server alive, and the requests of others unharmed."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import graphs
import numpy as np
import pytest
from bystander import Bystander
from conftest import connect
from onnx import TensorProto
from support import Server, cpu_seconds, has_ended, reset, run_slowly, tls_socket, wait_for

import blindai
from tools import models

MIB = 1 << 20
FOREVER = np.array(np.iinfo(np.int64).max)
LIMITS = {
    "body_bytes": MIB,
    "inflight_bytes": 16 * MIB,
    "model_bytes": 8 * MIB,
    "models": 12,
    "model_memory_bytes": 1024 * MIB,
    "total_memory_bytes": 8192 * MIB,
    "request_seconds": 4,
    "upload_seconds": 4,
    "load_seconds": 10,
    "idle_seconds": 2,
    "concurrent_uploads": 4,
}
SMALL = (models.TESTDATA / "small" / "cnn2d_digits.onnx").read_bytes()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with tight limits."""
    with Server(tmp_path_factory.mktemp("strict"), limits=LIMITS) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[blindai.Client]:
    with connect(server) as client:
        yield client


@pytest.fixture(scope="module")
def bystander(server: Server) -> Iterator[Bystander]:
    """Somebody else, whose every request must be answered while all the others go wrong."""
    with connect(server) as own_client:
        somebody = Bystander(own_client)
        yield somebody
        somebody.stop()


@pytest.fixture(autouse=True)
def others_are_unharmed(server: Server, bystander: Bystander) -> Iterator[None]:
    """Around every test: the same server process, still answering somebody else."""
    before = bystander.answered
    yield
    assert server.process.poll() is None, server.log
    wait_for(lambda: bystander.answered > before + 2, "the bystander's next answers")
    assert not bystander.failures, bystander.failures


def refused(call: Callable, *arguments, **options) -> blindai.BlindAIError:
    """The call must fail, and its error must say what happened and what to do."""
    with pytest.raises(blindai.BlindAIError) as caught:
        call(*arguments, **options)
    error = caught.value
    assert error.code
    assert error.fact
    assert str(error).startswith(f"{error.code}: {error.fact}")
    return error


def refused_model(client: blindai.Client, content: bytes) -> blindai.ModelError:
    """The upload must fail, and leave nothing behind."""
    error = refused(client.models.upload, content, name="bad")
    assert isinstance(error, blindai.ModelError), error
    assert "bad" not in [held.name for held in client.models.list()]
    return error


# Models


@pytest.mark.parametrize("part", [0, 1, 100, len(SMALL) // 2, len(SMALL) - 1])
def test_a_truncated_model(client: blindai.Client, part: int):
    assert refused_model(client, SMALL[:part]).code == "model-invalid"


def test_bit_flips_are_refused_or_harmless(client: blindai.Client):
    chance = random.Random(1)
    # The structure of the file is at its end and between the weights: hit both.
    spots = [chance.randrange(len(SMALL)) for _ in range(20)]
    spots += [chance.randrange(len(SMALL) - 800, len(SMALL)) for _ in range(30)]
    spots += list(range(10))
    refusals = 0
    image = np.zeros((1, 1, 8, 8), np.float32)
    for spot in spots:
        broken = bytearray(SMALL)
        broken[spot] ^= 1 << chance.randrange(8)
        try:
            client.models.upload(bytes(broken), name="flipped")
        except blindai.ModelError as error:
            assert error.code.startswith(("model-", "worker-")), error
            refusals += 1
            continue
        try:
            client.infer("flipped", {"image": image})
        except (blindai.ModelError, blindai.InvalidInputError) as error:
            assert error.code, error
        client.models.delete("flipped")
    assert 0 < refusals < len(spots)


@pytest.mark.parametrize(
    "content",
    [b"hello", b"\0" * 1000, b"\x89PNG\r\n\x1a\n" * 50, b"\x7fELF" + b"\2" * 500, b"{}"],
)
def test_what_is_not_onnx(client: blindai.Client, content: bytes):
    assert refused_model(client, content).code == "model-invalid"


@pytest.mark.parametrize(
    "location", ["weights.bin", "server.log", "../../../../etc/hostname", "/etc/hostname"]
)
def test_weights_in_another_file(server: Server, client: blindai.Client, location: str):
    (server.folder / "weights.bin").write_bytes(bytes(16))
    error = refused_model(client, graphs.external(location))
    assert error.code == "model-unsupported"
    assert "another file" in error.fact


def test_an_unknown_operator(client: blindai.Client):
    node = graphs.helper.make_node("Teleport", ["x"], ["y"])
    spec = graphs.value("x", graphs.FLOAT, [1]), graphs.value("y", graphs.FLOAT, [1])
    error = refused_model(client, graphs.model([node], [spec[0]], [spec[1]]))
    assert error.code in ("model-unsupported", "model-invalid")
    assert "Teleport" in str(error)


def test_a_model_that_is_too_large(client: blindai.Client, tmp_path: Path):
    path = tmp_path / "large.onnx"
    path.write_bytes(bytes(LIMITS["model_bytes"] + 1))
    error = refused(client.models.upload, path)
    assert error.code == "model-too-large"
    assert str(LIMITS["model_bytes"]) in error.fact


def test_too_many_models(client: blindai.Client):
    names = []
    try:
        with pytest.raises(blindai.BlindAIError) as caught:
            for number in range(LIMITS["models"] + 1):
                name = f"many-{number}"
                client.models.upload(graphs.add([number + 1]), name=name)
                names.append(name)
        assert isinstance(caught.value, blindai.ServerError)
        assert caught.value.code == "too-many-models"
    finally:
        for name in names:
            client.models.delete(name)


def test_constants_that_unfold_beyond_the_memory(client: blindai.Client):
    # The library may fold them while it loads, or give up on that and fail when it runs.
    with pytest.raises(blindai.ModelError) as caught:
        client.models.upload(graphs.unfolding(3 << 30), name="unfolding")
        client.infer("unfolding", {"x": np.float32(1)})
    assert caught.value.code == "model-memory"
    if "unfolding" in [held.name for held in client.models.list()]:
        client.models.delete("unfolding")


# Inputs


@pytest.fixture
def add(client: blindai.Client) -> Iterator[str]:
    client.models.upload(graphs.add(["n", 3]), name="add")
    yield "add"
    client.models.delete("add")


def rows(count: int, dtype: type = np.float32) -> np.ndarray:
    return np.ones((count, 3), dtype)


@pytest.mark.parametrize(
    ("inputs", "code", "words"),
    [
        ({"a": rows(1), "b": rows(1, np.float64)}, "input-dtype", ['"b"', "FP32", "FP64"]),
        ({"a": rows(1), "b": rows(1, np.int8)}, "input-dtype", ['"b"', "FP32", "INT8"]),
        ({"a": rows(1), "b": np.ones(3, np.float32)}, "input-shape", ['"b"', "[n,3]", "[3]"]),
        ({"a": rows(1), "b": rows(1)[:, :2]}, "input-shape", ['"b"', "[n,3]", "[1,2]"]),
        ({"a": rows(1)}, "input-missing", ['"b"', "FP32[n,3]"]),
        ({}, "input-missing", ['"a"', "FP32[n,3]"]),
        ({"a": rows(1), "b": rows(1), "c": rows(1)}, "input-unknown", ['"c"', '"a", "b"']),
    ],
)
def test_inputs_that_do_not_fit(
    client: blindai.Client, add: str, inputs: dict, code: str, words: list[str]
):
    error = refused(client.infer, add, inputs)
    assert isinstance(error, blindai.InvalidInputError)
    assert error.code == code
    for word in words:
        assert word in error.fact


def test_shapes_that_the_model_itself_refuses(client: blindai.Client, add: str):
    error = refused(client.infer, add, {"a": rows(2), "b": rows(5)})
    assert isinstance(error, blindai.ModelError)
    assert error.code == "model-failed"


def test_no_such_model_and_no_such_output(client: blindai.Client, add: str):
    assert refused(client.infer, "nobody", {}).code == "model-not-found"
    assert refused(client.infer, add, {}, version="9").code == "model-not-found"
    both = {"a": rows(1), "b": rows(1)}
    assert refused(client.infer, add, both, outputs=["z"]).code == "output-unknown"


def test_nan_and_infinity_pass_through(client: blindai.Client, add: str):
    odd = np.array([[np.nan, np.inf, -np.inf]], np.float32)
    got = client.infer(add, {"a": odd, "b": rows(1)})["y"]
    np.testing.assert_array_equal(got, odd)


def test_nan_cannot_be_said_in_json(server: Server, client: blindai.Client):
    client.models.upload(graphs.divide_floats(), name="ratio")
    tensor = {"name": "x", "datatype": "FP32", "shape": [1], "data": [0]}
    with server.http() as http:
        answer = http.request("POST", "/v2/models/ratio/infer", {"inputs": [tensor]})
    client.models.delete("ratio")
    assert (answer.status, answer.json["code"]) == (400, "output-not-json")


def test_empty_tensors(client: blindai.Client, add: str):
    got = client.infer(add, {"a": rows(0), "b": rows(0)})["y"]
    assert got.shape == (0, 3)
    assert got.dtype == np.float32


def test_a_body_that_is_too_large(server: Server, client: blindai.Client, add: str):
    large = rows(LIMITS["body_bytes"] // 12)
    error = refused(client.infer, add, {"a": large, "b": large})
    assert error.code == "body-too-large"
    assert str(LIMITS["body_bytes"]) in error.fact
    with server.http() as http:
        chunks = (bytes(64 * 1024) for _ in range(64))
        answer = http.request("POST", f"/v2/models/{add}/infer", chunks)
    assert (answer.status, answer.json["code"]) == (413, "body-too-large")


def test_what_users_send_is_never_told(server: Server, client: blindai.Client, add: str):
    canary = "canary-7f3e9a"
    words = np.array([canary] * 3, object).reshape(1, 3)
    errors = [refused(client.infer, add, {"a": words, "b": rows(1)})]
    client.models.upload(graphs.identity(TensorProto.STRING), name="echo")
    assert client.infer("echo", {"x": words[0]})["y"].tolist() == [canary] * 3
    with server.http() as http:
        for body in (f'{{"inputs": "{canary}"}}', f'{{"inputs": [{{"{canary}": 1}}]}}', canary):
            answer = http.request("POST", "/v2/models/echo/infer", body.encode())
            assert answer.status == 400
            assert canary not in answer.body.decode()
    client.models.delete("echo")
    assert not [error for error in errors if canary in str(error)]
    assert canary not in server.log


# Clients that go away


@pytest.mark.parametrize("farewell", [reset, lambda connection: connection.close()])
def test_clients_gone_in_the_middle_of_an_upload(
    server: Server, client: blindai.Client, farewell: Callable
):
    for number in range(3 * LIMITS["concurrent_uploads"]):
        connection = tls_socket(server.port)
        head = f"PUT /v1/models/gone-{number} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(SMALL)}"
        connection.sendall(head.encode() + b"\r\n\r\n" + SMALL[: len(SMALL) // 2])
        farewell(connection)
    wait_for(lambda: can_upload(client), "uploads to be taken again")
    assert not [held.name for held in client.models.list() if held.name.startswith("gone")]


def test_a_client_that_falls_silent_in_an_upload(server: Server, client: blindai.Client):
    with tls_socket(server.port) as connection:
        head = f"PUT /v1/models/silent HTTP/1.1\r\nHost: x\r\nContent-Length: {len(SMALL)}\r\n\r\n"
        connection.sendall(head.encode() + SMALL[:1000])
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 400")
    assert can_upload(client)


@pytest.mark.parametrize("target", ["PUT /v1/models/trickle", "POST /v2/models/bystander/infer"])
def test_a_client_that_sends_a_byte_now_and_then(
    server: Server, client: blindai.Client, target: str
):
    seconds = max(LIMITS["upload_seconds"], LIMITS["request_seconds"])
    with tls_socket(server.port) as connection:
        connection.settimeout(LIMITS["idle_seconds"] / 2)
        connection.sendall(f"{target} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n".encode())
        answer = trickle(connection, 5 * seconds)
    assert answer.startswith(b"HTTP/1.1 504")
    assert b'"deadline-exceeded"' in answer
    assert can_upload(client)


def trickle(connection: socket.socket, count: int) -> bytes:
    """Send so many bytes, one per timeout of the connection, until an answer comes."""
    for _ in range(count):
        connection.sendall(b" ")
        with contextlib.suppress(TimeoutError):
            return connection.recv(65536)
    raise AssertionError(f"no answer after {count} bytes")


def can_upload(client: blindai.Client) -> bool:
    try:
        client.models.upload(SMALL, name="after")
    except blindai.ServerError as error:
        assert error.code == "too-many-requests", error
        return False
    client.models.delete("after")
    return True


@pytest.mark.parametrize("sent", ["half", "all"])
def test_a_client_gone_in_the_middle_of_a_request(
    server: Server, client: blindai.Client, slow: str, sent: str
):
    body = b'{"inputs": [{"name": "rounds", "datatype": "INT64", "shape": [], "data": [%d]}]}'
    body %= int(FOREVER)
    head = f"POST /v2/models/{slow}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}"
    connection = tls_socket(server.port)
    used = busy(server)
    connection.sendall(head.encode() + b"\r\n\r\n" + (body if sent == "all" else body[:20]))
    if sent == "all":
        wait_for(lambda: busy(server) > used + 0.2, "the model to run")
    reset(connection)
    assert count(client, slow, 10) == 10


# Workers


@pytest.fixture
def slow(client: blindai.Client) -> Iterator[str]:
    client.models.upload(graphs.loop(), name="slow")
    yield "slow"
    client.models.delete("slow")


def count(client: blindai.Client, name: str, rounds: int) -> int:
    return int(client.infer(name, {"rounds": np.array(rounds)})["total"])


def busy(server: Server) -> float:
    """The processor time of the busiest worker."""
    return max(cpu_seconds(pid) for pid in server.workers())


@pytest.fixture
def victims(server: Server, client: blindai.Client) -> Iterator[set[int]]:
    """The processes of the model "victim"."""
    before = set(server.workers())
    client.models.upload(graphs.loop(), name="victim")
    started = set(server.workers()) - before
    assert started
    yield started
    client.models.delete("victim")


def test_a_killed_idle_worker(client: blindai.Client, victims: set[int]):
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: all(map(has_ended, victims)), "the worker to be gone")
    assert count(client, "victim", 5) == 5


def test_a_worker_killed_at_work(server: Server, client: blindai.Client, victims: set[int]):
    """The request is computed once more, and not for ever."""
    others = set(server.workers()) - victims
    with ThreadPoolExecutor() as pool:
        request = run_slowly(pool, server, client, "victim", int(FOREVER))
        for pid in victims:
            os.kill(pid, signal.SIGKILL)

        def second() -> list[int]:
            workers = set(server.workers()) - others - victims
            return [pid for pid in workers if cpu_seconds(pid) > 0.3]

        wait_for(second, "the request to be computed again")
        for pid in second():
            os.kill(pid, signal.SIGKILL)
        error = refused(request.result)
    assert isinstance(error, blindai.ModelError)
    assert error.code == "worker-crashed"
    assert count(client, "victim", 5) == 5


def test_an_input_that_crashes_the_library(client: blindai.Client):
    client.models.upload(graphs.divide(), name="ratio")
    least, minus_one = np.array([np.iinfo(np.int64).min]), np.array([-1])
    error = refused(client.infer, "ratio", {"a": least, "b": minus_one})
    assert error.code == "worker-crashed"
    assert client.infer("ratio", {"a": least, "b": np.array([1])})["y"] == least
    client.models.delete("ratio")


def test_a_model_that_does_not_end(client: blindai.Client, slow: str):
    error = refused(count, client, slow, int(FOREVER))
    assert isinstance(error, blindai.ServerError)
    assert error.code == "deadline-exceeded"
    assert count(client, slow, 7) == 7


def test_a_model_that_needs_too_much_memory(client: blindai.Client):
    client.models.upload(graphs.hungry(), name="hungry")

    def total(elements: int) -> float:
        return float(client.infer("hungry", {"shape": np.array([elements])})["total"])

    for elements in (1 << 29, 1 << 34, 1 << 60):
        error = refused(total, elements)
        assert isinstance(error, blindai.ModelError)
        assert error.code in ("model-memory", "model-failed")
        if elements == 1 << 29:
            assert error.code == "model-memory"
    assert total(1000) == 0
    client.models.delete("hungry")
