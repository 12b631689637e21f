"""A policy that pins models: nothing else answers, whatever the host puts back or exchanges."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import subprocess
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
from conftest import connect
from support import Http, Server, binary
from test_proxy import Proxy
from test_store import adding, answer, keeping
from tritonclient.utils import InferenceServerException

import blindai
from blindai.client import BlindAiClient, ModelDatumType

CODE = "model-not-accepted"
OTHER = "sha256:" + "0" * 64
X = {"x": np.float32(0)}
JSON = {"inputs": [{"name": "x", "shape": [], "datatype": "FP32", "data": [0]}]}


@pytest.fixture(scope="module")
def measurement(client: blindai.Client) -> str:
    return client.report.measurements["mrenclave"]


class Pins:
    """Writes policies for simulated servers of the program under test."""

    def __init__(self, folder: Path, measurement: str):
        self.folder, self.measurement, self.count = folder, measurement, 0

    def __call__(self, others: str | None = None, **models: str) -> Path:
        """A policy that pins these digests; in names `__` stands for the `/` before a version."""
        names = {name.replace("__", "/"): [digest] for name, digest in models.items()}
        entries = {**names, **({"*": others} if others else {})}
        lines = [f'tee = ["sgx"]\n[sgx]\nmrenclave = ["{self.measurement}"]\n[models]']
        lines += [f'"{key}" = {json.dumps(value)}' for key, value in entries.items()]
        self.count += 1
        path = self.folder / f"policy-{self.count}.toml"
        path.write_text("\n".join(lines))
        return path


@pytest.fixture
def pins(tmp_path: Path, measurement: str) -> Pins:
    return Pins(tmp_path, measurement)


def refused(call, *arguments: Any, **options: Any) -> blindai.ModelError:
    with pytest.raises(blindai.ModelError) as caught:
        call(*arguments, **options)
    assert caught.value.code == CODE
    return caught.value


def command(*words: str | Path, policy: Path, server: Server) -> subprocess.CompletedProcess[str]:
    """The program, with a policy for a simulated server."""
    trust = ["--policy", str(policy), "--simulation", "--server", server.address]
    run = [str(binary()), *map(str, words), *trust]
    return subprocess.run(run, capture_output=True, text=True, timeout=60)


# What the host does


def test_a_store_that_was_put_back_is_seen_by_who_pins(tmp_path: Path, pins: Pins):
    """The host keeps an old store, genuine in every byte, and forgets what the server has seen."""
    seen = tmp_path / "store.seen"
    server = keeping(tmp_path, seen=str(seen))
    with server, connect(server) as client:
        old = client.models.upload(adding(1), name="one")
    shutil.copytree(tmp_path / "store", tmp_path / "old")
    with server, connect(server) as client:
        new = client.models.upload(adding(2), name="one")
    policy = pins(one=new.digest)
    with server, connect(server, policy=policy) as client:
        assert answer(client, "one") == 2
    shutil.rmtree(tmp_path / "store")
    shutil.copytree(tmp_path / "old", tmp_path / "store")
    seen.unlink()
    with server:
        with connect(server) as client:
            # Nothing says that this is not what was uploaded last.
            assert answer(client, "one") == 1
        with connect(server, policy=policy) as client:
            error = refused(client.infer, "one", X)
            assert old.digest in error.fact
            assert new.digest in error.fact
            assert refused(client.infer, "one", {"x": 0.0}).code == CODE
            refused(client.models.get, "one")
            [listed] = client.models.list()
            assert (listed.digest, listed.accepted) == (old.digest, False)
        shown = command("models", "list", policy=policy, server=server)
        assert shown.returncode == 0
        assert f"WARNING: {CODE}" in shown.stderr
        np.save(tmp_path / "x.npy", X["x"])
        words = ["infer", "one", "--input", f"x={tmp_path}/x.npy", "--output-dir", tmp_path / "out"]
        ran = command(*words, policy=policy, server=server)
        assert ran.returncode != 0
        assert CODE in ran.stderr
        assert not (tmp_path / "out").exists()
        # What is refused has not run.
        statistics = Http(server.port).get("/v2/models/one/stats").json["model_stats"]
        assert [model["inference_count"] for model in statistics] == [1]
        assert not any(digest in server.log for digest in (old.digest, new.digest))


def test_content_that_is_exchanged_stops_who_pins_and_nobody_else(
    server: Server, client: blindai.Client, model: str, pins: Pins
):
    digest = client.models.upload(adding(1), name=model, version="1").digest
    with connect(server, policy=pins(**{model: digest})) as pinned:
        answers, stop = [], threading.Event()

        def ask() -> None:
            while not stop.is_set():
                try:
                    answers.append(answer(pinned, model))
                except blindai.ModelError as error:
                    answers.append(error.code)

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            client.models.upload(adding(2), name=model, version="1", replace=True)
            assert answer(client, model) == 2
            refused(pinned.infer, model, X)
            client.models.upload(adding(1), name=model, version="1", replace=True)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert set(answers) <= {1.0, CODE}
        assert answer(pinned, model) == 1


def test_a_model_that_comes_back_into_memory_is_compared(tmp_path: Path, pins: Pins):
    with keeping(tmp_path) as server, connect(server) as client:
        digest = client.models.upload(adding(1), name="one").digest
        models = "/v2/repository/models/one"
        assert Http(server.port).request("POST", f"{models}/unload", {}).status == 200
        with connect(server, policy=pins(one=OTHER)) as wrong:
            refused(wrong.infer, "one", X)
        other = {"blindai_models": f"one={OTHER}"}
        assert Http(server.port).request("POST", f"{models}/load", {}, **other).status == 412
        assert not client.models.get("one").loaded
        with connect(server, policy=pins(one=digest)) as right:
            assert answer(right, "one") == 1


# The clients


def test_names_versions_and_others(server: Server, client: blindai.Client, model: str, pins: Pins):
    one = client.models.upload(adding(1), name=model).digest
    two = client.models.upload(adding(2), name=model).digest
    cases: list[tuple[dict[str, str], list[str]]] = [
        ({"another": OTHER}, ["1", "2"]),
        ({"another": OTHER, "others": "refuse"}, []),
        ({model: two}, ["2"]),
        ({model: two, "others": "refuse"}, ["2"]),
        ({f"{model}__1": one}, ["1"]),
        ({f"{model}__1": two}, []),
        ({f"{model}__1": one, f"{model}__2": two}, ["1", "2"]),
    ]
    for models, accepted in cases:
        with connect(server, policy=pins(**models)) as pinned:
            for version in ("1", "2"):
                if version in accepted:
                    assert answer(pinned, model, version) == int(version)
                else:
                    refused(pinned.infer, model, X, version=version)
            listed = [held.version for held in pinned.models.list() if held.accepted]
            ours = [held.version for held in pinned.models.list() if held.name == model]
            assert ours == ["1", "2"]
            assert set(accepted) <= set(listed)


def test_one_request_may_ask_for_a_digest(
    server: Server, client: blindai.Client, model: str, pins: Pins
):
    digest = client.models.upload(adding(1), name=model).digest
    assert client.infer(model, X, digest=digest)["y"][0] == 1
    assert digest in refused(client.infer, model, X, digest=OTHER).fact
    with pytest.raises(blindai.InvalidInputError):
        client.infer(model, X, digest="sha256:1")
    # It narrows what the policy accepts, and cannot widen it.
    with connect(server, policy=pins(**{model: OTHER})) as pinned:
        refused(pinned.infer, model, X, digest=digest)
    assert client.infer(model, X, digest=digest, receipt=True).receipt.model_digest == digest


def test_asyncio(server: Server, client: blindai.Client, model: str, pins: Pins):
    digest = client.models.upload(adding(1), name=model).digest

    async def ask(policy: Path) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", blindai.SimulationWarning)
            connecting = blindai.aio.connect(server.address, simulation=True, policy=policy)
            async with connecting as asked:
                with pytest.raises(blindai.ModelError, match=CODE):
                    await asked.infer(model, X, digest=OTHER)
                return float((await asked.infer(model, X))["y"][0])

    assert asyncio.run(ask(pins(**{model: digest}))) == 1
    with pytest.raises(blindai.ModelError, match=CODE):
        asyncio.run(ask(pins(**{model: OTHER})))


def test_an_upload_that_the_policy_does_not_accept_is_not_kept(
    server: Server, client: blindai.Client, model: str, pins: Pins
):
    with connect(server, policy=pins(**{model: OTHER})) as pinned:
        refused(pinned.models.upload, adding(1), name=model)
        assert model not in [held.name for held in client.models.list()]
        digest = client.models.upload(adding(1), name=model).digest
        # Also when it is there already.
        refused(pinned.models.upload, adding(1), name=model)
    with connect(server, policy=pins(**{model: digest})) as pinned:
        assert pinned.models.upload(adding(1), name=model).digest == digest
        # Its owner can still clean up.
    with connect(server, policy=pins(**{model: OTHER})) as pinned:
        assert [deleted.digest for deleted in pinned.models.delete(model)] == [digest]


def test_the_api_of_0_3_takes_the_policy(server: Server, pins: Pins, tmp_path: Path):
    path = tmp_path / "add.onnx"
    path.write_bytes(adding(5))
    digest = f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    name = f"sha256-{digest.removeprefix('sha256:')[:16]}"

    def upload(policy: Path) -> BlindAiClient:
        old = BlindAiClient()
        # By itself it looks at no policy beside a simulation.
        old._client, old.simulation_mode = connect(server, policy=policy), True
        old.upload_model(path, shape=(), dtype=ModelDatumType.F32)
        return old

    with pytest.raises(blindai.ConnectionError, match=CODE):
        upload(pins(**{name: OTHER}))
    with upload(pins(**{name: digest, "others": "refuse"})) as old:
        assert old.run_model([0.0]).output == [5.0]
        assert old.run_model([0.0], sign=True).output == [5.0]
        old._connected().models.delete(name)


# The protocols


@pytest.fixture(scope="module")
def held(client: blindai.Client) -> Iterator[tuple[str, str]]:
    """A model's name and its digest."""
    name = "pinned"
    yield name, client.models.upload(adding(1), name=name).digest
    client.models.delete(name)


def test_over_http(server: Server, held: tuple[str, str]):
    name, digest = held
    http = Http(server.port)
    for path in (
        f"/v2/models/{name}/infer",
        f"/v2/models/{name}/versions/1/infer",
    ):
        ran = http.request("POST", path, JSON, blindai_models=f"{name}={digest}")
        assert (ran.status, ran.headers["blindai-model"]) == (200, digest)
        assert http.request("POST", path, JSON).headers["blindai-model"] is None
        for models in (
            f"{name}={OTHER}",
            f"{name}/2={digest}",
            "*=refuse",
            f"{name}={digest}, *=refuse",
        ):
            answered = http.request("POST", path, JSON, blindai_models=models)
            assert (answered.status, answered.json["code"]) == (412, CODE), models
            assert digest in answered.json["fact"]
        for broken in ("", name, f"{name}=sha256:1", "*=accept"):
            answered = http.request("POST", path, JSON, blindai_models=broken)
            assert (answered.status, answered.json["code"]) == (400, "invalid-request"), broken
    for path in (f"/v1/models/{name}", f"/v2/models/{name}", f"/v2/models/{name}/ready"):
        assert http.get(path, blindai_models=f"{name}={OTHER}").status == 412
        assert http.get(path, blindai_models=f"{name}={digest}").status == 200
    for path in ("/v1/models", "/v2/health/ready"):
        assert http.get(path, blindai_models="*=refuse").status == 200


def inputs() -> list[tritonclient.grpc.InferInput]:
    wanted = tritonclient.grpc.InferInput("x", [], "FP32")
    wanted.set_data_from_numpy(np.array(0, np.float32))
    return [wanted]


def test_over_grpc_through_the_proxy(
    server: Server, held: tuple[str, str], pins: Pins, tmp_path: Path
):
    """The proxy does not read which model a message names: all that is pinned goes with each."""
    name, digest = held
    for accepted, models in ((True, {name: digest}), (False, {name: OTHER, "others": "accept"})):
        policy = pins(**models)
        with Proxy(tmp_path / str(accepted), server.address, "--policy", str(policy)) as proxy:
            proxy.wait_until(forwards=True)
            ran = proxy.request("POST", f"/v2/models/{name}/infer", JSON)
            assert ran.status == (200 if accepted else 412)
            # A caller can say more, and unsay nothing.
            stricter = proxy.request(
                "POST", f"/v2/models/{name}/infer", JSON, blindai_models=f"{name}={OTHER}"
            )
            looser = proxy.request(
                "POST", f"/v2/models/{name}/infer", JSON, blindai_models=f"{name}={digest}"
            )
            assert (stricter.status, looser.status) == (412, ran.status)
            dropped = proxy.request(
                "POST", f"/v2/models/{name}/infer", JSON, connection="blindai-models"
            )
            assert dropped.status == ran.status
            with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{proxy.port}") as triton:
                for headers in ({}, {"blindai-models": f"{name}={digest}"}):
                    check_grpc(triton, name, headers, accepted)
                check_grpc(triton, name, {"blindai-models": f"{name}={OTHER}"}, False)
                check_stream(triton, name, accepted)


def check_grpc(triton: Any, name: str, headers: dict[str, str], accepted: bool) -> None:
    if accepted:
        answered = triton.infer(name, inputs(), headers=headers)
        assert answered.as_numpy("y")[0] == 1
        return
    with pytest.raises(InferenceServerException, match=CODE) as caught:
        triton.infer(name, inputs(), headers=headers)
    assert caught.value.status() == "StatusCode.FAILED_PRECONDITION"


def check_stream(triton: Any, name: str, accepted: bool) -> None:
    answers: list[Any] = []
    arrived = threading.Event()

    def take(result: Any, error: Any) -> None:
        answers.append(error or result)
        arrived.set()

    triton.start_stream(callback=take)
    triton.async_stream_infer(name, inputs())
    assert arrived.wait(30)
    triton.stop_stream()
    if accepted:
        assert answers[0].as_numpy("y")[0] == 1
    else:
        assert CODE in str(answers[0])


# Receipts and policies that somebody keeps


def test_a_receipt_of_another_model_fails_under_the_policy(
    client: blindai.Client, held: tuple[str, str], pins: Pins, tmp_path: Path
):
    name, digest = held
    receipt = client.infer(name, X, receipt=True).receipt
    receipt.save(tmp_path / "r.cbor")
    verify = [str(binary()), "receipt", "verify", str(tmp_path / "r.cbor"), "--simulation"]

    def checked(policy: Path) -> tuple[int, str, dict]:
        words = [*verify, "--policy", str(policy), "--json"]
        run = subprocess.run(words, capture_output=True, text=True, timeout=60)
        told = json.loads(run.stdout)
        [check] = [c for c in told["checks"] if c["name"] == "receipt_model_accepted"]
        return run.returncode, check["outcome"], told

    assert checked(pins(**{name: digest}))[:2] == (0, "pass")
    assert checked(pins(another=OTHER))[:2] == (0, "skipped")
    for policy in (pins(**{name: OTHER}), pins(another=OTHER, others="refuse")):
        code, outcome, told = checked(policy)
        assert (code, outcome, told["code"]) == (1, "fail", "receipt-model-not-accepted")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", blindai.SimulationWarning)
            with pytest.raises(blindai.ReceiptError) as caught:
                receipt.verify(policy=policy, simulation=True)
            assert caught.value.code == "receipt-model-not-accepted"


def test_a_policy_is_written_from_what_the_server_lists(tmp_path: Path, pins: Pins):
    def program(*words: str) -> subprocess.CompletedProcess[str]:
        run = [str(binary()), *words]
        return subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, timeout=60)

    def listing(server: Server) -> str:
        shown = program("models", "list", "--json", "--simulation", "--server", server.address)
        (tmp_path / "models.json").write_text(shown.stdout)
        return "models.json"

    with Server(tmp_path / "server") as server, connect(server) as client:
        attest = ["attest", server.address, "--simulation", "--save", "evidence.json"]
        assert program(*attest).returncode == 0
        old = client.models.upload(adding(1), name="m.onnx").digest
        new = client.models.upload(adding(2), name="m.onnx").digest
        written = program("policy", "init", "--from", "evidence.json", "--models", listing(server))
        assert f'\n# "m.onnx/1" = ["{old}"]\n"m.onnx" = ["{new}"]\n' in written.stdout
        (tmp_path / "policy.toml").write_text(written.stdout)
        diff = ["policy", "diff", "policy.toml", "evidence.json", "--simulation"]
        assert "pins models" in program(*diff).stderr
        same = program(*diff, "--models", listing(server))
        assert (same.returncode, same.stdout) == (0, "no difference\n"), same.stdout
        with connect(server, policy=tmp_path / "policy.toml") as pinned:
            assert answer(pinned, "m.onnx") == 2
            refused(pinned.infer, "m.onnx", X, version="1")
        client.models.delete("m.onnx", version="2")
        other = program(*diff, "--json", "--models", listing(server))
        [difference] = json.loads(other.stdout)["differences"]
        assert other.returncode == 1
        assert difference == {
            "name": "model",
            "policy": f"m.onnx = {new}",
            "seen": f"m.onnx/1 = {old}",
        }
        client.models.delete("m.onnx")
        [difference] = json.loads(program(*diff, "--json", "--models", listing(server)).stdout)[
            "differences"
        ]
        assert difference["seen"] == "nothing"
    plain = program("policy", "init", "--from", "evidence.json").stdout
    assert "No models are pinned" in plain
