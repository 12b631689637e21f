"""Evidence in certificates, by tools that are not ours, and those who abuse it."""

from __future__ import annotations

import hashlib
import socket
import ssl
import threading
from datetime import datetime, timedelta, timezone
from pathlib import Path

import cbor2
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from support import Server, tls_socket

RA_TLS = x509.ObjectIdentifier("2.23.133.5.4.9")
EVIDENCE_TAG = 60000
SHA_256 = 1


def certificate_of(port: int) -> x509.Certificate:
    with tls_socket(port) as connection:
        return x509.load_der_x509_certificate(connection.getpeercert(binary_form=True))


def evidence_in(certificate: x509.Certificate) -> tuple[bytes, bytes]:
    """The quote and the claims, by cbor2 alone."""
    extension = certificate.extensions.get_extension_for_oid(RA_TLS)
    tag = cbor2.loads(extension.value.value)
    assert tag.tag == EVIDENCE_TAG
    quote, claims = tag.value
    return quote, claims


def spki(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def claims_for(key: ec.EllipticCurvePublicKey, template: bytes) -> bytes:
    """The claims of another server, with this key in the place of its own."""
    claims = cbor2.loads(template)
    claims["pubkey-hash"] = cbor2.dumps([SHA_256, hashlib.sha256(spki(key)).digest()])
    return cbor2.dumps(claims)


def own_certificate(
    key: ec.EllipticCurvePrivateKey, evidence: tuple[bytes, bytes] | None
) -> x509.Certificate:
    """A certificate of a man in the middle, with the evidence of somebody else if he has any."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "blindai-srv")])
    now = datetime.now(timezone.utc)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
    )
    if evidence:
        value = cbor2.dumps(cbor2.CBORTag(EVIDENCE_TAG, list(evidence)))
        builder = builder.add_extension(x509.UnrecognizedExtension(RA_TLS, value), critical=False)
    return builder.sign(key, hashes.SHA256())


def server_context(
    folder: Path, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate
) -> ssl.SSLContext:
    """TLS of a server with this certificate."""
    pem = folder / "impostor.pem"
    pem.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context


class Relay:
    """A man in the middle: ends TLS with his own certificate and passes the data on to a server.

    Without a certificate he only passes on what he cannot read.
    """

    def __init__(self, server: Server, folder: Path, key=None, certificate=None):
        self.server = server
        self.context = None
        if certificate:
            self.context = server_context(folder, key, certificate)
        self.seen = b""
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"localhost:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        while True:
            try:
                victim, _ = self.listener.accept()
                threading.Thread(target=self.serve, args=[victim], daemon=True).start()
            except OSError:
                return

    def serve(self, victim: socket.socket) -> None:
        try:
            if self.context:
                victim = self.context.wrap_socket(victim, server_side=True)
                onward: socket.socket = tls_socket(self.server.port)
            else:
                onward = socket.create_connection(("127.0.0.1", self.server.port))
        except OSError:
            return
        threading.Thread(target=pump, args=[onward, victim], daemon=True).start()
        pump(victim, onward, self)

    def note(self, data: bytes) -> None:
        self.seen += data

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.close()


def pump(source: socket.socket, sink: socket.socket, reader: Relay | None = None) -> None:
    """Carry bytes until either side ends."""
    try:
        while data := source.recv(65536):
            if reader:
                reader.note(data)
            sink.sendall(data)
    except OSError:
        pass
    finally:
        sink.close()
