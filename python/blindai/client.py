"""The Python API of BlindAI 0.3, over the client of today.

    from blindai.client import BlindAiClient, ModelDatumType

    with BlindAiClient() as client:
        client.connect_server(addr="localhost", policy="policy.toml")
        client.upload_model("model.onnx", shape=(1, 16000), dtype=ModelDatumType.F32)
        print(client.run_model([0.0] * 16000).output)

For scripts that exist; new code is better off with `blindai.connect`, which has named and several
models, inputs and outputs, every dtype, and numpy arrays.
"""

from __future__ import annotations

import hashlib
import math
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from blindai import _client, _native, _numbers
from blindai._errors import (
    AttestationError,
    BlindAIError,
    ConnectionError,
    InvalidInputError,
    ModelError,
    SignatureError,
    VersionError,
)
from blindai._models import Model, TensorSpec
from blindai._signed import RunModelResponse, SignedResponse, SigningKey, UploadModelResponse
from blindai._tensors import Array, as_dtype, quote
from blindai.dcap_attestation import Policy, source

__all__ = [
    "CONNECTION_TIMEOUT",
    "AttestationError",
    "BlindAiClient",
    "ModelDatumType",
    "Policy",
    "RunModelResponse",
    "SignatureError",
    "SignedResponse",
    "UploadModelResponse",
    "VersionError",
]

#: Seconds that connecting may take.
CONNECTION_TIMEOUT = 10


class ModelDatumType(IntEnum):
    """The element types of 0.3."""

    F32 = 0
    F64 = 1
    I32 = 2
    I64 = 3
    U32 = 4
    U64 = 5


class BlindAiClient:
    """A client with one model of one input, as in BlindAI 0.3.

    Args:
        debug_mode: has no effect; it was for the transport of that time.
    """

    #: Whether the server only simulates a TEE.
    simulation_mode: bool = False
    #: The version of the server, while there is a connection.
    server_version: str | None = None
    #: The policy file of `connect_server`, where that was one of 0.3.
    policy: Policy | None = None

    def __init__(self, debug_mode: bool = False) -> None:
        self._client: _client.Client | None = None
        self._model: _Uploaded | None = None
        self._evidence: _Evidence | None = None

    @property
    def enclave_signing_key(self) -> SigningKey | None:
        """The key that signs the server's answers, as its evidence names it; None when closed."""
        return self._signing_evidence().key if self._client else None

    @property
    def attestation(self) -> bytes | None:
        """The evidence that names this key, a document as JSON; None when closed."""
        return self._signing_evidence().document if self._client else None

    def connect_server(
        self,
        addr: str,
        server_name: str = "blindai-srv",
        policy: str | None = None,
        certificate: str | None = None,
        simulation: bool = False,
        untrusted_port: int = 50052,
        attested_port: int = 50051,
    ) -> None:
        """Verifies a server and connects to it.

        Args:
            addr: the server's host name or IP address; a leading ``https://`` is left out.
            server_name: has no effect: the evidence says who the server is, not a name.
            policy: path of a policy file (TOML), of today or of 0.3.
            certificate: has no effect: the host's own certificate proves nothing.
            simulation: accept simulated evidence and look at no policy. It protects nothing and
                warns so.
            untrusted_port: has no effect: the evidence comes over the attested port.
            attested_port: the port that ends inside the TEE.

        Raises:
            AttestationError: the server did not prove what the policy asks for.
            ConnectionError: there is no server.
            FileNotFoundError: there is no such policy file.
            PolicyError: the policy cannot be read or accepts nothing.
        """
        self.close_connection()
        addr = addr.removeprefix("https://")
        host = f"[{addr}]" if addr.count(":") > 1 and not addr.startswith("[") else addr
        address = f"{host}:{attested_port}"
        text = None if simulation or policy is None else source(policy)
        if isinstance(text, bytes):
            self.policy = Policy.from_file(cast(str, policy))
        self._client = _client.connect(address, simulation=simulation, policy=text)
        self.simulation_mode = self._client.report.simulated
        self.server_version = self._client.report.to_dict()["claims"].get("version")

    def upload_model(
        self,
        model: str | os.PathLike[str],
        shape: Sequence[int] | None = None,
        dtype: ModelDatumType = ModelDatumType.F32,
        dtype_out: ModelDatumType = ModelDatumType.F32,
        sign: bool = False,
    ) -> UploadModelResponse:
        """Sends an ONNX model with one input; `run_model` then runs it.

        On the server it is named by its content, so that nobody overwrites anybody's model; a
        model that is already there is not sent again.

        Args:
            model: the path of the file.
            shape: the shape of the input; needed only when the model leaves it open.
            dtype: the element type of the input.
            dtype_out: the element type of the first output.
            sign: have the server sign that it holds the model.

        Raises:
            FileNotFoundError: there is no such file.
            InvalidInputError: the model has another input than shape and dtype say.
            ConnectionError: the server refused the model, or there is no connection.
            SignatureError: the signed answer is not what it should be.
            VersionError: the server signs nothing.
        """
        client = self._connected()
        with _as_connection_error():
            uploaded = _upload_once(client, model)
        self._model = _Uploaded(uploaded, shape, ModelDatumType(dtype), ModelDatumType(dtype_out))
        response = UploadModelResponse()
        response._simulated = self.simulation_mode
        if sign:
            held = self._model.held()
            self._sign(response, lambda nonce: client._native().vouch((*held, nonce)))
            response.validate(
                held[2],
                validate_quote=False,
                enclave_signing_key=self.enclave_signing_key,
                allow_simulation_mode=self.simulation_mode,
            )
        return response

    def run_model(self, data_list: Sequence[Any], sign: bool = False) -> RunModelResponse:
        """Runs the uploaded model.

        Args:
            data_list: the elements of the input, as a flat list; they are reshaped.
            sign: have the server sign what came of it.

        Raises:
            InvalidInputError: the elements do not fill the input, or are of another type.
            ConnectionError: the server refused the request, or there is no connection.
            BlindAIError: no model was uploaded.
            SignatureError: the signed answer is not what it should be.
            VersionError: the server signs nothing.
        """
        client = self._connected()
        if self._model is None:
            raise BlindAIError("no-model", "no model was uploaded", "call upload_model first")
        inputs = self._model.inputs(data_list)
        response = RunModelResponse()
        response._simulated = self.simulation_mode
        if sign:
            self._run_signed(client, self._model, inputs, data_list, response)
            return response
        with _as_connection_error():
            model = self._model.model
            # Under the same name and version there may be another model by now.
            outputs = client.infer(
                model.name,
                inputs,
                version=model.version,
                outputs=[self._model.output.name],
                digest=model.digest,
            )
        response.output = outputs[self._model.output.name].reshape(-1).tolist()
        return response

    def is_connected(self) -> bool:
        """Whether there is a connection."""
        return self._client is not None

    def close_connection(self) -> None:
        """Ends the connection; does nothing when there is none."""
        if self._client is not None:
            self._client.close()
        self._client = self._model = self._evidence = None
        self.policy = self.server_version = None

    def __enter__(self) -> BlindAiClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close_connection()

    def _connected(self) -> _client.Client:
        if self._client is None:
            fact = "there is no connection"
            raise ConnectionError("client-closed", fact, "call connect_server first")
        return self._client

    def _run_signed(
        self,
        client: _client.Client,
        model: _Uploaded,
        inputs: dict[str, Array],
        data_list: Sequence[Any],
        response: RunModelResponse,
    ) -> None:
        numbers = _numbers.encode(data_list)
        (array,) = inputs.values()
        named = (model.model.name, model.model.version, model.digest)
        sent = (*named, list(array.shape), numbers)
        self._sign(response, lambda nonce: client._native().run_signed((*sent, nonce)))
        response.validate(
            data_list,
            validate_quote=False,
            enclave_signing_key=self.enclave_signing_key,
            allow_simulation_mode=self.simulation_mode,
            model_hash=model.digest,
        )

    def _sign(self, response: SignedResponse, call: Callable[[bytes], tuple[bytes, bytes]]) -> None:
        """Calls for a signed answer, which must carry a nonce made now."""
        evidence, nonce = self._signing_evidence(), secrets.token_bytes(32)
        with _as_connection_error():
            try:
                response.payload, response.signature = call(nonce)
            except BlindAIError as error:
                if error.code not in ("method-not-allowed", "route-not-found"):
                    raise
                raise VersionError(error.code, error.fact, error.remedy) from error
        response.attestation = evidence.document
        if _native.read_payload(response.payload)[2] != nonce:
            fact = "the server signed an answer to another request"
            raise SignatureError("signature-invalid", fact)

    def _signing_evidence(self) -> _Evidence:
        """Evidence that names the key and holds for a while yet."""
        if self._evidence is None or self._evidence.until < time.time() + _MARGIN_SECONDS:
            document, key, until = self._connected()._native().evidence()
            if key is None:
                fact = "the evidence names no key for answers"
                raise AttestationError("evidence-malformed", fact)
            self._evidence = _Evidence(document.encode(), SigningKey(key), until)
        return self._evidence


@dataclass(frozen=True)
class _Evidence:
    """A document, the key that it names for answers, and until when, in seconds since 1970."""

    document: bytes
    key: SigningKey
    until: int


class _Uploaded:
    """A model with one input whose shape and types are settled."""

    def __init__(
        self,
        model: Model,
        shape: Sequence[int] | None,
        dtype: ModelDatumType,
        dtype_out: ModelDatumType,
    ) -> None:
        inputs = [spec for spec in model.signature.inputs if not spec.optional]
        if len(inputs) != 1:
            fact = f"the model has {len(inputs)} inputs; the API of 0.3 takes one"
            raise InvalidInputError("model-unsupported", fact, "use blindai.connect and infer")
        self.model = model
        self.input = inputs[0]
        self.output = model.signature.outputs[0]
        _check_dtype(self.input, "input", "dtype", dtype)
        _check_dtype(self.output, "output", "dtype_out", dtype_out)
        self.shape = _settle_shape(self.input, shape)
        self.datums = int(dtype), int(dtype_out)

    @property
    def digest(self) -> bytes:
        return bytes.fromhex(self.model.digest.removeprefix("sha256:"))

    def held(self) -> tuple[str, str, bytes, list[int], tuple[int, int]]:
        """What the server is asked to vouch for."""
        shape = [1 if size == -1 else size for size in self.shape]
        return self.model.name, self.model.version, self.digest, shape, self.datums

    def inputs(self, data: Sequence[Any]) -> dict[str, Array]:
        # Never a Tensor: 0.3 has no BF16.
        flat = cast(Array, as_dtype(self.input.name, list(data), self.input.dtype))
        known = math.prod(size for size in self.shape if size >= 0)
        fits = flat.size % known == 0 if -1 in self.shape and known else flat.size == known
        if flat.ndim != 1 or not fits:
            fact = f"the data has the shape {list(flat.shape)}, the input {list(self.shape)}"
            raise InvalidInputError("input-shape", fact, "pass a flat list that fills the input")
        return {self.input.name: flat.reshape(self.shape)}


def _upload_once(client: _client.Client, path: str | os.PathLike[str]) -> Model:
    digest = _sha256(path)
    name = f"sha256-{digest[:16]}"
    try:
        model = client.models.get(name)
    except ModelError as error:
        if error.code != "model-not-found":
            raise
        model = client.models.upload(path, name=name)
    if model.digest != f"sha256:{digest}":
        fact = f"{name} on the server holds {model.digest}, the file is sha256:{digest}"
        raise ModelError("digest-mismatch", fact, "upload it under a name with blindai.connect")
    return model


def _sha256(path: str | os.PathLike[str]) -> str:
    hasher = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            hasher.update(chunk)
    return hasher.hexdigest()


def _check_dtype(spec: TensorSpec, what: str, argument: str, given: ModelDatumType) -> None:
    have = _DTYPES.get(spec.dtype)
    if have is given:
        return
    if have is None:
        fact = f"the {what} {quote(spec.name)} is {spec.dtype}, which the API of 0.3 does not have"
        raise InvalidInputError("model-unsupported", fact, "use blindai.connect and infer")
    fact = f"the {what} {quote(spec.name)} is {have.name}, {argument} says {given.name}"
    raise InvalidInputError("input-dtype", fact, f"pass {argument}=ModelDatumType.{have.name}")


def _settle_shape(spec: TensorSpec, given: Sequence[int] | None) -> tuple[int, ...]:
    """The sizes of the input; at most one of them -1, for what the data leaves."""
    if given is None:
        shape = tuple(dim if isinstance(dim, int) else -1 for dim in spec.shape or ())
        if spec.shape is None or shape.count(-1) > 1:
            fact = f"the model leaves the shape of its input {quote(spec.name)} open"
            raise InvalidInputError("input-shape", fact, "pass shape=")
        return shape
    shape = tuple(int(size) for size in given)
    fits = spec.shape is None or (
        len(shape) == len(spec.shape)
        and all(dim in (size, None) or isinstance(dim, str) for dim, size in zip(spec.shape, shape))
    )
    if not fits or any(size < 0 for size in shape):
        have = "any shape" if spec.shape is None else list(spec.shape)
        fact = f"the input {quote(spec.name)} takes {have}, shape says {list(shape)}"
        raise InvalidInputError("input-shape", fact, "pass the model's shape, or leave it out")
    return shape


@contextmanager
def _as_connection_error() -> Iterator[None]:
    # Scripts of 0.3 catch ConnectionError for whatever the server refuses.
    try:
        yield
    except (ConnectionError, AttestationError, SignatureError, VersionError):
        raise
    except BlindAIError as error:
        raise ConnectionError(error.code, error.fact, error.remedy) from error


_CHUNK_BYTES = 1 << 20
#: Clocks differ, and answers take a while.
_MARGIN_SECONDS = 300
_DTYPES = {
    "FP32": ModelDatumType.F32,
    "FP64": ModelDatumType.F64,
    "INT32": ModelDatumType.I32,
    "INT64": ModelDatumType.I64,
    "UINT32": ModelDatumType.U32,
    "UINT64": ModelDatumType.U64,
}
