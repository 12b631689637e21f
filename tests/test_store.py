"""Uploaded models that are kept: over restarts, upgrades and kills, and only for their server."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import io
import json
import os
import random
import secrets
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import graphs
import numpy as np
import pytest
from conftest import SUMMARY, connect
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand
from s3 import serving, write_credentials
from support import PATIENCE, Http, Server, binary
from test_access import new_token
from tink import proto_keyset_format, secret_key_access, streaming_aead
from tink.proto import aes_gcm_hkdf_streaming_pb2, common_pb2, tink_pb2

import blindai

MODEL, STORE = 7, 8
SIGNER = b"BlindAI simulated enclave signer"
MARK = f"canary{secrets.token_hex(6)}"
ROUNDS = 200 if os.environ.get("BLINDAI_SOAK") else 20


def adding(number: float, padding: int = 0) -> bytes:
    """`y = x + number`: its answer says which content gave it."""
    return graphs.heavy(np.array([number] + [0] * padding, np.float32))


def answer(client: blindai.Client, name: str, version: str | None = None) -> float:
    """What a model of `adding` adds."""
    return float(client.infer(name, {"x": np.float32(0)}, version=version)["y"][0])


def keeping(folder: Path, sections: dict[str, Any] | None = None, **store) -> Server:
    """A server that keeps its models beside its own folder."""
    places = {"location": str(folder / "store"), "simulated_key": str(folder / "key")}
    return Server(folder / "server", store={**places, **store}, **(sections or {}))


def objects(folder: Path, kind: str) -> list[Path]:
    """The files of the store of one kind."""
    return sorted((folder / "store").glob(kind))


def contents(folder: Path) -> list[Path]:
    return objects(folder, "content/*")


def refusal(server: Server, code: int = STORE) -> str:
    """Why a server does not start, once it has ended with the code for it."""
    server.start()
    assert server.process
    assert server.process.wait(60) == code, server.log
    return server.log


def held(client: blindai.Client) -> list[tuple[str, str]]:
    return [(model.name, model.version) for model in client.models.list()]


# Restart


def test_models_are_there_after_a_restart(tmp_path: Path):
    server = keeping(tmp_path)
    with server, connect(server) as client:
        client.models.upload(adding(1), name="one")
        client.models.upload(adding(2), name="one")
        before = client.models.upload(adding(3), name="other", version="x")
        assert before.kept == "simulated"
    with server, connect(server) as client:
        assert held(client) == [("one", "1"), ("one", "2"), ("other", "x")]
        after = client.models.get("other")
        assert not after.loaded
        assert (after.digest, after.signature) == (before.digest, before.signature)
        assert after.uploaded_at == before.uploaded_at
        assert [answer(client, "one"), answer(client, "one", "1")] == [2, 1]
        assert client.models.get("one").loaded
        # What is held is not stored again.
        assert client.models.upload(adding(1), name="one").version == "1"
        assert len(contents(tmp_path)) == 3


def test_what_was_deleted_or_replaced_stays_so(tmp_path: Path):
    server = keeping(tmp_path)
    with server, connect(server) as client:
        for number in (1, 2, 3):
            client.models.upload(adding(number), name="one")
        client.models.upload(adding(4), name="other")
        client.models.upload(adding(5), name="one", version="1", replace=True)
        client.models.delete("one", version="3")
        client.models.delete("other")
        assert len(contents(tmp_path)) == 2
    with server, connect(server) as client:
        # The replaced version keeps its place; the number of the deleted is not given out again.
        assert held(client) == [("one", "1"), ("one", "2")]
        assert [answer(client, "one"), answer(client, "one", "1")] == [2, 5]
        assert client.models.upload(adding(6), name="one").version == "4"


def test_a_number_that_somebody_chose_is_not_given_out_again(tmp_path: Path):
    server = keeping(tmp_path)
    with server, connect(server) as client:
        client.models.upload(adding(1), name="one")
        client.models.upload(adding(2), name="one", version="2")
        client.models.delete("one", version="2")
    with server, connect(server) as client:
        assert client.models.upload(adding(3), name="one").version == "3"


def configured(folder: Path, name: str, number: float) -> dict[str, Any]:
    """A configuration that reads a model from a file."""
    file = folder / f"{name}.onnx"
    file.write_bytes(adding(number))
    return {"models": [{"name": name, "path": str(file)}]}


def test_a_file_of_the_configuration_goes_before_what_was_kept(tmp_path: Path):
    server = keeping(tmp_path, configured(tmp_path, "one", 1))
    with server, connect(server) as client:
        # It is the file again after a restart, so nothing is kept.
        replaced = client.models.upload(adding(2), name="one", version="1", replace=True)
        assert (replaced.kept, contents(tmp_path)) == (None, [])
        assert answer(client, "one") == 2
        assert client.models.upload(adding(3), name="one").kept == "simulated"
    with server, connect(server) as client:
        assert [answer(client, "one", "1"), answer(client, "one")] == [1, 3]
        assert held(client) == [("one", "1"), ("one", "2")]
        assert client.models.upload(adding(4), name="one").version == "3"


def test_who_kept_a_name_does_not_keep_the_server_from_starting(tmp_path: Path):
    """However many models are kept, and under whatever names."""
    sections = configured(tmp_path, "one", 1)
    with keeping(tmp_path) as server, connect(server) as client:
        client.models.upload(adding(2), name="one")
        client.models.upload(adding(3), name="one")
        client.models.upload(adding(4), name="other")
    limits = {"limits": {"models": 1}}
    with keeping(tmp_path, {**sections, **limits}) as server, connect(server) as client:
        assert held(client) == [("one", "1"), ("other", "1")]
        assert [answer(client, "one"), answer(client, "other")] == [1, 4]
        assert "kept models do not answer" in server.log
        assert "models=2" in server.log
        assert len(contents(tmp_path)) == 3
    with keeping(tmp_path) as server, connect(server) as client:
        assert [answer(client, "one"), answer(client, "one", "1")] == [3, 2]
        assert "kept models do not answer" not in server.log


@pytest.mark.parametrize("version", ["1", "7"])
def test_who_had_a_name_first_does_not_keep_the_operator_from_it(tmp_path: Path, version: str):
    tokens = {role: new_token() for role in ("upload", "admin")}
    access = [{"name": role, "roles": [role], **tokens[role][1]} for role in tokens]
    sections: dict[str, Any] = {"access": {"tokens": access}}
    with_file = sections | configured(tmp_path, "one", 1)

    def connected(server: Server, role: str) -> blindai.Client:
        return connect(server, token=tokens[role][0])

    with keeping(tmp_path, sections) as server, connected(server, "upload") as client:
        client.models.upload(adding(2), name="one", version=version)
    with keeping(tmp_path, with_file) as server:
        assert "models=1" in server.log
        with connected(server, "admin") as client:
            assert (held(client), answer(client, "one")) == ([("one", "1")], 1)
            client.models.upload(adding(3), name="one", version="2")
        with connected(server, "upload") as client:
            assert held(client) == []
            with pytest.raises(blindai.BlindAIError) as refused:
                client.models.upload(adding(4), name="one", version=version)
            assert refused.value.code == "forbidden"
    # What was uploaded beside the file is not hidden by what is older.
    with keeping(tmp_path, sections) as server, connected(server, "admin") as client:
        assert (held(client), answer(client, "one")) == ([("one", "2")], 3)
        client.models.delete("one")
    with keeping(tmp_path, sections) as server, connected(server, "upload") as client:
        assert (held(client), answer(client, "one")) == ([("one", version)], 2)


def test_a_kept_model_leaves_memory_and_comes_back(tmp_path: Path):
    with keeping(tmp_path) as server, connect(server) as client:
        client.models.upload(adding(1), name="one")
        with server.http() as http:
            path = "/v2/repository/models/one/unload"
            assert http.request("POST", path, {}).status == 200
        assert not client.models.get("one").loaded
        assert answer(client, "one") == 1


def test_without_a_store_nothing_is_kept(tmp_path: Path):
    server = Server(tmp_path / "server")
    with server, connect(server) as client:
        assert client.models.upload(adding(1), name="one").kept is None
    with server, connect(server) as client:
        assert held(client) == []


def test_every_listing_says_that_a_simulation_protects_nothing(tmp_path: Path):
    with keeping(tmp_path) as server, connect(server) as client:
        client.models.upload(adding(1), name="one")
        with server.http() as http:
            assert http.get("/v1/models").json["models"][0]["kept"] == "simulated"
        for words in (["list"], ["show", "one"]):
            command = [str(binary()), "models", *words, "--server", server.address, "--simulation"]
            shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            assert "simulated and protects nothing" in shown
        line = next(line for line in server.log.splitlines() if "store" in line.split())
        assert "protects nothing" in line


# Refusals


@contextlib.contextmanager
def other_code(folder: Path) -> Iterator[None]:
    """Servers are of another program in here: a digest of the whole file is its measurement."""
    upgrade = folder / "upgrade"
    shutil.copy(binary(), upgrade)
    with upgrade.open("ab") as file:
        file.write(b"\0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BLINDAI_BIN", str(upgrade))
        yield


def test_other_code_does_not_open_the_store(tmp_path: Path):
    server = keeping(tmp_path)
    with server, connect(server) as client:
        client.models.upload(adding(1), name="one")
    with other_code(tmp_path):
        assert "store-sealed-elsewhere" in refusal(keeping(tmp_path))
    # Nothing was taken from whom it belongs to.
    with keeping(tmp_path) as server, connect(server) as client:
        assert answer(client, "one") == 1


def test_an_upgrade_of_the_same_signer_opens_the_store(tmp_path: Path):
    server = keeping(tmp_path, seal_to="signer")
    with server, connect(server) as client:
        client.models.upload(adding(1), name="one")
    with other_code(tmp_path):
        upgraded = keeping(tmp_path, seal_to="signer")
        with upgraded, connect(upgraded) as client:
            assert answer(client, "one") == 1


def test_another_machine_does_not_open_the_store(tmp_path: Path):
    with keeping(tmp_path):
        pass
    assert "store-sealed-elsewhere" in refusal(keeping(tmp_path, simulated_key="another"))


def test_where_there_is_no_sealing_key_the_server_does_not_start(tmp_path: Path):
    server = keeping(tmp_path, {"tee": {"simulation": "tdx"}})
    log = refusal(server)
    assert "no-sealing-key" in log
    assert "tdx has no sealing key" in log
    assert not (tmp_path / "store").exists()


def test_a_changed_manifest_keeps_the_server_from_starting(tmp_path: Path):
    server = keeping(tmp_path)
    with server, connect(server) as client:
        client.models.upload(adding(1), name="one")
    (manifest,) = objects(tmp_path, "manifest-*")
    whole = manifest.read_bytes()
    cases = {
        "store-corrupt": flipped(whole, len(whole) // 2),
        "store-truncated": whole[:-1],
        "store-format": flipped(whole, 15),
        "store-sealed-elsewhere": flipped(whole, 20),
    }
    for code, changed in cases.items():
        manifest.write_bytes(changed)
        assert code in refusal(server)
    manifest.unlink()
    assert "store-manifest-missing" in refusal(server)
    manifest.write_bytes(whole)
    with server, connect(server) as client:
        assert answer(client, "one") == 1


def flipped(whole: bytes, at: int) -> bytes:
    return whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]


def test_a_changed_model_is_refused_while_others_work(tmp_path: Path):
    server = keeping(tmp_path)
    with server, connect(server) as client:
        client.models.upload(adding(1), name="one")
        (one,) = contents(tmp_path)
        client.models.upload(adding(2), name="two")
        (two,) = set(contents(tmp_path)) - {one}
    whole = one.read_bytes()
    cases = {
        "store-corrupt": flipped(whole, len(whole) // 2),
        "store-truncated": whole[:-1],
        "store-swapped": two.read_bytes(),
        "store-content-missing": None,
    }
    for code, changed in cases.items():
        if changed is None:
            one.unlink()
        else:
            one.write_bytes(changed)
        with server, connect(server) as client:
            for _ in range(2):
                with pytest.raises(blindai.BlindAIError) as caught:
                    answer(client, "one")
                assert caught.value.code == code
            assert answer(client, "two") == 2
            assert code in server.log
            # It can be put back by whoever has it.
            if changed is None:
                client.models.upload(adding(1), name="one", version="1", replace=True)


def test_a_store_that_was_put_back_is_noticed(tmp_path: Path):
    server = keeping(tmp_path, seen=str(tmp_path / "seen"))
    with server, connect(server) as client:
        client.models.upload(adding(1), name="one")
    old = tmp_path / "old"
    shutil.copytree(tmp_path / "store", old)
    with server, connect(server) as client:
        client.models.delete("one")
    shutil.rmtree(tmp_path / "store")
    shutil.copytree(old, tmp_path / "store")
    assert "store-rolled-back" in refusal(server)
    shutil.rmtree(tmp_path / "store")
    assert "store-rolled-back" in refusal(server)


def test_the_server_that_came_last_has_the_store(tmp_path: Path):
    first = keeping(tmp_path)
    with first, connect(first) as client:
        client.models.upload(adding(1), name="one")
        with Server(tmp_path / "second", store=store_of(tmp_path)) as second:
            with pytest.raises(blindai.ServerError) as caught:
                client.models.upload(adding(2), name="two")
            assert caught.value.code == "store-taken"
            with pytest.raises(blindai.ServerError):
                client.models.delete("one")
            assert (held(client), answer(client, "one")) == ([("one", "1")], 1)
            with connect(second) as other:
                other.models.upload(adding(3), name="three")
    with first, connect(first) as client:
        assert held(client) == [("one", "1"), ("three", "1")]


def store_of(folder: Path) -> dict[str, str]:
    return {"location": str(folder / "store"), "simulated_key": str(folder / "key")}


# What whoever holds the store sees


def marked() -> tuple[bytes, list[bytes]]:
    """A model full of marks, and what must not be found."""
    weights = np.frombuffer((MARK * 100_000).encode(), np.float32)
    model = graphs.heavy(weights)
    digest = hashlib.sha256(model)
    return model, [MARK.encode(), digest.digest(), digest.hexdigest().encode(), model[:32]]


def test_nothing_of_a_model_is_in_the_folder(tmp_path: Path):
    model, marks = marked()
    with keeping(tmp_path, seen=str(tmp_path / "seen")) as server, connect(server) as client:
        client.models.upload(model, name=f"name-{MARK}", version=f"version-{MARK}")
        assert sum(len(file.read_bytes()) for file in contents(tmp_path)) > len(model)
        for file in (file for file in tmp_path.rglob("*") if file.is_file()):
            text = file.read_bytes() + str(file).encode()
            assert not any(mark in text for mark in marks), file


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    """A client of a server that speaks S3."""
    with serving() as client:
        yield client


def credentials(folder: Path, s3: Any) -> str:
    """The file that names this server of S3, and a secret for it."""
    return write_credentials(folder, s3, f"secret-{MARK}")


def test_a_model_of_the_configuration_lies_in_an_object_store(tmp_path: Path, s3: Any):
    s3.create_bucket(Bucket="plain")
    s3.put_object(Bucket="plain", Key="some/m.onnx", Body=adding(1))
    entry = {
        "name": "m",
        "object": "s3://plain/some/m.onnx",
        "credentials": credentials(tmp_path, s3),
        "sha256": hashlib.sha256(adding(1)).hexdigest(),
    }
    with Server(tmp_path, models=[entry]) as server, connect(server) as client:
        assert answer(client, "m") == 1
        assert "not pinned" not in server.log
        # It can leave memory; what it comes back from may be other content by then.
        with server.http() as http:
            assert http.request("POST", "/v2/repository/models/m/unload", b"").status == 200
            assert answer(client, "m") == 1
            assert http.request("POST", "/v2/repository/models/m/unload", b"").status == 200
        s3.put_object(Bucket="plain", Key="some/m.onnx", Body=adding(2))
        with pytest.raises(blindai.BlindAIError, match="digest-mismatch"):
            answer(client, "m")
        s3.delete_object(Bucket="plain", Key="some/m.onnx")
        with pytest.raises(blindai.BlindAIError, match="model-unavailable") as missing:
            answer(client, "m")
        assert "plain" not in str(missing.value)
        assert MARK not in server.log
    server.start()
    assert server.process.wait(PATIENCE) == 7
    assert "models[0].object" in server.log
    assert "model-unavailable" in server.log


def test_a_slip_in_the_name_of_a_credential_is_told(tmp_path: Path):
    file = tmp_path / "credentials.toml"
    file.write_text('aws_secret_acces_key = "hush"\n')
    entry = {"name": "m", "object": "s3://b/m.onnx", "credentials": str(file)}
    store = {"location": "s3://b/p", "credentials": str(file)}
    for sections, code in (({"store": store}, STORE), ({"models": [entry]}, MODEL)):
        server = Server(tmp_path / f"server-{code}", **sections)
        log = refusal(server, code)
        assert "aws_secret_acces_key" in log
        assert "hush" not in log


def test_the_operator_learns_why_a_store_fails_and_callers_do_not(tmp_path: Path, s3: Any):
    file = credentials(tmp_path, s3)
    log = refusal(
        Server(tmp_path / "absent", store={"location": "s3://absent/p", "credentials": file})
    )
    assert "an object or the store failed" in log
    assert "NoSuchBucket" in log
    assert MARK not in log
    with keeping(tmp_path) as server, connect(server) as client:
        (tmp_path / "store" / "manifest-00000000000000000002").mkdir()
        with pytest.raises(blindai.ServerError) as caught:
            client.models.upload(adding(1), name="one")
        assert caught.value.code == "store-unavailable"
        assert "exists" in server.log
        assert "exists" not in str(caught.value)
        assert contents(tmp_path) == []


def test_models_are_kept_in_an_object_store(tmp_path: Path, s3: Any):
    s3.create_bucket(Bucket="models")
    file = credentials(tmp_path, s3)
    model, marks = marked()
    server = keeping(tmp_path, location="s3://models/of/mine", credentials=file)
    with server, connect(server) as client:
        client.models.upload(model, name=f"name-{MARK}")
        client.models.upload(adding(2), name="two")
        client.models.upload(adding(3, 2_000_000), name="large")
        client.models.delete("two")
    with server, connect(server) as client:
        assert [name for name, _ in held(client)] == ["large", f"name-{MARK}"]
        assert answer(client, "large") == 3
    listed = s3.list_objects_v2(Bucket="models")["Contents"]
    assert len(listed) == 3
    for entry in listed:
        body = s3.get_object(Bucket="models", Key=entry["Key"])["Body"].read()
        assert entry["Key"].startswith("of/mine/")
        assert not any(mark in body + entry["Key"].encode() for mark in marks)
    assert MARK not in server.log


def test_tink_opens_what_the_documentation_describes(tmp_path: Path):
    model = adding(7, 600_000)
    with keeping(tmp_path, seal_to="signer") as server, connect(server) as client:
        client.models.upload(model, name="one")
    key = hkdf((tmp_path / "key").read_bytes() + SIGNER, b"BlindAI sealing v1")(
        b"simulation\0models at rest", 32
    )
    derive = hkdf(key, b"BlindAI store v1")
    (file,) = objects(tmp_path, "manifest-*")
    manifest = file.read_bytes()
    head = manifest[:48]
    assert head[:16] == b"BlindAI store\0\0\1"
    assert head[16:32] == derive(b"key id", 16)
    assert int.from_bytes(head[32:40], "big") == int(file.name.removeprefix("manifest-"))
    assert int.from_bytes(head[40:], "big") == len(manifest)
    listed = json.loads(opened(derive(b"manifest", 32), manifest[48:], head))
    (entry,) = listed["entries"]
    assert entry["record"]["name"] == "one"
    assert entry["digest"] == f"sha256:{hashlib.sha256(model).hexdigest()}"
    assert entry["size_bytes"] == len(model)
    (content,) = contents(tmp_path)
    assert content.read_bytes()[:40].hex() == entry["header"]
    assert opened(derive(b"content", 32), content.read_bytes(), b"content") == model
    name = hmac.HMAC(derive(b"names", 32), hashes.SHA256())
    name.update(hashlib.sha256(model).digest() + content.read_bytes()[:40])
    assert name.finalize().hex() == content.name == entry["content"]


def hkdf(secret: bytes, salt: bytes):
    """HKDF-SHA256 of one secret, for several labels."""
    extract = hmac.HMAC(salt, hashes.SHA256())
    extract.update(secret)
    pseudorandom = extract.finalize()

    def expand(label: bytes, length: int) -> bytes:
        key = HKDFExpand(hashes.SHA256(), length, label).derive(pseudorandom)
        assert key == HKDF(hashes.SHA256(), length, salt, label).derive(secret)
        return key

    return expand


def opened(key: bytes, stream: bytes, bound_to: bytes) -> bytes:
    """The plaintext of a stream, by Google's Tink."""
    streaming_aead.register()
    of_stream = aes_gcm_hkdf_streaming_pb2.AesGcmHkdfStreamingKey(
        key_value=key,
        params=aes_gcm_hkdf_streaming_pb2.AesGcmHkdfStreamingParams(
            ciphertext_segment_size=1 << 20,
            derived_key_size=32,
            hkdf_hash_type=common_pb2.SHA256,
        ),
    )
    data = tink_pb2.KeyData(
        type_url="type.googleapis.com/google.crypto.tink.AesGcmHkdfStreamingKey",
        value=of_stream.SerializeToString(),
        key_material_type=tink_pb2.KeyData.SYMMETRIC,
    )
    only = tink_pb2.Keyset.Key(
        key_data=data, status=tink_pb2.ENABLED, key_id=1, output_prefix_type=tink_pb2.RAW
    )
    keyset = tink_pb2.Keyset(primary_key_id=1, key=[only]).SerializeToString()
    handle = proto_keyset_format.parse(keyset, secret_key_access.TOKEN)
    primitive = handle.primitive(streaming_aead.StreamingAead)
    return primitive.new_decrypting_stream(io.BytesIO(stream), bound_to).read()


# Kills


class Life:
    """What was asked of servers that are killed, and what of it was acknowledged."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.acknowledged: dict[str, float] = {}
        #: What may have happened without an answer: a name, and what it holds then.
        self.open: tuple[str, float | None] | None = None
        self.next = 1.0
        self.changes = 0
        #: Answers that nobody should have got.
        self.refused: list[int] = []

    def work(self, server: Server) -> None:
        """Upload, replace and delete until the server is gone."""
        with contextlib.suppress(OSError, http.client.HTTPException), server.http() as connection:
            while True:
                self.step(connection)

    def step(self, http: Http) -> None:
        name = self.random.choice("abcde")
        path = f"/v1/models/{name}/versions/1"
        if name in self.acknowledged and self.random.random() < 0.4:
            self.open = (name, None)
            status = http.request("DELETE", path).status
        else:
            self.next += 1
            self.open = (name, self.next)
            body = adding(self.next, self.random.choice([0, 10_000, 2_000_000]))
            status = http.request("PUT", f"{path}?replace=true", body).status
        if status not in (200, 201):
            self.refused.append(status)
            return
        self.settle(happened=True)
        self.changes += 1

    def settle(self, happened: bool) -> None:
        assert self.open
        (name, number), self.open = self.open, None
        if happened and number is not None:
            self.acknowledged[name] = number
        elif happened:
            self.acknowledged.pop(name, None)

    def check(self, server: Server) -> None:
        """Everything acknowledged is there, whole; what was open is there whole or not at all."""
        with server.http() as http:
            found = {model["name"] for model in http.get("/v1/models").json["models"]}
            if self.open:
                name, number = self.open
                is_there = name in found
                happened = number == self.added(http, name) if is_there else number is None
                self.settle(happened)
            assert found == set(self.acknowledged)
            for name in self.random.sample(sorted(found), min(2, len(found))):
                assert self.added(http, name) == self.acknowledged[name]

    def added(self, http: Http, name: str) -> float:
        inputs = [{"name": "x", "shape": [], "datatype": "FP32", "data": [0]}]
        reply = http.request("POST", f"/v2/models/{name}/infer", {"inputs": inputs})
        assert reply.status == 200, reply.body
        return reply.json["outputs"][0]["data"][0]


def kill(server: Server) -> None:
    assert server.process
    os.kill(server.pid, signal.SIGKILL)
    server.process.wait()


def test_kills_lose_nothing_and_leave_nothing_half(tmp_path: Path):
    seed = int(os.environ.get("BLINDAI_SEED") or secrets.randbits(32))
    life = Life(seed)
    print(f"BLINDAI_SEED={seed}")
    server = keeping(tmp_path, seen=str(tmp_path / "seen"))
    killed_at_start = 0
    for _ in range(ROUNDS):
        if life.random.random() < 0.25:
            server.start()
            time.sleep(life.random.uniform(0, 0.5))
            kill(server)
            killed_at_start += 1
        server.start()
        server.wait_until_ready()
        life.check(server)
        worker = threading.Thread(target=life.work, args=[server])
        worker.start()
        time.sleep(life.random.uniform(0, 0.8))
        kill(server)
        worker.join()
    with server:
        life.check(server)
        assert len(contents(tmp_path)) == len(life.acknowledged)
        assert len(objects(tmp_path, "manifest-*")) == 1
        assert not list((tmp_path / "store").rglob("*#*"))
    assert not life.refused
    assert life.changes > ROUNDS / 2
    lines = SUMMARY.setdefault("kills", [])
    lines.append(
        f"{ROUNDS} kills during changes, {killed_at_start} at start; "
        f"{life.changes} changes acknowledged, none lost"
    )
