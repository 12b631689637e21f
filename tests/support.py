"""A real server to test against, and raw access to it."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from tools import onnxruntime

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 60.0
CLOCK_TICK = os.sysconf("SC_CLK_TCK")


def binary() -> Path:
    """The `blindai` program under test: $BLINDAI_BIN, else the debug build."""
    path = Path(os.environ.get("BLINDAI_BIN") or ROOT / "target" / "debug" / "blindai").resolve()
    assert path.is_file(), f"{path} is missing: cargo build -p blindai-cli, or set BLINDAI_BIN"
    return path


class Server:
    """A `blindai serve --simulation` in a folder of its own, on ports of its own.

    Use it in a `with` block; at the end it is stopped and must have been in good health.
    """

    def __init__(self, folder: Path, **sections: dict[str, Any] | list[dict[str, Any]]):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port, self.public_port = free_ports(2)
        self.log_path = folder / "server.log"
        self.process: subprocess.Popen[bytes] | None = None
        config = configuration(self.port, self.public_port, **sections)
        (folder / "blindai.toml").write_text(config)
        # Without a value, the argument would override the kind of TEE in the file.
        simulated = "simulation" in dict(sections.get("tee", {}))
        self.arguments = ["--config", "blindai.toml", *([] if simulated else ["--simulation"])]

    @property
    def address(self) -> str:
        return f"localhost:{self.port}"

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    @property
    def pid(self) -> int:
        assert self.process, "the server was not started"
        return self.process.pid

    def start(self, *arguments: str, open_files: int | None = None) -> Server:
        """Start it, with `--simulation --config blindai.toml` unless told otherwise."""
        command = [str(binary()), "serve", *(arguments or self.arguments)]
        if open_files:
            command = ["sh", "-c", f'ulimit -n {open_files}; exec "$@"', "sh", *command]
        with self.log_path.open("wb") as log:
            # A process group of its own, so that a signal to all of it spares the tests.
            self.process = subprocess.Popen(
                command, cwd=self.folder, stdout=log, stderr=log, start_new_session=True
            )
        return self

    def wait_until_ready(self) -> None:
        wait_for(self._is_ready, f"the server to be ready; its log:\n{self.log}")

    def stop(self) -> None:
        """Stop it as an operator would; it must end well and have logged no fault."""
        assert self.process
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        assert code == 0, f"exit code {code}; log:\n{self.log[-4000:]}"
        for word in ("panicked", "Traceback", "internal error"):
            assert word not in self.log, f"{word!r} in the log:\n{self.log[-4000:]}"

    def __enter__(self) -> Server:
        self.start()
        self.wait_until_ready()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def workers(self) -> list[int]:
        """The ids of all processes that descend from the server."""
        return descendants(self.pid)

    def http(self, timeout: float = PATIENCE) -> Http:
        """A connection to the attested port that verifies nothing."""
        return Http(self.port, timeout)

    def _is_ready(self) -> bool:
        assert self.process
        assert self.process.poll() is None, f"the server ended; its log:\n{self.log}"
        try:
            return Http(self.port, 5).get("/v2/health/ready").status == 200
        except OSError:
            return False


def attested_certificate(server: Server, client) -> x509.Certificate:
    """The server's certificate, for programs that cannot judge evidence themselves.

    It is of the key that `client` verified: with this as their root they talk to it or to nobody.
    """
    certificate = x509.load_pem_x509_certificate(
        ssl.get_server_certificate(("localhost", server.port)).encode()
    )
    key = certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    claims = client.report.to_dict()["claims"]
    assert hashlib.sha256(key).hexdigest() == claims["tls_spki_sha256"]
    return certificate


class Answer:
    """An HTTP answer, read to its end."""

    def __init__(self, response: http.client.HTTPResponse):
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Http:
    """HTTP by hand, over a TLS connection that is not verified."""

    def __init__(self, port: int, timeout: float = PATIENCE):
        context = unverified_context()
        self.connection = http.client.HTTPSConnection(
            "localhost", port, timeout=timeout, context=context
        )

    def request(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """Send a request; underscores in header names stand for dashes. An iterable is chunked."""
        if isinstance(body, dict):
            body = json.dumps(body).encode()
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        # A server answers before it has read a body that it will not take, and hangs up.
        with contextlib.suppress(ssl.SSLEOFError, BrokenPipeError, ConnectionResetError):
            self.connection.request(method, path, body, names)
        answer = Answer(self.connection.getresponse())
        if answer.status >= 400 and body is not None:
            self.connection.close()
        return answer

    def get(self, path: str, **headers: str) -> Answer:
        return self.request("GET", path, **headers)

    def close(self) -> None:
        self.connection.close()

    def __enter__(self) -> Http:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def unverified_context() -> ssl.SSLContext:
    """TLS without any verification: for looking at the server from outside, and for abuse."""
    # Not the default one, which reads every authority of the system each time.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def tls_socket(port: int) -> ssl.SSLSocket:
    """A raw TLS connection, for clients that do not behave."""
    plain = socket.create_connection(("localhost", port), PATIENCE)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return unverified_context().wrap_socket(plain, server_hostname="localhost")


def reset(connection: ssl.SSLSocket) -> None:
    """End a connection as a crashed machine does: without a TLS goodbye."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connection.close()


def configuration(
    port: int, public_port: int, **sections: dict[str, Any] | list[dict[str, Any]]
) -> str:
    """A configuration file with these ports; a list becomes an array of tables."""
    listen = {"attested": f"127.0.0.1:{port}", "public": f"127.0.0.1:{public_port}"}
    engine = {"onnxruntime": str(onnxruntime.fetch()), "threads": 2}
    tables: dict[str, dict[str, Any]] = {"listen": listen, "engine": engine}
    lists: dict[str, list[dict[str, Any]]] = {}
    for name, entries in sections.items():
        if isinstance(entries, list):
            lists[name] = entries
        else:
            tables[name] = {**tables.get(name, {}), **entries}
    headed = [(f"[{name}]", table) for name, table in tables.items()]
    headed += [(f"[[{name}]]", table) for name, entries in lists.items() for table in entries]
    return "".join(
        f"{head}\n" + "".join(f"{key} = {toml(value)}\n" for key, value in table.items())
        for head, table in headed
    )


def toml(value: Any) -> str:
    """A value as TOML writes it; JSON's scalars are TOML's."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(entry)}" for key, entry in value.items()) + "}"
    return json.dumps(value)


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for free in sockets:
        free.bind(("127.0.0.1", 0))
    ports = [free.getsockname()[1] for free in sockets]
    for free in sockets:
        free.close()
    return ports


def wait_for(condition: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
    """Return the condition's value as soon as it is true."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"waited {patience:.0f} s for {what}")


def run_slowly(pool: Executor, server: Server, client, name: str, rounds: int) -> Future:
    """A request to the model of `graphs.loop`, which a worker has begun to work on."""
    before = {pid: cpu_seconds(pid) for pid in server.workers()}
    request = pool.submit(client.infer, name, {"rounds": np.array(rounds)})
    wait_for(
        lambda: any(cpu_seconds(pid) > used + 0.1 for pid, used in before.items()),
        "the model to run",
    )
    return request


def descendants(pid: int) -> list[int]:
    """The processes that a process started, and those that they started."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := stat_fields(int(entry.name))):
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found: list[int] = []
    pending = [pid]
    while pending:
        children = parents.get(pending.pop(), [])
        found += children
        pending += children
    return found


def resident_bytes(pid: int) -> int:
    """The memory a process holds, shared libraries included."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def cpu_seconds(pid: int) -> float:
    """The processor time a process has used; 0 when it is gone."""
    fields = stat_fields(pid)
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICK if fields else 0.0


def peak_kib(pid: int) -> int:
    """The most memory that was ever resident in a process, in KiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1])


def has_ended(pid: int) -> bool:
    """Whether every thread of a process has let go of its files; it may still be a zombie."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        states = [(task / "stat").read_text().rpartition(")")[2].split()[0] for task in tasks]
    except OSError:
        return not Path(f"/proc/{pid}").exists()
    return not set(states) - {"Z", "X"}


def stat_fields(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; none when it is gone or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    fields = text.rpartition(")")[2].split()
    return [] if fields[0] == "Z" else fields
