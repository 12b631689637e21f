"""The original client of BlindAI 0.3.1, each in an environment of its own in `.cache`.

It was published for CPython 3.6 to 3.10; those of these Pythons are used that are installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "tools" / "requirements-0.3.txt"
VERSIONS = ("3.8", "3.9", "3.10")


def find(version: str) -> Path | None:
    """The interpreter of this version that is installed."""
    found = shutil.which(f"python{version}")
    # A shim of pyenv stands there for versions that are not switched on, too.
    if found and not subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode:
        return Path(found)
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    return next(iter(sorted(root.glob(f"versions/{version}.*/bin/python"))), None)


def environment(version: str) -> Path | None:
    """A Python that imports the original client; None where its version is not installed."""
    base = find(version)
    if base is None:
        return None
    folder = ROOT / ".cache" / f"blindai-0.3.1-py{version}"
    done, python = folder / ".requirements", folder / "bin" / "python"
    if done.exists() and done.read_bytes() == REQUIREMENTS.read_bytes():
        return python
    subprocess.run([base, "-m", "venv", "--clear", folder], check=True)
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "--only-binary", ":all:", "-r", REQUIREMENTS], check=True)
    shutil.copyfile(REQUIREMENTS, done)
    return python
