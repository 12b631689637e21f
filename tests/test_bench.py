"""`blindai bench` against real servers: what it counts, what it writes, what it refuses."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import graphs
import numpy as np
import pytest
from support import PATIENCE, Server, binary

import blindai
from tools.peers import write_certificate

VOID = {"meta", "br", "link"}


def bench(server: Server | str, *arguments: str) -> subprocess.CompletedProcess[str]:
    address = server if isinstance(server, str) else server.address
    command = [str(binary()), "bench", *arguments, "--server", address]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)


def measure(server: Server | str, *arguments: str) -> dict:
    done = bench(server, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def identity(client: blindai.Client, model: str) -> str:
    client.models.upload(graphs.identity(), name=model)
    return model


SHORT = ("--simulation", "--shape", "x=1", "--warmup", "100ms")


def test_a_closed_loop_counts_every_request(server: Server, identity: str):
    got = measure(server, identity, *SHORT, "--requests", "500", "--concurrency", "4")
    assert (got["loop"], got["concurrency"], got["requests"]) == ("closed", 4, 500)
    assert (got["failed"], got["errors"], got["unsent"], got["late"]) == (0, {}, 0, 0)
    assert (got["attested"], got["simulated"]) == (True, True)
    # Those that were under way when the warm-up ended count in part.
    served = got["requests_per_second"] * got["elapsed_s"]
    assert 500 - 1e-6 <= served <= 504
    latency = got["latency_ms"]
    order = [latency[q] for q in ("min", "p50", "p90", "p99", "p99.9", "max")]
    assert order == sorted(order)
    assert order[0] > 0
    # Requests of one caller follow each other: together they cannot take longer than the run.
    assert latency["mean"] * 500 / 4 <= got["elapsed_s"] * 1e3 * 1.05


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_both_protocols_are_measured(tmp_path: Path, protocol: str):
    with Server(tmp_path, log={"requests": True}) as server:
        with blindai.connect(server.address, simulation=True) as client:
            client.models.upload(graphs.identity(), name="m")
        load = ("--protocol", protocol, "--requests", "20", "--concurrency", "2")
        got = measure(server, "m", *SHORT, *load)
        assert (got["requests"], got["failed"], got["errors"]) == (20, 0, {})
        assert (got["attested"], got["simulated"]) == (True, True)
        route = {"http": "infer", "grpc": "ModelInfer"}[protocol]
        assert server.log.count(route) >= 20
        refused = bench(server, "none", *SHORT, "--protocol", protocol)
        assert (refused.returncode, "model-not-found" in refused.stderr) == (1, True)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_load_may_last_longer_than_the_evidence(tmp_path: Path, protocol: str):
    with Server(tmp_path, tee={"evidence_seconds": 4}) as server:
        with blindai.connect(server.address, simulation=True) as client:
            client.models.upload(graphs.identity(), name="m")
        load = ("--protocol", protocol, "--rate", "20", "--concurrency", "2", "--duration", "7s")
        got = measure(server, "m", *SHORT, *load)
        assert got["requests"] > 100
        assert got["errors"] == {}


def test_an_open_loop_keeps_its_schedule(server: Server, identity: str):
    load = ("--rate", "200", "--arrivals", "poisson", "--duration", "1s", "--seed", "3")
    got = measure(server, identity, *SHORT, *load)
    assert (got["loop"], got["rate"], got["arrivals"]) == ("open", 200, "poisson")
    # As many as the seed says, whatever the machine: sent, or counted as not sent.
    again = measure(server, identity, *SHORT, *load)
    assert got["requests"] + got["unsent"] == again["requests"] + again["unsent"]
    assert 130 < got["requests"] + got["unsent"] < 270


def test_what_a_server_cannot_take_is_shown_and_not_hidden(
    server: Server, client: blindai.Client, model: str, tmp_path: Path
):
    client.models.upload(graphs.loop(), name=model)
    np.save(tmp_path / "rounds.npy", np.array(100_000))
    began = time.monotonic()
    client.infer(model, {"rounds": np.array(100_000)})
    seconds = time.monotonic() - began
    # Ten times as many as one connection can bring through.
    rate = max(10 / seconds, 20.0)
    done = bench(
        server,
        model,
        *("--simulation", "--warmup", "0s", "--duration", "1s", "--json"),
        *("--input", f"rounds={tmp_path / 'rounds.npy'}"),
        *("--rate", f"{rate:.1f}", "--concurrency", "1"),
    )
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    assert got["unsent"] > got["requests"] > 0
    assert got["requests"] + got["unsent"] == pytest.approx(rate, abs=1)
    assert "could not be sent in time" in done.stderr
    # The last one that was sent had waited most of the run, though its answer took a tenth.
    assert got["latency_ms"]["max"] > 2 * seconds * 1e3
    assert got["delay_ms"]["max"] > seconds * 1e3


class Outline(HTMLParser):
    """Checks that elements nest, and collects what a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.loads += [value or "" for name, value in attributes if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_report_is_one_page_that_loads_nothing(server: Server, identity: str, tmp_path: Path):
    page = tmp_path / "report.html"
    load = ("--rate", "100", "--duration", "500ms", "--report", str(page))
    done = bench(server, identity, *SHORT, *load)
    assert done.returncode == 0, done.stderr
    assert "throughput" in done.stdout
    assert "latency p99" in done.stdout
    text = page.read_text()
    outline = Outline()
    outline.feed(text)
    assert outline.open == []
    assert outline.seen.count("svg") == 4
    assert outline.loads == []
    assert "script" not in outline.seen
    assert "url(" not in text
    assert identity in text
    assert "prefers-color-scheme: dark" in text


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        ((), "say its shape: --shape x=", 2),
        (("--shape", "z=1"), "no random input", 2),
        (("--shape", "x=1,1"), "input-shape", 2),
        (("--shape", "x=1", "--input", "y=INPUT"), "input-unknown", 2),
        (("--input", "x=/nowhere.npy"), "/nowhere.npy cannot be read", 2),
        (("--shape", "x=1", "--rate", "0"), "--rate 0 is not between", 2),
        (("--shape", "x=1", "--concurrency", "0"), "--concurrency 0 is not between", 2),
        (("--shape", "x=1", "--duration", "soon"), "write 500ms, 10s or 2m", 2),
        (("--shape", "x=1", "--arrivals", "poisson"), "--rate", 2),
        (("--shape", "x=1", "--version", "9"), "model-not-found", 1),
    ],
    # The name of the test is that of the model.
    ids=itertools.count(),
)
def test_wrong_requests_are_refused_in_words(
    server: Server, identity: str, tmp_path: Path, arguments: tuple[str, ...], words: str, code: int
):
    np.save(tmp_path / "x.npy", np.zeros(1, np.float32))
    given = [argument.replace("INPUT", str(tmp_path / "x.npy")) for argument in arguments]
    done = bench(server, identity, "--simulation", *given)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert done.stdout == ""


def test_an_unproven_server_gets_no_load(server: Server, identity: str):
    done = bench(server, identity, "--shape", "x=1")
    assert done.returncode == 1
    assert "trust-root-simulation" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_failing_server_is_counted_by_code(tmp_path: Path, protocol: str):
    with Server(tmp_path, limits={"concurrent_requests": 1}) as server:
        with blindai.connect(server.address, simulation=True) as client:
            client.models.upload(graphs.loop(), name="slow")
        np.save(tmp_path / "rounds.npy", np.array(20_000))
        load = ("--simulation", "--warmup", "0s", "--requests", "60", "--concurrency", "8")
        load = (*load, "--protocol", protocol)
        got = measure(server, "slow", *load, "--input", f"rounds={tmp_path / 'rounds.npy'}")
    assert got["requests"] + got["failed"] == 60
    assert got["errors"] == {"too-many-requests": got["failed"]}
    assert got["failed"] > 0


def test_another_server_is_measured_with_its_certificate(tmp_path: Path):
    np.save(tmp_path / "x.npy", np.zeros(1, np.float32))
    certificate, key = write_certificate(tmp_path)
    load = ("--requests", "50", "--warmup", "0s", "--input", f"x={tmp_path / 'x.npy'}")
    with peer(certificate, key) as (address, bodies):
        got = measure(address, "m", *load, "--unattested", str(certificate))
        assert (got["requests"], got["attested"], got["simulated"]) == (50, False, False)
        assert bodies[-1].endswith(b"}\0\0\0\0")
        measure(address, "m", *load, "--unattested", str(certificate), "--tensors", "json")
        assert json.loads(bodies[-1])["inputs"][0]["data"] == [0.0]
        (tmp_path / "other").mkdir()
        other, _ = write_certificate(tmp_path / "other")
        refused = bench(address, "m", *load, "--unattested", str(other))
        assert refused.returncode == 2
        assert "tls-failed" in refused.stderr


@contextlib.contextmanager
def peer(certificate: Path, key: Path) -> Iterator[tuple[str, list[bytes]]]:
    """A server over TLS that answers every request with `{}`, and the bodies that it was sent."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    bodies: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), context.wrap_socket(connection, True) as stream:
            reader = stream.makefile("rb")
            while reader.readline():
                length = 0
                while (line := reader.readline()) not in (b"\r\n", b""):
                    name, _, value = line.partition(b":")
                    length = int(value) if name.lower() == b"content-length" else length
                bodies.append(reader.read(length))
                stream.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield f"localhost:{listener.getsockname()[1]}", bodies
        listener.shutdown(socket.SHUT_RDWR)
