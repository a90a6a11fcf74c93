"""Runs the tests of somebody else with one fault planted, in processes of their own."""

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import IO, NamedTuple

from conformance.drivers import children
from conformance.mutate.planted.hook import VARIABLE

HERE = Path(__file__).parent
PLANTED = HERE / "planted"
PLANT = f'''
import importlib.util, sys

def load(name, spec):
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

def plant():
    load("conformance_planted", importlib.util.spec_from_file_location(
        "conformance_planted", {str(PLANTED / "__init__.py")!r}, submodule_search_locations=[{str(PLANTED)!r}]))
    from conformance_planted import hook
    hook.install()
'''
SITE = f'''
"""Plants a fault, and then runs the sitecustomize that this file hides."""
import importlib.machinery, os, sys
import conformance_plant

if {VARIABLE!r} in os.environ:
    conformance_plant.plant()
here = os.path.dirname(os.path.abspath(__file__))
hidden = importlib.machinery.PathFinder.find_spec("sitecustomize", [p for p in sys.path if os.path.abspath(p or ".") != here])
if hidden is not None:
    conformance_plant.load("sitecustomize", hidden)
'''
PASSED = re.compile(r"\b(\d+) passed\b")
FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.M)
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
KEPT = 1 << 20  # bytes of the output that are read, from its end
OF_PYTEST = ("pytest", "_pytest", "conformance_planted", "conformance_plant")


class Ran(NamedTuple):
    """What became of one run of the tests."""

    status: int | None  # None if the time was over
    seconds: float
    output: str
    modules: list[str] | None  # that were imported by its end. None if the layer's class was not among them

    @property
    def passed(self) -> bool:
        return self.status == 0

    @property
    def tests(self) -> int | None:
        """The number of tests that passed, if the output says it as pytest does."""
        found = PASSED.findall(self.output)
        return int(found[-1]) if found else None

    @property
    def how(self) -> str:
        """What shows that the run failed: the first test that did, or the end of the output."""
        if self.status is None:
            return "it took too long"
        failed = FAILED.search(self.output)
        lines = self.output.strip().splitlines()
        return failed[1] if failed else (lines[-1] if lines else f"exit status {self.status}")


class Warm:
    """A process that has imported what takes long, and forks for each run. See warm.py."""

    def __init__(self, modules: list[str], file: str, env: dict[str, str]):
        self.task = {"modules": modules, "file": file}
        self.process = subprocess.Popen([sys.executable, str(HERE / "warm.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True, env=env, start_new_session=True)

    def begin(self) -> bool:
        """Waits for the imports. False if the layer was imported, too: then no fault can be planted any more."""
        self.say(self.task)
        return self.answer() is False

    def say(self, message: dict) -> None:
        assert self.process.stdin is not None
        print(json.dumps(message), file=self.process.stdin, flush=True)

    def answer(self) -> bool | int | None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return json.loads(line) if line else None

    def end(self) -> None:
        children.end(self.process.pid)
        self.process.communicate()


class Trials:
    """A folder that makes Python plant a fault, as long as it is there. Use as a context manager.

    `arguments` are those of pytest. A `command` of the user's is run in their place, if there is one."""

    def __init__(self, command: list[str], arguments: list[str], facts: dict):
        self.command, self.arguments, self.facts = command, arguments, facts
        self.preloaded: list[str] | None = None  # None: each run is a process from scratch
        self._warm = threading.local()
        self._over = False  # nothing is to run any more
        self._running: set[int] = set()
        self._all: list[Warm] = []

    def __enter__(self) -> "Trials":
        self._folder = tempfile.TemporaryDirectory(prefix="conformance-mutate-", ignore_cleanup_errors=True)
        site = Path(self._folder.name) / "site"
        site.mkdir()
        (site / "sitecustomize.py").write_text(SITE, encoding="utf-8")
        (site / "conformance_plant.py").write_text(PLANT, encoding="utf-8")
        path = os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH"))))
        addopts = " ".join(filter(None, (os.environ.get("PYTEST_ADDOPTS"), "-p no:cacheprovider")))
        self.env = os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "PYTEST_ADDOPTS": addopts,
                                 "HYPOTHESIS_STORAGE_DIRECTORY": str(Path(self._folder.name) / "hypothesis")}
        return self

    def __exit__(self, *_: object) -> None:
        """Ends what runs. A thread that starts a process meanwhile sees `_over`, and ends it itself."""
        self._over = True
        children.end(*self._running)
        for warm in list(self._all):
            warm.end()
        self._folder.cleanup()

    def preload(self, ran: Ran) -> None:
        """Runs the tests from now on in forks of a process that has imported the libraries that this run has."""
        if not self.command:
            theirs = os.path.basename(os.path.dirname(self.facts["file"]))
            own = {*OF_PYTEST, *_plugins(), self.facts["module"].partition(".")[0], theirs}
            self.preloaded = [name for name in ran.modules or [] if name.partition(".")[0] not in own]

    def run(self, fault: str, seconds: float) -> Ran:
        """Runs the tests with the fault, "" for none, and ends them with all that they started when the time is over."""
        folder = Path(tempfile.mkdtemp(dir=self._folder.name))
        task, seen, output = (folder / name for name in ("task.json", "seen", "output"))
        task.write_text(json.dumps(self.facts | {"fault": fault, "seen": str(seen)}), encoding="utf-8")
        started = time.perf_counter()
        with output.open("w+b") as file:
            status = self._forked(str(task), str(output), seconds) if self.preloaded is not None else self._fresh(
                str(task), file, seconds)
            file.seek(max(0, file.seek(0, os.SEEK_END) - KEPT))
            text = COLOURS.sub("", file.read().decode(errors="replace"))
        modules = None
        with suppress(OSError, ValueError):
            modules = json.loads(seen.read_text(encoding="utf-8"))
        self._must_go_on()  # what was ended with all others has caught no fault
        return Ran(status, time.perf_counter() - started, text, modules)

    def _fresh(self, task: str, output: IO[bytes], seconds: float) -> int | None:
        command = self.command or [sys.executable, "-m", "pytest", *self.arguments]
        process = subprocess.Popen(command, env=self.env | {VARIABLE: task}, stdin=subprocess.DEVNULL, stdout=output,
                                   stderr=subprocess.STDOUT, start_new_session=True)
        status = None
        self._running.add(process.pid)
        try:
            self._must_go_on()
            with suppress(subprocess.TimeoutExpired):
                status = process.wait(seconds)
        finally:
            children.end(process.pid)
            process.wait()
            self._running.discard(process.pid)
        return status

    def _forked(self, task: str, output: str, seconds: float) -> int | None:
        warm = self._warmed()
        warm.say({"env": {VARIABLE: task}, "output": output, "arguments": self.arguments})
        child = warm.answer()
        if not isinstance(child, int):
            raise RuntimeError("the process that runs the tests in forks has ended")
        over: list[int] = []

        def end() -> None:
            over.append(child)
            children.end(child)

        timer = threading.Timer(seconds, end)
        timer.daemon = True
        timer.start()
        self._running.add(child)
        if self._over:
            end()
        status = warm.answer()
        timer.cancel()
        self._running.discard(child)
        return None if over else status

    def _warmed(self) -> Warm:
        """The process of this thread. It imports torch alone if more would import the layer, too."""
        if not hasattr(self._warm, "process") and not self._warm_one():
            self._warm.process.end()
            self.preloaded = ["torch"]
            self._warm_one()
        return self._warm.process

    def _warm_one(self) -> bool:
        self._must_go_on()
        assert self.preloaded is not None
        self._warm.process = Warm(self.preloaded, self.facts["file"], self.env)
        self._all.append(self._warm.process)
        if self._over:
            self._warm.process.end()
        return self._warm.process.begin()

    def _must_go_on(self) -> None:
        if self._over:
            raise RuntimeError("the runs of the tests were ended")


def _plugins() -> set[str]:
    """The packages that have plugins of pytest. It warns of those that are imported before it."""
    having = {entry.dist.name for entry in metadata.entry_points(group="pytest11") if entry.dist is not None}
    return {name for name, dists in metadata.packages_distributions().items() if having & set(dists)}
