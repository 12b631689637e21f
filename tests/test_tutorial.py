"""The original tutorial runs unchanged: a server without any configuration, the API of 2022."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import inputs
import numpy as np
import pytest
from support import PATIENCE, Server, binary, wait_for

from tools import models, onnxruntime

# Word for word; what stands before and after it only makes the input and prints the answer.
TUTORIAL = """
from blindai.client import BlindAiClient, ModelDatumType
client = BlindAiClient()
client.connect_server(addr="localhost", simulation=True)
client.upload_model(model="./wav2vec2_hello_world.onnx", shape=input_values.shape, dtype=ModelDatumType.F32, dtype_out=ModelDatumType.I64)
response = client.run_model(input_values.flatten().tolist())
response.output
"""  # noqa: E501
BEFORE = "import numpy as np\ninput_values = np.load('input_values.npy')\n"
AFTER = "import json\nprint(json.dumps(list(response.output)))\n"


@pytest.fixture
def default_server(tmp_path: Path) -> Iterator[Server]:
    """`blindai serve --simulation` and nothing else: the default ports, the library beside it."""
    wait_for(lambda: all(map(is_free, (50051, 50052))), "the ports 50051 and 50052 to be free")
    beside = binary().parent / onnxruntime.LIBRARY.name
    if not beside.exists():
        shutil.copyfile(onnxruntime.fetch(), beside)
    server = Server(tmp_path)
    server.port, server.public_port = 50051, 50052
    (tmp_path / "blindai.toml").unlink()
    server.start("--simulation")
    server.wait_until_ready()
    yield server
    server.stop()


def tutorial(python: str | Path, folder: Path, **environment: str) -> list[int]:
    """Run the tutorial in that folder, with a Python of the caller's choice."""
    model = folder / "wav2vec2_hello_world.onnx"
    model.symlink_to(models.build("wav2vec2_hello_world"))
    np.save(folder / "input_values.npy", inputs.normalised_speech())
    done = subprocess.run(
        [str(python), "-c", BEFORE + TUTORIAL + AFTER],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # It connects with simulation=True, which proves nothing: that must not go unsaid.
    assert "simulation" in done.stderr.lower()
    return json.loads(done.stdout.splitlines()[-1])


def test_the_tutorial_reads_hello_world(default_server: Server):
    ids = tutorial(sys.executable, default_server.folder)
    assert inputs.ctc_text(ids) == "HELLO WORLD"


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
