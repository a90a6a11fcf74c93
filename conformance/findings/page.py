"""Makes findings/FINDINGS.md from three sources: the scripts of findings/scripts/, one for each cause; results/full.json, the
report of a full run; and results/requirements.json, the requirements that this run asked, in the words of that time. The last
section, on adapter files, is made from exchange/scripts/.

So the page describes what was asked. It stays true when requirements are added, removed or reworded. Its region `since`, which
report/generated.py fills, lists what has changed since the run.

A script needs only the library. Its docstring says what is wrong, which requirements fail for this reason, and why. What was
found after the full run stands under `since`. Its last lines, after `# prints:`, are what it prints.
"""

import ast
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from conformance.drivers import environments
from conformance.drivers.process import ONE_THREAD
from conformance.requirements import all_requirements
from conformance.run.loading import built_in, environment, missing_here
from conformance.run.verdict import FAILING

HERE = Path(__file__).parent
PATH = HERE / "FINDINGS.md"
FULL = HERE.parent / "results" / "full.json"
ASKED = HERE.parent / "results" / "requirements.json"
KINDS = {"fault": "Faults", "convention": "Choices of its own"}
ENTRIES = ("requirements", "kind", "why", "upstream")
SINCE = "since"  # an entry that a script may have besides


@dataclass(frozen=True)
class Finding:
    """One cause, in one library."""

    file: str
    subject: str  # the name of the built-in subject
    sentence: str
    requirements: tuple[str, ...]  # that fail in the full run
    since: tuple[str, ...]  # that fail today, and did not then, or were not asked
    kind: str
    why: str
    upstream: str
    code: str
    prints: str


def read(path: Path) -> Finding:
    """The finding that a script describes. Raises ValueError for a script without the parts that it must have."""
    text = path.read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(text)) or ""
    head, _, rest = docstring.partition("\n\n")
    entries: dict[str, str] = {}
    for line in rest.splitlines():
        name, colon, words = line.partition(":")
        if colon and name in (*ENTRIES, SINCE):
            entries[name] = words.strip()
        elif entries:
            last = list(entries)[-1]
            entries[last] = f"{entries[last]} {line.strip()}".strip()
    body, found, prints = text.partition("# prints:\n")
    since = entries.pop(SINCE, "").split()
    if tuple(entries) != ENTRIES or entries["kind"] not in KINDS or not found:
        raise ValueError(f"{path.name}: expected {', '.join(ENTRIES)}, a kind of {', '.join(KINDS)}, # prints:")
    code = body.split('"""', 2)[2].strip().removeprefix("# noqa: E501").strip()
    return Finding(path.stem, path.stem.partition("-")[0], " ".join(head.split()), tuple(entries["requirements"].split()),
                   tuple(since), entries["kind"], entries["why"], entries["upstream"], code, _uncommented(prints))


def _uncommented(lines: str) -> str:
    return "\n".join(line.removeprefix("# ").removeprefix("#") for line in lines.rstrip().splitlines())


def all_findings() -> list[Finding]:
    return [read(path) for path in sorted((HERE / "scripts").glob("*.py"))]


class Sentence(NamedTuple):
    """A requirement in the words that it had when it was asked."""

    level: str
    title: str
    sentence: str


@dataclass(frozen=True)
class Asked:
    """The requirements that the full run asked, with the version and the code hash of the package at that time."""

    version: str
    code: str
    date: str
    requirements: dict[str, Sentence]

    def as_dict(self) -> dict:
        rows = {id: row._asdict() for id, row in self.requirements.items()}
        return {"version": self.version, "code": self.code, "date": self.date, "requirements": rows}


def full_run() -> dict:
    """The JSON report of the full run."""
    return json.loads(FULL.read_text(encoding="utf-8"))


def asked() -> Asked:
    """The requirements of the full run."""
    stored = json.loads(ASKED.read_text(encoding="utf-8"))
    rows = {id: Sentence(**row) for id, row in stored["requirements"].items()}
    return Asked(stored["version"], stored["code"], stored["date"], rows)


def worded_now() -> dict[str, Sentence]:
    """The requirements of the package as it is now."""
    return {r.id: Sentence(r.level, r.title, r.sentence) for r in all_requirements()}


def others() -> list[str]:
    """The built-in subjects that other people wrote. They are the ones that have an environment."""
    return [name for name in built_in() if environment(name) is not None]


def reports() -> list[dict]:
    """The reports of the full run on libraries of other people, without subjects that no longer exist."""
    known = others()
    return [report for report in full_run()["reports"] if report["subject"]["spec"] in known]


def unexplained(found: list[Finding], ran: list[dict]) -> list[str]:
    """A line for each failure without a finding, and for each finding without a failure or with one that is called new. There
    must be none."""
    failed = {(r["subject"]["spec"], row["id"]) for r in ran for row in r["requirements"] if row["status"] in FAILING}
    told = {(finding.subject, id) for finding in found for id in finding.requirements}
    return [f"{subject} {id} fails, and no finding says why" for subject, id in sorted(failed - told)] + [
        f"{subject} {id} does not fail, but a finding says so" for subject, id in sorted(told - failed)] + [
        f"{f.subject} {id} has failed in the run: it goes from `since` to `requirements` in {f.file}.py"
        for f in found for id in f.since if (f.subject, id) in failed]


def printed(finding: Finding) -> str | None:
    """What the script of the finding prints, run in its own process. None if its library is not installed."""
    name = environment(finding.subject)
    if not missing_here(finding.subject):
        python = sys.executable
    elif name is not None and environments.made(name):
        python = str(environments.folder(name) / "bin" / "python")
    else:
        return None
    command = [python, "-I", "-c", finding.code]
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(command, cwd=folder, env=ONE_THREAD | os.environ, capture_output=True, text=True, timeout=300)
        except subprocess.TimeoutExpired:
            return "nothing in 300 s"
    return done.stdout.rstrip() + (f"\n{done.stderr.strip()}" if done.returncode else "")


def summary(found: list[Finding], ran: list[dict]) -> str:
    """The number of implementations, faults and choices in one sentence, and how many are newer than the full run. The README
    has it, too."""
    faults = [finding for finding in found if finding.kind == "fault"]
    kinds, faulty = {environment(report["subject"]["spec"]) for report in ran}, {finding.subject for finding in faults}
    new = sum(not finding.requirements for finding in found)
    return (f"{len(ran)} implementations that nobody here wrote, in {len(kinds)} environments of their own: "
            f"{len(faults)} faults in {len(faulty)} of them, {len(found) - len(faults)} choices that a requirement is against"
            + (f"; found after the full run: {new}" if new else ""))


def since(then: Asked) -> list[str]:
    """What has changed since the full run: a line for each kind of change that there is."""
    before, now = then.requirements, worded_now()
    judged = {report["subject"]["spec"] for report in full_run()["reports"]}
    differences = {
        "Not asked yet": [id for id in now if id not in before],
        "No longer a requirement": [id for id in before if id not in now],
        "Worded otherwise now": [id for id in now if id in before and now[id] != before[id]],
        "Implementations that were not asked": [name for name in others() if name not in judged],
    }
    return [f"* {what}: {', '.join(names)}." for what, names in differences.items() if names]


def page(found: list[Finding], ran: list[dict], run: dict, then: Asked) -> str:
    """The text of FINDINGS.md, with an empty region `since`."""
    where = run["environment"]
    lines = [
        "# What the suite found in the world's LoRA implementations", "",
        "Generated by `python -m conformance.report.generated` from results/full.json, results/requirements.json and "
        "findings/scripts/; not to be edited.", "",
        f"{summary(found, ran)}.", "",
        f"Version {then.version} (code {then.code}) asked them on {then.date}; it had {len(then.requirements)} requirements, "
        "and their sentences are quoted as they were then.", "",
        "<!-- generated: since -->", "<!-- /generated -->", "",
        f"Python {where['python']}, {where['platform']}, device {where['device']}:", "",
        f"    {where['command']}", "",
        "| subject | version | environment | verdict | passed | MUST failed | SHOULD failed | not offered | s |",
        "|---|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for report in ran:
        rows = report["requirements"]
        failed = Counter(row["level"] for row in rows if row["status"] in FAILING)
        statuses = Counter(row["status"] for row in rows)
        name = report["subject"]["spec"]
        lines.append(f"| [{name}](#{name}) | {report['subject']['version']} | {environment(name)} | {report['verdict']} | "
                     f"{statuses['pass']} | {failed['MUST'] or ''} | {failed['SHOULD'] or ''} | {statuses['unsupported']} | "
                     f"{report['seconds']:.0f} |")
    for report in ran:
        lines += ["", *_subject(report, [f for f in found if f.subject == report["subject"]["spec"]], then.requirements)]
    return "\n".join([*lines, "", *_of_files()]) + "\n"


def _of_files() -> list[str]:
    """The section on adapter files: what each script of exchange/scripts/ shows and prints."""
    lines = ["## Adapter files", "",
             "`conformance exchange` found these. [results/exchange.md](../results/exchange.md) has all that it found. Each "
             "script needs only its library, and says at its head how it is run."]
    for path in sorted((HERE / "exchange" / "scripts").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        head = (ast.get_docstring(ast.parse(text)) or "").partition("\n\n")[0]
        lines += ["", f"**{' '.join(head.split())}**", "", f"[{path.name}](exchange/scripts/{path.name}) prints", "", "```text",
                  _uncommented(text.partition("# prints:\n")[2]), "```"]
    return lines


def _subject(report: dict, found: list[Finding], by_id: dict[str, Sentence]) -> list[str]:
    name, version = report["subject"]["name"], report["subject"]["version"]
    lines = [f"## {report['subject']['spec']}", "", f"{name} {version}: {report['verdict']}.", ""]
    lines += [f"* {probe}: {answer}" for probe, answer in report["conventions"].items() if answer != "not offered"]
    rows = {row["id"]: row for row in report["requirements"]}
    for kind, title in KINDS.items():
        of_kind = [finding for finding in found if finding.kind == kind]
        lines += ["", f"### {title}"] if of_kind else []
        for finding in of_kind:
            lines += ["", f"**{finding.sentence}**", ""]
            for id in finding.requirements:
                lines.append(f"* {id} ({by_id[id].level}) {by_id[id].sentence} Seen: {' '.join(rows[id]['message'].split())}")
            lines += [f"* Since the run also: {', '.join(finding.since)}."] if finding.since else []
            lines += ["", finding.why, "", f"Known upstream: {finding.upstream}", "", "```python", finding.code, "```", "",
                      "prints", "", "```text", finding.prints, "```"]
    return lines
