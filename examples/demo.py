"""The main job, from start to end, on this machine.

Starts a simulated server, verifies it, uploads Whisper (the real weights of tiny.en), sends a
spoken sentence, prints what Whisper heard, and stops the server. `make demo` runs it.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
import warnings
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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

    with timed(timings, "start the server"):
        server, address = start_server()
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


def start_server() -> tuple[subprocess.Popen[bytes], str]:
    """Start a simulated server on free ports, in a folder of its own; wait until it is ready."""
    attested, public = free_port(), free_port()
    folder = tempfile.mkdtemp(prefix="blindai-demo-")
    config = Path(folder, "blindai.toml")
    config.write_text(
        f'[listen]\nattested = "127.0.0.1:{attested}"\npublic = "127.0.0.1:{public}"\n'
        f'[engine]\nonnxruntime = "{ROOT}/.cache/onnxruntime/libonnxruntime.so.1.28.0"\n'
    )
    server = subprocess.Popen([PROGRAM, "serve", "--simulation", "--config", config], cwd=folder)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and server.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", attested), timeout=1).close()
        except OSError:
            time.sleep(0.01)
        else:
            return server, f"127.0.0.1:{attested}"
    server.kill()
    sys.exit("demo: the server did not start")


def read_wav(path: Path) -> np.ndarray:
    """Mono 16-bit samples as float32 [1, SAMPLES] in -1..1, filled up with silence."""
    with wave.open(str(path)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    audio = np.zeros((1, SAMPLES), np.float32)
    audio[0, : len(samples)] = samples[:SAMPLES] / 32768
    return audio


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def timed(timings: dict[str, float], step: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    timings[step] = time.perf_counter() - started


if __name__ == "__main__":
    warnings.simplefilter("default")
    main()
