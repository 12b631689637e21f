"""Many callers, one server: everybody gets their own answer, and limits hold for all together."""

from __future__ import annotations

import asyncio
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import graphs
import numpy as np
import pytest
from conftest import connect
from support import Server, run_slowly

import blindai
from blindai import aio
from tools import models


def own(number: int) -> dict[str, np.ndarray]:
    """Inputs that nobody else sends, of a size that nobody else sends."""
    return {"a": np.full(number + 1, number, np.float32), "b": np.ones(number + 1, np.float32)}


def is_own(answer: dict[str, np.ndarray], number: int) -> bool:
    return answer["y"].tolist() == [number + 1] * (number + 1)


def test_threads_share_a_client(client: blindai.Client, model: str):
    client.models.upload(graphs.add(["n"]), name=model)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda n: client.infer(model, own(n)), range(500)))
    assert all(is_own(answer, number) for number, answer in enumerate(answers))


def test_tasks_share_a_client(server: Server, client: blindai.Client, model: str):
    async def all_at_once() -> list[dict[str, np.ndarray]]:
        async with aio.connect(server.address, simulation=True) as own_client:
            await own_client.models.upload(graphs.add(["n"]), name=model)
            return await asyncio.gather(*(own_client.infer(model, own(n)) for n in range(100)))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", blindai.SimulationWarning)
        answers = asyncio.run(all_at_once())
    assert all(is_own(answer, number) for number, answer in enumerate(answers))


def test_versions_answer_side_by_side(client: blindai.Client, model: str):
    for size in (1, 2, 3):
        client.models.upload(graphs.add([size]), name=model)
    for size in (1, 2, 3):
        answer = client.infer(model, own(size - 1), version=str(size))
        assert is_own(answer, size - 1)
    assert is_own(client.infer(model, own(2)), 2)


def test_a_model_deleted_at_work_still_answers(server: Server, client: blindai.Client, model: str):
    client.models.upload(graphs.loop(), name=model)
    with ThreadPoolExecutor() as pool:
        request = run_slowly(pool, server, client, model, 1_000_000)
        client.models.delete(model)
        assert request.result()["total"] == 1_000_000
    with pytest.raises(blindai.ModelError) as caught:
        client.infer(model, {"rounds": np.array(1)})
    assert caught.value.code == "model-not-found"


def test_requests_over_the_limit_are_told_to_come_back(tmp_path: Path):
    limits = {"concurrent_requests": 1}
    with (
        Server(tmp_path, limits=limits) as server,
        connect(server) as client,
        ThreadPoolExecutor() as pool,
    ):
        client.models.upload(graphs.loop(), name="slow")
        request = run_slowly(pool, server, client, "slow", 2_000_000)
        with server.http() as http:
            answer = http.request("POST", "/v2/models/slow/infer", {"inputs": []})
        assert (answer.status, answer.json["code"]) == (429, "too-many-requests")
        assert int(answer.headers["retry-after"]) > 0
        assert request.result()["total"] == 2_000_000
        assert client.infer("slow", {"rounds": np.array(3)})["total"] == 3


def test_models_over_the_memory_are_refused_until_there_is_room(tmp_path: Path):
    weights = np.ones((64, 1024, 256), np.float32)
    with (
        Server(
            tmp_path,
            limits={"model_bytes": 128 << 20, "total_memory_bytes": 512 << 20},
        ) as server,
        connect(server) as client,
    ):
        held = []
        with pytest.raises(blindai.ServerError) as caught:
            for number in range(10):
                weights[0, 0, 0] = number
                held += [client.models.upload(graphs.heavy(weights), name=f"heavy-{number}").name]
        assert caught.value.code == "memory-exhausted"
        assert held
        client.models.delete(held[0])
        client.models.upload(graphs.heavy(weights), name="next")


def test_an_upload_never_lies_in_the_servers_memory(tmp_path: Path):
    with Server(tmp_path) as server, connect(server) as client:
        before = peak_bytes(server.pid)
        client.models.upload(models.build("wav2vec2_hello_world"), progress=False)
        assert peak_bytes(server.pid) - before <= 64 << 20


def peak_bytes(pid: int) -> int:
    """The most memory that a process has held at one time."""
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024
