"""Faults under load: workers killed, models replaced, the server stopped, and no wrong answer.

Every request ends in a right answer or in an error that says whether to come again, and afterwards
the server holds what it held before. `BLINDAI_FAULT_SECONDS` says for how long: 10 by default, 60
in `make soak`.
"""

from __future__ import annotations

import collections
import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import graphs
import numpy as np
import pytest
from conftest import SUMMARY, connect
from support import PATIENCE, Server, has_ended, resident_bytes, wait_for

import blindai
from tools import models

SECONDS = float(os.environ.get("BLINDAI_FAULT_SECONDS") or 10)
CLIENTS = 32
MIB = 1 << 20
# Nothing of a request was done, or it may be done again: these may be sent once more as they are.
RETRYABLE = {"too-many-requests", "not-ready", "worker-crashed"}
# Besides, where a model is being deleted, and where the server has gone.
DELETED = {"model-not-found"}
GONE = {"connect-failed", "tls-failed", "connection-lost"}
LIMITS = {"request_seconds": 30, "models": 16}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path, limits=LIMITS, engine={"threads": 1}) as server:
        with connect(server) as client:
            client.models.upload(graphs.add(["n"]), name="add")
            client.models.upload(graphs.identity(), name="echo")
            client.models.upload((models.TESTDATA / "small" / "cnn2d_digits.onnx"), name="digits")
        yield server


class Crowd:
    """Clients that ask until they are told to stop, and what became of their requests."""

    def __init__(self, server: Server, allowed: set[str]):
        self.server = server
        self.allowed = allowed
        self.ended = threading.Event()
        self.lock = threading.Lock()
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.wrong: list[str] = []
        self.threads = [
            threading.Thread(target=self.ask, args=(number,), daemon=True)
            for number in range(CLIENTS)
        ]
        self.threads += [
            threading.Thread(target=self.replace, args=(n,), daemon=True) for n in (1, 2)
        ]

    def __enter__(self) -> Crowd:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        end = time.monotonic() + PATIENCE
        for thread in self.threads:
            thread.join(max(0, end - time.monotonic()))
        assert not [thread for thread in self.threads if thread.is_alive()], "a request hangs"
        assert not self.wrong, self.wrong[:5]

    def ask(self, number: int) -> None:
        """Own numbers to a model in turn: an answer of somebody else's would show."""
        images, digits = digits_and_answers()
        turn = 0
        with connect(self.server, timeout=PATIENCE) as client:
            while not self.ended.is_set():
                turn += 1
                own = np.full(number + 1, 1000 * number + turn % 1000, np.float32)
                calls = [
                    ("add", {"a": own, "b": own}, "y", 2 * own),
                    ("echo", {"x": own}, "y", own),
                    ("digits", images, *digits),
                ]
                name, inputs, output, expected = calls[turn % 3]
                with self.counted(self.allowed):
                    self.check(client.infer(name, inputs)[output], expected)

    def replace(self, number: int) -> None:
        """A model that comes and goes, of other content each time."""
        name = f"comes-and-goes-{number}"
        turn = 0
        with connect(self.server, timeout=PATIENCE) as client:
            while not self.ended.is_set():
                turn += 1
                weights = np.full((64, 1024), turn, np.float32)
                with self.counted(self.allowed):
                    client.models.upload(graphs.heavy(weights), name=name)
                with self.counted(self.allowed | DELETED):
                    self.check(client.infer(name, {"x": np.float32(1)})["y"], weights + 1)
                with self.counted(self.allowed | DELETED):
                    client.models.delete(name)

    def check(self, got: np.ndarray, expected: np.ndarray) -> None:
        if not np.allclose(got, expected, rtol=1e-4, atol=1e-4):
            with self.lock:
                self.wrong.append("a wrong answer")

    @contextlib.contextmanager
    def counted(self, allowed: set[str]) -> Iterator[None]:
        """Around one request."""
        try:
            yield
            outcome = "answered"
        except blindai.BlindAIError as error:
            clear = error.code in allowed and error.remedy
            outcome = error.code if clear else f"unexpected: {error}"
            # As a client would that was told to come again.
            time.sleep(0.05)
        except Exception as error:
            outcome = f"unexpected: {error!r}"
        with self.lock:
            self.outcomes[outcome] += 1
            if outcome.startswith("unexpected"):
                self.wrong.append(outcome)


def digits_and_answers() -> tuple[dict[str, np.ndarray], tuple[str, np.ndarray]]:
    with np.load(models.TESTDATA / "small" / "cnn2d_digits.npz") as stored:
        given = {key[3:]: stored[key] for key in stored.files if key.startswith("in_")}
        (output,) = [key for key in stored.files if key.startswith("out_")][:1]
        return given, (output[4:], stored[output])


def held(server: Server) -> dict[str, int]:
    """What a server has of everything that could leak, memory apart."""
    links = open_files(server.pid)
    return {
        "files": len(links),
        "memory files": sum(link.startswith("/memfd:") for link in links),
        "workers": len(server.workers()),
        "in /dev/shm": len(shared_memory()),
    }


def settled(server: Server) -> dict[str, int]:
    """What it has when nothing changes any more: clients that have gone are seen a little later."""
    looks: list[dict[str, int]] = []

    def is_still() -> bool:
        time.sleep(0.5)
        looks.append(held(server))
        return len(looks) > 2 and looks[-1] == looks[-2] == looks[-3]

    wait_for(is_still, "the server to settle")
    return looks[-1]


def open_files(pid: int) -> list[str]:
    """What a process has open; the server lets nobody but root look."""
    found = []
    with contextlib.suppress(PermissionError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            # Some are closed while one looks.
            with contextlib.suppress(FileNotFoundError):
                found.append(str(link.readlink()))
    return found


def shared_memory() -> list[str]:
    return sorted(entry.name for entry in Path("/dev/shm").iterdir() if "blindai" in entry.name)


def kill_a_worker(server: Server, chance: random.Random) -> bool:
    workers = server.workers()
    if workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(chance.choice(workers), signal.SIGKILL)
    return bool(workers)


def test_killed_workers_and_replaced_models_under_load(server: Server):
    with Crowd(server, set()):
        time.sleep(2)
    wait_for(lambda: held(server)["workers"] == 3, "models that came to have gone")
    before, memory = settled(server), resident_bytes(server.pid)
    chance = random.Random(1)
    kills = 0
    with Crowd(server, RETRYABLE) as crowd:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            time.sleep(1)
            kills += kill_a_worker(server, chance)
    SUMMARY["faults"] = [f"{kills} workers killed: {dict(crowd.outcomes)}"]
    assert crowd.outcomes["answered"] > CLIENTS
    with connect(server) as client:
        # Each model answers again, whatever the last kill hit.
        for name in ("add", "echo"):
            one = np.ones(1, np.float32)
            inputs = {"a": one, "b": one} if name == "add" else {"x": one}
            assert client.infer(name, inputs)["y"] == [1 + (name == "add")]
        client.infer("digits", digits_and_answers()[0])
        for model in client.models.list():
            if model.name.startswith("comes-and-goes"):
                client.models.delete(model.name)
    wait_for(lambda: len(server.workers()) == before["workers"], "the workers to be gone")
    assert settled(server) == before
    assert resident_bytes(server.pid) < memory + 48 * MIB


def test_a_stop_in_the_middle_of_it_all(server: Server):
    chance = random.Random(2)
    before = set(shared_memory())
    with Crowd(server, RETRYABLE | GONE) as crowd:
        time.sleep(min(SECONDS, 2))
        kill_a_worker(server, chance)
        workers = server.workers()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(PATIENCE) == 0, server.log[-4000:]
        wait_for(lambda: all(map(has_ended, workers)), "the workers to end")
    SUMMARY["stopped under load"] = [str(dict(crowd.outcomes))]
    assert crowd.outcomes["answered"] > CLIENTS
    assert set(shared_memory()) == before
