"""KServe's Python server with a custom predictor and binary tensors."""

from __future__ import annotations

import asyncio

import kserve
import serving
from kserve import InferOutput, InferRequest, InferResponse

options = serving.arguments()


class Onnx(kserve.Model):
    def __init__(self, name: str, path: str):
        super().__init__(name)
        self.session = serving.session(path, options.threads)
        self.ready = True

    async def predict(self, payload: InferRequest, headers=None, response_headers=None):
        inputs = {tensor.name: tensor.as_numpy() for tensor in payload.inputs}
        outputs = await asyncio.to_thread(self.session.run, None, inputs)
        names = [output.name for output in self.session.get_outputs()]
        tensors = []
        for name, array in zip(names, outputs, strict=True):
            output = InferOutput(name, list(array.shape), serving.datatype(array))
            output.set_data_from_numpy(array, binary_data=True)
            tensors.append(output)
        # It refuses its own answer when the request had no id.
        return InferResponse(payload.id or "", self.name, tensors)


server = kserve.ModelServer(
    http_port=options.port,
    enable_grpc=False,
    ssl_certfile=options.certificate,
    ssl_keyfile=options.key,
    access_log_format=None,
    enable_latency_logging=False,
)
server.start([Onnx(name, path) for name, path in options.models])
