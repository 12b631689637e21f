"""One simulated server for all tests that do not need their own, and a client of it."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

# Before anything loads ONNX Runtime: later versions phone home unless told not to.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pytest
from support import Server

import blindai


def connect(server: Server, **options) -> blindai.Client:
    """A client of a simulated server; the warning has a test of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", blindai.SimulationWarning)
        return blindai.connect(server.address, simulation=True, **options)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with roomy limits."""
    with Server(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(scope="session")
def client(server: Server) -> Iterator[blindai.Client]:
    """A verified client of `server`."""
    with connect(server) as client:
        yield client


@pytest.fixture
def model(client: blindai.Client, request: pytest.FixtureRequest) -> Iterator[str]:
    """A free model name, whose models are deleted afterwards."""
    name = request.node.name.replace("[", "-").replace("]", "")
    yield name
    if any(held.name == name for held in client.models.list()):
        client.models.delete(name)


# Lines for the end of the run, by title; tests add to it.
SUMMARY: dict[str, list[str]] = {}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for title, lines in SUMMARY.items():
        terminalreporter.section(title)
        for line in lines:
            terminalreporter.line(line)
