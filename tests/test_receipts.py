"""Receipts: asked for over every protocol, verified offline, tampered with, and checked by a script
that is not ours."""

from __future__ import annotations

import asyncio
import base64
import json
import queue
import re
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cbor2
import graphs
import ml_dtypes
import numpy as np
import pytest
import triton
import tritonclient.grpc
import tritonclient.http
from conftest import connect
from support import PATIENCE, ROOT, Server, binary

import blindai
from blindai import Receipt, aio

NONCE = "0badcafe" * 8
X = np.array([1.5, -2.0, 3.25], np.float32)
HEADER = "blindai-receipt"


@pytest.fixture
def same(client: blindai.Client, model: str) -> str:
    client.models.upload(graphs.identity(), name=model)
    return model


def verify(receipt: Receipt, **expected) -> blindai.Report:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", blindai.SimulationWarning)
        return receipt.verify(simulation=True, **expected)


def outcomes(report: blindai.Report) -> dict[str, str]:
    """How the checks of the receipt ended."""
    return {check.name: check.outcome for check in report.checks if "receipt" in check.name}


def refused(receipt: Receipt, **expected) -> str:
    """The code of a receipt that does not hold."""
    with pytest.raises(blindai.AttestationError) as error:
        verify(receipt, **expected)
    assert isinstance(error.value, blindai.ReceiptError) == error.value.code.startswith("receipt-")
    return error.value.code


# Python


def test_an_inference_has_a_receipt(client: blindai.Client, same: str, tmp_path: Path):
    plain = client.infer(same, {"x": X})
    assert isinstance(plain, dict)
    assert plain.receipt is None
    result = client.infer(same, {"x": X}, receipt=True)
    assert result["y"].tolist() == X.tolist()
    receipt = result.receipt
    model = client.models.get(same)
    assert (receipt.kind, receipt.model_name, receipt.model_version) == ("infer", same, "1")
    assert receipt.model_digest == model.digest
    assert len(receipt.nonce) == 32
    [x], [y] = receipt.inputs, receipt.outputs
    assert (x.name, y.name) == ("x", "y")
    assert (x.dtype, x.shape) == ("FP32", (3,))
    assert x.digest == y.digest

    receipt.save(tmp_path / "r.cbor")
    assert {path.name for path in tmp_path.iterdir()} == {"r.cbor", "r.evidence.json"}
    kept = Receipt.load(tmp_path / "r.cbor")
    assert kept == receipt
    report = verify(kept, inputs={"x": X}, outputs=result, model=model, nonce=receipt.nonce)
    assert report.verdict == "trusted"
    assert report.simulated
    assert "proves nothing" in str(report)
    checks = outcomes(report)
    for not_asked in ("receipt_kind", "receipt_model_accepted"):
        assert checks.pop(not_asked) == "skipped"
    assert set(checks.values()) == {"pass"}
    assert {check.name for check in report.checks} >= {"quote", "report_data", "receipt_signature"}


def test_no_receipt_takes_the_evidence_of_another(tmp_path: Path):
    names = ["x.2026-11-25", "x.2026-11-26", "y.cbor", "z"]
    for name in names:
        Receipt(b"r", name).save(tmp_path / name)
    for name in names:
        assert Receipt.load(tmp_path / name).evidence == name
    assert (tmp_path / "y.evidence.json").is_file()


def test_what_is_not_given_is_skipped(client: blindai.Client, same: str):
    receipt = client.infer(same, {"x": X}, receipt=True).receipt
    checks = outcomes(verify(receipt))
    skipped = {name for name, outcome in checks.items() if outcome == "skipped"}
    given = ("input", "output", "model", "model_accepted", "nonce", "kind")
    assert skipped == {f"receipt_{name}" for name in given}


def test_each_thing_that_does_not_match_has_its_code(client: blindai.Client, same: str):
    result = client.infer(same, {"x": X}, receipt=True)
    receipt = result.receipt
    other = X.copy()
    other[1] += 1
    for array in (other, X[:2], X.reshape(1, 3), X.astype(np.float64)):
        assert refused(receipt, inputs={"x": array}) == "receipt-input"
        assert refused(receipt, outputs={"y": array}) == "receipt-output"
    assert refused(receipt, inputs={"y": X}) == "receipt-input"
    assert refused(receipt, model="sha256:" + "00" * 32) == "receipt-model"
    assert refused(receipt, nonce=b"another") == "receipt-nonce"
    tampered = bytearray(bytes(receipt))
    tampered[-1] ^= 1
    assert refused(Receipt(bytes(tampered), receipt.evidence)) == "receipt-signature"
    assert refused(Receipt(b"nothing", receipt.evidence)) == "receipt-malformed"
    with pytest.raises(blindai.PolicyError) as missing:
        receipt.verify()
    assert missing.value.code == "policy-missing"
    with pytest.raises(blindai.ReceiptError):
        _ = Receipt(b"nothing", receipt.evidence).kind


def test_what_only_its_type_makes_a_tensor(client: blindai.Client, model: str):
    client.models.upload(graphs.identity(graphs.STRING), name=model)
    result = client.infer(model, {"x": ["a", "ü"]}, receipt=True)
    verify(result.receipt, inputs={"x": ["a", "ü"]}, outputs=result)
    assert refused(result.receipt, inputs={"x": ["a", "u"]}) == "receipt-input"
    client.models.upload(graphs.identity(graphs.TensorProto.BFLOAT16), name=model)
    x = X.astype(ml_dtypes.bfloat16)
    result = client.infer(model, {"x": x}, receipt=True)
    verify(result.receipt, inputs={"x": X.tolist()}, outputs=result)


@pytest.mark.parametrize("elements", [0, 1, 150_000, 1_000_000])
def test_every_size(client: blindai.Client, same: str, elements: int):
    x = np.arange(elements, dtype=np.float32)
    result = client.infer(same, {"x": x}, receipt=True)
    verify(result.receipt, inputs={"x": x}, outputs=result)


def test_an_upload_has_a_receipt(client: blindai.Client, model: str, tmp_path: Path):
    path = tmp_path / "model.onnx"
    path.write_bytes(graphs.identity())
    # New, and there already.
    for _ in range(2):
        held = client.models.upload(path, name=model, receipt=True)
        assert held.receipt.kind == "upload"
        assert (held.receipt.inputs, held.receipt.outputs) == ((), ())
        checks = outcomes(verify(held.receipt, model=path, nonce=held.receipt.nonce))
        assert checks["receipt_model"] == "pass"
        assert refused(held.receipt, inputs={"x": X}) == "receipt-input"
    assert client.models.upload(path, name=model).receipt is None


def test_with_asyncio(server: Server, client: blindai.Client, same: str):
    async def ask() -> tuple[blindai.Outputs, blindai.Model]:
        async with aio.connect(server.address, simulation=True) as own:
            result = await own.infer(same, {"x": X}, receipt=True)
            held = await own.models.upload(graphs.identity(), name=same, receipt=True)
            return result, held

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", blindai.SimulationWarning)
        result, held = asyncio.run(ask())
    verify(result.receipt, inputs={"x": X}, outputs=result)
    verify(held.receipt, model=held)


# Protocols


def kept(server: Server, text: str | bytes) -> Receipt:
    """A receipt from an answer, with the evidence that the server gives to anybody."""
    with server.http() as http:
        evidence = http.get("/v1/attestation").body.decode()
    return Receipt(base64.b64decode(text, validate=True), evidence)


def body(array: np.ndarray = X, **parameters) -> dict:
    """A request as JSON."""
    shape, data = list(array.shape), array.tolist()
    tensor = {"name": "x", "datatype": "FP32", "shape": shape, "data": data}
    return {"inputs": [tensor], "parameters": parameters}


def test_rest_with_a_header(server: Server, same: str):
    path = f"/v2/models/{same}/infer"
    with server.http() as http:
        answer = http.request("POST", path, body(), blindai_receipt=NONCE)
        binary_ = http.request("POST", path, body(binary_data_output=True), blindai_receipt="true")
        plain = http.request("POST", path, body())
    assert answer.json["outputs"][0]["data"] == X.tolist()
    assert "parameters" not in answer.json
    assert HEADER not in plain.headers
    receipt = kept(server, answer.headers[HEADER])
    verify(receipt, inputs={"x": X}, outputs={"y": X}, nonce=bytes.fromhex(NONCE))
    receipt = kept(server, binary_.headers[HEADER])
    assert receipt.nonce is None
    verify(receipt, inputs={"x": X}, outputs={"y": X})
    assert refused(receipt, nonce=bytes.fromhex(NONCE)) == "receipt-nonce"


def test_rest_with_a_parameter(server: Server, same: str):
    path = f"/v2/models/{same}/infer"
    with server.http() as http:
        answer = http.request("POST", path, body(receipt=NONCE))
        both = http.request("POST", path, body(receipt=True), blindai_receipt=NONCE)
        off = http.request("POST", path, body(receipt=False))
    assert HEADER not in answer.headers
    receipt = kept(server, answer.json["parameters"]["receipt"])
    verify(receipt, inputs={"x": X}, outputs={"y": X}, nonce=bytes.fromhex(NONCE))
    assert "parameters" not in both.json
    assert kept(server, both.headers[HEADER]).nonce == bytes.fromhex(NONCE)
    assert "parameters" not in off.json


@pytest.mark.parametrize(
    "text", ["", "0", "xyz", "false", "00" * 65], ids=["none", "half", "letters", "false", "long"]
)
def test_what_is_no_nonce_is_refused(server: Server, same: str, text: str):
    with server.http() as http:
        for path, method, content in (
            (f"/v2/models/{same}/infer", "POST", body()),
            (f"/v1/models/{same}", "PUT", graphs.identity()),
        ):
            answer = http.request(method, path, content, blindai_receipt=text)
            assert (answer.status, answer.json["code"]) == (400, "invalid-request")
            assert text not in answer.json["fact"] or len(text) < 2
    with server.http() as http:
        answer = http.request("POST", f"/v2/models/{same}/infer", body(receipt=text))
        assert (answer.status, answer.json["code"]) == (400, "invalid-request")


def test_more_inputs_than_fit_are_refused_before_they_are_digested(server: Server, same: str):
    tensors = [{"name": f"{i}", "datatype": "INT8", "shape": [0], "data": []} for i in range(1025)]
    with server.http() as http:
        path = f"/v2/models/{same}/infer"
        answer = http.request("POST", path, {"inputs": tensors}, blindai_receipt="true")
    assert (answer.status, answer.json["code"]) == (400, "invalid-request")
    assert "1025" in answer.json["fact"]


def test_an_upload_over_rest(server: Server, client: blindai.Client, model: str):
    with server.http() as http:
        path = f"/v1/models/{model}"
        answer = http.request("PUT", path, graphs.identity(), blindai_receipt=NONCE)
    assert answer.status == 201
    receipt = kept(server, answer.headers[HEADER])
    verify(receipt, model=answer.json["digest"], nonce=bytes.fromhex(NONCE))
    assert receipt.kind == "upload"


@pytest.mark.parametrize("module", [tritonclient.http, tritonclient.grpc], ids=["http", "grpc"])
def test_tritonclient_gets_one(server: Server, client: blindai.Client, same: str, module):
    oip = triton.connect(module, server, client)
    try:
        asked = {"receipt": NONCE}
        result = oip.infer(same, oip.inputs(x=X), parameters=asked)
        ranked = oip.outputs("y", class_count=2)
        classes = oip.infer(same, oip.inputs(x=X), outputs=ranked, parameters=asked)
        plain = oip.infer(same, oip.inputs(x=X)).get_response()
    finally:
        oip.close()
    receipt = kept(server, parameter(result.get_response()))
    verify(receipt, inputs={"x": X}, outputs={"y": X}, nonce=bytes.fromhex(NONCE))
    # What was sent is what the receipt is about.
    receipt = kept(server, parameter(classes.get_response()))
    texts = [text.decode() for text in classes.as_numpy("y").tolist()]
    verify(receipt, outputs={"y": texts})
    assert not (plain.get("parameters") if isinstance(plain, dict) else plain.parameters)


def parameter(response) -> str:
    """The receipt in an answer of `tritonclient`."""
    if isinstance(response, dict):
        return response["parameters"]["receipt"]
    return response.parameters["receipt"].string_param


def test_a_stream_brings_them(server: Server, client: blindai.Client, same: str):
    oip = triton.connect(tritonclient.grpc, server, client)
    answers: queue.Queue = queue.Queue()
    try:
        oip.client.start_stream(lambda result, error: answers.put((result, error)))
        for i in range(3):
            asked = {"receipt": f"{i:02x}"}
            oip.client.async_stream_infer(same, oip.inputs(x=X + i), parameters=asked)
        for i in range(3):
            result, error = answers.get(timeout=PATIENCE)
            assert error is None
            receipt = kept(server, parameter(result.get_response()))
            verify(receipt, inputs={"x": X + i}, outputs={"y": X + i}, nonce=bytes([i]))
    finally:
        oip.client.stop_stream()
        oip.close()


def test_requests_computed_together_have_their_own(tmp_path: Path):
    batching = {"max_rows": 16, "max_delay_ms": 50, "strict": False}
    sections = {"engine.batching": batching, "metrics": {"enabled": True}}
    with Server(tmp_path / "server", **sections) as server, connect(server) as client:
        client.models.upload(graphs.add(["batch", "n"]), name="m")

        def ask(number: int) -> blindai.Outputs:
            return client.infer("m", own(number), receipt=True)

        with ThreadPoolExecutor(16) as pool:
            results = list(pool.map(ask, range(64)))
        for number, result in enumerate(results):
            assert result["y"].tolist() == [[number + 1.0] * 3]
            verify(result.receipt, inputs=own(number), outputs=result)
            another = own(number + 1)
            assert refused(result.receipt, inputs=another) == "receipt-input"
        assert len({result.receipt.nonce for result in results}) == 64


def own(number: int) -> dict[str, np.ndarray]:
    return {"a": np.full((1, 3), number, np.float32), "b": np.ones((1, 3), np.float32)}


def test_nothing_of_it_is_logged(tmp_path: Path):
    log = {"level": "debug", "requests": True}
    with Server(tmp_path / "server", log=log) as server, connect(server) as client:
        client.models.upload(graphs.identity(), name="m", receipt=True)
        receipt = client.infer("m", {"x": X}, receipt=True).receipt
        with server.http() as http:
            http.request("POST", "/v2/models/m/infer", body(), blindai_receipt=NONCE)
            http.request("POST", "/v2/models/m/infer", body(), blindai_receipt="no " + NONCE)
            http.request("POST", "/v2/models/m/infer", body(receipt="no " + NONCE))
        [x] = receipt.inputs
        secrets = [receipt.nonce.hex(), NONCE, x.digest.removeprefix("sha256:")]
        secrets.append(base64.b64encode(bytes(receipt)).decode()[-40:])
        assert "POST" in server.log or "infer" in server.log
        for secret in secrets:
            assert secret not in server.log


# Offline, on the command line


@dataclass
class Scene:
    """A receipt on disk, whose server is gone."""

    folder: Path
    receipt: Path
    evidence: Path
    other_evidence: Path

    def run(self, *arguments: str | Path, receipt: Path | None = None, code: int = 0) -> dict:
        """`blindai receipt verify`; its JSON."""
        command = [binary(), "receipt", "verify", receipt or self.receipt, "--json"]
        accept = [] if "--policy" in arguments else ["--simulation"]
        done = run([*command, *accept, *arguments], self.folder)
        assert done.returncode == code, done
        return json.loads(done.stdout) if done.stdout else {}

    def rejected(self, *arguments: str | Path, receipt: Path | None = None) -> str:
        said = self.run(*arguments, receipt=receipt, code=1)
        assert said["verdict"] == "rejected"
        return said["code"]


def run(command: list, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(part) for part in command]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("receipts")
    (folder / "m.onnx").write_bytes(graphs.split())
    np.save(folder / "a.npy", X)
    np.save(folder / "b.npy", X + 1)
    np.save(folder / "wrong.npy", X + 2)
    with Server(folder / "first") as server:
        to = ["--server", server.address, "--simulation"]
        upload = ["models", "upload", "m.onnx", "--receipt", "upload.cbor"]
        infer = ["infer", "m", "--input", "a=a.npy", "--input", "b=b.npy"]
        infer += ["--output-dir", "out", "--receipt", "r.cbor"]
        for command in (upload, infer):
            done = run([binary(), *command, *to], folder)
            assert done.returncode == 0, done
    with Server(folder / "second") as server, server.http() as http:
        (folder / "other.json").write_bytes(http.get("/v1/attestation").body)
    evidence = folder / "r.evidence.json"
    return Scene(folder, folder / "r.cbor", evidence, folder / "other.json")


ALL = ["--input", "a=a.npy", "--input", "b=b.npy", "--output", "sum=out/sum.npy"]
ALL += ["--output", "difference=out/difference.npy", "--model", "m.onnx"]


def test_offline_all_holds(scene: Scene):
    said = scene.run(*ALL)
    assert (said["verdict"], said["subject"]) == ("trusted", "receipt")
    receipts = [check for check in said["checks"] if "receipt" in check["name"]]
    skipped = {check["name"] for check in receipts if check["outcome"] == "skipped"}
    assert skipped == {"receipt_kind", "receipt_nonce", "receipt_model_accepted"}
    nonce = said["receipt"]["nonce"]
    assert scene.run("--nonce", nonce)["verdict"] == "trusted"
    assert said["verified_at"] == said["receipt"]["issued_at"]
    named = scene.run(
        "--evidence", scene.evidence, "--model-digest", said["receipt"]["model_digest"]
    )
    assert named["verdict"] == "trusted"
    upload = scene.run("--model", "m.onnx", receipt=scene.folder / "upload.cbor")
    assert upload["receipt"]["kind"] == "upload"


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        ("receipt-input", ["--input", "a=wrong.npy"]),
        ("receipt-input", ["--input", "a=a.npy", "--input", "b=a.npy"]),
        ("receipt-input", ["--input", "c=a.npy"]),
        ("receipt-output", ["--output", "sum=out/difference.npy"]),
        ("receipt-model", ["--model", "a.npy"]),
        ("receipt-model", ["--model-digest", "00" * 32]),
        ("receipt-nonce", ["--nonce", "00"]),
        ("receipt-key", ["--evidence", "other.json"]),
    ],
)
def test_offline_what_does_not_match_has_its_code(scene: Scene, code: str, arguments: list[str]):
    assert scene.rejected(*arguments) == code


def test_offline_the_evidence_has_its_time(scene: Scene):
    made = scene.run()["receipt"]["issued_at"]
    assert scene.run("--at", str(made + 60))["verdict"] == "trusted"
    assert scene.rejected("--at", str(made - 1000)) == "claims-not-yet-valid"
    assert scene.rejected("--at", str(made + 4000)) == "claims-expired"


def test_offline_a_changed_receipt_is_rejected(scene: Scene):
    whole = scene.receipt.read_bytes()
    changed = scene.folder / "changed.cbor"
    codes = set()
    for i in (0, 2, 6, 60, 100, len(whole) // 2, len(whole) - 1):
        changed.write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
        codes.add(scene.rejected("--evidence", scene.evidence, receipt=changed))
    changed.write_bytes(whole[:-1])
    codes.add(scene.rejected("--evidence", scene.evidence, receipt=changed))
    assert codes <= {"receipt-malformed", "receipt-key", "receipt-signature"}
    assert {"receipt-malformed", "receipt-signature"} <= codes


def test_offline_changed_evidence_is_rejected(scene: Scene):
    document = json.loads(scene.evidence.read_text())
    claims = cbor2.loads(base64.b64decode(document["claims"]))
    claims["blindai-receipt-key"] = bytes(32)
    changed = scene.folder / "changed.json"
    forged = {**document, "claims": base64.b64encode(cbor2.dumps(claims)).decode()}
    changed.write_text(json.dumps(forged))
    assert scene.rejected("--evidence", changed) == "report-data-mismatch"
    quote = bytearray(base64.b64decode(document["quote"]))
    quote[100] ^= 1
    changed.write_text(json.dumps({**document, "quote": base64.b64encode(quote).decode()}))
    assert scene.rejected("--evidence", changed) == "quote-signature"


def test_offline_the_policy_decides(scene: Scene):
    policy = scene.folder / "policy.toml"
    pinned = run([binary(), "policy", "init", "--from", scene.evidence], scene.folder)
    assert pinned.returncode == 0, pinned
    policy.write_text(pinned.stdout)
    assert scene.rejected("--policy", policy) == "trust-root-simulation"
    assert scene.run("--policy", policy, "--simulation")["verdict"] == "trusted"
    [measurement] = re.findall(r'^mrenclave = \["([0-9a-f]{64})"', pinned.stdout, re.MULTILINE)
    policy.write_text(pinned.stdout.replace(measurement, "00" * 32))
    assert scene.rejected("--policy", policy, "--simulation") == "measurement-mismatch"


def test_offline_what_cannot_be_judged(scene: Scene, tmp_path: Path):
    (tmp_path / "r.cbor").write_bytes(scene.receipt.read_bytes())
    # No evidence beside it, then no policy.
    assert scene.run(receipt=tmp_path / "r.cbor", code=2) == {}
    done = run([binary(), "receipt", "verify", scene.receipt], scene.folder)
    assert done.returncode == 2
    assert "--policy" in done.stderr
    assert scene.run("--input", "a=missing.npy", code=2) == {}


def test_show_says_what_stands_there(scene: Scene):
    done = run([binary(), "receipt", "show", scene.receipt], scene.folder)
    assert done.returncode == 0, done
    for word in ("receipt of infer", "difference", "FP32", "[3]"):
        assert word in done.stdout
    assert "verified" in done.stderr
    done = run([binary(), "receipt", "show", "upload.cbor", "--json"], scene.folder)
    assert json.loads(done.stdout)["kind"] == "upload"
    done = run([binary(), "receipt", "show", "m.onnx"], scene.folder)
    assert done.returncode == 2


# A script that is not ours


@pytest.fixture(scope="module")
def script(scene: Scene) -> Path:
    """The script of docs/receipts.md, as it stands there."""
    page = (ROOT / "docs" / "receipts.md").read_text()
    [text] = re.findall(
        r"^```python\n(# check_receipt\.py.*?)^```$", page, re.DOTALL | re.MULTILINE
    )
    path = scene.folder / "check_receipt.py"
    path.write_text(text)
    return path


def check(script: Path, scene: Scene, *arguments: str | Path) -> set[str]:
    """What the script says has failed."""
    done = run([sys.executable, script, *arguments], scene.folder)
    lines = done.stdout.splitlines()
    assert len(lines) >= 6, done
    failed = {line[5:] for line in lines if line.startswith("FAIL")}
    assert done.returncode == bool(failed), done
    return failed


def test_the_script_of_the_page_agrees(scene: Scene, script: Path):
    kept = (scene.receipt, scene.evidence)
    tensors = [part for part in ALL[:8] if part != "--model"]
    assert check(script, scene, *kept, *tensors) == set()
    assert check(script, scene, "upload.cbor", "upload.evidence.json") == set()
    assert check(script, scene, *kept, "--input", "a=wrong.npy") == {"inputs a"}
    assert check(script, scene, *kept, "--output", "sum=a.npy") == {"outputs sum"}
    failed = check(script, scene, scene.receipt, scene.other_evidence)
    assert failed >= {"header", "signature", "TLS key"}


def test_the_script_digests_every_type(
    client: blindai.Client, model: str, script: Path, scene: Scene
):
    kinds = (np.bool_, np.uint8, np.int16, np.uint32, np.int64, np.float16, np.float64, np.str_)
    for kind in kinds:
        array = np.array([[0, 1, 1]]).astype(kind)
        given = array.astype(object) if kind is np.str_ else array
        onnx_kind = graphs.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(given.dtype))
        client.models.upload(graphs.identity(onnx_kind, ["n", "m"]), name=model)
        result = client.infer(model, {"x": given}, receipt=True)
        result.receipt.save(scene.folder / "typed.cbor")
        np.save(scene.folder / "typed.npy", array)
        kept = ("typed.cbor", "typed.evidence.json")
        given = ("--input", "x=typed.npy", "--output", "y=typed.npy")
        assert check(script, scene, *kept, *given) == set(), kind
