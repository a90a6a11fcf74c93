"""Reads reports that `conformance run --json` wrote: for --resume, diff, join and check-report."""

import json
from collections.abc import Sequence
from pathlib import Path

from conformance.requirements import LEVELS, Requirement, all_requirements
from conformance.run.examine import Outcome
from conformance.run.verdict import FAILING, Report

STATUSES = (*FAILING, "pass", "unsupported", "indeterminate")
VERDICTS = ("conformant", "partial", "nonconformant", "void", "error")
PROFILE = ("conformant", "partial", "nonconformant", "not offered")
NUMBER = int | float
# What a row has held since version 0.1.0, and what it holds now.
FIRST_ROW = {"id": str, "level": LEVELS, "group": str, "title": str, "status": STATUSES, "message": str, "examples": int,
             "seconds": NUMBER, "worst": NUMBER | None, "diagnosis": str | None, "reproduce": str | None}
ROW = FIRST_ROW | {"not_offered": int, "worst_in": {...: NUMBER}, "resolution": NUMBER | None, "faults": [str], "follows": str,
                   "failure": dict | None}
FIRST = {"subject": {"name": str, "version": str, "spec": str}, "verdict": VERDICTS, "profiles": {...: PROFILE}, "planned": int,
         "executed": int, "seconds": NUMBER, "message": str, "requirements": [FIRST_ROW], "canaries": {...: STATUSES},
         "conventions": {...: str}}
NOW = FIRST | {"requirements": [ROW], "causes": [{"title": str, "requirements": [str]}], "asked": int, "answered": int,
               "files": {...: str}, "in_process": bool, "sandbox": bool, "declined": [str], "space": dict,
               "compensates": {...: str}, "taken_from": str}
FIRST_OPTIONS = {"version": str, "code": str, "only": [str], "level": tuple(level.lower() for level in LEVELS), "dtypes": [str],
                 "device": str, "seed": int}
OPTIONS = FIRST_OPTIONS | {"examples": int, "in_process": bool, "space": list | None}
ENVIRONMENT = {"python": str, "numpy": str, "torch": str | None, "platform": str, "device": str, "command": str}


def shape(entry: dict) -> dict:
    """The shape of a whole report of one subject."""
    options = OPTIONS if entry is NOW else FIRST_OPTIONS
    return {"schema": int, "environment": ENVIRONMENT, "options": options, "reports": [entry]}


def load(path: str, entry: dict = FIRST) -> dict:
    """The report in the file. `entry` is the shape that the report of each subject must have. Raises ValueError, which names
    the file, for one that is no report."""
    if not Path(path).is_file():
        raise ValueError(f"{path} is no file, expected a report of `conformance run --json {path}`")
    found, parts = parsed(path), {"joined": [{"options": FIRST_OPTIONS, "subjects": [str]}]}
    wrong = misfit(found, shape(entry)) or (misfit(found, parts) if "joined" in found else "")
    wrong = wrong or ("" if found["schema"] == 1 else f"its schema is {found['schema']}, expected 1")
    if wrong:
        raise ValueError(f"{path} is no report of a run: {wrong}")
    return found


def parsed(path: str | Path):
    """The JSON in the file. Raises ValueError, which names the file, if it holds none."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # text that is not UTF-8, or not JSON
        raise ValueError(f"{path} is no JSON: {error}") from error


def report_of(entry: dict, planned: Sequence[Requirement] | None = None) -> Report:
    """The Report of which `entry` was written. Without `planned`, what was planned are the requirements in it, as far as this
    version knows them."""
    rows, subject = {row["id"]: row for row in entry["requirements"]}, entry["subject"]
    outcomes = {id: Outcome(**{name: row[name] for name in OUTCOME if row.get(name) is not None}) for id, row in rows.items()}
    checks = {id: Outcome(id, status) for id, status in entry["canaries"].items()}
    kept = ("conventions", "files", "in_process", "sandbox", "declined", "compensates")
    return Report(
        subject["spec"], subject["name"], subject["version"],
        tuple(r for r in all_requirements() if r.id in rows) if planned is None else tuple(planned), outcomes, checks,
        entry["seconds"], unloadable=entry["message"], swept_then=entry.get("space", {}),
        **{name: entry[name] for name in kept if name in entry})


OUTCOME = (*(name for name in ROW if name not in ("level", "group", "title")),)


def misfit(value, shape, where: str = "it") -> str:
    """What is wrong with a value that was read from JSON, or "". A shape is a type, a tuple of the words that may stand there,
    a list with the shape of each item, or a dict with the shape of each value, where `...` stands for any key."""
    parts = []
    if isinstance(shape, list | dict) and not isinstance(value, type(shape)):
        return f"{where} is no {'list' if isinstance(shape, list) else 'object'}"
    if isinstance(shape, list):
        parts = [(item, shape[0], f"{where}[{i}]") for i, item in enumerate(value)]
    elif isinstance(shape, dict):
        if absent := [key for key in shape if key is not ... and key not in value]:
            return f"{where} has no {absent[0]!r}"
        keys = value if ... in shape else shape
        parts = [(value[key], shape.get(key, shape.get(...)), f"{where}[{key!r}]") for key in keys]
    elif isinstance(shape, tuple):
        return "" if value in shape else f"{where} is none of {', '.join(shape)}"
    elif not isinstance(value, shape) or (isinstance(value, int) and value.bit_length() > 64):  # too large for a float
        return f"{where} is of the wrong type"
    return next(filter(None, (misfit(*part) for part in parts)), "")
