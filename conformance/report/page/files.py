"""The matrix of files: what each reader made of each file, from a report of `conformance exchange`."""

from typing import Any

MARKS = {"right": "p", "refused": "s", "wrong": "f", "accepted": "f", "crash": "e"}  # classes of the style


def matrix(exchange: dict) -> dict[str, Any]:
    """The readers, and for each source the files with what every reader made of them, and how often each was wrong."""
    readers = list(dict.fromkeys(reader["reader"] for reader in exchange["readers"]))
    cells = {(cell["files"], cell["case"], reader["reader"]): cell
             for reader in exchange["readers"] for cell in reader["cells"]}
    found: dict[str, dict[str, list[dict | None]]] = {}
    for source, case, _ in sorted(cells, key=lambda key: key[0].startswith("by ")):  # the corpus, then what programs write
        found.setdefault(source, {}).setdefault(case, [cells.get((source, case, reader)) for reader in readers])
    wrong = {source: [sum(mark(cell) in ("f", "e") for cell in column) for column in zip(*rows.values(), strict=True)]
             for source, rows in found.items()}
    return {"readers": readers, "files": found, "wrong": wrong, "missing": {
        reader["reader"]: reader["missing"] for reader in exchange["readers"] if reader["missing"]}}


def mark(cell: dict | None) -> str:
    """The class of the style for what a reader made of a file. A file that is not valid is rightly refused."""
    if cell is None:
        return "n"
    return "p" if cell["status"] == "refused" and not cell["valid"] else MARKS.get(cell["status"], "n")
