"""conformance release: makes what a release needs, a run over all built-in subjects and all generated text."""

import argparse
import datetime
import json
import re
import sys

from conformance import __version__
from conformance.commands import run as run_command
from conformance.findings import page
from conformance.report import generated, output
from conformance.report import json as json_report
from conformance.run import plan
from conformance.run.loading import built_in

HELP = "make what a release needs: a full run, and all that is generated from it"
EPILOG = """\
First, by hand: set the version in conformance/__init__.py, and write an entry
with that name at the top of CHANGELOG.md. The report names the version that
made it.

Then, in a checkout that has the environments of all built-in subjects
(`conformance subjects --install all`), this command
  1. runs every built-in subject, as `conformance run all --timeout 60
     --resume --json build/release.json` does. If it is cut off, start it
     again: it goes on where it was, unless code or packages have changed
     since;
  2. writes results/full.json, and results/requirements.json, the sentences
     that were asked;
  3. writes all that is generated: SPEC.md, findings/FINDINGS.md, and the
     counts in README.md and the other pages, as
     `python -m conformance.report.generated` does.

Last, by hand: write a script in findings/scripts/ for each failure that has
none, and move what was found since the last run from `since` to
`requirements`. The command names these failures, and writes FINDINGS.md once
there are none.

exit status:
  0 done   1 a failure has no script; with --check, something is left to do
  2 usage  3 something is missing: an environment, an entry of CHANGELOG.md,
             the answers of a subject. No report was written
"""
PART, TIMEOUT = generated.ROOT / "build" / "release.json", 60.0


def declare(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("--check", action="store_true", help="run and write nothing; say what is left to do for a release")


def run(arguments: argparse.Namespace) -> int:
    if not (generated.ROOT / "pyproject.toml").exists():
        raise ValueError(f"a release is made in a checkout, and {generated.ROOT} is none")
    missing = lacking()
    if arguments.check:
        told = missing + behind()
        print("\n".join(told or ["nothing is to be done"]))
        return 1 if told else 0
    if missing or (missing := asked_everything()):
        print("\n".join([*missing, "no report was written"]), file=sys.stderr)
        return 3
    whole = json.loads(PART.read_text(encoding="utf-8"))
    for report in whole["reports"]:  # where it was made is of no interest
        report |= {"files": {}, "taken_from": ""}
    options, today = whole["options"], datetime.date.today().isoformat()
    asked = page.Asked(options["version"], options["code"], today, page.worded_now())
    for path, content in ((page.FULL, whole), (page.ASKED, asked.as_dict())):
        output.write(str(path), (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
        print(f"wrote {path.relative_to(generated.ROOT)}")
    try:
        for path in generated.stale(write=True):
            print(f"wrote {path.relative_to(generated.ROOT)}")
    except ValueError as error:
        print(f"{error}\nby hand: a script in findings/scripts/ for each of these, then python -m conformance.report.generated",
              file=sys.stderr)
        return 1
    print(f"by hand: read what has changed, commit it, and tag it v{__version__}")
    return 0


def lacking() -> list[str]:
    """A line for each thing that is missing and without which the run does not start."""
    heading = re.search(r"^## (.*)$", (generated.ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    newest = heading[1] if heading else "nothing"
    named = [] if newest == __version__ else [
        f"the version in conformance/__init__.py is {__version__}, the newest entry of CHANGELOG.md is {newest}: give both the "
        "version of this release"]
    return named + [f"{name} is not available: {why}" for name, why in built_in().items() if why]


def behind() -> list[str]:
    """A line for each difference between the package and the committed results and pages."""
    made, here = page.asked(), json_report.as_dict([], plan.Options())["options"]
    told = [] if (made.version, made.code) == (here["version"], here["code"]) else [
        f"results/full.json is of version {made.version} (code {made.code}), this is {here['version']} (code {here['code']})"]
    told += [line.removeprefix("* ") for line in page.since(made)]
    try:
        stale = generated.stale()
    except ValueError as error:
        return [*told, str(error)]
    return told + [f"{path.relative_to(generated.ROOT)} is stale: python -m conformance.report.generated" for path in stale]


def asked_everything() -> list[str]:
    """Runs every built-in subject, or continues a run that was cut off. Gives a line for each subject that was not asked
    everything."""
    parser = argparse.ArgumentParser()
    run_command.declare(parser)
    given = parser.parse_args(["all", "--timeout", str(TIMEOUT), "--resume", "--json", str(PART)])
    PART.parent.mkdir(exist_ok=True)
    try:
        json_report.read(str(PART), plan.Options(timeout=TIMEOUT), plan.plan(plan.Options()))
    except ValueError:  # of another state of the code
        PART.replace(PART.with_suffix(".old.json"))
    run_command.run(given)
    return [f"{report['subject']['spec']}: {report['message'] or 'not every requirement was asked'}"
            for report in json.loads(PART.read_text(encoding="utf-8"))["reports"]
            if report["message"] or report["executed"] < report["planned"]]
