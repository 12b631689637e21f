"""The blocking client."""

from __future__ import annotations

import builtins
import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

from blindai import _native
from blindai._connect import CertificatePaths, prepare_connect, refuse_closed
from blindai._errors import InvalidInputError
from blindai._models import Model, Progress, Source, prepare_upload
from blindai._receipt import Outputs, keep
from blindai._report import Report
from blindai._tensors import decode, encode, needs_signature


def connect(
    address: str = "localhost:50051",
    *,
    simulation: bool = False,
    policy: str | os.PathLike[str] | bytes | None = None,
    timeout: float | None = None,
    token: str | None = None,
    client_certificate: CertificatePaths | None = None,
) -> Client:
    """Verifies a server and connects to it.

    Nothing is sent before the server has proved, by hardware evidence bound to the connection's
    key, that it runs what the policy accepts.

    Args:
        address: ``host`` or ``host:port`` of the attested port.
        simulation: accept simulated evidence. It protects nothing and warns so, once per process.
        policy: path of a policy file (TOML), or its text as bytes: which code on which hardware to
            accept.
        timeout: seconds that connecting and each request may take, and that an upload may stand
            still; by default 10 to connect and 300 for a request.
        token: the bearer token of this caller, for servers that want to know who calls. It is sent
            only after the server was verified, and shown nowhere.
        client_certificate: the paths of a certificate and of its private key (PEM), the other way
            to say who calls. The certificate is shown when the connection is made.

    Raises:
        AttestationError: the server did not prove what the policy asks for.
        PolicyError: the policy cannot be read or accepts nothing, or there is none.
        AccessError: the server does not know the client certificate.
        InvalidInputError: the token or the certificate is none.
        ConnectionError: there is no server.
    """
    return Client(
        _native.connect(
            *prepare_connect(address, simulation, policy, timeout, token, client_certificate)
        )
    )


class Client:
    """A connection to a verified server; made by `blindai.connect`.

    It may be used from several threads at once. Close it, or use it in a ``with`` block.

    It is of the process that made it. In one that was forked from that (`multiprocessing` with
    ``fork``, gunicorn with ``--preload``) every call is refused with ``client-forked``, because
    both would encrypt with the same keys and nonces: connect there again.
    """

    def __init__(self, native: _native.Client) -> None:
        self._open: _native.Client | None = native
        self._report = Report(*native.report())
        self._known: dict[tuple[str, str | None], Model] = {}
        #: The models on the server.
        self.models = Models(self)

    @property
    def report(self) -> Report:
        """What was verified when the connection was made."""
        return self._report

    def infer(
        self,
        name: str,
        inputs: Mapping[str, Any],
        *,
        version: str | None = None,
        outputs: Iterable[str] | None = None,
        receipt: bool = False,
        digest: str | None = None,
    ) -> Outputs:
        """Runs a model.

        Args:
            name: the model's name.
            inputs: an array per input. numpy arrays, and what numpy reads without a copy, are sent
                as they are: a wrong dtype is an error, never a cast. Python numbers, texts and
                lists of them become the model's dtype. Do not change an array during the call.
            version: the model's version; None for the latest.
            outputs: the names of the outputs to return; None for all.
            receipt: ask for a receipt, check it against what was sent and what came, and give it
                as ``result.receipt``.
            digest: accept this content alone, ``sha256:`` and 64 hexadecimal digits: the server
                refuses before the model runs when the name holds another. What the policy pins
                counts with or without it.

        Returns:
            A dict with an array per output, in the model's order. Strings are object arrays of str.
            BF16 is ``ml_dtypes.bfloat16`` when that package is installed, else float32 of equal
            values.

        Raises:
            InvalidInputError: an input is missing, unknown, or of another dtype or shape.
            ModelError: there is no such model, it is not one that is accepted
                (``model-not-accepted``: it did not run), or it failed on this input.
            ServerError: the server cannot answer now, or this caller is over its quota.
            AccessError: the server does not know this caller, or does not let it do this.
            AttestationError: the server's evidence has expired and it has no new one.
            ReceiptError: the receipt does not fit the request or the answer.
            ConnectionError: the connection broke, or this client is closed or of another process.
        """
        if not needs_signature(inputs):
            return self._run(name, inputs, version, outputs, None, receipt, digest)
        model = self._known.get((name, version)) or self.models.get(name, version)
        try:
            return self._run(name, inputs, version, outputs, model, receipt, digest)
        except InvalidInputError:
            # The name may hold another model by now.
            fresh = self.models.get(name, version)
            if fresh.digest == model.digest:
                raise
            return self._run(name, inputs, version, outputs, fresh, receipt, digest)

    def attest(self) -> Report:
        """Asks the server for evidence made now, for a random nonce, and verifies it.

        Raises:
            AttestationError: the server did not prove what the policy asks for.
        """
        return Report(*self._native().attest())

    def ready(self) -> bool:
        """Whether the server can answer requests now."""
        return self._native().ready()

    def close(self) -> None:
        """Ends the connection. Requests on other threads come to their end."""
        self._open = None

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<blindai.Client {'open' if self._open else 'closed'}>"

    def _native(self) -> _native.Client:
        return self._open or refuse_closed()

    def _run(
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
        tensors, kept = run
        return Outputs._of(decode(tensors), kept)


class Models:
    """The models on a server; ``client.models``."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def upload(
        self,
        source: Source,
        *,
        name: str | None = None,
        version: str | None = None,
        replace: bool = False,
        progress: bool | Progress | None = None,
        receipt: bool = False,
    ) -> Model:
        """Sends an ONNX model; it is streamed, never in memory as a whole.

        Args:
            source: the path of the file, or the model itself as bytes.
            name: what to call it; the file's name without its extension by default.
            version: None for the server's next one.
            replace: True takes the place of other content that the version holds. No request
                fails meanwhile: each gets the old answer or the new one.
            progress: True or False for a bar on standard error, by default when that is a
                terminal; or a function of the bytes sent so far and the bytes in all, which is
                called on this thread, with `blindai.aio` on another. An exception in it ends the
                upload.
            receipt: ask for a receipt, check it, and give it as ``model.receipt``.

        Raises:
            ModelError: not a valid or supported model, the policy pins another under this name, or
                the name and version hold another one.
            AccessError: this caller may not upload, or not under this name.
            InvalidInputError: the name cannot be one, or the model is over the server's limit.
        """
        path_or_bytes, name, callback = prepare_upload(source, name, progress)
        native = self._client._native()
        upload = native.upload(name, version, replace, path_or_bytes, callback, receipt)
        document, kept = upload
        model = self._keep(document, version)
        return dataclasses.replace(model, receipt=keep(kept)) if kept else model

    def list(self) -> builtins.list[Model]:
        """Every model that this caller may use, whether the policy accepts it or not."""
        return [Model._from_json(info) for info in json.loads(self._client._native().models())]

    def get(self, name: str, version: str | None = None) -> Model:
        """One model, with its signature; the latest version when none is given.

        Raises:
            ModelError: there is no such model, or the policy pins another under this name.
        """
        return self._keep(self._client._native().model(name, version), version)

    def delete(self, name: str, version: str | None = None) -> builtins.list[Model]:
        """Deletes one version of a model, or all of them; answers what was deleted.

        Raises:
            ModelError: there is no such model.
        """
        deleted = json.loads(self._client._native().delete(name, version))
        self._client._known.clear()
        return [Model._from_json(info) for info in deleted]

    def _keep(self, document: str, version: str | None) -> Model:
        model = Model._from_json(json.loads(document))
        self._client._known[model.name, version] = model
        return model
