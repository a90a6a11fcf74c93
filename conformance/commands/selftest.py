"""conformance selftest: tests the suite itself."""

import argparse
import json
from pathlib import Path

from conformance.commands.shared import CORES, check_files, console, positive
from conformance.report import selftest as report
from conformance.run import selftest

HELP = "test the suite itself, on known-bad implementations and on honest ones"


def declare(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--jobs", type=positive(int), default=CORES, metavar="N",
        help="processes that run at the same time (default: one per core)")
    add("--examples", type=positive(int), default=selftest.HONEST_CASES, metavar="N",
        help="approximate number of cases per requirement for honest implementations "
             f"(default: {selftest.HONEST_CASES})")
    add("--seed", type=int, default=0, metavar="N", help="seed of the cases (default: 0)")
    add("--json", metavar="F", help="write to F as JSON which requirements failed which implementation")


def run(arguments: argparse.Namespace) -> int:
    check_files(arguments.json)
    screen = console()
    with report.progress(screen, selftest.count()) as told:
        found = selftest.run(arguments.jobs, told, examples=arguments.examples, seed=arguments.seed)
    report.show(screen, found)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(found.as_dict(), indent=1) + "\n", encoding="utf-8")
    return 1 if found.problems else 0
