"""The asyncio twin of the blocking client.

    async with blindai.aio.connect("localhost:50051", policy="policy.toml") as client:
        out = await client.infer("resnet50", {"input": image})

Every call is a native future: it holds no thread, and cancelling its task cancels the request.
"""

from __future__ import annotations

import builtins
import dataclasses
import json
import os
from collections.abc import Generator, Iterable, Mapping
from types import TracebackType
from typing import Any

from blindai import _native
from blindai._connect import Arguments, CertificatePaths, prepare_connect, refuse_closed
from blindai._errors import InvalidInputError
from blindai._models import Model, Progress, Source, prepare_upload
from blindai._receipt import Outputs, keep
from blindai._report import Report
from blindai._tensors import decode, encode, needs_signature

__all__ = ["Client", "Models", "connect"]


def connect(
    address: str = "localhost:50051",
    *,
    simulation: bool = False,
    policy: str | os.PathLike[str] | bytes | None = None,
    timeout: float | None = None,
    token: str | None = None,
    client_certificate: CertificatePaths | None = None,
) -> Connecting:
    """Like `blindai.connect`: to be awaited, or used in an ``async with`` block."""
    return Connecting(
        prepare_connect(address, simulation, policy, timeout, token, client_certificate)
    )


class Connecting:
    """A connection that is being made: ``await`` it, or enter it."""

    def __init__(self, arguments: Arguments) -> None:
        self._arguments = arguments
        self._client: Client | None = None

    def __await__(self) -> Generator[Any, None, Client]:
        return self._connect().__await__()

    async def __aenter__(self) -> Client:
        self._client = await self._connect()
        return self._client

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._client:
            await self._client.close()

    async def _connect(self) -> Client:
        return Client(await _native.connect_async(*self._arguments))


class Client:
    """A connection to a verified server; made by `blindai.aio.connect`.

    The methods are those of `blindai.Client`, to be awaited. A process that is forked from one that
    used `blindai.aio` cannot connect with it either (``client-forked``): the threads that serve it
    are not there.
    """

    def __init__(self, native: _native.AsyncClient) -> None:
        self._open: _native.AsyncClient | None = native
        self._report = Report(*native.report())
        self._known: dict[tuple[str, str | None], Model] = {}
        #: The models on the server.
        self.models = Models(self)

    @property
    def report(self) -> Report:
        """What was verified when the connection was made."""
        return self._report

    async def infer(
        self,
        name: str,
        inputs: Mapping[str, Any],
        *,
        version: str | None = None,
        outputs: Iterable[str] | None = None,
        receipt: bool = False,
        digest: str | None = None,
    ) -> Outputs:
        """Runs a model; see `blindai.Client.infer`."""
        if not needs_signature(inputs):
            return await self._run(name, inputs, version, outputs, None, receipt, digest)
        model = self._known.get((name, version)) or await self.models.get(name, version)
        try:
            return await self._run(name, inputs, version, outputs, model, receipt, digest)
        except InvalidInputError:
            # The name may hold another model by now.
            fresh = await self.models.get(name, version)
            if fresh.digest == model.digest:
                raise
            return await self._run(name, inputs, version, outputs, fresh, receipt, digest)

    async def attest(self) -> Report:
        """Asks for evidence made now and verifies it; see `blindai.Client.attest`."""
        return Report(*await self._native().attest())

    async def ready(self) -> bool:
        """Whether the server can answer requests now."""
        return await self._native().ready()

    async def close(self) -> None:
        """Ends the connection. Requests that are under way come to their end."""
        self._open = None

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<blindai.aio.Client {'open' if self._open else 'closed'}>"

    def _native(self) -> _native.AsyncClient:
        return self._open or refuse_closed()

    async def _run(
        self,
        name: str,
        inputs: Mapping[str, Any],
        version: str | None,
        outputs: Iterable[str] | None,
        model: Model | None,
        receipt: bool,
        digest: str | None,
    ) -> Outputs:
        wire = encode(inputs, model.signature if model else None)
        run = self._native().infer(name, version, wire, list(outputs or ()), receipt, digest)
        tensors, kept = await run
        return Outputs._of(decode(tensors), kept)


class Models:
    """The models on a server; ``client.models``. The methods are those of `blindai.Models`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def upload(
        self,
        source: Source,
        *,
        name: str | None = None,
        version: str | None = None,
        replace: bool = False,
        progress: bool | Progress | None = None,
        receipt: bool = False,
    ) -> Model:
        """Sends an ONNX model; see `blindai.Models.upload`."""
        path_or_bytes, name, callback = prepare_upload(source, name, progress)
        native = self._client._native()
        upload = native.upload(name, version, replace, path_or_bytes, callback, receipt)
        document, kept = await upload
        model = self._keep(document, version)
        return dataclasses.replace(model, receipt=keep(kept)) if kept else model

    async def list(self) -> builtins.list[Model]:
        """Every model that the server holds."""
        models = json.loads(await self._client._native().models())
        return [Model._from_json(info) for info in models]

    async def get(self, name: str, version: str | None = None) -> Model:
        """One model, with its signature; see `blindai.Models.get`."""
        return self._keep(await self._client._native().model(name, version), version)

    async def delete(self, name: str, version: str | None = None) -> builtins.list[Model]:
        """Deletes one version of a model, or all; see `blindai.Models.delete`."""
        deleted = json.loads(await self._client._native().delete(name, version))
        self._client._known.clear()
        return [Model._from_json(info) for info in deleted]

    def _keep(self, document: str, version: str | None) -> Model:
        model = Model._from_json(json.loads(document))
        self._client._known[model.name, version] = model
        return model
