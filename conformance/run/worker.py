"""Judges each subject in a process of its own. `Worker` is the side of the run, `serve` the side of the judge's process.

The two exchange one JSON object per line, with a number that the answer repeats. The judge's process first says `ready` or
`unloadable`. Then it answers each requirement id with an outcome. It never imports the subject, which lives in a further
process: see drivers/hosted.py and drivers/process.py. A judge that dies, or that does not answer in time, costs one
requirement: a new one is started for the next. A judge that hears nothing more ends with all that the subject has started.
"""

import contextlib
import faulthandler
import math
import os
import queue
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from json import dumps, loads
from typing import IO, TextIO

from conformance.drivers import children
from conformance.drivers.children import how_it_ended
from conformance.drivers.hosted import own_environment, python
from conformance.drivers.process import start_limit
from conformance.requirements.helpers.layers import SCRATCH
from conformance.run.examine import Outcome, command
from conformance.truth import cache

OURS, INTERRUPTED = "the judge's process", "the run was interrupted"
GRACE = 20.0  # seconds beyond a limit that the judge itself keeps
NEAR = 2.0  # seconds before the end of that time at which the judge writes down where it is
STACK, FRAMES = 1 << 14, 3  # bytes that are read of it, and frames that are told
GIVEN_UP = 3  # judges that may end or fall silent before the subject is given up


class Unloadable(Exception):
    """The subject could not be loaded. The message gives the reason."""


class Worker:
    """Examines requirements for one subject, one at a time, in a process that is started when it is needed."""

    def __init__(self, spec: str, options: dict, timeout: float):
        self.spec, self.options, self.timeout = spec, options, timeout
        self.about: dict = {}  # name, version and what it does not offer, once the subject has been loaded
        self._process: subprocess.Popen[bytes] | None = None
        self._where: IO[bytes] | None = None  # into which the judge writes where it is if it takes too long: see `_place`
        self.cancelled = False
        self.hung = 0  # requirements that were timeouts, less those that were answered since: see runner.py
        self._asked, self._lost = 0, 0
        self._busy = False  # whether the judge may still be starting the subject's process again
        self._lines: queue.Queue[str | None] = queue.Queue()

    def start(self) -> None:
        """Starts the process and waits until the subject is loaded. Raises Unloadable."""
        if self.cancelled:
            raise Unloadable(INTERRUPTED)
        noise = children.Noise()
        try:
            self._where = tempfile.TemporaryFile()  # noqa: SIM115 - it stays open as long as the judge lives
            self._mark = tempfile.mkdtemp(dir=self.options["scratch"])
            # A socket, since another process of the same user can open a pipe through /proc. For the same reason the options,
            # and the seed among them, are no part of the command line.
            ours, theirs = socket.socketpair()
            with theirs, children.starting:
                self._process = subprocess.Popen(
                    python("conformance.run.worker", self.spec), stdin=theirs.fileno(), stdout=subprocess.DEVNULL,
                    stderr=noise.writing, env=own_environment(os.environ.get("PYTHONPATH", "")) | {SCRATCH: self._mark},
                    pass_fds=(self._where.fileno(),), start_new_session=True,
                )
                children.alive.add(self._process.pid)
        except OSError as error:
            raise Unloadable(f"{OURS} cannot be started: {error}") from error
        finally:
            noise.start()
        self._line, self._writing = ours, ours.makefile("w", encoding="utf-8")
        self._noise, self._lines = noise, queue.Queue()
        threading.Thread(target=_read, args=(ours.makefile("r", encoding="utf-8"), self._lines), daemon=True).start()
        self._say(self.options | {"where": self._where.fileno()})
        self._busy = False
        if self.cancelled:  # meanwhile
            self.stop()
            raise Unloadable(INTERRUPTED)
        answer = self._answer(self._start_limit)
        if isinstance(answer, str):
            words = self._noise.last_words()
            self.stop()
            raise Unloadable(f"loading it {answer}{words}")
        if "unloadable" in answer:
            self.stop()
            raise Unloadable(answer["unloadable"])
        self.about = answer["ready"]

    @property
    def _start_limit(self) -> float:
        return start_limit(self.options["timeout"]) + GRACE

    def examine(self, id: str) -> Outcome:
        """The outcome of the requirement. Raises Unloadable if a new process is needed and cannot be started."""
        answer = self._ask({"about": "requirement", "id": id, "seconds": self.timeout}, self.timeout)
        if isinstance(answer, dict):
            return Outcome(**answer["found"])
        status = "timeout" if answer.startswith("took") else "crash"
        words = self._noise.last_words()
        words += _place(self._where) if status == "timeout" else ""
        self.stop()
        self._lost += 1
        if self._lost == GIVEN_UP:
            raise Unloadable(f"{OURS} {answer}{words}, for the {GIVEN_UP}rd time")
        again = command(self.spec, id, self.options["seed"], self.options["device"], tuple(self.options["dtypes"]))
        failure = {"what": OURS, "got": answer, "want": "an answer"}
        seconds = self.timeout if status == "timeout" else 0.0
        return Outcome(id, status, f"{OURS} {answer}{words}", seconds=seconds, reproduce=again, failure=failure)

    def ask_about(self, what: str) -> dict | list:
        """What the judge finds out about the subject besides the requirements: "conventions" or "files". Empty if the process
        ends before it answers."""
        with contextlib.suppress(Unloadable):
            answer = self._ask({"about": what}, start_limit(self.options["timeout"]))
            if isinstance(answer, dict):
                return answer["found"]
            self.stop()
        return {}

    def cancel(self) -> None:
        """Ends the process and starts no other. It is called from another thread."""
        self.cancelled = True
        self._kill()

    def stop(self) -> None:
        if self._process is not None:
            self._kill()
            self._process = None
            self._line.close()
            if self._where is not None:
                self._where.close()
            with contextlib.suppress(OSError, ValueError):  # for what was written and not sent
                self._writing.close()

    def _kill(self) -> None:
        process = self._process
        if process is not None:
            with contextlib.suppress(OSError, ValueError):
                self._line.shutdown(socket.SHUT_WR)  # it then ends what it has started, and itself
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(children.GOING)
            if process.returncode is None:  # a number that was reaped may be another process by now
                children.end(process.pid)
            process.wait()
            children.alive.discard(process.pid)
            children.end_orphans()
            children.end_marked(SCRATCH, self._mark)  # if the judge was killed, its subject is nobody's child

    def _ask(self, question: dict, seconds: float) -> dict | str:
        """The answer to the question, or in words why there is none. Raises Unloadable."""
        if self._process is not None and self._busy and isinstance(self._answer(self._start_limit), str):
            self.stop()  # it has ended, or cannot start the subject again
        if self._process is None:
            self.start()
        self._asked += 1
        self._say(question | {"number": self._asked})
        answer = self._answer(seconds + GRACE)
        if self.cancelled:
            raise Unloadable(INTERRUPTED)
        self._busy = isinstance(answer, dict)
        if isinstance(answer, dict) and answer.get("number") != self._asked:
            return f"answered {str(answer)[:200]}, expected number {self._asked}"
        return answer

    def _say(self, message: dict) -> None:
        with contextlib.suppress(OSError, ValueError):  # it has ended: the answer will tell
            self._writing.write(dumps(message) + "\n")
            self._writing.flush()

    def _answer(self, seconds: float) -> dict | str:
        """The next answer, or in words why there is none."""
        assert self._process is not None
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            try:
                line = self._lines.get(timeout=1)  # if this process was stopped, the answer may be here all the same
            except queue.Empty:
                return f"took longer than {seconds:g} s"
        if line is None:
            return how_it_ended(self._process)
        try:
            answer = loads(line)
        except ValueError:
            answer = None
        return answer if isinstance(answer, dict) else f"said {line[:200]!r}, which is no answer"


class InProcess:
    """A Worker that judges in this process, in which the subject is loaded, too. It has no limit of time, so that one can look
    at the subject with a debugger."""

    def __init__(self, spec: str, options: dict, timeout: float):
        self.spec, self.options, self.timeout = spec, options, timeout
        self.about: dict = {}
        self.cancelled = False
        self.hung = 0

    def start(self) -> None:
        """Loads the subject. Raises Unloadable."""
        from conformance.run.examine import CannotBuild
        from conformance.run.judge import Judge
        from conformance.run.loading import LoadError

        try:
            self._judge = Judge(self.spec, self.options)
        except (LoadError, CannotBuild) as error:
            raise Unloadable(str(error)) from error
        self.about = self._judge.about

    def examine(self, id: str) -> Outcome:
        if self.cancelled:
            raise Unloadable(INTERRUPTED)
        return self._judge.examine(id, math.inf)

    def ask_about(self, what: str) -> dict | list:
        return self._judge.ask_about(what)

    def cancel(self) -> None:
        self.cancelled = True

    def stop(self) -> None:
        """There is nothing to end. What is computed from now on may be kept again."""
        cache.write_files(True)


def _place(where: IO[bytes] | None) -> str:
    """Where the judge was when its time was nearly over, for the end of a message. Empty if it has not written it down."""
    said = os.pread(where.fileno(), STACK, 0).decode(errors="replace") if where else ""
    main = said.rpartition("Thread 0x")[2]  # the thread that was started first comes last
    frames = re.findall(r'/(conformance/\S+)", line (\d+) in (\w+)', main)[:FRAMES]
    return "; it was in " + ", called from ".join(f"{name} ({file}:{line})" for file, line, name in frames) if frames else ""


def _read(line: TextIO, lines: queue.Queue) -> None:
    with contextlib.suppress(ValueError, OSError):  # it is closed meanwhile
        for answer in line:
            lines.put(answer)
    lines.put(None)


def serve(spec: str) -> None:
    """The judge: reaches the subject, then answers until there is nothing more to read."""
    children.close_to_others()
    children.adopt_orphans()
    line = socket.socket(fileno=os.dup(0))
    asked, answers = line.makefile("r", encoding="utf-8"), line.makefile("w", encoding="utf-8")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    options = loads(asked.readline())
    questions: queue.Queue[dict] = queue.Queue()
    threading.Thread(target=_listen, args=(asked, questions, os.getppid()), daemon=True).start()

    def say(answer: dict) -> None:
        try:
            answers.write(dumps(answer) + "\n")
            answers.flush()
        except OSError:  # nobody hears it: _listen is about to end this process, and what it has started
            threading.Event().wait()

    from conformance.run.examine import CannotBuild
    from conformance.run.judge import Judge
    from conformance.run.loading import LoadError

    try:
        judge = Judge(spec, options)
    except (LoadError, CannotBuild) as error:
        say({"unloadable": str(error)})
        return
    say({"ready": judge.about})
    while True:
        question = questions.get()
        asked = question["about"] == "requirement"
        if asked:
            faulthandler.dump_traceback_later(question["seconds"] + GRACE - NEAR, file=options["where"])
        found = judge.examine(question["id"], question["seconds"]).as_dict() if asked else judge.ask_about(question["about"])
        faulthandler.cancel_dump_traceback_later()
        say({"number": question["number"], "found": found})
        judge.revive()
        say({"waits": True})


def _listen(line: TextIO, questions: queue.Queue, run: int) -> None:
    """Puts what is asked into the queue. At the end of the input it ends everything, whatever the judge is doing."""
    with contextlib.suppress(OSError):
        for question in line:
            questions.put(loads(question))
    while started := children.descendants(os.getpid()):
        children.end(*started)
        children.reap(started)
    shutil.rmtree(os.environ[SCRATCH], ignore_errors=True)
    if os.getppid() != run:  # the run was killed, and cannot remove its own
        with contextlib.suppress(OSError):
            os.rmdir(os.path.dirname(os.environ[SCRATCH]))  # by the last of its judges
    os._exit(0)


if __name__ == "__main__":
    serve(sys.argv[1])
