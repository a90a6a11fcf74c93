"""conformance run: checks implementations and gives a verdict on each."""

import argparse
import secrets
import threading

from conformance.commands.shared import Written, check_device, console, positive
from conformance.drivers import children, sandbox
from conformance.report import json as json_report
from conformance.report import junit, output, terminal
from conformance.report.page import documents
from conformance.report.page import write as page
from conformance.run import plan, runner, verdict
from conformance.run.loading import built_in
from conformance.run.worker import INTERRUPTED

HELP = "check implementations against every requirement, and give a verdict on each"
DEFAULT = plan.Options()
SEEDS = 1_000_000  # short enough to be typed


def declare(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("subjects", nargs="*", default=["lora_torch"], metavar="SUBJECT",
        help="a built-in name, package.module:attribute, path/to/file.py:attribute, or 'cmd:PROGRAM ARGUMENTS'; "
             "all stands for every built-in one (default: lora_torch)")
    add("--only", nargs="+", default=[], metavar="ID|GROUP", help="only these requirements or groups")
    add("--space", nargs="*", metavar="FACTOR=LEVEL",
        help="sweep the space of cases even with --only, and with every single size (three times as many cases); with levels, "
             "try only the case of these levels and of the plain level of every other factor (SPEC.md has them all)")
    add("--level", choices=("must", "should", "may"), default="may",
        help="leave out requirements below this level (default: may)")
    add("--dtype", nargs="+", choices=plan.DTYPES, default=list(plan.DTYPES), metavar="D",
        help=f"only these, of {', '.join(plan.DTYPES)}")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where layers are built (default: cpu)")
    add("--examples", type=positive(int), default=DEFAULT.examples, metavar="N",
        help=f"approximate number of cases per requirement (default: {DEFAULT.examples})")
    add("--seed", type=int, metavar="N",
        help="seed of the cases that are drawn anew, a twelfth of all (default: another one in each run, which is told); the "
             "same seed gives the same run")
    add("--jobs", type=positive(int), default=DEFAULT.jobs, metavar="N",
        help=f"processes that run at the same time (default: one per core, here {DEFAULT.jobs})")
    add("--timeout", type=positive(float), default=DEFAULT.timeout, metavar="S",
        help=f"seconds that one requirement may take, and a third of what a part of the space may take (default: "
             f"{DEFAULT.timeout:g}); after three timeouts a tenth of that, until the subject answers again")
    add("--memory", type=positive(float), default=DEFAULT.memory, metavar="GIB",
        help=f"memory that a subject and what it starts may take, in GiB (default: {DEFAULT.memory:g})")
    add("--strict", action="store_true",
        help="make up for nothing: a scale of another rule and a base that the caller must freeze then fail every requirement "
             "that they touch, and not only the one about them")
    add("--sandbox", action="store_true",
        help="run the subject in bubblewrap (bwrap), where that is installed: no network, a private home, a read-only system")
    add("--in-process", action="store_true",
        help="run the subject in the judge's process, for a debugger: nothing then keeps the two apart, and the report says so")
    add("--json", metavar="F", help="write the report to F as JSON, again after every subject")
    add("--resume", action="store_true", help="continue the run in F, from --json: leave out subjects that are done and "
                                              "whose code is as it was")
    add("--junit", metavar="F", help="write the report to F as JUnit XML")
    add("--html", metavar="PLACE",
        help="write the report as a page: to one file if the name ends in .html, else to a folder with a page and a badge for "
             "each subject; `conformance page` makes one from JSON reports")


def run(arguments: argparse.Namespace) -> int:
    check_device(arguments.device)
    specs = list(built_in()) if arguments.subjects == ["all"] else arguments.subjects
    repeated = [spec for spec in specs if specs.count(spec) > 1]
    if repeated:
        raise ValueError(f"{repeated[0]} is named twice")
    if not all(map(str.strip, specs)):
        raise ValueError("a SUBJECT is empty")
    if arguments.resume and not arguments.json:
        raise ValueError("--resume needs --json F, the file with the reports that are there")
    if arguments.sandbox:
        sandbox.check()
        if arguments.in_process:
            raise ValueError("--sandbox and --in-process: a subject in the judge's process is in no sandbox")
    seed = json_report.seed_of(arguments.json) if arguments.resume and arguments.seed is None else arguments.seed
    options = plan.Options(
        tuple(arguments.only), arguments.level, tuple(arguments.dtype), arguments.device, arguments.examples,
        secrets.randbelow(SEEDS) if seed is None else seed, arguments.jobs, arguments.timeout, arguments.memory,
        arguments.in_process, arguments.sandbox, arguments.strict, None if arguments.space is None else tuple(arguments.space),
    )
    parts = plan.parts(options)
    planned = plan.plan(options)
    if not options.in_process:
        children.adopt_orphans()  # a judge may be killed, and what its subject has started is then ours to end
        children.close_to_others()
    written = Written(arguments.json, arguments.junit, arguments.html if page.is_file(arguments.html or "") else None)
    if arguments.html:
        page.check(arguments.html)
    json_report.decisive(options)  # the code as it is now: it may be changed during the run
    done = json_report.read(arguments.json, options, planned) if arguments.resume else {}
    screen, lock = console(), threading.Lock()

    def so_far(why: str) -> list[verdict.Report]:
        """A report on every subject of the run. One that is not done has the reason in the place of a verdict."""
        absent = {spec: verdict.Report(spec, spec.rpartition(":")[2], planned=planned, unloadable=why) for spec in specs}
        return list((absent | done).values())  # those of the run come first, in its order

    def keep(why: str) -> None:
        written(arguments.json, lambda file: json_report.write(file, so_far(why), options))

    def finish(found: list[verdict.Report], why: str) -> None:
        keep(why)
        written(arguments.junit, lambda file: junit.write(file, found))
        written(arguments.html, lambda place: page.write(place, documents.of_run(json_report.as_dict(found, options))))

    asked = len(planned) + len(parts)
    with terminal.progress(screen, specs, asked, drawn=not options.in_process) as told:  # a debugger needs the screen

        def noted(report: verdict.Report, outcome) -> None:
            told(report, outcome)
            if outcome is None:
                with lock:
                    done[report.spec] = report
                    if arguments.json and not output.is_stream(arguments.json):
                        keep("it was not done when this was written")

        try:
            reports = runner.run(specs, options, noted, dict(done))
        except BaseException:
            finish(so_far(INTERRUPTED)[: len(specs)], INTERRUPTED)
            written.status(0)
            raise
    finish(reports, "")
    terminal.show(screen, reports, options.seed)
    return written.status(max(report.exit_status for report in reports))
