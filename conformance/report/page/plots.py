"""Places the marks of the plots: error / bound as a strip, and rates as heat maps. Everything else about them is in the
templates."""

import math
from collections import Counter
from itertools import groupby
from typing import NamedTuple

from conformance.report.page.view import Entry, Group

DECADES = 4  # the strip goes from 10⁻⁴ to 1, which is the bound itself
FORMATS = ("float64", "float32", "float16", "bfloat16")
SHADES = 8  # of a heat map


class Strip(NamedTuple):
    """error / bound of one requirement, over all subjects that pass it."""

    id: str
    title: str
    marks: dict[str, list[str]]  # number format, or "all" in a report that does not tell them apart → places in percent
    largest: float
    subject: str  # which has the largest


class Heat(NamedTuple):
    """A table of rates: the shade and the counts of each cell, by row and column."""

    rows: list[str]
    columns: list[str]
    cells: dict[tuple[str, str], tuple[int, int]]  # killed, all

    def shade(self, row: str, column: str) -> int:
        killed, every = self.cells[row, column]
        return math.ceil(SHADES * killed / every)  # 0 for none; the last for more than all but one in eight


def place(ratio: float) -> str:
    """Where the mark is, from 0 to 100. Ratios below the smallest decade stand at its left end."""
    return f"{100 * (1 + math.log10(min(1.0, max(ratio, 10.0**-DECADES))) / DECADES):.4g}"


def strips(groups: list[Group], entries: list[Entry]) -> list[Strip]:
    """For each requirement that is judged by a bound in any subject. What fails has no mark: it is beyond the bound."""
    found = []
    for requirement in (r for group in groups for r in group.requirements):
        marks: dict[str, list[str]] = {}
        largest, who = 0.0, ""
        for entry in entries:
            row = entry.rows.get(requirement.id, {})
            if row.get("status") != "pass" or not row["worst"]:
                continue
            for dtype, ratio in (row.get("worst_in") or {"all": row["worst"]}).items():
                if ratio:
                    marks.setdefault(dtype, []).append(place(ratio))
            largest, who = max((largest, who), (row["worst"], entry.name))
        if marks:
            found.append(Strip(requirement.id, requirement.title, marks, largest, who))
    return found


def kills(selftest: dict) -> Heat:
    """For each group of known-bad implementations, how many of them a requirement of each group fails."""
    every = Counter(mutant["group"] for mutant in selftest["mutants"])
    killed = Counter((mutant["group"], group) for mutant in selftest["mutants"]
                     for group in {id.rpartition("-")[0] for id in mutant["by"]})
    columns = [group for group in every if any((row, group) in killed for row in every)]
    columns += sorted({column for _, column in killed} - set(columns))
    return Heat(list(every), columns, {(row, column): (killed[row, column], every[row]) for row in every for column in columns})


def dots(selftest: dict) -> tuple[list[str], str]:
    """The whole kill matrix as one path of an image: a row for each known-bad implementation, and a column for each
    requirement, which are given, too."""
    ids = sorted({id for mutant in selftest["mutants"] for id in mutant["by"]})
    order = {group: number for number, group in enumerate(dict.fromkeys(mutant["group"] for mutant in selftest["mutants"]))}
    ids.sort(key=lambda id: (order.get(id.rpartition("-")[0], len(order)), id))
    path = ""
    for number, mutant in enumerate(selftest["mutants"]):
        killed, column = set(mutant["by"]), 0
        for kills, run in groupby(id in killed for id in ids):  # neighbours are one stroke
            length = len(list(run))
            path += f"M{column} {number}h{length}" if kills else ""
            column += length
    return ids, path


def powers(triggered: dict) -> Heat:
    """For each factor of a trigger and each kind of effect, how many of the planted faults were killed."""
    cells = {(cell["factor"], cell["group"]): (cell["killed"], cell["all"]) for cell in triggered.get("cells", ())}
    return Heat(list(dict.fromkeys(row for row, _ in cells)), sorted({column for _, column in cells}), cells)
