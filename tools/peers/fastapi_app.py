"""What a careful team writes itself: FastAPI, uvicorn and ONNX Runtime, with binary tensors."""

from __future__ import annotations

import fastapi
import numpy as np
import orjson
import serving
import uvicorn
from starlette.concurrency import run_in_threadpool

LENGTH = "inference-header-content-length"

options = serving.arguments()
sessions = {name: serving.session(path, options.threads) for name, path in options.models}
app = fastapi.FastAPI()


@app.get("/v2/health/ready")
async def ready() -> dict[str, bool]:
    return {"ready": True}


@app.post("/v2/models/{name}/infer")
async def infer(name: str, request: fastapi.Request) -> fastapi.Response:
    body = await request.body()
    inputs = read(body, int(request.headers[LENGTH]))
    # Without a thread a model that takes long would keep everybody else waiting.
    outputs = await run_in_threadpool(sessions[name].run, None, inputs)
    names = [output.name for output in sessions[name].get_outputs()]
    header, tensors = write(name, dict(zip(names, outputs, strict=True)))
    return fastapi.Response(b"".join([header, *tensors]), headers={LENGTH: str(len(header))})


def read(body: bytes, length: int) -> dict[str, np.ndarray]:
    inputs, at = {}, length
    for tensor in orjson.loads(body[:length])["inputs"]:
        size = tensor["parameters"]["binary_data_size"]
        dtype = serving.NUMPY[tensor["datatype"]]
        array = np.frombuffer(body, dtype, size // np.dtype(dtype).itemsize, at)
        inputs[tensor["name"]] = array.reshape(tensor["shape"])
        at += size
    return inputs


def write(name: str, outputs: dict[str, np.ndarray]) -> tuple[bytes, list[bytes]]:
    described = [
        {
            "name": key,
            "datatype": serving.datatype(array),
            "shape": list(array.shape),
            "parameters": {"binary_data_size": array.nbytes},
        }
        for key, array in outputs.items()
    ]
    header = orjson.dumps({"model_name": name, "outputs": described})
    return header, [array.tobytes() for array in outputs.values()]


uvicorn.run(
    app,
    host="127.0.0.1",
    port=options.port,
    ssl_certfile=options.certificate,
    ssl_keyfile=options.key,
    log_level="warning",
    access_log=False,
)
