"""Fetch the one ONNX Runtime library that BlindAI loads.

    python3 tools/onnxruntime.py        # prints the path of the library

The library is taken from the pinned wheel on PyPI. The wheel and the library must both have the
digests below, which the server checks again before it loads the file. Versions from 1.29.0 on carry
telemetry that is on by default, so do not raise the version without looking at what it imports.

Standard library and pip only, Python 3.9 or newer. A library that is already there with the right
digest is left alone.
"""

from __future__ import annotations

import hashlib
import platform
import sys
from pathlib import Path
from zipfile import ZipFile

if not __package__:
    # The root in place of tools/, where this very file would hide the package `onnxruntime`.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from tools.wheels import (
    CACHE,
    FetchError,
    download,
    sha256_of_file,
    write_atomically,
)

VERSION = "1.28.0"
LIBRARY = CACHE / "onnxruntime" / f"libonnxruntime.so.{VERSION}"
LIBRARY_SHA256 = "aa4079d18f4ea7a5f3a94d80cd4bbe0f2740436626622d64d793803a20381083"
WHEEL = f"onnxruntime-{VERSION}-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl"
WHEEL_SHA256 = "a166b78ee04f3a37fa1ef82034b6a3ce96d9684e582d4d30b296de83e9998bb5"


def fetch() -> Path:
    """Return the path of the library; download it first if it is not there."""
    if LIBRARY.is_file() and sha256_of_file(LIBRARY) == LIBRARY_SHA256:
        return LIBRARY
    refuse_other_platforms()
    with ZipFile(download(WHEEL, WHEEL_SHA256)) as archive:
        library = archive.read(f"onnxruntime/capi/{LIBRARY.name}")
    found = hashlib.sha256(library).hexdigest()
    if found != LIBRARY_SHA256:
        raise FetchError(f"{LIBRARY.name} has sha256 {found}, expected {LIBRARY_SHA256}")
    write_atomically(LIBRARY, library)
    return LIBRARY


def refuse_other_platforms() -> None:
    """Only the x86-64 Linux library is pinned so far."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise FetchError(
            f"no pinned ONNX Runtime for {sys.platform}/{platform.machine()} yet: "
            "only linux/x86_64 is supported"
        )


if __name__ == "__main__":
    try:
        print(fetch())
    except FetchError as error:
        sys.exit(f"onnxruntime: {error}")
