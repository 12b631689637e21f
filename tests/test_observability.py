"""Metrics, logs and traces tell what docs/observability.md names, and nothing else."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import socket
import struct
import subprocess
import termios
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import graphs
import numpy as np
import pytest
import triton
from collector import Collector, attributes, collecting
from conftest import connect
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from support import ROOT, Http, Server, binary, free_ports, run_slowly, tls_socket, wait_for
from tritonclient.grpc import service_pb2, service_pb2_grpc

import blindai

PAGE = (ROOT / "docs/observability.md").read_text()
STAGES = {"receive", "queue", "compute", "send", "total"}
ONE = np.ones(1, np.float32)
LEAST, MINUS_ONE = np.array([np.iinfo(np.int64).min]), np.array([-1])
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Server]:
    """A server that tells all it can."""
    sections = {
        "metrics": {"enabled": True},
        "log": {"format": "json", "level": "debug", "requests": True},
        "traces": {"endpoint": collector.endpoint},
    }
    with Server(tmp_path_factory.mktemp("observed"), **sections) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[blindai.Client]:
    with connect(server) as client:
        yield client


class Metrics:
    """The metrics of a server, as Prometheus reads them."""

    def __init__(self, server: Server):
        with Http(server.public_port) as http:
            answer = http.get("/metrics")
        assert answer.status == 200
        assert answer.headers["content-type"].startswith("application/openmetrics-text")
        self.text = answer.body.decode()
        families = text_string_to_metric_families(self.text)
        self.samples = [sample for family in families for sample in family.samples]

    def sum(self, name: str, **labels: str) -> float:
        return sum(
            sample.value
            for sample in self.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )


def upload(server: Server, client: blindai.Client, model: str, graph: bytes) -> str:
    """Upload a model and ask for its number in the metrics, as its owner would."""
    client.models.upload(graph, name=model)
    return slot_of(server, model)


def slot_of(server: Server, model: str, version: str = "1") -> str:
    with server.http() as http:
        return str(http.get(f"/v1/models/{model}/versions/{version}").json["metrics_slot"])


def metrics_with(server: Server, name: str, value: float, **labels: str) -> Metrics:
    """The metrics, as soon as one has this value: the text may be a second old."""

    def look() -> Metrics | None:
        metrics = Metrics(server)
        return metrics if metrics.sum(name, **labels) == value else None

    return wait_for(
        look, f"{name} {labels} to be {value}; it is {Metrics(server).sum(name, **labels)}"
    )


def events(server: Server) -> list[dict]:
    """The log so far; the last line may be on its way."""
    text = server.log
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


# Metrics


def test_there_are_no_metrics_unless_they_are_turned_on(tmp_path: Path):
    with Server(tmp_path) as server, connect(server) as client:
        for port in (server.port, server.public_port):
            with Http(port) as http:
                assert http.get("/metrics").json["code"] == "route-not-found"
        assert client.models.upload(graphs.add([1]), name="m").metrics_slot is None


def test_metrics_are_on_the_public_port_alone(server: Server):
    assert Metrics(server).text.endswith("# EOF\n")
    with server.http() as http:
        assert http.get("/metrics").status == 404


def test_an_inference_is_counted_under_the_number_of_its_model(
    server: Server, client: blindai.Client, model: str
):
    slot = upload(server, client, model, graphs.add([1]))
    for _ in range(3):
        client.infer(model, {"a": ONE, "b": ONE})
    with pytest.raises(blindai.InvalidInputError):
        client.infer(model, {"a": ONE})
    of_model = {"model": slot}
    metrics = metrics_with(server, "blindai_inference_batch_requests_count", 3, **of_model)
    stage = "blindai_inference_stage_seconds"
    assert {s.labels["stage"] for s in metrics.samples if s.name == f"{stage}_count"} == STAGES
    times = {name: metrics.sum(f"{stage}_sum", stage=name, **of_model) for name in STAGES}
    for name in STAGES:
        assert metrics.sum(f"{stage}_count", stage=name, **of_model) == 3
    parts = sum(times.values()) - times["total"]
    assert 0 < parts <= times["total"]
    assert metrics.sum("blindai_workers", **of_model) == 1
    assert metrics.sum("blindai_worker_resident_bytes", **of_model) > 1 << 20
    assert metrics.sum("blindai_uploaded_bytes_total") >= len(graphs.add([1]))
    route = "/v2/models/{name}/infer"
    assert metrics.sum("blindai_requests_total", route=route, code="input-missing") == 1
    assert model not in metrics.text


def test_each_message_of_a_stream_is_told(server: Server, client: blindai.Client, model: str):
    """Its status is sent before any of them comes."""
    slot = upload(server, client, model, graphs.identity())
    tensor = service_pb2.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1])
    right = service_pb2.ModelInferRequest(
        model_name=model, inputs=[tensor], raw_input_contents=[ONE.tobytes()]
    )
    wrong = service_pb2.ModelInferRequest(model_name=model)
    route = "/inference.GRPCInferenceService/ModelStreamInfer"
    with triton.channel_to(server, client) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        messages = iter([right, wrong, right, right])
        metadata = [("x-request-id", "of-a-stream")]
        answers = list(stub.ModelStreamInfer(messages, metadata=metadata))
    assert [bool(answer.error_message) for answer in answers] == [False, True, False, False]
    count = "blindai_requests_total"
    metrics = metrics_with(server, count, 1, route=route, code="input-missing")
    assert metrics.sum("blindai_inference_batch_requests_count", model=slot) == 3
    for name in STAGES:
        stage = "blindai_inference_stage_seconds_count"
        assert metrics.sum(stage, stage=name, model=slot) == 3
    # A message with such a flag cannot be read, and ends its stream.
    with server.http() as http:
        http.request("POST", route, b"\7\0\0\0\0", content_type="application/grpc")
    metrics = metrics_with(server, count, 1, route=route, code="invalid-request")
    assert metrics.sum(count, route=route, code="") == 2
    told = [event for event in events(server) if event.get("route") == route]
    codes = {event["code"]: event["id"] for event in told if event["message"] == "refused"}
    assert codes.keys() == {"input-missing", "invalid-request"}
    assert codes["input-missing"] == "of-a-stream"


def test_a_number_is_given_out_again(server: Server, client: blindai.Client, model: str):
    for size, version in enumerate("abc", 1):
        client.models.upload(graphs.add([size]), name=model, version=version)
    first, second, third = (slot_of(server, model, version) for version in "abc")
    assert len({first, second, third}) == 3
    client.models.delete(model, version="a")
    client.models.upload(graphs.add([4]), name=model, version="d")
    assert slot_of(server, model, "d") == first
    assert slot_of(server, model, "b") == second
    held = client.models.get(model, version="d")
    assert str(held.metrics_slot) == first


def test_a_crash_is_counted(server: Server, client: blindai.Client, model: str):
    slot = upload(server, client, model, graphs.divide())
    with pytest.raises(blindai.ModelError):
        client.infer(model, {"a": LEAST, "b": MINUS_ONE})
    assert client.infer(model, {"a": LEAST, "b": np.array([1])})["y"] == LEAST
    restarts = "blindai_worker_restarts_total"
    metrics = metrics_with(server, restarts, 1, model=slot, cause="crash")
    assert metrics.sum(restarts, model=slot, cause="other") == 0
    assert metrics.sum("blindai_requests_total", code="worker-crashed", **{"class": "4xx"}) >= 1


def test_a_queue_is_seen(server: Server, client: blindai.Client, model: str):
    slot = upload(server, client, model, graphs.loop())
    with ThreadPoolExecutor() as pool:
        first = run_slowly(pool, server, client, model, 10**12)
        with Http(server.port, 1) as http:
            rounds = {"name": "rounds", "datatype": "INT64", "shape": [], "data": [1]}
            with pytest.raises(TimeoutError):
                http.request("POST", f"/v2/models/{model}/infer", {"inputs": [rounds]})
            metrics = metrics_with(server, "blindai_inference_waiting", 1, model=slot)
            assert metrics.sum("blindai_inference_running", model=slot) == 1

        def killed() -> bool:
            """A request whose worker was killed is computed once more."""
            for pid in server.workers():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)
            return first.done()

        wait_for(killed, "the request to end")
        with pytest.raises(blindai.ModelError):
            first.result()
    metrics_with(server, "blindai_inference_waiting", 0, model=slot)


def test_connections_and_bytes_are_counted(server: Server):
    def value(name: str) -> float:
        return Metrics(server).sum(f"blindai_{name}", port="attested")

    accepted, received = value("connections_accepted_total"), value("received_bytes_total")
    failed = value("handshakes_failed_total")
    with tls_socket(server.port) as connection:
        connection.sendall(b"GET /" + b"x" * 20_000)
        wait_for(lambda: value("received_bytes_total") > received + 20_000, "bytes to be counted")
        assert value("connections_accepted_total") > accepted
        opened = value("connections")
        assert opened >= 1
    wait_for(lambda: value("connections") < opened, "the connection to be gone")
    socket.create_connection(("localhost", server.port)).close()
    metrics_with(server, "blindai_handshakes_failed_total", failed + 1, port="attested")


def test_evidence_and_budgets_are_told(server: Server):
    metrics = Metrics(server)
    age = metrics.sum("blindai_evidence_age_seconds")
    remaining = metrics.sum("blindai_evidence_remaining_seconds")
    assert 3595 <= age + remaining <= 3600
    assert metrics.sum("blindai_collateral", state="fresh") == 1
    assert metrics.sum("blindai_collateral") == 1
    assert metrics.sum("blindai_memory_limit_bytes", budget="models") == 12 << 30
    assert metrics.sum("blindai_build_info", tee="sgx", simulated="true") == 1
    assert metrics.sum("blindai_ready") == 1


# Logs

Event = tuple[str, str, frozenset[str]]


def documented() -> Iterator[Event]:
    """Level, message and fields of the events in the table."""
    rows = re.findall(r"^\| (error|warn|info|debug) \| (.*?) \|(.*)\|$", PAGE, re.MULTILINE)
    for level, messages, fields in rows:
        for message in re.findall(r"`([^`]+)`", messages):
            yield level, message, frozenset(re.findall(r"`([a-z_]+)`", fields))


def in_sources() -> Iterator[Event]:
    """The same of all events in the sources, whether a test makes them happen or not."""
    text = r'"((?:[^"\\]|\\.)*)"'
    for file in sorted((ROOT / "crates").glob("*/src/**/*.rs")):
        source = file.read_text()
        assert "use tracing::" not in source, file
        # The last argument is the message, a literal.
        event = rf"tracing::(\w+)!\(((?:[^;]*?,)??)\s*{text},?\s*\)"
        found = re.findall(event, source, re.DOTALL)
        assert [level for level, *_ in found] == re.findall(r"tracing::(\w+)!", source), file
        for level, before, message in found:
            message = re.sub(r"\\\n\s*", "", message)
            constant = re.fullmatch(r"\{([A-Z]+)\}", message)
            if constant:
                message = re.search(rf"const {constant[1]}: &str = {text}", source)[1]
            fields = re.findall(r"(?:^|,)\s*%?(\w+)(?=\s*=[^=]|\s*,)", before)
            yield level, message, frozenset(fields)


def fits(told: str, message: str) -> bool:
    return told == message or (message.endswith("…") and told.startswith(message[:-1]))


def test_every_event_of_the_sources_is_documented_and_no_other():
    events, page = list(in_sources()), list(documented())
    assert len(events) > 25
    for level, told, fields in events:
        rows = [row for row in page if row[0] == level and fits(told, row[1])]
        assert len(rows) == 1, (level, told)
        assert fields == rows[0][2], told
    for level, message, _ in page:
        assert any(level == of and fits(told, message) for of, told, _ in events), message


def test_every_line_is_json_with_documented_fields(server: Server, client: blindai.Client):
    with server.http() as http:
        http.get("/v1/models/absent", x_request_id="mine")
        http.get("/v2")
    lines = events(server)
    for line in lines:
        (fields,) = {
            fields
            for level, message, fields in documented()
            if level == line["level"].lower() and fits(line["message"], message)
        }
        assert line.keys() - {"timestamp", "level", "message", "target"} <= fields, line
    (refused,) = [line for line in lines if line.get("id") == "mine"]
    assert (refused["message"], refused["code"]) == ("refused", "model-not-found")
    assert (refused["route"], refused["port"]) == ("/v1/models/{name}", "attested")
    assert {"started", "ready", "refused", "answered"} <= {line["message"] for line in lines}


@pytest.mark.parametrize(("level", "told"), [("error", False), ("warn", False), ("info", True)])
def test_the_level_decides_what_is_told(tmp_path: Path, level: str, told: bool):
    with Server(tmp_path, log={"level": level}) as server, server.http() as http:
        http.get("/v1/models/absent")
        http.get("/v2")
    assert ("refused" in server.log) == told
    assert "answered" not in server.log


def test_a_server_that_does_not_start_says_so_in_json(tmp_path: Path, server: Server):
    listen = {"attested": f"127.0.0.1:{server.port}"}
    other = Server(tmp_path, log={"format": "json"}, listen=listen).start()
    assert other.process
    assert other.process.wait(30) == 5
    (line,) = events(other)
    assert line["message"] == "not started"
    assert "listen.attested" in line["fact"]


# Traces


def test_a_trace_has_the_stages_of_an_inference(
    server: Server, client: blindai.Client, collector: Collector, model: str
):
    slot = upload(server, client, model, graphs.add([1]))
    tensors = [{"name": n, "datatype": "FP32", "shape": [1], "data": [1]} for n in "ab"]
    parent = f"00-{TRACE}-{SPAN}-00"
    with server.http() as http:
        answer = http.request(
            "POST", f"/v2/models/{model}/infer", {"inputs": tensors}, traceparent=parent
        )
        assert answer.status == 200
    mine = wait_for(
        lambda: [s for s in list(collector.spans) if s.trace_id.hex() == TRACE], "the trace"
    )
    (root,) = [span for span in mine if span.parent_span_id.hex() == SPAN]
    assert root.name == "POST /v2/models/{name}/infer"
    assert attributes(root) == {
        "http.request.method": "POST",
        "http.route": "/v2/models/{name}/infer",
        "http.response.status_code": 200,
        "blindai.port": "attested",
        "blindai.model": int(slot),
    }
    stages = [span for span in mine if span is not root]
    assert [span.name for span in stages] == ["receive", "queue", "compute", "send"]
    for span in stages:
        assert span.parent_span_id == root.span_id
        assert root.start_time_unix_nano <= span.start_time_unix_nano
        assert span.start_time_unix_nano <= span.end_time_unix_nano <= root.end_time_unix_nano
    (line,) = [line for line in events(server) if line.get("trace") == TRACE]
    assert line["id"] == answer.headers["x-request-id"]


def test_a_refusal_is_traced_with_its_code(server: Server, collector: Collector):
    with Http(server.public_port) as http:
        assert http.get("/v1/attestation?nonce=short").status == 400
    name = "GET /v1/attestation"

    def refused() -> list:
        return [span for span in collector.named(name) if "blindai.code" in attributes(span)]

    (span,) = wait_for(refused, "the span")
    assert attributes(span)["blindai.code"] == "invalid-request"
    assert attributes(span)["blindai.port"] == "public"
    assert not span.parent_span_id


def test_the_caller_does_not_decide_what_is_traced(tmp_path: Path):
    with collecting() as collector:
        traces = {"endpoint": collector.endpoint, "sample_ratio": 0}
        with Server(tmp_path, traces=traces) as server, server.http() as http:
            http.get("/v2", traceparent=f"00-{TRACE}-{SPAN}-01")
    assert not collector.bodies


def test_a_collector_that_is_away_costs_traces_and_nothing_else(tmp_path: Path):
    (port,) = free_ports(1)
    sections = {"traces": {"endpoint": f"http://127.0.0.1:{port}"}, "metrics": {"enabled": True}}
    with Server(tmp_path, **sections) as server:
        with server.http() as http:
            assert http.get("/v2").status == 200
        failed = {"outcome": "export-failed"}
        wait_for(
            lambda: Metrics(server).sum("blindai_traces_total", **failed) > 0, "traces to be lost"
        )
        assert Metrics(server).sum("blindai_traces_total", outcome="exported") == 0
    assert server.log.count("traces are not taken") == 1


# Watching


def top(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(binary()), "top", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_top_prints_a_snapshot(server: Server, client: blindai.Client, model: str):
    slot = upload(server, client, model, graphs.add([1]))
    client.infer(model, {"a": ONE, "b": ONE})
    metrics_with(server, "blindai_inference_batch_requests_count", 1, model=slot)
    done = top(f"localhost:{server.public_port}", "--once")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("UNVERIFIED")
    assert "sgx (simulated)" in done.stdout
    rows = [line.split() for line in done.stdout.splitlines()]
    (total,) = [row for row in rows if row[:2] == [slot, "total"]]
    assert float(total[2]) > 0
    assert model not in done.stdout
    # Not a terminal, and nothing was said of a snapshot.
    assert "--once" in top(f"localhost:{server.public_port}").stderr


def test_top_says_how_to_get_metrics(tmp_path: Path):
    with Server(tmp_path) as server:
        done = top(f"localhost:{server.public_port}", "--once")
    assert done.returncode == 2
    assert "metrics.enabled" in done.stderr


def test_top_draws_on_a_terminal_until_q(server: Server):
    terminal, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 120, 0, 0))
    command = [str(binary()), "top", f"localhost:{server.public_port}", "--interval", "1"]
    process = subprocess.Popen(command, stdin=inner, stdout=inner, stderr=inner)
    os.close(inner)
    screen = b""
    try:
        while b"UNVERIFIED" not in screen or b"outcomes" not in screen:
            screen += os.read(terminal, 65536)
        os.write(terminal, b"q")
        assert process.wait(30) == 0
    finally:
        process.kill()
        os.close(terminal)
