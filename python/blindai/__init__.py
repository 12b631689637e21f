"""Confidential AI inference: verify what runs on the other side, then call it.

    import blindai, numpy as np

    with blindai.connect("localhost:50051", policy="policy.toml") as client:
        print(client.report)
        client.models.upload("resnet50.onnx")
        out = client.infer("resnet50", {"input": np.zeros((1, 3, 224, 224), np.float32)})

Not protected: the size and the time of every message, the server's address, and everything when
simulation is accepted. The asyncio twin is `blindai.aio`; the API of BlindAI 0.3 is in
`blindai.client`.
"""

from blindai import aio
from blindai._client import Client, Models, connect
from blindai._errors import (
    AttestationError,
    BlindAIError,
    ConnectionError,
    InvalidInputError,
    ModelError,
    PolicyError,
    ReceiptError,
    ServerError,
    SimulationWarning,
)
from blindai._models import Model, Signature, TensorSpec
from blindai._native import __version__
from blindai._receipt import Outputs, Receipt, TensorDigest
from blindai._report import Check, Report
from blindai._tensors import Tensor

__all__ = [
    "AttestationError",
    "BlindAIError",
    "Check",
    "Client",
    "ConnectionError",
    "InvalidInputError",
    "Model",
    "ModelError",
    "Models",
    "Outputs",
    "PolicyError",
    "Receipt",
    "ReceiptError",
    "Report",
    "ServerError",
    "Signature",
    "SimulationWarning",
    "Tensor",
    "TensorDigest",
    "TensorSpec",
    "__version__",
    "aio",
    "connect",
]
