"""Writes the report of `conformance run --json`, and reads it again for --resume."""

import hashlib
import importlib.metadata
import json
import platform
import shlex
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np

from conformance import __version__
from conformance.requirements import Requirement
from conformance.run.examine import Outcome
from conformance.run.plan import Options
from conformance.run.verdict import Report


def environment(device: str) -> dict:
    try:
        torch = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        torch = None
    command = "conformance " + shlex.join(sys.argv[1:])
    return {
        "python": platform.python_version(), "numpy": np.__version__, "torch": torch,
        "platform": platform.platform(), "device": device, "command": command,
    }


def as_dict(reports: list[Report], options: Options) -> dict:
    return {"schema": 1, "environment": environment(options.device), "options": _kept(options),
            "reports": [_report(report) for report in reports]}


def write(path: str, reports: list[Report], options: Options) -> None:
    """Writes the file as a whole or not at all. A run that is interrupted meanwhile leaves the old file."""
    text = json.dumps(as_dict(reports, options), indent=1, ensure_ascii=False) + "\n"
    part = Path(f"{path}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def read(path: str, options: Options, planned: tuple[Requirement, ...]) -> dict[str, Report]:
    """The reports in the file that a run with these options and requirements need not make again, by spec. These are the
    reports of subjects that were loaded and asked everything. Raises ValueError for a file of a run with other options or other
    code."""
    if not Path(path).exists():
        return {}
    stored = json.loads(Path(path).read_text(encoding="utf-8"))
    if stored.get("options") != json.loads(json.dumps(_kept(options))):
        raise ValueError(f"--resume: {path} is of a run with other options or of another version; name another file, or "
                         "remove it")
    found = {}
    for entry in stored["reports"]:
        rows = {row["id"]: row for row in entry["requirements"]}
        if entry["message"] or set(rows) != {requirement.id for requirement in planned}:
            continue
        names = [field.name for field in fields(Outcome)]
        outcomes = {id: Outcome(**{name: row[name] for name in names if row[name] is not None}) for id, row in rows.items()}
        subject, canaries = entry["subject"], {id: Outcome(id, status) for id, status in entry["canaries"].items()}
        found[subject["spec"]] = Report(subject["spec"], subject["name"], subject["version"], planned, outcomes, canaries,
                                        entry["seconds"], conventions=entry["conventions"])
    return found


def _kept(options: Options) -> dict:
    """Everything that determines the outcome of a run: version, code and options."""
    decisive = ("only", "level", "dtypes", "device", "examples", "seed", "timeout", "memory")
    return {"version": __version__, "code": _code()} | {name: getattr(options, name) for name in decisive}


def _code() -> str:
    """A hash of the package's Python files. It leaves out findings/, which does not affect outcomes."""
    package, found = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        if package / "findings" not in path.parents:
            found.update(path.read_bytes())
    return found.hexdigest()[:16]


def _report(report: Report) -> dict:
    rows = []
    for requirement in report.planned:
        outcome = report.outcomes.get(requirement.id)
        if outcome is not None:
            worst = outcome.worst if outcome.worst is not None and np.isfinite(outcome.worst) else None  # JSON has no infinity
            rows.append({
                "id": requirement.id, "level": requirement.level, "group": requirement.group, "title": requirement.title,
                "status": outcome.status, "examples": outcome.examples, "seconds": round(outcome.seconds, 3),
                "worst": worst, "resolution": outcome.resolution, "message": outcome.message, "diagnosis": outcome.diagnosis,
                "reproduce": outcome.reproduce, "failure": outcome.failure or None,
            })
    return {
        "subject": {"name": report.name, "version": report.version, "spec": report.spec},
        "verdict": report.verdict, "profiles": report.profiles, "planned": len(report.planned), "executed": len(rows),
        "seconds": round(report.seconds, 3), "message": report.unloadable, "requirements": rows,
        "conventions": report.conventions,
        "canaries": {id: outcome.status for id, outcome in report.canaries.items()},
    }
