"""The policy files of BlindAI 0.3.

What else was in this module judged quotes that sign a certificate. Quotes of today sign claims: let
`blindai.connect` judge them, or the command `blindai verify`.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blindai import _native
from blindai._errors import AttestationError, PolicyError

__all__ = ["AttestationError", "Policy"]


@dataclass
class Policy:
    """What an SGX enclave must be, as 0.3 wrote it down. Numbers are little-endian bytes.

    Attributes:
        mr_enclave: the code: 64 hexadecimal digits.
        misc_select: the value that MISCSELECT must have, 4 bytes,
        misc_mask: in these bits.
        attributes_flags: the flags that the enclave must have beside INIT, 8 bytes,
        attributes_mask_flags: in these bits.
        attributes_xfrm: the CPU features that it must have, 8 bytes,
        attributes_mask_xfrm: in these bits.
        allow_debug: accept an enclave whose memory its operator reads.
    """

    mr_enclave: str
    misc_select: bytes
    misc_mask: bytes
    attributes_flags: bytes
    attributes_xfrm: bytes
    attributes_mask_flags: bytes
    attributes_mask_xfrm: bytes
    allow_debug: bool

    @staticmethod
    def from_file(path: str | os.PathLike[str]) -> Policy:
        """Reads a policy file of 0.3.

        Raises:
            FileNotFoundError: there is no such file.
            PolicyError: it is not one.
        """
        fields = read_fields(path)
        try:
            numbers = {name: _bytes(fields[key], size) for name, (key, size) in _NUMBERS.items()}
            mr_enclave, allow_debug = fields["mr_enclave"], fields["allow_debug"]
        except KeyError as error:
            fact = f"{os.fspath(path)}: {error.args[0]} is missing"
            raise PolicyError("policy-invalid", fact) from None
        except (TypeError, ValueError, OverflowError) as error:
            raise PolicyError("policy-invalid", f"{os.fspath(path)}: {error}") from None
        if not isinstance(mr_enclave, str) or not isinstance(allow_debug, bool):
            fact = f"{os.fspath(path)}: mr_enclave or allow_debug is of another type"
            raise PolicyError("policy-invalid", fact)
        return Policy(mr_enclave=mr_enclave, allow_debug=allow_debug, **numbers)

    def to_toml(self) -> str:
        """This policy as those of today are written.

        It accepts what 0.3 accepted, save for platforms that need hardening in software
        (SWHardeningNeeded): write a policy of today with an exception, which ends on a day.

        Raises:
            PolicyError: it asks for bits that its masks leave out, so 0.3 accepted nothing.
        """
        flags = bytes([self.attributes_flags[0] | _INIT]) + self.attributes_flags[1:]
        attributes = _pinned(
            "attributes",
            flags + self.attributes_xfrm,
            self.attributes_mask_flags + self.attributes_mask_xfrm,
        )
        misc = _pinned("misc_select", self.misc_select, self.misc_mask)
        debug = "true" if self.allow_debug else "false"
        return (
            f'tee = ["sgx"]\ndangerous_allow_debug = {debug}\n'
            f"[sgx]\nmrenclave = [{json.dumps(self.mr_enclave)}]\n{attributes}{misc}"
        )


def read_fields(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The entries of a TOML file.

    Raises:
        FileNotFoundError: there is no such file.
        PolicyError: it is no TOML.
    """
    try:
        fields: dict[str, Any] = json.loads(_native.read_toml(Path(path).read_text("utf-8")))
    except ValueError as error:
        raise PolicyError("policy-invalid", f"{os.fspath(path)}: {error}") from None
    return fields


def source(path: str | os.PathLike[str]) -> str | bytes:
    """A policy file of today as its path, one of 0.3 as the text of today's."""
    if "mr_enclave" in read_fields(path):
        return Policy.from_file(path).to_toml().encode()
    return os.fspath(path)


def _bytes(digits: str, size: int) -> bytes:
    return int(digits, 16).to_bytes(size, "little")


def _pinned(key: str, value: bytes, mask: bytes) -> str:
    if any(byte & ~allowed for byte, allowed in zip(value, mask)):
        fact = f"{key} asks for bits that its mask leaves out: no enclave has them"
        raise PolicyError("policy-invalid", fact, "set these bits in the mask too")
    if not any(mask):
        return ""
    return f'{key} = {{ value = "{value.hex()}", mask = "{mask.hex()}" }}\n'


#: The enclave was initialised, as every one that runs.
_INIT = 1
_NUMBERS = {
    "misc_select": ("misc_select_hex", 4),
    "misc_mask": ("misc_mask_hex", 4),
    "attributes_flags": ("attributes_flags_hex", 8),
    "attributes_xfrm": ("attributes_xfrm_hex", 8),
    "attributes_mask_flags": ("attributes_mask_flags_hex", 8),
    "attributes_mask_xfrm": ("attributes_mask_xfrm_hex", 8),
}
