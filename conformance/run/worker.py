"""Runs each subject in its own process. `Worker` is the harness's side, `serve` the side of the subject's process.

The two exchange one JSON object per line. The subject's process first says `ready` or `unloadable`. Then it answers each
requirement id with an outcome. The subject's output goes to a file, and its standard input is empty, so that neither disturbs
the exchange. A process that dies, or that does not answer in time, costs one requirement: a new one is started for the next.
"""

import contextlib
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from json import dumps, loads  # before a subject can have changed them

from conformance.drivers.process import ONE_THREAD, USERS_PATH, ended
from conformance.run.examine import Outcome, command

OUR_OWN = ("lora_ref", "lora_torch", "article")  # subjects that import no library except NumPy and torch
OURS, INTERRUPTED = "the subject's process", "the run was interrupted"
START_SECONDS = 120.0  # the least limit for loading a subject, which may import a lot


class Unloadable(Exception):
    """The subject could not be loaded. The message gives the reason."""


class Worker:
    """Examines requirements for one subject, one at a time, in a process that is started when it is needed."""

    def __init__(self, spec: str, options: dict, timeout: float):
        self.spec, self.options, self.timeout = spec, options, timeout
        self.about: dict = {}  # name, version, dtypes of the subject, once it has been loaded
        self._process: subprocess.Popen[str] | None = None
        self.cancelled = False
        self._lines: queue.Queue[str | None] = queue.Queue()

    def start(self) -> None:
        """Starts the process and waits until the subject is loaded. Raises Unloadable."""
        if self.cancelled:
            raise Unloadable(INTERRUPTED)
        self._noise = tempfile.TemporaryFile()  # noqa: SIM115 it lives as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", "conformance.run.worker", self.spec, dumps(self.options)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._noise, text=True, encoding="utf-8",
            env=ONE_THREAD | os.environ | {
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), USERS_PATH: os.environ.get("PYTHONPATH", "")},
            start_new_session=True,
        )
        self._lines = queue.Queue()
        self._reader = threading.Thread(target=_read, args=(self._process, self._lines), daemon=True)
        self._reader.start()
        answer = self._answer(max(self.timeout, START_SECONDS))
        if isinstance(answer, str):
            words = self._last_words()
            self.stop()
            raise Unloadable(f"loading it {answer}{words}")
        if "unloadable" in answer:
            self.stop()
            raise Unloadable(answer["unloadable"])
        self.about = answer["ready"]

    def examine(self, id: str) -> Outcome:
        """The outcome of the requirement. Raises Unloadable if a new process is needed and cannot be started."""
        if self._process is None:
            self.start()
        assert self._process is not None and self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(id + "\n")
            self._process.stdin.flush()
        answer = self._answer(self.timeout)
        if self.cancelled:
            raise Unloadable(INTERRUPTED)
        if isinstance(answer, dict) and "outcome" in answer:
            return Outcome(**answer["outcome"])
        if isinstance(answer, dict):
            answer = "gave an answer that is not one of the harness"
        status = "timeout" if answer.startswith("took") else "crash"
        words = self._last_words()
        self.stop()
        again = command(self.spec, id, self.options["seed"], self.options["device"], tuple(self.options["dtypes"]))
        failure = {"what": OURS, "got": answer, "want": "an answer"}
        seconds = self.timeout if status == "timeout" else 0.0
        message = f"the subject's process {answer}{words}"
        return Outcome(id, status, message, seconds=seconds, reproduce=again, failure=failure)

    def conventions(self) -> dict[str, str]:
        """What run/conventions.py finds out about the subject. {} if the process ends before it answers."""
        with contextlib.suppress(Unloadable):
            if self._process is None:
                self.start()
            assert self._process is not None and self._process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write("conventions\n")
                self._process.stdin.flush()
            answer = self._answer(max(self.timeout, START_SECONDS))
            if isinstance(answer, dict) and "conventions" in answer:
                return answer["conventions"]
            self.stop()
        return {}

    def cancel(self) -> None:
        """Ends the process and starts no other. It is called from another thread."""
        self.cancelled = True
        self._kill()

    def _kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def stop(self) -> None:
        if self._process is not None:
            self._kill()
            self._process.wait()
            self._reader.join(timeout=2)  # it ends with the output, unless a process left behind keeps that open
            for file in (self._process.stdin, self._process.stdout, self._noise):
                if file is not None:
                    with contextlib.suppress(OSError):  # for what was written and not sent
                        file.close()
            self._process = None

    def _answer(self, seconds: float) -> dict | str:
        """The next answer, or in words why there is none."""
        assert self._process is not None
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            return f"took longer than {seconds:g} s"
        if line is not None:
            return loads(line)
        return ended(self._process.wait())

    def _last_words(self) -> str:
        """The last line that the process printed. After a crash it often gives the reason."""
        self._noise.seek(0)
        lines = self._noise.read().decode(errors="replace").strip().splitlines()
        return f"; it last printed: {lines[-1][:200]}" if lines else ""


def _read(process: subprocess.Popen[str], lines: queue.Queue) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)
    lines.put(None)


def serve(spec: str, options: dict) -> None:
    """The side of the subject's process: loads the subject, then answers until there is nothing more to read."""
    questions, answers = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)  # what the subject prints goes to standard error

    def say(answer: dict) -> None:
        answers.write(dumps(answer) + "\n")
        answers.flush()

    from conformance.drivers.process import LIMIT, ProcessSubject
    from conformance.requirements import all_requirements
    from conformance.run import canaries
    from conformance.run.conventions import conventions
    from conformance.run.examine import CannotBuild, examine, offered_dtypes
    from conformance.run.loading import LoadError, load
    from conformance.truth import cache

    cache.write_files(False)
    try:
        subject = load(spec, min(LIMIT, options["timeout"] / 3), options["memory"])
        dtypes = offered_dtypes(subject, tuple(options["dtypes"]), options["device"])
    except (LoadError, CannotBuild) as error:
        say({"unloadable": str(error)})
        return
    cache.write_files(spec in OUR_OWN or isinstance(subject, ProcessSubject))
    name, version = str(getattr(subject, "name", "") or spec), str(getattr(subject, "version", "") or "")
    say({"ready": {"name": name, "version": version, "dtypes": dtypes}})
    requirements = {r.id: r for r in (*all_requirements(), *canaries.ALL)}
    for line in questions:
        if line.strip() == "conventions":
            say({"conventions": conventions(subject)})
            continue
        outcome = examine(
            requirements[line.strip()], subject, spec, dtypes=dtypes, examples=options["examples"],
            seed=options["seed"], device=options["device"], asked=tuple(options["dtypes"]),
        )
        if isinstance(subject, ProcessSubject):
            subject.revive()  # now, so that only the requirement that ended it is lost
        say({"outcome": outcome.as_dict()})


if __name__ == "__main__":
    serve(sys.argv[1], loads(sys.argv[2]))
