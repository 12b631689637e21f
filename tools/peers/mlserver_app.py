"""MLServer with a custom runtime. Its HTTP port takes tensors as JSON only."""

from __future__ import annotations

import asyncio

import numpy as np
import serving
from mlserver import MLModel, MLServer, ModelSettings, Settings, types

options = serving.arguments()


class Onnx(MLModel):
    async def load(self) -> bool:
        self.session = serving.session(self.settings.parameters.uri, options.threads)
        return True

    async def predict(self, payload: types.InferenceRequest) -> types.InferenceResponse:
        inputs = {tensor.name: read(tensor) for tensor in payload.inputs}
        outputs = await asyncio.to_thread(self.session.run, None, inputs)
        names = [output.name for output in self.session.get_outputs()]
        tensors = [write(name, array) for name, array in zip(names, outputs, strict=True)]
        return types.InferenceResponse(model_name=self.name, outputs=tensors)


def read(tensor: types.RequestInput) -> np.ndarray:
    dtype = serving.NUMPY[tensor.datatype]
    return np.array(tensor.data.root, dtype).reshape(tensor.shape)


def write(name: str, array: np.ndarray) -> types.ResponseOutput:
    return types.ResponseOutput(
        name=name,
        datatype=serving.datatype(array),
        shape=list(array.shape),
        data=array.ravel().tolist(),
    )


async def main() -> None:
    settings = Settings(
        host="127.0.0.1",
        http_port=options.port,
        grpc_port=0,
        metrics_endpoint=None,
        debug=False,
        # A process of its own for each model would cost it a copy each way; in one it is faster.
        parallel_workers=0,
        gzip_enabled=False,
    )
    settings._custom_rest_server_settings = {
        "ssl_certfile": options.certificate,
        "ssl_keyfile": options.key,
        "log_level": "warning",
    }
    models = [
        ModelSettings(name=name, implementation=Onnx, parameters={"uri": path})
        for name, path in options.models
    ]
    await MLServer(settings).start(models)


asyncio.run(main())
