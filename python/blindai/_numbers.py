"""Lists of numbers as BlindAI 0.3 writes them: what it hashes is these bytes."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any

import numpy as np

from blindai._errors import InvalidInputError


def encode(numbers: Iterable[Any]) -> bytes:
    """A flat CBOR list: floats have eight bytes each, integers as few as they need.

    Raises:
        InvalidInputError: it is not a flat list of Python's numbers.
    """
    numbers = list(numbers)
    head = _head(4, len(numbers))
    if all(type(number) is float for number in numbers):
        return head + _floats(numbers)
    return head + b"".join(map(_number, numbers, range(len(numbers))))


def _floats(numbers: list[float]) -> bytes:
    rows = np.empty((len(numbers), 9), np.uint8)
    rows[:, 0] = _FLOAT64
    rows[:, 1:] = np.array(numbers, ">f8").view(np.uint8).reshape(-1, 8)
    return rows.tobytes()


def _number(number: Any, place: int) -> bytes:
    if isinstance(number, float):
        return struct.pack(">Bd", _FLOAT64, number)
    if isinstance(number, int) and not isinstance(number, bool):
        magnitude = ~number if number < 0 else number
        if magnitude < 1 << 64:
            return _head(1 if number < 0 else 0, magnitude)
    fact = f"element {place} is {type(number).__name__}, or a number of more than 64 bits"
    raise InvalidInputError("input-data", fact, "pass a flat list of Python's floats and ints")


def _head(major: int, value: int) -> bytes:
    if value < 24:
        return bytes([major << 5 | value])
    widths = ((24, "B", 8), (25, "H", 16), (26, "I", 32), (27, "Q", 64))
    minor, code, _ = next(width for width in widths if value < 1 << width[2])
    return struct.pack(f">B{code}", major << 5 | minor, value)


_FLOAT64 = 0xFB
