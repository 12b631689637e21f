"""The private native module: the Rust client behind the typed facade.

Documents travel as JSON texts, tensors as bytes with a name, dtype and shape.
"""

import builtins
from collections.abc import Awaitable, Callable
from typing import Any, final

import numpy as np
import numpy.typing as npt

__all__ = [
    "AsyncClient",
    "Client",
    "__version__",
    "connect",
    "connect_async",
    "judge_proof",
    "read_numbers",
    "read_payload",
    "read_proof",
    "read_receipt",
    "read_toml",
    "signature_holds",
    "verify_receipt",
    "write_proof",
]

__version__: str

_Data = npt.NDArray[np.uint8] | list[str]
_Tensor = tuple[str, str, tuple[int, ...], _Data]
_Receipt = tuple[bytes, str]
_Progress = Callable[[int, int], object]

def connect(
    address: str,
    simulation: bool,
    policy: str | bytes | None,
    timeout: float | None,
    token: str | None,
    client_certificate: tuple[str, str] | None,
) -> Client: ...
def connect_async(
    address: str,
    simulation: bool,
    policy: str | bytes | None,
    timeout: float | None,
    token: str | None,
    client_certificate: tuple[str, str] | None,
) -> Awaitable[AsyncClient]: ...
def judge_proof(
    evidence: bytes, policy: str | bytes | None, simulation: bool, signed_at: float
) -> tuple[tuple[str, str], bytes | None]: ...
def read_numbers(list: bytes) -> builtins.list[int | float]: ...
def read_payload(payload: bytes) -> tuple[Any, ...]: ...
def read_proof(file: bytes) -> tuple[bytes | None, bool, bytes, bytes, bool]: ...
def read_toml(text: str) -> str: ...
def signature_holds(key: bytes, message: bytes, signature: bytes) -> bool: ...
def write_proof(evidence: bytes | None, payload: bytes, signature: bytes) -> bytes: ...
def read_receipt(receipt: bytes) -> str: ...
def verify_receipt(
    receipt: bytes,
    evidence: str,
    simulation: bool,
    policy: str | bytes | None,
    at: int | None,
    model: str | None,
    inputs: list[_Tensor],
    outputs: list[_Tensor],
    nonce: bytes | None,
) -> tuple[str, str]: ...

@final
class Client:
    def report(self) -> tuple[str, str]: ...
    def attest(self) -> tuple[str, str]: ...
    def ready(self) -> bool: ...
    def infer(
        self,
        name: str,
        version: str | None,
        inputs: list[_Tensor],
        outputs: list[str],
        receipt: bool,
        digest: str | None,
    ) -> tuple[list[_Tensor], _Receipt | None]: ...
    def upload(
        self,
        name: str,
        version: str | None,
        replace: bool,
        source: str | bytes,
        progress: _Progress | None,
        receipt: bool,
    ) -> tuple[str, _Receipt | None]: ...
    def models(self) -> str: ...
    def model(self, name: str, version: str | None) -> str: ...
    def delete(self, name: str, version: str | None) -> str: ...
    def evidence(self) -> tuple[str, bytes | None, int]: ...
    def vouch(
        self, held: tuple[str, str, bytes, list[int], tuple[int, int], bytes]
    ) -> tuple[bytes, bytes]: ...
    def run_signed(
        self, run: tuple[str, str, bytes, list[int], bytes, bytes]
    ) -> tuple[bytes, bytes]: ...

@final
class AsyncClient:
    def report(self) -> tuple[str, str]: ...
    def attest(self) -> Awaitable[tuple[str, str]]: ...
    def ready(self) -> Awaitable[bool]: ...
    def infer(
        self,
        name: str,
        version: str | None,
        inputs: list[_Tensor],
        outputs: list[str],
        receipt: bool,
        digest: str | None,
    ) -> Awaitable[tuple[list[_Tensor], _Receipt | None]]: ...
    def upload(
        self,
        name: str,
        version: str | None,
        replace: bool,
        source: str | bytes,
        progress: _Progress | None,
        receipt: bool,
    ) -> Awaitable[tuple[str, _Receipt | None]]: ...
    def models(self) -> Awaitable[str]: ...
    def model(self, name: str, version: str | None) -> Awaitable[str]: ...
    def delete(self, name: str, version: str | None) -> Awaitable[str]: ...
