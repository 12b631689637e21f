"""The Open Inference Protocol over gRPC: statuses, limits, streams, and messages made by hand."""

from __future__ import annotations

import collections
import gzip
import queue
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import graphs
import grpc
import grpc_tools.protoc
import numpy as np
import pytest
import triton
from conftest import connect
from google.protobuf import descriptor_pb2
from onnx import TensorProto
from support import ROOT, Server, peak_kib, run_slowly
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

import blindai

MIB = 1 << 20
SERVICE = "/inference.GRPCInferenceService/"
Request, Contents = service_pb2.ModelInferRequest, service_pb2.InferTensorContents
Input = Request.InferInputTensor
# Of the slow model, for some 10 ms.
ROUNDS = 50_000
LIMITS = {"body_bytes": MIB, "concurrent_requests": 2, "request_seconds": 4, "idle_seconds": 2}


@pytest.fixture(scope="module")
def oip(server: Server, client: blindai.Client) -> Iterator[triton.Client]:
    oip = triton.connect(triton.tritonclient.grpc, server, client)
    yield oip
    oip.close()


@pytest.fixture(scope="module")
def channel(server: Server, client: blindai.Client) -> Iterator[grpc.Channel]:
    with triton.channel_to(server, client) as channel:
        yield channel


@pytest.fixture(scope="module")
def strict(tmp_path_factory) -> Iterator[tuple[Server, blindai.Client, grpc.Channel]]:
    """A server with tight limits, and a channel to it."""
    with (
        Server(tmp_path_factory.mktemp("strict"), limits=LIMITS) as server,
        connect(server) as client,
        triton.channel_to(server, client) as channel,
    ):
        client.models.upload(graphs.identity(), name="same")
        client.models.upload(graphs.loop(), name="slow")
        yield server, client, channel


@pytest.fixture
def same(client: blindai.Client, model: str) -> str:
    client.models.upload(graphs.identity(), name=model)
    return model


def infer(channel: grpc.Channel, request, **options):
    return service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, **options)


def call(channel: grpc.Channel, method: str, message: bytes, **options) -> bytes:
    """A message that may be anything; so may the answer."""
    return channel.unary_unary(SERVICE + method)(message, **options)


def refused(function, *arguments, **options) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        function(*arguments, **options)
    return caught.value


def assert_error(error: grpc.RpcError, status: grpc.StatusCode, code: str) -> dict[str, str]:
    """An error says the same in its status, its code and its words."""
    trailers = dict(error.trailing_metadata())
    assert (error.code(), trailers["blindai-code"]) == (status, code), error
    assert error.details().startswith(f"{code}: ")
    return trailers


def raw(model: str, array: np.ndarray, **fields) -> Request:
    tensor = Input(name="x", datatype="FP32", shape=array.shape)
    content = [array.tobytes()]
    return Request(model_name=model, inputs=[tensor], raw_input_contents=content, **fields)


def test_the_schema_is_the_public_one(tmp_path):
    """Every message and field of our schema, as Triton's clients have it."""
    made = tmp_path / "schema"
    folder = ROOT / "crates/blindai-core/proto"
    arguments = ["", f"-I{folder}", f"--descriptor_set_out={made}", "inference.proto"]
    assert grpc_tools.protoc.main(arguments) == 0
    (ours,) = descriptor_pb2.FileDescriptorSet.FromString(made.read_bytes()).file
    theirs = {}
    methods = {}
    for module in (service_pb2, model_config_pb2):
        file = descriptor_pb2.FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(file)
        theirs |= fields_of(file.message_type)
        methods |= {m.name: m for service in file.service for m in service.method}
    mine = fields_of(ours.message_type)
    assert len(mine) > 40
    for message, fields in mine.items():
        assert fields.items() <= theirs[message].items(), message
    for method in ours.service[0].method:
        for key in ("input_type", "output_type", "client_streaming", "server_streaming"):
            assert getattr(method, key) == getattr(methods[method.name], key), method


def fields_of(messages, prefix: str = "") -> dict[str, dict]:
    found = {}
    for message in messages:
        found[prefix + message.name] = {
            field.name: (field.number, field.type, field.label, field.type_name)
            for field in message.field
        }
        found |= fields_of(message.nested_type, f"{prefix}{message.name}.")
    return found


TYPED = {
    "BOOL": (TensorProto.BOOL, np.bool_, {"bool_contents": [True, False]}),
    "UINT8": (TensorProto.UINT8, np.uint8, {"uint_contents": [0, 255]}),
    "UINT16": (TensorProto.UINT16, np.uint16, {"uint_contents": [1, 65535]}),
    "UINT32": (TensorProto.UINT32, np.uint32, {"uint_contents": [1, 2**32 - 1]}),
    "UINT64": (TensorProto.UINT64, np.uint64, {"uint64_contents": [1, 2**64 - 1]}),
    "INT8": (TensorProto.INT8, np.int8, {"int_contents": [-128, 127]}),
    "INT16": (TensorProto.INT16, np.int16, {"int_contents": [-(2**15), 2**15 - 1]}),
    "INT32": (TensorProto.INT32, np.int32, {"int_contents": [-(2**31), 2**31 - 1]}),
    "INT64": (TensorProto.INT64, np.int64, {"int64_contents": [-(2**63), 2**63 - 1]}),
    "FP32": (TensorProto.FLOAT, np.float32, {"fp32_contents": [0.5, -1.5]}),
    "FP64": (TensorProto.DOUBLE, np.float64, {"fp64_contents": [0.1, -1e300]}),
}


@pytest.mark.parametrize("datatype", TYPED)
def test_typed_contents(channel, client: blindai.Client, model: str, datatype: str):
    onnx_type, numpy_type, contents = TYPED[datatype]
    client.models.upload(graphs.identity(onnx_type), name=model)
    tensor = Input(name="x", datatype=datatype, shape=[2], contents=Contents(**contents))
    answer = infer(channel, Request(model_name=model, inputs=[tensor]))
    (values,) = contents.values()
    got = np.frombuffer(answer.raw_output_contents[0], numpy_type)
    np.testing.assert_array_equal(got, np.array(values, numpy_type))
    assert answer.outputs[0].datatype == datatype


def test_typed_texts(channel, client: blindai.Client, model: str):
    client.models.upload(graphs.identity(TensorProto.STRING), name=model)
    texts = [b"", "ünïcode".encode()]
    tensor = Input(name="x", datatype="BYTES", shape=[2], contents=Contents(bytes_contents=texts))
    answer = infer(channel, Request(model_name=model, inputs=[tensor]))
    want = b"".join(len(text).to_bytes(4, "little") + text for text in texts)
    assert answer.raw_output_contents[0] == want


@pytest.mark.parametrize(
    ("datatype", "contents"),
    [
        ("INT8", {"int_contents": [1, 300]}),
        ("UINT8", {"uint_contents": [1, 256]}),
        ("UINT8", {"int_contents": [1, 2]}),
        ("FP32", {"fp32_contents": [1, 2], "fp64_contents": [1, 2]}),
        ("FP32", {"fp32_contents": [1]}),
        ("FP32", {}),
        ("FP16", {"fp32_contents": [1, 2]}),
    ],
)
def test_contents_that_do_not_fit(channel, same: str, datatype: str, contents: dict):
    tensor = Input(name="x", datatype=datatype, shape=[2], contents=Contents(**contents))
    error = refused(infer, channel, Request(model_name=same, inputs=[tensor]))
    assert_error(error, grpc.StatusCode.INVALID_ARGUMENT, "input-data")


def test_raw_and_typed_contents_do_not_mix(channel, same: str):
    array = np.ones(2, np.float32)
    both = raw(same, array)
    both.inputs[0].contents.fp32_contents.extend([1, 1])
    more = raw(same, array)
    more.raw_input_contents.append(b"")
    for request in (both, more):
        error = refused(infer, channel, request)
        assert_error(error, grpc.StatusCode.INVALID_ARGUMENT, "invalid-request")


@pytest.mark.parametrize("datatype", ["FP31", ""])
def test_types_that_do_not_exist(channel, same: str, datatype: str):
    request = raw(same, np.ones(1, np.float32))
    request.inputs[0].datatype = datatype
    error = refused(infer, channel, request)
    assert_error(error, grpc.StatusCode.INVALID_ARGUMENT, "input-dtype")


@pytest.mark.parametrize(
    "message",
    [b"\xff", b"\x0a\x7fshort", b"\x0a\x02\xff\xfe", b"\x2a\x02\x18\xff", b"\x0b\x0c"],
)
def test_messages_that_are_none(channel, message: bytes):
    error = refused(call, channel, "ModelInfer", message)
    assert_error(error, grpc.StatusCode.INVALID_ARGUMENT, "invalid-request")


def test_more_tensors_than_any_model_has(channel, same: str):
    for field in (b"\x2a\x00", b"\x32\x00", b"\x3a\x00"):
        error = refused(call, channel, "ModelInfer", b"\x0a\x01m" + field * 5000)
        assert_error(error, grpc.StatusCode.INVALID_ARGUMENT, "invalid-request")


def test_unknown_fields_and_methods(channel, same: str):
    array = np.ones(2, np.float32)
    message = raw(same, array).SerializeToString() + b"\xfa\x07\x03new\xf0\x07\x01"
    assert call(channel, "ModelInfer", message)
    error = refused(call, channel, "TraceSetting", b"")
    assert_error(error, grpc.StatusCode.UNIMPLEMENTED, "route-not-found")
    error = refused(channel.unary_unary("/other.Service/Method"), b"")
    assert error.code() == grpc.StatusCode.UNIMPLEMENTED


def test_request_ids_are_metadata(channel, same: str):
    ready = channel.unary_unary(SERVICE + "ServerReady")
    _, answered = ready.with_call(b"", metadata=[("x-request-id", "mine-1")])
    assert dict(answered.initial_metadata())["x-request-id"] == "mine-1"
    error = refused(call, channel, "ModelMetadata", b"\x0a\x04none")
    assert dict([*error.initial_metadata(), *error.trailing_metadata()])["x-request-id"]
    assert_error(error, grpc.StatusCode.NOT_FOUND, "model-not-found")


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_compressed_requests(oip: triton.Client, same: str, coding: str):
    ones = np.ones(100_000, np.float32)
    answer = oip.infer(same, oip.inputs(x=ones), compression_algorithm=coding)
    np.testing.assert_array_equal(answer.as_numpy("y"), ones)


def test_messages_over_the_limit(strict):
    server, _, channel = strict
    before = peak_kib(server.pid)
    for size in (MIB, 64 * MIB):
        request = raw("same", np.zeros(size // 4, np.float32))
        error = refused(infer, channel, request)
        assert_error(error, grpc.StatusCode.INVALID_ARGUMENT, "body-too-large")
        for compression in (grpc.Compression.Gzip, grpc.Compression.Deflate):
            error = refused(infer, channel, request, compression=compression)
            assert_error(error, grpc.StatusCode.INVALID_ARGUMENT, "body-too-large")
    assert peak_kib(server.pid) < before + 32 * 1024
    # A number of eight bytes may be one on the wire.
    tensor = Input(name="x", datatype="INT64", shape=[MIB // 2])
    tensor.contents.int64_contents.extend([0] * (MIB // 2))
    error = refused(infer, channel, Request(model_name="same", inputs=[tensor]))
    assert_error(error, grpc.StatusCode.INVALID_ARGUMENT, "body-too-large")
    assert infer(channel, raw("same", np.zeros(1000, np.float32)))


def slow(rounds: int, **fields) -> Request:
    tensor = Input(name="rounds", datatype="INT64", shape=[])
    content = [rounds.to_bytes(8, "little")]
    return Request(model_name="slow", inputs=[tensor], raw_input_contents=content, **fields)


def test_deadlines(strict):
    _, _, channel = strict
    # The server's own limit, and the one that the client sends along and keeps itself.
    for options in ({}, {"timeout": 0.5}):
        error = refused(infer, channel, slow(2**62), **options)
        assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    # What a client gave up keeps nobody's place.
    for _ in range(3):
        assert infer(channel, slow(3)).raw_output_contents[0] == (3).to_bytes(8, "little")


@pytest.mark.parametrize("timeout", ["", "1", "1s", "-1S", "123456789S", "soon"])
def test_deadlines_that_are_none(server: Server, timeout: str):
    answer = by_hand(server, "ServerReady", b"", **{"grpc-timeout": timeout})
    assert (answer["grpc-status"], answer["blindai-code"]) == ("3", "invalid-request")


def test_an_overloaded_server_says_when_to_come_back(strict):
    server, client, channel = strict
    with ThreadPoolExecutor() as pool:
        busy = [run_slowly(pool, server, client, "slow", 30_000_000)]
        busy.append(pool.submit(client.infer, "slow", {"rounds": np.array(1)}))
        time.sleep(0.2)
        error = refused(infer, channel, raw("same", np.zeros(1, np.float32)))
        trailers = assert_error(error, grpc.StatusCode.RESOURCE_EXHAUSTED, "too-many-requests")
        assert trailers["grpc-retry-pushback-ms"] == "1000"
        for request in busy:
            assert request.exception() is None or isinstance(
                request.exception(), blindai.BlindAIError
            )


class Stream:
    """A stream of `tritonclient`."""

    def __init__(self, oip: triton.Client):
        self.answers: queue.Queue = queue.Queue()
        self.oip = oip
        oip.client.start_stream(lambda result, error: self.answers.put((result, error)))

    def send(self, model: str, inputs: list, **options) -> None:
        self.oip.client.async_stream_infer(model, inputs, **options)

    def receive(self) -> tuple:
        return self.answers.get(timeout=30)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.oip.client.stop_stream()


def test_a_stream_answers_in_order(oip: triton.Client, same: str):
    arrays = [np.full(1 + 10_000 * (i % 3), i, np.float32) for i in range(30)]
    with Stream(oip) as stream:
        for i, array in enumerate(arrays):
            stream.send(same, oip.inputs(x=array), request_id=str(i))
        for i, array in enumerate(arrays):
            result, error = stream.receive()
            assert error is None
            response = result.get_response()
            assert response.id == str(i)
            assert response.parameters["triton_final_response"].bool_param
            np.testing.assert_array_equal(result.as_numpy("y"), array)


def test_an_error_does_not_end_a_stream(oip: triton.Client, same: str):
    x = oip.inputs(x=np.ones(2, np.float32))
    with Stream(oip) as stream:
        for model in (same, "none", same):
            stream.send(model, x, request_id="7")
        outcomes = [stream.receive() for _ in range(3)]
    assert [error is None for _, error in outcomes] == [True, False, True]
    assert "model-not-found: " in outcomes[1][1].message()


def test_a_stream_may_pause_but_not_within_a_message(strict):
    _, _, channel = strict
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    request = raw("same", np.ones(2, np.float32), id="7")

    def requests() -> Iterator[Request]:
        yield request
        # Longer than limits.idle_seconds, shorter than limits.request_seconds.
        time.sleep(2.5)
        yield request

    answers = list(stub.ModelStreamInfer(requests()))
    assert [answer.infer_response.id for answer in answers] == ["7", "7"]


def test_a_stream_ends_with_its_time(strict):
    _, _, channel = strict
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    open_end: queue.Queue = queue.Queue()
    open_end.put(raw("same", np.ones(2, np.float32)))
    answers = stub.ModelStreamInfer(iter(open_end.get, None))
    assert next(answers).infer_response.model_name == "same"
    error = refused(next, answers)
    open_end.put(None)
    assert_error(error, grpc.StatusCode.DEADLINE_EXCEEDED, "deadline-exceeded")


def test_a_busy_stream_ends_with_its_time(strict):
    """Its messages are there long before; each takes a moment."""
    _, _, channel = strict
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    tensor = Input(name="rounds", datatype="INT64", shape=[])
    content = [np.array(ROUNDS).tobytes()]
    request = Request(model_name="slow", inputs=[tensor], raw_input_contents=content)
    answers = stub.ModelStreamInfer(iter([request] * 2000), timeout=60)
    start = time.monotonic()
    error = refused(collections.deque, answers)
    assert time.monotonic() - start < LIMITS["request_seconds"] + 3
    assert_error(error, grpc.StatusCode.DEADLINE_EXCEEDED, "deadline-exceeded")


def test_a_stream_is_as_limited_as_a_call(strict):
    _, _, channel = strict
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    large = raw("same", np.zeros(MIB, np.float32))
    error = refused(list, stub.ModelStreamInfer(iter([large])))
    assert_error(error, grpc.StatusCode.INVALID_ARGUMENT, "body-too-large")


def test_nothing_piles_up_in_a_stream(strict):
    """Who sends and does not read is not answered further than the connection holds."""
    server, _, channel = strict
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    request = raw("same", np.zeros(MIB // 5, np.float32))
    before = peak_kib(server.pid)
    answers = stub.ModelStreamInfer(iter([request] * 100))
    time.sleep(1.5)
    assert peak_kib(server.pid) < before + 32 * 1024
    answers.cancel()


def test_asynchronous(server: Server, client: blindai.Client, same: str):
    ones = np.ones(1000, np.float32)

    async def ask() -> None:
        oip = triton.connect(triton.tritonclient.grpc.aio, server, client)
        assert await oip.client.is_server_ready()
        assert (await oip.client.get_model_metadata(same)).name == same
        answer = await oip.client.infer(same, oip.inputs(x=ones))
        np.testing.assert_array_equal(answer.as_numpy("y"), ones)
        with pytest.raises(triton.InferenceServerException, match="model-not-found"):
            await oip.client.infer("none", oip.inputs(x=ones))

        async def requests():
            for i in range(5):
                yield {"model_name": same, "inputs": oip.inputs(x=ones * i), "request_id": str(i)}

        answers = oip.client.stream_infer(requests())
        received = 0
        async for result, error in answers:
            assert error is None
            np.testing.assert_array_equal(result.as_numpy("y"), ones * received)
            received += 1
        assert received == 5
        await oip.client.close()

    triton.run(ask())


def by_hand(server: Server, method: str, message: bytes, prefix=None, **headers) -> dict:
    """The headers of a call whose every byte is ours; a refusal is nothing but headers."""
    prefix = b"\0" + len(message).to_bytes(4, "big") if prefix is None else prefix
    with server.http() as http:
        headers = {"content-type": "application/grpc", "te": "trailers", **headers}
        answer = http.request("POST", SERVICE + method, prefix + message, **headers)
        return {"status": answer.status, **answer.headers}


@pytest.mark.parametrize(
    ("prefix", "headers"),
    [
        (b"", {}),
        (b"\0\0\0", {}),
        (b"\0\0\0\0\5", {}),
        (b"\2\0\0\0\0", {}),
        (b"\1\0\0\0\0", {"grpc-encoding": "gzip"}),
        (b"\1\0\0\0\0", {"grpc-encoding": "snappy"}),
        (b"\0\0\0\0\0\0\0\0\0\0", {}),
        (b"\0\xff\xff\xff\xff", {}),
    ],
)
def test_frames_that_are_none(server: Server, prefix: bytes, headers: dict[str, str]):
    answer = by_hand(server, "ModelMetadata", b"", prefix, **headers)
    assert answer["grpc-status"] == "3"
    assert answer["blindai-code"] in ("invalid-request", "body-incomplete", "body-too-large")


COMPRESSED = {"grpc-encoding": "gzip"}
# Just above what a message without tensors may have.
BOMB = gzip.compress(bytes(64 * 1024 + 1))


@pytest.mark.parametrize("method", ["ServerLive", "ServerReady", "ServerMetadata", "ModelReady"])
def test_what_anybody_may_ask_takes_no_room(server: Server, method: str):
    """No credential and no place is needed for it, so nothing is held and nothing inflated."""
    for message, compressed in ((bytes(1025), 0), (gzip.compress(b""), 1), (BOMB, 1)):
        prefix = bytes([compressed]) + len(message).to_bytes(4, "big")
        answer = by_hand(server, method, message, prefix, **COMPRESSED)
        assert (answer["grpc-status"], answer["blindai-code"]) == ("3", "body-too-large")


@pytest.mark.parametrize("method", ["ModelMetadata", "RepositoryIndex", "RepositoryModelUnload"])
def test_what_asks_for_little_brings_little(server: Server, method: str):
    answer = by_hand(server, method, BOMB, b"\1" + len(BOMB).to_bytes(4, "big"), **COMPRESSED)
    assert (answer["grpc-status"], answer["blindai-code"]) == ("3", "body-too-large")


def test_what_is_not_grpc(server: Server):
    answer = by_hand(server, "ServerLive", b"", **{"content-type": "application/json"})
    assert answer["status"] == 415
    with server.http() as http:
        assert http.get(f"{SERVICE}ServerLive").status == 405
