"""Models of the configuration: loaded before the server is ready, out of memory, back, replaced."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import graphs
import numpy as np
import pytest
import triton
from conftest import connect
from support import PATIENCE, Http, Server, binary, has_ended, run_slowly, wait_for
from test_observability import Metrics, metrics_with
from tritonclient.grpc import service_pb2, service_pb2_grpc

import blindai

CONFIG, MODEL = 3, 7
MIB = 1 << 20


def adding(number: float) -> bytes:
    """`y = x + number`: its answer says which content gave it."""
    return graphs.heavy(np.array([number], np.float32))


def answer(client: blindai.Client, name: str, version: str | None = None) -> float:
    """What a model of `adding` adds."""
    return float(client.infer(name, {"x": np.float32(0)}, version=version)["y"][0])


def entry(folder: Path, name: str, number: float, **settings) -> dict:
    """An entry of the configuration, and its file."""
    folder.mkdir(exist_ok=True)
    file = folder / f"{name}-{number}.onnx"
    file.write_bytes(adding(number))
    return {"name": name, "path": str(file), **settings}


def loaded(client: blindai.Client) -> set[str]:
    """The names of the models that are in memory."""
    return {model.name for model in client.models.list() if model.loaded}


@pytest.fixture(scope="module")
def size(tmp_path_factory: pytest.TempPathFactory) -> int:
    """What one model of `adding` takes of limits.total_memory_bytes."""
    folder = tmp_path_factory.mktemp("size")
    models = [entry(folder, "one", 1)]
    with Server(folder, models=models, metrics={"enabled": True}) as server:
        return int(Metrics(server).sum("blindai_memory_used_bytes", budget="models"))


def tight(
    folder: Path, size: int, names: str, fit: float = 2.5, **sections
) -> contextlib.AbstractContextManager[Server]:
    """A server with models that add 1, 2, 3…, of which two fit into memory."""
    models = [entry(folder, name, number) for number, name in enumerate(names, 1)]
    limits = {"total_memory_bytes": int(fit * size), "model_bytes": MIB, "load_seconds": 30}
    sections["limits"] = {**limits, **sections.get("limits", {})}
    return Server(folder, models=models, metrics={"enabled": True}, **sections)


# At start


def test_models_are_there_as_soon_as_the_server_is_ready(tmp_path: Path):
    pinned = f"{hashlib.sha256(adding(1)).hexdigest()}"
    models = [
        entry(tmp_path, "one", 1, sha256=pinned),
        entry(tmp_path, "two", 2, version="7"),
        entry(tmp_path, "two", 3, version="8"),
    ]
    with Server(tmp_path, models=models) as server, connect(server) as client:
        held = [(model.name, model.version, model.loaded) for model in client.models.list()]
        assert held == [("one", "1", True), ("two", "7", True), ("two", "8", True)]
        assert client.models.get("one").digest == f"sha256:{pinned}"
        assert [answer(client, "one"), answer(client, "two")] == [1, 3]
        assert answer(client, "two", "7") == 2
        # What is already there is not loaded again; the next number is free.
        assert client.models.upload(adding(1), name="one").version == "1"
        assert client.models.upload(adding(9), name="one").version == "2"
        unpinned = [line for line in server.log.splitlines() if "not pinned" in line]
        assert len(unpinned) == 2
        assert "models[1]" in unpinned[0]
        assert "two" not in "".join(unpinned)


def test_settings_of_a_model_s_own(tmp_path: Path):
    models = [
        entry(tmp_path, "one", 1, workers=2, threads=1, warm_up=False),
        {"name": "later", "kind": "tract", "batching": {"max_rows": 4, "strict": False}},
    ]
    with Server(tmp_path, models=models) as server, connect(server) as client:
        assert len(server.workers()) == 2
        assert client.models.get("one").engine == "onnxruntime"
        assert client.models.upload(graphs.add(["n"]), name="later").engine == "tract"
        assert client.models.upload(graphs.add(["n"]), name="other").engine == "onnxruntime"
        assert len(server.workers()) == 4
        assert answer(client, "one") == 1


@contextlib.contextmanager
def held_while_loading(server: Server, begin: Callable[[], Any] = int) -> Iterator[Any]:
    """Until the end of the block, the worker stands still that loads a model, since `begin`."""
    before = set(server.workers())
    begun = begin()
    end = time.monotonic() + PATIENCE
    # Loading takes some tens of milliseconds, and must not be over before it is held.
    while not (stopped := set(server.workers()) - before):
        assert time.monotonic() < end, "no worker loads"
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield begun
    finally:
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def is_live(server: Server) -> bool:
    with contextlib.suppress(OSError):
        return Http(server.port, 5).get("/v2/health/live").status == 200
    return False


@contextlib.contextmanager
def still_loading(folder: Path) -> Iterator[Server]:
    """A server that loads many models, and stands still at one of them."""
    models = [entry(folder, f"m{number}", number) for number in range(12)]
    server = Server(folder, models=models).start()
    wait_for(lambda: is_live(server), "the ports to open")
    try:
        with held_while_loading(server):
            yield server
    except BaseException:
        server.process.kill()
        raise


def test_it_is_not_ready_while_it_loads(tmp_path: Path):
    with still_loading(tmp_path) as server:
        with server.http() as http:
            assert http.get("/v2/health/ready").status == 503
            assert http.get("/v1/models").json["code"] == "not-ready"
        assert Http(server.public_port).get("/v2/health/ready").status == 503
    server.wait_until_ready()
    with connect(server) as client:
        assert [answer(client, f"m{number}") for number in range(12)] == list(range(12))
    server.stop()


def test_it_can_be_stopped_while_it_loads(tmp_path: Path):
    with still_loading(tmp_path) as server:
        workers = server.workers()
        server.stop()
    wait_for(lambda: all(map(has_ended, workers)), "the workers to end")
    assert "ready\n" not in server.log


WRONG = {
    "missing": ({"path": "/nowhere/model.onnx"}, "model-unavailable"),
    "a folder": ({"path": "/tmp"}, "model-unavailable"),
    "endless": ({"path": "/dev/zero"}, "model-unavailable"),
    # Even for root.
    "unreadable": ({"path": "/proc/self/mem"}, "model-unavailable"),
    "other content": ({"sha256": "0" * 64}, "digest-mismatch"),
}


@pytest.mark.parametrize(("settings", "code"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_loaded_ends_the_start(tmp_path: Path, settings: dict, code: str):
    models = [entry(tmp_path, "good", 1), {**entry(tmp_path, "bad", 2), **settings}]
    assert_not_started(Server(tmp_path, models=models), models[1]["path"], code)


def test_a_file_that_is_no_model_ends_the_start(tmp_path: Path):
    file = tmp_path / "model.onnx"
    file.write_bytes(b"not a model")
    models = [entry(tmp_path, "good", 1), {"name": "bad", "path": str(file)}]
    assert_not_started(Server(tmp_path, models=models), str(file), "model-invalid")


def test_a_pipe_is_not_waited_for(tmp_path: Path):
    pipe = tmp_path / "model.onnx"
    os.mkfifo(pipe)
    models = [entry(tmp_path, "good", 1), {"name": "bad", "path": str(pipe)}]
    assert_not_started(Server(tmp_path, models=models), str(pipe), "model-unavailable")


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        ({"model_bytes": MIB}, "model-too-large"),
        # It would have to be there twice.
        ({"model_bytes": 5 * MIB, "total_memory_bytes": 5 * MIB}, "memory-exhausted"),
    ],
)
def test_a_file_that_is_too_large_ends_the_start(tmp_path: Path, limits: dict, code: str):
    large = entry(tmp_path, "large", 1)
    Path(large["path"]).write_bytes(graphs.heavy(np.zeros(1 << 20, np.float32)))
    server = Server(tmp_path, models=[{"name": "without-a-file"}, large], limits=limits)
    assert_not_started(server, large["path"], code)


def assert_not_started(server: Server, path: str, code: str) -> None:
    """It ends with the code for models, and its last line names the entry."""
    server.start()
    assert server.process.wait(PATIENCE) == MODEL, server.log
    last = server.log.splitlines()[-1]
    assert last.startswith(f'blindai: models[1].path = "{path}": {code}: '), last
    assert " · " in last


def test_duplicates_are_a_contradiction(tmp_path: Path):
    models = [entry(tmp_path, "one", 1), entry(tmp_path, "one", 2, version="1")]
    server = Server(tmp_path, models=models).start()
    assert server.process.wait(PATIENCE) == CONFIG
    (line,) = server.log.splitlines()
    assert "models[1] is about the same model" in line


# Out of memory, and back


def test_the_least_recently_used_leaves_first(tmp_path: Path, size: int):
    with tight(tmp_path, size, "abc") as server, connect(server) as client:
        assert loaded(client) == {"b", "c"}
        assert len(server.workers()) == 2
        assert answer(client, "b") == 2
        # The one that was loaded last is not the one that was used last.
        assert answer(client, "a") == 1
        assert loaded(client) == {"a", "b"}
        assert answer(client, "c") == 3
        assert loaded(client) == {"a", "c"}
        wait_for(lambda: len(server.workers()) == 2, "the workers of who left to end")
        metrics = metrics_with(server, "blindai_model_unloads_total", 3, cause="pressure")
        assert metrics.sum("blindai_model_loads_total", cause="start") == 3
        assert metrics.sum("blindai_model_loads_total", cause="request") == 2
        assert metrics.sum("blindai_models") == 3
        assert metrics.sum("blindai_models_loaded") == 2
        assert metrics.sum("blindai_workers") == 2
        used = metrics.sum("blindai_memory_used_bytes", budget="models")
        assert used <= metrics.sum("blindai_memory_limit_bytes", budget="models")
        slots = {model.metrics_slot for model in client.models.list()}
        assert slots == {0, 1, 2}


def test_one_load_serves_all_who_wait(tmp_path: Path, size: int):
    with tight(tmp_path, size, "abc") as server, connect(server) as client:
        assert "a" not in loaded(client)
        start = threading.Barrier(8)

        def ask(_: int) -> float:
            with connect(server) as own:
                start.wait()
                return answer(own, "a")

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(ask, range(8))) == [1] * 8
        metrics_with(server, "blindai_model_loads_total", 1, cause="request")


def test_who_does_not_wait_for_a_load_does_not_end_it(tmp_path: Path, size: int):
    with tight(tmp_path, size, "abc") as server, connect(server) as client:
        body = {
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [], "data": [0]}],
            "parameters": {"timeout": 1_000_000},
        }
        with ThreadPoolExecutor() as pool, server.http() as http:

            def ask() -> Future:
                return pool.submit(http.request, "POST", "/v2/models/a/infer", body)

            with held_while_loading(server, ask) as asked:
                late = asked.result()
                assert late.status == 504, late.body
                assert late.json["code"] == "deadline-exceeded"
            assert answer(client, "a") == 1
        metrics_with(server, "blindai_model_loads_total", 1, cause="request")


def test_what_fits_no_model_brings_none_back(tmp_path: Path, size: int):
    with tight(tmp_path, size, "abc") as server, connect(server) as client:
        with pytest.raises(blindai.InvalidInputError):
            client.infer("a", {"x": np.zeros(3, np.int64)})
        assert loaded(client) == {"b", "c"}


def change(path: Path, how: str) -> None:
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(adding(99) if how == "other content" else b"x")


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("missing", "model-unavailable"),
        ("other content", "digest-mismatch"),
        ("shorter", "digest-mismatch"),
    ],
)
def test_other_content_never_comes_back(tmp_path: Path, size: int, how: str, code: str):
    with tight(tmp_path, size, "abc") as server, connect(server) as client:
        file = tmp_path / "a-1.onnx"
        change(file, how)
        for _ in range(2):
            with pytest.raises(blindai.BlindAIError) as refused:
                answer(client, "a")
            assert refused.value.code == code
            assert str(tmp_path) not in str(refused.value)
            assert "operator" in refused.value.remedy
        # The others are as they were, and the next try finds what was put back.
        assert [answer(client, "b"), answer(client, "c")] == [2, 3]
        file.write_bytes(adding(1))
        assert answer(client, "a") == 1
        assert "not loaded again" in server.log
        assert str(tmp_path) not in server.log.split("ready")[-1]


def test_a_busy_model_stays(tmp_path: Path, size: int):
    slow = tmp_path / "slow.onnx"
    slow.write_bytes(graphs.loop())
    models = [{"name": "slow", "path": str(slow)}, entry(tmp_path, "a", 1)]
    limits = {"total_memory_bytes": int(1.6 * size), "model_bytes": MIB}
    server = Server(tmp_path, models=models, limits=limits)
    with server, connect(server) as client, ThreadPoolExecutor() as pool:
        client.infer("slow", {"rounds": np.array(1)})
        assert loaded(client) == {"slow"}
        running = run_slowly(pool, server, client, "slow", 3_000_000)
        # It waits until the other is idle, and takes its room then.
        assert answer(client, "a") == 1
        assert running.done()
        assert running.result()["total"] == 3_000_000
        assert loaded(client) == {"a"}


def test_what_was_uploaded_stays(tmp_path: Path, size: int):
    with tight(tmp_path, size, "ab") as server, connect(server) as client:
        client.models.upload(adding(10), name="up")
        assert loaded(client) == {"b", "up"}
        client.models.upload(adding(20), name="up")
        assert loaded(client) == {"up"}
        # Nobody is left who could leave: there is no room for a third, and none to come back.
        with pytest.raises(blindai.BlindAIError) as refused:
            client.models.upload(adding(30), name="up")
        assert refused.value.code == "memory-exhausted"
        with pytest.raises(blindai.BlindAIError) as refused:
            answer(client, "a")
        assert refused.value.code == "memory-exhausted"
        assert [answer(client, "up", "1"), answer(client, "up")] == [10, 20]
        client.models.delete("up", version="1")
        assert answer(client, "a") == 1


def test_deleting_a_model_that_is_out_of_memory(tmp_path: Path, size: int):
    with tight(tmp_path, size, "abc") as server, connect(server) as client:
        (deleted,) = client.models.delete("a")
        assert not deleted.loaded
        with pytest.raises(blindai.ModelError):
            answer(client, "a")
        assert loaded(client) == {"b", "c"}


def test_replacing_a_model_that_is_out_of_memory(tmp_path: Path, size: int):
    with tight(tmp_path, size, "abc") as server, connect(server) as client:
        new = client.models.upload(adding(10), name="a", version="1", replace=True)
        assert (new.version, new.loaded) == ("1", True)
        assert answer(client, "a") == 10
        # What was uploaded has nowhere to come back from: from now on it stays.
        assert [answer(client, "b"), answer(client, "c")] == [2, 3]
        assert loaded(client) == {"a", "c"}


def test_a_stop_waits_for_who_waits_for_a_load(tmp_path: Path, size: int):
    with tight(tmp_path, size, "abc") as server, connect(server) as client:
        pool = ThreadPoolExecutor()
        with pool, held_while_loading(server, lambda: pool.submit(answer, client, "a")) as asked:
            server.process.send_signal(signal.SIGTERM)
            wait_for(lambda: not is_live(server), "the port to close")
            assert not asked.done()
        assert asked.result() == 1


def ready(server: Server, client: blindai.Client, protocol: str) -> list[str]:
    """The models of an index of those that are ready. No client of Triton asks for it."""
    if protocol == "http":
        with server.http() as http:
            index = http.request("POST", "/v2/repository/index", {"ready": True}).json
        return [model["name"] for model in index]
    with triton.channel_to(server, client) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        index = stub.RepositoryIndex(service_pb2.RepositoryIndexRequest(ready=True))
    return [model.name for model in index.models]


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_the_repository(tmp_path: Path, protocol: str):
    with Server(tmp_path, models=[entry(tmp_path, "a", 1)]) as server, connect(server) as client:
        client.models.upload(adding(2), name="up")
        module = getattr(triton.tritonclient, protocol)
        with contextlib.closing(triton.connect(module, server, client)) as oip:

            def state(name: str) -> tuple[str, str]:
                index = oip.get_model_repository_index()
                index = index["models"] if oip.is_grpc else index
                (found,) = [model for model in index if model["name"] == name]
                return found["state"], found.get("reason", "")

            assert state("a") == ("READY", "")
            oip.unload_model("a")
            assert state("a")[0] == "UNAVAILABLE"
            assert state("a")[1].startswith("unloaded")
            assert ready(server, client, protocol) == ["up"]
            wait_for(lambda: len(server.workers()) == 1, "its worker to end")
            # A request would be answered, so whoever asks first may send it.
            assert oip.is_model_ready("a")
            assert not client.models.get("a").loaded
            oip.unload_model("a")
            oip.load_model("a")
            assert state("a") == ("READY", "")
            oip.unload_model("a")
            assert answer(client, "a") == 1
            assert state("a") == ("READY", "")
            # What was uploaded could not be loaded again.
            error = oip.refused(oip.unload_model, "up")
            assert error.status() == ("StatusCode.UNIMPLEMENTED" if oip.is_grpc else "405")
            assert "model-not-found" in oip.refused(oip.unload_model, "none").message()
            Path(tmp_path / "a-1.onnx").unlink()
            oip.unload_model("a")
            assert "model-unavailable" in oip.refused(oip.load_model, "a").message()


# New content under load


class Callers:
    """Eight threads that ask the model `m`, and what each got, in its order."""

    def __init__(self, server: Server, version: str | None):
        self.server, self.version = server, version
        self.ended = threading.Event()
        self.answers: list[list[float]] = [[] for _ in range(8)]
        self.pool = ThreadPoolExecutor(8)

    def __enter__(self) -> Callers:
        self.asked = [self.pool.submit(self.ask, answers) for answers in self.answers]
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        for asked in self.asked:
            asked.result()
        self.pool.shutdown()

    def ask(self, answers: list[float]) -> None:
        with connect(self.server) as client:
            while not self.ended.is_set():
                answers.append(answer(client, "m", self.version))

    def wait_for_more(self) -> None:
        """Until each has got another answer to what it asked from now on."""
        goals = [len(answers) + 2 for answers in self.answers]
        wait_for(
            lambda: (
                all(len(a) >= goal for a, goal in zip(self.answers, goals, strict=True))
                or any(asked.done() for asked in self.asked)
            ),
            "answers",
        )


@pytest.mark.parametrize("version", ["1", None], ids=["replaced", "next version"])
def test_new_content_under_load_fails_no_request(tmp_path: Path, version: str | None):
    with Server(tmp_path, engine={"threads": 1}) as server, connect(server) as client:
        client.models.upload(adding(0), name="m")
        with Callers(server, version) as callers:
            callers.wait_for_more()
            for number in range(1, 11):
                settings = {"version": version, "replace": True} if version else {}
                new = client.models.upload(adding(number), name="m", **settings)
                assert new.version == (version or str(number + 1))
                before = [len(answers) for answers in callers.answers]
                callers.wait_for_more()
                # What was asked after the swap gets the new content; one may have been on its way.
                for answers, count in zip(callers.answers, before, strict=True):
                    assert set(answers[count + 1 :]) == {number}
        for answers in callers.answers:
            seen = [number for number, _ in itertools.groupby(answers)]
            assert seen == sorted(seen)
            assert seen[-1] == 10
        if version:
            wait_for(lambda: len(server.workers()) == 1, "the workers of old content to end")


def test_the_command_replaces(tmp_path: Path):
    with Server(tmp_path) as server, connect(server) as client:
        for number, more in [(1, []), (2, ["--replace"])]:
            file = tmp_path / "m.onnx"
            file.write_bytes(adding(number))
            where = [str(file), "--version", "1", *more, "--simulation", "--json"]
            command = [str(binary()), "models", "upload", *where, "--server", server.address]
            uploaded = json.loads(subprocess.check_output(command))
            assert (uploaded["version"], uploaded["loaded"]) == ("1", True)
            assert answer(client, "m") == number


def test_only_who_asks_for_it_replaces(tmp_path: Path):
    with Server(tmp_path) as server, connect(server) as client, server.http() as http:
        assert client.models.upload(adding(1), name="m").version == "1"
        with pytest.raises(blindai.ModelError) as refused:
            client.models.upload(adding(2), name="m", version="1")
        assert refused.value.code == "model-exists"
        assert "replaced" in refused.value.remedy
        new = client.models.upload(adding(2), name="m", version="1", replace=True)
        assert answer(client, "m") == 2
        assert client.models.get("m").digest == new.digest
        # Content that is there is not loaded again, and what is not there is simply new.
        path = "/v1/models/m/versions"
        assert http.request("PUT", f"{path}/1?replace=true", adding(2)).status == 200
        assert http.request("PUT", f"{path}/x?replace=true", adding(3)).status == 201
        # What is no model replaces nothing.
        assert http.request("PUT", f"{path}/1?replace=true", b"no model").status == 422
        assert answer(client, "m", "1") == 2
        for bad in ("/v1/models/m?replace=true", f"{path}/1?replace=1"):
            assert http.request("PUT", bad, adding(4)).json["code"] == "invalid-request"
        # The last number given out stays so.
        assert client.models.upload(adding(5), name="m").version == "2"
        client.models.delete("m", version="2")
        assert client.models.upload(adding(6), name="m").version == "3"
