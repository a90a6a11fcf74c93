"""conformance explain: shows one requirement in full."""

import argparse

from rich.text import Text

from conformance.commands.shared import console
from conformance.report import text
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
    rows = [("sentence", found.sentence), ("formula", found.formula), ("why", found.why)]
    rows += [("derivation", "lora_ref/derivations/lora.md")] * any("derivations" in source for source in found.sources)
    rows += [("bound", "lora_ref/error/bounds.py")] * (HIGHAM in found.sources)
    rows += [("needs", ", ".join(found.calls))]
    known = [catalogue()[id] for id in found.faults]
    faults = [f"{row['id']} {row['project']}: {row['symptom']} ({row['links'][0]})" for row in known]
    for name, every in (("sources", found.sources), ("known faults", faults)):
        rows += [("" if i else name, one) for i, one in enumerate(every)]
    text.pairs(screen, [(name, words) for name, words in rows if words])
    return 0
