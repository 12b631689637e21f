"""The speed of a request over attested TLS against the same model run in process.

    make bench                          # prints a table, writes target/bench/results.json and
                                        # docs/models.md
    make bench PEERS=1                  # beside other servers too; installs them the first time

Both sides run ONNX Runtime 1.28.0 with the same number of threads, on this machine, in turns within
one run, because machines are noisy: blocks of calls in a row, each after a warm-up; a ratio is the
median over the pairs of blocks. `identity` copies four bytes, so its baseline is next to nothing
and ours is the price of the whole path; read its milliseconds, not its ratio. The table shows
targets where there are some; a busy machine misses them.

Throughput comes from `blindai bench`, which puts the same load on ours and on the peers. What ONNX
Runtime could do at best is measured in process: the best of several sizes of a batch.

The models and their inputs are those of the tests, and so is what they must answer: a wrong answer
ends the run, and nothing is written.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

import blindai
from tools import bare_tls, models, models_page, peers

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests"))

import answers

MODELS = ROOT / ".cache/models"
PROGRAM = ROOT / "target/release/blindai"
RESULTS = ROOT / "target/bench/results.json"
THREADS = os.cpu_count() or 1
MIB = 1 << 20
# Both sides take turns, this often: more often where there is a target.
BLOCKS, PRECISE_BLOCKS = 5, 9
# How long a turn lasts, if one call is not longer; and how many calls it is, at least and at most.
BLOCK_SECONDS, CALLS = 0.3, (4, 1000)
# ONNX Runtime's idle threads spin for some tens of milliseconds and would be in the other's way.
SPIN_SECONDS = 0.2

# By the start of a row's name: what it is judged by, and the most that it may be.
TARGETS = {
    "wav2vec2": ("ratio", "≤", 1.02),
    "resnet50": ("ratio", "≤", 1.03),
    "mobilenet": ("ratio", "≤", 1.08),
    "minilm i64": ("ratio", "≤", 1.05),
    "minilm, 16 clients, to the best batching": ("ratio", "≥", 0.97),
    "minilm, 16 clients, to": ("ratio", "≥", 2.0),
    "identity f32[1] p50": ("ours_ms", "≤", 0.15),
    "identity f32[1] p99": ("ours_ms", "≤", 0.5),
    "receipt, added": ("ours_ms", "≤", 0.06),
    "identity, 16 clients, to nothing": ("ours_per_s", "≥", 15_000),
    "connect": ("ours_ms", "≤", 10),
    "server during upload": ("mib", "≤", 64),
    "server idle": ("mib", "≤", 40),
    "resident": ("ratio", "≤", 1.15),
}

# Further sections of the server's configuration, for trying things out.
CONFIG: dict[str, dict[str, object]] = {
    "engine": {"threads": THREADS},
    # As a server for many callers of one model would have it: what waits is computed together.
    "engine.batching": {"max_rows": 80, "strict": False},
}
# Of the models that many ask at once: workers that do not wait for each other's threads. Single
# callers ask the same models under other names.
MANY = "".join(
    f'[[models]]\nname = "{name}"\nworkers = {THREADS}\nthreads = 1\n'
    for name in ("minilm", "identity")
)
CLIENTS = 16
# The sizes of a batch that are tried in process, as multiples of one request.
BATCHES = (1, 2, 4, 8, 16)
ROUNDS = 7
LOAD_SECONDS = 2.0

Inputs = dict[str, np.ndarray]
# What rows call a model, where it is not its name.
CALLED = {"wav2vec2_hello_world": "wav2vec2", "minilm_l6_v2_sentence_embedding": "minilm"}


def main() -> None:
    warnings.simplefilter("ignore", blindai.SimulationWarning)
    rows = []
    with tempfile.TemporaryDirectory(prefix="blindai-bench-") as name:
        folder = Path(name)
        write_identity(folder / "identity.onnx")
        server, address = start_server(folder)
        try:
            rows += bench_upload(address, server.pid)
            of_models = bench_models(address, server.pid)
            rows += [*of_models, bench_bare_tls(folder)]
            rows += [bench_nothing(address, folder), bench_connect(address)]
            rows += bench_identity(address, folder)
            rows += bench_load(address, folder, "--peers" in sys.argv)
        finally:
            server.terminate()
            server.wait(timeout=60)
    save(rows, of_models)
    print_table(rows)


def save(rows: list[dict], of_models: list[dict]) -> None:
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(rows, indent=2) + "\n")
    measured = models_page.run(
        of_models,
        program=models_page.program(PROGRAM),
        engine=onnxruntime.__version__,
        blocks=BLOCKS,
        tolerance=answers.TOLERANCE,
    )
    models_page.MEASURED.write_text(json.dumps(measured, indent=2) + "\n")
    models_page.write(measured)


def bench_models(address: str, pid: int) -> list[dict]:
    """Every model of the tests: its speed, its memory, its answer."""
    with blindai.connect(address, simulation=True) as client:
        return [bench_test_model(client, name, pid) for name in answers.CASES]


def bench_test_model(client: blindai.Client, name: str, pid: int) -> dict:
    case, path = answers.CASES[name], models.build(name)
    inputs = case.given()
    request = ", ".join(shape(array) for array in inputs.values())
    label = f"{CALLED.get(name, name)} {request.split(', ')[0]}"
    with loaded(client, name, path):
        speed = bench_model(client, label, name, in_process(path), inputs)
        memory = max(resident(child) for child in children(pid))
        got, want = client.infer(name, inputs), answers.local(name)(**inputs)
    answers.assert_equal(got, want)
    return {
        **speed,
        "model": name,
        "request": request,
        "worker_mib": round(memory / MIB, 1),
        "answer": case.known(inputs, got),
        "apart": answers.distance(got, want),
        "floats": any(array.dtype.kind == "f" for array in want.values()),
    }


def bench_bare_tls(folder: Path) -> dict:
    """What a request pays that has nothing but TLS around it, where it pays most: a large input of
    a fast model."""
    path = models.build("mobilenet_v2")
    session = in_process(path)
    inputs = answers.CASES["mobilenet_v2"].given()
    (tensor,) = inputs.values()
    pair = peers.write_certificate(folder)
    with bare_tls.serving(path, THREADS, tensor, pair) as call:
        bare, baseline, ratio = compare(call, lambda: session.run(None, inputs), PRECISE_BLOCKS)
        np.testing.assert_allclose(call(), session.run(None, inputs)[0], rtol=1e-3, atol=1e-3)
    return row("bare TLS socket, mobilenet_v2", bare, baseline, ratio)


def bench_nothing(address: str, folder: Path) -> dict:
    path = folder / "identity.onnx"
    with blindai.connect(address, simulation=True) as client, loaded(client, "copy", path):
        session = in_process(path)
        return bench_model(client, "identity f32[1]", "copy", session, make_inputs(session))


@contextlib.contextmanager
def loaded(client: blindai.Client, name: str, path: Path) -> Iterator[None]:
    client.models.upload(path, name=name, progress=False)
    try:
        yield
    finally:
        client.models.delete(name)


def bench_model(
    client: blindai.Client,
    label: str,
    name: str,
    session: onnxruntime.InferenceSession,
    inputs: Inputs,
) -> dict:
    ours, baseline, ratio = compare(
        lambda: client.infer(name, inputs),
        lambda: session.run(None, inputs),
        PRECISE_BLOCKS if verdict(row(label, ours=0, ratio=0)) else BLOCKS,
    )
    print(f"{label}: {ours:.3f} ms, ratio {ratio:.3f}", file=sys.stderr, flush=True)
    return row(label, ours, baseline, ratio)


def shape(array: np.ndarray) -> str:
    """What a tensor is, for people: f32[1,3,224,224]."""
    kind = f"{array.dtype.kind}{array.dtype.itemsize * 8}"
    return f"{kind}[{','.join(map(str, array.shape))}]"


def bench_identity(address: str, folder: Path) -> list[dict]:
    """The whole path, as the percentiles of one client that sends one request after the other, and
    what a receipt adds to it, by turns."""
    rows, added = [], []
    with uploaded(address, {"copy": folder / "identity.onnx"}):
        for protocol in ("http", "grpc"):
            given = ["--protocol", protocol]
            runs = [generate(address, "copy", given) for _ in range(ROUNDS)]
            for q in ("p50", "p99"):
                latency = statistics.median(run["latency_ms"][q] for run in runs)
                rows.append(row(f"identity f32[1] {q} {protocol}", latency))
        for _ in range(ROUNDS):
            plain, signed = (generate(address, "copy", given) for given in ([], ["--receipts"]))
            added.append(signed["latency_ms"]["p50"] - plain["latency_ms"]["p50"])
    return [*rows, row("receipt, added to that p50", statistics.median(added))]


def bench_load(address: str, folder: Path, with_peers: bool) -> list[dict]:
    """Requests per second of 16 clients: ours, the best of ONNX Runtime in process, the peers."""
    models = {
        "minilm": MODELS / "minilm_l6_v2_sentence_embedding.onnx",
        "identity": folder / "identity.onnx",
    }
    running = peers.run(folder, models, THREADS) if with_peers else contextlib.nullcontext([])
    with uploaded(address, models), running as others:
        rows = bench_clients("minilm", address, folder, models["minilm"], others)
        return rows + bench_clients("identity", address, folder, models["identity"], others)


def bench_clients(
    model: str, address: str, folder: Path, path: Path, others: list[peers.Peer]
) -> list[dict]:
    inputs = make_inputs(in_process(path))
    given = write_inputs(folder / model, inputs)
    sides = {"ours": lambda: generate(address, model, given, CLIENTS)["requests_per_second"]}
    if model == "identity":
        # Of the floor there is nothing to say: copying four bytes is no work.
        floor = "nothing"
        sides[floor] = lambda: None
    else:
        floor = "the best batching"
        sides[floor] = best_batching(path, inputs)
    for peer in others:
        if not peer.reason:
            sides[peer.name] = lambda peer=peer: try_peer(peer, model, given)
    rounds = [take_turns(sides, i) for i in range(ROUNDS)]
    rows = [compared(model, side, rounds) for side in sides if side != "ours"]
    for peer in others:
        if peer.reason:
            rows.append({**row(f"{model}, {CLIENTS} clients, to {peer.name}"), "note": peer.reason})
    return rows


def take_turns(sides: dict[str, Callable[[], float | None]], first: int) -> dict[str, float | None]:
    """Everybody once, each round beginning with another."""
    names = list(sides)
    measured = {}
    for name in names[first % len(names) :] + names[: first % len(names)]:
        time.sleep(SPIN_SECONDS)
        measured[name] = sides[name]()
        if measured[name] is not None:
            print(f"{name}: {measured[name]:.1f} requests/s", file=sys.stderr, flush=True)
    return measured


def compared(model: str, side: str, rounds: list[dict[str, float | None]]) -> dict:
    name = f"{model}, {CLIENTS} clients, to {side}"
    ours = statistics.median(measured["ours"] for measured in rounds)
    pairs = [(m["ours"], m[side]) for m in rounds if m[side]]
    if not pairs:
        note = "" if side == "nothing" else "it failed, for the reason above"
        return {**row(name, ours_per_s=ours), "note": note}
    return row(
        name,
        ratio=statistics.median(mine / other for mine, other in pairs),
        ours_per_s=ours,
        baseline_per_s=statistics.median(other for _, other in pairs),
    )


def best_batching(path: Path, inputs: Inputs) -> Callable[[], float]:
    """Measures requests per second in process, with the best size of batch, always full."""
    session = in_process(path)

    def per_second(size: int) -> float:
        batch = {name: np.concatenate([array] * size) for name, array in inputs.items()}
        session.run(None, batch)
        ends = time.perf_counter() + LOAD_SECONDS
        times = []
        while time.perf_counter() < ends or len(times) < 3:
            times.append(milliseconds(lambda: session.run(None, batch)))
        return size * 1e3 / statistics.mean(times)

    # Chosen once and measured anew: the most of several measurements is more than any is worth.
    best = max(BATCHES, key=per_second)
    return lambda: per_second(best)


def try_peer(peer: peers.Peer, model: str, given: list[str]) -> float | None:
    try:
        measured = generate(None, model, given, CLIENTS, arguments=peer.arguments)
    except subprocess.CalledProcessError as error:
        print(f"{peer.name}: {error.stderr}", file=sys.stderr)
        return None
    return measured["requests_per_second"] if not measured["failed"] else None


def generate(
    address: str | None,
    model: str,
    given: list[str] | None = None,
    clients: int = 1,
    seconds: float = LOAD_SECONDS,
    arguments: list[str] | None = None,
) -> dict:
    """What `blindai bench` says of a closed loop."""
    target = arguments or ["--server", address, "--simulation"]
    load = ["--concurrency", str(clients), "--duration", f"{seconds}s", "--warmup", "500ms"]
    command = [PROGRAM, "bench", model, *target, *load, *(given or []), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@contextlib.contextmanager
def uploaded(address: str, models: dict[str, Path]) -> Iterator[None]:
    with blindai.connect(address, simulation=True) as client:
        for name, path in models.items():
            client.models.upload(path, name=name, progress=False)
        try:
            yield
        finally:
            for name in models:
                client.models.delete(name)


def write_inputs(folder: Path, inputs: Inputs) -> list[str]:
    """The inputs as files, and the arguments that name them."""
    folder.mkdir(exist_ok=True)
    arguments = []
    for name, array in inputs.items():
        np.save(folder / f"{name}.npy", array)
        arguments += ["--input", f"{name}={folder / name}.npy"]
    return arguments


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
            memory = bench_memory(client, "upload", path, pid)
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
        memory,
    ]


def bench_memory(client: blindai.Client, model: str, path: Path, pid: int) -> dict:
    """A loaded model that has run: its worker, and what loading it adds to a Python process."""
    inputs = make_inputs(in_process(path))
    client.infer(model, inputs)
    worker = max(resident(child) for child in children(pid))
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        baseline = pool.apply(memory_in_process, (path, inputs))
    values = row("resident, wav2vec2 loaded", ratio=worker / baseline, mib=worker / MIB)
    return {**values, "baseline_mib": round(baseline / MIB, 4)}


def memory_in_process(path: Path, inputs: Inputs) -> int:
    before = resident(os.getpid())
    session = in_process(path)
    session.run(None, inputs)
    return resident(os.getpid()) - before


def children(pid: int) -> list[int]:
    files = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for file in files for child in file.read_text().split()]


def compare(
    ours: Callable[[], object], baseline: Callable[[], object], blocks: int
) -> tuple[float, float, float]:
    """Medians in ms of both, and the median over the blocks of the ratio of their medians."""
    baseline()
    once = milliseconds(baseline) / 1e3
    calls = int(np.clip(BLOCK_SECONDS / once, *CALLS))
    pairs = []
    for i in range(blocks):
        # Who goes first changes, so that neither always finds the machine as the other left it.
        sides = (ours, baseline) if i % 2 else (baseline, ours)
        medians = {side: block(side, calls) for side in sides}
        pairs.append((medians[ours], medians[baseline]))
    return (
        statistics.median(mine for mine, _ in pairs),
        statistics.median(other for _, other in pairs),
        statistics.median(mine / other for mine, other in pairs),
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
    # What it warns of would be written while the clock runs.
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options)


def make_inputs(session: onnxruntime.InferenceSession) -> Inputs:
    """Random floats, and a sentence of twelve tokens for a model of language."""
    rng = np.random.default_rng(0)
    inputs = {}
    for spec in session.get_inputs():
        if spec.type == "tensor(float)":
            shape = [dim if isinstance(dim, int) else 1 for dim in spec.shape]
            inputs[spec.name] = rng.standard_normal(shape).astype(np.float32)
        elif spec.name == "input_ids":
            inputs[spec.name] = rng.integers(1000, 20000, (1, 12))
        else:
            inputs[spec.name] = np.full((1, 12), int("mask" in spec.name))
    return inputs


def write_identity(path: Path) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "identity", [x], [y])
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), path)


def start_server(folder: Path) -> tuple[subprocess.Popen[str], str]:
    config = folder / "blindai.toml"
    listen = {"attested": "127.0.0.1:0", "public": "127.0.0.1:0"}
    config.write_text(toml({"listen": listen, **CONFIG}) + MANY)
    server = subprocess.Popen(
        [PROGRAM, "serve", "--simulation", "--config", config],
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


def toml(sections: dict[str, dict[str, object]]) -> str:
    """Sections of scalars, which JSON writes as TOML does."""
    return "".join(
        f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in entries.items())
        for name, entries in sections.items()
    )


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
    ours_per_s: float | None = None,
    baseline_per_s: float | None = None,
) -> dict:
    values = {"ours_ms": ours, "baseline_ms": baseline, "ratio": ratio, "mib": mib}
    loads = {"ours_per_s": ours_per_s, "baseline_per_s": baseline_per_s}
    values |= {key: value for key, value in loads.items() if value is not None}
    rounded = {key: None if v is None else round(v, 4) for key, v in values.items()}
    return {"name": name, **rounded}


def print_table(rows: list[dict]) -> None:
    print(f"{'':<42}{'ours':>13}{'the other':>13}{'ratio':>8}   target")
    for entry in rows:
        ours = shown(entry, "ours_ms", "mib", "ours_per_s")
        baseline = shown(entry, "baseline_ms", "baseline_mib", "baseline_per_s")
        ratio = "" if entry["ratio"] is None else f"{entry['ratio']:.3f}"
        said = verdict(entry) or entry.get("note", "")
        print(f"{entry['name']:<42}{ours:>13}{baseline:>13}{ratio:>8}   {said}")


def shown(entry: dict, milliseconds: str, mib: str, per_second: str) -> str:
    if entry.get(mib) is not None:
        return f"{entry[mib]:.1f} MiB"
    if entry.get(per_second) is not None:
        return f"{entry[per_second]:,.1f} /s"
    return "" if entry[milliseconds] is None else f"{entry[milliseconds]:.3f} ms"


def verdict(entry: dict) -> str:
    """The target of a row, and whether it was missed; nothing for what has none or no value."""
    for start, (key, relation, target) in TARGETS.items():
        if entry["name"].startswith(start) and entry.get(key) is not None:
            value = entry[key]
            met = value <= target if relation == "≤" else value >= target
            return f"{key} {relation} {target}{'' if met else '  MISSED'}"
    return ""


if __name__ == "__main__":
    main()
