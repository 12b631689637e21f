"""Other servers, to measure beside ours: each in a virtual environment of its own.

    with peers.run(folder, {"minilm": path}, threads=2) as running: ...

A peer that cannot be installed or does not start is not left out without a word: it is in the
result with the reason.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

FOLDER = Path(__file__).resolve().parent
CACHE = FOLDER.parent.parent / ".cache/peers"
PATIENCE = 60.0


@dataclass
class Peer:
    """A server of the Open Inference Protocol, and how `blindai bench` reaches it."""

    name: str
    # How tensors travel: not every server takes them in binary.
    tensors: str = "binary"
    # Why it is not measured; empty when it is.
    reason: str = ""
    port: int = 0
    certificate: Path = field(default_factory=Path)

    @property
    def arguments(self) -> list[str]:
        """The arguments of `blindai bench` that name this server."""
        server = ["--server", f"localhost:{self.port}", "--unattested", str(self.certificate)]
        return [*server, "--tensors", self.tensors]


@contextlib.contextmanager
def run(folder: Path, models: dict[str, Path], threads: int) -> Iterator[list[Peer]]:
    """Every peer, started where that is possible; they stop at the end."""
    peers = [
        Peer("fastapi"),
        Peer("mlserver", tensors="json"),
        Peer("kserve"),
        Peer("triton", reason="its HTTP port has no TLS"),
    ]
    certificate, key = write_certificate(folder)
    with contextlib.ExitStack() as stack:
        for peer in peers:
            if peer.reason:
                continue
            peer.port, peer.certificate = free_port(), certificate
            try:
                python = install(peer.name)
                stack.enter_context(started(peer, python, folder, key, models, threads))
            except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
                peer.reason = " ".join(str(error).split())[:200]
        yield peers


def install(name: str) -> Path:
    """The Python of a peer's environment, which is made when its pinned packages changed."""
    wanted = (FOLDER / f"requirements-{name}.txt").read_text()
    environment, stamp = CACHE / name, CACHE / name / ".requirements"
    python = environment / "bin/python"
    if not (stamp.is_file() and stamp.read_text() == wanted):
        print(f"peers: installing {name}", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", environment], check=True)
        requirements = FOLDER / f"requirements-{name}.txt"
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-r", requirements], check=True)
        stamp.write_text(wanted)
    return python


@contextlib.contextmanager
def started(
    peer: Peer, python: Path, folder: Path, key: Path, models: dict[str, Path], threads: int
) -> Iterator[None]:
    options = ["--port", peer.port, "--certificate", peer.certificate, "--key", key]
    served = [f"{name}={path}" for name, path in models.items()]
    command = [python, FOLDER / f"{peer.name}_app.py", *options, "--threads", threads, *served]
    log = folder / f"{peer.name}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [str(word) for word in command],
            cwd=folder,
            stdout=out,
            stderr=out,
            env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},
        )
    try:
        wait_until_ready(peer, process, log)
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until_ready(peer: Peer, process: subprocess.Popen[bytes], log: Path) -> None:
    context = ssl.create_default_context(cafile=str(peer.certificate))
    url = f"https://localhost:{peer.port}/v2/health/ready"
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if process.poll() is not None:
            last = log.read_text(errors="replace").strip().splitlines()[-1:]
            raise RuntimeError(f"it ended with code {process.returncode}: {' '.join(last)}")
        with contextlib.suppress(OSError):
            if urllib.request.urlopen(url, timeout=5, context=context).status == 200:
                return
        time.sleep(0.2)
    raise RuntimeError(f"it was not ready within {PATIENCE:.0f} s")


def write_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for localhost that signs itself, and its key, of the kind that ours has."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    pkcs8, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    paths = folder / "peers.pem", folder / "peers.key"
    paths[0].write_bytes(certificate.public_bytes(pem))
    paths[1].write_bytes(key.private_bytes(pem, pkcs8, plain))
    return paths


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
