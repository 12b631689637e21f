"""Just enough of TLS 1.3 (RFC 8446) to do what no TLS library lets one do.

A server that shows one certificate and signs with the key of another, and a look at what a peer
prefers before any key is agreed. One cipher suite, one group, no application data.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import socket
import struct
import threading

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, x25519
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

X25519, X25519_MLKEM768 = 0x001D, 0x11EC
HANDSHAKE, ALERT, CHANGE_CIPHER, APPLICATION = 22, 21, 20, 23
CLIENT_HELLO, SERVER_HELLO, FINISHED = 1, 2, 20
SUPPORTED_GROUPS, KEY_SHARE, SUPPORTED_VERSIONS = 10, 51, 43
HELLO_RETRY = hashlib.sha256(b"HelloRetryRequest").digest()


class Impostor(threading.Thread):
    """Shows `certificate` (DER) to one client, but signs the handshake with `key`.

    Afterwards, `offered` holds the groups of the client's key shares, in order, and `finished`
    says whether the client completed the handshake.
    """

    def __init__(self, certificate: bytes, key: EllipticCurvePrivateKey):
        super().__init__(daemon=True)
        self.certificate = certificate
        self.key = key
        self.offered: list[int] = []
        self.finished = False
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.start()

    def run(self) -> None:
        connection, _ = self.listener.accept()
        self.listener.close()
        with connection:
            connection.settimeout(30)
            self.handshake(connection)

    def handshake(self, connection: socket.socket) -> None:
        kind, hello = read_record(connection)
        assert (kind, hello[0]) == (HANDSHAKE, CLIENT_HELLO)
        shares = key_shares(extensions_of_client(hello)[KEY_SHARE])
        self.offered = list(shares)
        own = x25519.X25519PrivateKey.generate()
        server_hello = self.server_hello(hello, own.public_key().public_bytes_raw())
        peer = x25519.X25519PublicKey.from_public_bytes(shares[X25519])
        secrets = Secrets(own.exchange(peer), hello + server_hello)
        write_record(connection, HANDSHAKE, server_hello)
        flight = self.flight(hello + server_hello, secrets.server)
        connection.sendall(seal(secrets.server, 0, HANDSHAKE, flight))
        self.finished = reads_finished(connection, secrets.client)

    def server_hello(self, client_hello: bytes, share: bytes) -> bytes:
        session = client_hello[38 : 39 + client_hello[38]]
        extensions = extension(SUPPORTED_VERSIONS, b"\x03\x04")
        extensions += extension(KEY_SHARE, struct.pack("!HH", X25519, 32) + share)
        body = b"\x03\x03" + os.urandom(32) + session + b"\x13\x01\x00" + sized(2, extensions)
        return message(SERVER_HELLO, body)

    def flight(self, transcript: bytes, secret: bytes) -> bytes:
        """EncryptedExtensions, Certificate, CertificateVerify, Finished."""
        entry = sized(3, self.certificate) + sized(2, b"")
        flight = message(8, sized(2, b"")) + message(11, b"\0" + sized(3, entry))
        signed = b" " * 64 + b"TLS 1.3, server CertificateVerify\0" + digest(transcript + flight)
        signature = self.key.sign(signed, ec.ECDSA(hashes.SHA256()))
        flight += message(15, b"\x04\x03" + sized(2, signature))
        finished = hmac.digest(
            expand(secret, b"finished", b"", 32), digest(transcript + flight), "sha256"
        )
        return flight + message(FINISHED, finished)


class Secrets:
    """The handshake traffic secrets of both sides."""

    def __init__(self, shared: bytes, transcript: bytes):
        early = hmac.digest(bytes(32), bytes(32), "sha256")
        salt = expand(early, b"derived", digest(b""), 32)
        handshake = hmac.digest(salt, shared, "sha256")
        self.server = expand(handshake, b"s hs traffic", digest(transcript), 32)
        self.client = expand(handshake, b"c hs traffic", digest(transcript), 32)


def group_asked_for(port: int, groups: list[int]) -> int:
    """The group a server asks for, when offered these but given no key share of any."""
    with socket.create_connection(("127.0.0.1", port), 30) as connection:
        write_record(connection, HANDSHAKE, client_hello(groups))
        kind, answer = read_record(connection)
        assert (kind, answer[0]) == (HANDSHAKE, SERVER_HELLO), f"record {kind}: {answer.hex()}"
        assert answer[6:38] == HELLO_RETRY
        (group,) = struct.unpack("!H", extensions_of_server(answer)[KEY_SHARE])
        return group


def client_hello(groups: list[int]) -> bytes:
    """A greeting with supported groups and no key share."""
    group_list = b"".join(struct.pack("!H", group) for group in groups)
    extensions = extension(SUPPORTED_GROUPS, sized(2, group_list))
    extensions += extension(KEY_SHARE, sized(2, b""))
    extensions += extension(SUPPORTED_VERSIONS, sized(1, b"\x03\x04"))
    extensions += extension(13, sized(2, b"\x04\x03"))
    body = b"\x03\x03" + os.urandom(32) + sized(1, b"") + sized(2, b"\x13\x01") + sized(1, b"\0")
    return message(CLIENT_HELLO, body + sized(2, extensions))


def reads_finished(connection: socket.socket, secret: bytes) -> bool:
    """Whether the client answers with Finished, and not with an alert or silence."""
    try:
        kind, body = read_record(connection)
        while kind == CHANGE_CIPHER:
            kind, body = read_record(connection)
    except (OSError, EOFError):
        return False
    if kind != APPLICATION:
        return False
    header = struct.pack("!BHH", APPLICATION, 0x0303, len(body))
    key, nonce = traffic_keys(secret)
    plain = AESGCM(key).decrypt(nonce, body, header).rstrip(b"\0")
    return (plain[-1], plain[0]) == (HANDSHAKE, FINISHED)


def seal(secret: bytes, number: int, kind: int, content: bytes) -> bytes:
    """An encrypted record."""
    assert number == 0, "the nonce is not counted up"
    key, nonce = traffic_keys(secret)
    header = struct.pack("!BHH", APPLICATION, 0x0303, len(content) + 17)
    return header + AESGCM(key).encrypt(nonce, content + bytes([kind]), header)


def traffic_keys(secret: bytes) -> tuple[bytes, bytes]:
    return expand(secret, b"key", b"", 16), expand(secret, b"iv", b"", 12)


def expand(secret: bytes, label: bytes, context: bytes, length: int) -> bytes:
    """HKDF-Expand-Label."""
    info = struct.pack("!H", length) + sized(1, b"tls13 " + label) + sized(1, context)
    return HKDFExpand(hashes.SHA256(), length, info).derive(secret)


def digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def message(kind: int, body: bytes) -> bytes:
    return bytes([kind]) + sized(3, body)


def extension(kind: int, body: bytes) -> bytes:
    return struct.pack("!H", kind) + sized(2, body)


def sized(width: int, content: bytes) -> bytes:
    """Content with its length before it."""
    return len(content).to_bytes(width, "big") + content


def write_record(connection: socket.socket, kind: int, body: bytes) -> None:
    connection.sendall(struct.pack("!BH", kind, 0x0303) + sized(2, body))


def read_record(connection: socket.socket) -> tuple[int, bytes]:
    kind, _, length = struct.unpack("!BHH", read_exactly(connection, 5))
    return kind, read_exactly(connection, length)


def read_exactly(connection: socket.socket, count: int) -> bytes:
    content = b""
    while len(content) < count:
        part = connection.recv(count - len(content))
        if not part:
            raise EOFError
        content += part
    return content


def extensions_of_client(hello: bytes) -> dict[int, bytes]:
    at = 39 + hello[38]
    at += 2 + int.from_bytes(hello[at : at + 2], "big")
    at += 1 + hello[at]
    return read_extensions(hello[at + 2 :])


def extensions_of_server(hello: bytes) -> dict[int, bytes]:
    return read_extensions(hello[39 + hello[38] + 3 + 2 :])


def read_extensions(content: bytes) -> dict[int, bytes]:
    found = {}
    while content:
        kind, length = struct.unpack("!HH", content[:4])
        found[kind] = content[4 : 4 + length]
        content = content[4 + length :]
    return found


def key_shares(content: bytes) -> dict[int, bytes]:
    """The key shares of a client, by group, in its order."""
    return read_extensions(content[2:])
