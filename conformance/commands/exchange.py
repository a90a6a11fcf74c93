"""conformance exchange: what readers of adapter files make of the corpus."""

import argparse
import json
import sys
from collections import Counter

from rich.table import Table
from rich.text import Text

from conformance import __version__
from conformance.commands.shared import Written, console
from conformance.files import exchange
from conformance.files.consumers import CONSUMERS
from conformance.files.corpus import Case
from conformance.files.exchange import ACCEPTED, BAD, ELSEWHERE, LOST, REFUSED, RIGHT, UNWRITTEN, WRONG, Cell, Matrix
from conformance.files.producers import PRODUCERS
from conformance.report import output, text
from conformance.run.examine import plain

HELP = "give the files of the corpus to readers, and compare what each makes of them"
EPILOG = """\
A reader is a built-in one, or a function of yours:

  def read(path, base):
      # path: the folder of the adapter, or its file
      # base: the weights of the base model, {name: array}, in PEFT's cases
      return {module: delta_of_W}      # or raise an exception to refuse it

  conformance exchange my_reader.py:read

With --writers the readers also get what programs write: an adapter for each
of some twenty features. The right ΔW is what the writer's own model computes.

Each reader runs in a process of its own. What it makes of a file is

  right      ΔW of every module is the declared one, bit for bit
  refused    it raised an exception: right for an invalid file
  wrong      it gave another ΔW, and no error: by which factor, or which fault
  accepted   it took an invalid file, and gave no error
  crash      its process ended, or gave no answer in time

exit status:
  0 nothing is wrong, accepted or a crash
  1 something is, or a reader read none of its valid files
  2 usage
  3 a reader or writer is not available, or no file was for any reader
"""


def declare(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    add = parser.add_argument
    known, writers = ", ".join(CONSUMERS), ", ".join(PRODUCERS)
    add("readers", metavar="READER", nargs="*", help=f"{known}, FILE.py:FUNCTION or MODULE:FUNCTION (default: {known})")
    add("--writers", metavar="WRITER", nargs="*", help=f"take what these write, too: {writers} (without a name: all of them)")
    add("--only", metavar="WORD", nargs="+", default=(), help="formats, clauses or writers: peft, P-4, by")
    add("--json", metavar="F", help="write all cells to F as JSON")


def run(arguments: argparse.Namespace) -> int:
    written = Written(arguments.json)
    only = {word.lower() for word in arguments.only}

    def chosen(case: Case) -> bool:
        return not only or bool(only & {case.source, case.clause.lower(), case.clause.partition("-")[0].lower()})

    if only and arguments.writers is None and not any(map(chosen, exchange.corpus.cases())):
        raise ValueError(f"--only {' '.join(arguments.only)}: no file of the corpus is of this format or about this clause")
    writers = list(PRODUCERS) if arguments.writers == [] else arguments.writers
    with console().status("the corpus is written") as shown:  # seen on a terminal alone
        matrices = exchange.exchange(
            arguments.readers or list(CONSUMERS), chosen, writers,
            lambda name, cell: shown.update(Text(f"{name}: {cell.case.title}")))
    report = as_dict(matrices)
    written(arguments.json, lambda file: output.write(file, (json.dumps(report, indent=1, allow_nan=False) + "\n").encode()))
    show(matrices)
    return written.status(status(matrices))


def status(matrices: list[Matrix]) -> int:
    """The exit status: see above."""
    cells = [cell for matrix in matrices for cell in matrix.cells if cell.status not in (ELSEWHERE, UNWRITTEN)]
    if any(cell.status in BAD for cell in cells) or any(map(useless, matrices)):
        return 1
    return 3 if not cells or any(matrix.missing for matrix in matrices) else 0


def useless(matrix: Matrix) -> bool:
    """Whether it was given valid files, and read none of them."""
    valid = [cell.status for cell in matrix.cells if cell.case.valid and cell.status != ELSEWHERE]
    return bool(valid) and RIGHT not in valid


def as_dict(matrices: list[Matrix]) -> dict:
    """The JSON report: schema 1."""
    return {"schema": 1, "version": __version__, "readers": [
        {"reader": matrix.consumer, "missing": matrix.missing,
         "cells": [{"case": cell.case.folder, "files": cell.case.source, "clause": cell.case.clause, "valid": cell.case.valid,
                    "status": cell.status, "words": cell.words} for cell in matrix.cells]} for matrix in matrices]}


def show(matrices: list[Matrix]) -> None:
    """Prints a table of counts, then each cell that is bad, and each valid file that was refused."""
    screen = console()
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in ("reader", "files", RIGHT, REFUSED, WRONG, ACCEPTED, LOST):
        table.add_column(name, justify="left" if name in ("reader", "files") else "right", overflow="fold")
    for matrix in matrices:
        for source in dict.fromkeys(cell.case.source for cell in matrix.cells if cell.status not in (ELSEWHERE, UNWRITTEN)):
            counts = Counter(_column(cell) for cell in matrix.cells if cell.case.source == source)
            table.add_row(matrix.consumer, source, *(str(counts[name]) for name in (RIGHT, REFUSED, WRONG, ACCEPTED, LOST)))
    screen.print(table)
    text.paragraph(screen, "right: the declared ΔW, or an invalid file refused; refused: a valid file", hanging=2)
    for matrix in matrices:
        if matrix.missing:
            text.paragraph(screen, f"{matrix.consumer}: not available: {plain(matrix.missing)}", hanging=2, style="bold")
        if useless(matrix):
            screen.print(Text(f"{matrix.consumer}: it read none of its valid files", style="bold red"))
        for cell in matrix.cells:
            if _column(cell) not in (RIGHT, ELSEWHERE):
                style = "bold red" if cell.status in BAD else "bold"
                text.paragraph(screen, f"{matrix.consumer} {cell.case.title}: {_column(cell)}", hanging=2, style=style)
                text.paragraph(screen, plain(cell.words)[:400], 2)
    sys.stdout.flush()


def _column(cell: Cell) -> str:
    return RIGHT if cell.status == REFUSED and not cell.case.valid else cell.status
