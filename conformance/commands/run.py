"""conformance run: checks implementations and gives a verdict on each."""

import argparse
import threading

from conformance.commands.shared import check_device, check_files, console, positive
from conformance.report import json as json_report
from conformance.report import junit, terminal
from conformance.run import plan, runner, verdict
from conformance.run.loading import built_in

HELP = "check implementations against every requirement, and give a verdict on each"
DEFAULT = plan.Options()


def declare(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("subjects", nargs="*", default=["lora_torch"], metavar="SUBJECT",
        help="a built-in name, package.module:attribute, path/to/file.py:attribute, or 'cmd:PROGRAM ARGUMENTS'; "
             "all stands for every built-in one (default: lora_torch)")
    add("--only", nargs="+", default=[], metavar="ID|GROUP", help="only these requirements or groups")
    add("--level", choices=("must", "should", "may"), default="may",
        help="leave out requirements below this level (default: may)")
    add("--dtype", nargs="+", choices=plan.DTYPES, default=list(plan.DTYPES), metavar="D",
        help=f"only these, of {', '.join(plan.DTYPES)}")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where layers are built (default: cpu)")
    add("--examples", type=positive(int), default=DEFAULT.examples, metavar="N",
        help=f"approximate number of cases per requirement (default: {DEFAULT.examples})")
    add("--seed", type=int, default=0, metavar="N", help="seed of the cases (default: 0); the same seed gives the same run")
    add("--jobs", type=positive(int), default=DEFAULT.jobs, metavar="N",
        help=f"processes that run at the same time (default: one per core, here {DEFAULT.jobs})")
    add("--timeout", type=positive(float), default=DEFAULT.timeout, metavar="S",
        help=f"seconds that one requirement may take (default: {DEFAULT.timeout:g}); after three timeouts in a "
             "row a tenth of that, until the subject answers again")
    add("--memory", type=positive(float), default=DEFAULT.memory, metavar="GIB",
        help=f"memory that a program in another process may take, in GiB (default: {DEFAULT.memory:g})")
    add("--json", metavar="F", help="write the report to F as JSON, again after every subject")
    add("--resume", action="store_true", help="continue the run in F, from --json: leave out subjects that are done")
    add("--junit", metavar="F", help="write the report to F as JUnit XML")


def run(arguments: argparse.Namespace) -> int:
    check_files(arguments.json, arguments.junit)
    check_device(arguments.device)
    specs = list(built_in()) if arguments.subjects == ["all"] else arguments.subjects
    repeated = [spec for spec in specs if specs.count(spec) > 1]
    if repeated:
        raise ValueError(f"{repeated[0]} is named twice")
    if arguments.resume and not arguments.json:
        raise ValueError("--resume needs --json F, the file with the reports that are there")
    options = plan.Options(
        tuple(arguments.only), arguments.level, tuple(arguments.dtype), arguments.device, arguments.examples,
        arguments.seed, arguments.jobs, arguments.timeout, arguments.memory,
    )
    planned = plan.plan(options)
    done = json_report.read(arguments.json, options, planned) if arguments.resume else {}
    screen = console()
    with terminal.progress(screen, specs, len(planned)) as told:
        lock = threading.Lock()

        def noted(report: verdict.Report, outcome) -> None:
            told(report, outcome)
            if outcome is None and arguments.json:
                with lock:
                    done[report.spec] = report
                    json_report.write(arguments.json, [done[spec] for spec in dict.fromkeys((*specs, *done)) if spec in done],
                                      options)

        reports = runner.run(specs, options, noted, dict(done))
    terminal.show(screen, reports)
    if arguments.junit:
        junit.write(arguments.junit, reports)
    return max(report.exit_status for report in reports)
