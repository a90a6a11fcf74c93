"""conformance exchange: what readers make of adapter files that writers wrote, and of the corpus."""

import argparse
import hashlib
import json
import sys
import time
from collections import Counter
from importlib import import_module
from pathlib import Path

from rich.table import Table
from rich.text import Text

from conformance.commands import subjects
from conformance.commands.shared import Written, console
from conformance.drivers import environments
from conformance.files import exchange
from conformance.files.corpus.made import Case
from conformance.files.exchange import ACCEPTED, BAD, ELSEWHERE, LOST, REFUSED, RIGHT, UNWRITTEN, WRONG, Cell, Given, Matrix
from conformance.files.readers import READERS
from conformance.files.writers import WRITERS
from conformance.report import output, text
from conformance.report.json import harness
from conformance.run.examine import plain

KEPT = ("status", "words", "ratio", "effect", "converted")  # of a cell, besides what it is about
HELP = "give adapter files to readers, and compare what each makes of them"
EPILOG = """\
A reader is a built-in one, or a function of yours:

  def read(path, base):
      # path: the folder of the adapter, or its file
      # base: the weights of the base model, {name: array}
      return {module: delta_of_W}      # or raise an exception to refuse it

  A third parameter gets kinds, {module: "linear", "embedding" or "conv1d"}.
  Modules are named as in the file: lora_unet_… in kohya's files, and with the
  component's name, such as transformer, in those of diffusers. FILE-31 and
  FILE-33 of conformance run want the names of the base model.

  conformance exchange my_reader.py:read

With --writers the readers also get what programs write: an adapter for each
of some twenty features. The right ΔW is what the writer's own model computes.

  conformance exchange vllm peft --writers peft --install
  conformance exchange vllm peft --writers peft --json matrix.json
  conformance exchange --writers --json matrix.json --resume

Each reader runs in a process of its own, in its own environment if it needs
one. What it makes of a file is

  right      ΔW of every module is the right one, bit for bit; where a program
             shows no ΔW, its log-probabilities are those of the right ΔW, up
             to rounding: error / bound is at most 1
  refused    it raised an exception: right for an invalid file
  wrong      it gave another ΔW, and no error: by which factor, or which fault
  accepted   it took an invalid file, and gave no error
  crash      its process ended, or gave no answer in time

exit status:
  0 nothing is wrong, accepted or a crash
  1 something is, or a reader read none of its valid files
  2 usage
  3 a reader or writer is not available, or no file was for any reader
  4 an environment could not be made
"""


def declare(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    add = parser.add_argument
    known, writers = ", ".join(READERS), ", ".join(WRITERS)
    add("readers", metavar="READER", nargs="*", help=f"{known}, FILE.py:FUNCTION or MODULE:FUNCTION (default: {known})")
    add("--writers", metavar="WRITER", nargs="*", help=f"take what these write, too: {writers} (without a name: all of them)")
    add("--only", metavar="WORD", nargs="+", default=(), help="formats, clauses or writers: peft, P-4, by, merged")
    add("--json", metavar="F", help="write all cells to F as JSON, while they come")
    add("--resume", action="store_true", help="continue the run in F, from --json: leave out cells that are there, of the same "
        "bytes; the code and the packages have to be the same; a reader of yours is asked again")
    add("--install", action="store_true", help="only make the environments of these readers and writers, in $CONFORMANCE_CACHE "
        "or ~/.cache/conformance")


def run(arguments: argparse.Namespace) -> int:
    if arguments.resume and not arguments.json:
        raise ValueError("--resume needs --json F, the file with the cells that are there")
    written = Written(arguments.json)
    only = {word.lower() for word in arguments.only}
    names = arguments.readers or list(READERS)
    writers = list(WRITERS) if arguments.writers == [] else arguments.writers
    if arguments.install:
        return subjects.make(dict.fromkeys(filter(None, _environments(names, READERS) + _environments(writers or [], WRITERS))))

    def chosen(given: Given | Case) -> bool:
        source = given.files if isinstance(given, Given) else given.format
        return not only or bool(only & {*source.split(" "), given.clause.lower(), given.clause.partition("-")[0].lower()})

    if only and writers is None and not any(map(chosen, exchange.corpus.cases())):
        raise ValueError(f"--only {' '.join(arguments.only)}: no file of the corpus is of this format or about this clause")
    report = Report(arguments.json if arguments.resume else None)
    with console().status("the files are written") as shown:  # seen on a terminal alone
        def progress(matrix: Matrix) -> None:
            shown.update(Text(f"{matrix.name}: {matrix.cells[-1].given.title}" if matrix.cells else matrix.name))
            report.keep(matrix)
            if report.is_old():
                written(arguments.json, report.write)

        found = exchange.exchange(names, chosen, writers, progress, report.before)
        written(arguments.json, report.write)
    show(found)
    return written.status(status(found))


def _environments(names: list[str], known: dict[str, str]) -> list[str | None]:
    package = "conformance.files.readers" if known is READERS else "conformance.files.writers"
    for name in names:
        if name not in known:
            raise ValueError(f"no built-in {package.rpartition('.')[2].removesuffix('s')} {name}; there are {', '.join(known)}")
    return [import_module(f"{package}.{known[name]}").ENVIRONMENT for name in names]


class Report:
    """The JSON report, schema 2, which grows with each cell. It may go on from an earlier one."""

    def __init__(self, earlier: str | None):
        """Raises ValueError for a report of other code or other packages, and for what is none."""
        self.written = 0.0
        self.matrices: dict[tuple[str, str], Matrix] = {}
        self.cells: dict[tuple[str, ...], dict] = {}
        self.versions: dict[str, dict[str, str]] = {}
        if earlier is None or not Path(earlier).exists():
            return
        try:
            stored = json.loads(Path(earlier).read_text(encoding="utf-8"))
            for matrix in stored["readers"]:
                self.versions[matrix["reader"]] = matrix["versions"]
                self.cells |= {(matrix["reader"], cell["case"], cell["digest"]): {name: cell[name] for name in KEPT}
                               for cell in matrix["cells"] if cell["status"] != LOST}
            same = stored["harness"] == self.harness()
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise ValueError(f"--resume: {earlier} is no report of exchange: {error}") from error
        if not same:
            raise ValueError(f"--resume: {earlier} is of other code or other packages; name another file, or remove it")

    @staticmethod
    def harness() -> dict:
        made = {name: environments.ENVIRONMENTS[name].steps for name in environments.ENVIRONMENTS if environments.made(name)}
        return harness() | {"environments": hashlib.sha256(json.dumps(made).encode()).hexdigest()[:16]}

    def before(self, name: str, given: Given) -> Cell | None:
        """The cell of the earlier report, of the same bytes. None for a reader of the user's, whose code may have changed."""
        cell = self.cells.get((name, given.title, given.digest)) if name in READERS else None
        return Cell(given, **cell) if cell else None

    def keep(self, matrix: Matrix) -> None:
        self.matrices[matrix.kind, matrix.name] = matrix

    def is_old(self) -> bool:
        """Whether it has not been written for a second. To write it takes a tenth of that."""
        return time.monotonic() > self.written + 1

    def write(self, file: str) -> None:
        text = json.dumps(self.as_dict(), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
        output.write(file, text.encode())
        self.written = time.monotonic()

    def as_dict(self) -> dict:
        found: dict = {"schema": 2, "harness": self.harness(), "readers": [], "writers": [], "merges": []}
        for (kind, name), matrix in self.matrices.items():
            earlier = self.versions.get(name, {}) if kind == "reader" else {}
            found[f"{kind}s"].append({
                kind: name, "missing": matrix.missing, "versions": earlier | matrix.versions,
                "cells": [{"files": cell.given.files, "case": cell.given.title, "clause": cell.given.clause,
                           "name": cell.given.name,
                           "valid": cell.given.valid, "digest": cell.given.digest,
                           **{word: getattr(cell, word) for word in KEPT}} for cell in matrix.cells]})
        return found


def status(matrices: list[Matrix]) -> int:
    """The exit status: see above."""
    found = {(matrix.kind, cell.status) for matrix in matrices for cell in matrix.cells}
    if any(status in BAD for _, status in found) or any(map(useless, matrices)):
        return 1
    was_read = any(kind == "reader" and status not in (ELSEWHERE, UNWRITTEN) for kind, status in found)
    return 3 if not was_read or any(matrix.missing for matrix in matrices) else 0


def useless(matrix: Matrix) -> bool:
    """Whether it was given valid files, and read none of them."""
    valid = [cell.status for cell in matrix.cells if cell.given.valid and cell.status not in (ELSEWHERE, UNWRITTEN)]
    return bool(valid) and RIGHT not in valid


def show(matrices: list[Matrix]) -> None:
    """Prints a table of counts, then each cell that is bad, and each valid file that was refused."""
    screen = console()
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in ("reader", "files", RIGHT, REFUSED, WRONG, ACCEPTED, LOST):
        table.add_column(name, justify="left" if name in ("reader", "files") else "right", overflow="fold")
    for matrix in matrices:
        for files in dict.fromkeys(cell.given.files for cell in matrix.cells if cell.status not in (ELSEWHERE, UNWRITTEN)):
            counts = Counter(_column(cell) for cell in matrix.cells if cell.given.files == files)
            table.add_row(matrix.name, files, *(str(counts[name]) for name in (RIGHT, REFUSED, WRONG, ACCEPTED, LOST)))
    screen.print(table)
    text.paragraph(screen, "right: the right ΔW, or an invalid file refused; refused: a valid file", hanging=2)
    for matrix in matrices:
        if matrix.missing:
            text.paragraph(screen, f"{matrix.name}: not available: {plain(matrix.missing)}", hanging=2, style="bold")
        if useless(matrix):
            screen.print(Text(f"{matrix.name}: it read none of its valid files", style="bold red"))
        for cell in matrix.cells:
            if _column(cell) not in (RIGHT, ELSEWHERE):
                style = "bold red" if cell.status in BAD else "bold"
                by = ", by our converter" if cell.converted else ""
                text.paragraph(screen, f"{matrix.name} {cell.given.title}{by}: {_column(cell)}", hanging=2, style=style)
                text.paragraph(screen, plain(cell.words)[:400], 2)
    sys.stdout.flush()


def _column(cell: Cell) -> str:
    return RIGHT if cell.status == REFUSED and not cell.given.valid else cell.status
