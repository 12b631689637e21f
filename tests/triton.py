"""The clients of `tritonclient`, unmodified, which all take the same calls."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
import numpy as np
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from support import PATIENCE, Server, attested_certificate
from tritonclient.utils import InferenceServerException

import blindai


class Client:
    """A client of one protocol, under the name of its module, and how its calls are made."""

    def __init__(self, module: ModuleType, server: Server, certificate: x509.Certificate):
        self.module = module
        self.is_grpc = "grpc" in module.__name__
        pem = certificate.public_bytes(Encoding.PEM)
        root = server.folder / "attested.pem"
        root.write_bytes(pem)
        self.client = module.InferenceServerClient(server.address, ssl=True, **self._tls(root))

    def _tls(self, root: Path) -> dict[str, Any]:
        if self.is_grpc:
            return {"root_certificates": str(root)}
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(root)
        if "aio" in self.module.__name__:
            return {"ssl_context": context}
        return {
            "ssl_context_factory": lambda: context,
            "ssl_options": {"ca_certs": str(root)},
            "network_timeout": PATIENCE,
        }

    def __getattr__(self, method: str) -> Any:
        """A method of the client; gRPC answers as JSON, so that both answer the same."""
        call = getattr(self.client, method)
        as_json = self.is_grpc and method.startswith("get_")
        return lambda *a, **k: call(*a, **({"as_json": True} if as_json else {}), **k)

    def inputs(self, **arrays: np.ndarray | tuple[np.ndarray, str]) -> list:
        """Inputs by name; a tuple names the type too."""
        made = []
        for name, array in arrays.items():
            array, datatype = array if isinstance(array, tuple) else (array, datatype_of(array))
            tensor = self.module.InferInput(name, list(array.shape), datatype)
            tensor.set_data_from_numpy(array)
            made.append(tensor)
        return made

    def outputs(self, *names: str, **options) -> list:
        return [self.module.InferRequestedOutput(name, **options) for name in names]

    def infer(self, model: str, inputs: list, **options) -> Any:
        return self.client.infer(model, inputs, **options)

    def refused(self, call, *arguments, **options) -> InferenceServerException:
        try:
            call(*arguments, **options)
        except InferenceServerException as error:
            return error
        raise AssertionError("it was not refused")

    def close(self) -> None:
        self.client.close()


def datatype_of(array: np.ndarray) -> str:
    return tritonclient.utils.np_to_triton_dtype(array.dtype)


def connect(module: ModuleType, server: Server, client) -> Client:
    """A client that trusts the key which `client` verified, and nothing else."""
    return Client(module, server, attested_certificate(server, client))


def run(coroutine) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, PATIENCE))


def channel_to(server: Server, client: blindai.Client) -> grpc.Channel:
    """A channel of gRPC itself, for what the clients cannot say."""
    root = attested_certificate(server, client).public_bytes(Encoding.PEM)
    # A channel of its own, not one that others have open already.
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
    return grpc.secure_channel(server.address, grpc.ssl_channel_credentials(root), options)
