"""conformance check-report: checks a JSON report that somebody hands in."""

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from rich.text import Text

from conformance.commands.shared import console
from conformance.findings import page
from conformance.report import json as json_report
from conformance.report import stored, text
from conformance.requirements import all_requirements
from conformance.run import canaries, plan
from conformance.run.examine import plain
from conformance.run.verdict import FAILING

HELP = "check a JSON report that somebody hands in: is it whole, and does it agree with itself and with its version?"
EPILOG = """\
examples:
  conformance check-report report.json
  conformance check-report conformance/results     all reports in a folder
  conformance check-report --partial some.json     a part of the requirements

What is checked: the schema; that each requirement is there once, and is one
of its version; the counts; that the verdict, the profiles and the causes
follow from the statuses; that every canary was asked, and what they mean;
that each failure can be reproduced, and the command says how the report was
made. The plan and the rules can only be checked for the code that is here,
and the plan of the full run in results/; what could not be checked is told.

docs/reports.md says how a report is handed in.

exit status:
  0 nothing is wrong with it
  1 it was changed, or something is missing
  2 usage: no such file, or no report
  3 a partial result, without --partial, and not in a file *.partial.json
"""
MARK = ".partial.json"  # ends the name of a partial result
OLD = ("0.1.0",)  # versions whose reports hold less


def declare(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    add = parser.add_argument
    add("files", metavar="F", nargs="+", help="a report, or a folder: then all reports in it")
    add("--partial", action="store_true", help="accept results on a part of the requirements")


def run(arguments: argparse.Namespace) -> int:
    screen, status = console(), 0
    for file in _files(arguments.files):
        report = stored.load(file)
        wrong, notes, part = check(report)
        subjects = ", ".join(plain(entry["subject"]["name"]) for entry in report["reports"])
        state = "wrong" if wrong else "a partial result" if part else "nothing is wrong with it"
        screen.print(Text.assemble((plain(file), "bold"), f" ({subjects}): ", (state, "red" if wrong else "green")))
        for words in [*wrong, *part, *notes]:
            text.paragraph(screen, plain(words), 2, hanging=2)
        marked = arguments.partial or file.endswith(MARK)
        status = 1 if wrong or status == 1 else 3 if part and not marked else status
    return status


def _files(named: list[str]) -> list[str]:
    """The files, and the reports in the folders. Raises ValueError for a folder without one."""
    found = []
    for name in named:
        if not Path(name).is_dir():
            found.append(name)
            continue
        documents = {str(path): stored.parsed(path) for path in sorted(Path(name).rglob("*.json"))}
        keys = {"reports", "environment"}
        inside = [path for path, value in documents.items() if isinstance(value, dict) and keys <= value.keys()]
        if not inside:
            raise ValueError(f"{name} holds no report of `conformance run --json`")
        found += inside
    return found


def check(report: dict) -> tuple[list[str], list[str], list[str]]:
    """What is wrong with a report, what could not be checked, and in which way it is partial, in words."""
    runs = [run["options"] for run in report.get("joined", [])] or [report["options"]]
    for options in runs:
        if options["version"] not in OLD and (words := stored.misfit(options, stored.OPTIONS, "options")):
            return [words], [], []
    part = list(dict.fromkeys(words for options in runs for words in _partial(options)))
    if any(entry.get("in_process") for entry in report["reports"]) and (words := "partial: --in-process") not in part:
        part.append(words)
    wrong = [f"the command is {report['environment']['command']!r}, expected one that makes the report again"] * (
        not report["environment"]["command"].startswith(("conformance ", "pytest ")))
    specs = Counter(entry["subject"]["spec"] for entry in report["reports"])
    wrong += [f"{spec}: has {count} reports" for spec, count in specs.items() if count > 1]
    notes, here = [], json_report.harness()
    for entry in report["reports"]:
        spec = entry["subject"]["spec"]
        runs = [run["options"] for run in report.get("joined", []) if spec in run["subjects"]] or [report["options"]]
        version, code = made = runs[0]["version"], runs[0]["code"]
        if version not in OLD and (words := stored.misfit(entry, stored.NOW)):
            wrong.append(f"{spec}: {words}")
            continue
        same = made == (here["version"], here["code"])
        ids = _planned(runs, same)
        if not same:
            what = "the plan and the rules" if ids is None else "the rules"
            notes.append(f"not checked: {what} of its version, {version} with code {code}; here is {here['version']} with code "
                         f"{here['code']}")
        wrong += [f"{spec}: {words}" for words in _wrong(entry, ids, same)]
        swept = same and any(plan.parts(_options(options)) for options in runs)
        if swept and not entry["space"] and not entry["message"] and entry["verdict"] not in ("void", "error"):
            wrong.append(f"{spec}: the space was not swept, or its result was taken out")
    return wrong, list(dict.fromkeys(notes)), part


def _options(options: dict) -> plan.Options:
    space = options.get("space")
    return plan.Options(tuple(options["only"]), options["level"], space=None if space is None else tuple(space))


def _partial(options: dict) -> Iterator[str]:
    """In which way a run with these options says less than one with none, in words."""
    if options["only"] or options["level"] != "may":
        yield f"partial: --only {' '.join(options['only'])} --level {options['level']}"
    if set(options["dtypes"]) != set(plan.DTYPES):
        yield f"partial: --dtype {' '.join(options['dtypes'])} alone"
    if options.get("in_process"):
        yield "partial: --in-process"
    if options.get("examples", plan.Options.examples) < plan.Options.examples:
        yield f"partial: --examples {options['examples']}"


def _planned(runs: list[dict], same: bool) -> set[str] | None:
    """The requirements that these runs of a subject planned together. None if that is not known. `same` says whether the code
    that made them is the code that is here."""
    if same:
        return {r.id for options in runs for r in plan.plan(_options(options))}
    then = page.asked()
    known = (runs[0]["version"], runs[0]["code"]) == (then.version, then.code) and not any(run["only"] for run in runs)
    return set(then.requirements) if known else None


def _wrong(entry: dict, ids: set[str] | None, same: bool) -> Iterator[str]:
    """What is wrong with the report of one subject. `ids` is the plan, if it is known, and `same` says whether the code that
    made it is the code that is here."""
    rows, message = entry["requirements"], entry["message"]
    asked = Counter(row["id"] for row in rows)
    yield from (f"{id} is there {count} times" for id, count in asked.items() if count > 1)
    if entry["executed"] != len(rows):
        yield f"executed is {entry['executed']}, and it has {len(rows)} requirements"
    if ids is not None and (entry["planned"] != len(ids) or set(asked) - ids):
        more = ", ".join(sorted(set(asked) - ids)) or "none"
        yield f"planned is {entry['planned']}, and its version plans {len(ids)}; not among them: {more}"
    missing, verdict = entry["planned"] - len(rows), entry["verdict"]
    if missing > 0 and not message and verdict not in ("void", "error"):
        yield f"{missing} of {entry['planned']} requirements are missing, and its verdict is {verdict}"
    if same:
        for row in rows:
            have, want = ((row["level"], row["group"], row["title"]),
                          next(((r.level, r.group, r.title) for r in all_requirements() if r.id == row["id"]), None))
            if want and have != want:
                yield f"{row['id']} is {' '.join(have)!r}, expected {' '.join(want)!r}"
        if set(entry["canaries"]) != set(canaries.ALL) and not message:
            yield f"the canaries are {', '.join(sorted(entry['canaries']))}, expected {', '.join(canaries.ALL)}"
    elif not entry["canaries"] and not message:
        yield "it has no canaries"
    yield from (f"{row['id']} failed, and nothing says how to see it again" for row in rows
                if row["status"] in FAILING and not row["reproduce"])
    yield from _derived(entry, ids, same)


def _derived(entry: dict, ids: set[str] | None, same: bool) -> Iterator[str]:
    """What does not follow from the statuses of the requirements and of the canaries."""
    if "pass" in entry["canaries"].values() and entry["verdict"] not in ("void", "error"):
        yield f"a canary passed, and the verdict is {entry['verdict']}, expected void"
    failed = [row["id"] for row in entry["requirements"] if row["level"] == "MUST" and row["status"] in FAILING]
    if failed and entry["verdict"] in ("conformant", "partial"):
        yield f"{failed[0]} failed, which is a MUST, and the verdict is {entry['verdict']}"
    if not failed and entry["verdict"] == "nonconformant":
        yield "no MUST failed, and the verdict is nonconformant"
    if not same:
        return
    fresh = json_report.entry(stored.report_of(entry, [r for r in all_requirements() if ids and r.id in ids]))
    for name in ("verdict", "asked", "answered"):
        if fresh[name] != entry[name]:
            yield f"{name} is {entry[name]}, and follows to be {fresh[name]}"
    for name, follows in fresh["profiles"].items():
        if (stands := entry["profiles"].get(name)) != follows:
            yield f"the profile {name} is {stands}, and follows to be {follows}"
    if [cause["requirements"] for cause in fresh["causes"]] != [cause["requirements"] for cause in entry["causes"]]:
        yield "the causes do not follow from the failures"
