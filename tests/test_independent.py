"""Tools that are not ours agree with us: on honest evidence, and on what was tampered with."""

from __future__ import annotations

import base64
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cbor2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from impostors import claims_for, own_certificate, server_context
from support import ROOT, Server
from verify_it_yourself import Page, failed

DAY = 24 * 3600
EVIDENCE = ROOT / "testdata" / "evidence"
QUOTE_TOOLS = ["check_quote.py", "check_quote.cjs"]
OURS = "blindai verify"
# What the page's commands name.
QUOTE, COLLATERAL = "quote.bin", "collateral.json"
ROOTS = "crates/blindai-core/src/simulation_"
SHOWN = {
    "quote": QUOTE,
    "collateral": COLLATERAL,
    "root": f"{ROOTS}root.der",
    "ark": f"{ROOTS}ark.der",
}
# What check_server.py checks.
REPORT_DATA = "the report data is the digest of the claims"
KEY = "the claims name the TLS key of this connection"
NONCE = "the claims carry the nonce"
TIME = "the claims are in their time"
# What check_report.py checks.
SIGNATURE = "the signer signed the report"
CHAIN = "the chain ends in the root"
DATES = "each certificate is in its time"
PATCH_LEVEL = "the signer is for this patch level"
CHIP = "the signer is for this chip"
DEBUG = "the guest cannot be debugged"


@pytest.fixture(scope="module", params=["sgx", "tdx"])
def server(request: pytest.FixtureRequest, tmp_path_factory) -> Iterator[Server]:
    """A server for each kind of TEE whose quotes the tools know."""
    folder = tmp_path_factory.mktemp(request.param)
    with Server(folder, tee={"simulation": request.param}) as server:
        yield server


@pytest.fixture(scope="module")
def page(server: Server, tmp_path_factory) -> Page:
    """The page, followed as far as its first command: the evidence lies in its folder."""
    page = Page(tmp_path_factory.mktemp("page"))
    assert failed(ask(page, server.port)) == set()
    return page


@pytest.fixture(scope="module")
def scripts(tmp_path_factory) -> Page:
    """The page without a server."""
    return Page(tmp_path_factory.mktemp("scripts"))


class Impostor:
    """Has a TLS key of its own, and shows evidence of a server after changing it as it likes."""

    def __init__(self, server: Server, folder: Path, change: Callable[..., None]):
        key = ec.generate_private_key(ec.SECP256R1())
        kept = evidence(server, "77" * 32)

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                document = evidence(server, self.path.partition("nonce=")[2])
                change(key, kept, document)
                self.send_response(200)
                self.end_headers()
                self.wfile.write(json.dumps(document).encode())

        self.listener = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = server_context(folder, key, own_certificate(key, None))
        self.listener.socket = context.wrap_socket(self.listener.socket, server_side=True)
        threading.Thread(target=self.listener.serve_forever, daemon=True).start()

    @property
    def port(self) -> int:
        return self.listener.server_port

    def __enter__(self) -> Impostor:
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.shutdown()
        self.listener.server_close()


def evidence(server: Server, nonce: str) -> dict[str, Any]:
    with server.http() as http:
        return http.get(f"/v1/attestation?nonce={nonce}").json


def ask(page: Page, port: int):
    """Step 1 of the page, with another port."""
    command = page.command("check_server.py")
    assert "localhost:50051" in command
    return page.run(command.replace("50051", str(port)))


def relayed(key, kept: dict, document: dict) -> None:
    pass


def replayed(key, kept: dict, document: dict) -> None:
    document.update(kept)


def rewritten(key, kept: dict, document: dict) -> None:
    claims = claims_for(key.public_key(), base64.b64decode(document["claims"]))
    document["claims"] = base64.b64encode(claims).decode()


def aged(key, kept: dict, document: dict) -> None:
    claims = cbor2.loads(base64.b64decode(document["claims"])) | {"exp": 1}
    document["claims"] = base64.b64encode(cbor2.dumps(claims)).decode()


@pytest.mark.parametrize(
    ("change", "checks"),
    [
        (relayed, {KEY}),
        (replayed, {KEY, NONCE}),
        (rewritten, {REPORT_DATA}),
        (aged, {REPORT_DATA, KEY, TIME}),
    ],
)
def test_an_impostor_is_found_out(server: Server, tmp_path: Path, change, checks: set[str]):
    folder = tmp_path / "page"
    folder.mkdir()
    with Impostor(server, tmp_path, change) as impostor:
        assert failed(ask(Page(folder), impostor.port)) == checks


def test_the_code_is_the_program(page: Page):
    done = page.run(page.command({"sgx": "sha256sum", "tdx": "sha384sum"}[kind_of(page)]))
    program, measured = done.stdout.splitlines()
    assert program.split()[0] == measured


@pytest.mark.parametrize("tool", QUOTE_TOOLS)
def test_the_quote_is_accepted(page: Page, tool: str):
    done = page.run(page.command(tool))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "UpToDate\n"
    assert not refuses(page, OURS)


def kind_of(page: Page) -> str:
    return "sgx" if (page.folder / QUOTE).read_bytes()[4:8] == bytes(4) else "tdx"


def flip(data: bytes, at: int, bit: int = 1) -> bytes:
    flipped = bytearray(data)
    flipped[at] ^= bit
    return bytes(flipped)


# Where things stand in a quote of SGX and in one of TDX: measurement, report data, signature of the
# report, report of the quoting enclave.
PLACES = {
    "sgx": {"measurement": 112, "report data": 368, "signature": 436, "quoting enclave": 564},
    "tdx": {"measurement": 184, "report data": 568, "signature": 636, "quoting enclave": 770},
}


@pytest.mark.parametrize("tool", [*QUOTE_TOOLS, OURS])
@pytest.mark.parametrize("place", PLACES["sgx"])
def test_a_quote_that_was_tampered_with_is_refused(page: Page, tool: str, place: str):
    quote = (page.folder / QUOTE).read_bytes()
    (page.folder / "tampered.bin").write_bytes(flip(quote, PLACES[kind_of(page)][place]))
    assert refuses(page, tool, quote="tampered.bin")


@pytest.mark.parametrize("tool", [*QUOTE_TOOLS, OURS])
@pytest.mark.parametrize("part", ["tcb_info", "tcb_info_signature", "qe_identity_signature"])
def test_collateral_that_was_tampered_with_is_refused(page: Page, tool: str, part: str):
    tamper_with_collateral(page, part)
    assert refuses(page, tool, collateral="tampered.json")


@pytest.mark.parametrize("part", ["root_ca_crl", "pck_crl"])
def test_revocation_lists_are_verified_by_one_of_the_two_tools(page: Page, part: str):
    """As the page says of the other: when that changes, so must the page."""
    tamper_with_collateral(page, part)
    assert refuses(page, "check_quote.py", collateral="tampered.json")
    assert refuses(page, OURS, collateral="tampered.json")
    assert not refuses(page, "check_quote.cjs", collateral="tampered.json")


def tamper_with_collateral(page: Page, part: str) -> None:
    collateral = json.loads((page.folder / COLLATERAL).read_text())
    if part == "tcb_info":
        assert "UpToDate" in collateral[part]
        collateral[part] = collateral[part].replace("UpToDate", "OutOfDate")
    else:  # hexadecimal, with a signature at its end
        collateral[part] = flip(bytes.fromhex(collateral[part]), -1).hex()
    (page.folder / "tampered.json").write_text(json.dumps(collateral))


@pytest.mark.parametrize("tool", [*QUOTE_TOOLS, OURS])
@pytest.mark.parametrize("days", [-365, 365])
def test_evidence_out_of_its_time_is_refused(page: Page, tool: str, days: int):
    assert refuses(page, tool, at=time.time() + days * DAY)


@pytest.mark.parametrize("tool", QUOTE_TOOLS)
def test_the_simulation_does_not_lead_to_intel(page: Page, tool: str):
    assert refuses(page, tool, root="intel")


def refuses(page: Page, tool: str, at: float | None = None, **files: str) -> bool:
    """Whether a tool refuses with a reason."""
    done = follow(page, tool, at, **files)
    if tool == OURS:
        assert done.stdout.count("rejected") == done.returncode, done
    else:
        assert (done.returncode, done.stdout) in [(0, "UpToDate\n"), (1, "")], done
        assert "Error" in done.stderr or done.returncode == 0, done
    return done.returncode == 1


def follow(page: Page, tool: str, at: float | None = None, **files: str):
    """The page's command for a tool, on other files and at another time."""
    command = page.command(tool).rstrip()
    for name, used in files.items():
        assert SHOWN[name] in command
        command = command.replace(SHOWN[name], used)
    if at is not None:
        command += f" --at {at:.0f}" if tool == OURS else f" {at:.0f}"
    return page.run(command)


@pytest.mark.parametrize("tool", QUOTE_TOOLS)
@pytest.mark.parametrize(
    ("quote", "collateral", "at", "verdict"),
    [
        (
            "sgx/dcapqvl_00a067110000",
            "sgx_00a067110000_2025-06",
            1751600000,
            "ConfigurationAndSWHardeningNeeded INTEL-SA-00289 INTEL-SA-00615",
        ),
        ("tdx/dcapqvl_v4_b0c06f", "tdx_b0c06f_2025-06", 1751600000, "UpToDate"),
        ("tdx/gotdx_v5_td15_90c06f", "tdx_90c06f_2026-02", 1772700000, "UpToDate"),
        (
            "tdx/trustee_v4_outofdate_00a06d08",
            "tdx_00a06d08_2025-10_crl2026",
            1762890000,
            "OutOfDate",
        ),
        ("tdx/dcapqvl_v4_b0c06f", "tdx_b0c06f_2025-06", 1753500000, None),
        ("tdx/dcapqvl_v4_b0c06f", "tdx_90c06f_2026-02", 1772700000, None),
        ("tdx/trustee_v4_DEBUG_50806f", "tdx_50806f_2023-06", 1687930000, None),
    ],
)
def test_quotes_of_real_machines(
    scripts: Page, tool: str, quote: str, collateral: str, at: int, verdict: str | None
):
    """The verdicts that our verifier has to give too, in crates/blindai-verify/tests."""
    quote, collateral = f"{EVIDENCE}/{quote}.quote", f"{EVIDENCE}/collateral/{collateral}.json"
    done = follow(scripts, tool, at, quote=quote, collateral=collateral, root="intel")
    assert (done.returncode, done.stdout.strip()) == ((0, verdict) if verdict else (1, ""))


@pytest.fixture(scope="module")
def guest(tmp_path_factory) -> Iterator[Page]:
    """The page after its first command, asked of a simulated guest of SEV-SNP."""
    server = Server(tmp_path_factory.mktemp("snp"), tee={"simulation": "sev-snp"})
    page = Page(tmp_path_factory.mktemp("guest"))
    with server:
        assert failed(ask(page, server.port)) == set()
    return page


def test_the_report_is_accepted(guest: Page):
    assert failed(guest.run(guest.command("check_report.py"))) == set()
    assert not refuses(guest, OURS)


@pytest.mark.parametrize(
    ("at", "bit", "checks"),
    [
        (0x50, 1, set()),  # report data
        (0x90, 1, set()),  # measurement
        (0x2A0, 1, set()),  # signature
        (0x29F, 1, set()),  # reserved, and signed
        (0x0A, 8, {DEBUG}),
        (0x180, 1, {PATCH_LEVEL}),
        (0x1A0, 1, {CHIP}),
    ],
)
def test_a_report_that_was_tampered_with_is_refused(
    guest: Page, at: int, bit: int, checks: set[str]
):
    report = (guest.folder / QUOTE).read_bytes()
    (guest.folder / "tampered.bin").write_bytes(flip(report, at, bit))
    done = follow(guest, "check_report.py", quote="tampered.bin")
    assert failed(done) == {SIGNATURE, *checks}
    assert refuses(guest, OURS, quote="tampered.bin")


@pytest.mark.parametrize("years", [-30, 30])
def test_a_report_out_of_its_time_is_refused(guest: Page, years: int):
    at = time.time() + years * 365 * DAY
    assert failed(follow(guest, "check_report.py", at)) == {DATES}
    assert refuses(guest, OURS, at)


def as_der(path: Path) -> bytes:
    """A certificate file, the last one of it when it has several."""
    data = path.read_bytes()
    if b"-----BEGIN" not in data:
        return data
    return x509.load_pem_x509_certificates(data)[-1].public_bytes(serialization.Encoding.DER)


def as_pem(path: Path) -> str:
    data = path.read_bytes()
    if b"-----BEGIN" in data:
        return data.decode()
    certificate = x509.load_der_x509_certificate(data)
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


IN_2025, IN_2026 = 1750000000, 1780000000


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
@pytest.mark.parametrize(
    ("report", "signer", "issuer", "root", "at", "checks"),
    [
        ("ms_milan", "ms_milan_vcek.pem", "milan_ask.pem", "milan", IN_2026, set()),
        ("ms_genoa", "ms_genoa_vcek.pem", "genoa_ask.pem", "genoa", IN_2026, set()),
        ("ms_turin", "ms_turin_vcek.pem", "turin_ask.pem", "turin", IN_2026, set()),
        (
            "trustee_milan_vlek",
            "trustee_milan_vlek.der",
            "milan_asvk_ark.pem",
            "milan",
            IN_2025,
            set(),
        ),
        (
            "trustee_milan_vlek",
            "trustee_milan_vlek.der",
            "milan_asvk_ark.pem",
            "milan",
            IN_2026,
            {DATES},
        ),
        (
            "gosev_milan_DEBUG",
            "gosev_milan_DEBUG_vcek.der",
            "milan_ask.pem",
            "milan",
            IN_2025,
            {DEBUG},
        ),
        ("ms_milan", "ms_milan_vcek.pem", "milan_ask.pem", "genoa", IN_2026, {CHAIN}),
        (
            "trustee_milan_v2",
            "ms_milan_vcek.pem",
            "milan_ask.pem",
            "milan",
            IN_2026,
            {SIGNATURE, PATCH_LEVEL, CHIP},
        ),
    ],
)
def test_reports_of_real_machines(
    scripts: Page, report: str, signer: str, issuer: str, root: str, at: int, checks: set[str]
):
    snp = EVIDENCE / "snp"
    collateral = {"signer": as_pem(snp / signer), "issuer_chain": as_pem(snp / issuer)}
    (scripts.folder / COLLATERAL).write_text(json.dumps(collateral))
    (scripts.folder / "ark.der").write_bytes(as_der(snp / f"{root}_ark.pem"))
    quote = str(snp / f"{report}.report")
    done = follow(scripts, "check_report.py", at, quote=quote, ark="ark.der")
    assert failed(done) == checks
