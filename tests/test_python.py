"""The Python package against a real server: every dtype, both clients, waits and the API of 0.3."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import traceback
import warnings
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import graphs
import ml_dtypes
import numpy as np
import pytest
from conftest import connect
from graphs import TensorProto
from support import PATIENCE, Server

import blindai
from blindai.client import BlindAiClient, ModelDatumType

DTYPES = {
    TensorProto.BOOL: np.bool_,
    TensorProto.UINT8: np.uint8,
    TensorProto.UINT16: np.uint16,
    TensorProto.UINT32: np.uint32,
    TensorProto.UINT64: np.uint64,
    TensorProto.INT8: np.int8,
    TensorProto.INT16: np.int16,
    TensorProto.INT32: np.int32,
    TensorProto.INT64: np.int64,
    TensorProto.FLOAT16: np.float16,
    TensorProto.BFLOAT16: ml_dtypes.bfloat16,
    TensorProto.FLOAT: np.float32,
    TensorProto.DOUBLE: np.float64,
}
FOREVER = np.array(10**12)


@pytest.fixture
def slow(client: blindai.Client, model: str) -> str:
    client.models.upload(graphs.loop(), name=model)
    return model


def run_async(work: Coroutine[Any, Any, None]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", blindai.SimulationWarning)
        asyncio.run(work)


@pytest.mark.parametrize("kind", DTYPES, ids=TensorProto.DataType.Name)
def test_every_dtype_there_and_back(client: blindai.Client, model: str, kind: int):
    client.models.upload(graphs.identity(kind, ["n", "m"]), name=model)
    array = (np.arange(6) % 2).reshape(2, 3).astype(DTYPES[kind])
    for given in (array, array[:, ::2], array.T.copy().T, array[:, :0]):
        [got] = client.infer(model, {"x": given}).values()
        assert (got.dtype, got.shape) == (given.dtype, given.shape)
        assert (got == given).all()
        assert got.flags.aligned
        assert got.flags.writeable
    [got] = client.infer(model, {"x": array.tolist()}).values()
    assert got.dtype == array.dtype
    assert (got == array).all()


def test_strings_and_scalars(client: blindai.Client, model: str):
    client.models.upload(graphs.identity(graphs.STRING, ["n"]), name=model)
    [got] = client.infer(model, {"x": ["a", b"\xc3\xbc", ""]}).values()
    assert got.tolist() == ["a", "ü", ""]
    client.models.upload(graphs.identity(shape=[]), name=model)
    for value in (1.5, np.float32(1.5)):
        [got] = client.infer(model, {"x": value}).values()
        assert (got.shape, got.dtype, got) == ((), np.float32, 1.5)


def test_lists_follow_a_name_to_its_new_model(server: Server, client: blindai.Client, model: str):
    client.models.upload(graphs.identity(graphs.INT64), name=model)
    assert client.infer(model, {"x": [1]})["y"].dtype == np.int64
    with connect(server) as other:
        other.models.upload(graphs.identity(), name=model)
    assert client.infer(model, {"x": [1]})["y"].dtype == np.float32


def test_threads_do_not_mix_their_answers(client: blindai.Client, model: str):
    client.models.upload(graphs.identity(), name=model)
    wrong = []

    def ask(number: int) -> None:
        for _ in range(20):
            [got] = client.infer(model, {"x": np.full(1000, number, np.float32)}).values()
            if not (got == number).all():
                wrong.append(number)

    threads = [threading.Thread(target=ask, args=[number]) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.fixture
def interruptible() -> Iterator[None]:
    """What a shell starts in the background ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_ends_an_inference(client: blindai.Client, slow: str):
    timer = threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        client.infer(slow, {"rounds": FOREVER})
    assert client.ready()


def test_an_exception_in_a_progress_function_ends_the_upload(client: blindai.Client, model: str):
    def stop(sent: int, total: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        client.models.upload(graphs.identity(), name=model, progress=stop)
    with pytest.raises(blindai.BlindAIError) as caught:
        client.models.upload(graphs.identity(), name=model, progress=lambda *_: client.ready())
    assert caught.value.code == "inside-runtime"


def test_a_closed_client_says_so(server: Server):
    with connect(server) as client:
        assert client.ready()
    for call in (client.ready, client.attest, client.models.list):
        with pytest.raises(blindai.ConnectionError) as caught:
            call()
        assert caught.value.code == "client-closed"


def in_child(work: Callable[[], None]) -> None:
    """Does something in a forked process, as `multiprocessing` does with its method `fork`."""
    with warnings.catch_warnings():
        # Of Python: the threads of other tests are not in the child.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            # What hangs there ends all the same.
            signal.alarm(int(PATIENCE))
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def refuses_after_fork(call: Callable[[], object]) -> None:
    with pytest.raises(blindai.ConnectionError) as caught:
        call()
    assert caught.value.code == "client-forked"


def test_a_forked_process_does_not_use_the_connections_of_its_parent(server: Server, model: str):
    client = connect(server, timeout=5)
    client.models.upload(graphs.identity(), name=model)
    x = np.ones(3, np.float32)

    def child() -> None:
        for call in (
            client.ready,
            client.attest,
            client.models.list,
            lambda: client.models.get(model),
            lambda: client.models.delete(model),
            lambda: client.models.upload(graphs.identity(), name=model),
            lambda: client.infer(model, {"x": x}),
        ):
            refuses_after_fork(call)
        with connect(server) as own:
            assert own.infer(model, {"x": x})["y"].tolist() == x.tolist()
        # What the child drops the parent still waits on.
        client.close()

    with client:
        in_child(child)
        for _ in range(3):
            assert client.infer(model, {"x": x})["y"].tolist() == x.tolist()


def test_asyncio_is_refused_after_a_fork(server: Server):
    async def connected() -> blindai.aio.Client:
        return await blindai.aio.connect(server.address, simulation=True, timeout=5)

    async def ready(client: blindai.aio.Client) -> bool:
        return await client.ready()

    def child() -> None:
        refuses_after_fork(lambda: asyncio.run(ready(client)))
        refuses_after_fork(lambda: asyncio.run(connected()))
        with connect(server) as own:
            assert own.ready()
        asyncio.run(client.close())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", blindai.SimulationWarning)
        client = asyncio.run(connected())
        in_child(child)
    assert asyncio.run(ready(client))


def test_the_old_api_is_refused_after_a_fork(server: Server, tmp_path: Path):
    path = tmp_path / "model.onnx"
    path.write_bytes(graphs.identity(shape=[3]))

    def use(client: BlindAiClient) -> None:
        client.connect_server("localhost", simulation=True, attested_port=server.port)
        client.upload_model(path)
        assert client.run_model([1, 2, 3]).output == [1, 2, 3]

    def child() -> None:
        refuses_after_fork(lambda: client.run_model([1, 2, 3]))
        refuses_after_fork(lambda: client.run_model([1, 2, 3], sign=True))
        refuses_after_fork(lambda: client.upload_model(path))
        use(client)

    with BlindAiClient() as client, warnings.catch_warnings():
        warnings.simplefilter("ignore", blindai.SimulationWarning)
        use(client)
        in_child(child)
        assert client.run_model([4, 5, 6]).output == [4, 5, 6]


def test_asyncio(server: Server, model: str):
    async def work() -> None:
        seen = []
        async with blindai.aio.connect(server.address, simulation=True) as client:
            assert client.report.simulated
            assert (await client.attest()).simulated
            assert await client.ready()
            uploaded = await client.models.upload(
                graphs.identity(), name=model, progress=lambda *sizes: seen.append(sizes)
            )
            assert seen[-1] == (uploaded.size_bytes, uploaded.size_bytes)
            assert await client.models.get(model) == uploaded
            assert uploaded in await client.models.list()
            asked = [client.infer(model, {"x": [float(n)]}) for n in range(20)]
            answers = await asyncio.gather(*asked)
            assert [float(answer["y"][0]) for answer in answers] == list(range(20))
            with pytest.raises(blindai.InvalidInputError):
                await client.infer(model, {"x": np.ones(1)})
            assert await client.models.delete(model) == [uploaded]
            with pytest.raises(blindai.ModelError):
                await client.infer(model, {"x": np.float32([1])})
        with pytest.raises(blindai.ConnectionError) as caught:
            await client.ready()
        assert caught.value.code == "client-closed"

    run_async(work())


def test_cancelling_a_task_ends_its_request(server: Server, slow: str):
    async def work() -> None:
        client = await blindai.aio.connect(server.address, simulation=True)
        async with client:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(client.infer(slow, {"rounds": FOREVER}), 0.2)
            assert await client.ready()

    run_async(work())


def test_the_old_api_takes_what_the_model_says(server: Server, tmp_path: Path):
    path = tmp_path / "model.onnx"
    path.write_bytes(graphs.identity(shape=["n", 3]))
    with BlindAiClient() as client, warnings.catch_warnings():
        warnings.simplefilter("ignore", blindai.SimulationWarning)
        client.connect_server("localhost", simulation=True, attested_port=server.port)
        assert client.is_connected()
        for wrong in (
            {"shape": (1, 4)},
            {"dtype": ModelDatumType.I64},
            {"dtype_out": ModelDatumType.I64},
        ):
            with pytest.raises(blindai.InvalidInputError):
                client.upload_model(path, **wrong)
        for shape in ((2, 3), None):
            assert client.upload_model(path, shape=shape).is_simulation_mode()
            assert client.run_model([1, 2, 3, 4, 5, 6.5]).output == [1, 2, 3, 4, 5, 6.5]
        path.write_bytes(b"no model")
        with pytest.raises(ConnectionError, match="model-invalid"):
            client.upload_model(path)
    assert not client.is_connected()
