"""The Open Inference Protocol over HTTP: compression, JSON, and Triton's asynchronous client."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import graphs
import numpy as np
import pytest
import triton
from conftest import connect
from support import Http, Server, peak_kib

import blindai

MIB = 1 << 20
ONES = np.ones(50_000, np.float32)


@pytest.fixture(scope="module")
def oip(server: Server, client: blindai.Client) -> Iterator[triton.Client]:
    oip = triton.connect(triton.tritonclient.http, server, client)
    yield oip
    oip.close()


@pytest.fixture
def same(client: blindai.Client, model: str) -> str:
    client.models.upload(graphs.identity(), name=model)
    return model


def test_tensors_as_json(oip: triton.Client, same: str):
    tensor = oip.module.InferInput("x", [3], "FP32")
    tensor.set_data_from_numpy(np.array([1, 2, 3], np.float32), binary_data=False)
    for binary in (False, True):
        outputs = oip.outputs("y", binary_data=binary)
        assert oip.infer(same, [tensor], outputs=outputs).as_numpy("y").tolist() == [1, 2, 3]


@pytest.mark.parametrize("request_coding", [None, "gzip", "deflate"])
@pytest.mark.parametrize("answer_coding", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False])
def test_compression_both_ways(oip, same: str, request_coding, answer_coding, binary: bool):
    answer = oip.infer(
        same,
        oip.inputs(x=ONES),
        outputs=oip.outputs("y", binary_data=binary),
        request_compression_algorithm=request_coding,
        response_compression_algorithm=answer_coding,
    )
    np.testing.assert_array_equal(answer.as_numpy("y"), ONES)


def body_of(values: np.ndarray) -> bytes:
    tensor = {"name": "x", "datatype": "FP32", "shape": [len(values)], "data": values.tolist()}
    return json.dumps({"inputs": [tensor]}).encode()


WISHES = [
    ("gzip", "gzip"),
    ("deflate", "deflate"),
    # What libraries send by themselves is nobody's wish.
    ("gzip, deflate", None),
    ("gzip, deflate, br, zstd", None),
    ("*", None),
    ("br", None),
    ("identity", None),
]


@pytest.mark.parametrize(("wish", "coding"), WISHES, ids=range(len(WISHES)))
def test_answers_are_compressed_for_those_who_ask(server, same: str, wish: str, coding):
    with server.http() as http:
        path = f"/v2/models/{same}/infer"
        answer = http.request("POST", path, body_of(ONES), Accept_Encoding=wish)
    assert answer.status == 200
    assert answer.headers["content-encoding"] == coding
    inflate = {"gzip": gzip.decompress, "deflate": zlib.decompress, None: bytes}[coding]
    assert (len(answer.body) < 10_000) == (coding is not None)
    assert json.loads(inflate(answer.body))["outputs"][0]["shape"] == [len(ONES)]


def test_bodies_that_are_not_compressed_as_they_say(server: Server, same: str):
    body = body_of(ONES)
    raw = zlib.compressobj(wbits=-15)
    cases = [
        ("gzip", body),
        ("gzip", gzip.compress(body)[:-9]),
        ("gzip", gzip.compress(body)[:-1]),
        ("gzip", gzip.compress(body) + b"more"),
        ("gzip", gzip.compress(body)[:-8] + bytes(8)),
        ("gzip", b""),
        ("deflate", body),
        ("deflate", zlib.compress(body)[:-5]),
        ("deflate", zlib.compress(body)[:-1]),
        ("deflate", zlib.compress(body)[:-4] + bytes(4)),
        ("deflate", zlib.compress(body) + b"more"),
        ("deflate", raw.compress(body) + raw.flush()),
        ("br", body),
        ("gzip, gzip", gzip.compress(gzip.compress(body))),
    ]
    path = f"/v2/models/{same}/infer"
    for coding, content in cases:
        with server.http() as http:
            answer = http.request("POST", path, content, Content_Encoding=coding)
            assert (answer.status, answer.json["code"]) == (400, "invalid-request"), coding
    for coding, compress in (("gzip", gzip.compress), ("deflate", zlib.compress)):
        with server.http() as http:
            answer = http.request("POST", path, compress(body), Content_Encoding=coding)
            assert answer.status == 200


@pytest.fixture(scope="module")
def strict(tmp_path_factory) -> Iterator[Server]:
    """A server that takes a mebibyte at a time."""
    limits = {"body_bytes": MIB, "inflight_bytes": 4 * MIB}
    with Server(tmp_path_factory.mktemp("strict"), limits=limits) as server:
        yield server


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_bomb_does_not_go_off(strict: Server, coding: str):
    compress = {"gzip": gzip.compress, "deflate": zlib.compress}[coding]
    bomb = compress(bytes(512 * MIB), 9)
    assert len(bomb) < MIB
    before = peak_kib(strict.pid)
    for _ in range(3):
        with strict.http() as http:
            answer = http.request("POST", "/v2/models/m/infer", bomb, Content_Encoding=coding)
            assert (answer.status, answer.json["code"]) == (413, "body-too-large")
    # The limit, what is in buffers, and nothing of the 512 MiB.
    assert peak_kib(strict.pid) < before + 32 * 1024


def test_room_is_taken_for_what_comes_out(strict: Server):
    """Bodies that together inflate to more than may be held at one time."""
    body = gzip.compress(b" " * (MIB - 1000))
    with connect(strict) as client, ThreadPoolExecutor(8) as pool:
        client.models.upload(graphs.identity(), name="same")

        def send(_: int) -> int:
            with strict.http() as http:
                headers = {"Content_Encoding": "gzip"}
                return http.request("POST", "/v2/models/same/infer", body, **headers).status

        assert set(pool.map(send, range(64))) <= {400, 429}
        # All of it was given back.
        assert client.infer("same", {"x": ONES})["y"].shape == ONES.shape


def test_bytes_alone_are_the_only_input(server: Server, same: str):
    """Triton's raw binary request: nothing of it is JSON, and the answer is in binary."""
    path = f"/v2/models/{same}/infer"
    raw = {"Inference-Header-Content-Length": "0"}
    values = np.arange(6, dtype=np.float32)
    with server.http() as http:
        answer = http.request("POST", path, values.tobytes(), **raw)
        length = int(answer.headers["inference-header-content-length"])
        (output,) = json.loads(answer.body[:length])["outputs"]
        assert (output["name"], output["shape"]) == ("y", [6])
        assert answer.body[length:] == values.tobytes()
    cases = [
        (path, b"12345", 400, "input-shape"),
        ("/v2/models/none/infer", b"1234", 404, "model-not-found"),
    ]
    for path, body, status, code in cases:
        with server.http() as http:
            answer = http.request("POST", path, body, **raw)
        assert (answer.status, answer.json["code"]) == (status, code)


TENSOR = b'{"inputs":[{"name":"x","datatype":"INT64","shape":[%d],"data":[%s]}]}'
BOMBS = {
    "outputs": b'{"inputs":[],"outputs":[%s]}' % b",".join([b'{"name":""}'] * 80_000),
    "sizes": b'{"inputs":[{"name":"x","datatype":"INT8","shape":[%s],"data":[]}]}'
    % b",".join([b"0"] * 500_000),
    "numbers": TENSOR % (500_000, b",".join([b"0"] * 500_000)),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_short_text_does_not_become_much(strict: Server, bomb: str):
    """Each is within the limit, and would take many times as much once it is read."""
    body = gzip.compress(BOMBS[bomb])
    assert len(BOMBS[bomb]) < MIB
    assert len(body) < MIB // 50
    before = peak_kib(strict.pid)
    with strict.http() as http:
        answer = http.request("POST", "/v2/models/none/infer", body, Content_Encoding="gzip")
    expected = (413, "body-too-large") if bomb == "numbers" else (400, "invalid-request")
    assert (answer.status, answer.json["code"]) == expected
    assert peak_kib(strict.pid) < before + 8 * 1024


def test_files_in_a_request_to_load_are_not_kept(strict: Server):
    body = b'{"parameters":{%s}}' % b",".join(b'"%d":0' % i for i in range(80_000))
    before = peak_kib(strict.pid)
    for content in (body, b'{"parameters":{"config":"{}"}}'):
        with strict.http() as http:
            answer = http.request("POST", "/v2/repository/models/m/load", content)
        assert (answer.status, answer.json["code"]) == (405, "method-not-allowed")
    assert peak_kib(strict.pid) < before + 8 * 1024
    for content in (b"{}", b'{"parameters":{ }}', b'{"parameters":null}'):
        with strict.http() as http:
            answer = http.request("POST", "/v2/repository/models/m/load", content)
        assert (answer.status, answer.json["code"]) == (404, "model-not-found")
    with strict.http() as http:
        answer = http.request("POST", "/v2/repository/models/m/load", b'{"parameters":[]}')
    assert (answer.status, answer.json["code"]) == (400, "invalid-request")


def test_room_is_taken_for_answers_in_json(strict: Server):
    values = np.random.default_rng(0).standard_normal(200_000).astype(np.float32)
    with connect(strict) as client, connect(strict) as again:
        client.models.upload(graphs.identity(), name="wordy")
        np.testing.assert_array_equal(client.infer("wordy", {"x": values})["y"], values)
        oip = triton.connect(triton.tritonclient.http, strict, client)
        outputs = [oip.module.InferRequestedOutput("y", binary_data=False)]
        with pytest.raises(triton.InferenceServerException, match="too-many-requests"):
            oip.client.infer("wordy", oip.inputs(x=values), outputs=outputs)
        few = values[:20_000]
        answer = oip.client.infer("wordy", oip.inputs(x=few), outputs=outputs)
        np.testing.assert_array_equal(answer.as_numpy("y"), few)
        oip.close()
        # All of it was given back.
        np.testing.assert_array_equal(again.infer("wordy", {"x": values})["y"], values)


@pytest.mark.parametrize(
    ("datatype", "number"), [("FP16", "70000"), ("BF16", "1e39"), ("FP32", "1e39")]
)
def test_no_number_becomes_infinite(server: Server, same: str, datatype: str, number: str):
    tensor = f'{{"name":"x","datatype":"{datatype}","shape":[1],"data":[{number}]}}'
    with Http(server.port) as http:
        body = f'{{"inputs":[{tensor}]}}'.encode()
        answer = http.request("POST", f"/v2/models/{same}/infer", body)
    assert (answer.status, answer.json["code"]) == (400, "input-data")


def test_asynchronous(server: Server, client: blindai.Client, same: str):
    async def ask() -> None:
        oip = triton.connect(triton.tritonclient.http.aio, server, client)
        assert await oip.client.is_server_ready()
        assert (await oip.client.get_model_metadata(same))["name"] == same
        for coding in (None, "gzip", "deflate"):
            answer = await oip.client.infer(
                same,
                oip.inputs(x=ONES),
                request_compression_algorithm=coding,
                response_compression_algorithm=coding,
            )
            np.testing.assert_array_equal(answer.as_numpy("y"), ONES)
        with pytest.raises(triton.InferenceServerException, match="model-not-found"):
            await oip.client.infer("none", oip.inputs(x=ONES))
        await oip.client.close()

    triton.run(ask())


def test_many_at_a_time(server: Server, client: blindai.Client, same: str, oip: triton.Client):
    arrays = [np.full(1000, i, np.float32) for i in range(20)]
    calls = [oip.client.async_infer(same, oip.inputs(x=array)) for array in arrays]
    for call, array in zip(calls, arrays):
        np.testing.assert_array_equal(call.get_result().as_numpy("y"), array)


@pytest.mark.parametrize(
    "change",
    [
        {"parameters": {"sequence_id": 1}},
        {"parameters": {"binary_data_output": "yes"}},
        {"parameters": {"timeout": -1}},
        {"parameters": {"x": []}},
        {"parameters": []},
        {"outputs": [{"name": "y", "parameters": {"classification": "two"}}]},
        {"outputs": [{"name": "y", "parameters": {"shared_memory_region": "r"}}]},
    ],
)
def test_parameters_that_cannot_be_followed(server: Server, same: str, change: dict):
    tensor = {"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}
    with Http(server.port) as http:
        body = {"inputs": [tensor], **change}
        answer = http.request("POST", f"/v2/models/{same}/infer", body)
        assert (answer.status, answer.json["code"]) == (400, "invalid-request")
        body = {"inputs": [{**tensor, "parameters": {"mine": 1}}], "parameters": {"mine": "x"}}
        answer = http.request("POST", f"/v2/models/{same}/infer", body)
        assert answer.status == 200
