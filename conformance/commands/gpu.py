"""conformance gpu: runs everything that needs a GPU, within a budget of minutes.

Each step that may hang runs in its own process, with a time limit. After every step, and during the longer ones, the folder
holds all results so far. So nothing is lost if the command is stopped.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import conformance
from conformance.commands.shared import check_device, console, positive
from conformance.report import json as json_report
from conformance.report import output
from conformance.run import plan, runner
from conformance.run.examine import Outcome
from conformance.run.loading import built_in
from conformance.run.verdict import FAILING, Report

HELP = "run everything that needs a GPU: versions, tests, verdicts, benchmark"
EPILOG = """\
writes to OUT, the most important first, after every step:
  environment.json      versions, the GPU, and the settings that decide how it
                        rounds
  tests.log, tests.xml  the tests of lora_torch that name the device; they need
                        pytest and the folder tests/
  report.json           the verdict on lora_torch, then on the other torch
                        implementations that can run here
  bench/, bench.log     the benchmark, without the autotuned subject
  summary.md            what ran, what did not, and why

A step may take half of the time that is left, and the last one all of it.
The folder can be read at any time. A command that is stopped or killed leaves
all results so far.

examples:
  conformance gpu out                       8 minutes on this machine's GPU
  conformance gpu out --minutes 20
  conformance gpu out --device cpu --small  a rehearsal, without a GPU

exit status:
  0 every step ran, except those whose needs are not installed
  1 a step failed: a test, a requirement of lora_torch, or the step itself
  2 usage   3 a step was cut off, or there was no time for it
"""
STARTING = 20.0  # seconds that a step must have left: importing torch takes most of that
ENDING = 10.0  # seconds, within the limit of a step, in which a process that is told to end writes its results
RARELY = 2.0  # least seconds between two writings of the report
Said = tuple[str, str]  # the state of a step: running, done, failed, cut off, not run, not here; and its result in words
Told = Callable[[str], None]


class Step(NamedTuple):
    name: str
    files: str
    needs: float  # seconds that must be left for the step to begin
    action: Callable[[argparse.Namespace, Path, float, Told], Said]


class OutOfTime(Exception):
    """The time of a step is over."""


def declare(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("out", metavar="OUT", help="the folder to write to; it is made if it is missing")
    add("--minutes", type=positive(float), default=8.0, metavar="M",
        help="minutes that all steps together may take (default: 8)")
    add("--device", choices=("cuda", "cpu"), default="cuda", help="cpu is for a rehearsal (default: cuda)")
    add("--small", action="store_true", help="a rehearsal: every step, but with little work in it")


def run(arguments: argparse.Namespace) -> int:
    check_device(arguments.device)
    folder, screen = Path(arguments.out), console()
    folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * arguments.minutes
    said: dict[str, Said] = {step.name: ("not run", "the command ended before it") for step in STEPS}

    def note(step: Step, state: str, text: str) -> None:
        said[step.name] = state, text
        write(folder / "summary.md", summary(said, arguments, folder))
        if state != "running":
            screen.print(f"{step.name}: {state}{f', {text}' if text else ''}", markup=False, soft_wrap=True)

    for step in STEPS:
        left = end - time.monotonic()
        if left < step.needs:
            note(step, "not run", f"{max(0, left):.0f} s of the {arguments.minutes:g} minutes were left, and it needs "
                                  f"{step.needs:.0f} s to begin")
            continue
        note(step, "running", "it had begun, and had not ended, when this was written")
        with screen.status(step.name) as line:
            try:
                limit = left if step is STEPS[-1] else left / 2
                ended = step.action(arguments, folder, limit, lambda text: line.update(f"{step.name}: {text}"))  # noqa: B023
            except Exception as error:
                ended = "failed", f"{type(error).__name__}: {error}"
            except KeyboardInterrupt:
                note(step, "cut off", "the command was interrupted")
                raise
        note(step, *ended)
    screen.print(f"wrote {folder}/summary.md", markup=False, soft_wrap=True)
    states = {state for state, _ in said.values()}
    return 1 if "failed" in states else 3 if states & {"cut off", "not run"} else 0


def versions(arguments: argparse.Namespace, folder: Path, seconds: float, told: Told) -> Said:
    command = [sys.executable, "-m", "conformance.bench.machine", arguments.device]
    code, text = process(command, folder / "environment.part", seconds, told)
    if code != 0:
        return "failed" if code else "cut off", last_line(text)
    write(folder / "environment.json", text)
    (folder / "environment.part").unlink()
    return "done", json.loads(text)["device"]


def tests(arguments: argparse.Namespace, folder: Path, seconds: float, told: Told) -> Said:
    root = Path(conformance.__file__).resolve().parents[1]
    wanted = root / "tests" / "lora_torch"
    if not wanted.is_dir() or not find_spec("pytest"):
        return "not here", "pytest is not installed" if wanted.is_dir() else f"there is no folder {wanted}"
    chosen, names = wanted, arguments.device
    if arguments.small:
        chosen, names = wanted / "test_torch_fast.py", f"{arguments.device} and bfloat16"
    command = [sys.executable, "-m", "pytest", str(chosen), "-vv", "-k", names, "-p", "no:cacheprovider",
               f"--junitxml={(folder / 'tests.xml').resolve()}"]
    code, text = process(command, folder / "tests.log", seconds, told, root)
    state = {None: "cut off", 0: "done", 5: "not run"}.get(code, "failed")  # 5: no test was found
    return state, last_line(text).strip("= ")


def verdict(arguments: argparse.Namespace, folder: Path, seconds: float, told: Told) -> Said:
    """Runs lora_torch, and then the other torch subjects. The runner gives each its own process, and each answer a limit."""
    others = [name for name, missing in built_in().items() if not missing and name != "lora_torch"
              and "torch" in import_module(f"conformance.subjects.{name}").NEEDS]
    options = plan.Options(device=arguments.device)
    if arguments.small:
        options, others = replace(options, only=("FWD-01", "FWD-11"), examples=2, jobs=1), others[:1]
    reports: dict[str, Report] = {}
    lock, written = threading.Lock(), [0.0]

    def keep() -> None:
        json_report.write(str(folder / "report.json"), list(reports.values()), options)
        written[0] = time.monotonic()

    def noted(report: Report, outcome: Outcome | None) -> None:
        told(f"{report.spec}, {len(report.outcomes)} of {len(report.planned)}")
        with lock:  # copies: other threads add to the report
            reports[report.spec] = replace(report, outcomes=dict(report.outcomes), canaries=dict(report.canaries))
            if outcome is None or time.monotonic() > written[0] + RARELY:
                keep()

    def over(*_) -> None:
        raise OutOfTime

    state, before = "done", signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        for spec in ("lora_torch", *others):
            runner.run([spec], options, noted)
    except OutOfTime:
        state = "cut off"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        keep()
    ours = reports.get("lora_torch")
    if ours and (any(o.status in FAILING for o in ours.outcomes.values()) or (state == "done" and ours.exit_status)):
        state = "failed"
    return state, "; ".join(map(verdict_in_words, reports.values()))


def verdict_in_words(report: Report) -> str:
    failed = [id for id, outcome in report.outcomes.items() if outcome.status in FAILING]
    passed = sum(outcome.status == "pass" for outcome in report.outcomes.values())
    report = report.cleaned()
    words = f"{report.spec}: {report.verdict}, {len(report.outcomes)} of {len(report.planned)} asked, {passed} passed"
    return words + f", failed: {' '.join(failed)}" * bool(failed) + f" ({report.unloadable})" * bool(report.unloadable)


def benchmark(arguments: argparse.Namespace, folder: Path, seconds: float, told: Told) -> Said:
    from conformance.bench import WORKLOADS, default_subjects

    subjects = [name for name in default_subjects(arguments.device) if "autotuned" not in name]
    less = ["--rounds", "5"]
    if arguments.small:
        first = WORKLOADS[arguments.device][0].name
        subjects, less = ["lora_torch"], ["--rounds", "2", "--small", "--no-sweep", "--workloads", first]
    command = [sys.executable, "-m", "conformance", "bench", *subjects, "--device", arguments.device, *less]
    code, text = process([*command, "--out", str(folder / "bench")], folder / "bench.log", seconds, told)
    found = folder / "bench" / "bench.json"
    report = json.loads(found.read_text(encoding="utf-8")) if found.exists() else {"workloads": [], "sweep": {}}
    sizes = ", ".join(f"{r['workload']['name']} {r['caches']}" for r in report["workloads"])
    text = f"measured: {sizes or 'nothing'}; of the sweep {sum(map(len, report['sweep'].values()))} sizes" + (
        f"; it ended with: {last_line(text)}" if code else "")
    return {None: "cut off", 0: "done"}.get(code, "failed"), text


STEPS = (
    Step("versions and settings", "environment.json", 0, versions), Step("tests", "tests.log tests.xml", STARTING, tests),
    Step("verdict", "report.json", STARTING, verdict), Step("benchmark", "bench/ bench.log", STARTING, benchmark),
)


def process(command: list[str], log: Path, seconds: float, told: Told, folder: Path | None = None) -> tuple[int | None, str]:
    """Runs a command. Gives its exit status, or None if its time was over, and its output, which also goes to `log`.

    When its time is over it is ended, with all processes that it started. An alarm ends it even if this process was killed."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONUNBUFFERED": "1"}
    end = time.monotonic() + seconds - min(ENDING, seconds / 4)
    with log.open("wb") as file:
        child = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            start_new_session=True, preexec_fn=lambda: signal.alarm(int(seconds) + 2))
        try:
            while child.poll() is None and time.monotonic() < end:
                time.sleep(0.1)
                told(last_line(log.read_text("utf-8", "replace"))[:60])
            code = child.poll()
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGINT)  # at which pytest writes what it has
                try:
                    child.wait(min(ENDING, seconds / 4))
                except subprocess.TimeoutExpired:
                    os.killpg(child.pid, signal.SIGKILL)
                    child.wait()
    return code, log.read_text("utf-8", "replace")


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it printed nothing"])[-1]


def write(path: Path, text: str) -> None:
    output.write(str(path), text.encode("utf-8", "backslashreplace"))


def summary(said: dict[str, Said], arguments: argparse.Namespace, folder: Path) -> str:
    lines = [f"# conformance gpu, on {arguments.device}", "", f"`conformance {shlex.join(sys.argv[1:])}`", ""]
    if arguments.small or arguments.device == "cpu":
        lines += ["This is a rehearsal: it says nothing about a GPU.", ""]
    lines += ["| step | state | what came of it | files |", "|---|---|---|---|"]
    for step in STEPS:
        state, text = said[step.name]
        lines.append(f"| {step.name} | {state} | {text.replace('|', '/')} | {step.files} |")
    if (folder / "environment.json").exists():
        found = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
        lines += ["", *(f"- {name}: {value}" for name, value in found.items())]
    return "\n".join([*lines, ""])
