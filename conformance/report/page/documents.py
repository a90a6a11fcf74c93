"""Reads the JSON files that a page is made of, and checks them. Each file says by its keys what it is."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conformance.report.stored import FIRST, NOW, NUMBER, misfit
from conformance.requirements import LEVELS
from conformance.run.examine import plain

# Of a run's report, and not in those of the first versions.
LATER = {name: shape for name, shape in NOW.items() if name not in FIRST} | {"void_since": [str]}
FAILURE = {"error": NUMBER | None, "bound": NUMBER | None}
SPACE = {"cases": int, "lived": int, "left": int, "exact": bool, "parts": int, "swept": int}
RATE = {"array": int, "requirements": int, "all": int}
SENTENCE = {"level": LEVELS, "title": str, "sentence": str}
KINDS = {  # what it is → the key that tells it, and the shape that it must have
    "run": ("reports", {"environment": {...: str | None}, "reports": [FIRST]}),
    "selftest": ("mutants", {"score": NUMBER, "seconds": NUMBER, "honest": [{"name": str, "verdict": str}],
                             "mutants": [{"name": str, "group": str, "rows": [str], "killed": bool, "by": [str]}]}),
    "triggered": ("strengths", {"strengths": {...: RATE}, "groups": {...: RATE}, "honest": {...: int}, "seconds": NUMBER,
                                "survivors": [{"trigger": [str], "effect": str, "build": str}]}),
    "exchange": ("readers", {"readers": [{"reader": str, "missing": str, "cells": [
        {"case": str, "files": str, "clause": str, "valid": bool, "status": str, "words": str}]}]}),
    "mutate": ("planted", {"layer": str, "command": [str], "planted": int, "caught": int, "faults": [
        {"fault": str, "words": str, "requirement": str, "caught": bool, "how": str}]}),
    "sentences": ("requirements", {"requirements": {...: SENTENCE}}),
}


@dataclass
class Documents:
    """What was read: runs in the order of time, tests of layers, and at most one of each other kind."""

    runs: list[dict] = field(default_factory=list)
    others: dict[str, dict] = field(default_factory=dict)  # kind → document
    tests: list[dict] = field(default_factory=list)  # of conformance mutate


def read(paths: Iterable[str]) -> Documents:
    """Raises ValueError for a file that is no report, for two of a kind of which there can be one, and if there is nothing that
    makes a page."""
    found = Documents()
    for path in paths:
        try:
            document = cleaned(json.loads(Path(path).read_text(encoding="utf-8")))
        except IsADirectoryError:
            every = Path(path) / "*.json"
            raise ValueError(f"{path} is a folder, expected a JSON report: {every} stands for all in it") from None
        except (ValueError, RecursionError) as error:  # text that is not UTF-8, or not JSON
            raise ValueError(f"{path} is no JSON: {error}") from error
        kind = kind_of(document)
        wrong = misfit(document, KINDS[kind][1]) if kind else "it has none of the keys that tell its kind"
        later = {"run": _misfit_later, "triggered": _misfit_rates}
        if wrong := wrong or (later[kind](document) if kind in later else ""):
            raise ValueError(f"{path} is no report of conformance run, selftest, exchange or mutate: {wrong}")
        if kind in found.others:
            raise ValueError(f"{path} is the second report of the kind {kind}; only of run and mutate there can be several")
        if kind == "run":
            found.runs.append(document)
        elif kind == "mutate":
            found.tests.append(document)
        else:
            found.others[kind] = document
    if not found.runs and (found.others or not found.tests):
        raise ValueError("a page needs at least one report of conformance run --json, or shows reports of conformance mutate "
                         "--json alone")
    found.runs.sort(key=lambda run: run.get("date", ""))  # runs without a date are the oldest; they stay in the order given
    return found


def of_run(run: dict) -> Documents:
    """The documents of a page about one run, which was not read from a file."""
    return Documents([cleaned(run)])


def of_tests(results: dict) -> Documents:
    """The same of one report of conformance mutate."""
    return Documents(tests=[cleaned(results)])


def kind_of(document) -> str:
    """One of KINDS, or "" for anything else."""
    keys = document if isinstance(document, dict) else ()
    return next((kind for kind, (key, _) in KINDS.items() if key in keys), "")


def _misfit_later(run: dict) -> str:
    """What is wrong with the parts of a run that the first versions did not write, or ""."""
    shape = {"catalogue": {"groups": {...: str}, "requirements": {...: SENTENCE}}, "options": dict, "date": str}
    found = [misfit(run, {key: shape[key] for key in shape if key in run})]
    for report in run["reports"]:
        found.append(misfit(report, {key: LATER[key] for key in LATER if key in report}))
        found.append(misfit(report["space"], SPACE) if report.get("space") else "")
        for row in report["requirements"]:
            failure = row.get("failure") or {}
            found += [misfit(row, {"worst_in": {...: NUMBER}}) if "worst_in" in row else "",
                      misfit(row, {"failure": dict | None}) if "failure" in row else ""]
            found.append(found[-1] or misfit(failure, {key: FAILURE[key] for key in FAILURE if key in failure}, "failure"))
    for words in run.get("catalogue", {}).get("requirements", {}).values() if not any(found) else ():
        found.append(misfit(words, {"sources": [str]}) if "sources" in words else "")
    return next(filter(None, found), "")


def _misfit_rates(triggered: dict) -> str:
    """What is wrong with the rates of a report of triggered faults, or "": each is a share of at least one."""
    cells = triggered.get("cells", [])
    wrong = misfit(cells, [{"factor": str, "group": str, "killed": int, "all": int}], "cells")
    rates = [] if wrong else [*triggered["strengths"].values(), *triggered["groups"].values(), *cells]
    return wrong or next((f"a rate is one of {rate['all']}, expected at least 1" for rate in rates if rate["all"] < 1), "")


def cleaned(value: Any) -> Any:
    """The value with an escape for every character in it that cannot be printed, such as one that turns the direction of
    text."""
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, list):
        return [cleaned(item) for item in value]
    return {plain(key): cleaned(item) for key, item in value.items()} if isinstance(value, dict) else value
