"""conformance selftest: tests the suite itself."""

import argparse
import json

from rich.console import Console

from conformance.commands.shared import CORES, Written, console, positive
from conformance.report import output
from conformance.report import selftest as report
from conformance.report import triggered as report_triggered
from conformance.run import selftest, triggered

HELP = "test the suite itself, on known-bad implementations and on honest ones"


def declare(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--jobs", type=positive(int), default=CORES, metavar="N",
        help="processes that run at the same time (default: one per core)")
    add("--examples", type=positive(int), metavar="N",
        help="approximate number of cases per requirement for honest implementations "
             f"(default: {selftest.HONEST_CASES}, and {selftest.BRIEF_CASES} with --brief)")
    add("--brief", action="store_true",
        help="ask a known-bad implementation only the requirements that it names, and not all that might fail it, and give "
             "honest ones fewer cases: a fraction of the time")
    add("--triggered", type=positive(int), metavar="N",
        help="instead, plant N faults by construction in honest builds, each a trigger of one to three levels and an effect")
    add("--seed", type=int, default=0, metavar="N", help="seed of the cases (default: 0)")
    add("--json", metavar="F", help="write to F as JSON which requirements failed which implementation")


def run(arguments: argparse.Namespace) -> int:
    if arguments.triggered and (arguments.brief or arguments.examples):
        raise ValueError("--triggered plants faults of its own: it goes with neither --brief nor --examples")
    written = Written(arguments.json)
    screen = console()
    found = _triggered(screen, arguments) if arguments.triggered else _listed(screen, arguments)
    text = json.dumps(found.as_dict(), indent=1) + "\n"
    written(arguments.json, lambda file: output.write(file, text.encode()))
    return written.status(1 if found.problems else 0)


def _triggered(screen: Console, arguments: argparse.Namespace) -> triggered.Power:
    with report.progress(screen, triggered.count(arguments.triggered), "living the array") as told:
        found = triggered.run(arguments.triggered, arguments.jobs, told, seed=arguments.seed)
    report_triggered.show(screen, found)
    return found


def _listed(screen: Console, arguments: argparse.Namespace) -> selftest.SelfTest:
    examples = arguments.examples or (selftest.BRIEF_CASES if arguments.brief else selftest.HONEST_CASES)
    with report.progress(screen, selftest.count(), "drawing cases") as told:
        found = selftest.run(arguments.jobs, lambda trial: told(trial.name), examples=examples, seed=arguments.seed,
                             brief=arguments.brief)
    report.show(screen, found)
    return found
