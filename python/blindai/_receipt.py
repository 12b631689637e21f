"""Receipts: what a server states of one inference or upload, signed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from blindai import _native
from blindai._connect import prepare_policy
from blindai._models import Model, Signature, TensorSpec
from blindai._report import Report
from blindai._tensors import Array, Wire, encode


@dataclass(frozen=True)
class TensorDigest:
    """A tensor as a receipt names it.

    Attributes:
        name: its name in the request or answer.
        dtype: the Open Inference Protocol's name of the element type, such as ``"FP32"``.
        shape: the size of each dimension.
        digest: ``sha256:`` and 64 hexadecimal digits, as docs/receipts.md defines it.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    digest: str


class Receipt:
    """What a server states of one inference or upload, with the evidence of the server.

    One that a client gives has been checked against what was sent and what came. One that was
    loaded has not been checked: call `verify`. Its properties are what it says of itself.

    It holds digests of inputs and outputs. Whoever has it can try out what he suspects, so it is as
    secret as data of few possible values. On simulation it proves nothing.

    Args:
        data: the receipt, a COSE_Sign1 message.
        evidence: the evidence document of the server that made it, JSON.
    """

    def __init__(self, data: bytes, evidence: str) -> None:
        self._data = bytes(data)
        self._evidence = evidence

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], evidence: str | os.PathLike[str] | None = None
    ) -> Receipt:
        """Reads a receipt and its evidence. Nothing is verified.

        Args:
            path: the receipt's file.
            evidence: the evidence document's file; by default the one that `save` wrote beside it.
        """
        document = _beside(path) if evidence is None else Path(evidence)
        return cls(Path(path).read_bytes(), document.read_text(encoding="utf-8"))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the receipt, and its evidence beside it: ``r.evidence.json`` of ``r.cbor``."""
        _beside(path).write_text(self._evidence, encoding="utf-8")
        Path(path).write_bytes(self._data)

    def verify(
        self,
        *,
        policy: str | os.PathLike[str] | None = None,
        simulation: bool = False,
        inputs: Mapping[str, Any] | None = None,
        outputs: Mapping[str, Any] | None = None,
        model: Model | str | os.PathLike[str] | None = None,
        nonce: bytes | None = None,
        at: datetime | None = None,
    ) -> Report:
        """Verifies the chain from the receipt to the hardware, without asking anybody.

        What is not given to compare is told as skipped in the report's checks.

        Args:
            policy: path of a policy file (TOML): which code on which hardware to accept.
            simulation: accept simulated evidence, which proves nothing.
            inputs: inputs under the names that they had; not all are needed.
            outputs: outputs under the names that they had; not all are needed. BF16 that came as
                float32, for want of ``ml_dtypes``, has to be given as a `Tensor`.
            model: what ran: a `Model`, its digest as text, or the path of its file as a ``Path``.
            nonce: the nonce that was sent, when you sent it yourself.
            at: as of when to judge the evidence; by default the time in the receipt.

        Raises:
            ReceiptError: the receipt does not hold; its code names what does not match.
            AttestationError: the evidence is not what the policy asks for.
            PolicyError: the policy cannot be read, or there is none.
        """
        simulated, path = prepare_policy(simulation, policy)
        seconds = None if at is None else int(at.timestamp())
        sent, came = self._encoded("inputs", inputs), self._encoded("outputs", outputs)
        given = (simulated, path, seconds, _digest(model), sent, came, nonce)
        return Report(*_native.verify_receipt(self._data, self._evidence, *given))

    @property
    def kind(self) -> str:
        """``"infer"`` or ``"upload"``."""
        return str(self._said()["kind"])

    @property
    def model_name(self) -> str:
        """The model's name."""
        return str(self._said()["model_name"])

    @property
    def model_version(self) -> str:
        """The version that answered, or that holds what was uploaded."""
        return str(self._said()["model_version"])

    @property
    def model_digest(self) -> str:
        """``sha256:`` and 64 hexadecimal digits: the identity of the model file."""
        return str(self._said()["model_digest"])

    @property
    def nonce(self) -> bytes | None:
        """The nonce that was sent for it."""
        nonce = self._said()["nonce"]
        return None if nonce is None else bytes.fromhex(nonce)

    @property
    def issued_at(self) -> datetime:
        """When it was made, UTC, by the server's clock."""
        return datetime.fromtimestamp(self._said()["issued_at"], timezone.utc)

    @property
    def inputs(self) -> tuple[TensorDigest, ...]:
        """The inputs in the request's order; none of an upload."""
        return self._tensors("inputs")

    @property
    def outputs(self) -> tuple[TensorDigest, ...]:
        """The outputs in the answer's order; none of an upload."""
        return self._tensors("outputs")

    @property
    def evidence(self) -> str:
        """The evidence document, JSON."""
        return self._evidence

    def to_dict(self) -> dict[str, Any]:
        """What it says, as JSON-compatible values, beside the above ``config_digest``,
        ``replica`` and ``server_version``.

        Raises:
            ReceiptError: it is no receipt.
        """
        return self._said()

    def __bytes__(self) -> bytes:
        return self._data

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Receipt) and self._data == other._data

    def __hash__(self) -> int:
        return hash(self._data)

    def __repr__(self) -> str:
        return f"<blindai.Receipt {len(self._data)} bytes>"

    def _said(self) -> dict[str, Any]:
        said: dict[str, Any] = json.loads(_native.read_receipt(self._data))
        return said

    def _tensors(self, side: str) -> tuple[TensorDigest, ...]:
        return tuple(
            TensorDigest(said["name"], said["datatype"], tuple(said["shape"]), said["digest"])
            for said in self._said()[side]
        )

    def _encoded(self, side: str, given: Mapping[str, Any] | None) -> list[Wire]:
        """Arrays as tensors; what has no type of its own gets that in the receipt."""
        if not given:
            return []
        specs = tuple(TensorSpec(said.name, said.dtype, said.shape) for said in self._tensors(side))
        return encode(given, Signature(specs, ()))


class Outputs(dict[str, Array]):
    """The outputs of a model: an array for each name, in the model's order.

    Attributes:
        receipt: the receipt, when one was asked for; else None.
    """

    receipt: Receipt | None = None

    @classmethod
    def _of(cls, arrays: dict[str, Array], receipt: tuple[bytes, str] | None) -> Outputs:
        outputs = cls(arrays)
        outputs.receipt = keep(receipt)
        return outputs


def keep(receipt: tuple[bytes, str] | None) -> Receipt | None:
    """What the native module gives, as a `Receipt`."""
    return None if receipt is None else Receipt(*receipt)


def _beside(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    # Any other extension may be all that two names differ in, as in ``r.2026-11-25``.
    stem = path.with_suffix("") if path.suffix == ".cbor" else path
    return stem.with_name(f"{stem.name}.evidence.json")


def _digest(model: Model | str | os.PathLike[str] | None) -> str | None:
    if model is None or isinstance(model, str):
        return model
    if isinstance(model, Model):
        return model.digest
    digest = hashlib.sha256()
    with open(model, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
