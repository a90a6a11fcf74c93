"""conformance list: lists every requirement."""

import argparse
import json
import sys

from rich.table import Table
from rich.text import Text

from conformance.commands.shared import console
from conformance.requirements import all_requirements

HELP = "list every requirement: id, level, group, sentence"


def declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON, with formula, sources and faults")


def run(arguments: argparse.Namespace) -> int:
    if arguments.json:
        rows = [{
            "id": r.id, "level": r.level, "group": r.group, "profile": r.profile, "title": r.title, "sentence": r.sentence,
            "formula": r.formula, "why": r.why, "sources": r.sources, "needs": r.calls,
            "optional": r.optional, "faults": r.faults,
        } for r in all_requirements()]
        print(json.dumps(rows, indent=1, ensure_ascii=sys.stdout.encoding.lower() != "utf-8"))
        return 0
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("id", "level", "group", "sentence"):
        table.add_column(column, no_wrap=column != "sentence", max_width=None if column == "sentence" else 10)
    for r in all_requirements():
        table.add_row(r.id, r.level, r.group, Text(r.sentence))
    console().print(table)
    return 0
