"""What `pip install` gives a user: the wheel, in an environment that has nothing else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
from collections.abc import Iterable
from importlib.metadata import distribution
from pathlib import Path

import inputs
import pytest
from support import Server
from test_tutorial import default_server, tutorial

__all__ = ["default_server"]

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = """
import blindai
print(blindai.__file__)
try:
    blindai.connect("localhost:1")
except blindai.ConnectionError as error:
    print(error.code)
"""


def run(*command: object) -> str:
    # As activating does it, lest cargo builds again what `make python` has built.
    environment = {
        **os.environ,
        "VIRTUAL_ENV": sys.prefix,
        "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}",
    }
    done = subprocess.run(
        [str(word) for word in command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def lend_numpy(packages: Path) -> None:
    """Put this environment's numpy there, so that pip needs no network."""
    numpy = distribution("numpy")
    for name in {file.parts[0] for file in numpy.files or () if file.parts[0] != ".."}:
        (packages / name).symlink_to(numpy.locate_file(name))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that has the wheel, numpy, and nothing else.

    The wheel is $BLINDAI_WHEEL, so that what is to be published can be tried, or built here.
    """
    folder = tmp_path_factory.mktemp("wheel")
    wheel = Path(os.environ.get("BLINDAI_WHEEL") or build(folder)).resolve()
    assert wheel.name.split("-")[2:4] == ["cp39", "abi3"]
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv/bin/python"
    [packages] = (folder / "venv/lib").glob("python*/site-packages")
    lend_numpy(packages)
    run(python, "-m", "pip", "install", "--quiet", "--no-index", wheel)
    return python


def build(folder: Path) -> Path:
    """A wheel, as maturin makes it."""
    command = ["-m", "maturin", "build", "--quiet", "--locked", "--offline", "--profile", "dev"]
    run(sys.executable, *command, "--manifest-path", "python/Cargo.toml", "--out", folder)
    [wheel] = folder.glob("*.whl")
    return wheel


def test_a_wheel_for_every_python_installs_and_imports(installed: Path):
    [packages] = (installed.parent.parent / "lib").glob("python*/site-packages")
    run(installed, "-m", "pip", "check")
    assert run(installed, "-I", "-c", SCRIPT).split() == [
        str(packages / "blindai/__init__.py"),
        "connect-failed",
    ]


def test_the_wheel_runs_the_tutorial_without_a_compiler(installed: Path, default_server: Server):
    folder = default_server.folder
    ids = tutorial(installed, folder, PATH=str(installed.parent))
    assert inputs.ctc_text(ids) == "HELLO WORLD"


def test_the_wheel_asks_for_no_newer_system_than_it_says(installed: Path):
    [packages] = (installed.parent.parent / "lib").glob("python*/site-packages")
    [said] = packages.glob("blindai-*.dist-info/WHEEL")
    (named,) = re.findall(r"^Tag: cp39-abi3-manylinux_(\d+)_(\d+)_\w+$", said.read_text(), re.M)
    native = packages / "blindai/_native.abi3.so"
    asked = re.findall(rb"GLIBC_(\d+)\.(\d+)", native.read_bytes())
    assert max(map(numbers, asked)) <= numbers(named)


def numbers(version: Iterable[str | bytes]) -> tuple[int, ...]:
    """A version as numbers, which compare as versions do."""
    return tuple(map(int, version))
