"""What `pip install` gives a user: the wheel, in an environment that has nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from importlib.metadata import distribution
from pathlib import Path

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


def test_a_wheel_for_every_python_installs_and_imports(tmp_path: Path):
    build = ["-m", "maturin", "build", "--quiet", "--locked", "--offline", "--profile", "dev"]
    run(sys.executable, *build, "--manifest-path", "python/Cargo.toml", "--out", tmp_path)
    [wheel] = tmp_path.glob("*.whl")
    assert wheel.name.split("-")[2:4] == ["cp39", "abi3"]

    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv/bin/python"
    [packages] = (tmp_path / "venv/lib").glob("python*/site-packages")
    lend_numpy(packages)
    run(python, "-m", "pip", "install", "--quiet", "--no-index", wheel)
    run(python, "-m", "pip", "check")
    assert run(python, "-I", "-c", SCRIPT).split() == [
        str(packages / "blindai/__init__.py"),
        "connect-failed",
    ]
