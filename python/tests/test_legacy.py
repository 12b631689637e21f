"""What the API of BlindAI 0.3 needs and no server: its numbers, policies and files."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import pytest

import blindai
from blindai import _native, _numbers, client, version
from blindai.dcap_attestation import Policy
from blindai.utils import errors

POLICY = {
    "mr_enclave": '"' + "ab" * 32 + '"',
    "misc_select_hex": '"0x0"',
    "misc_mask_hex": '"0xffffffff"',
    "attributes_flags_hex": '"0x4"',
    "attributes_xfrm_hex": '"0x3"',
    "attributes_mask_flags_hex": '"0xfffffffffffffffb"',
    "attributes_mask_xfrm_hex": '"0x0"',
    "allow_debug": "false",
}


FLAGS = {"attributes_mask_flags_hex": '"0x7"'}


def write(path: Path, **changes: str) -> Path:
    entries = {**POLICY, **changes}
    path.write_text("".join(f"{key} = {value}\n" for key, value in entries.items() if value))
    return path


@pytest.mark.parametrize(
    ("numbers", "encoded"),
    [
        ([], "80"),
        ([1.5], "81fb3ff8000000000000"),
        ([0.5, 1], "82fb3fe000000000000001"),
        ([23, 24, 255, 256], "84171818" + "18ff190100"),
        ([-1, -24, -25], "83203738" + "18"),
        ([2**32 - 1, 2**32], "821affffffff1b0000000100000000"),
        ([2**64 - 1, -(2**64)], "821bffffffffffffffff3bffffffffffffffff"),
        ([0] * 24, "9818" + "00" * 24),
    ],
)
def test_numbers_have_the_bytes_that_are_hashed(numbers: list, encoded: str):
    assert _numbers.encode(numbers).hex() == encoded
    assert _native.read_numbers(_numbers.encode(numbers)) == numbers


def test_long_lists_and_special_floats():
    floats = [math.inf, -0.0, 1e-320] * 30_000
    encoded = _numbers.encode(iter(floats))
    assert encoded[:5] == struct.pack(">BI", 0x9A, len(floats))
    assert _native.read_numbers(encoded) == floats
    assert math.isnan(_native.read_numbers(_numbers.encode([math.nan]))[0])


@pytest.mark.parametrize("strange", [True, None, "1", [1.0], 2**64, -(2**64) - 1, 1j])
def test_what_is_no_number_is_refused(strange: object):
    with pytest.raises(blindai.InvalidInputError, match="element 1"):
        _numbers.encode([1.0, strange])


@pytest.mark.parametrize("strange", [b"", b"\x01", b"\x81\x61a", b"\x82\x01", b"\x81\x81\x01"])
def test_what_is_no_list_is_refused(strange: bytes):
    with pytest.raises(blindai.BlindAIError):
        _native.read_numbers(strange)


def test_a_policy_of_0_3_is_read(tmp_path: Path):
    policy = Policy.from_file(write(tmp_path / "policy.toml", attributes_xfrm_hex='"0x0"', **FLAGS))
    assert policy.mr_enclave == "ab" * 32
    assert policy.attributes_flags == b"\x04" + bytes(7)
    text = policy.to_toml()
    # Beside the flags that were named, the enclave must be initialised.
    value, mask = "05" + "00" * 7 + "00" * 8, "07" + "00" * 15
    assert f'attributes = {{ value = "{value}", mask = "{mask}" }}' in text
    assert "dangerous_allow_debug = false" in text


def test_a_policy_that_accepts_nothing_is_refused(tmp_path: Path):
    # The mask leaves out the flag that is asked for.
    with pytest.raises(blindai.PolicyError, match="attributes"):
        Policy.from_file(write(tmp_path / "policy.toml")).to_toml()


@pytest.mark.parametrize(
    "changes",
    [
        {"mr_enclave": ""},
        {"mr_enclave": "1"},
        {"misc_mask_hex": '"0x1ffffffff"'},
        {"misc_mask_hex": '"-1"'},
        {"misc_mask_hex": '"text"'},
        {"misc_mask_hex": "3"},
        {"allow_debug": '"no"'},
        {"allow_debug": "["},
    ],
)
def test_what_is_no_policy_is_refused(tmp_path: Path, changes: dict[str, str]):
    with pytest.raises(blindai.PolicyError, match=r"policy\.toml"):
        Policy.from_file(write(tmp_path / "policy.toml", **changes))


def test_strangers_files_are_refused():
    for file in (b"\xff", b"\x12\x02\x01", b"\x12\x01\x0a", b"\x0a\x80"):
        with pytest.raises(client.SignatureError):
            client.RunModelResponse().load_from_bytes(file)
    empty = client.UploadModelResponse()
    empty.load_from_bytes(b"")
    assert not empty.is_signed()
    with pytest.raises(client.SignatureError, match="sign=True"):
        empty.validate(bytes(32), allow_simulation_mode=True)


def test_names_of_0_3_are_there():
    for name in client.__all__:
        assert hasattr(client, name)
    assert errors.SignatureError is client.SignatureError
    assert errors.VersionError is client.VersionError
    assert issubclass(client.SignatureError, blindai.BlindAIError)
    assert version.__version__ == blindai.__version__
    assert client.CONNECTION_TIMEOUT == 10
