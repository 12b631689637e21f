"""Signed answers, and the files in which they are kept: those of BlindAI 0.3."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from blindai import _native, _numbers
from blindai._errors import AttestationError, BlindAIError, SignatureError
from blindai.dcap_attestation import Policy, source


class SigningKey(bytes):
    """The Ed25519 key with which a server signs, as its evidence names it: 32 bytes."""

    def verify(self, signature: bytes, data: bytes) -> None:
        """Checks a signature.

        Raises:
            SignatureError: it is not one of this key over this data.
        """
        if not _native.signature_holds(self, data, signature):
            fact = "the signature is not one of the server's key over this answer"
            raise SignatureError("signature-invalid", fact)


class SignedResponse:
    """An answer that may be signed.

    Attributes:
        payload: what the server said, as it signed it; None when the answer is not signed.
        signature: the server's signature over it, or None.
        attestation: the evidence that names the server's key, a document as `blindai attest --save`
            writes it; None where there is none, as in files that the original wrote.
    """

    payload: bytes | None = None
    signature: bytes | None = None
    attestation: bytes | None = None
    _simulated = True
    _foreign = False

    def is_simulation_mode(self) -> bool:
        """Whether the server only simulates a TEE. Of a file: as far as it tells."""
        return self._simulated

    def is_signed(self) -> bool:
        """Whether there is a signature. Only `validate` tells what it is worth."""
        return bool(self.signature)

    def save_to_file(self, path: str | os.PathLike[str]) -> None:
        """Keeps the answer in a file; `load_from_file` reads it."""
        Path(path).write_bytes(self.as_bytes())

    def as_bytes(self) -> bytes:
        """The answer as a file holds it; `load_from_bytes` reads it."""
        return _native.write_proof(self.attestation, self.payload or b"", self.signature or b"")

    def load_from_file(self, path: str | os.PathLike[str]) -> None:
        """Reads an answer from a file, also of the original. Nothing in it is verified.

        Raises:
            FileNotFoundError: there is no such file.
            SignatureError: it is not such an answer.
        """
        with Path(path).open("rb") as file:
            # One more than is taken: whoever wrote the file chose its length.
            self.load_from_bytes(file.read(_FILE_BYTES + 1))

    def load_from_bytes(self, b: bytes) -> None:
        """Reads an answer from the bytes of a file. Nothing in it is verified.

        Raises:
            SignatureError: it is not such an answer.
        """
        try:
            attestation, foreign, payload, signature, simulated = _native.read_proof(bytes(b))
            self._load_payload(payload)
        except BlindAIError as error:
            raise SignatureError("proof-malformed", error.fact, error.remedy) from error
        self.payload, self.signature = payload or None, signature or None
        self.attestation, self._foreign, self._simulated = attestation, foreign, simulated

    def _load_payload(self, payload: bytes) -> None:
        if payload:
            _native.read_payload(payload)

    def _authentic(
        self,
        kind: str,
        policy: Policy | str | os.PathLike[str] | None,
        validate_quote: bool,
        enclave_signing_key: Any,
        allow_simulation_mode: bool,
    ) -> tuple[Any, ...]:
        """What the payload says, once its signature holds and its key is vouched for."""
        if not self.payload or not self.signature:
            raise SignatureError("not-signed", "the answer is not signed", "ask with sign=True")
        if self.is_simulation_mode() and not allow_simulation_mode:
            fact = "the answer comes from a simulation, which proves nothing"
            raise SignatureError("simulation", fact, "pass allow_simulation_mode=True for tests")
        read = _read(kind, self.payload)
        given = None if enclave_signing_key is None else _raw_key(enclave_signing_key)
        key = given
        if validate_quote and not (self.attestation is None and self.is_simulation_mode()):
            key = self._vouched_key(policy, allow_simulation_mode, read[1])
        if key is None:
            fact = "nothing names the key that must have signed"
            raise SignatureError("key-missing", fact, "pass enclave_signing_key=")
        if given is not None and given != key:
            fact = "the evidence names another key than enclave_signing_key"
            raise SignatureError("signature-invalid", fact)
        SigningKey(key).verify(self.signature, self.payload)
        return read

    def _vouched_key(
        self,
        policy: Policy | str | os.PathLike[str] | None,
        allow_simulation_mode: bool,
        signed_at: float,
    ) -> bytes:
        if self.attestation is None:
            fact = "the attestation is one of the original's servers, for which nothing here speaks"
            remedy = "pass validate_quote=False and enclave_signing_key="
            raise AttestationError("evidence-malformed", fact, remedy)
        if policy is None and not allow_simulation_mode:
            fact = "no policy says which code to trust"
            raise AttestationError("policy-missing", fact, "pass policy_file= or policy=")
        text: str | bytes | None = None
        if policy is not None:
            text = policy.to_toml().encode() if isinstance(policy, Policy) else source(policy)
        judged = _native.judge_proof(self.attestation, text, allow_simulation_mode, signed_at)
        if judged[1] is None:
            raise AttestationError("evidence-malformed", "the evidence names no key for answers")
        return judged[1]


class UploadModelResponse(SignedResponse):
    """The answer to `BlindAiClient.upload_model`."""

    def validate(
        self,
        model_hash: bytes,
        policy_file: str | os.PathLike[str] | None = None,
        policy: Policy | None = None,
        validate_quote: bool = True,
        enclave_signing_key: Any = None,
        allow_simulation_mode: bool = False,
    ) -> None:
        """Checks that a server signed that it holds a model.

        The evidence is judged as of the time of the signature, and as of now.

        Args:
            model_hash: SHA-256 of the model's file.
            policy_file: a policy file, of today or of 0.3.
            policy: a policy, instead of a file.
            validate_quote: judge the evidence in the answer, which then names the key.
            enclave_signing_key: the key that must have signed; needed where no evidence is judged.
            allow_simulation_mode: accept answers of a simulation. They prove nothing.

        Raises:
            SignatureError: it is not signed, or not by that key, or speaks of another model.
            AttestationError: the evidence does not prove what the policy asks for.
            FileNotFoundError: there is no such policy file.
        """
        said = self._authentic(
            "upload",
            policy if policy_file is None else policy_file,
            validate_quote,
            enclave_signing_key,
            allow_simulation_mode,
        )
        if model_hash != said[3]:
            fact = "the answer is about another model"
            raise SignatureError("digest-mismatch", fact, "pass the SHA-256 of the model's file")

    def _load_payload(self, payload: bytes) -> None:
        if payload:
            _read("upload", payload)


class RunModelResponse(SignedResponse):
    """The answer to `BlindAiClient.run_model`.

    Attributes:
        output: the elements of the model's first output, as a flat list.
        model_hash: of a signed answer, SHA-256 of the model that ran. The original's servers do not
            say it.
    """

    output: list[Any]
    model_hash: bytes | None = None

    def validate(
        self,
        data_list: Sequence[Any],
        policy_file: str | os.PathLike[str] | None = None,
        policy: Policy | None = None,
        validate_quote: bool = True,
        enclave_signing_key: Any = None,
        allow_simulation_mode: bool = False,
        *,
        model_hash: bytes | None = None,
    ) -> None:
        """Checks that a server signed that a model gave this output for an input.

        Args:
            data_list: the input.
            model_hash: SHA-256 of the model that must have run; None for any, as in 0.3.

        The others, and what is raised: as for `UploadModelResponse.validate`.
        """
        said = self._authentic(
            "run", policy_file or policy, validate_quote, enclave_signing_key, allow_simulation_mode
        )
        if hashlib.sha256(_numbers.encode(data_list)).digest() != said[5]:
            raise SignatureError("digest-mismatch", "the answer is about another input")
        if model_hash is not None and model_hash != said[3]:
            fact = "the answer is of another model, or does not say of which"
            raise SignatureError("digest-mismatch", fact)
        self._load_payload(self.payload or b"")

    def _load_payload(self, payload: bytes) -> None:
        if payload:
            said = _read("run", payload)
            self.output, self.model_hash = _native.read_numbers(said[4]), said[3]


def _read(kind: str, payload: bytes) -> tuple[Any, ...]:
    said: tuple[Any, ...] = _native.read_payload(payload)
    if said[0] != kind:
        fact = f"the answer is one to {said[0]}_model, not to {kind}_model"
        raise SignatureError("proof-malformed", fact)
    return said


def _raw_key(key: Any) -> bytes:
    """The bytes of a key, also of an `Ed25519PublicKey` of the package cryptography."""
    raw = key.public_bytes_raw() if hasattr(key, "public_bytes_raw") else key
    if not isinstance(raw, (bytes, bytearray)) or len(raw) != _KEY_BYTES:
        fact = f"enclave_signing_key is {type(key).__name__}, not a key of {_KEY_BYTES} bytes"
        raise SignatureError("key-missing", fact)
    return bytes(raw)


_KEY_BYTES = 32
_FILE_BYTES = 512 << 20
