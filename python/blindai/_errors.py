"""One exception tree; the native module raises these classes and no others."""

from __future__ import annotations

import builtins
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from blindai._report import Report


class BlindAIError(Exception):
    """Everything that this package refuses or that a server refused.

    Attributes:
        code: the stable code, for programs, such as ``"input-dtype"``.
        fact: what happened, for people. It never holds tensor contents.
        remedy: what to do about it; may be empty.
        request_id: the id under which the server knows a request that it refused, or None.
    """

    request_id: str | None = None

    def __init__(self, code: str, fact: str, remedy: str = "") -> None:
        super().__init__(f"{code}: {fact} · {remedy}" if remedy else f"{code}: {fact}")
        self.code = code
        self.fact = fact
        self.remedy = remedy

    def __str__(self) -> str:
        return str(self.args[0])

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.code, self.fact, self.remedy), self.__dict__


class AttestationError(BlindAIError):
    """The server did not prove what the policy asks for; nothing was sent to it.

    `ReceiptError` is one of these for what came after that.

    Attributes:
        report: what was checked up to the refusal, or None when the evidence could not be read.
    """

    report: Report | None = None


class SignatureError(BlindAIError):
    """A signed answer is not what it should be: its signature, its subject, or its form."""


class VersionError(BlindAIError):
    """The server does not speak what the API of BlindAI 0.3 needs for signed answers."""


class ReceiptError(AttestationError):
    """A receipt does not hold; the code names what does not match. What was asked for was done."""


class PolicyError(BlindAIError):
    """The policy cannot be read, contradicts itself, or accepts nothing."""


class AccessError(BlindAIError):
    """The server does not know this caller, or does not let it do this."""


class ModelError(BlindAIError):
    """The model is not there, not accepted, not valid or not supported, or failed on this input."""


class InvalidInputError(BlindAIError, ValueError):
    """What the caller sent does not fit: a name, a dtype, a shape, a size."""


class ServerError(BlindAIError):
    """The server cannot answer now: overloaded, stopping, out of time, or at fault."""


class ConnectionError(BlindAIError, builtins.ConnectionError):
    """There is no connection: refused, broken, timed out, or closed by this side."""


class SimulationWarning(UserWarning):
    """Simulation protects nothing: whoever runs the server can read what is sent to it."""
