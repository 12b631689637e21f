"""Asks a server through the unmodified clients of `kserve`, and prints what they are told.

What to ask comes as JSON on standard input; the answers go as JSON to standard output, for
`test_kserve.py` to judge. Runs in the environment that `tools/setup.sh test` makes for them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import sys
from importlib import metadata

import grpc
import httpx
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.grpc import grpc_predict_v2_pb2 as messages
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub
from kserve.protocol.infer_type import RequestedOutput

NUMPY = {"FP32": np.float32, "INT64": np.int64, "BYTES": np.object_}


class Rest:
    """Its REST client, which takes the server's URL with each call."""

    def __init__(self, asked: dict):
        self.url = asked["url"]
        trusted = ssl.create_default_context(cafile=asked["root"]) if asked["root"] else True
        self.client = InferenceRESTClient(RESTConfig(protocol="v2", verify=trusted))

    def live(self):
        return self.client.is_server_live(self.url)

    def ready(self):
        return self.client.is_server_ready(self.url)

    def model_ready(self, name: str):
        return self.client.is_model_ready(self.url, name)

    def infer(self, name: str, request: InferRequest):
        return self.client.infer(self.url, request, model_name=name)

    async def metadata(self, name: str) -> dict:
        # The client has no call for this; this is the library that it calls with.
        answer = await self.client._client.get(f"{self.url}/v2/models/{name}")
        return answer.json()


class Grpc:
    """Its gRPC client."""

    def __init__(self, asked: dict):
        options = {"use_ssl": bool(asked["root"]), "root_certificates": asked["root"]}
        self.client = InferenceGRPCClient(asked["address"], **options)

    def live(self):
        return self.client.is_server_live()

    def ready(self):
        return self.client.is_server_ready()

    def model_ready(self, name: str):
        return self.client.is_model_ready(name)

    def infer(self, name: str, request: InferRequest):
        return self.client.infer(request)

    async def metadata(self, name: str) -> dict:
        # The client has no call for this; its schema and its channel have.
        stub = GRPCInferenceServiceStub(self.client._channel)
        answer = await stub.ModelMetadata(messages.ModelMetadataRequest(name=name))
        tensors = {
            side: [
                {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
                for tensor in getattr(answer, side)
            ]
            for side in ("inputs", "outputs")
        }
        return {"name": answer.name, "versions": list(answer.versions), **tensors}


async def ask(asked: dict) -> dict:
    way = {"rest": Rest, "grpc": Grpc}[asked["protocol"]](asked)
    models = asked["models"]
    async with way.client:
        return {
            "version": metadata.version("kserve"),
            "live": await way.live(),
            "ready": await way.ready(),
            "model ready": await way.model_ready(models["FP32"]),
            "absent ready": await outcome(way.model_ready("absent")),
            "metadata": await way.metadata(models["FP32"]),
            "answers": [await answer(way, models, **case) for case in asked["cases"]],
            "absent": await outcome(way.infer("absent", request("absent", "FP32", [1.0]))),
            "wrong type": await outcome(
                way.infer(models["FP32"], request(models["FP32"], "INT64", [1]))
            ),
        }


async def answer(way, models: dict, datatype: str, values: list, **options) -> dict:
    """What came back, as values that JSON has: texts as the hexadecimal digits of their bytes."""
    name = models[datatype]
    got = await way.infer(name, request(name, datatype, values, **options))
    (output,) = got.outputs
    array = output.as_numpy()
    return {
        "model": got.model_name,
        "id": got.id,
        "name": output.name,
        "datatype": output.datatype,
        "dtype": str(array.dtype),
        "shape": list(array.shape),
        "values": [plain(value) for value in array.flatten().tolist()],
    }


def request(
    model: str, datatype: str, values: list, binary: bool = True, binary_output: bool = True
) -> InferRequest:
    if datatype == "BYTES":
        values = [bytes.fromhex(value) for value in values]
    array = np.array(values, NUMPY[datatype])
    tensor = InferInput("x", list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=binary)
    wanted = RequestedOutput("y", {"binary_data": binary_output})
    return InferRequest(model, [tensor], request_id="mine", request_outputs=[wanted])


def plain(value):
    if isinstance(value, str):
        value = value.encode()
    return value.hex() if isinstance(value, bytes) else value


async def outcome(call) -> dict:
    """What a call gives, or how it fails."""
    try:
        return {"gives": repr(await call)}
    except httpx.HTTPStatusError as error:
        return {"status": error.response.status_code, "text": str(error)}
    except grpc.RpcError as error:
        return {"status": error.code().name, "text": error.details()}


# What the library prints is no part of the answer.
with contextlib.redirect_stdout(sys.stderr):
    told = asyncio.run(ask(json.load(sys.stdin)))
json.dump(told, sys.stdout)
