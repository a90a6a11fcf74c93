"""Asks the judge of one subject, in a process of pytest. What several such processes of pytest-xdist have asked becomes one
report."""

import inspect
import json
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from conformance.requirements.helpers.layers import in_memory
from conformance.run.examine import Outcome
from conformance.run.files import files_of
from conformance.run.plan import Options
from conformance.run.runner import ask_more, begin, conclude, patient, told, watch
from conformance.run.verdict import Report
from conformance.run.worker import Unloadable, Worker

OUTCOMES = ("outcomes", "space", "canaries")  # those attributes of a report that hold outcomes


def spec_of(value: object) -> str:
    """What `conformance run` takes for the value of a fixture: a text as it is, and of a class or function its place."""
    if isinstance(value, str):
        return value
    if isinstance(value, type) or inspect.isfunction(value):
        return f"{inspect.getsourcefile(value)}:{value.__qualname__}"
    raise TypeError(f"lora_subject is {value!r}, expected a SPEC such as 'my_layers.py:MyLoRA', or the class")


class Judge:
    """The judge of a subject, in processes of its own, and the report on what it has found so far."""

    def __init__(self, spec: str, options: Options, planned: Report, first: bool):
        """Loads the subject, and asks the canaries. `planned` is a report without outcomes, and `first` whether this process is
        the one that asks for conventions."""
        self.first, self.options, self.lock, self.started = first, options, threading.Lock(), time.perf_counter()
        self.report = Report(spec, spec.rpartition(":")[2], planned=planned.planned, parts=planned.parts, files=files_of(spec))
        self.unloadable: list[str] = []  # why no more can be asked, if that is so
        self.unwatched: list[str] = []
        self.said = False  # whether a test has told why
        self.scratch = tempfile.TemporaryDirectory(dir=in_memory(), prefix="conformance-", ignore_cleanup_errors=True)
        self.worker = Worker(spec, told(options, self.scratch.name), options.timeout)
        try:
            begin(self.worker, self.report, self.lock)
        except Unloadable as error:
            self.unloadable.append(str(error))

    def examine(self, id: str) -> Outcome:
        """The outcome of a requirement, or of a part of the space. Raises Unloadable."""
        try:
            outcome = patient(self.worker, id, self.options.timeout)
        except Unloadable as error:
            self.unloadable.append(str(error))
            self.unwatched.append(str(error))
            raise
        (self.report.space if id in self.report.parts else self.report.outcomes)[id] = outcome
        return outcome

    def finish(self) -> None:
        """Asks the canaries again, and ends all processes."""
        try:
            if not self.unloadable:
                watch(self.worker, self.report, self.lock)
                ask_more(self.worker, self.report, self.lock, self.first)
        except Unloadable as error:
            self.unwatched.append(str(error))
        finally:
            self.worker.stop()
            self.scratch.cleanup()
        self.report.seconds = time.perf_counter() - self.started

    def part(self) -> str:
        """What this process has found, as JSON for the process that makes the report."""
        report = self.report
        about = {name: getattr(report, name) for name in (
            "spec", "name", "version", "seconds", "conventions", "declined", "compensates", "files")}
        outcomes = {name: {id: found.as_dict() for id, found in getattr(report, name).items()} for name in OUTCOMES}
        return json.dumps(about | outcomes | {"unloadable": self.unloadable, "unwatched": self.unwatched})


def together(parts: Iterable[str], planned: Report) -> Report:
    """The report of what all processes have found. A canary that gave a surprise in one of them gave one."""
    found = [json.loads(part) for part in parts]
    report, unloadable, unwatched = planned, [], []
    for part in found:
        for name in ("name", "version", "spec", "declined", "compensates"):
            setattr(report, name, part[name] or getattr(report, name))
        report.seconds = max(report.seconds, part["seconds"])
        report.conventions, report.files = report.conventions or part["conventions"], part["files"] | report.files
        for name in OUTCOMES:
            have = getattr(report, name)
            for id, outcome in part[name].items():
                if not (name == "canaries" and id in report.passed_canaries):
                    have[id] = Outcome(**outcome)
        unloadable += part["unloadable"]
        unwatched += part["unwatched"]
    conclude(report, unloadable, unwatched)
    return report


def place_of(spec: str) -> tuple[str, int] | None:
    """The file of a subject and the line of its class or function. None if the spec names no file."""
    path, _, name = spec.rpartition(":")
    if not path.endswith(".py") or not Path(path).is_file():
        return None
    import ast

    first = name.split(".")[0]
    for node in ast.parse(Path(path).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == first:
            return path, node.lineno
    return path, 1
