"""Just enough of HTTP/2 (RFC 9113) to misbehave: frames by hand, no state, no limits."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator

from support import PATIENCE, unverified_context

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    0,
    1,
    3,
    4,
    6,
    7,
    8,
    9,
)
END_STREAM, END_HEADERS = 1, 4
INITIAL_WINDOW = 4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
# The first byte of an answer's head, from HPACK's static table.
STATUS_200 = 0x88
# "429" in Huffman's code, with its length.
STATUS_429 = bytes.fromhex("83684fff")


class Connection:
    """A connection to a port, on which the preface and these settings were sent."""

    def __init__(self, port: int, settings: dict[int, int] | None = None):
        context = unverified_context()
        context.set_alpn_protocols(["h2"])
        plain = socket.create_connection(("127.0.0.1", port), PATIENCE)
        self.socket = context.wrap_socket(plain, server_hostname="localhost")
        assert self.socket.selected_alpn_protocol() == "h2"
        entries = (settings or {}).items()
        payload = b"".join(k.to_bytes(2, "big") + v.to_bytes(4, "big") for k, v in entries)
        self.socket.sendall(PREFACE + frame(SETTINGS, payload))

    def send(self, *frames: bytes) -> None:
        self.socket.sendall(b"".join(frames))

    def get(self, stream: int, path: str) -> None:
        self.send(request(stream, path))

    def receive(self) -> tuple[int, int, bytes]:
        """The next frame: kind, stream and payload."""
        head = self._exactly(9)
        payload = self._exactly(int.from_bytes(head[:3], "big"))
        return head[3], int.from_bytes(head[5:9], "big"), payload

    def answer(self, stream: int) -> bytes:
        """The head of the answer on a stream, as HPACK wrote it."""
        while True:
            kind, of, payload = self.receive()
            if kind == HEADERS and of == stream:
                return payload

    def heads(self, count: int) -> Iterator[tuple[int, bytes]]:
        """The heads of so many answers, with their streams, as they come."""
        while count:
            kind, stream, payload = self.receive()
            if kind == HEADERS:
                count -= 1
                yield stream, payload

    def end(self) -> list[tuple[int, bytes]]:
        """Kind and payload of all frames until the server hangs up."""
        frames = []
        try:
            while True:
                kind, _, payload = self.receive()
                frames.append((kind, payload))
        except (EOFError, ConnectionError, ssl.SSLError):
            return frames

    def close(self) -> None:
        self.socket.close()

    def _exactly(self, count: int) -> bytes:
        content = b""
        while len(content) < count:
            part = self.socket.recv(count - len(content))
            if not part:
                raise EOFError
            content += part
        return content


def frame(kind: int, payload: bytes = b"", *, flags: int = 0, stream: int = 0) -> bytes:
    head = len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big")
    return head + payload


def request(stream: int, path: str, method: str = "GET", **headers: str) -> bytes:
    """HEADERS of a request without a body, or with one that is to follow."""
    flags = END_HEADERS | (END_STREAM if method == "GET" else 0)
    return frame(HEADERS, head(path, method, **headers), flags=flags, stream=stream)


def head(path: str, method: str = "GET", **headers: str) -> bytes:
    """HPACK, each field literal and none remembered; `https` is in the static table."""
    fields = {":method": method, ":path": path, ":authority": "x"}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    return b"\x87" + b"".join(b"\x00" + text(k) + text(v) for k, v in fields.items())


def text(content: str) -> bytes:
    """A string literal without Huffman's code."""
    length, encoded = len(content), b""
    if length < 127:
        return bytes([length]) + content.encode()
    length -= 127
    while length > 127:
        encoded += bytes([length & 127 | 128])
        length >>= 7
    return b"\x7f" + encoded + bytes([length]) + content.encode()


def reset(stream: int, code: int = 8) -> bytes:
    return frame(RST_STREAM, code.to_bytes(4, "big"), stream=stream)
