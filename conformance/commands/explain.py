"""conformance explain: shows one requirement in full."""

import argparse

from rich.table import Table
from rich.text import Text

from conformance.commands.shared import console
from conformance.requirements import HIGHAM, all_requirements
from conformance.run.diagnosis import catalogue

HELP = "show one requirement: sentence, formula, why, sources, known faults"


def declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="ID", help="as in `conformance list`, for example MERGE-01")


def run(arguments: argparse.Namespace) -> int:
    found = next((r for r in all_requirements() if r.id == arguments.id.upper()), None)
    if found is None:
        raise ValueError(f"no requirement {arguments.id}, expected one like MERGE-01; `conformance list` shows them")
    screen = console()
    optional = " — for those that offer it" if found.optional else ""
    screen.print(Text(f"{found.id} {found.title} ({found.level}, profile {found.profile}{optional})", style="bold"))
    table = Table.grid(padding=(0, 2))
    table.add_row("sentence", Text(found.sentence))
    table.add_row("formula", Text(found.formula))
    table.add_row("why", Text(found.why))
    if any("derivations" in source for source in found.sources):
        table.add_row("derivation", "lora_ref/derivations/lora.md")
    if HIGHAM in found.sources:
        table.add_row("bound", "lora_ref/error/bounds.py")
    table.add_row("needs", Text(", ".join(("build", *found.needs))))
    for i, source in enumerate(found.sources):
        table.add_row("" if i else "sources", Text(source))
    for i, row in enumerate(catalogue()[id] for id in found.faults):
        text = f"{row['id']} {row['project']}: {row['symptom']} ({row['links'][0]})"
        table.add_row("" if i else "known faults", Text(text))
    screen.print(table)
    return 0
