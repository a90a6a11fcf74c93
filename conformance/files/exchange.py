"""What readers make of adapter files: each reader in a process of its own, each file against its ΔW.

The ΔW of a file of the corpus is declared. That of a file which a writer made is what the writer's own model computes.
"""

import json
import math
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from conformance.files import corpus
from conformance.files.corpus import Case
from conformance.files.producers import FEATURES

RIGHT, REFUSED, WRONG, ACCEPTED, LOST, ELSEWHERE = "right", "refused", "wrong", "accepted", "crash", "not read"
BAD = (WRONG, ACCEPTED, LOST)
ENDED = "its process ended, or gave no answer in time"
START, LIMIT = 180.0, 60.0  # seconds for the first answer, in which libraries are imported, and for each other
FACTORS = {  # what a wrong ΔW may be a multiple of the right one by, in words, for a rank
    "the LoRA part is left out": lambda rank: 0.0,
    "√rank is missing": lambda rank: 1 / math.sqrt(rank),
    "√rank is there once more": math.sqrt,
    "the rank is missing: alpha is not divided by it": float,
    "alpha is divided by the rank twice": lambda rank: 1 / rank,
    "the sign is wrong": lambda rank: -1.0,
}


class Cell(NamedTuple):
    """What one consumer made of one case."""

    case: Case
    status: str
    words: str = ""  # why it was refused, or what is wrong


class Matrix(NamedTuple):
    """What one consumer made of all cases. `missing` says why there are none."""

    consumer: str
    cells: list[Cell]
    missing: str = ""


def exchange(names: list[str], chosen: Callable[[Case], bool] = lambda case: True, writers: list[str] | None = None,
             progress: Callable[[str, Cell], None] = lambda name, cell: None) -> list[Matrix]:
    """Gives the chosen cases to each reader: those of the corpus, and what each of the writers makes of each feature."""
    with tempfile.TemporaryDirectory(prefix="conformance-") as scratch:
        folder = Path(scratch) / "corpus"
        cases = corpus.write(folder)
        missing = []
        for writer in writers or ():
            found = _written(writer, folder)
            missing += [Matrix(writer, [], found)] if isinstance(found, str) else []
            cases += [] if isinstance(found, str) else found
        cases = [case for case in cases if chosen(case)]
        return missing + [_of(name, cases, folder, Path(scratch), progress) for name in names]


def _written(writer: str, folder: Path) -> list[Case] | str:
    """A case for each feature that the writer offers. A text if it is not available."""
    out = folder / f"by {writer}"
    out.mkdir()
    made = []
    with _process("write", writer, folder, out) as process:
        first = _answer(process, START)
        if first is None or "not available" in first:
            return (first or {}).get("not available", ENDED)
        for feature in FEATURES:
            answer = _ask(process, feature)
            if answer is None:
                break
            if answer["ok"]:
                truth = _loaded(out / f"{answer['at']}.npz")
                made.append(Case("peft", writer, feature, {}, truth, 0.0, (), at=f"by {writer}/{answer['at']}"))
    return made


def _of(name: str, cases: list[Case], folder: Path, scratch: Path, progress: Callable[[str, Cell], None]) -> Matrix:
    cells: list[Cell] = []
    while len(cells) < len(cases):  # a consumer that dies at a case is started again after it
        out = scratch / f"{len(os.listdir(scratch))}"
        out.mkdir()
        for found in _asked(name, cases[len(cells) :], folder, out):
            if isinstance(found, str):
                return Matrix(name, [], found)
            cells.append(found)
            progress(name, found)
    return Matrix(name, cells)


def _asked(name: str, cases: list[Case], folder: Path, out: Path) -> Iterator[Cell | str]:
    """The cells of these cases, up to the first at which the consumer's process ends. A text if there is no such consumer."""
    with _process("read", name, folder, out) as process:
        first = _answer(process, START)
        if first is None or "not available" in first:
            yield (first or {}).get("not available", ENDED)
            return
        for case in cases:
            if first["formats"] is not None and case.format not in first["formats"]:
                yield Cell(case, ELSEWHERE)
                continue
            answer = _ask(process, case.folder)
            if answer is None:
                yield Cell(case, LOST, ENDED)
                return
            yield _judged(case, answer, out)


@contextmanager
def _process(kind: str, name: str, folder: Path, out: Path) -> Iterator[subprocess.Popen]:
    """The process of a reader or writer: see serve.py. It is ended at the end, with what it has started."""
    command = [sys.executable, "-P", "-m", "conformance.files.serve", kind, name, str(folder), str(out)]
    paths = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                               env=os.environ | {"PYTHONPATH": paths}, start_new_session=True)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def _ask(process: subprocess.Popen, folder: str) -> dict | None:
    assert process.stdin is not None
    try:
        process.stdin.write(folder + "\n")
        process.stdin.flush()
    except OSError:
        return None
    return _answer(process, LIMIT)


def _answer(process: subprocess.Popen, seconds: float) -> dict | None:
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], seconds)[0]:
        return None
    line = process.stdout.readline()
    return json.loads(line) if line else None


def _judged(case: Case, answer: dict, out: Path) -> Cell:
    if not answer["ok"]:
        return Cell(case, REFUSED, answer["refusal"])
    found = _loaded(out / f"{answer['at']}.npz")
    if not case.valid:
        return Cell(case, ACCEPTED, f"no error; it changed {', '.join(sorted(found)) or 'nothing: the base model is served'}")
    words = [f"{module}: {what}" for module in sorted(found.keys() | case.truth.keys())
             if (what := _difference(found.get(module), case.truth.get(module), case.ranks.get(module, 0)))]
    return Cell(case, WRONG, "; ".join(words)) if words else Cell(case, RIGHT)


def _loaded(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return {module: file[module] for module in file.files}


def _difference(got: np.ndarray | None, want: np.ndarray | None, rank: int) -> str:
    """What is wrong with ΔW of one module, by which known fault, or by which factor. Empty if nothing is. All numbers of the
    corpus are exact in float32."""
    if want is None:
        return "changed, and the file is not about it"
    if got is None:
        return "unchanged: the LoRA part is left out"
    if got.shape != want.shape:
        return f"ΔW is {got.shape}, expected {want.shape}"
    if np.array_equal(got, want):
        return ""
    if got.shape == want.shape[::-1] and np.array_equal(got, want.T):
        return "transposed"
    with np.errstate(all="ignore"):
        factor = float((got * want).sum() / (want * want).sum())
    if np.array_equal(got.astype(np.float32), (factor * want).astype(np.float32)):
        named = next((words for words, of in FACTORS.items() if rank and np.float32(of(rank)) == np.float32(factor)), "")
        return f"{factor:.4g} times ΔW" + (f": {named}" if named else "")
    distance = float(np.linalg.norm(got - want) / np.linalg.norm(want))
    return f"off by {distance:.3g} of ‖ΔW‖"
