"""What the types promise is what the package does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    "tool",
    [
        pytest.param(["mypy.stubtest", "blindai._native"], id="the stubs fit the binary"),
        pytest.param(["mypy", "--strict", "blindai"], id="the facade is typed"),
    ],
)
def test_types(tool: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", *tool]
    done = subprocess.run(command, cwd=PACKAGE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
