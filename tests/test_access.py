"""Who may do what: every route with every kind of caller on both ports, as docs/access.md says.

The tables there are the tests' own; that they name every route of the server is tested in
`crates/blindai-server/src/api/mod.rs`.
"""

from __future__ import annotations

import asyncio
import base64
import datetime
import hashlib
import http.client
import json
import os
import re
import ssl
import subprocess
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cbor2
import graphs
import grpc
import legacy
import numpy as np
import pytest
from conftest import connect
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from support import ROOT, Answer, Http, Server, attested_certificate, binary, wait_for
from test_proxy import Proxy
from tritonclient.grpc import service_pb2 as pb

import blindai
from blindai import aio

MODEL = graphs.identity(shape=[1])
INFER_JSON = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1.0]}]}
#: Of a model that nobody but the caller uploaded, and of one that somebody else did.
OWN, FOREIGN = "own", "foreign"
STATUS = {
    200: grpc.StatusCode.OK,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    405: grpc.StatusCode.UNIMPLEMENTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
}
#: What is spoken in gRPC.
GRPC = {"gRPC", "BlindAI 0.3"}
CODES = {401: "unauthenticated", 403: "forbidden", 404: "model-not-found"}


# Who calls


def new_token(*arguments: str) -> tuple[str, dict[str, Any]]:
    """A token, made as an operator makes one, and its hash."""
    command = [binary(), "token", "new", "--json", *arguments]
    made = json.loads(subprocess.check_output(command))
    return made["token"], {"sha256": made["sha256"]}


@dataclass
class Certificate:
    """A self-signed client certificate in files."""

    pem: Path
    key: Path
    spki_sha256: str

    @property
    def paths(self) -> tuple[Path, Path]:
        return self.pem, self.key


def new_certificate(folder: Path, name: str) -> Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    # Long over: nothing but the key counts.
    then = datetime.datetime(2001, 1, 1, tzinfo=datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(then)
        .not_valid_after(then + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    encoding, form = serialization.Encoding, serialization.PublicFormat
    spki = key.public_key().public_bytes(encoding.DER, form.SubjectPublicKeyInfo)
    made = Certificate(
        folder / f"{name}.pem", folder / f"{name}.key", hashlib.sha256(spki).hexdigest()
    )
    made.pem.write_bytes(certificate.public_bytes(encoding.PEM))
    private = serialization.PrivateFormat.PKCS8
    made.key.write_bytes(key.private_bytes(encoding.PEM, private, serialization.NoEncryption()))
    return made


@dataclass
class Caller:
    """One who calls, with the role that the tables name, or None when nobody knows it."""

    name: str
    role: str | None
    token: str | None = None
    certificate: Certificate | None = None

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    def http(self, port: int) -> Http:
        http = Http(port)
        if self.certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            context.load_cert_chain(*self.certificate.paths)
            http.connection = http_connection(port, context)
        return http

    def channel(self, server: Server, root: bytes) -> grpc.Channel:
        mine = self.certificate
        credentials = grpc.ssl_channel_credentials(
            root,
            mine.key.read_bytes() if mine else None,
            mine.pem.read_bytes() if mine else None,
        )
        options = [("grpc.use_local_subchannel_pool", 1)]
        return grpc.secure_channel(server.address, credentials, options)

    def connect(self, server: Server) -> blindai.Client:
        certificate = self.certificate.paths if self.certificate else None
        return connect(server, token=self.token, client_certificate=certificate)


def http_connection(port: int, context: ssl.SSLContext) -> http.client.HTTPSConnection:
    return http.client.HTTPSConnection("localhost", port, timeout=60, context=context)


@pytest.fixture(scope="module")
def callers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Caller]:
    """One of each kind; `owner` uploads what is foreign to all others."""
    folder = tmp_path_factory.mktemp("callers")
    made = [Caller("anonymous", "anonymous")]
    for role in ("infer", "upload", "admin"):
        made.append(Caller(f"token-{role}", role, token=new_token()[0]))
        made.append(Caller(f"client-{role}", role, certificate=new_certificate(folder, role)))
    made.append(Caller("owner", "upload", token=new_token()[0]))
    made.append(Caller("expired", None, token=new_token()[0]))
    made.append(Caller("unknown", None, token=new_token()[0]))
    made.append(Caller("malformed", None, token="blindai_" + "0" * 72))
    # A token decides, also where the certificate would do.
    made.append(Caller("both", None, token=new_token()[0], certificate=made[6].certificate))
    return {caller.name: caller for caller in made}


def access(callers: dict[str, Caller]) -> dict[str, Any]:
    """The section of the configuration for those who are known."""
    tokens, clients = [], []
    for caller in callers.values():
        entry = {"name": caller.name, "roles": [caller.role]}
        if caller.name == "expired":
            entry |= {"roles": ["admin"], "expires": "2020-01-01T00:00:00Z"}
        elif caller.role in (None, "anonymous"):
            continue
        if caller.token:
            tokens.append(entry | {"sha256": sha256(caller.token)})
        elif caller.certificate:
            clients.append(entry | {"spki_sha256": caller.certificate.spki_sha256})
    return {"tokens": tokens, "clients": clients}


def sha256(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, callers: dict[str, Caller]
) -> Iterator[Server]:
    """A server that tells all it can."""
    sections = {
        "access": access(callers),
        "engine": {"threads": 1, "warm_up": False},
        "log": {"level": "debug", "requests": True},
        "metrics": {"enabled": True},
    }
    folder = tmp_path_factory.mktemp("access")
    with Server(folder, **sections) as server:
        yield server
        told = server.log + Http(server.public_port).get("/metrics").body.decode()
    tokens = [caller.token for caller in callers.values() if caller.token]
    assert len(tokens) > 5
    # Nor any part of one: the log at start names hashes nowhere either.
    for token in tokens:
        assert token[8:40] not in told
        assert sha256(token) not in told
        for path in folder.rglob("*"):
            assert not path.is_file() or token.encode() not in path.read_bytes(), path


@pytest.fixture(scope="module")
def root(server: Server, callers: dict[str, Caller]) -> bytes:
    """The verified certificate of the server, for clients that verify nothing."""
    with callers["token-admin"].connect(server) as client:
        certificate = attested_certificate(server, client)
        return certificate.public_bytes(serialization.Encoding.PEM)


# The tables


def rows(first: str) -> list[list[str]]:
    """The rows of the table of docs/access.md whose head begins so."""
    lines = (ROOT / "docs/access.md").read_text().splitlines()
    begin = next(at for at, line in enumerate(lines) if line.startswith(f"| {first} |"))
    table = []
    for line in lines[begin:]:
        if not line.startswith("|"):
            break
        table.append([cell.strip().strip("`") for cell in line.strip("|").split("|")])
    return [table[0], *table[2:]]


def rights() -> dict[str, dict[str, str]]:
    head, *body = rows("verb")
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in body}


RIGHTS = rights()
ROUTES = [tuple(row) for row in rows("port")[1:]]


def test_the_tables_are_whole():
    assert RIGHTS.keys() == {"infer", "describe", "list", "upload", "delete", "unload", "open"}
    for row in RIGHTS.values():
        assert row.keys() == {"infer", "upload", "admin", "anonymous"}
        assert set(row.values()) <= {"yes", "own", "no"}
    assert {verb for *_, verb in ROUTES} == RIGHTS.keys()
    assert len(set(ROUTES)) == len(ROUTES) > 40


def expected(verb: str, caller: Caller, whose: str) -> int:
    """The status over HTTP that the tables give."""
    if verb == "open":
        return 200
    if caller.role is None:
        return 401
    right = RIGHTS[verb][caller.role]
    if right == "no":
        return 401 if caller.role == "anonymous" else 403
    if right == "own" and whose == FOREIGN and verb != "list":
        # A name that is taken cannot be hidden from whom it is refused to.
        return 403 if verb == "upload" else 404
    return 200


# The matrix


@pytest.fixture(scope="module")
def names(server: Server, callers: dict[str, Caller]) -> dict[str, str]:
    """A model of each caller that may have one, and the one of `owner` for all others."""
    named = {}
    for caller in callers.values():
        uploads = caller.role in ("upload", "admin")
        named[caller.name] = f"of-{caller.name}" if uploads else "of-owner"
    for caller in callers.values():
        if named[caller.name] != "of-owner" or caller.name == "owner":
            upload(server, caller, named[caller.name])
    return named


def upload(server: Server, caller: Caller, name: str, version: str | None = None) -> None:
    path = f"/v1/models/{name}" + (f"/versions/{version}" if version else "")
    with caller.http(server.port) as http:
        answer = http.request("PUT", path, MODEL, **caller.headers)
    assert answer.status in (200, 201), answer.body


def test_every_route_with_every_caller_over_http(
    server: Server, callers: dict[str, Caller], names: dict[str, str]
):
    wrong = []
    for caller in subjects(callers):
        with caller.http(server.port) as http:
            for port, protocol, request, verb in ROUTES:
                if port != "attested" or protocol in GRPC:
                    continue
                for whose in (OWN, FOREIGN):
                    name = prepared(server, callers, names, caller, verb, whose)
                    answer = send(http, caller, request, name)
                    want = expected(verb, caller, whose)
                    # Who may is told that an uploaded model is kept nowhere else.
                    want = 405 if verb == "unload" and want == 200 else want
                    if not fits(answer, want, caller, verb):
                        got = answer.status, answer.body[:200]
                        wrong.append((caller.name, request, whose, want, got))
    assert wrong == []


def subjects(callers: dict[str, Caller]) -> list[Caller]:
    """All but the one to whom nothing is foreign."""
    return [caller for caller in callers.values() if caller.name != "owner"]


def prepared(
    server: Server,
    callers: dict[str, Caller],
    names: dict[str, str],
    caller: Caller,
    verb: str,
    whose: str,
) -> str:
    """The name of a model for this request; what may be deleted is uploaded for it."""
    owner = caller if whose == OWN and caller.role in ("upload", "admin") else callers["owner"]
    if verb == "delete" and expected(verb, caller, whose) == 200:
        name = f"gone-{owner.name}"
        upload(server, owner, name, "1")
        return name
    return names[owner.name]


def send(http: Http, caller: Caller, request: str, name: str) -> Answer:
    method, path = request.split(" ")
    path = path.replace("{name}", name).replace("{version}", "1").replace("{method}", "Unheard")
    body: Any = None
    if method == "PUT":
        body = MODEL
    elif method == "POST":
        body = INFER_JSON if path.endswith("/infer") else b""
    return http.request(method, path, body, **caller.headers)


def fits(answer: Answer, want: int, caller: Caller, verb: str) -> bool:
    if want == 200:
        # The content is held already, so that nothing is loaded.
        return answer.status in (200, 201) and shows(answer.body, caller, verb)
    if answer.status != want:
        return False
    asked = answer.headers.get("WWW-Authenticate")
    code = answer.json["code"]
    return code == CODES.get(want, code) and (asked == "Bearer" if want == 401 else asked is None)


def shows(body: bytes, caller: Caller, verb: str) -> bool:
    """Whether a list holds what the caller may use and nothing else."""
    if verb != "list":
        return True
    own = f"of-{caller.name}".encode() in body
    assert caller.role
    everything = RIGHTS["list"][caller.role] == "yes"
    foreign = body.count(b"of-") > body.count(f"of-{caller.name}".encode())
    return foreign == everything and (own or everything)


def test_every_route_with_every_caller_over_grpc(
    server: Server, callers: dict[str, Caller], names: dict[str, str], root: bytes
):
    wrong = []
    for caller in subjects(callers):
        with caller.channel(server, root) as channel:
            for port, protocol, request, verb in ROUTES:
                if port != "attested" or protocol not in GRPC:
                    continue
                for whose in (OWN, FOREIGN):
                    name = prepared(server, callers, names, caller, verb, whose)
                    status, answer = call(channel, caller, request, name)
                    want = expected(verb, caller, whose)
                    ready = request.endswith("/ModelReady")
                    if ready and want == 404:
                        # Not an error, and not ready.
                        good = status == STATUS[200]
                        good &= not pb.ModelReadyResponse.FromString(answer).ready
                    elif request.endswith("{method}") or (verb == "unload" and want == 200):
                        good = status == STATUS[405]
                    else:
                        good = status == STATUS[want]
                        good &= want != 200 or shows(answer, caller, verb)
                    if not good:
                        wrong.append((caller.name, request, whose, want, status, answer))
    assert wrong == []


def call(
    channel: grpc.Channel, caller: Caller, request: str, name: str
) -> tuple[grpc.StatusCode, bytes]:
    path = request.removeprefix("POST ").replace("{method}", "Unheard")
    method = path.rpartition("/")[2]
    metadata = [(key.lower(), value) for key, value in caller.headers.items()]
    message = message_of(method, name).SerializeToString()
    try:
        if "Stream" in method:
            stream = channel.stream_stream(path)(iter([message]), timeout=60, metadata=metadata)
            (answer,) = stream
            return streamed(answer)
        if method in ("SendModel", "RunModel"):
            one = channel.stream_unary(path)(iter([message]), timeout=60, metadata=metadata)
            return STATUS[200], one
        return STATUS[200], channel.unary_unary(path)(message, timeout=60, metadata=metadata)
    except grpc.RpcError as error:
        return error.code(), error.details().encode()


def streamed(answer: bytes) -> tuple[grpc.StatusCode, bytes]:
    """A stream tells in its messages what of them was refused."""
    told = pb.ModelStreamInferResponse.FromString(answer).error_message
    for status, code in CODES.items():
        if told.startswith(code):
            return STATUS[status], told.encode()
    assert not told
    return STATUS[200], answer


def message_of(method: str, name: str) -> Any:
    old = legacy.messages()
    if method == "SendModel":
        return old.SendModelRequest(
            data=MODEL, length=len(MODEL), model_name=name, input_fact=[1], datum=0, datum_output=0
        )
    if method == "RunModel":
        return old.RunModelRequest(input=cbor2.dumps([1.0]), model_name=name)
    if "Infer" in method:
        message = pb.ModelInferRequest(model_name=name)
        message.inputs.add(name="x", datatype="FP32", shape=[1])
        message.raw_input_contents.append(np.ones(1, np.float32).tobytes())
        return message
    if method.startswith("Repository"):
        kind = getattr(pb, f"{method}Request")
        return kind() if method == "RepositoryIndex" else kind(model_name=name)
    if method.startswith("Server") or method == "Unheard":
        return pb.ServerLiveRequest()
    return getattr(pb, f"{method}Request")(name=name)


def test_the_public_port_has_only_what_is_open(
    server: Server, callers: dict[str, Caller], names: dict[str, str]
):
    public = {request for port, _, request, _ in ROUTES if port == "public"}
    assert all(verb == "open" for port, _, _, verb in ROUTES if port == "public")
    for caller in callers.values():
        # Client certificates are not asked for there, so nobody sends one.
        with Http(server.public_port) as http:
            # What is gRPC there is no request of HTTP; test_legacy asks for it, and shows nothing.
            asked = {
                r for port, protocol, r, _ in ROUTES if port != "public" or protocol not in GRPC
            }
            for request in asked:
                answer = send(http, caller, request, names[caller.name])
                if request in public:
                    assert answer.status == 200, (caller.name, request)
                else:
                    assert answer.status == 404, (caller.name, request)
                    assert answer.json["code"] == "route-not-found"


# Names and ownership


def test_what_one_may_not_use_is_not_there(server: Server, callers: dict[str, Caller], names):
    hidden, absent = names["owner"], "of-nobody"
    caller = callers["token-upload"]
    for method, path in [
        ("GET", "/v1/models/{}"),
        ("DELETE", "/v1/models/{}"),
        ("GET", "/v2/models/{}/ready"),
        ("POST", "/v2/models/{}/infer"),
    ]:
        with caller.http(server.port) as http:
            told = []
            for name in (hidden, absent):
                sent = {**caller.headers, "x_request_id": "r"}
                answer = http.request(method, path.format(name), INFER_JSON, **sent)
                told.append((answer.status, answer.body.replace(name.encode(), b"")))
        first, second = told
        assert first == second
        assert first[0] == 404


def test_a_name_belongs_to_whoever_had_it_first(server: Server, callers: dict[str, Caller]):
    with (
        callers["token-upload"].connect(server) as first,
        callers["client-upload"].connect(server) as second,
        callers["token-admin"].connect(server) as admin,
    ):
        first.models.upload(MODEL, name="mine")
        for version in (None, "9"):
            with pytest.raises(blindai.AccessError, match="forbidden"):
                second.models.upload(graphs.add(["n"]), name="mine", version=version)
        # Not even the same content, which would tell that it is the same.
        with pytest.raises(blindai.AccessError, match="forbidden"):
            second.models.upload(MODEL, name="mine")
        with pytest.raises(blindai.ModelError, match="model-not-found"):
            second.models.delete("mine")
        # An admin's version under it stays the owner's.
        admin.models.upload(graphs.add(["n"]), name="mine")
        assert len(first.models.delete("mine")) == 2
        second.models.upload(MODEL, name="mine")
        with pytest.raises(blindai.ModelError, match="model-not-found"):
            first.infer("mine", {"x": np.ones(1, np.float32)})
        assert len(admin.models.delete("mine")) == 1


def limited(folder: Path, *entries: dict[str, Any], **more: Any) -> tuple[Server, list[str]]:
    """A server with these tokens, and the tokens."""
    tokens = [new_token()[0] for _ in entries]
    written = [
        {"name": f"t{number}", "sha256": sha256(token), **entry}
        for number, (token, entry) in enumerate(zip(tokens, entries))
    ]
    anonymous = {"anonymous": more.pop("anonymous")} if "anonymous" in more else {}
    engine = {"threads": 1, "warm_up": False, **more.pop("engine", {})}
    sections = {"access": {"tokens": written, **anonymous}, "engine": engine, **more}
    return Server(folder, **sections), tokens


def test_a_token_may_be_for_some_names_only(tmp_path: Path):
    entry = {"roles": ["infer", "upload"], "models": ["one", "team-*"]}
    server, (narrow, wide) = limited(tmp_path, entry, {"roles": ["upload"]})
    with server, connect(server, token=narrow) as own, connect(server, token=wide) as other:
        other.models.upload(MODEL, name="two")
        other.models.upload(MODEL, name="one")
        own.models.upload(MODEL, name="team-x")
        told = []
        # Taken by others or free: out of range is told in the same words.
        for name in ("two", "six"):
            with pytest.raises(blindai.AccessError) as refused:
                own.models.upload(MODEL, name=name)
            told.append(str(refused.value).replace(name, ""))
        assert told[0] == told[1]
        assert {held.name for held in own.models.list()} == {"one", "team-x"}
        with pytest.raises(blindai.ModelError, match="model-not-found"):
            own.models.get("two")
        # Its role lets it run what is another's, and no more.
        own.infer("one", {"x": np.ones(1, np.float32)})
        with pytest.raises(blindai.AccessError, match="forbidden"):
            own.models.delete("one")


def test_anonymous_callers_may_do_what_is_listed(tmp_path: Path):
    server, (token, *_) = limited(tmp_path, {"roles": ["admin"]}, anonymous=["infer"])
    with server, connect(server, token=token) as admin, connect(server) as anyone:
        admin.models.upload(MODEL, name="m")
        assert anyone.infer("m", {"x": np.ones(1, np.float32)})["y"] == 1
        with pytest.raises(blindai.AccessError, match="unauthenticated"):
            anyone.models.upload(MODEL, name="n")
        # Who sends a token counts on it.
        stranger = connect(server, token=new_token()[0])
        with stranger, pytest.raises(blindai.AccessError, match="unauthenticated"):
            stranger.models.list()


def test_without_tokens_everybody_may_do_everything_and_the_server_says_so(server, tmp_path: Path):
    with Server(tmp_path / "open") as open_server, connect(open_server) as client:
        client.models.upload(MODEL, name="m")
        client.models.delete("m")
        line = "no tokens or clients are configured: everybody may infer, upload, admin"
        assert line in open_server.log
        digest = client.report.to_dict()["claims"]["config_digest"]
    assert "token-infer may infer; " in server.log
    assert "; others may do nothing" in server.log
    # The rights are in the evidence.
    narrower, _ = limited(tmp_path / "narrow", {"roles": ["infer"]})
    with narrower, connect(narrower) as client:
        assert client.report.to_dict()["claims"]["config_digest"] != digest


# Quotas


def test_a_rate_is_kept_and_says_when_to_come_back(tmp_path: Path):
    # One in 1000 s: nothing here waits for the next.
    quota = {"requests_per_second": 0.001, "burst": 2}
    entries = {"roles": ["admin"], "quota": quota}, {"roles": ["admin"]}
    server, (slow, fast) = limited(tmp_path, *entries)
    headers = {"Authorization": f"Bearer {slow}"}
    with server, server.http() as http:
        assert [http.get("/v1/models", **headers).status for _ in range(2)] == [200, 200]
        refused = http.get("/v1/models", **headers)
        assert (refused.status, refused.json["code"]) == (429, "quota-exceeded")
        assert 900 < int(refused.headers["Retry-After"]) <= 1000
        # An upload is refused before a byte of it was read.
        head = {"Content-Length": "1000000", **headers}
        http.connection.putrequest("PUT", "/v1/models/m")
        for name, value in head.items():
            http.connection.putheader(name, value)
        http.connection.endheaders()
        assert http.connection.getresponse().status == 429
        http.close()
        # It is one quota on every connection, and nobody else's.
        with server.http() as another:
            assert another.get("/v1/models", **headers).status == 429
            others = {"Authorization": f"Bearer {fast}"}
            assert another.get("/v1/models", **others).status == 200
        with connect(server, token=slow) as client, pytest.raises(blindai.ServerError) as told:
            client.models.list()
        assert told.value.code == "quota-exceeded"


def test_requests_in_progress_are_counted_by_caller(tmp_path: Path):
    quota = {"concurrent_requests": 1}
    entries = {"roles": ["admin"], "quota": quota}, {"roles": ["admin"]}
    server, (one, many) = limited(tmp_path, *entries)
    with server, server.http() as upload, connect(server, token=many) as other:

        def status() -> int:
            with server.http() as another:
                return another.get("/v1/models", Authorization=f"Bearer {one}").status

        # It is in progress until its body has come.
        upload.connection.putrequest("PUT", "/v1/models/m")
        upload.connection.putheader("Authorization", f"Bearer {one}")
        upload.connection.putheader("Content-Length", str(len(MODEL)))
        upload.connection.endheaders()
        wait_for(lambda: status() == 429, "the place to be taken")
        with connect(server, token=one) as first, pytest.raises(blindai.ServerError) as refused:
            first.models.list()
        assert "quota.concurrent_requests" in refused.value.fact
        other.models.list()
        upload.connection.send(MODEL)
        assert upload.connection.getresponse().status == 201
        wait_for(lambda: status() == 200, "the place to be free")


def test_models_and_their_bytes_are_counted_by_owner(tmp_path: Path):
    few, small = {"models": 1}, {"model_bytes": len(MODEL) * 2 - 1}
    entries = [{"roles": ["upload"], "quota": quota} for quota in (few, small)]
    server, (one, two) = limited(tmp_path, *entries)
    with server, connect(server, token=one) as first, connect(server, token=two) as second:
        for client, name in ((first, "a"), (second, "b")):
            client.models.upload(MODEL, name=f"{name}1")
            # What is there already takes no room.
            client.models.upload(MODEL, name=f"{name}1")
            for refused in (f"{name}2", f"{name}1"):
                with pytest.raises(blindai.ServerError, match=r"quota-exceeded.*quota\.model"):
                    client.models.upload(MODEL, name=refused, version="2")
            client.models.delete(f"{name}1")
            client.models.upload(MODEL, name=f"{name}2")
        # Too large at all: refused by what is announced, or when it has come so far.
        large = bytes(len(MODEL) * 2)
        for body in (large, iter([large])):
            with server.http() as http:
                authorization = f"Bearer {two}"
                answer = http.request("PUT", "/v1/models/c", body, Authorization=authorization)
            assert (answer.status, answer.json["code"]) == (429, "quota-exceeded")
            assert "Retry-After" not in answer.headers


def test_a_tenant_is_one_on_all_connections_and_batches_with_nobody_else(tmp_path: Path):
    # Each batch waits until it is full: two requests of one tenant, on two connections.
    batching = {"engine.batching": {"max_rows": 2, "max_delay_ms": 30_000}}
    roles = {"roles": ["infer"]}, {"roles": ["infer"]}, {"roles": ["admin"]}
    server, (one, two, admin) = limited(tmp_path, *roles, **batching)
    with server, connect(server, token=admin) as client, ThreadPoolExecutor(4) as pool:
        client.models.upload(telltale(), name="telltale")

        def run(token: str, value: float) -> float:
            with connect(server, token=token) as own:
                return float(own.infer("telltale", {"x": np.full(1, value, np.float32)})["y"][0])

        sent = [pool.submit(run, *pair) for pair in ((one, 1), (two, 100), (one, 2), (two, 200))]
        assert [answer.result() for answer in sent] == [3, 300, 3, 300]


def telltale() -> bytes:
    """Tells each request the sum over all that it was computed with."""
    from onnx import helper

    nodes = [
        helper.make_node("ReduceSum", ["x", "axes"], ["sum"], keepdims=1),
        helper.make_node("Mul", ["x", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "sum"], ["y"]),
    ]
    ends = [graphs.value(name, graphs.FLOAT, ["batch"]) for name in "xy"]
    constants = {"axes": np.array([0]), "zero": np.float32(0)}
    return graphs.model(nodes, ends[:1], ends[1:], constants)


# Client certificates


def test_a_certificate_with_another_key_is_refused_in_the_handshake(
    server: Server, callers: dict[str, Caller], tmp_path: Path
):
    stranger = Caller("stranger", None, certificate=new_certificate(tmp_path, "infer"))
    with pytest.raises((ssl.SSLError, ConnectionError)):
        stranger.http(server.port).get("/v2/health/live")
    with pytest.raises(blindai.BlindAIError) as refused:
        stranger.connect(server)
    # The reset may come before the reason does.
    assert refused.value.code in ("unauthenticated", "connection-lost")
    # With the key of another, a certificate is worth nothing.
    known = callers["client-infer"].certificate
    assert known
    stolen = known.pem, stranger.certificate.key  # type: ignore[union-attr]
    with pytest.raises(blindai.InvalidInputError, match="certificate-unusable"):
        connect(server, client_certificate=stolen)
    with callers["client-infer"].connect(server) as client:
        client.models.list()


# Clients


def test_python_clients_send_a_token_and_never_show_it(server: Server, callers: dict[str, Caller]):
    token = callers["token-infer"].token
    assert token

    async def models() -> list:
        async with aio.connect(server.address, simulation=True, token=token) as client:
            assert token not in repr(client)
            return await client.models.list()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", blindai.SimulationWarning)
        listed = asyncio.run(models())
        with connect(server, token=token) as client:
            assert client.models.list() == listed
            assert token not in repr(client)
        for wrong in (token[:-1], token.upper(), "secret", ""):
            with pytest.raises(blindai.InvalidInputError) as refused:
                connect(server, token=wrong)
            assert not wrong or wrong not in str(refused.value)
    assert issubclass(blindai.AccessError, blindai.BlindAIError)


def blindai_cli(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if key != "BLINDAI_TOKEN"}
    return subprocess.run(
        [binary(), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=clean | environment,
    )


def test_the_command_line_takes_a_token_from_a_file_or_the_environment(
    server: Server, callers: dict[str, Caller], tmp_path: Path
):
    list_models = ["models", "list", "--simulation", "--server", server.address, "--json"]
    good, bad = callers["token-infer"].token, callers["unknown"].token
    assert good
    assert bad
    file = tmp_path / "token"
    file.write_text(good + "\n")
    by_file = blindai_cli(*list_models, "--token-file", file)
    assert by_file.returncode == 0, by_file.stderr
    assert json.loads(by_file.stdout) == json.loads(
        blindai_cli(*list_models, BLINDAI_TOKEN=good).stdout
    )
    # The file comes before the environment.
    assert blindai_cli(*list_models, "--token-file", file, BLINDAI_TOKEN=bad).returncode == 0
    certificate = callers["client-infer"].certificate
    assert certificate
    shown = ["--client-cert", certificate.pem, "--client-key", certificate.key]
    assert blindai_cli(*list_models, *shown).returncode == 0
    for environment in ({}, {"BLINDAI_TOKEN": bad}, {"BLINDAI_TOKEN": "nonsense"}):
        done = blindai_cli(*list_models, **environment)
        assert done.returncode != 0
        assert bad not in done.stderr + done.stdout
        assert "nonsense" not in done.stderr + done.stdout
    assert "unauthenticated" in blindai_cli(*list_models).stderr


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_the_bench_sends_a_token(
    server: Server, callers: dict[str, Caller], tmp_path: Path, protocol: str
):
    file = tmp_path / "token"
    file.write_text(callers["token-infer"].token or "")
    load = ["--requests", "5", "--warmup", "0s", "--protocol", protocol, "--json"]
    subject = ["load", "--simulation", "--server", server.address, "--token-file", file]
    with callers["token-admin"].connect(server) as client:
        client.models.upload(MODEL, name="load")
        done = blindai_cli("bench", *subject, *load)
        client.models.delete("load")
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    assert (measured["requests"], measured["failed"]) == (5, 0)


def test_token_new_shows_a_token_once_and_writes_an_entry(tmp_path: Path):
    arguments = ["--name", "me", "--roles", "infer,upload", "--models", "a,b-*"]
    done = blindai_cli("token", "new", *arguments, "--expires", "2040-01-31")
    token, entry = done.stdout.strip(), done.stderr
    assert re.fullmatch(r"blindai_[0-9a-f]{72}", token)
    assert token not in entry
    assert sha256(token) in entry
    folder = tmp_path / "server"
    server = Server(folder)
    with (folder / "blindai.toml").open("a") as config:
        config.write(entry)
    with server, connect(server, token=token) as client:
        client.models.upload(MODEL, name="b-1")
        assert "me may infer, upload; others may do nothing" in server.log
    assert blindai_cli("token", "new").stdout != blindai_cli("token", "new").stdout
    for wrong in (["--roles", "root"], ["--name", "a b"], ["--expires", "soon"]):
        done = blindai_cli("token", "new", *wrong)
        assert done.returncode != 0
        assert done.stdout == ""


def test_the_proxy_hands_tokens_on_and_may_have_one_of_its_own(
    server: Server, callers: dict[str, Caller], tmp_path: Path
):
    infer, admin = callers["token-infer"].token, callers["token-admin"].token
    assert infer
    assert admin
    file = tmp_path / "token"
    file.write_text(infer)
    with (
        Proxy(tmp_path / "without", server.address) as without,
        Proxy(tmp_path / "own", server.address, "--token-file", str(file)) as own,
    ):
        for proxy in (without, own):
            proxy.wait_until(forwards=True)
        as_admin = {"Authorization": f"Bearer {admin}"}
        unknown = {"Authorization": f"Bearer {callers['unknown'].token}"}
        assert without.get("/v1/models").status == 401
        assert without.get("/v1/models", **as_admin).status == 200
        assert own.get("/v1/models").status == 200
        assert own.request("DELETE", "/v1/models/nothing").status == 403
        # Who brings a token is who it says, known or not.
        assert own.request("DELETE", "/v1/models/nothing", **as_admin).status == 404
        assert own.get("/v1/models", **unknown).status == 401
        basic = base64.b64encode(b"user:password").decode()
        assert own.get("/v1/models", Authorization=f"Basic {basic}").status == 401
        for proxy in (without, own):
            assert "blindai_" not in proxy.log
