"""`blindai proxy`: clients that know nothing of attestation, in front of real servers."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import graphs
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from support import PATIENCE, Answer, Server, binary, cpu_seconds, free_ports, wait_for
from tritonclient.utils import InferenceServerException

SECRET = "kept-to-itself"
HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


class Proxy:
    """A `blindai proxy --simulation` on a port of its own."""

    def __init__(self, folder: Path, server: str, *arguments: str, address: str = "127.0.0.1"):
        folder.mkdir(parents=True, exist_ok=True)
        (self.port,) = free_ports(1)
        self.log_path = folder / "proxy.log"
        listen = ["--listen", f"{address}:{self.port}"]
        command = [binary(), "proxy", "--server", server, "--simulation", *listen, *arguments]
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def request(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """As any client would; underscores in header names stand for dashes."""
        if isinstance(body, dict):
            body = json.dumps(body).encode()
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        with contextlib.closing(self.connect()) as connection:
            connection.request(method, path, body, names)
            return Answer(connection.getresponse())

    def get(self, path: str, **headers: str) -> Answer:
        return self.request("GET", path, **headers)

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)

    def socket(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), PATIENCE)

    def status(self) -> dict:
        return self.get("/").json

    def wait_until(self, **expected: Any) -> dict:
        """The status, once it has these values."""

        def reached() -> dict | None:
            assert self.process.poll() is None, f"the proxy ended:\n{self.log}"
            with contextlib.suppress(ConnectionError):
                status = self.status()
                if expected.items() <= status.items():
                    return status
            return None

        return wait_for(reached, f"{expected}; the log:\n{self.log}")

    def stop(self) -> None:
        """It must end well, and have said nothing of what went through it."""
        self.process.send_signal(signal.SIGTERM)
        try:
            assert self.process.wait(PATIENCE) == 0, self.log
        finally:
            self.process.kill()
        assert "panicked" not in self.log, self.log
        assert SECRET not in self.log

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


@pytest.fixture(scope="module")
def proxy(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with Proxy(tmp_path_factory.mktemp("proxy"), server.address) as proxy:
        proxy.wait_until(forwards=True)
        yield proxy


@pytest.fixture
def add(proxy: Proxy) -> Iterator[str]:
    """The name of a model that adds."""
    name = f"{SECRET}-add"
    assert proxy.request("PUT", f"/v1/models/{name}", graphs.add(["n"])).status in (200, 201)
    yield name
    assert proxy.request("DELETE", f"/v1/models/{name}").status == 200


@pytest.mark.parametrize("module", [tritonclient.http, tritonclient.grpc])
def test_clients_of_the_protocol_work_through_it(proxy: Proxy, add: str, module):
    with module.InferenceServerClient(f"127.0.0.1:{proxy.port}") as oip:
        assert oip.is_server_ready()
        assert oip.is_model_ready(add)
        inputs = []
        for name, values in (("a", [1, 2, 3]), ("b", [10, 20, 30])):
            inputs.append(module.InferInput(name, [3], "FP32"))
            inputs[-1].set_data_from_numpy(np.array(values, np.float32))
        answer = oip.infer(add, inputs)
        (output,) = [o["name"] for o in oip_metadata(oip, module, add)["outputs"]]
        assert answer.as_numpy(output).tolist() == [11, 22, 33]
        with pytest.raises(InferenceServerException, match="model-not-found"):
            oip.infer("absent", inputs)


def oip_metadata(oip, module, name: str) -> dict:
    as_json = {"as_json": True} if module is tritonclient.grpc else {}
    return oip.get_model_metadata(name, **as_json)


def vector(name: str, *values: float) -> dict:
    return {"name": name, "datatype": "FP32", "shape": [len(values)], "data": list(values)}


def assert_refused(answer: Answer, status: int, code: str) -> dict:
    error = answer.json
    assert (answer.status, error["code"]) == (status, code), error
    assert error["error"].startswith(f"{code}: {error['fact']}")
    assert answer.headers["content-type"] == "application/json"
    return error


def test_a_client_of_the_protocol_needs_to_know_nothing(proxy: Proxy, add: str):
    assert proxy.get("/-/ready").status == 200
    assert proxy.get("/v2/health/ready").json["ready"] is True
    assert proxy.get("/v2").json["name"] == "blindai"
    request = {"inputs": [vector("a", 1, 2), vector("b", 10, 20)]}
    answer = proxy.request("POST", f"/v2/models/{add}/infer", request)
    assert answer.json["outputs"][0]["data"] == [11, 22]
    # The server's own errors come back as they are.
    missing = proxy.get(f"/v2/models/{SECRET}-missing")
    assert assert_refused(missing, 404, "model-not-found")["request_id"]


def test_binary_tensors_and_chunks_pass_as_they_are(proxy: Proxy, add: str):
    array = np.arange(100_000, dtype=np.float32)
    entries = [
        {**vector(name), "shape": [array.size], "parameters": {"binary_data_size": array.nbytes}}
        for name in "ab"
    ]
    for entry in entries:
        del entry["data"]
    head = json.dumps({"inputs": entries, "parameters": {"binary_data_output": True}}).encode()
    body = head + array.tobytes() * 2
    chunks = (body[at : at + 10_000] for at in range(0, len(body), 10_000))
    length = {"Inference_Header_Content_Length": str(len(head))}
    for sent in (body, chunks):
        answer = proxy.request("POST", f"/v2/models/{add}/infer", sent, **length)
        assert answer.status == 200
        split = int(answer.headers["inference-header-content-length"])
        assert np.array_equal(np.frombuffer(answer.body[split:], np.float32), array * 2)


def test_a_caller_may_wait_to_be_asked_for_the_body(proxy: Proxy):
    with proxy.socket() as caller:
        caller.sendall(
            b"POST /v2/models/none/infer HTTP/1.1\r\nHost: localhost\r\n"
            b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n"
        )
        assert caller.recv(100).startswith(b"HTTP/1.1 100 Continue\r\n")
        caller.sendall(b"{}")
        assert caller.recv(100).startswith(b"HTTP/1.1 400")


def test_connections_are_used_again(proxy: Proxy):
    with contextlib.closing(proxy.connect()) as connection:
        for _ in range(3):
            connection.request("GET", "/v2")
            assert Answer(connection.getresponse()).status == 200
        assert connection.sock is not None


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        # DNS rebinding: the page's own name resolves to this machine.
        ({"Host": "evil.example"}, 421, "host-refused"),
        ({"Host": "evil.example:8080"}, 421, "host-refused"),
        ({"Host": "10.0.0.1"}, 421, "host-refused"),
        # A page that sends a request to localhost, and one that embeds it.
        ({"Origin": "https://evil.example"}, 403, "origin-refused"),
        ({"Origin": "null"}, 403, "origin-refused"),
        ({"Sec-Fetch-Site": "cross-site"}, 403, "origin-refused"),
        ({"Sec-Fetch-Site": "same-site"}, 403, "origin-refused"),
        ({"Upgrade": "websocket", "Connection": "Upgrade"}, 501, "upgrade-refused"),
        ({"Expect": "a-miracle"}, 417, "expectation-refused"),
    ],
)
def test_what_is_not_a_program_of_this_machine_is_refused(
    proxy: Proxy, headers: dict[str, str], status: int, code: str
):
    error = assert_refused(proxy.get("/v1/models", **headers), status, code)
    assert error["remedy"]


def test_calls_of_grpc_are_refused_in_its_words(proxy: Proxy):
    answer = proxy.get("/x", Content_Type="application/grpc+proto", Origin="https://evil.example")
    assert (answer.status, answer.headers["grpc-status"]) == (200, "7")
    assert answer.headers["grpc-message"].startswith("origin-refused: ")


def test_a_browser_may_show_the_page_and_an_old_client_may_offer_http2(proxy: Proxy):
    assert proxy.get("/", Sec_Fetch_Site="none", **HTML).status == 200
    upgrade = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c"}
    assert proxy.get("/v2", HTTP2_Settings="AAMAAABkAAQAAP__", **upgrade).status == 200


def test_pages_of_an_allowed_origin_may_read(server: Server, tmp_path: Path):
    ours = "https://app.example"
    with Proxy(tmp_path, server.address, "--allow-origin", ours) as proxy:
        proxy.wait_until(forwards=True)
        answer = proxy.get("/v2", Origin=ours, Sec_Fetch_Site="cross-site")
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, ours)
        asks = {"Access-Control-Request-Method": "PUT", "Access-Control-Request-Headers": "x-a"}
        answer = proxy.request("OPTIONS", "/v1/models/m", Origin=ours, **asks)
        assert answer.status == 204
        assert answer.headers["access-control-allow-methods"] == "PUT"
        assert answer.headers["access-control-allow-headers"] == "x-a"
        assert_refused(proxy.get("/v2", Origin="https://other.example"), 403, "origin-refused")


def test_only_its_own_pages_are_its_own(proxy: Proxy):
    for path in ("/", "/-/ready"):
        assert_refused(proxy.request("POST", path, b""), 405, "method-not-allowed")
    assert_refused(proxy.get("/-/other"), 404, "route-not-found")
    assert proxy.request("HEAD", "/").status == 200


class Page(HTMLParser):
    """What a browser would see and load."""

    def __init__(self, html: str):
        super().__init__()
        self.text = ""
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "style")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_says_what_is_trusted(proxy: Proxy):
    answer = proxy.get("/", **HTML)
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    page = Page(answer.body.decode())
    report = proxy.status()["report"]
    assert "Simulation: nothing is protected" in page.text
    assert report["measurements"]["mrenclave"] in page.text
    assert report["claims"]["tls_spki_sha256"] in page.text
    for check in report["checks"]:
        assert check["name"] in page.text


def test_the_page_loads_and_runs_nothing(proxy: Proxy):
    answer = proxy.get("/", **HTML)
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "frame-ancestors 'none'" in policy
    assert answer.headers["cache-control"] == "no-store"
    page = Page(answer.body.decode())
    assert "script" not in page.tags
    assert not page.links


def test_programs_read_the_same_as_json(proxy: Proxy, server: Server):
    status = proxy.get("/", Accept="application/json").json
    assert (status["state"], status["simulated"]) == ("simulated", True)
    assert status["server"] == server.address
    assert status["report"]["verdict"] == "trusted"
    assert status["verified_at"] < status["next_verification"] < status["valid_until"]
    assert status["last_failure"] is None


def test_a_policy_that_the_server_does_not_satisfy(server: Server, tmp_path: Path):
    policy = tmp_path / "policy.toml"
    policy.write_text(f'tee = ["sgx"]\n[sgx]\nmrenclave = ["{"ab" * 32}"]\n')
    with Proxy(tmp_path, server.address, "--policy", str(policy)) as proxy:
        status = proxy.wait_until(state="refused", forwards=False)
        assert status["last_failure"]["code"] == "measurement-mismatch"
        assert re.fullmatch("sha256:[0-9a-f]{64}", status["policy"])
        for path in ("/v2", "/-/ready"):
            error = assert_refused(proxy.get(path), 503, "measurement-mismatch")
            assert error["remedy"]
        page = Page(proxy.get("/", **HTML).body.decode())
        assert "nothing is forwarded" in page.text
        assert "measurement-mismatch" in page.text
    assert "nothing is forwarded: measurement-mismatch" in proxy.log


def test_a_server_that_comes_goes_and_comes_again(tmp_path: Path):
    server = Server(tmp_path / "server")
    with Proxy(tmp_path, server.address, "--reverify", "1") as proxy:

        def is_missed() -> bool:
            failure = proxy.status()["last_failure"]
            return failure is not None and failure["code"] == "connect-failed"

        proxy.wait_until(state="refused")
        assert is_missed()
        assert_refused(proxy.get("/v2"), 503, "connect-failed")
        keys = []
        for _ in range(2):
            server.start()
            status = proxy.wait_until(forwards=True)
            keys.append(status["report"]["claims"]["tls_spki_sha256"])
            assert proxy.get("/v2").status == 200
            server.stop()
            proxy.wait_until(forwards=False)
            wait_for(is_missed, "the server to be missed")
            assert_refused(proxy.get("/v2"), 503, "connect-failed")
        assert keys[0] != keys[1]


def test_a_server_that_is_killed_while_it_works(tmp_path: Path):
    server = Server(tmp_path / "server").start()
    with Proxy(tmp_path, server.address) as proxy, ThreadPoolExecutor() as pool:
        server.wait_until_ready()
        proxy.wait_until(forwards=True)
        path = f"/v2/models/{SECRET}"
        assert proxy.request("PUT", f"/v1/models/{SECRET}", graphs.loop()).status == 201
        rounds = {"name": "rounds", "datatype": "INT64", "shape": [], "data": [1 << 40]}
        running = pool.submit(proxy.request, "POST", f"{path}/infer", {"inputs": [rounds]})
        wait_for(
            lambda: any(cpu_seconds(pid) > 0.3 for pid in server.workers()), "the model to run"
        )
        assert server.process
        server.process.kill()
        server.process.wait()
        assert_refused(running.result(), 502, "connection-lost")
        assert_refused(proxy.get("/v2"), 502, "connect-failed")


def test_a_caller_who_trickles_holds_up_nobody(proxy: Proxy, add: str):
    with proxy.socket() as slow:
        slow.sendall(f"POST /v2/models/{add}/infer HTTP/1.1\r\nHost: localhost\r\n".encode())
        assert proxy.get("/v2").status == 200
        slow.sendall(b"Content-Length: 1000000\r\n\r\n{")
        assert proxy.get("/v2").status == 200


@pytest.mark.parametrize(
    "bytes_sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"GET / HTTP/1.1\r\nHost: localhost\r\nA: " + b"x" * 200_000,
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
        b"Content-Length: 5\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 100,
    ],
    ids=["tls", "long head", "two lengths", "length and chunks", "no host", "broken http/2"],
)
def test_what_is_no_request_is_cut_off(proxy: Proxy, bytes_sent: bytes):
    with proxy.socket() as caller:
        # It may be cut off at any of these steps; after a reset, shutdown says "not connected".
        with contextlib.suppress(ConnectionError):
            caller.sendall(bytes_sent)
        with contextlib.suppress(OSError):
            caller.shutdown(socket.SHUT_WR)
        received = b""
        with contextlib.suppress(ConnectionError):
            while data := caller.recv(65536):
                received += data
    assert b" 200 " not in received
    assert proxy.get("/-/ready").status == 200


def test_work_in_progress_ends_before_the_proxy_does(server: Server, tmp_path: Path):
    with Proxy(tmp_path, server.address) as proxy, ThreadPoolExecutor() as pool:
        proxy.wait_until(forwards=True)
        assert proxy.request("PUT", f"/v1/models/{SECRET}", graphs.loop()).status == 201
        before = {pid: cpu_seconds(pid) for pid in server.workers()}
        rounds = {"name": "rounds", "datatype": "INT64", "shape": [], "data": [2_000_000]}
        path = f"/v2/models/{SECRET}/infer"
        running = pool.submit(proxy.request, "POST", path, {"inputs": [rounds]})
        wait_for(
            lambda: any(cpu_seconds(pid) > used + 0.1 for pid, used in before.items()),
            "the model to run",
        )
        proxy.process.send_signal(signal.SIGTERM)
        assert running.result().status == 200
        assert proxy.process.wait(PATIENCE) == 0
    with server.http() as connection:
        assert connection.request("DELETE", f"/v1/models/{SECRET}").status == 200


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--simulation", "--listen", "0.0.0.0:0"], "--dangerous-plain-text-beyond-this-machine"),
        (["--simulation", "--listen", "[::]:0"], "--dangerous-plain-text-beyond-this-machine"),
        (["--simulation", "--listen", "everywhere"], "--listen"),
        (["--simulation", "--server", "https://localhost"], "address-invalid"),
        (["--simulation", "--allow-origin", "*"], "https://app.example.org"),
        (["--simulation", "--reverify", "0"], "--reverify"),
        (["--policy", "/nonexistent"], "/nonexistent"),
        ([], "--policy FILE"),
    ],
)
def test_what_cannot_be_meant_is_refused_at_the_start(arguments: list[str], said: str):
    command = [binary(), "proxy", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2
    assert said in done.stderr


def test_a_port_that_is_taken_is_named(proxy: Proxy):
    command = [binary(), "proxy", "--simulation", "--listen", f"127.0.0.1:{proxy.port}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1:{proxy.port}" in done.stderr


def test_beyond_this_machine_it_warns_and_answers_to_named_hosts(server: Server, tmp_path: Path):
    more = ["--allow-host", "proxy.internal", "--dangerous-plain-text-beyond-this-machine"]
    with Proxy(tmp_path, server.address, *more, address="0.0.0.0") as proxy:
        proxy.wait_until(forwards=True)
        assert "WARNING: whoever reaches" in proxy.log
        assert proxy.get("/v2", Host="proxy.internal:80").status == 200
        assert proxy.get("/v2", Host="10.0.0.1").status == 200
        assert_refused(proxy.get("/v2", Host="evil.example"), 421, "host-refused")
