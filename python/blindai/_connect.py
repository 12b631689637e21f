"""What both clients do before they connect and after they are closed."""

from __future__ import annotations

import os
import warnings
from typing import NoReturn, Optional, Union

from blindai._errors import ConnectionError, InvalidInputError, SimulationWarning

#: The arguments of the native `connect`.
Arguments = tuple[
    str,
    bool,
    Union[str, bytes, None],
    Optional[float],
    Optional[str],
    Optional[tuple[str, str]],
]
#: Paths of a client certificate and of its private key, both PEM.
CertificatePaths = tuple["str | os.PathLike[str]", "str | os.PathLike[str]"]


def prepare_connect(
    address: str,
    simulation: bool,
    policy: str | os.PathLike[str] | bytes | None,
    timeout: float | None,
    token: str | None,
    client_certificate: CertificatePaths | None,
) -> Arguments:
    """The arguments of the native `connect`; warns when simulation is accepted."""
    if timeout is not None and not 0 < timeout < _LONGEST_SECONDS:
        fact = f"the timeout is {timeout!r} seconds"
        raise InvalidInputError("invalid-request", fact, "pass a positive number of seconds")
    if simulation:
        _warn_once()
    policy = None if policy is None else os.fspath(policy)
    certificate = None
    if client_certificate is not None:
        pem, key = client_certificate
        certificate = os.fspath(pem), os.fspath(key)
    return address, bool(simulation), policy, timeout, token, certificate


def prepare_policy(
    simulation: bool, policy: str | os.PathLike[str] | None
) -> tuple[bool, str | None]:
    """What to verify with, as the native module takes it; warns when simulation is accepted."""
    if simulation:
        _warn_once()
    return bool(simulation), None if policy is None else os.fspath(policy)


def refuse_closed() -> NoReturn:
    """The end of every call on a closed client."""
    raise ConnectionError("client-closed", "this client is closed", "connect again")


def _warn_once() -> None:
    global _warned
    if not _warned:
        warnings.warn(
            "SIMULATION PROTECTS NOTHING: whoever runs the server, and whoever sits between, can "
            "read everything you send to it. Use it with test data only; for real data connect to "
            "TEE hardware with policy=…",
            SimulationWarning,
            stacklevel=4,
        )
        _warned = True


_warned = False
_LONGEST_SECONDS = 1e9
