"""Hostile models: each runs or ends in a clear error, within its limits, and harms nobody else.

`make test` takes the files, each operator once, and a few mutations; `make soak` takes all.
"""

from __future__ import annotations

import collections
import itertools
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from bystander import Bystander
from conftest import SUMMARY, connect
from support import Server, resident_bytes, wait_for

import blindai
from tools import hostile

MIB = 1 << 20
SOAK = bool(os.environ.get("BLINDAI_SOAK"))
MUTATIONS = int(os.environ.get("BLINDAI_MUTATIONS") or (600 if SOAK else 60))
LIMITS = {
    "body_bytes": 4 * MIB,
    "output_bytes": 16 * MIB,
    "model_bytes": 32 * MIB,
    "model_memory_bytes": 768 * MIB,
    "total_memory_bytes": 6144 * MIB,
    "load_seconds": 10,
    "request_seconds": 3,
}
# A time in which everything has ended, on a machine that is busy with other things too.
HANGS = 120
ABOUT_THE_MODEL = {
    "model-invalid",
    "model-unsupported",
    "model-failed",
    "model-memory",
    "worker-crashed",
    "deadline-exceeded",
}
ABOUT_THE_INPUT = {
    "input-missing",
    "input-dtype",
    "input-shape",
    "input-data",
    "invalid-request",
    "body-too-large",
}
DTYPES = {
    "BOOL": np.bool_,
    "BYTES": object,
    **{
        f"{sign}INT{bits}": f"{sign.lower()}int{bits}"
        for sign in ("", "U")
        for bits in (8, 16, 32, 64)
    },
    **{f"FP{bits}": f"float{bits}" for bits in (16, 32, 64)},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("hostile"), limits=LIMITS) as server:
        yield server


@pytest.fixture(scope="module")
def bystander(server: Server) -> Iterator[Bystander]:
    """A good model, which answers rightly during the whole run."""
    with connect(server) as client:
        somebody = Bystander(client)
        yield somebody
        somebody.stop()


@pytest.fixture(autouse=True)
def nobody_is_harmed(server: Server, bystander: Bystander) -> Iterator[None]:
    before, held, workers = bystander.answered, resident_bytes(server.pid), server.workers()
    yield
    assert server.process.poll() is None, server.log
    wait_for(lambda: bystander.answered > before + 2, "the bystander's next answers")
    assert not bystander.failures, bystander.failures
    wait_for(lambda: server.workers() == workers, "the workers of hostile models to be gone")
    assert resident_bytes(server.pid) < held + 64 * MIB


def test_attacks_by_hand(server: Server):
    cases = hostile.handmade() if SOAK else once_each(hostile.handmade())
    judge(server, "attacks by hand", cases)


def test_mutations_of_real_models(server: Server):
    judge(server, "mutations", hostile.mutations(MUTATIONS))


def once_each(cases: Iterable[hostile.Case]) -> Iterator[hostile.Case]:
    """Every file, and of the two spellings of an operator one, in turn."""
    spellings = itertools.count()
    for case in cases:
        if not case.name.endswith(("-folded", "-fed")) or next(spellings) % 4 in (0, 3):
            yield case


def judge(server: Server, title: str, cases: Iterable[hostile.Case]) -> None:
    with connect(server, timeout=HANGS) as client, ThreadPoolExecutor(2) as pool:
        verdicts = list(pool.map(lambda case: (case.name, outcome(client, case)), cases))
    counted = collections.Counter(verdict for _, verdict in verdicts)
    SUMMARY[title] = [f"{count:4} {verdict}" for verdict, count in counted.most_common()]
    SUMMARY[title] += [
        f"{verdict}: {name}"
        for name, verdict in verdicts
        if "crashed" in verdict or "deadline" in verdict
    ]
    wrong = [f"{name}: {verdict}" for name, verdict in verdicts if "WRONG" in verdict]
    assert not wrong, "\n".join(wrong)


def outcome(client: blindai.Client, case: hostile.Case) -> str:
    """What became of a model, in a word or two."""
    name = case.name.replace("^", "-")
    try:
        info = client.models.upload(case.content, name=name)
    except blindai.BlindAIError as error:
        return "loading: " + verdict(error, ABOUT_THE_MODEL)
    try:
        answers = client.infer(name, case.inputs or made_up(info))
        return "answered" if answers else "answered with nothing"
    except blindai.BlindAIError as error:
        return "running: " + verdict(error, ABOUT_THE_MODEL | ABOUT_THE_INPUT)
    finally:
        client.models.delete(name)


def verdict(error: blindai.BlindAIError, allowed: set[str]) -> str:
    """The code, of an error that is one of the allowed and says what it should."""
    text = str(error)
    clear = error.code in allowed and error.fact and text.isprintable() and len(text) < 4096
    return error.code if clear else f"WRONG {error!r}"


def made_up(model: blindai.Model) -> dict[str, np.ndarray]:
    """Inputs that fit a signature, small ones."""
    return {
        spec.name: np.zeros([size(dim) for dim in spec.shape or ()], DTYPES[spec.dtype])
        for spec in model.signature.inputs
        if spec.dtype in DTYPES
    }


def size(dim: int | str | None) -> int:
    return dim if isinstance(dim, int) and dim < 64 else 2
