"""Models as the server describes them, and what it takes to send one."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from blindai._errors import InvalidInputError
from blindai._progress import ProgressBar

if TYPE_CHECKING:
    from blindai._receipt import Receipt

#: A file's path, or the model itself.
Source = Union[str, "os.PathLike[str]", bytes, bytearray, memoryview]
#: Called with the bytes sent so far and the bytes in all.
Progress = Callable[[int, int], object]


@dataclass(frozen=True)
class TensorSpec:
    """What a model says of one of its inputs or outputs.

    Attributes:
        name: the tensor's name.
        dtype: the Open Inference Protocol's name of the element type: BOOL, UINT8 … UINT64,
            INT8 … INT64, FP16, BF16, FP32, FP64, or BYTES for strings.
        shape: one entry per dimension: a size; or the name of a dimension of any size, or None
            when it has no name. None instead of a tuple when even the rank is open.
        optional: the model has a default for this input.
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None
    optional: bool = False


@dataclass(frozen=True)
class Signature:
    """The inputs and outputs of a model, in the model's order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class Model:
    """A model that the server holds.

    Attributes:
        digest: ``sha256:`` and 64 hexadecimal digits: the identity of the model file.
        size_bytes: the size of the model file.
        engine: what runs it: ``onnxruntime`` or ``tract``.
        uploaded_at: when the upload was complete, UTC.
        loaded: whether it is in memory; otherwise the next request for it waits until it is.
        metrics_slot: the number under which the server's metrics count this model, so that they
            need not name it; None where there are no metrics.
        kept: how the server keeps it over a restart: ``sealed`` by the platform, ``simulated``,
            which protects nothing, or None: not at all.
        accepted: False for a model in a list that the policy does not accept: a request for it is
            refused.
        receipt: the receipt of its upload, when one was asked for.
    """

    name: str
    version: str
    digest: str
    size_bytes: int
    signature: Signature
    engine: str
    uploaded_at: datetime
    loaded: bool = True
    metrics_slot: int | None = None
    kept: str | None = None
    accepted: bool = True
    receipt: Receipt | None = field(default=None, repr=False, compare=False)

    @classmethod
    def _from_json(cls, info: dict[str, Any]) -> Model:
        signature = info["signature"]
        return cls(
            name=info["name"],
            version=info["version"],
            digest=info["digest"],
            size_bytes=info["size_bytes"],
            signature=Signature(_specs(signature["inputs"]), _specs(signature["outputs"])),
            engine=info["engine"],
            uploaded_at=datetime.fromtimestamp(info["uploaded_at"], timezone.utc),
            loaded=info.get("loaded", True),
            metrics_slot=info.get("metrics_slot"),
            kept=info.get("kept"),
            accepted=info.get("accepted", True),
        )


def prepare_upload(
    source: Source, name: str | None, progress: bool | Progress | None
) -> tuple[str | bytes, str, Progress | None]:
    """The arguments of the native upload: path or bytes, name, progress callback."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        if name is None:
            fact = "a model given as bytes has no name of its own"
            raise InvalidInputError("invalid-request", fact, "pass name=")
        return bytes(source), name, _progress(progress, name)
    path = os.fspath(source)
    name = Path(path).stem if name is None else name
    return path, name, _progress(progress, name)


def _progress(progress: bool | Progress | None, name: str) -> Progress | None:
    if callable(progress):
        return progress
    if progress is None:
        progress = sys.stderr is not None and sys.stderr.isatty()
    return ProgressBar(name) if progress else None


def _specs(specs: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(spec["name"], spec["dtype"], _shape(spec["shape"]), spec.get("optional", False))
        for spec in specs
    )


def _shape(shape: list[int | str] | None) -> tuple[int | str | None, ...] | None:
    return None if shape is None else tuple(None if dim == "" else dim for dim in shape)
