"""What readers make of adapter files: each reader in a process of its own, each file against its ΔW.

The ΔW of a file of the corpus is declared. That of a file which a writer made is what the writer's own model computes.
"""

import json
import math
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from conformance.drivers import children
from conformance.files import corpus
from conformance.files.corpus import Case
from conformance.files.producers import FEATURES

RIGHT, REFUSED, WRONG, ACCEPTED, LOST = "right", "refused", "wrong", "accepted", "crash"
ELSEWHERE, UNWRITTEN = "not read", "not written"
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
    """Gives the chosen cases to each reader: those of the corpus, and what each of the writers makes of each feature. What a
    writer does not write has a cell under the writer's own name."""
    with tempfile.TemporaryDirectory(prefix="conformance-") as scratch:
        folder = Path(scratch) / "corpus"
        cases, found = corpus.write(folder), []
        for writer in writers or ():
            made, matrix = _written(writer, folder)
            cases += made
            found += [matrix] if matrix.cells or matrix.missing else []
        cases = [case for case in cases if chosen(case)]
        return found + [_of(name, cases, folder, Path(scratch), progress) for name in names]


def _written(writer: str, folder: Path) -> tuple[list[Case], Matrix]:
    """A case for each feature that the writer offers, and a cell for each other one."""
    out = folder / f"by {writer}"
    out.mkdir()
    made, cells = [], []
    with _process("write", writer, folder, out) as process:
        first = process.answer(START)
        if first is None or "not available" in first:
            return [], Matrix(writer, [], (first or {}).get("not available", ENDED))
        for feature in FEATURES:
            answer = process.ask(feature)
            case = Case("peft", writer, feature, {}, {}, 0.0, (), at=f"by {writer}/{(answer or {}).get('at', feature)}")
            if answer is not None and answer["ok"] and (truth := _loaded(out / f"{answer['at']}.npz")):
                made.append(case._replace(truth=truth))
            else:
                why = ENDED if answer is None else answer.get("refusal", "its adapter changes nothing")
                cells.append(Cell(case, UNWRITTEN, why.replace(str(folder), "")))
    return made, Matrix(writer, cells)


def _of(name: str, cases: list[Case], folder: Path, scratch: Path, progress: Callable[[str, Cell], None]) -> Matrix:
    cells: list[Cell] = []
    while len(cells) < len(cases):  # a reader that dies at a case is started again after it
        out = scratch / f"{len(os.listdir(scratch))}"
        out.mkdir()
        for found in _asked(name, cases[len(cells) :], folder, out):
            if isinstance(found, str):
                if not cells:
                    return Matrix(name, [], found)
                found = Cell(cases[len(cells)], LOST, found)
            cells.append(found)
            progress(name, found)
    return Matrix(name, cells)


def _asked(name: str, cases: list[Case], folder: Path, out: Path) -> Iterator[Cell | str]:
    """The cells of these cases, up to the first at which the reader's process ends. A text if there is no such reader."""
    with _process("read", name, folder, out) as process:
        first = process.answer(START)
        if first is None or "not available" in first:
            yield (first or {}).get("not available", ENDED)
            return
        for case in cases:
            if first["formats"] is not None and case.format not in first["formats"]:
                yield Cell(case, ELSEWHERE)
                continue
            answer = process.ask(case.folder)
            if answer is None:
                yield Cell(case, LOST, ENDED)
                return
            yield _judged(case, answer, out, folder)


class Talk:
    """The process of a reader or a writer: see serve.py."""

    def __init__(self, process: subprocess.Popen):
        self.process, self.got = process, b""

    def ask(self, question: str) -> dict | None:
        """Its answer. None if it has ended, or says nothing in time, or what is no answer."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(question.encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            return None
        return self.answer(LIMIT)

    def answer(self, seconds: float) -> dict | None:
        assert self.process.stdout is not None
        until = time.monotonic() + seconds
        while b"\n" not in self.got:
            left = until - time.monotonic()
            if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
                return None
            part = os.read(self.process.stdout.fileno(), 1 << 16)
            if not part:
                return None
            self.got += part
        line, _, self.got = self.got.partition(b"\n")
        try:
            found = json.loads(line)
        except ValueError:
            return None
        return found if isinstance(found, dict) else None


@contextmanager
def _process(kind: str, name: str, folder: Path, out: Path) -> Iterator[Talk]:
    """The process of a reader or writer. It is ended at the end, with what it has started."""
    paths = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen([sys.executable, "-P", "-m", "conformance.files.serve", kind, name, str(folder), str(out)],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                               env=os.environ | {"PYTHONPATH": paths}, start_new_session=True)
    try:
        yield Talk(process)
    finally:
        children.end(process.pid)
        process.wait()
        for pipe in filter(None, (process.stdin, process.stdout)):
            with suppress(OSError):
                pipe.close()


def _judged(case: Case, answer: dict, out: Path, folder: Path) -> Cell:
    if not answer["ok"]:
        words = str(answer.get("refusal", answer.get("broken"))).replace(f"{folder}/", "")
        return Cell(case, REFUSED if "refusal" in answer else LOST, words)
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
