"""A server starts when it can, says in one line why it cannot, and stops without losing work."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import graphs
import numpy as np
import pytest
from conftest import connect
from support import Server, binary, has_ended, run_slowly, tls_socket, wait_for

import blindai

CONFIG, ENGINE, LISTEN, ATTESTATION = 3, 4, 5, 6


def refusal(server: Server, code: int) -> str:
    """The one line of a server that does not start."""
    if server.process is None:
        server.start()
    assert server.process.wait(30) == code, server.log
    (line,) = server.log.splitlines()
    assert line.startswith("blindai: ")
    return line


def test_ready_only_when_it_can_answer(tmp_path: Path):
    server = Server(tmp_path).start()
    try:
        # Whoever gets a connection gets a true answer: 503 before the server is ready, 200 after.
        server.wait_until_ready()
        with connect(server) as client:
            assert client.ready()
            client.models.upload(graphs.add([1]), name="add")
            one = np.ones(1, np.float32)
            assert client.infer("add", {"a": one, "b": one})["y"] == [2]
    finally:
        server.stop()


def test_nothing_is_left_behind(tmp_path: Path):
    with Server(tmp_path) as server, connect(server) as client:
        client.models.upload(graphs.add([1]), name="add")
        workers = server.workers()
        assert workers
    wait_for(lambda: all(map(has_ended, workers)), "the workers to end")


def to_the_server(server: Server, end: signal.Signals) -> None:
    os.kill(server.pid, end)


def to_its_group(server: Server, end: signal.Signals) -> None:
    """As a terminal does on Ctrl-C."""
    os.killpg(server.pid, end)


def to_every_process(server: Server, end: signal.Signals) -> None:
    """As systemd and container runtimes do; the workers first."""
    for pid in [*server.workers(), server.pid]:
        os.kill(pid, end)


@pytest.mark.parametrize("send", [to_the_server, to_its_group, to_every_process])
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_requests_end_and_takes_no_new_ones(
    tmp_path: Path, send: Callable[[Server, signal.Signals], None], end: signal.Signals
):
    with Server(tmp_path) as server, connect(server) as client, ThreadPoolExecutor() as pool:
        client.models.upload(graphs.loop(), name="slow")
        request = run_slowly(pool, server, client, "slow", 2_000_000)
        send(server, end)
        wait_for(lambda: not accepts(server.port), "the port to close")
        with pytest.raises(blindai.ConnectionError):
            connect(server)
        assert request.result()["total"] == 2_000_000


def test_a_connection_that_says_nothing_does_not_hold_the_server(tmp_path: Path):
    server = Server(tmp_path, limits={"drain_seconds": 2})
    with server:
        silent = tls_socket(server.port)
    silent.close()


@pytest.mark.parametrize("port", ["port", "public_port"])
def test_a_busy_port(tmp_path: Path, port: str):
    server = Server(tmp_path)
    with socket.socket() as other:
        other.bind(("127.0.0.1", getattr(server, port)))
        other.listen()
        assert str(getattr(server, port)) in refusal(server, LISTEN)


def test_all_errors_of_a_configuration_at_once(tmp_path: Path):
    server = Server(
        tmp_path,
        colour={"of": "doors"},
        limits={"models": 0, "body_byte": 1, "queue": "many"},
        tee={"simulation": "abacus"},
    )
    line = refusal(server, CONFIG)
    for part in ("colour", "limits.models", "limits.body_byte", "limits.queue", "tee.simulation"):
        assert part in line


@pytest.mark.parametrize("content", [b"[listen\n", b"\xff\xfe\0"])
def test_a_configuration_that_cannot_be_read(tmp_path: Path, content: bytes):
    server = Server(tmp_path)
    (tmp_path / "blindai.toml").write_bytes(content)
    assert "blindai.toml" in refusal(server, CONFIG)


def test_a_configuration_that_is_not_there(tmp_path: Path):
    server = Server(tmp_path)
    (tmp_path / "blindai.toml").unlink()
    assert "blindai.toml" in refusal(server, CONFIG)


def test_a_missing_library(tmp_path: Path):
    server = Server(tmp_path, engine={"onnxruntime": "/nowhere/libonnxruntime.so"})
    assert "/nowhere/libonnxruntime.so" in refusal(server, ENGINE)


def test_another_library_than_the_pinned_one(tmp_path: Path):
    other = tmp_path / "libonnxruntime.so"
    other.write_bytes(b"\x7fELF but not what was pinned")
    server = Server(tmp_path, engine={"onnxruntime": str(other)})
    assert str(other) in refusal(server, ENGINE)


def test_without_a_tee_only_simulation_by_name(tmp_path: Path):
    Server(tmp_path)
    done = subprocess.run(
        [str(binary()), "serve", "--config", "blindai.toml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == ATTESTATION
    assert "--simulation" in done.stderr


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
    except OSError:
        return False
    return True
