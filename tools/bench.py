"""The speed of a request over attested TLS against the same model run in process.

    make bench                          # prints a table, writes target/bench/results.json

Both sides run ONNX Runtime 1.28.0 with the same number of threads, on this machine, in turns within
one run, because machines are noisy: blocks of calls in a row, each after a warm-up; a ratio is the
median over the pairs of blocks. `identity` copies four bytes, so its baseline is next to nothing
and ours is the price of the whole path; read its milliseconds, not its ratio. The table shows the
target of each row; a busy machine misses some.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

import blindai

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / ".cache/models"
RESULTS = ROOT / "target/bench/results.json"
THREADS = os.cpu_count() or 1
MIB = 1 << 20
# Both sides take turns, this often.
BLOCKS = 9
# ONNX Runtime's idle threads spin for some tens of milliseconds and would be in the other's way.
SPIN_SECONDS = 0.2

# By the start of a row's name: what it is judged by, and the most that it may be.
TARGETS = {
    "wav2vec2": ("ratio", 1.03),
    "resnet50": ("ratio", 1.05),
    "mobilenet": ("ratio", 1.10),
    "identity": ("ours_ms", 0.3),
    "connect": ("ours_ms", 10),
    "server during upload": ("mib", 64),
}

Inputs = dict[str, np.ndarray]


def main() -> None:
    warnings.simplefilter("ignore", blindai.SimulationWarning)
    rows = []
    with tempfile.TemporaryDirectory(prefix="blindai-bench-") as folder:
        server, address = start_server(Path(folder))
        try:
            rows += bench_upload(address, server.pid)
            rows += bench_models(address, Path(folder))
            rows.append(bench_connect(address))
        finally:
            server.terminate()
            server.wait(timeout=60)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(rows, indent=2) + "\n")
    print_table(rows)


def bench_models(address: str, folder: Path) -> list[dict]:
    identity = folder / "identity.onnx"
    write_identity(identity)
    cases = [
        ("wav2vec2 f32[1,28894]", MODELS / "wav2vec2_hello_world.onnx", 4),
        ("resnet50 f32[1,3,224,224]", MODELS / "resnet50.onnx", 12),
        ("mobilenet_v2 f32[1,3,224,224]", MODELS / "mobilenet_v2.onnx", 40),
        ("minilm i64[5,12]", MODELS / "minilm_l6_v2_sentence_embedding.onnx", 30),
        ("identity f32[1]", identity, 1000),
    ]
    with blindai.connect(address, simulation=True) as client:
        return [bench_model(client, name, path, calls) for name, path, calls in cases]


def bench_model(client: blindai.Client, name: str, path: Path, calls: int) -> dict:
    model = name.split()[0]
    session = in_process(path)
    inputs = make_inputs(session)
    client.models.upload(path, name=model, progress=False)
    ours, baseline, ratio = compare(
        lambda: client.infer(model, inputs), lambda: session.run(None, inputs), calls
    )
    client.models.delete(model)
    print(f"{name}: {ours:.3f} ms, ratio {ratio:.3f}", file=sys.stderr, flush=True)
    return row(name, ours, baseline, ratio)


def bench_connect(address: str) -> dict:
    """A new connection with full verification."""

    def connect() -> None:
        blindai.connect(address, simulation=True).close()

    times = sorted(milliseconds(connect) for _ in range(60))[5:-5]
    return row("connect with full verification", statistics.median(times))


def bench_upload(address: str, pid: int) -> list[dict]:
    """The 378 MB model: time, and how much the server itself grows (workers apart)."""
    idle = resident(pid)
    peak, stop = [idle], threading.Event()

    def watch() -> None:
        while not stop.wait(0.005):
            peak[0] = max(peak[0], resident(pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with blindai.connect(address, simulation=True) as client:
            path = MODELS / "wav2vec2_hello_world.onnx"
            baseline = milliseconds(lambda: in_process(path))
            ours = milliseconds(lambda: client.models.upload(path, name="upload", progress=False))
            client.models.delete("upload")
    finally:
        stop.set()
        watcher.join()
    grown = (peak[0] - idle) / MIB
    return [
        row("upload 378 MB and load", ours, baseline, ours / baseline),
        # Resident memory. The model itself stands in a memory file beside it, for restarts.
        row("server during upload, above idle", mib=grown),
        row("server idle", mib=idle / MIB),
    ]


def compare(
    ours: Callable[[], object], baseline: Callable[[], object], calls: int
) -> tuple[float, float, float]:
    """Medians in ms of both, and the median over the blocks of the ratio of their medians."""
    blocks = []
    for i in range(BLOCKS):
        # Who goes first changes, so that neither always finds the machine as the other left it.
        sides = (ours, baseline) if i % 2 else (baseline, ours)
        medians = {side: block(side, calls) for side in sides}
        blocks.append((medians[ours], medians[baseline]))
    return (
        statistics.median(mine for mine, _ in blocks),
        statistics.median(other for _, other in blocks),
        statistics.median(mine / other for mine, other in blocks),
    )


def block(side: Callable[[], object], calls: int) -> float:
    """The median in ms of calls in a row, once the other side's threads have stopped spinning."""
    time.sleep(SPIN_SECONDS)
    for _ in range(max(2, calls // 5)):
        side()
    return statistics.median(milliseconds(side) for _ in range(calls))


def in_process(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    return onnxruntime.InferenceSession(str(path), options)


def make_inputs(session: onnxruntime.InferenceSession) -> Inputs:
    """Random floats, and five sentences of twelve tokens for a model of language."""
    rng = np.random.default_rng(0)
    inputs = {}
    for spec in session.get_inputs():
        if spec.type == "tensor(float)":
            shape = [dim if isinstance(dim, int) else 1 for dim in spec.shape]
            inputs[spec.name] = rng.standard_normal(shape).astype(np.float32)
        elif spec.name == "input_ids":
            inputs[spec.name] = rng.integers(1000, 20000, (5, 12))
        else:
            inputs[spec.name] = np.full((5, 12), int("mask" in spec.name))
    return inputs


def write_identity(path: Path) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "identity", [x], [y])
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), path)


def start_server(folder: Path) -> tuple[subprocess.Popen[str], str]:
    config = folder / "blindai.toml"
    config.write_text(
        '[listen]\nattested = "127.0.0.1:0"\npublic = "127.0.0.1:0"\n'
        f"[engine]\nthreads = {THREADS}\n"
    )
    program = ROOT / "target/release/blindai"
    server = subprocess.Popen(
        [program, "serve", "--simulation", "--config", config],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
    )
    address = None
    for line in server.stderr:
        address = line.split()[2] if "attested port" in line else address
        if line.rstrip().endswith("ready") and address:
            # Nobody reads on: after this line the server logs refusals only, and here are none.
            return server, address
        print(line, end="", file=sys.stderr)
    sys.exit("bench: the server did not start")


def resident(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def milliseconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1e3


def row(
    name: str,
    ours: float | None = None,
    baseline: float | None = None,
    ratio: float | None = None,
    mib: float | None = None,
) -> dict:
    values = {"ours_ms": ours, "baseline_ms": baseline, "ratio": ratio, "mib": mib}
    rounded = {key: None if v is None else round(v, 4) for key, v in values.items()}
    return {"name": name, **rounded}


def print_table(rows: list[dict]) -> None:
    print(f"{'':<34}{'ours':>13}{'in process':>13}{'ratio':>8}   target")
    for entry in rows:
        size = entry["mib"]
        ours = f"{size:.1f} MiB" if size is not None else f"{entry['ours_ms']:.3f} ms"
        baseline = "" if entry["baseline_ms"] is None else f"{entry['baseline_ms']:.3f} ms"
        ratio = "" if entry["ratio"] is None else f"{entry['ratio']:.3f}"
        print(f"{entry['name']:<34}{ours:>13}{baseline:>13}{ratio:>8}   {verdict(entry)}")


def verdict(entry: dict) -> str:
    for start, (key, target) in TARGETS.items():
        if entry["name"].startswith(start):
            return f"{key} ≤ {target}{'' if entry[key] <= target else '  MISSED'}"
    return ""


if __name__ == "__main__":
    main()
