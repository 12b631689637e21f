"""Models in the server's own process, with no system calls but those of an enclave's library OS.

Neither Gramine nor an enclave is here: the kernel refuses what Gramine's documents say it has not
(like_gramine.py).
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import graphs
import numpy as np
import pytest
from conftest import connect
from s3 import serving, write_credentials
from support import PATIENCE, ROOT, Server

import blindai

LAUNCHER = [sys.executable, str(ROOT / "tests/like_gramine.py")]
NONE = "none: models run in the server's own process"
KINDS = ["onnxruntime", "tract"]


def confined(folder: Path, *more: str, engine: dict[str, str] | None = None, **sections) -> Server:
    """A server that is to run without the system calls that Gramine lacks, but for `more`."""
    server = Server(folder, engine={"isolation": "none", **(engine or {})}, **sections)
    allowed = [word for call in more for word in ("--with", call)]
    server.before = [*LAUNCHER, *allowed]
    return server


@pytest.fixture(scope="module", params=KINDS)
def enclave(request: pytest.FixtureRequest, tmp_path_factory) -> Iterator[Server]:
    with confined(tmp_path_factory.mktemp("enclave"), engine={"kind": request.param}) as server:
        yield server


@pytest.fixture(scope="module")
def client(enclave: Server) -> Iterator[blindai.Client]:
    with connect(enclave) as client:
        yield client


ATTEMPTS = """
import errno, fcntl, mmap, os, socket, subprocess, threading
def attempt(what):
    try: what()
    except (OSError, ValueError) as error: print(errno.errorcode[error.errno])
    else: print("done")
def shared_mapping():
    with open("/bin/sh", "rb") as file: mmap.mmap(file.fileno(), 4096, access=mmap.ACCESS_READ)
thread = threading.Thread(target=lambda: attempt(socket.socketpair))
thread.start()
thread.join()
for what in [
    os.fork, lambda: os.memfd_create("x"), lambda: os.execv("/bin/true", ["true"]),
    lambda: os.link("/bin/sh", "link"),
    lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET),
    lambda: socket.send_fds(socket.socketpair()[0], [b"x"], [0]), shared_mapping,
    lambda: mmap.mmap(-1, 4096).madvise(mmap.MADV_DONTFORK),
]: attempt(what)
"""


def test_the_launcher_takes_away_what_it_says(tmp_path: Path):
    command = [*LAUNCHER, sys.executable, "-c", ATTEMPTS]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    none = ["ENOSYS"] * 4
    assert done.stdout.split() == ["done", *none, "EPROTONOSUPPORT", "ENOSYS", "EACCES", "EINVAL"]


def test_the_server_says_that_nothing_stands_between(enclave: Server, client: blindai.Client):
    assert f"  workers        {NONE}" in enclave.log
    with enclave.http() as http:
        assert "blindai_isolation_none" in http.get("/v2").json["extensions"]
    assert "there is no prctl to turn core dumps off with" in enclave.log
    assert client.report.verdict == "trusted"


def test_a_server_with_processes_says_no_such_thing(server: Server):
    assert NONE not in server.log
    assert "prctl" not in server.log
    with server.http() as http:
        assert "blindai_isolation_none" not in http.get("/v2").json["extensions"]


def test_it_serves(enclave: Server, client: blindai.Client):
    a, b = np.array([1, 2, 3], np.float32), np.array([10, 20, 30], np.float32)
    model = client.models.upload(graphs.split(), name="split")
    outputs = client.infer("split", {"a": a, "b": b})
    np.testing.assert_array_equal(outputs["sum"], a + b)
    np.testing.assert_array_equal(outputs["difference"], a - b)
    again = client.infer("split", {"a": a[:1], "b": b[:1]}, receipt=True)
    assert again.receipt.model_digest == model.digest
    with pytest.raises(blindai.BlindAIError) as error:
        client.infer("split", {"a": a})
    assert error.value.code == "input-missing"
    client.models.delete("split")
    assert client.models.list() == []
    with pytest.raises(blindai.BlindAIError) as error:
        client.models.upload(b"no model", name="broken")
    assert error.value.code == "model-invalid"


def test_there_is_one_process_and_it_has_no_memory_files(enclave: Server, client: blindai.Client):
    client.models.upload(graphs.identity(), name="one")
    try:
        client.infer("one", {"x": np.zeros(1 << 20, np.float32)})
        assert enclave.workers() == []
        descriptors = [link.readlink() for link in Path(f"/proc/{enclave.pid}/fd").iterdir()]
        assert descriptors
        assert not [link for link in descriptors if "memfd" in str(link)]
    finally:
        client.models.delete("one")


def test_a_request_that_takes_too_long_ends_and_the_next_is_answered(tmp_path: Path):
    limits = {"request_seconds": 1}
    with confined(tmp_path, limits=limits) as server, connect(server) as client:
        client.models.upload(graphs.loop(), name="loop")
        with pytest.raises(blindai.BlindAIError) as error:
            client.infer("loop", {"rounds": np.array(1 << 62)})
        assert error.value.code == "deadline-exceeded"
        assert client.infer("loop", {"rounds": np.array(7)})["total"] == 7


def test_a_panic_costs_the_request_and_is_told_to_nobody_else(tmp_path: Path):
    one, zero = np.array([1]), np.array([0])
    with confined(tmp_path, engine={"kind": "tract"}) as server, connect(server) as client:
        client.models.upload(graphs.divide(), name="divide")
        with pytest.raises(blindai.BlindAIError) as error:
            client.infer("divide", {"a": one, "b": zero})
        assert error.value.code == "model-failed"
        assert client.infer("divide", {"a": one, "b": one})["y"] == [1]
        assert "panicked" not in server.log


def test_one_request_can_end_the_server_as_the_documentation_says(tmp_path: Path):
    least, minus_one = np.array([-(2**63)]), np.array([-1])
    server = confined(tmp_path).start()
    server.wait_until_ready()
    with connect(server) as client:
        client.models.upload(graphs.divide(), name="divide")
        with pytest.raises(blindai.BlindAIError):
            client.infer("divide", {"a": least, "b": minus_one})
    assert server.process
    assert server.process.wait(PATIENCE) == -signal.SIGFPE


def test_models_are_kept_sealed_in_an_object_store(tmp_path: Path):
    with serving() as s3:
        s3.create_bucket(Bucket="kept")
        store = {
            "location": "s3://kept/here",
            "credentials": write_credentials(tmp_path, s3, "secret"),
            "simulated_key": str(tmp_path / "key"),
        }
        server = confined(tmp_path / "server", store=store)
        x = np.array([1, 2], np.float32)
        with server, connect(server) as client:
            client.models.upload(graphs.identity(), name="kept")
            client.models.upload(graphs.identity(), name="gone")
            client.models.delete("gone")
        with server, connect(server) as client:
            assert [model.name for model in client.models.list()] == ["kept"]
            np.testing.assert_array_equal(client.infer("kept", {"x": x})["y"], x)


def test_a_folder_cannot_be_a_store_without_hard_links(tmp_path: Path):
    store = {"location": str(tmp_path / "store"), "simulated_key": str(tmp_path / "key")}
    server = confined(tmp_path / "server", store=store).start()
    assert server.process
    assert server.process.wait(PATIENCE) == 8, server.log
    assert "store: " in server.log


@pytest.mark.parametrize("isolation", ["process", "filtered", "full"])
def test_with_processes_the_server_does_not_start_there(tmp_path: Path, isolation: str):
    for more, code, why in [
        ((), 3, "core dumps cannot be turned off"),
        (("prctl",), 4, "no memory file for ONNX Runtime"),
    ]:
        server = confined(tmp_path / str(code), *more, engine={"isolation": isolation}).start()
        assert server.process
        assert server.process.wait(PATIENCE) == code, server.log
        assert why in server.log


def test_with_processes_no_model_loads_there_where_core_dumps_can_be_turned_off(tmp_path: Path):
    engine = {"kind": "tract", "isolation": "process"}
    server = confined(tmp_path, "prctl", engine=engine).start()
    assert server.process
    try:
        server.wait_until_ready()
        assert NONE not in server.log
        with connect(server) as client, pytest.raises(blindai.BlindAIError) as error:
            client.models.upload(graphs.identity(), name="m")
        assert error.value.code == "internal"
    finally:
        server.process.kill()
        server.process.wait()


def test_where_the_kernel_hides_processes_core_dumps_are_off_all_the_same(tmp_path: Path):
    server = Server(tmp_path, engine={"isolation": "none"})
    with server:
        limits = Path(f"/proc/{server.pid}/limits").read_text()
        (line,) = [line for line in limits.splitlines() if line.startswith("Max core file size")]
        assert line.split()[4:6] == ["0", "0"]
        # What cannot be dumped belongs to root.
        assert Path(f"/proc/{server.pid}/mem").stat().st_uid == 0
