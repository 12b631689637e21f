"""The protocol of BlindAI 0.3 by hand, from its schema."""

from __future__ import annotations

import importlib
import ssl
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from types import ModuleType
from typing import Any

import grpc
import grpc_tools.protoc
from support import ROOT, Server

PIECE_BYTES = 32 * 1024


@cache
def messages() -> ModuleType:
    """The messages, made from the schema."""
    folder, schema = mkdtemp(), ROOT / "crates/blindai-core/proto/blindai-0.3.proto"
    copy = Path(folder) / "legacy_messages.proto"
    copy.write_text(schema.read_text())
    include = Path(grpc_tools.protoc.__file__).parent / "_proto"
    code = grpc_tools.protoc.main(
        ["protoc", f"-I{folder}", f"-I{include}", f"--python_out={folder}", str(copy)]
    )
    assert code == 0
    sys.path.insert(0, folder)
    return importlib.import_module("legacy_messages_pb2")


class Exchange:
    """A connection to the attested port, whose certificate is taken as it comes."""

    def __init__(self, server: Server):
        root = ssl.get_server_certificate(("localhost", server.port)).encode()
        self.channel = grpc.secure_channel(server.address, grpc.ssl_channel_credentials(root))
        self.m = messages()

    def send(self, model: bytes, pieces: list[bytes] | None = None, **fields: Any) -> Any:
        """Sends a model, in pieces of 32 KiB unless told otherwise."""
        fields = {"length": len(model), "model_name": "model.onnx", **fields}
        cut = [model[i : i + PIECE_BYTES] for i in range(0, len(model), PIECE_BYTES)]
        pieces = cut if pieces is None else pieces
        return self.call("SendModel", [self.m.SendModelRequest(data=p, **fields) for p in pieces])

    def run(self, numbers: bytes, **fields: Any) -> Any:
        """Runs the model on a CBOR list."""
        return self.call("RunModel", [self.m.RunModelRequest(input=numbers, **fields)])

    def call(self, method: str, requests: Iterable[Any]) -> Any:
        stub = self.channel.stream_unary(
            f"/securedexchange.Exchange/{method}",
            lambda message: message.SerializeToString(),
            self.m.SignedReply.FromString,
        )
        reply = stub(iter(requests), timeout=60)
        return self.m.Payload.FromString(reply.payload)

    def __enter__(self) -> Exchange:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()
