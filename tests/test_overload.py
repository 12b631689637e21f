"""Floods and slow peers: memory is bounded, places come free, and others are always answered."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import resource
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import graphs
import grpc
import http2
import numpy as np
import pytest
import triton
from bystander import Bystander
from conftest import SUMMARY, connect
from support import (
    PATIENCE,
    Http,
    Server,
    resident_bytes,
    tls_socket,
    wait_for,
)
from tritonclient.grpc import service_pb2, service_pb2_grpc

import blindai

KIB, MIB = 1 << 10, 1 << 20
CONNECTIONS = 48
LIMITS = {
    "connections": CONNECTIONS,
    "body_bytes": 4 * MIB,
    "inflight_bytes": 32 * MIB,
    "request_seconds": 4,
}
HEAD = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n"
# What HTTP/2 says to peers that overdo it.
ENHANCE_YOUR_CALM = (11).to_bytes(4, "big")
SOAK = bool(os.environ.get("BLINDAI_SOAK"))
# Silent connections that are opened to see what one costs.
SILENT = 10_000 if SOAK else 300


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with few places."""
    with Server(tmp_path_factory.mktemp("crowded"), limits=LIMITS) as server:
        yield server


@pytest.fixture(scope="module")
def bystander(server: Server) -> Iterator[Bystander]:
    with connect(server) as client:
        client.models.upload(graphs.identity(), name="echo")
        somebody = Bystander(client)
        yield somebody
        somebody.stop()


@pytest.fixture(autouse=True)
def others_are_answered(request: pytest.FixtureRequest) -> Iterator[None]:
    """Around every test on the crowded server: somebody else is answered, and memory is bounded."""
    if "server" not in request.fixturenames:
        yield
        return
    server, bystander = (request.getfixturevalue(name) for name in ("server", "bystander"))
    before, held = bystander.answered, resident_bytes(server.pid)
    yield
    wait_for(lambda: bystander.answered > before + 2, "the bystander's next answers")
    assert not bystander.failures, bystander.failures
    assert resident_bytes(server.pid) < held + 48 * MIB


@pytest.fixture
def crowd() -> Iterator[list]:
    """Whatever a test opens and leaves open."""
    with contextlib.ExitStack() as stack:
        opened: list = []
        stack.callback(lambda: [one.close() for one in opened])
        yield opened


def newcomer_is_answered(port: int) -> None:
    with Http(port) as http:
        assert http.get("/v2/health/live").status == 200


def has_hung_up(connection: socket.socket) -> bool:
    """Whether the server has closed a connection; nothing else is to come on it."""
    connection.settimeout(0.01)
    try:
        return connection.recv(1) == b""
    except (TimeoutError, ssl.SSLWantReadError):
        return False
    except (OSError, ssl.SSLError):
        return True


# Places


def half_open(port: int) -> socket.socket:
    """TCP, and not a byte of TLS."""
    return socket.create_connection(("127.0.0.1", port), PATIENCE)


def stalled_handshake(port: int) -> socket.socket:
    """The first bytes of a greeting that never ends."""
    connection = half_open(port)
    connection.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
    return connection


def trickled_head(port: int) -> socket.socket:
    connection = tls_socket(port)
    connection.sendall(HEAD + b"X-Never-Ending: ")
    return connection


def asked_once(port: int) -> socket.socket:
    connection = tls_socket(port)
    connection.sendall(HEAD + b"\r\n")
    assert connection.recv(4096).startswith(b"HTTP/1.1 200")
    return connection


@pytest.mark.parametrize(
    "abuse", [half_open, stalled_handshake, tls_socket, trickled_head, asked_once]
)
def test_who_holds_all_places_locks_nobody_out(
    server: Server, crowd: list, abuse: Callable[[int], socket.socket]
):
    for _ in range(CONNECTIONS + 8):
        crowd.append(abuse(server.port))
        if abuse is trickled_head:
            # A byte now and then does not make one younger.
            crowd[0].send(b"x") if len(crowd) < CONNECTIONS // 2 else None
    for _ in range(5):
        newcomer_is_answered(server.port)
    assert has_hung_up(crowd[0]), "the oldest had to leave"
    assert not has_hung_up(crowd[-1]), "the youngest could stay"


def test_who_asks_for_too_many_quotes_locks_nobody_out(patient: Server, crowd: list):
    """Waiting for one is work of the server's; more than a few are refused at once."""
    slow = trickled_body(patient.port)
    crowd.append(slow)
    refused = 0
    for _ in range(9):
        crowd.append(http2.Connection(patient.port))
        streams = range(1, 128, 2)
        path = f"/v1/attestation?nonce={'00' * 32}"
        crowd[-1].send(*[http2.request(stream, path) for stream in streams])
        heads = dict(crowd[-1].heads(len(streams)))
        refused += sum(http2.STATUS_429 in head for head in heads.values())
        assert any(head[0] == http2.STATUS_200 for head in heads.values())
        newcomer_is_answered(patient.port)
        time.sleep(1)
    assert refused
    # Nobody wants the room of who is slow.
    assert not has_hung_up(slow)


def test_readers_that_never_read_lock_nobody_out(server: Server, crowd: list):
    for _ in range(CONNECTIONS + 8):
        stalled = http2.Connection(server.port, {http2.INITIAL_WINDOW: 0})
        stalled.get(1, "/v2/health/ready")
        assert stalled.answer(1)[0] == http2.STATUS_200
        crowd.append(stalled)
    for _ in range(5):
        newcomer_is_answered(server.port)


def test_both_ports_have_their_own_places(server: Server, crowd: list):
    crowd.extend(half_open(server.public_port) for _ in range(CONNECTIONS + 8))
    newcomer_is_answered(server.public_port)
    newcomer_is_answered(server.port)


def test_a_connection_at_work_is_not_given_up_for_another(server: Server, crowd: list):
    with connect(server) as client, ThreadPoolExecutor() as pool:
        client.models.upload(graphs.loop(), name="slow")
        request = pool.submit(client.infer, "slow", {"rounds": np.array(300_000)})
        crowd.extend(half_open(server.port) for _ in range(2 * CONNECTIONS))
        newcomer_is_answered(server.port)
        assert request.result()["total"] == 300_000
        client.models.delete("slow")


# Slow senders and readers


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with places for four requests, and hours for each."""
    limits = {
        "concurrent_requests": 4,
        "inflight_bytes": 66 * MIB,
        "request_seconds": 36_000,
        "idle_seconds": 36_000,
    }
    with Server(tmp_path_factory.mktemp("patient"), limits=limits) as server:
        with connect(server) as client:
            client.models.upload(graphs.identity(), name="echo")
            client.models.upload(graphs.loop(), name="slow")
        yield server


def at_work(port: int) -> socket.socket:
    """A request that does not end before it is taken back."""
    rounds = {"name": "rounds", "datatype": "INT64", "shape": [], "data": [(1 << 63) - 1]}
    body = json.dumps({"inputs": [rounds]}).encode()
    connection = tls_socket(port)
    head = b"POST /v2/models/slow/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
    connection.sendall(head % len(body) + body)
    return connection


def trickled_body(port: int) -> socket.socket:
    connection = tls_socket(port)
    head = b"POST /v2/models/echo/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
    connection.sendall(head + b"{")
    return connection


def refusal(port: int) -> socket.socket | None:
    """A connection whose request was refused for want of room, before a byte of its body."""
    connection = tls_socket(port)
    connection.sendall(
        b"POST /v2/models/echo/infer HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
        b"Content-Length: 1000000\r\n\r\n"
    )
    answer = connection.recv(65536)
    if answer.startswith(b"HTTP/1.1 100"):
        connection.close()
        return None
    assert answer.startswith(b"HTTP/1.1 429 "), answer
    assert b"\r\nretry-after: " in answer.lower()
    assert b'"too-many-requests"' in answer
    return connection


def test_a_refusal_comes_before_the_body(patient: Server, crowd: list):
    crowd.extend(at_work(patient.port) for _ in range(4))
    crowd.append(wait_for(lambda: refusal(patient.port), "all places to be taken"))
    # Nobody reads the body of somebody who was refused.
    crowd[-1].settimeout(PATIENCE)
    assert crowd[-1].recv(1) == b""
    http = http2.Connection(patient.port)
    crowd.append(http)
    http.send(http2.request(1, "/v2/models/echo/infer", "POST", content_length="1000000"))
    assert http2.STATUS_429 in http.answer(1)
    # Health is told all the same.
    newcomer_is_answered(patient.port)


def test_senders_who_trickle_lose_their_places_to_others(patient: Server, crowd: list):
    crowd.extend(trickled_body(patient.port) for _ in range(4))
    with connect(patient) as client:

        def is_answered() -> bool:
            for one in crowd:
                with contextlib.suppress(OSError):
                    one.send(b" ")
            time.sleep(0.1)
            return infers(client)

        wait_for(is_answered, "a place to come free")


@pytest.mark.parametrize("method", ["ModelInfer", "ModelStreamInfer"])
def test_senders_who_trickle_over_grpc_lose_their_places_too(
    patient: Server, crowd: list, method: str
):
    """When nobody is there but callers of gRPC, whose refusals have the status 200."""
    held = [trickled_message(patient.port, method) for _ in range(4)]
    crowd.extend(held)
    with connect(patient) as client, triton.channel_to(patient, client) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        wait_for(lambda: not infers_over_grpc(stub), "all places to be taken")

        def is_answered() -> bool:
            for one in held:
                with contextlib.suppress(OSError):
                    one.send(http2.frame(http2.DATA, b"\0", stream=1))
            time.sleep(0.1)
            return infers_over_grpc(stub)

        wait_for(is_answered, "a place to come free")


def test_a_stream_that_pauses_or_computes_is_not_slow(patient: Server, crowd: list):
    """While others are refused, longer than a slow peer would keep its connection."""
    with connect(patient) as client, triton.channel_to(patient, client) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        messages: queue.Queue = queue.Queue()
        paused = stub.ModelStreamInfer(iter(messages.get, None))
        messages.put(echo_request(1))
        assert next(paused).infer_response.model_name == "echo"
        working = stub.ModelStreamInfer(iter([endless_request()]))
        ended: list = []
        working.add_callback(lambda: ended.append(working))
        crowd.extend(at_work(patient.port) for _ in range(3))
        crowd.append(wait_for(lambda: refusal(patient.port), "all places to be taken"))
        for _ in range(9):
            time.sleep(1)
            one = refusal(patient.port)
            assert one is not None
            assert not ended
            crowd.append(one)
        for one in crowd:
            one.close()
        working.cancel()
        wait_for(lambda: infers(client), "a place to come free")
        messages.put(echo_request(1))
        assert next(paused).infer_response.model_name == "echo"
        messages.put(None)
        assert next(paused, None) is None


def test_a_stream_that_computes_leaves_room_for_others(patient: Server):
    """Of what a connection may send ahead: the stream's messages are not read for as long."""
    with connect(patient) as client, triton.channel_to(patient, client) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        messages = [endless_request(), *[echo_request(MIB // 8)] * 8]
        working = stub.ModelStreamInfer(iter(messages))
        time.sleep(1)
        large = echo_request(MIB)
        answer = stub.ModelInfer(large, timeout=5)
        assert answer.raw_output_contents == large.raw_input_contents
        working.cancel()


def endless_request() -> service_pb2.ModelInferRequest:
    """One that does not end before it is taken back."""
    tensor = service_pb2.ModelInferRequest.InferInputTensor(
        name="rounds", datatype="INT64", shape=[]
    )
    content = [np.array((1 << 63) - 1).tobytes()]
    return service_pb2.ModelInferRequest(
        model_name="slow", inputs=[tensor], raw_input_contents=content
    )


def trickled_message(port: int, method: str) -> http2.Connection:
    connection = http2.Connection(port)
    path = f"/inference.GRPCInferenceService/{method}"
    head = http2.request(1, path, "POST", content_type="application/grpc", te="trailers")
    prefix = b"\0" + (100_000).to_bytes(4, "big")
    connection.send(head, http2.frame(http2.DATA, prefix, stream=1))
    return connection


def infers_over_grpc(stub: service_pb2_grpc.GRPCInferenceServiceStub) -> bool:
    try:
        stub.ModelInfer(echo_request(1))
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, error
        return False
    return True


def echo_request(elements: int, model: str = "echo") -> service_pb2.ModelInferRequest:
    tensor = service_pb2.ModelInferRequest.InferInputTensor(
        name="x", datatype="FP32", shape=[elements]
    )
    content = [np.ones(elements, np.float32).tobytes()]
    return service_pb2.ModelInferRequest(
        model_name=model, inputs=[tensor], raw_input_contents=content
    )


def infers(client) -> bool:
    try:
        client.infer("echo", {"x": np.ones(1, np.float32)})
    except blindai.ServerError as error:
        assert error.code == "too-many-requests", error
        return False
    return True


def test_answers_that_nobody_reads_stay_within_their_bounds(patient: Server, crowd: list):
    data = np.ones(4 * MIB, np.float32).tobytes()
    request = http_head({"name": "x", "datatype": "FP32", "shape": [4 * MIB]}, len(data)) + data
    held = resident_bytes(patient.pid)
    answers = []
    for _ in range(6):
        connection = tls_socket(patient.port)
        crowd.append(connection)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            connection.sendall(request)
        answers.append(connection.recv(12))
    # Of 66 MiB, each takes 16 for its request and 16 for its answer until it is read.
    assert answers[:2] == [b"HTTP/1.1 200"] * 2
    assert answers[2] == b"HTTP/1.1 429"
    assert resident_bytes(patient.pid) < held + 2 * 66 * MIB


def http_head(tensor: dict, size: int) -> bytes:
    entry = {**tensor, "parameters": {"binary_data_size": size}}
    inner = json.dumps({"inputs": [entry], "parameters": {"binary_data_output": True}}).encode()
    lines = [
        b"POST /v2/models/echo/infer HTTP/1.1",
        b"Host: x",
        b"Content-Length: %d" % (len(inner) + size),
        b"Inference-Header-Content-Length: %d" % len(inner),
    ]
    return b"\r\n".join(lines) + b"\r\n\r\n" + inner


def test_requests_one_after_the_other_without_reading(server: Server, crowd: list):
    flood(tls_socket(server.port), crowd, (HEAD + b"\r\n") * 1000, 64 * MIB)


# HTTP/2


def test_requests_that_are_taken_back_at_once(server: Server, crowd: list):
    """Rapid reset."""
    connection = http2.Connection(server.port)
    crowd.append(connection)
    with contextlib.suppress(OSError):
        for first in range(1, 40_000, 1000):
            streams = range(first, first + 1000, 2)
            pairs = [http2.request(s, "/v2/health/live") + http2.reset(s) for s in streams]
            connection.send(*pairs)
    # The server hangs up; it may say why.
    said = [payload for kind, payload in connection.end() if kind == http2.GOAWAY]
    assert all(payload[4:8] == ENHANCE_YOUR_CALM for payload in said)


def test_a_peer_that_provokes_resets(server: Server, crowd: list):
    """The other way round: errors in requests, each of which the server has to reset."""
    connection = http2.Connection(server.port)
    crowd.append(connection)
    with contextlib.suppress(OSError):
        for first in range(1, 40_000, 1000):
            streams = range(first, first + 1000, 2)
            # Names are in small letters.
            connection.send(*[http2.request(s, "/v2", Not_So="x") for s in streams])
    connection.end()


def test_a_head_that_never_ends(server: Server, crowd: list):
    """A flood of CONTINUATION."""
    connection = http2.Connection(server.port)
    crowd.append(connection)
    filler = http2.frame(http2.CONTINUATION, http2.head("/", filler="x" * 8000), stream=1)
    connection.send(http2.frame(http2.HEADERS, http2.head("/"), stream=1))
    with pytest.raises((ConnectionError, ssl.SSLError)):
        for _ in range(10_000):
            connection.send(filler)


def test_a_huge_head(server: Server, crowd: list):
    connection = tls_socket(server.port)
    crowd.append(connection)
    with contextlib.suppress(OSError):
        connection.sendall(HEAD + b"X-Huge: " + b"x" * MIB + b"\r\n\r\n")
    answer = b""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while part := connection.recv(4096):
            answer += part
    assert not answer or answer.startswith(b"HTTP/1.1 431")


@pytest.mark.parametrize(
    "frame",
    [
        http2.frame(http2.PING, bytes(8)),
        http2.frame(http2.SETTINGS, b"\0\4\0\0\xff\xff"),
        http2.frame(http2.SETTINGS),
        http2.request(1, "/v2/health/live") + http2.frame(http2.DATA, stream=1),
    ],
    ids=["ping", "settings", "empty-settings", "empty-data"],
)
def test_floods_of_frames_that_want_an_answer(server: Server, crowd: list, frame: bytes):
    flood(http2.Connection(server.port).socket, crowd, frame * 1000, 4 * MIB)


def flood(connection: ssl.SSLSocket, crowd: list, content: bytes, most: int) -> None:
    """Sends without reading until the server takes no more, hangs up, or `most` is reached."""
    crowd.append(connection)
    connection.settimeout(1)
    sent = 0
    with contextlib.suppress(OSError):
        while sent < most:
            connection.sendall(content)
            sent += len(content)


# What a connection costs


def test_silent_connections_are_cheap(tmp_path, crowd: list):
    files = SILENT + 1000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard >= files, f"{files} open files are needed"
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    limits = {"connections": SILENT + 100}
    with Server(tmp_path, limits=limits) as server:
        for _ in range(50):
            crowd.append(asked_once(server.port))
        held = resident_bytes(server.pid)
        for _ in range(SILENT):
            crowd.append(asked_once(server.port))
        each = (resident_bytes(server.pid) - held) // SILENT
        newcomer_is_answered(server.port)
        SUMMARY["overload"] = [f"{SILENT} silent connections: {each} bytes each"]
        assert each < 48 * KIB
        for one in crowd:
            one.close()
        crowd.clear()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_few_open_files_are_told_and_lived_with(tmp_path, crowd: list):
    few = 160
    server = Server(tmp_path, limits={"models": 4}).start(open_files=few)
    try:
        server.wait_until_ready()
        assert "open files" in server.log
        crowd.extend(half_open(server.port) for _ in range(few))
        crowd.extend(half_open(server.public_port) for _ in range(few))
        with connect(server) as client:
            client.models.upload(graphs.identity(), name="echo")
            assert infers(client)
        assert "could not be accepted" not in server.log
    finally:
        server.stop()
