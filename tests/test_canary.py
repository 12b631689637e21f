"""What users send is marked, sent along every route and into every error, and then searched for.

The host reads logs, metrics, traces, files, shared memory and core dumps. No mark may be in any.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import resource
import secrets
import signal
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import cbor2
import graphs
import grpc
import legacy
import numpy as np
import pytest
import triton
from collector import Collector, collecting
from conftest import connect
from onnx import TensorProto, helper
from support import Http, Server, has_ended, reset, tls_socket, unverified_context, wait_for

import blindai

MARK = f"canary{secrets.token_hex(6)}"
#: A request id is the caller's to choose and stands in the log; nowhere else.
ID = f"request{secrets.token_hex(6)}"
LEAST, MINUS_ONE = np.array([np.iinfo(np.int64).min]), np.array([-1])
SHARED_MEMORY = Path("/dev/shm")


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="module", params=["text", "json"])
def server(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    collector: Collector,
) -> Iterator[Server]:
    """A server that tells all it can, to an environment that asks for more."""
    folder = tmp_path_factory.mktemp("canary")
    (folder / "tmp").mkdir()
    sections = {
        "log": {"format": request.param, "level": "debug", "requests": True},
        "metrics": {"enabled": True},
        "traces": {"endpoint": collector.endpoint},
    }
    server = Server(folder, **sections)
    with pytest.MonkeyPatch.context() as patch, core_dumps_wanted():
        patch.setenv("TMPDIR", str(folder / "tmp"))
        patch.setenv("RUST_LOG", "trace")
        patch.setenv("RUST_BACKTRACE", "full")
        server.start()
    assert server.process
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.process.kill()
        server.process.wait()


@contextlib.contextmanager
def core_dumps_wanted() -> Iterator[None]:
    """What is started here inherits no limit on core dumps."""
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))


def test_no_mark_is_found_anywhere(server: Server, collector: Collector):
    before = set(SHARED_MEMORY.iterdir())
    with connect(server) as client:
        send_models(client)
        send_tensors(client, server)
        send_calls(client, server)
        send_messages_of_0_3(server)
        crash_workers(client, server)
        for port in (server.port, server.public_port):
            send_http(port)
            send_noise(port)
    assert told(server, collector) == []
    assert left(server, before) == []
    # Keys and tensors are in this process: its end must leave nothing either.
    os.kill(server.pid, signal.SIGABRT)
    assert server.process
    assert server.process.wait(30) == -signal.SIGABRT
    assert left(server, before) == []
    assert not [path for path in server.folder.rglob("*core*") if path.is_file()]


def test_the_search_finds(tmp_path: Path):
    server = Server(tmp_path)
    server.log_path.write_text(f"a line with {ID}")
    assert left(server, set(SHARED_MEMORY.iterdir())) == []
    (tmp_path / "leak").write_bytes(b"\0" + MARK.encode())
    (tmp_path / MARK.upper()).mkdir()
    (tmp_path / "id").write_text(ID)
    found = left(server, set(SHARED_MEMORY.iterdir()))
    assert len(found) == 3, found


# Sending


def marked(nodes: list, inputs: list, outputs: list, **more) -> bytes:
    """A model that is marked wherever ONNX takes a text."""
    graph = helper.make_graph(nodes, f"{MARK}-graph", inputs, outputs, doc_string=MARK, **more)
    opset = helper.make_opsetid("", 17)
    model = helper.make_model(graph, opset_imports=[opset], producer_name=MARK, doc_string=MARK)
    model.ir_version = 8
    helper.set_model_props(model, {MARK: MARK})
    return model.SerializeToString()


def echo() -> bytes:
    node = helper.make_node("Identity", [f"{MARK}-in"], [f"{MARK}-out"], name=f"{MARK}-node")
    shape = [f"{MARK}-n"]
    ends = [graphs.value(f"{MARK}-{end}", TensorProto.STRING, shape) for end in ("in", "out")]
    return marked([node], ends[:1], ends[1:])


def division() -> bytes:
    node = helper.make_node("Div", ["a", "b"], [f"{MARK}-out"], name=f"{MARK}-node")
    inputs = [graphs.value(name, TensorProto.INT64, ["n"]) for name in "ab"]
    return marked([node], inputs, [graphs.value(f"{MARK}-out", TensorProto.INT64, ["n"])])


def picking() -> bytes:
    """Fails at a marked node when it is asked for what is not there."""
    words = helper.make_tensor("words", TensorProto.STRING, [2], [MARK.encode()] * 2)
    node = helper.make_node("Gather", ["words", "at"], ["word"], name=f"{MARK}-node")
    ends = graphs.value("at", TensorProto.INT64, []), graphs.value("word", TensorProto.STRING, [])
    return marked([node], [ends[0]], [ends[1]], initializer=[words])


def refused(call, *arguments, **options) -> None:
    with pytest.raises(blindai.BlindAIError):
        call(*arguments, **options)


def send_models(client: blindai.Client) -> None:
    client.models.upload(echo(), name=f"{MARK}-echo")
    client.models.upload(division(), name=f"{MARK}-division", version=f"{MARK}-v")
    client.models.upload(picking(), name=f"{MARK}-picking")
    unknown = helper.make_node(f"{MARK}Op", ["x"], ["y"], domain=MARK)
    ends = [graphs.value(name, TensorProto.FLOAT, [1]) for name in "xy"]
    refused(client.models.upload, marked([unknown], ends[:1], ends[1:]), name=f"{MARK}-unknown")
    refused(client.models.upload, graphs.external(f"/{MARK}/weights"), name=f"{MARK}-external")
    refused(client.models.upload, MARK.encode() * 100, name=f"{MARK}-broken")
    refused(client.models.upload, echo()[:-20], name=f"{MARK}-cut")
    refused(client.models.upload, division(), name=f"{MARK}-echo", version="1")
    client.models.get(f"{MARK}-echo")
    client.models.upload(echo(), name=f"{MARK}-gone")
    client.models.delete(f"{MARK}-gone")
    refused(client.models.delete, f"{MARK}-gone")


def send_tensors(client: blindai.Client, server: Server) -> None:
    words = np.array([MARK] * 3, object)
    answer = client.infer(f"{MARK}-echo", {f"{MARK}-in": words}, receipt=True)
    # The marks do arrive.
    assert answer[f"{MARK}-out"].tolist() == [MARK] * 3
    assert client.infer(f"{MARK}-picking", {"at": np.array(1)})["word"] == MARK
    refused(client.infer, f"{MARK}-picking", {"at": np.array(7)})
    refused(client.infer, f"{MARK}-echo", {MARK: words})
    refused(client.infer, f"{MARK}-echo", {f"{MARK}-in": np.ones(3, np.float32)})
    refused(client.infer, f"{MARK}-echo", {f"{MARK}-in": words}, outputs=[MARK])
    refused(client.infer, f"{MARK}-absent", {MARK: words})
    path = f"/v2/models/{MARK}-echo/infer"
    tensor = {"name": f"{MARK}-in", "datatype": "BYTES", "shape": [1], "data": [MARK]}
    bodies = [
        MARK,
        f'{{"{MARK}',
        f'{{"inputs": "{MARK}"}}',
        {"inputs": [{**tensor, "datatype": MARK}]},
        {"inputs": [{**tensor, "shape": [MARK]}]},
        {"inputs": [{**tensor, MARK: MARK}]},
        {"inputs": [tensor], "outputs": [{"name": MARK}]},
        {"inputs": [tensor, tensor]},
        {"inputs": [tensor], "parameters": {MARK: MARK}, "id": MARK},
    ]
    with server.http() as http:
        for body in bodies:
            body = body.encode() if isinstance(body, str) else body
            http.request("POST", path, body, x_request_id=ID)
        for length in ("5", MARK, "99999999"):
            http.request("POST", path, MARK.encode(), Inference_Header_Content_Length=length)
        http.request("PUT", f"/v1/models/{MARK}-digest", echo(), Content_Digest=f"sha-256=:{MARK}:")
        http.request("POST", path, body, blindai_receipt=MARK)
        assert http.get("/v1/models", x_request_id=ID).status == 200


def send_calls(client: blindai.Client, server: Server) -> None:
    """The same over gRPC, with methods and metadata that nobody knows."""
    oip = triton.connect(triton.tritonclient.grpc, server, client)
    headers = {MARK: MARK, "x-request-id": ID, "user-agent": MARK}
    words = oip.inputs(**{f"{MARK}-in": np.array([MARK] * 3, object)})
    answer = oip.infer(f"{MARK}-echo", words, request_id=MARK, headers=headers)
    assert answer.as_numpy(f"{MARK}-out").tolist() == [MARK.encode()] * 3
    floats = oip.inputs(**{f"{MARK}-in": np.ones(3, np.float32)})
    oip.refused(oip.infer, f"{MARK}-echo", floats, headers=headers)
    oip.refused(oip.infer, f"{MARK}-echo", words, outputs=oip.outputs(MARK))
    oip.refused(oip.infer, f"{MARK}-echo", words, parameters={MARK: MARK, "sequence_id": 7})
    oip.refused(oip.infer, f"{MARK}-echo", words, parameters={"receipt": MARK})
    oip.refused(oip.infer, f"{MARK}-absent", words, model_version=MARK)
    numbers = oip.inputs(a=LEAST, b=MINUS_ONE)
    oip.refused(oip.infer, f"{MARK}-division", numbers)
    oip.get_model_config(f"{MARK}-echo")
    oip.get_inference_statistics(f"{MARK}-echo")
    oip.get_model_repository_index()
    oip.refused(oip.load_model, MARK)
    oip.refused(oip.unload_model, f"{MARK}-echo")
    with triton.channel_to(server, client) as channel:
        for method in (f"/{MARK}/{MARK}", f"/inference.GRPCInferenceService/{MARK}"):
            with pytest.raises(grpc.RpcError):
                channel.unary_unary(method)(MARK.encode(), metadata=[(MARK, MARK)])
        with pytest.raises(grpc.RpcError):
            infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            infer(b"\x0a\xff" + MARK.encode())
    oip.close()


def send_messages_of_0_3(server: Server) -> None:
    who = legacy.messages().ClientInfo(uid=MARK, user_agent=MARK, platform_name=MARK)
    node = helper.make_node("Identity", [f"{MARK}-in"], [f"{MARK}-out"], name=f"{MARK}-node")
    ends = [graphs.value(f"{MARK}-{end}", TensorProto.FLOAT, [1]) for end in ("in", "out")]
    model, one = marked([node], ends[:1], ends[1:]), cbor2.dumps([1.0])
    with legacy.Exchange(server) as exchange:
        named = {"model_name": f"{MARK}-old", "client_info": who, "input_fact": [1], "sign": True}
        exchange.send(model, **named)
        # The marks do arrive, and the nonce comes back.
        answer = exchange.run(one, model_name=f"{MARK}-old", nonce=MARK.encode(), sign=True)
        assert answer.header.nonce == MARK.encode()
        for call in (
            lambda: exchange.send(MARK.encode(), **named),
            lambda: exchange.send(model, **{**named, "input_fact": [2]}),
            lambda: exchange.send(model, [model[:9], MARK.encode()], **named),
            lambda: exchange.run(cbor2.dumps([MARK]), client_info=who),
            lambda: exchange.run(one, model_name=f"{MARK}-absent"),
        ):
            with pytest.raises(grpc.RpcError):
                call()


def crash_workers(client: blindai.Client, server: Server) -> None:
    """One by its input, then all from outside; both restart."""
    with pytest.raises(blindai.ModelError):
        client.infer(f"{MARK}-division", {"a": LEAST, "b": MINUS_ONE})
    assert client.infer(f"{MARK}-division", {"a": LEAST, "b": -MINUS_ONE})
    workers = server.workers()
    for pid in workers:
        os.kill(pid, signal.SIGABRT)
    wait_for(lambda: all(map(has_ended, workers)), "the workers to be gone")
    client.infer(f"{MARK}-echo", {f"{MARK}-in": np.array([MARK], object)})


PATHS = [
    f"/{MARK}",
    f"/metrics?{MARK}={MARK}",
    f"/metrics/{MARK}",
    f"/v1/attestation?nonce={MARK}",
    f"/v1/attestation/{MARK}",
    f"/v1/models/{MARK}",
    f"/v1/models/{MARK}%ff",
    f"/v1/models/{MARK}/versions/{MARK}?{MARK}",
    f"/v2/{MARK}",
    f"/v2/health/ready?{MARK}",
    f"/v2/health/{MARK}",
    f"/v2/models/{MARK}",
    f"/v2/models/{MARK}/ready",
    f"/v2/models/{MARK}/infer",
    f"/v2/models/{MARK}/versions/{MARK}/infer",
    f"/v2/models/{MARK}/config",
    f"/v2/models/{MARK}/stats",
    f"/v2/repository/models/{MARK}/load",
    f"/v2/repository/index?{MARK}",
]
METHODS = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", MARK.upper()]
HEADERS = {
    "User-Agent": MARK,
    "Cookie": f"{MARK}={MARK}",
    "Authorization": f"Bearer {MARK}",
    "Content-Type": f"application/{MARK}",
    "X-Request-Id": f"{MARK} with a space",
    "Traceparent": f"00-{MARK}-{MARK}-01",
    "Tracestate": f"{MARK}={MARK}",
    "Baggage": f"{MARK}={MARK}",
    MARK: MARK,
}


def send_http(port: int) -> None:
    """Every path with every method, marked from the line to the body."""
    for method in METHODS:
        for path in PATHS:
            with Http(port) as web, contextlib.suppress(OSError, http.client.HTTPException):
                web.connection.request(method, path, MARK.encode(), HEADERS)
                web.connection.getresponse().read()
    for credential in (f"Bearer {MARK}", f"Bearer blindai_{MARK}", f"Basic {MARK}", MARK):
        with Http(port) as web:
            assert web.get("/v1/models", Authorization=credential).status in (401, 404)


def send_noise(port: int) -> None:
    """What is not HTTP, or not TLS, or not whole."""
    noise = [
        MARK.encode(),
        f"GET /{MARK}\r\n\r\n".encode(),
        f"GET / HTTP/1.1\r\n{MARK}\r\n\r\n".encode(),
        f"GET / HTTP/1.1\r\nHost: {MARK}\r\nContent-Length: {MARK}\r\n\r\n".encode(),
        f"PUT /v1/models/{MARK}-half HTTP/1.1\r\nHost: x\r\nContent-Length: 999\r\n\r\n".encode(),
        f"POST /v2/models/{MARK}-echo/infer HTTP/1.1\r\nHost: x\r\n"
        f"Transfer-Encoding: chunked\r\n\r\n{MARK}\r\n".encode(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + MARK.encode() * 9,
    ]
    for line in noise:
        connection = tls_socket(port)
        connection.sendall(line)
        reset(connection)
    with socket.create_connection(("localhost", port)) as plain:
        plain.sendall(MARK.encode() * 100)
    context = unverified_context()
    context.set_alpn_protocols(["h2"])
    for name in (f"{MARK}.example", "localhost"):
        plain = socket.create_connection(("localhost", port))
        with contextlib.suppress(OSError, ssl.SSLError):
            connection = context.wrap_socket(plain, server_hostname=name)
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + MARK.encode() * 9)
            connection.recv(1000)
        plain.close()


# Searching


def told(server: Server, collector: Collector) -> list[str]:
    """Where a mark is found in what a server tells over the network."""
    with Http(server.public_port) as web:
        found = hits("metrics", web.get("/metrics").body, MARK, ID)
    # What was sent before this has been exported when this has.
    number = len(collector.named("GET /v2"))
    with server.http() as web:
        assert web.get("/v2").status == 200
    wait_for(lambda: len(collector.named("GET /v2")) > number, "the traces to arrive")
    return found + hits("traces", b"\n".join(collector.bodies), MARK, ID)


def left(server: Server, before: set[Path]) -> list[str]:
    """Where a mark is found in files and their names; of the log the line."""
    log = server.log_path.read_bytes()
    found = [f"log: {line!r}" for line in log.splitlines() if hits("", line, MARK)]
    shared = [path for path in SHARED_MEMORY.iterdir() if path not in before]
    for path in [*server.folder.rglob("*"), *shared]:
        found += hits(f"the name {path}", path.name.encode(), MARK, ID)
        if path.is_file() and path != server.log_path:
            found += hits(str(path), path.read_bytes(), MARK, ID)
    return found


def hits(where: str, text: bytes, *marks: str) -> list[str]:
    return [f"{mark} in {where}" for mark in marks if mark.lower().encode() in text.lower()]
