"""The least that can answer over TLS: one session behind one socket, in one process.

No protocol, no attestation, nothing checked, nothing kept apart: a server that does any of it takes
longer. OpenSSL writes from and reads into the arrays themselves.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import socket
import ssl
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from tools.peers.serving import session as load


@contextlib.contextmanager
def serving(
    path: Path, threads: int, tensor: np.ndarray, pair: tuple[Path, Path]
) -> Iterator[Callable[[], np.ndarray]]:
    """A request with this one input, for the one output of a model of fixed shapes.

    `pair` is a certificate for localhost that signs itself, and its key.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    arguments = (path, threads, tensor.shape, pair, there)
    server = context.Process(target=serve, args=arguments, daemon=True)
    server.start()
    try:
        port, shape = here.recv()
        with connect(port, pair[0]) as connection:
            answer = np.empty(shape, np.float32)

            def call() -> np.ndarray:
                connection.sendall(memoryview(tensor).cast("B"))
                receive(connection, answer)
                return answer

            yield call
    finally:
        server.terminate()
        server.join()


def serve(
    path: Path, threads: int, shape: tuple[int, ...], pair: tuple[Path, Path], ready: Connection
) -> None:
    session = load(path, threads)
    name, tensor = session.get_inputs()[0].name, np.zeros(shape, np.float32)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(*pair)
    with socket.create_server(("localhost", 0)) as listener:
        (answer,) = session.run(None, {name: tensor})
        ready.send((listener.getsockname()[1], answer.shape))
        connection, _ = listener.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with context.wrap_socket(connection, server_side=True) as tls:
        while receive(tls, tensor):
            (answer,) = session.run(None, {name: tensor})
            tls.sendall(memoryview(answer).cast("B"))


def connect(port: int, certificate: Path) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=str(certificate))
    connection = socket.create_connection(("localhost", port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return context.wrap_socket(connection, server_hostname="localhost")


def receive(connection: ssl.SSLSocket, into: np.ndarray) -> bool:
    """Fills the array; False at the end of the connection."""
    left = memoryview(into).cast("B")
    while left:
        length = connection.recv_into(left)
        if length == 0:
            return False
        left = left[length:]
    return True
