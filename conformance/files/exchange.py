"""What readers make of adapter files: each reader in a process of its own, each file against its ΔW.

The ΔW of a file of the corpus is declared. That of a file which a writer made is what the writer's own model computes. A reader
gets the format that it reads. If the file is of another, the reader gets what `conformance file --to` makes of it, and the cell
says so.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from conformance.drivers import environments
from conformance.files import container, corpus, judge, llama, merging, mlx, readers, reading, talk, writers, writing
from conformance.files.binary import Arrays, safetensors
from conformance.files.corpus.made import CONV1D, base_model
from conformance.files.judge import Right
from conformance.files.peft import CONFIG, PICKLE, WEIGHTS
from conformance.files.talk import ENDED

RIGHT, REFUSED, WRONG, ACCEPTED, LOST = "right", "refused", "wrong", "accepted", "crash"
ELSEWHERE, UNWRITTEN = "not read", "not written"
BAD = (WRONG, ACCEPTED, LOST)
CONVERTED = ("peft", "mlx-lm")  # formats whose names of modules are the model's: from these our converter makes others
TO = {"peft": "PEFT", "kohya": "kohya", "diffusers": "diffusers", "mlx-lm": "mlx-lm"}
SPOILED = {  # what is done to the names of tensors of PEFT's plain adapter: a reader has to refuse it, or to see through it
    "names with one segment more": lambda name: name.replace("model.model.", "model.model.language_model.", 1),
    "half of the names unknown": lambda name: name.replace(".layers.1.", ".layers.1.unknown.", 1),
    "layers that do not exist": lambda name: name.replace(".layers.", ".layers.7", 1),
}


class Given(NamedTuple):
    """A file of an adapter, and what it means. Without ΔW it is invalid."""

    files: str  # the format of a file of the corpus, or "by WRITER"
    clause: str
    name: str
    formats: tuple[str, ...]
    adapter: Path
    model: Path  # the base weights
    right: Right
    digest: str = ""  # of all bytes that the reader gets

    @property
    def valid(self) -> bool:
        return bool(self.right.truth)

    @property
    def title(self) -> str:
        passes = "pass" if self.valid else "fail"
        return f"{self.files}/{self.clause}-{passes}-{self.name}" if self.clause else f"{self.files}: {self.name}"


class Cell(NamedTuple):
    """What one reader made of one file."""

    given: Given
    status: str
    words: str = ""  # why it was refused, or what is wrong
    ratio: float | None = None  # error / bound of log-probabilities
    effect: float | None = None  # how far the adapter moves them
    converted: bool = False  # the reader got what our converter made of the file


class Matrix(NamedTuple):
    """What one reader made of all files, or what one writer did not write. `missing` says why there are none."""

    name: str
    cells: list[Cell]
    missing: str = ""
    versions: dict[str, str] = {}
    kind: str = "reader"


Done = Callable[[str, Given], Cell | None]


def exchange(
    names: list[str], chosen: Callable[[Given], bool] = lambda given: True, by: list[str] | None = None,
    progress: Callable[[Matrix], None] = lambda matrix: None, done: Done = lambda name, given: None,
) -> list[Matrix]:
    """Gives the chosen files to each reader: those of the corpus, and what each of the writers makes of each feature. What a
    writer does not write has a cell in the writer's own matrix. `progress` gets each matrix after each cell, `done` knows
    cells of an earlier run."""
    with tempfile.TemporaryDirectory(prefix="conformance-") as scratch:
        place = Path(scratch)
        files, found = of_corpus(place), []
        for writer in by or ():
            made, matrix = written(writer, place)
            files += made
            found.append(matrix)
            progress(matrix)
            of_merge = Given(f"merged by {writer}", "", "", (), place, place, Right({}, {}, {}))
            if writer in writers.WRITERS and writers.merge_of(writer) and chosen(of_merge):
                found.append(merged(writer, place))
                progress(found[-1])
        files = [given._replace(digest=_digest(given)) for given in files if chosen(given)]
        for name in names:
            found.append(_of(name, files, place, progress, done))
        return found


def _digest(given: Given) -> str:
    """A hash of the adapter and of the base weights."""
    paths = sorted(given.adapter.iterdir()) if given.adapter.is_dir() else [given.adapter]
    content = [path.name.encode() + path.read_bytes() for path in [*paths, given.model] if path.name != "README.md"]
    return hashlib.sha256(b"".join(content)).hexdigest()[:16]


def of_corpus(place: Path) -> list[Given]:
    """Writes the corpus, and the base model beside each case that has weights of its own."""
    folder = place / "corpus"
    given = []
    for case in corpus.write(folder):
        model = folder / corpus.BASE
        if case.base:
            model = place / f"{len(given)}.safetensors"
            model.write_bytes(safetensors(base_model() | case.base))
        adapter, right = _adapter(folder / case.folder), Right(case.truth, case.ranks, {})
        given.append(Given(case.format, case.clause, case.name, (case.format,), adapter, model, right))
    return given


def _adapter(place: Path) -> Path:
    """The folder, in formats that are folders, else the file in it."""
    files = [path for path in place.iterdir() if path.name not in (corpus.BASE, "truth.safetensors", CONFIG, "README.md")]
    return place if len(files) != 1 or files[0].name in (WEIGHTS, PICKLE, mlx.WEIGHTS) else files[0]


def written(writer: str, place: Path) -> tuple[list[Given], Matrix]:
    """A file for each feature that the writer offers, and a cell for each other one."""
    try:
        environment = readers.place_of("conformance.files.writers", writers.WRITERS, writer)
        formats, _ = writers.find(writer)
    except readers.NotAvailable as error:
        return [], Matrix(writer, [], str(error), kind="writer")
    out, by = place / f"by {writer}", f"by {writer}"
    out.mkdir()
    made, cells, versions = [], [], {}
    with talk.process("write", writer, environment, out) as process:
        first = process.answer()
        if first is None or "not available" in first:
            return [], Matrix(writer, [], (first or {}).get("not available", ENDED), kind="writer")
        for feature in writers.FEATURES:
            answer = process.ask(feature)
            versions |= (answer or {}).get("versions", {})
            model = place / ("corpus/base.safetensors" if feature in writers.OF_THE_CORPUS else "llama.safetensors")
            if not model.exists():
                model.write_bytes(safetensors(llama.weights()))
            if answer is not None and answer["ok"] and (truth := loaded(out / f"{answer['at']}.npz")):
                adapter = _adapter(out / str(answer["at"]))
                right = Right(truth, *_said(adapter), writers.settings(feature)["lora_alpha"])
                made.append(Given(by, "", feature, formats, adapter, model, right))
            else:
                why = ENDED if answer is None else answer.get("refusal", "its adapter changes nothing")
                given = Given(by, "", feature, formats, out, model, Right({}, {}, {}))
                cells.append(Cell(given, UNWRITTEN, why.removeprefix("NotOffered: ").replace(str(place), "")))
    if writer == "peft":
        made += [other for given in made if given.name == "plain" for other in spoiled(given, out)]
    return made, Matrix(writer, cells, "", versions, "writer")


def merged(writer: str, place: Path) -> Matrix:
    """A cell for each dtype in which the writer merges."""
    try:
        environment = readers.place_of("conformance.files.writers", writers.WRITERS, writer)
    except readers.NotAvailable as error:
        return Matrix(writer, [], str(error), kind="merge")
    out, cells, versions = place / f"merged by {writer}", [], {}
    out.mkdir()
    with talk.process("merge", writer, environment, out) as process:
        first = process.answer()
        if first is None or "not available" in first:
            return Matrix(writer, [], (first or {}).get("not available", ENDED), kind="merge")
        for dtype in merging.DTYPES:
            answer = process.ask(dtype)
            given = Given(f"merged by {writer}", "", dtype, (), out, out, Right({}, {}, {}))
            if answer is None or not answer["ok"]:
                cells.append(Cell(given, LOST, (answer or {}).get("refusal", ENDED)))
                continue
            versions |= answer["versions"]
            try:
                found = judge.of_checkpoint(out / str(answer["at"]), dtype)
            except ValueError as error:
                cells.append(Cell(given, WRONG, str(error)))
                continue
            words = (f"{found.share:.4f} of ΔW is left, and rounding adds {found.added:.3f} ‖ΔW‖; with one rounding of W + ΔW "
                     f"{found.best_share:.4f} and {found.best_added:.3f}")
            ratio = max(found.ratio, found.share_ratio)
            cells.append(Cell(given, RIGHT if ratio <= 1 else WRONG, words, ratio))
    return Matrix(writer, cells, "", versions, "merge")


def _said(adapter: Path) -> tuple[dict[str, int], dict[str, float]]:
    """The ranks and scales by module, as far as the file says them."""
    parts = reading.read(str(adapter)).parts
    return {part.module: part.rank for part in parts}, {part.module: part.scale.value for part in parts if part.scale.value}


def spoiled(plain: Given, out: Path) -> list[Given]:
    """The plain adapter with other names of tensors."""
    held, _ = container.read(str(plain.adapter / WEIGHTS))
    made = []
    for words, change in SPOILED.items():
        folder = out / words
        folder.mkdir()
        (folder / CONFIG).write_bytes((plain.adapter / CONFIG).read_bytes())
        (folder / WEIGHTS).write_bytes(safetensors({change(name): held.array(name) for name in held.tensors}))
        made.append(plain._replace(files="spoiled", name=words, adapter=folder))
    return made


def _of(name: str, files: list[Given], place: Path, progress: Callable[[Matrix], None], done: Done) -> Matrix:
    try:
        environment = readers.place_of("conformance.files.readers", readers.READERS, name)
        reader = readers.find(name)
    except readers.NotAvailable as error:
        matrix = Matrix(name, [], str(error))
        progress(matrix)
        return matrix
    matrix = Matrix(name, [], versions={})
    while len(matrix.cells) < len(files):  # a reader that dies at a file is started again after it
        out = place / f"{len(os.listdir(place))}"
        out.mkdir()
        left = files[len(matrix.cells) :]
        for found in _asked(name, environment, reader, left, out, matrix.versions, done):
            if isinstance(found, str):
                if not matrix.cells:
                    progress(Matrix(name, [], found))
                    return Matrix(name, [], found)
                found = Cell(files[len(matrix.cells)], LOST, found)
            matrix.cells.append(found)
            progress(matrix)
    return matrix


def _asked(name: str, environment: str | None, reader: readers.Reader, files: list[Given], out: Path,
           versions: dict[str, str], done: Done) -> Iterator[Cell | str]:
    """The cells of these files, up to the first at which the reader's process ends. A text if there is no such reader."""
    with talk.process("read", name, environment, out) as process:
        first, plain = process.answer(), None
        if first is None or "not available" in first:
            yield (first or {}).get("not available", ENDED)
            return
        for given in files:
            before = done(name, given)
            if before:
                yield before
                continue
            ready, why = for_reader(given, reader, out)
            if ready is None:
                yield Cell(given, ELSEWHERE, why)
                continue
            if reader.logits and plain is None:
                answer = process.ask(["", str(given.model)])
                if answer is None or not answer["ok"]:
                    yield (answer or {}).get("refusal", ENDED)
                    return
                plain = loaded(out / f"{answer['at']}.npz")["logits"]
            answer = process.ask([str(ready.adapter), str(ready.model)])
            if answer is None:
                yield Cell(given, LOST, ENDED)
                return
            versions |= answer.get("versions", {})
            cell = _judged(ready, answer, out, plain)
            yield cell._replace(given=given, converted=ready is not given)


def for_reader(given: Given, reader: readers.Reader, out: Path) -> tuple[Given | None, str]:
    """The file in a format that the reader reads, or None and why not."""
    if not given.clause and reader.logits and CONV1D in given.right.truth:
        return None, "the model that runs has no such layer"
    if given.clause and not reader.corpus:
        return None, "" if reader.formats and given.formats[0] not in reader.formats else "no model that runs has such layers"
    if reader.formats is None or set(given.formats) & set(reader.formats):
        return given, ""
    if given.clause or given.formats[0] not in CONVERTED or reader.formats[0] not in TO:
        return None, ""
    folder = out / f"converted {len(os.listdir(out))}"
    try:
        made = writing.put(reading.read(str(given.adapter)), TO[reader.formats[0]], folder)
    except writing.CannotSay as error:
        return None, f"our converter: {error}"
    if not given.right.truth.keys() <= made.names.keys():
        return None, "our converter: its names are not those of the model"
    truth = {made.names[module]: delta for module, delta in given.right.truth.items()}
    adapter = _adapter(folder)
    return given._replace(adapter=adapter, right=Right(truth, *_said(adapter), given.right.alpha)), ""


def _judged(given: Given, answer: dict, out: Path, plain: np.ndarray | None) -> Cell:
    if not answer["ok"]:
        words = str(answer.get("refusal", answer.get("broken")))
        for path in (given.adapter, given.adapter.parent, environments.folder("").parent):
            words = words.replace(f"{path}/", "").replace(str(path), given.name)
        return Cell(given, REFUSED if "refusal" in answer else LOST, words)
    found = loaded(out / f"{answer['at']}.npz")
    if not given.valid:
        return Cell(given, ACCEPTED, f"no error; it changed {', '.join(sorted(found)) or 'nothing: the base model is served'}")
    if plain is not None:
        verdict = judge.of_logits(found["logits"], plain, given.right)
        return Cell(given, WRONG if verdict.words else RIGHT, verdict.words, verdict.ratio, verdict.effect)
    words = judge.of_deltas(found, given.right).words
    return Cell(given, WRONG if words else RIGHT, words)


def loaded(path: Path) -> Arrays:
    with np.load(path) as file:
        return {module: file[module] for module in file.files}
