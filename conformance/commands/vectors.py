"""conformance vectors: test vectors for programs in any language."""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from textwrap import fill

from rich.text import Text

from conformance.commands.shared import CORES, Written, console, positive
from conformance.report import output
from conformance.requirements import groups
from conformance.run.examine import plain
from conformance.run.verdict import ANSWERED, CORE
from conformance.vectors import check, export, files, lint
from conformance.vectors.check import Verdict

HELP = "test vectors as JSON: write them, check what a program answered, check the files"
EPILOG = """\
A vector gives a program W, b, A, B, x and so on, and says in which interval
each number of its answer must lie. No Python is needed to use it:

  conformance vectors export vectors           write a set of vectors
  my-program < vectors/vectors.txt > results   yours; it may read the JSON
  conformance vectors check vectors results    which are right, which are not

docs/vectors.md describes the files. `equal` numbers must be equal bit for
bit: every honest way of computing them is exact. All others lie in a derived
interval around the exact number, which was proven with rational numbers.

conformance vectors export --help, and the same of check and lint, say more.
"""
EXPORT = """\
The files are the same to the byte for the same seed, version and packages.
Every vector is tried on all known faults and all honest implementations of
this package, so this takes a minute or more.

  conformance vectors export vectors
  conformance vectors export some --only FWD GRAD
  conformance vectors export others --seed 7
"""
CHECK = """\
RESULTS is JSON, or lines of text:

  answer FWD-01-float32-1 y 1.5 -3 0.25      one line for each array
  unsupported MULTI-03-float32-1 one adapter alone
  error SCALE-06-float32-1 alpha is zero

  {"results": {"FWD-01-float32-1": {"answers": {"y": [1.5, -3, 0.25]}},
               "MULTI-03-float32-1": {"unsupported": "one adapter alone"}}}

exit status:
  0 every vector of a MUST was answered rightly or is unsupported
  1 an answer is wrong, or an error
  2 usage: no results, or those of another set
  3 an answer is missing, no forward pass of FWD-01 was answered, or fewer
    than half of the vectors of a MUST
"""
LINT = """\
It checks the files themselves: JSON Schema, hashes, ids, requirements and
mutants, decimal numbers against bits. It proves again, with rational
numbers, that each interval holds the exact number, except for counts,
refusals, initial values and rows that are not finite. It runs each fault
that a vector is said to show.

exit status: 0 all is well   1 something is wrong   2 usage
             3 the schema was not checked, since jsonschema is not installed
"""
SHOWN = 12  # requirements whose first failure is told
STATUSES = ("pass", "fail", "error", "missing", "unsupported")


def declare(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    commands = parser.add_subparsers(title="commands", required=True, metavar="export|check|lint", dest="action")
    options = {"formatter_class": argparse.RawDescriptionHelpFormatter}

    def add(name: str, words: str, epilog: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=words, description=words, epilog=epilog, **options)  # pyright: ignore[reportArgumentType]

    exported = add("export", "write a set of vectors", EXPORT)
    exported.add_argument("folder", metavar="DIR", help="it must be empty, or not be there")
    exported.add_argument("--only", metavar="GROUP", nargs="+", default=(), help="FWD, GRAD, SCALE, …")
    exported.add_argument("--seed", type=int, default=0, metavar="N", help="another seed gives other numbers (default: 0)")
    exported.add_argument("--jobs", type=positive(int), default=CORES, metavar="N", help=f"processes (default: {CORES})")
    checked = add("check", "check the results of a program", CHECK)
    checked.add_argument("folder", metavar="DIR", help="the set of vectors")
    checked.add_argument("results", metavar="RESULTS", help="what the program wrote")
    checked.add_argument("--json", metavar="F", help="write the verdict on each vector to F as JSON")
    linted = add("lint", "check a set of vectors itself", LINT)
    linted.add_argument("folder", metavar="DIR", help="the set of vectors")


def run(arguments: argparse.Namespace) -> int:
    return {"export": run_export, "check": run_check, "lint": run_lint}[arguments.action](arguments)


def run_export(arguments: argparse.Namespace) -> int:
    folder, only = Path(arguments.folder), {word.upper() for word in arguments.only}
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not empty; nothing was written")
    if arguments.seed < 0:
        raise ValueError(f"--seed is {arguments.seed}, expected a number from 0")
    having = [group for group in groups() if export.planned({group})]
    if only - set(having):
        raise ValueError(f"--only {' '.join(sorted(only - set(having)))}: expected some of {', '.join(having)}")
    screen = console()
    with screen.status("the known faults are loaded") as shown:  # seen on a terminal alone
        vectors = export.export(folder, arguments.seed, only, arguments.jobs,
                                lambda done, all, id: shown.update(Text(f"{done} of {all}: {id}")))
    for operation, count in Counter(vector.operation for vector in vectors).items():
        screen.print(Text(f"{operation:<10} {count:>3}"))
    size = sum(path.stat().st_size for path in folder.iterdir())
    screen.print(Text(f"wrote {len(vectors)} vectors, {size / 1e6:.1f} MB, to {folder}"))
    return 0


def run_check(arguments: argparse.Namespace) -> int:
    written = Written(arguments.json)
    head, verdicts = check.judged(Path(arguments.folder), Path(arguments.results))
    faults = check.likely_faults(verdicts)
    report = {"schema": 1, "set": head["set"], "program": head.get("program", ""), "faults": faults, "vectors": [
        {"id": v.vector.id, "requirement": v.vector.requirement, "status": v.status, "words": words(v)} for v in verdicts]}
    written(arguments.json, lambda file: output.write(file, (json.dumps(report, indent=1) + "\n").encode()))
    show(head, verdicts, faults)
    return written.status(status(verdicts))


def status(verdicts: list[Verdict]) -> int:
    """The exit status: see above."""
    if any(verdict.status in ("fail", "error") and level(verdict) == "MUST" for verdict in verdicts):
        return 1
    return 3 if too_few(verdicts) or any(verdict.status == "missing" for verdict in verdicts) else 0


def too_few(verdicts: list[Verdict]) -> str:
    """Why the answers that are right say too little, or "". A set without FWD-01 needs another forward pass."""
    of_core = [verdict for verdict in verdicts if verdict.vector.requirement == CORE]
    forward = of_core or [verdict for verdict in verdicts if verdict.vector.operation == "forward"]
    if not any(verdict.status == "pass" for verdict in forward):
        return f"no forward pass{f' of {CORE}' if of_core else ''} was answered rightly"
    musts = [verdict.status == "pass" for verdict in verdicts if level(verdict) == "MUST"]
    few = sum(musts) < ANSWERED * len(musts)
    return f"{sum(musts)} of {len(musts)} vectors of a MUST are right, expected at least half" if few else ""


def level(verdict: Verdict) -> str:
    return files.requirements()[verdict.vector.requirement].level


def words(verdict: Verdict) -> str:
    """What is wrong, in one line."""
    failure = verdict.failure
    if failure is None:
        return verdict.words
    return f"{failure.what}{failure.where}: got {failure.got}, want {failure.want}{failure.ratio_text()}"


def show(head: dict, verdicts: list[Verdict], faults: list[str]) -> None:
    """Prints counts by group, then what is not right, then what may be the cause."""
    screen, marks = console(), {status: f"{status:>12}" for status in STATUSES}
    screen.print(Text("group  " + "".join(marks.values()), style="bold"))
    for group in dict.fromkeys(files.requirements()[v.vector.requirement].group for v in verdicts):
        counts = Counter(v.status for v in verdicts if files.requirements()[v.vector.requirement].group == group)
        screen.print(Text(f"{group:<7}" + "".join(f"{counts[status] or '':>12}" for status in STATUSES)))
    wrong: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        if verdict.status in ("fail", "error", "missing"):
            wrong.setdefault(verdict.vector.requirement, []).append(verdict)
    for id, (first, *others) in list(wrong.items())[:SHOWN]:
        more = f" and {len(others)} more" if others else ""
        screen.print(Text(f"{first.status.upper()} {level(first)} {first.vector.id}{more}", style="bold red"))
        for text in (files.requirements()[id].sentence, plain(words(first))[:400]):
            screen.print(Text(fill(text, screen.width - 1, initial_indent="  ", subsequent_indent="  ")))
    if len(wrong) > SHOWN:
        screen.print(Text(f"and {len(wrong) - SHOWN} more requirements; --json F has all of them"))
    for text in faults[:3]:
        screen.print(Text(fill(f"likely fault: {plain(text)}", screen.width - 1, subsequent_indent="  ")))
    for text in list(check.ratios(verdicts))[:3]:
        screen.print(Text(f"  {text}"))
    right = sum(verdict.status == "pass" for verdict in verdicts)
    program = plain(head.get("program", "the program"))
    screen.print(Text(f"{program}: {right} of {len(verdicts)} vectors are right, set {head['set']}"))
    if reason := too_few(verdicts):
        screen.print(Text(f"that is too little for a verdict: {reason}"))
    sys.stdout.flush()


def run_lint(arguments: argparse.Namespace) -> int:
    folder, screen, found, schema = Path(arguments.folder), console(), [], True
    with screen.status("the files are read") as shown:  # seen on a terminal alone
        found += lint.problems(folder, lambda done, all, id: shown.update(Text(f"{done} of {all}: {id}")))
        try:
            found += lint.by_schema(folder)
        except ImportError:
            schema = False
    for problem in found:
        screen.print(Text(plain(problem)))
    if not schema:
        screen.print(Text("the JSON Schema was not checked: pip install jsonschema"))
    screen.print(Text(f"{len(found) or 'nothing'} is wrong" if len(found) != 1 else "1 is wrong"))
    return 1 if found else 0 if schema else 3
