"""What a session says beside its tests: why it fails although no test does, the report as JSON, a summary, annotations."""

import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from conformance.plugin.judge import place_of
from conformance.plugin.xfails import SPACE, Xfail
from conformance.report import json as json_report
from conformance.report import markdown, output
from conformance.run.plan import Options
from conformance.run.verdict import Report

SAYS_NOTHING = {
    "void": "the judge itself gave a surprise, or nothing that tells was decided",
    "partial": "too few of the cases that could tell were answered",
    "error": "the subject could not be judged to the end",
}
MOST = 10  # annotations that GitHub shows of one step


def problems(report: Report, xfails: Mapping[str, Xfail], file: Path) -> list[str]:
    """Why the session fails, whatever its tests say: a verdict that says nothing, and lines of lora-xfails.txt about the space
    that are no longer needed."""
    found = []
    if report.verdict in SAYS_NOTHING:
        found.append(f"lora: {report.verdict.upper()}: {report.unloadable or SAYS_NOTHING[report.verdict]}")
    broken = {id for part in report.space.values() for id in part.swept.get("broken", {})}
    if report.parts and len(report.space) == len(report.parts) and not report.broken_off:
        found += [f"{file.name}:{entry.line}: {id} is expected to fail, and no part of the space breaks it: remove the line"
                  for id, entry in xfails.items() if id.startswith(SPACE) and id.removeprefix(SPACE) not in broken]
    return found


def check_places(config: pytest.Config) -> None:
    """Raises UsageError, before any test is run, if a file that was asked for cannot be written."""
    for option in ("--lora-json", "--lora-summary"):
        try:
            if path := config.getoption(option):
                output.check(path)
        except ValueError as problem:
            raise pytest.UsageError(f"{option}: {problem}") from None


def write(config: pytest.Config, report: Report, options: Options, notes: list[str], xfails: Mapping[str, Xfail]) -> list[str]:
    """Writes the files that were asked for. Gives words about each that could not be written."""
    failed, path = [], config.getoption("--lora-json")
    try:
        if path:
            json_report.write(path, [report], options, shlex.join(["pytest", *sys.argv[1:]]))
    except OSError as error:
        failed.append(f"lora: {path} was not written: {error.strerror or error}")
    path = config.getoption("--lora-summary") or os.environ.get("GITHUB_STEP_SUMMARY")
    try:
        if path:
            with open(path, "a", encoding="utf-8") as file:  # other steps of the job write to it, too
                file.write(markdown.summary(report, notes + failed, _reasons(xfails)))
    except OSError as error:
        failed.append(f"lora: {path} was not written: {error.strerror or error}")
    return failed


def annotations(report: Report, xfails: Mapping[str, Xfail]) -> list[str]:
    """A workflow command of GitHub for each cause, at the class of the subject. A cause all of whose failures are expected has
    none."""
    place = place_of(report.spec)
    at = f"file={_property(os.path.relpath(place[0]))},line={place[1]}," if place else ""
    found = []
    for cause in report.causes:
        if set(cause.requirements) <= set(_reasons(xfails)):
            continue
        outcome = report.outcomes[cause.head.id]
        kind = "error" if cause.head.level == "MUST" else "warning"
        more = f"\nfails, too: {' '.join(cause.requirements[1:])}" if len(cause.requirements) > 1 else ""
        text = f"{cause.head.sentence}\n{outcome.message}{more}\n{outcome.diagnosis or ''}".strip()
        found.append(f"::{kind} {at}title={_property(f'{cause.head.id} {cause.head.title}')}::{_data(text)}")
    found.sort(key=lambda line: not line.startswith("::error"))
    return found[:MOST]


def _reasons(xfails: Mapping[str, Xfail]) -> dict[str, str]:
    return {id.removeprefix(SPACE): f"{entry.reason} (until {entry.until})" for id, entry in xfails.items()}


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
