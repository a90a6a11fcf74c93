"""The JSON report of the contract, §4.3."""

import importlib.metadata
import json
import platform
import shlex
import sys
from pathlib import Path

import numpy as np

from conformance.runner import Report


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


def as_dict(reports: list[Report], device: str) -> dict:
    return {"schema": 1, "environment": environment(device), "reports": [_report(report) for report in reports]}


def write(path: str, reports: list[Report], device: str) -> None:
    Path(path).write_text(json.dumps(as_dict(reports, device), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


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
        "canaries": {id: outcome.status for id, outcome in report.canaries.items()},
    }
