"""Writes the report of `conformance run --json`, and reads it again for --resume."""

import datetime
import hashlib
import importlib.metadata
import json
import platform
import shlex
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from conformance import __version__
from conformance.report import output
from conformance.report.stored import NOW, load, report_of
from conformance.requirements import Requirement, groups
from conformance.run import canaries
from conformance.run.causes import Cause
from conformance.run.files import files_of, hashed
from conformance.run.plan import Options
from conformance.run.verdict import Report


def environment(device: str, command: str = "") -> dict:
    """Where a run was made, and by which command: that of this process, unless it is given."""
    try:
        torch = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        torch = None
    command = command or "conformance " + shlex.join(sys.argv[1:])
    return {
        "python": platform.python_version(), "numpy": np.__version__, "torch": torch,
        "platform": platform.platform(), "device": device, "command": command,
    }


def as_dict(reports: list[Report], options: Options, command: str = "") -> dict:
    planned = {requirement.id: requirement for report in reports for requirement in report.planned}
    return {"schema": 1, "date": datetime.date.today().isoformat(),
            "environment": environment(options.device, command), "options": decisive(options),
            "reports": [entry(report) for report in reports], "catalogue": catalogue(planned.values())}


def catalogue(requirements: Iterable[Requirement]) -> dict:
    """What the requirements say, and the titles of their groups: a report can be read without this version of the package."""
    rows = {r.id: {"level": r.level, "group": r.group, "profile": r.profile, "title": r.title, "sentence": r.sentence,
                   "formula": r.formula, "why": r.why, "sources": list(r.sources)} for r in requirements}
    titles = {id: group.title for id, group in groups().items() if any(row["group"] == id for row in rows.values())}
    return {"groups": titles, "requirements": rows}


def write(path: str, reports: list[Report], options: Options, command: str = "") -> None:
    """Writes the file as a whole or not at all. A run that is interrupted meanwhile leaves the old file. Raises OSError."""
    text = json.dumps(as_dict(reports, options, command), indent=1, ensure_ascii=False) + "\n"
    output.write(path, text.encode("utf-8", "backslashreplace"))  # half of a surrogate pair is escaped, as JSON does it


def read(path: str, options: Options, planned: tuple[Requirement, ...]) -> dict[str, Report]:
    """The reports in the file that a run with these options and requirements need not make again, by spec. These are the
    reports of subjects that were loaded and asked everything, and whose files are as they were. Raises ValueError for a file
    of a run with other options, code or packages, and for one that holds no report."""
    if not Path(path).exists():
        return {}
    try:
        stored = load(path, NOW)
    except ValueError as error:
        raise ValueError(f"--resume: {error}") from error
    if stored["options"] != json.loads(json.dumps(decisive(options))):
        raise ValueError(f"--resume: {path} is of a run with other options, of another version or with other packages; name "
                         "another file, or remove it")
    wanted = [{requirement.id for requirement in planned}, set(canaries.ALL)]
    found = {}
    for entry in stored["reports"]:
        rows, subject = {row["id"]: row for row in entry["requirements"]}, entry["subject"]
        asked = [set(rows), set(entry["canaries"])] == wanted
        if entry["message"] or not asked or not _same_files(subject["spec"], entry["files"]):
            continue
        found[subject["spec"]] = replace(report_of(entry, planned), taken_from=path)
    return found


def seed_of(path: str) -> int | None:
    """The seed of the run in the file. None if there is no file, or no seed in it: `read` then says what is wrong with it."""
    with suppress(OSError, ValueError, RecursionError, LookupError, TypeError):
        seed = json.loads(Path(path).read_text(encoding="utf-8"))["options"]["seed"]
        return seed if type(seed) is int else None
    return None


def _same_files(spec: str, then: dict[str, str]) -> bool:
    """Whether the files of a subject are those of the run that it was in. If that run knew no file of a subject that is not
    built in, nobody can tell."""
    known = then or ":" not in spec
    return bool(known) and hashed(then) == then and files_of(spec).items() <= then.items()


def decisive(options: Options) -> dict:
    """Everything that determines the outcome of a run, except the subjects: version, code, packages and options."""
    names = ("only", "level", "dtypes", "device", "examples", "seed", "timeout", "memory", "in_process", "strict", "space")
    return harness() | {name: getattr(options, name) for name in names}


def harness() -> dict:
    """The version and code of this package, and the packages here."""
    return {"version": __version__, "code": _code(), "packages": _packages()}


@cache
def _code() -> str:
    """A hash of the Python files of this package, lora_ref and lora_torch, as they were when it was first asked for. It leaves
    out findings/, which does not affect outcomes."""
    package, found = Path(__file__).parents[1], hashlib.sha256()
    others = [Path(spec.origin).parent for spec in map(find_spec, ("lora_ref", "lora_torch")) if spec and spec.origin]
    for folder in (package, *others):
        for path in sorted(folder.rglob("*.py")):
            if package / "findings" not in path.parents:
                found.update(path.read_bytes())
    return found.hexdigest()[:16]


@cache
def _packages() -> str:
    """A hash of the version of Python, and of the names and versions of everything that is installed, as its folder has them:
    to read the metadata of each takes a second."""
    every = {path.name for entry in sys.path for kind in ("dist", "egg") for path in Path(entry).glob(f"*.{kind}-info")}
    return hashlib.sha256("\n".join([platform.python_version(), *sorted(every)]).encode()).hexdigest()[:16]


def _cause(report: Report, cause: Cause) -> dict:
    outcome = report.outcomes[cause.head.id]
    return {"title": f"{cause.head.id} {cause.head.title}", "requirements": list(cause.requirements), "fault": cause.fault,
            "diagnosis": outcome.diagnosis, "case": outcome.failure.get("case"), "reproduce": outcome.reproduce}


def entry(report: Report) -> dict:
    """The part of the JSON that is about one subject."""
    report, rows = report.cleaned(), []
    for requirement in report.planned:
        outcome = report.outcomes.get(requirement.id)
        if outcome is not None:
            rows.append({
                "id": requirement.id, "level": requirement.level, "group": requirement.group, "title": requirement.title,
                "status": outcome.status, "examples": outcome.examples, "not_offered": outcome.not_offered,
                "seconds": round(outcome.seconds, 3), "worst": outcome.worst, "worst_in": outcome.worst_in,
                "resolution": outcome.resolution, "message": outcome.message,
                "diagnosis": outcome.diagnosis, "faults": list(outcome.faults),
                "follows": outcome.follows, "reproduce": outcome.reproduce, "failure": outcome.failure or None,
            })
    return {
        "subject": {"name": report.name, "version": report.version, "spec": report.spec},
        "verdict": report.verdict, "profiles": report.profiles, "planned": len(report.planned), "executed": len(rows),
        "seconds": round(report.seconds, 3), "message": report.unloadable, "void_since": report.void_since,
        "requirements": rows,
        "causes": [_cause(report, cause) for cause in report.causes],
        "conventions": report.conventions,
        "canaries": {id: outcome.status for id, outcome in report.canaries.items()},
        "asked": report.asked, "answered": report.answered, "declined": report.declined,
        "space": report.swept, "compensates": report.compensates,
        "in_process": report.in_process, "sandbox": report.sandbox,
        "files": report.files, "taken_from": report.taken_from,
    }
