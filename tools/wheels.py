"""Download single packages from their index, pinned by SHA-256, into `.cache/wheels`.

Standard library and pip only, and npm for what is there; Python 3.9 or newer.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"
WHEELS = CACHE / "wheels"


class FetchError(Exception):
    """Something that cannot be had: the message says what and why."""


def download(filename: str, sha256: str) -> Path:
    """Return the path of the wheel of that file name, which must have the digest `sha256`."""
    name, version = filename.split("-")[:2]
    return obtain(filename, sha256, lambda folder: pip_download(f"{name}=={version}", folder))


def download_from_npm(package: str, filename: str, sha256: str) -> Path:
    """Return the path of the archive of an npm package (`name@version`), held to its digest."""
    return obtain(filename, sha256, lambda folder: npm_pack(package, folder))


def obtain(filename: str, sha256: str, fetch: Callable[[str], None]) -> Path:
    """Return the path of a file; unless it is there, `fetch` must put it into a folder."""
    target = WHEELS / filename
    if target.is_file() and sha256_of_file(target) == sha256:
        return target
    WHEELS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=WHEELS) as folder:
        fetch(folder)
        part = Path(folder) / filename
        if not part.is_file():
            found = sorted(path.name for path in Path(folder).iterdir())
            raise FetchError(f"there came {found}, expected {filename}")
        found = sha256_of_file(part)
        if found != sha256:
            raise FetchError(f"{filename} has sha256 {found}, expected {sha256}")
        part.replace(target)
    return target


def pip_download(requirement: str, folder: str) -> None:
    """Run pip, and keep its words for the case that it fails.

    The tags make every Python choose the wheel that CPython 3.11 on x86-64 Linux would.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--disable-pip-version-check", "--only-binary=:all:", "--dest", folder]
    command += ["--implementation", "cp", "--python-version", "3.11", "--abi", "cp311"]
    for glibc in ("2_28", "2_27", "2_17"):
        command += ["--platform", f"manylinux_{glibc}_x86_64"]
    run([*command, requirement])


def npm_pack(package: str, folder: str) -> None:
    """Run npm, which only packs: nothing of the package is run."""
    run(["npm", "pack", "--ignore-scripts", "--pack-destination", folder, package])


def run(command: list[str]) -> None:
    """Run a program that downloads what its last argument names."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise FetchError(f"cannot run {command[0]}: {error}") from error
    if done.returncode != 0:
        reason = done.stderr.strip() or done.stdout.strip() or f"{command[0]} gave no reason"
        raise FetchError(f"cannot download {command[-1]}:\n{reason}")


def sha256_of_file(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that nobody ever sees a part of it, however many write at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        part.chmod(0o644)
        part.replace(path)
    except BaseException:
        part.unlink()
        raise
