"""conformance mutate: plants known faults into a layer, and counts those that the user's own tests catch."""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path

from rich.text import Text

from conformance import __version__
from conformance.commands.shared import CORES, Written, console, positive
from conformance.drivers import children
from conformance.drivers.hosted import own_environment, python
from conformance.mutate.trial import Ran, Trials
from conformance.report import json as json_report
from conformance.report import output, text
from conformance.report.page import documents
from conformance.report.page import write as page
from conformance.report.progress import line
from conformance.run.examine import plain
from conformance.run.files import hashed

HELP = "plant known faults into a layer, one at a time, and count those that your own tests catch"
EPILOG = """\
examples:
  conformance mutate tests/test_layers.py --layer my_layers.py:MyLoRA
  conformance mutate tests --layer my_package.layers:MyLoRA --jobs 4
  conformance mutate tests --layer my_layers.py:MyLoRA -- .venv/bin/pytest -x tests
                        another command; it must fail when a test does
  conformance mutate tests --layer my_layers.py:MyLoRA --json out.json --resume
                        goes on where an earlier run was interrupted

The class is changed when your tests import it: no file of yours is changed or
written. First the tests must pass without a fault, and with one that changes
no answer. A fault counts only if it shows in your layer: a requirement that
the layer passes must fail with it. That requirement is named for each fault
that gets through. Tests that take too long with a fault have caught it.

exit status:
  0 every fault was caught, or as many as --at-least asks
  1 some got through
  2 usage
  3 the tests do not pass without a fault, or never import the layer, or no
    fault shows in it
  4 the layer cannot be loaded, or is not recognised
"""
LONGER, LEAST = 5.0, 30.0  # times what the tests take without a fault, and seconds, that they get with one
SHOWN = 12  # lines of output of tests that do not pass


class Pool(ThreadPoolExecutor):
    """Begins nothing more once it is left by an exception, such as Ctrl-C."""

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.shutdown(wait=kind is None, cancel_futures=kind is not None)


class Refused(Exception):
    """Nothing can be measured. `status` is the exit status."""

    def __init__(self, words: str, status: int):
        super().__init__(words)
        self.status = status


def declare(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.parse_known_args = partial(_parsed, parser.parse_known_args)  # pyright: ignore[reportAttributeAccessIssue]
    add = parser.add_argument
    add("tests", nargs="+", metavar="TESTS", help="files or folders of tests; a command after -- runs other tests")
    add("--layer", required=True, metavar="FILE:NAME", help="path/to/file.py:CLASS or package.module:CLASS")
    add("--fault", nargs="+", metavar="NAME", default=[], help="only these faults")
    add("--jobs", type=positive(int), default=CORES, metavar="N", help=f"test runs at the same time (default: {CORES})")
    add("--timeout", type=positive(float), metavar="S",
        help=f"seconds that the tests may take with a fault (default: {LONGER:g} times as long as without one)")
    add("--at-least", type=positive(float), default=100.0, metavar="PERCENT",
        help="the share of faults that must be caught for exit status 0 (default: 100)")
    add("--json", metavar="F", help="write the results to F as JSON, again after every fault")
    add("--html", metavar="F.html", help="write the results as a page")
    add("--resume", action="store_true", help="leave out faults that are in F already, if layer and tests are as they were")


def run(arguments: argparse.Namespace) -> int:
    from conformance.mutate.planted.all import FAULTS  # it imports torch

    if arguments.resume and not arguments.json:
        raise ValueError("--resume needs --json F, the file with the results that are there")
    if unknown := [name for name in arguments.fault if name not in FAULTS]:
        raise ValueError(f"--fault {unknown[0]}: no such fault; there are {', '.join(FAULTS)}")
    if absent := [test for test in arguments.tests if not Path(test.partition("::")[0]).exists()]:
        raise ValueError(f"{absent[0]}: no such file or folder of tests")
    command = arguments.command_of_tests
    if command and shutil.which(command[0]) is None:
        raise ValueError(f"{command[0]}: no such command")
    if arguments.html and not page.is_file(arguments.html):
        raise ValueError(f"--html {arguments.html}: expected a name that ends in .html")
    written = Written(arguments.json, arguments.html)
    try:
        results = measured(arguments, command, written)
    except Refused as reason:
        print(f"conformance mutate: {reason}", file=sys.stderr)
        return reason.status
    show(results)
    if arguments.html:
        written(arguments.html, lambda place: page.write(place, documents.of_tests(results)))
    counted, caught = results["planted"], results["caught"]
    return written.status(3 if not counted else 0 if 100 * caught >= arguments.at_least * counted else 1)


def _parsed(parse: Callable, words: list[str], namespace: argparse.Namespace | None = None) -> tuple:
    """Parses what stands before -- and keeps the rest as `command_of_tests`. argparse gives it to TESTS, or refuses it."""
    at = words.index("--") if "--" in words else len(words)
    found, more = parse(words[:at], namespace)
    found.command_of_tests = words[at + 1 :]
    return found, more


def measured(arguments: argparse.Namespace, command: list[str], written: Written) -> dict:
    """The results. Raises Refused if the tests do not pass without a fault, or if nothing is known of the layer."""
    from conformance.mutate.planted.all import FAULTS, NOTHING

    names = arguments.fault or list(FAULTS)
    prover = Prover(arguments.layer, names)
    pytest_arguments = ["-x", "-q", *arguments.tests]
    with prover, Trials(command, pytest_arguments, prover.facts) as trials, Pool(arguments.jobs) as pool:
        plainly = _must_pass(trials.run("", arguments.timeout or 3600.0), "without a fault", arguments.layer)
        trials.preload(plainly)
        limit = arguments.timeout or max(LEAST, LONGER * plainly.seconds * arguments.jobs)
        unchanged = pool.submit(trials.run, NOTHING, limit).result()  # where the faults are planted, too
        if not unchanged.passed and trials.preloaded is not None:
            # Libraries that are imported before the tests may disturb them.
            trials.preloaded = None
            unchanged = trials.run(NOTHING, limit)
        _must_pass(unchanged, "with the layer wrapped and not changed", arguments.layer)
        files = hashed([prover.facts["file"], *(path for test in arguments.tests for path in _files(test))])
        about = {"schema": 1, "version": __version__, "code": json_report.harness()["code"],
                 "layer": arguments.layer, "command": command or ["pytest", *pytest_arguments], "tests": plainly.tests,
                 "seconds": round(plainly.seconds, 2), "files": files}
        rows: dict[str, dict] = _done(arguments.json, about) if arguments.resume else {}
        lock = threading.Lock()

        def tried(name: str, requirement: str) -> None:
            ran = trials.run(name, limit)
            if ran.modules is None:  # a failure would be ours
                raise Refused(f"{name} could not be planted: {ran.how[:300]}", 3)
            row = {"fault": name, "words": FAULTS[name].words, "requirement": requirement, "caught": not ran.passed,
                   "how": "" if ran.passed else plain(ran.how)[:300], "seconds": round(ran.seconds, 2)}
            with lock:
                rows[name] = row
                keep()

        def keep() -> None:
            known = {"faults": [rows[name] for name in FAULTS if name in rows]}  # of earlier runs of --resume, too
            text = json.dumps(about | results(rows) | known, indent=1, ensure_ascii=False) + "\n"
            written(arguments.json, lambda file: output.write(file, text.encode()))

        def results(rows: dict[str, dict]) -> dict:
            counted = [rows[name] for name in names if name in rows and rows[name]["requirement"]]
            caught = sum(row["caught"] for row in counted)
            return {"planted": len(counted), "caught": caught, "score": caught / len(counted) if counted else None,
                    "faults": [rows[name] for name in names if name in rows]}

        with line(console(), "the faults are planted", len(names)) as told:
            running: list[Future] = []
            for name, requirement in prover.proven(leave=set(rows)):
                if requirement:
                    running.append(pool.submit(tried, name, requirement))
                    running[-1].add_done_callback(lambda _, name=name: told(name, sum(n in rows for n in names), len(names)))
                else:
                    with lock:
                        rows[name] = {"fault": name, "words": FAULTS[name].words, "requirement": "", "caught": False,
                                      "how": "it does not show in this layer", "seconds": 0.0}
            for future in as_completed(running):
                future.result()
        with lock:
            keep()
        return about | results(rows)


def _must_pass(ran: Ran, words: str, layer: str) -> Ran:
    if not ran.passed:
        last = "\n  ".join(ran.output.strip().splitlines()[-SHOWN:])
        why = "take too long" if ran.status is None else f"do not pass (exit status {ran.status})"
        raise Refused(f"the tests {why} {words}, so nothing can be said of them:\n  {last}", 3)
    if ran.modules is None:
        raise Refused(f"the tests never import the file of {layer}, so no fault can be planted. If it is a file of tests, "
                      "move the layer to a file of its own", 3)
    return ran


def _files(test: str) -> list[Path]:
    path = Path(test.partition("::")[0])
    return sorted(path.rglob("*.py")) if path.is_dir() else [path]


def _done(file: str, about: dict) -> dict[str, dict]:
    """The results of an earlier run that are still right. Raises ValueError for those of another layer, or of other tests."""
    if not os.path.exists(file):
        return {}
    try:
        stored = json.loads(Path(file).read_text(encoding="utf-8"))
        same = all(stored[name] == about[name] for name in ("code", "layer", "command", "files"))
        rows = {row["fault"]: row for row in stored["faults"]}
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"--resume: {file} holds no results of conformance mutate: {error!r}") from error
    if not same:
        raise ValueError(f"--resume: {file} is of another layer, of other tests, or they have changed; name another file, or "
                         "remove it")
    return rows


class Prover:
    """The process that imports the layer and tries which faults show in it. Use as a context manager."""

    def __init__(self, layer: str, names: list[str]):
        self.layer, self.names, self.facts = layer, names, {}

    def __enter__(self) -> "Prover":
        """Raises Refused if the layer is not recognised."""
        command = [*python("conformance.mutate.layer", self.layer), *self.names]
        self._folder = tempfile.TemporaryDirectory(prefix="conformance-mutate-", ignore_cleanup_errors=True)
        env = own_environment(os.environ.get("PYTHONPATH", "")) | {"HYPOTHESIS_STORAGE_DIRECTORY": self._folder.name}
        self._process = subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, start_new_session=True)
        said = self._said()
        if "facts" not in said:
            self.__exit__()
            raise Refused(said.get("unloadable", "the layer could not be looked at"), 4)
        self.facts = said["facts"]
        return self

    def __exit__(self, *_: object) -> None:
        children.end(self._process.pid)
        self._process.communicate()
        self._folder.cleanup()

    def proven(self, leave: set[str]) -> Iterator[tuple[str, str]]:
        """Each fault, except those in `leave`, with the requirement that it fails. Raises Refused if the process ends."""
        for name in self.names:
            said = self._said()
            if said.get("fault") != name:
                raise Refused(f"{said.get('unloadable', 'looking at the layer ended')}, at the fault {name}", 4)
            if name not in leave:
                yield name, said["requirement"]

    def _said(self) -> dict:
        assert self._process.stdout is not None and self._process.stderr is not None
        said = self._process.stdout.readline()
        if said:
            return json.loads(said)
        last = self._process.stderr.read().strip().splitlines()[-1:]
        return {"unloadable": f"the process that looks at {self.layer} ended: {' '.join(last)[:300]}"}


def show(results: dict) -> None:
    screen = console()
    caught, counted = results["caught"], results["planted"]
    through = [row for row in results["faults"] if row["requirement"] and not row["caught"]]
    absent = [row["fault"] for row in results["faults"] if not row["requirement"]]
    tests = f"your {results['tests']} tests" if results["tests"] else "your tests"
    share = f" ({100 * caught / counted:.0f} %)" if counted else ""
    screen.print(Text(f"{tests} caught {caught} of {counted} faults{share}", style="bold"))
    if through:
        screen.print("\nthese got through; the requirement beside each would have caught it:")
        for row in through:
            screen.print(Text(f"  {row['fault']:28}{row['requirement']}"))
            text.paragraph(screen, row["words"], 4, style="dim")
        ids = " or ".join(dict.fromkeys(row["requirement"] for row in through))
        command = f"pytest --lora-subject {shlex.quote(results['layer'])} -k {shlex.quote(ids)}"
        screen.print(Text(f"\nto ask these requirements of the layer in your own tests:\n  {command}"), soft_wrap=True)
    if absent:
        screen.print()
        text.paragraph(screen, f"not counted, since they do not show in this layer: {', '.join(absent)}", style="dim")
