"""The private native module: the Rust client behind the typed facade.

Documents travel as JSON texts, tensors as bytes with a name, dtype and shape.
"""

from collections.abc import Awaitable, Callable
from typing import final

import numpy as np
import numpy.typing as npt

__all__ = ["AsyncClient", "Client", "__version__", "connect", "connect_async"]

__version__: str

_Data = npt.NDArray[np.uint8] | list[str]
_Tensor = tuple[str, str, tuple[int, ...], _Data]
_Progress = Callable[[int, int], object]

def connect(
    address: str, simulation: bool, policy: str | None, timeout: float | None
) -> Client: ...
def connect_async(
    address: str, simulation: bool, policy: str | None, timeout: float | None
) -> Awaitable[AsyncClient]: ...

@final
class Client:
    def report(self) -> tuple[str, str]: ...
    def attest(self) -> tuple[str, str]: ...
    def ready(self) -> bool: ...
    def infer(
        self, name: str, version: str | None, inputs: list[_Tensor], outputs: list[str]
    ) -> list[_Tensor]: ...
    def upload(
        self,
        name: str,
        version: str | None,
        replace: bool,
        source: str | bytes,
        progress: _Progress | None,
    ) -> str: ...
    def models(self) -> str: ...
    def model(self, name: str, version: str | None) -> str: ...
    def delete(self, name: str, version: str | None) -> str: ...

@final
class AsyncClient:
    def report(self) -> tuple[str, str]: ...
    def attest(self) -> Awaitable[tuple[str, str]]: ...
    def ready(self) -> Awaitable[bool]: ...
    def infer(
        self, name: str, version: str | None, inputs: list[_Tensor], outputs: list[str]
    ) -> Awaitable[list[_Tensor]]: ...
    def upload(
        self,
        name: str,
        version: str | None,
        replace: bool,
        source: str | bytes,
        progress: _Progress | None,
    ) -> Awaitable[str]: ...
    def models(self) -> Awaitable[str]: ...
    def model(self, name: str, version: str | None) -> Awaitable[str]: ...
    def delete(self, name: str, version: str | None) -> Awaitable[str]: ...
