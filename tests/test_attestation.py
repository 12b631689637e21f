"""The client believes evidence and nothing else; the evidence is what the standards say."""

from __future__ import annotations

import hashlib
import json
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cbor2
import pytest
import tls13
from conftest import connect
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from impostors import (
    SHA_256,
    Relay,
    certificate_of,
    claims_for,
    evidence_in,
    own_certificate,
    spki,
)
from support import PATIENCE, Server, unverified_context, wait_for

import blindai

# Where the 64 bytes of report data stand in a quote.
REPORT_DATA = {"sgx": 48 + 320, "tdx": 48 + 520}
POLICY = f'tee = ["sgx"]\n[sgx]\nmrenclave = ["{"ab" * 32}"]\n'


@pytest.fixture(scope="module", params=["sgx", "tdx"])
def simulated(request: pytest.FixtureRequest, tmp_path_factory) -> Iterator[tuple[str, Server]]:
    """A server for each kind of TEE that can be simulated."""
    with Server(
        tmp_path_factory.mktemp(request.param), tee={"simulation": request.param}
    ) as server:
        yield request.param, server


def refused(address: str) -> blindai.BlindAIError:
    """Connecting must fail, even for one who accepts simulation."""
    server = type("At", (), {"address": address})
    with pytest.raises(blindai.BlindAIError) as caught:
        connect(server)
    return caught.value


@pytest.mark.parametrize("policy", [None, POLICY])
def test_simulation_must_be_asked_for_by_name(server: Server, tmp_path: Path, policy: str | None):
    path = tmp_path / "policy.toml"
    path.write_text(policy or "")
    with pytest.raises(blindai.AttestationError) as caught:
        blindai.connect(server.address, policy=path if policy else None)
    assert caught.value.code == "trust-root-simulation"
    assert "BlindAI Simulation Root" in str(caught.value)
    assert caught.value.remedy


@pytest.mark.filterwarnings("ignore::blindai.SimulationWarning")
def test_an_empty_policy_accepts_nothing(server: Server, tmp_path: Path):
    path = tmp_path / "policy.toml"
    path.write_text("")
    with pytest.raises(blindai.PolicyError) as caught:
        blindai.connect(server.address, policy=path, simulation=True)
    assert caught.value.code == "policy-invalid"


def test_simulation_warns_once_and_loudly(server: Server):
    script = f"import blindai\nfor _ in 'ab': blindai.connect({server.address!r}, simulation=True)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr.count("SIMULATION PROTECTS NOTHING") == 1


def test_the_report_says_what_was_verified(simulated: tuple[str, Server]):
    tee, server = simulated
    with connect(server) as client:
        report = client.report
    assert (report.verdict, report.tee, report.simulated) == ("trusted", tee, True)
    assert report.checks
    assert not [check for check in report.checks if check.outcome == "fail"]
    assert "simulat" in str(report).lower()
    assert json.loads(report.to_json())["tee"] == tee


def test_a_relay_that_reads_nothing_is_no_danger(server: Server, tmp_path: Path):
    with Relay(server, tmp_path) as relay:
        other = type("At", (), {"address": relay.address})
        with connect(other) as client:
            assert client.report.verdict == "trusted"
    assert relay.seen
    assert b"attestation" not in relay.seen


@pytest.mark.parametrize(
    ("evidence", "code"),
    [
        ("none", "certificate-malformed"),
        ("of the server", "tls-key-mismatch"),
        ("of another server", "tls-key-mismatch"),
        ("with the own key in the claims", "report-data-mismatch"),
    ],
)
def test_a_man_in_the_middle_is_refused(
    server: Server, simulated: tuple[str, Server], tmp_path: Path, evidence: str, code: str
):
    key = ec.generate_private_key(ec.SECP256R1())
    quote, claims = evidence_in(certificate_of(server.port))
    shown = {
        "none": None,
        "of the server": (quote, claims),
        "of another server": evidence_in(certificate_of(simulated[1].port)),
        "with the own key in the claims": (quote, claims_for(key.public_key(), claims)),
    }[evidence]
    with Relay(server, tmp_path, key, own_certificate(key, shown)) as relay:
        error = refused(relay.address)
    assert isinstance(error, blindai.AttestationError)
    assert error.code == code
    assert not relay.seen, "bytes of the client reached a man in the middle"


def test_the_servers_own_certificate_with_another_key_is_refused(server: Server):
    certificate = certificate_of(server.port).public_bytes(serialization.Encoding.DER)
    impostor = tls13.Impostor(certificate, ec.generate_private_key(ec.SECP256R1()))
    error = refused(f"localhost:{impostor.port}")
    assert isinstance(error, blindai.AttestationError)
    assert error.code == "tls-key-not-held"
    impostor.join(PATIENCE)
    assert not impostor.finished


@pytest.mark.parametrize("honest", [True, False])
def test_the_impostor_is_one_that_tls_can_tell(honest: bool):
    """With its own key its handshake is right, so the refusal above is for the key alone."""
    key, other = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    der = own_certificate(key, None).public_bytes(serialization.Encoding.DER)
    impostor = tls13.Impostor(der, key if honest else other)
    with socket.create_connection(("127.0.0.1", impostor.port)) as plain:
        try:
            unverified_context().wrap_socket(plain).close()
            completed = True
        except ssl.SSLError:
            completed = False
    impostor.join(PATIENCE)
    assert completed == impostor.finished == honest


def test_the_public_port_is_no_attested_port(server: Server):
    error = refused(f"localhost:{server.public_port}")
    assert isinstance(error, blindai.AttestationError)
    assert "50051" in error.remedy


def test_the_certificate_by_other_tools(simulated: tuple[str, Server]):
    tee, server = simulated
    certificate = certificate_of(server.port)
    quote, encoded = evidence_in(certificate)
    assert int.from_bytes(quote[:2], "little") == {"sgx": 3, "tdx": 4}[tee]
    start = REPORT_DATA[tee]
    assert quote[start : start + 64] == hashlib.sha256(encoded).digest() + bytes(32)
    claims = cbor2.loads(encoded)
    want = [SHA_256, hashlib.sha256(spki(certificate.public_key())).digest()]
    assert cbor2.loads(claims["pubkey-hash"]) == want
    assert claims["iat"] <= time.time() < claims["exp"]
    assert isinstance(certificate.public_key().curve, ec.SECP256R1)
    assert len(claims["blindai-receipt-key"]) == len(claims["blindai-hpke-key"]) == 32


def test_each_start_draws_new_keys(server: Server, simulated: tuple[str, Server]):
    keys = [certificate_of(s.port).public_key() for s in (server, simulated[1])]
    assert spki(keys[0]) != spki(keys[1])


def test_evidence_is_renewed_under_a_running_client(tmp_path: Path):
    def issued() -> int:
        return cbor2.loads(evidence_in(certificate_of(server.port))[1])["iat"]

    with Server(tmp_path, tee={"evidence_seconds": 4}) as server, connect(server) as client:
        first, key = issued(), certificate_of(server.port).public_key()
        wait_for(lambda: issued() > first + 4, "the evidence to be renewed past its first end")
        assert spki(certificate_of(server.port).public_key()) == spki(key)
        # The client's first proof has ended by now; it must get a new one, not go on without.
        assert client.models.list() == []


def test_tls_1_2_is_refused(server: Server):
    context = unverified_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    for port in (server.port, server.public_port):
        with socket.create_connection(("127.0.0.1", port)) as plain, pytest.raises(ssl.SSLError):
            context.wrap_socket(plain)


def test_no_session_is_resumed(server: Server):
    context = unverified_context()

    def session(known: ssl.SSLSession | None) -> tuple[ssl.SSLSession | None, bool]:
        plain = socket.create_connection(("127.0.0.1", server.port))
        with context.wrap_socket(plain, session=known) as connection:
            connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(1024).startswith(b"HTTP/1.1 200")
            return connection.session, connection.session_reused

    first, _ = session(None)
    assert not first.has_ticket
    assert session(first)[1] is False


def test_the_server_agrees_to_a_key_exchange_that_no_quantum_computer_breaks(server: Server):
    hybrid, plain = tls13.X25519_MLKEM768, tls13.X25519
    assert tls13.group_asked_for(server.port, [hybrid, plain]) == hybrid
    assert tls13.group_asked_for(server.port, [plain]) == plain


def test_the_client_prefers_it():
    key = ec.generate_private_key(ec.SECP256R1())
    der = own_certificate(key, None).public_bytes(serialization.Encoding.DER)
    impostor = tls13.Impostor(der, key)
    refused(f"localhost:{impostor.port}")
    impostor.join(PATIENCE)
    assert impostor.offered[0] == tls13.X25519_MLKEM768
