"""The main job, from start to end, on this machine.

Starts a simulated server, verifies it, uploads Whisper (the real weights of tiny.en), sends a
spoken sentence, prints what Whisper heard, and stops the server. `make demo` runs it.
"""

from __future__ import annotations

import re
import ssl
import subprocess
import sys
import time
import warnings
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPSConnection
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from tokenizers import Tokenizer

import blindai

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "target/release/blindai"
MODEL = ROOT / ".cache/models/whisper_tiny_en_audio2ids.onnx"
INPUTS = ROOT / "testdata/models/inputs"
SAMPLES = 32_000  # what this export of Whisper takes: two seconds at 16 kHz
END_OF_TEXT = 50_256


def main() -> None:
    audio = read_wav(INPUTS / "hello_world_16k.wav")
    tokenizer = Tokenizer.from_file(str(INPUTS / "whisper_tiny_en_tokenizer.json"))
    timings: dict[str, float] = {}

    with TemporaryDirectory(prefix="blindai-demo-") as folder:
        with timed(timings, "start the server"):
            server, address = start_server(Path(folder))
        try:
            with timed(timings, "connect and verify"):
                client = blindai.connect(address, simulation=True)
            with client:
                print(client.report, flush=True)
                with timed(timings, f"upload {MODEL.stat().st_size / 1e6:.0f} MB and load"):
                    model = client.models.upload(MODEL, name="whisper")
                (audio_input,) = model.signature.inputs
                with timed(timings, "transcribe"):
                    outputs = client.infer("whisper", {audio_input.name: audio})
            (ids,) = outputs.values()
            text = tokenizer.decode([i for i in ids[0].tolist() if i < END_OF_TEXT])
        finally:
            with timed(timings, "stop the server"):
                server.terminate()
                code = server.wait(timeout=60)

    print(f"\nWhisper heard:\n{text}\n")
    for step, seconds in timings.items():
        print(f"  {step:<28} {seconds * 1e3:>9.1f} ms")
    if code != 0:
        sys.exit(f"demo: the server ended with exit code {code}")
    if text != " Hello world.":
        sys.exit(f"demo: expected ' Hello world.', got {text!r}")


def start_server(folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Start a simulated server on ports that it chooses itself; wait until it is ready."""
    config = folder / "blindai.toml"
    config.write_text(
        '[listen]\nattested = "127.0.0.1:0"\npublic = "127.0.0.1:0"\n'
        f'[engine]\nonnxruntime = "{ROOT}/.cache/onnxruntime/libonnxruntime.so.1.28.0"\n'
    )
    log = folder / "server.log"
    command = [PROGRAM, "serve", "--simulation", "--config", config]
    with log.open("wb") as output:
        server = subprocess.Popen(command, cwd=folder, stdout=output, stderr=output)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and server.poll() is None:
        said = log.read_text()
        ports = dict(re.findall(r"(attested|public) port +(\S+) ", said))
        if len(ports) == 2 and is_ready(ports["public"]):
            print(said, flush=True)
            return server, ports["attested"]
        time.sleep(0.01)
    server.kill()
    server.wait()
    sys.exit(f"demo: the server did not start\n{log.read_text()}")


def is_ready(public: str) -> bool:
    """Ask the public port, which needs no verification: nothing of ours is sent to it."""
    connection = HTTPSConnection(public, context=ssl._create_unverified_context(), timeout=5)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def read_wav(path: Path) -> np.ndarray:
    """Mono 16-bit samples as float32 [1, SAMPLES] in -1..1, filled up with silence."""
    with wave.open(str(path)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    audio = np.zeros((1, SAMPLES), np.float32)
    audio[0, : len(samples)] = samples[:SAMPLES] / 32768
    return audio


@contextmanager
def timed(timings: dict[str, float], step: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    timings[step] = time.perf_counter() - started


if __name__ == "__main__":
    warnings.simplefilter("default")
    main()
