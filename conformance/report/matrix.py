"""The tables of results/exchange.md, from the cells of results/exchange.json."""

import json
from collections import Counter
from functools import cache
from pathlib import Path

from conformance.files.exchange import BAD, ELSEWHERE, REFUSED, RIGHT, SPOILED, UNWRITTEN
from conformance.files.writers import FEATURES

RESULTS = Path(__file__).parents[1] / "results"
PATH = RESULTS / "exchange.md"
SHORT = {RIGHT: "✓", REFUSED: "refused", ELSEWHERE: "", "crash": "**crash**", "accepted": "**accepted**"}


@cache
def report() -> dict:
    return json.loads((RESULTS / "exchange.json").read_text(encoding="utf-8"))


def column(cell: dict) -> str:
    return RIGHT if cell["status"] == REFUSED and not cell["valid"] else cell["status"]


def counts() -> str:
    """For each reader and each kind of files, how many were right, refused, wrong, accepted or a crash."""
    rows = ["| reader | files | right | refused | wrong | accepted | crash |", "|---|---|---:|---:|---:|---:|---:|"]
    for reader in report()["readers"]:
        read = [cell for cell in reader["cells"] if cell["status"] != ELSEWHERE]
        for files in dict.fromkeys(cell["files"] for cell in read):
            found = Counter(column(cell) for cell in read if cell["files"] == files)
            numbers = (str(found[name]) for name in (RIGHT, REFUSED, *BAD))
            rows.append(f"| {reader['reader']} | {files} | {' | '.join(numbers)} |")
    return "\n".join(rows)


def features() -> str:
    """A table for each writer: what each reader makes of each feature."""
    readers = report()["readers"]
    unwritten = {(f"by {writer['writer']}", cell["name"]) for writer in report()["writers"] for cell in writer["cells"]
                 if cell["status"] == UNWRITTEN}
    tables = []
    for files, names in [*((f"by {writer['writer']}", FEATURES) for writer in report()["writers"]), ("spoiled", SPOILED)]:
        cells = {(reader["reader"], cell["name"]): cell
                 for reader in readers for cell in reader["cells"] if cell["files"] == files}
        shown = [reader["reader"] for reader in readers
                 if any(cells.get((reader["reader"], name), {}).get("status", ELSEWHERE) != ELSEWHERE for name in names)]
        rows = [f"**{files}**", "", "| feature | " + " | ".join(shown) + " |", "|---|" + "---|" * len(shown)]
        rows += [f"| {name} | " + " | ".join(_word(cells[reader, name]) for reader in shown) + " |"
                 for name in names if (files, name) not in unwritten]
        lacks = [name for name in names if (files, name) in unwritten]
        tables.append("\n".join([*rows, *(["", f"It does not offer: {', '.join(lacks)}."] if lacks else [])]))
    return "\n\n".join(tables)


def _word(cell: dict) -> str:
    by = "*" if cell["converted"] and cell["status"] != ELSEWHERE else ""
    return SHORT.get(cell["status"], f"**{cell['status']}**") + by


def wrong() -> str:
    """Every cell that is wrong, with what is wrong, but for invalid files of the corpus."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for reader in report()["readers"]:
        for cell in reader["cells"]:
            if cell["status"] in BAD and cell["valid"]:
                by = ", by our converter" if cell["converted"] else ""
                groups.setdefault((reader["reader"], cell["files"] + by, cell["words"]), []).append(cell["name"])
    return "\n".join(f"* {reader}, {files}, *{', '.join(names)}*: {words}" for (reader, files, words), names in groups.items())


def merges() -> str:
    """What is left of ΔW in merged checkpoints."""
    rows = ["| writer | dtype | | error / bound | of ΔW |", "|---|---|---|---:|---|"]
    rows += [f"| {merge['merge']} | {cell['name']} | {cell['status']} | {cell['ratio']:.2f} | {cell['words']} |"
             for merge in report()["merges"] for cell in merge["cells"]]
    return "\n".join(rows)


def versions() -> str:
    """The versions of the libraries, as they were where each reader and each writer ran."""
    lines = [f"* {kind[:-1]} {one[kind[:-1]]}: " + ", ".join(f"{name} {version}" for name, version in one["versions"].items())
             for kind in ("readers", "writers") for one in report()[kind]]
    return "\n".join(lines)
