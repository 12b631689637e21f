"""What deploy/ says: run where it can be run here, and held to its own rules where it cannot."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import graphs
import numpy as np
import pytest
import tomllib
from conftest import SUMMARY
from s3 import write_credentials
from support import PATIENCE, Server, binary, descendants, has_ended, wait_for

from tools import onnxruntime

ROOT = Path(__file__).resolve().parent.parent
DOCKER = ROOT / "deploy/docker"
GRAMINE = ROOT / "deploy/gramine"
CVM = ROOT / "deploy/cvm"
UNIT = CVM / "mkosi.extra/usr/lib/systemd/system/blindai.service"
NOBODY = 65532


def only_with(there: bool, what: str) -> pytest.MarkDecorator:
    """For a test that needs what may not be here; the end of the run tells what was not tried."""
    if not there:
        SUMMARY.setdefault("not tried here", []).append(what)
    return pytest.mark.skipif(not there, reason=what)


as_root = only_with(os.geteuid() == 0, "running the image and the unit's rights: needs root")
with_systemd = only_with(bool(shutil.which("systemd-analyze")), "the unit: needs systemd-analyze")


# A new network's loopback is down. SIOCSIFFLAGS, IFF_UP.
LOOPBACK_UP = """
import fcntl, os, socket, struct, sys
fcntl.ioctl(socket.socket(), 0x8914, struct.pack("16sH22x", b"lo", 1))
os.execvp(sys.argv[1], sys.argv[1:])
"""


# A server that speaks S3 in this network, with a bucket; it ends with whom it is beside.
S3_BESIDE = """
import boto3, contextlib, ctypes, os, subprocess, sys, time
end_with_me = lambda: ctypes.CDLL(None).prctl(1, 9)
moto = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "5000"]
quiet = subprocess.DEVNULL
subprocess.Popen(moto, stdout=quiet, stderr=quiet, preexec_fn=end_with_me)
keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
s3 = boto3.client("s3", endpoint_url="http://127.0.0.1:5000", region_name="us-east-1", **keys)
for _ in range(600):
    with contextlib.suppress(Exception):
        s3.create_bucket(Bucket="kept")
        break
    time.sleep(0.1)
os.execvp(sys.argv[1], sys.argv[1:])
"""


class Container:
    """The image's file system, run as `docker run` would, in a network that only it is in."""

    def __init__(self, root: Path, tls: Path, log: Path):
        self.root, self.tls, self.log = root, tls, log
        # What starts something else in the network first.
        self.before: list[str] = []

    @property
    def server(self) -> int:
        """The process id of the server itself, which is number one in there."""
        for pid in descendants(self.process.pid):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                seen = status(pid)
                if seen["Name"] == "blindai" and seen["NSpid"].split()[-1] == "1":
                    return pid
        return 0

    def blindai(self, *arguments: object) -> str:
        """Run the client: outside of the container, but in its network."""
        done = self._blindai(*arguments)
        assert done.returncode == 0, f"{done.stderr}\nthe server's log:\n{self.log.read_text()}"
        return done.stdout

    @contextlib.contextmanager
    def running(
        self, before: Callable[[], None] | None = None, **options: str
    ) -> Iterator[Container]:
        """Started with `--simulation`, and stopped as `docker stop` does."""
        run = [DOCKER / "rootfs.sh", "run", self.root, self.tls, "--simulation"]
        network = ["unshare", "--net", "--", sys.executable, "-c", LOOPBACK_UP]
        command = [str(word) for word in (*network, *self.before, *run)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, preexec_fn=before, env={**os.environ, **options}
            )
        try:
            wait_for(self._is_ready, "the container to be ready")
            yield self
            os.kill(self.server, signal.SIGTERM)
            assert self.process.wait(PATIENCE) == 0, self.log.read_text()
        finally:
            self.process.kill()

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        return bool(self.server) and self._blindai("attest", "--simulation").returncode == 0

    def _blindai(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = ["nsenter", "--net", "--target", str(self.process.pid), str(binary())]
        command += [str(argument) for argument in arguments]
        if "attest" in command:
            command.insert(command.index("attest") + 1, "localhost:50051")
        return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def container(tmp_path: Path) -> Container:
    """An image built of the program under test, and an empty folder for certificates."""
    environment = {
        "PATH": os.environ["PATH"],
        "BLINDAI": str(binary()),
        "ONNXRUNTIME": str(onnxruntime.fetch()),
    }
    root, tls = tmp_path / "rootfs", tmp_path / "tls"
    subprocess.run([DOCKER / "rootfs.sh", "build", root], env=environment, check=True)
    tls.mkdir()
    return Container(root, tls, tmp_path / "log")


def answer(container: Container, folder: Path) -> np.ndarray:
    """Upload a model that adds, and have it add."""
    (folder / "add.onnx").write_bytes(graphs.add([2]))
    for name, values in {"a": [1, 2], "b": [10, 20]}.items():
        np.save(folder / f"{name}.npy", np.array(values, np.float32))
    container.blindai("models", "upload", folder / "add.onnx", "--name", "add", "--simulation")
    inputs = [f"--input={name}={folder / name}.npy" for name in "ab"]
    container.blindai("infer", "add", *inputs, "--output-dir", folder, "--simulation")
    return np.load(folder / "y.npy")


def status(pid: int) -> dict[str, str]:
    """What Linux says of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


@as_root
def test_the_image_has_all_that_serving_needs(container: Container, tmp_path: Path):
    with container.running():
        assert "trusted" in container.blindai("attest", "--simulation", "--json")
        assert answer(container, tmp_path).tolist() == [11, 22]
        server = status(container.server)
        assert server["Uid"].split() == [str(NOBODY)] * 4
        assert server["Groups"] == ""
        assert int(server["CapEff"], 16) == int(server["CapBnd"], 16) == 0
        assert server["NoNewPrivs"] == "1"
    # An empty folder of root's, as Docker makes it: the pair is made there, for the server alone.
    key = container.tls / "host_server.key"
    assert (key.stat().st_uid, key.stat().st_mode & 0o777) == (NOBODY, 0o600)
    assert "filtered system calls, namespaces of their own" in container.log.read_text()


@as_root
def test_a_folder_of_somebody_stays_his(container: Container, tmp_path: Path):
    os.chown(container.tls, 1234, 1234)
    with container.running(before=deny_user_namespaces):
        assert answer(container, tmp_path).tolist() == [11, 22]
        assert status(container.server)["Uid"].split() == ["1234"] * 4
    assert container.tls.stat().st_uid == 1234
    # Docker's own filter refuses what this one refuses, and the server says what is missing.
    missing = "without a user of their own, namespaces of their own"
    assert f"filtered system calls; {missing}" in container.log.read_text()


@as_root
def test_it_needs_no_more_rights_than_compose_gives_it(container: Container):
    compose = (DOCKER / "compose.yaml").read_text()
    (names,) = re.findall(r"cap_drop: \[ALL\]\n +cap_add: \[([A-Z, ]+)\]", compose)
    given = ",".join(["-all", *(f"+{name.lower()}" for name in names.split(", "))])
    with container.running(CAPABILITIES=given):
        assert status(container.server)["Uid"].split() == [str(NOBODY)] * 4


@as_root
def test_it_starts_as_the_user_that_it_is_given(container: Container):
    os.chown(container.tls, 4321, 4321)
    with container.running(CONTAINER_USER="4321"):
        assert status(container.server)["Uid"].split() == ["4321"] * 4
    assert (container.tls / "host_server.key").stat().st_uid == 4321


@as_root
def test_files_of_root_are_given_away_but_never_through_a_link(
    container: Container, tmp_path: Path
):
    with container.running():
        pass
    for file in container.tls.iterdir():
        os.chown(file, 0, 0)
    precious = tmp_path / "precious"
    precious.write_text("")
    with container.running():
        assert container.blindai("attest", "--simulation")
    pem = container.tls / "host_server.pem"
    pem.unlink()
    pem.symlink_to(precious)
    with pytest.raises(AssertionError, match=r"host_server\.pem"), container.running():
        pass
    assert precious.stat().st_uid == 0


@as_root
def test_the_image_opens_an_object_store(container: Container, tmp_path: Path):
    # Also over http: the client of the store is made with the authorities of the system, or not.
    s3 = boto3.client("s3", endpoint_url="http://127.0.0.1:5000", region_name="us-east-1")
    credentials = Path(write_credentials(tmp_path, s3, "secret"))
    shutil.copy(credentials, container.root / "etc/blindai/credentials.toml")
    with (container.root / "etc/blindai/blindai.toml").open("a") as configuration:
        configuration.write(
            '[store]\nlocation = "s3://kept/here"\nsimulated_key = "/root/tls/key"\n'
            'credentials = "/etc/blindai/credentials.toml"\n'
        )
    container.before = [sys.executable, "-c", S3_BESIDE]
    with container.running():
        assert answer(container, tmp_path).tolist() == [11, 22]
        listed = json.loads(container.blindai("models", "list", "--simulation", "--json"))
        assert [model["kept"] for model in listed["models"]] == ["simulated"]


AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"


def test_every_image_has_the_authorities_that_object_stores_are_verified_by():
    files = [line.split() for line in (DOCKER / "files.txt").read_text().splitlines()]
    assert ["0644", AUTHORITIES, AUTHORITIES] in files
    mounts = {mount["path"]: mount.get("uri") for mount in manifest()["fs"]["mounts"]}
    assert mounts[AUTHORITIES] == f"file:/opt/blindai{AUTHORITIES}"
    packages = (CVM / "mkosi.conf").read_text().partition("\nPackages=")[2].partition("\n#")[0]
    assert "ca-certificates" in packages.split()


def test_the_image_is_made_of_what_was_run_and_of_pinned_versions():
    lines = (DOCKER / "Dockerfile").read_text().splitlines()
    images = [line.split()[1] for line in lines if line.startswith("FROM ")]
    last = lines[len(lines) - lines[::-1].index("FROM scratch") :]
    assert [line for line in last if line.startswith(("COPY", "ADD", "RUN"))] == [
        "COPY --from=build /rootfs /"
    ]
    assert any("deploy/docker/rootfs.sh build /rootfs" in line for line in lines)
    for image in images[:-1]:
        assert re.fullmatch(r"\w+:\d+\.\d+\.\d+[\w.-]*(@sha256:[0-9a-f]{64})?", image)
    # The compiler is one that the code says it builds with.
    least = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["rust-version"]
    version = re.match(r"rust:(\d+)\.(\d+)", images[0]).groups()
    assert tuple(map(int, version)) >= tuple(map(int, least.split(".")))


# What Gramine 1.9 reads, from the page "Manifest syntax" of its documentation. A type, the set of
# what is allowed, a table, or a list of one of these.
SIZE = re.compile(r"[1-9]\d*[KMG]?")
URI = re.compile(r"file:\S+")
ABSOLUTE = re.compile(r"/\S*")
MANIFEST = {
    "loader": {
        "entrypoint": {"uri": URI, "sha256": str},
        "argv": [str],
        "env": str,
        "log_level": {"none", "error", "warning", "debug", "trace", "all"},
        "uid": int,
        "gid": int,
    },
    "libos": {"entrypoint": ABSOLUTE, "check_invalid_pointers": bool},
    "fs": {
        "mounts": [
            {
                "type": {"chroot", "encrypted", "tmpfs"},
                "path": ABSOLUTE,
                "uri": URI,
                "key_name": str,
            }
        ],
        "root": {"type": {"chroot", "encrypted", "tmpfs"}, "uri": URI},
        "start_dir": str,
    },
    "sys": {
        "brk": {"max_size": SIZE},
        "disallow_subprocesses": bool,
        "enable_extra_runtime_domain_names_conf": bool,
        "enable_sigterm_injection": bool,
        "fds": {"limit": int},
        "stack": {"size": SIZE},
    },
    "sgx": {
        "allowed_files": [URI],
        "cpu_features": str,
        "debug": bool,
        "edmm_enable": bool,
        "enclave_size": SIZE,
        "file_check_policy": {"strict", "allow_all_but_log"},
        "isvprodid": int,
        "isvsvn": int,
        "max_threads": int,
        "remote_attestation": {"none", "dcap"},
        "trusted_files": [URI],
        "use_exinfo": bool,
    },
}


def faults(value: Any, rule: Any, where: str = "") -> list[str]:
    """What in a manifest is not as Gramine reads it."""
    if isinstance(rule, dict):
        if not isinstance(value, dict):
            return [f"{where} is no table"]
        unknown = [f"{where}.{key} is not known" for key in value if key not in rule]
        known = (faults(value[key], rule[key], f"{where}.{key}") for key in value if key in rule)
        return [*unknown, *itertools.chain.from_iterable(known)]
    if isinstance(rule, list):
        if not isinstance(value, list):
            return [f"{where} is no list"]
        each = (faults(v, rule[0], f"{where}[{i}]") for i, v in enumerate(value))
        return list(itertools.chain.from_iterable(each))
    if isinstance(rule, set):
        right = isinstance(value, str) and value in rule
    elif isinstance(rule, re.Pattern):
        right = isinstance(value, str) and rule.fullmatch(value) is not None
    elif where.endswith((".env", ".cpu_features")):
        right = isinstance(value, dict) and all(isinstance(v, str) for v in value.values())
    else:
        right = type(value) is rule
    return [] if right else [f"{where} = {value!r}"]


def manifest(**paths: str) -> dict[str, Any]:
    """The manifest as `gramine-manifest` renders it; the template uses nothing but these names."""
    text = (GRAMINE / "blindai.manifest.template").read_text()
    known = {
        "gramine.libos": "/gramine/libsysdb.so",
        "gramine.runtimedir()": "/gramine/runtime/glibc",
    }
    for name, path in {**known, "rootfs": "/opt/blindai", **paths}.items():
        text = text.replace("{{ " + name + " }}", path)
    assert "{{" not in text
    assert "{%" not in text
    return tomllib.loads(text)


def test_the_manifest_is_one_that_gramine_reads():
    assert faults(manifest(), MANIFEST) == []
    wrong = manifest()
    wrong["sgx"] |= {"enclave_size": "16 GB", "debugg": True, "allowed_files": "file:x"}
    assert faults(wrong, MANIFEST) == [
        ".sgx.debugg is not known",
        ".sgx.enclave_size = '16 GB'",
        ".sgx.allowed_files is no list",
    ]


def test_the_enclave_takes_nothing_from_its_host_that_is_not_measured():
    read = manifest()
    sgx, loader = read["sgx"], read["loader"]
    # Neither environment nor arguments; nothing that Gramine itself calls insecure.
    assert "insecure" not in json.dumps(read)
    assert "passthrough" not in json.dumps(read)
    assert loader["log_level"] == "error"
    assert loader["argv"] == ["blindai", "serve", "--config", "/etc/blindai/blindai.toml"]
    assert (sgx["debug"], sgx["remote_attestation"]) == (False, "dcap")
    assert "allowed_files" not in sgx
    assert sgx.get("file_check_policy", "strict") == "strict"
    for mount in read["fs"]["mounts"]:
        if mount.get("type") != "tmpfs":
            trusted = (mount["uri"], mount["uri"] + "/")
            assert any(uri in sgx["trusted_files"] for uri in trusted), mount
        # The server derives keys of its own from the sealing keys: no second use of them.
        assert "key_name" not in mount


def test_the_enclave_has_every_library_that_the_program_needs():
    mounts = manifest()["fs"]["mounts"]
    there = {Path(mount["path"]).name for mount in mounts if "uri" in mount}
    of_gramine = {"libc.so.6", "libm.so.6", "libdl.so.2", "librt.so.1", "libpthread.so.0"}
    needed = set()
    for program in (binary(), onnxruntime.fetch()):
        said = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
        needed |= set(re.findall(r"^\t(\S+) => /", said, re.M))
    assert {"libgcc_s.so.1", "libstdc++.so.6"} <= needed
    assert needed <= there | of_gramine
    folders = manifest()["loader"]["env"]["LD_LIBRARY_PATH"].split(":")
    assert {str(Path(m["path"]).parent) for m in mounts if ".so" in m["path"]} <= {
        *folders,
        "/usr/bin",
    }


@with_systemd
def test_systemd_reads_the_unit_and_finds_it_closed(tmp_path: Path):
    # The program is in the image and not on this machine.
    unit = tmp_path / "blindai.service"
    unit.write_text(UNIT.read_text().replace("/usr/bin/blindai", str(binary())))
    verify = ["systemd-analyze", "verify", "--man=no", unit]
    done = subprocess.run(verify, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    security = ["systemd-analyze", "security", "--offline=true", "--threshold=35", unit]
    done = subprocess.run(security, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@as_root
def test_with_the_rights_of_the_unit_workers_have_every_barrier(tmp_path: Path):
    (names,) = re.findall(r"^CapabilityBoundingSet=(.+)$", UNIT.read_text(), re.M)
    rights = ",".join(["-all", *(f"+{n.removeprefix('CAP_').lower()}" for n in names.split())])
    server = Server(tmp_path, engine={"isolation": "full"})
    server.before = ["setpriv", "--inh-caps=-all", f"--bounding-set={rights}", "--no-new-privs"]
    with server, server.http() as http:
        assert http.request("PUT", "/v1/models/add", graphs.add([1])).status == 201
        (worker,) = server.workers()
        assert status(worker)["Uid"].split()[0] not in ("0", status(server.pid)["Uid"].split()[0])
        # Somebody else's process, and yet the server can end it.
        assert http.request("DELETE", "/v1/models/add").status < 300
        wait_for(lambda: has_ended(worker), "the worker to end")
    assert "without" not in next(line for line in server.log.splitlines() if "workers" in line)


def test_the_configurations_of_deploy_are_read_by_the_server(tmp_path: Path):
    for file in sorted((ROOT / "deploy").rglob("blindai.toml")):
        # With the one setting that ends the start right after the file was understood.
        text = file.read_text() + "[nonsense]\n"
        (tmp_path / "blindai.toml").write_text(text)
        command = [binary(), "serve", "--config", tmp_path / "blindai.toml"]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=PATIENCE
        )
        assert done.returncode == 3
        assert done.stderr.count("\n") == 1, done.stderr
        assert "nonsense" in done.stderr, f"{file}: {done.stderr}"


def deny_user_namespaces() -> None:
    """A filter that refuses `unshare` a user namespace, for this process and all it starts.

    As Docker's default profile does without CAP_SYS_ADMIN, which refuses every `unshare`.
    """
    unshare, x86_64, user = 272, 0xC000003E, 0x1000_0000
    load, equal, bits, give = 0x20, 0x15, 0x45, 0x06
    allow, refuse = 0x7FFF_0000, 0x0005_0001
    program = b"".join(
        struct.pack("=HBBI", *instruction)
        for instruction in (
            (load, 0, 0, 4),
            (equal, 0, 5, x86_64),
            (load, 0, 0, 0),
            (equal, 0, 3, unshare),
            (load, 0, 0, 16),
            (bits, 0, 1, user),
            (give, 0, 0, refuse),
            (give, 0, 0, allow),
        )
    )
    instructions = ctypes.create_string_buffer(program, len(program))
    filters = struct.pack("@HP", len(program) // 8, ctypes.addressof(instructions))
    set_seccomp, with_filter = 22, 2
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(set_seccomp, with_filter, ctypes.c_char_p(filters), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "no filter of system calls")


def test_the_list_of_contents_is_whole_and_the_same_each_time():
    first, again = (
        subprocess.check_output([sys.executable, "tools/sbom.py"], cwd=ROOT) for _ in range(2)
    )
    assert first == again
    listed = json.loads(first)
    components = {entry["bom-ref"]: entry for entry in listed["components"]}
    assert len(components) == len(listed["components"])
    named = {*components, listed["metadata"]["component"]["bom-ref"]}
    for edge in listed["dependencies"]:
        assert edge["ref"] in named
        assert set(edge.get("dependsOn", ())) <= named
    assert {edge["ref"] for edge in listed["dependencies"]} == named
    # What is linked leaves the names of its files in its panics.
    paths = re.findall(
        rb"/registry/src/[^/]+/([\w-]+)-(\d+\.\d+\.[\w.+-]+)/", binary().read_bytes()
    )
    linked = {f"pkg:cargo/{name.decode()}@{version.decode()}" for name, version in paths}
    shipped = {name for name, entry in components.items() if entry["scope"] == "required"}
    assert len(linked) > 50
    assert linked - shipped == set()
    assert f"pkg:pypi/onnxruntime@{onnxruntime.VERSION}" in shipped
    for name in shipped:
        if "/blindai-" not in name:
            assert re.fullmatch("[0-9a-f]{64}", components[name]["hashes"][0]["content"])
