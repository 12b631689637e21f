"""One exception tree, by which callers can tell what to do."""

from __future__ import annotations

import asyncio
import builtins
import json
import os
import pickle
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import blindai
from blindai import _connect
from blindai._report import Report

TREE = [
    blindai.AccessError,
    blindai.AttestationError,
    blindai.PolicyError,
    blindai.ModelError,
    blindai.InvalidInputError,
    blindai.ServerError,
    blindai.ConnectionError,
]
REJECTED = {
    "verdict": "rejected",
    "code": "debug",
    "fact": "debug is on",
    "remedy": "",
    "checks": [
        {"name": "debug", "outcome": "fail", "code": "debug", "detail": "on", "remedy": "turn off"}
    ],
}


@contextmanager
def listener() -> Iterator[tuple[str, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}", server


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_connect, "_warned", True)


@pytest.mark.parametrize("kind", TREE)
def test_every_error_has_code_fact_and_remedy_and_survives_pickling(
    kind: type[blindai.BlindAIError],
) -> None:
    error = kind("a-code", "the fact", "the remedy")
    error.request_id = "r7"
    for same in (error, pickle.loads(pickle.dumps(error))):  # noqa: S301
        assert type(same) is kind
        assert isinstance(same, blindai.BlindAIError)
        assert (same.code, same.fact, same.remedy) == ("a-code", "the fact", "the remedy")
        assert same.request_id == "r7"
        assert str(same) == "a-code: the fact · the remedy"
    assert str(kind("a-code", "the fact")) == "a-code: the fact"


def test_the_builtins_catch_ours() -> None:
    assert issubclass(blindai.ConnectionError, builtins.ConnectionError)
    assert issubclass(blindai.InvalidInputError, ValueError)


def test_an_attestation_error_carries_its_report() -> None:
    error = blindai.AttestationError("debug", "debug is on")
    assert error.report is None
    error.report = Report(json.dumps(REJECTED), "rejected\n")
    [check] = pickle.loads(pickle.dumps(error)).report.checks  # noqa: S301
    assert (check.name, check.outcome, check.remedy) == ("debug", "fail", "turn off")


@pytest.mark.parametrize("address", ["", "http://localhost", "localhost:0", "a b"])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(blindai.InvalidInputError) as caught:
        blindai.connect(address, simulation=True)
    assert caught.value.code == "address-invalid"


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf")])
def test_a_timeout_that_is_none(timeout: float) -> None:
    with pytest.raises(blindai.InvalidInputError):
        blindai.connect("localhost", simulation=True, timeout=timeout)


def test_policies_that_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    with pytest.raises(blindai.PolicyError) as caught:
        blindai.connect("localhost", policy=path)
    assert caught.value.code == "policy-unreadable"
    for text in ("", "tee = [", 'tee = ["sgx"]\ntypo = 1\n'):
        path.write_text(text)
        with pytest.raises(blindai.PolicyError) as caught:
            blindai.connect("localhost", policy=path)
        assert caught.value.code == "policy-invalid"
        assert str(path) in caught.value.fact


def test_nobody_listens() -> None:
    with listener() as (address, _):
        pass
    with pytest.raises(builtins.ConnectionError) as caught:
        blindai.connect(address, simulation=True)
    assert isinstance(caught.value, blindai.ConnectionError)
    assert caught.value.code == "connect-failed"
    assert caught.value.remedy


def hang_up(server: socket.socket) -> None:
    connection, _ = server.accept()
    connection.recv(1)
    connection.close()


def test_the_gil_is_released_while_waiting() -> None:
    """The peer is a thread of this process: with the GIL held, it could never hang up."""
    with listener() as (address, server):
        peer = threading.Thread(target=hang_up, args=[server])
        peer.start()
        with pytest.raises(blindai.ConnectionError) as caught:
            blindai.connect(address, simulation=True, timeout=60)
        peer.join()
    assert caught.value.code == "tls-failed"


def test_ctrl_c_ends_a_wait() -> None:
    # A shell that runs the tests in the background has told them to ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        interrupted_wait()
    finally:
        signal.signal(signal.SIGINT, before)


def interrupted_wait() -> None:
    with listener() as (address, server):

        def interrupt() -> None:
            connection, _ = server.accept()
            os.kill(os.getpid(), signal.SIGINT)
            done.wait()
            connection.close()

        done = threading.Event()
        peer = threading.Thread(target=interrupt)
        peer.start()
        with pytest.raises(KeyboardInterrupt):
            blindai.connect(address, simulation=True, timeout=600)
        done.set()
        peer.join()


def test_a_timeout_is_a_connection_error() -> None:
    with listener() as (address, _), pytest.raises(blindai.ConnectionError) as caught:
        blindai.connect(address, simulation=True, timeout=0.05)
    assert caught.value.code == "connect-timeout"


def test_asyncio_raises_the_same_and_can_cancel() -> None:
    async def refused(address: str) -> None:
        with pytest.raises(blindai.ConnectionError) as caught:
            await blindai.aio.connect(address, simulation=True)
        assert caught.value.code == "tls-failed"

    async def cancelled(address: str) -> None:
        async def enter() -> None:
            async with blindai.aio.connect(address, simulation=True, timeout=600):
                pytest.fail("nobody answered")

        task = asyncio.create_task(enter())
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with listener() as (address, server):
        peer = threading.Thread(target=hang_up, args=[server])
        peer.start()
        asyncio.run(refused(address))
        peer.join()
        asyncio.run(cancelled(address))


def test_simulation_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_connect, "_warned", False)
    with pytest.warns(blindai.SimulationWarning, match="PROTECTS NOTHING") as caught:
        for _ in range(2):
            with pytest.raises(blindai.InvalidInputError):
                blindai.connect("", simulation=True)
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_a_report_reads_like_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    document: dict[str, Any] = {
        "verdict": "trusted",
        "tee": "sgx",
        "simulated": True,
        "trust_root": "a root",
        "tcb_status": "UpToDate",
        "advisories": ["INTEL-SA-1"],
        "measurements": {"mrenclave": "00ff"},
        "valid_until": 0,
        "checks": REJECTED["checks"],
    }
    report = Report(json.dumps(document), "the table\n")
    print(report)
    assert capsys.readouterr().out == "the table\n"
    assert (report.tee, report.simulated, report.tcb_status) == ("sgx", True, "UpToDate")
    assert (report.trust_root, report.advisories) == ("a root", ("INTEL-SA-1",))
    assert report.measurements == {"mrenclave": "00ff"}
    assert report.valid_until and report.valid_until.isoformat() == "1970-01-01T00:00:00+00:00"
    assert report.to_dict() == document == json.loads(report.to_json())
