"""Drives a subject that lives in another process. `Program` speaks protocol.py, in any language; hosted.py has the other kind.

The process is started when the subject is loaded. It is started again after it died, or was stopped because it took too long or
too much. This costs only the current case. What it prints is kept for the message about its end.
"""

import json
import math
import os
import select
import subprocess
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import numpy as np

from conformance.drivers import children
from conformance.drivers.children import MEMORY, PROCESSES, Noise, how_it_ended
from conformance.drivers.protocol import REMEMBERED, VERSION, WORDS, decode, encode, parameters
from conformance.loader import Loader
from conformance.model import Model
from conformance.subject import Call, Layer, Subject, Unsupported

LIMIT = 10.0  # seconds for one answer
START = 120.0  # for the first one: programs import
LINE = 1 << 28  # bytes of one line
TICK = 0.5  # seconds between two looks at what a process takes, while it is waited for
USERS_PATH = "CONFORMANCE_USERS_PYTHONPATH"  # holds the user's PYTHONPATH, which programs get; a worker's own is another
# One thread each for the libraries under NumPy and PyTorch, unless the user set another number. Cases are small, and every core
# already has a busy process. Threads that wait for each other make both processes slower, by half.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def start_limit(timeout: float) -> float:
    """The seconds that a subject may take to begin, which may import a lot, where a requirement may take `timeout`."""
    return min(START, max(40.0, 4 * timeout))


class ProgramError(Exception):
    """The program answered with an error, whose text is the message."""


class ProtocolError(Exception):
    """The program's answer does not follow PROTOCOL.md."""

    broke = True  # it is no refusal of bad input


class Ended(SystemExit):
    """There is no process any more to answer."""


class Died(Ended):
    """The program ended without an answer."""


class Hung(Ended):
    """The program took too long and was stopped."""


class Greedy(Ended):
    """The program took too much memory, or started too many processes, and was stopped."""


class Peer:
    """A running process that is asked one question at a time."""

    called = "the program"  # in messages
    _stray = ""  # what it said last that is no answer

    def __init__(self, command: list[str], limit: float, memory: float, env: dict[str, str], closing=(), **streams):
        """Starts it in a session of its own. What is in `closing` is closed when it ends. Raises OSError if there is no such
        program."""
        self.limit, self.memory = limit, memory
        self.until, self.allowed = math.inf, math.inf  # see `within`
        noise = Noise()
        try:
            with children.starting:
                self._process = subprocess.Popen(
                    command, stderr=noise.writing, env=env, bufsize=0, start_new_session=True, **streams)
                children.alive.add(self._process.pid)
        finally:
            noise.start()
        self._noise = noise
        self._finalizer = weakref.finalize(self, _stopped, self._process, closing)
        if memory:
            children.limit_memory(self._process.pid, memory)

    @property
    def running(self) -> bool:
        return self._finalizer.alive and self._process.poll() is None

    def stop(self) -> None:
        """Ends the process and all that it started. This also happens when the Peer is garbage-collected."""
        self._finalizer()

    def call(self, number: int, kind: type, method: str, args: tuple) -> Any:
        """Calls a method of `kind` (Subject, Layer or Model) on the layer or model of that number, or makes one of that number.
        Raises Unsupported, ProgramError, ProtocolError, Died, Hung or Greedy."""
        raise NotImplementedError

    def forget(self, number: int) -> None:
        """Lets the process forget a layer or model."""
        raise NotImplementedError

    def within(self, seconds: float) -> None:
        """Sets how many seconds are left from now for all the questions that follow."""
        self.until, self.allowed = time.monotonic() + seconds, seconds

    def deadline(self, seconds: float) -> float:
        """When the answer to a question asked now is too late, by time.monotonic()."""
        self._seconds = seconds
        return min(time.monotonic() + seconds, self.until)

    def wait(self, reading, deadline: float, writing=()) -> tuple[list, list]:
        """Waits until one can read or write, and gives what is ready. Ends the process if that takes too long, or if the
        process takes too much meanwhile."""
        while True:
            left = max(0.0, deadline - time.monotonic())
            ready, free, _ = select.select(reading, writing, [], min(TICK, left))
            if ready or free:
                return ready, free
            self.waited(deadline)

    def waited(self, deadline: float) -> None:
        """Looks after the process while it is waited for: whether it is late, has ended, or takes too much."""
        if time.monotonic() >= deadline:
            self.hung()
        if self._process.poll() is not None:  # what it has left behind may hold the connection open
            self.end(Died, "")
        self.check_size()

    def hung(self) -> None:
        self.end(Hung, f"took longer than {min(self._seconds, self.allowed):g} s")

    def check_size(self) -> None:
        """Ends the process if it takes too much."""
        family = [self._process.pid, *children.family(self._process.pid)]
        if len(family) > PROCESSES:
            self.end(Greedy, f"had more than {PROCESSES} processes")
        if self.memory and children.memory(family) > self.memory:
            self.end(Greedy, f"took more than {self.memory:g} GiB of memory with its children")

    def end(self, kind: type[BaseException], how: str) -> None:
        """Ends the process, and raises `kind` with a message that says how it ended, and what it printed last."""
        how = how or how_it_ended(self._process)
        self.stop()
        words = self._noise.last_words() or (f"; it last printed: {self._stray[:200]}" if self._stray else "")
        raise kind(f"{self.called} {how}{words}")


def _stopped(process: subprocess.Popen, closing: Iterable[Any]) -> None:
    children.alive.discard(process.pid)
    if process.poll() is None:  # a number that was reaped may be another process by now
        children.end(process.pid)
    process.wait()
    children.end_orphans()
    for file in filter(None, (process.stdin, process.stdout, *closing)):
        with suppress(OSError):
            file.close()


class Program(Peer):
    """A running program that speaks the protocol of PROTOCOL.md."""

    def __init__(self, command: list[str], limit: float = LIMIT, memory: float = MEMORY, env: dict[str, str] | None = None):
        super().__init__(command, limit, memory, env or _environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._asked, self._got = 0, bytearray()
        assert self._process.stdin is not None and self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        os.set_blocking(self._stdin.fileno(), False)
        self._handed: OrderedDict[tuple[int, str, str], np.ndarray] = OrderedDict()  # whose changes are reported
        self.strided = False

    def call(self, number: int, kind: type, method: str, args: tuple) -> Any:
        if method == "as_module" and not self.strided:
            raise Unsupported("as_module(): it is asked of this package's own server alone")
        return self.ask(method, layer=number, **parameters(kind, method, args))

    def forget(self, number: int) -> None:
        with suppress(Unsupported, ProgramError):
            self.ask("forget", layer=number)

    def ask(self, method: str, seconds: float | None = None, **arguments) -> Any:
        """Sends a request and gives the result. Raises Unsupported, ProgramError, ProtocolError, Died, Hung or Greedy."""
        self._asked += 1
        for name, value in arguments.items():
            self._remember(name, value)
        message = {"id": self._asked, "method": method} | encode(arguments, self.strided)
        answer = self._answer(json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode() + b"\n",
                              seconds or self.limit)
        self._note(answer.get("changed", ()))
        if "unsupported" in answer:
            raise Unsupported(str(answer["unsupported"])[:WORDS])
        if "error" in answer:
            raise named(answer.get("type"))(str(answer["error"])[:WORDS])
        if "result" not in answer:
            said = f"the answer to {method} has neither result, unsupported nor error, but {sorted(answer)}"
            raise ProtocolError(said[:WORDS])
        try:
            return decode(answer["result"], plain=True)
        except Exception as error:
            said = f"the result of {method} cannot be read: {type(error).__name__}: {error}"
            raise ProtocolError(said[:WORDS]) from error

    def _note(self, changed: Any) -> None:
        """Writes into the arrays what the program says that it has written into them."""
        for change in changed if isinstance(changed, list) else ():
            with suppress(KeyError, ValueError, TypeError):  # forgotten, or read-only here, or nonsense
                array, now = self._handed[change["id"], change["argument"], change["key"]], decode(change["value"], plain=True)
                if now.shape == array.shape and now.dtype == array.dtype:
                    array[...] = now

    def _remember(self, name: str, value) -> None:
        for key, array in value.items() if isinstance(value, dict) else [("", value)]:
            if isinstance(array, np.ndarray):
                self._handed[self._asked, name, key] = array
        while len(self._handed) > REMEMBERED:
            self._handed.popitem(last=False)

    def _answer(self, line: bytes, seconds: float) -> dict:
        """Sends the line, and reads until its answer comes. Other lines are ignored, unless they answer something else."""
        left, deadline = memoryview(line), self.deadline(seconds)
        self._lines(early=True)
        while True:
            ready, free = self.wait([self._stdout], deadline, [self._stdin] if left else [])
            try:
                if free:
                    left = left[os.write(self._stdin.fileno(), left[:65536]):]
                chunk = os.read(self._stdout.fileno(), 1 << 20) if ready else None
            except BrokenPipeError:
                chunk = b""
            if chunk == b"":
                self.end(Died, "")
            if chunk:
                self._got += chunk
                answer = self._lines() if b"\n" in chunk else None
                if answer is not None:
                    return answer
                if len(self._got) > LINE:
                    self.end(Died, f"was stopped: it printed a line of more than {LINE >> 20} MiB")
            if time.monotonic() > deadline:  # it prints on and on
                self.hung()

    def _lines(self, early: bool = False) -> dict | None:
        """The answer among the whole lines that were read, if there is one. What follows it is kept for the next question."""
        while b"\n" in self._got:
            line, _, rest = self._got.partition(b"\n")
            self._got = rest
            answer = self._read(bytes(line), early)
            if answer is not None:
                return answer
        return None

    def _read(self, line: bytes, early: bool) -> dict | None:
        """The answer in the line, if it is one. Ends the program if it answers what was not asked, or not asked yet."""
        said = line.decode(errors="replace")
        try:
            answer = json.loads(line.decode())
        except (ValueError, RecursionError):
            answer = None
        if isinstance(answer, dict):
            if type(answer.get("id")) is int and answer["id"] == self._asked and not early:
                return answer
            if self._asked > 1 and "id" in answer and {"result", "unsupported", "error"} & set(answer):
                self.end(ProtocolError, f"answered with another id than {self._asked}: {said[:200]}")
        self._stray = said or self._stray
        return None


def named(name: Any) -> type[ProgramError]:
    """A ProgramError whose class has the name of the exception that the program told, if that is a name."""
    known = isinstance(name, str) and name.isidentifier() and len(name) < 80
    return type(name, (ProgramError,), {}) if known else ProgramError


def _environment() -> dict[str, str]:
    found = ONE_THREAD | os.environ
    path = found.pop(USERS_PATH, found.get("PYTHONPATH", ""))
    found.pop("PYTHONPATH", None)
    return found | ({"PYTHONPATH": path} if path else {})


class _Remote:
    """A layer, a model or a loader that lives in a program."""

    def __init__(self, program: Peer, number: int):
        self._program, self._number = program, number

    def _ask(self, kind: type, method: str, args: tuple) -> Any:
        if not self._program.running:
            raise Died(f"{self._program.called} has ended, and the layer with it")
        return self._program.call(self._number, kind, method, args)


class RemoteLayer(_Remote, Layer):
    """Passes every method of Layer on to the program."""


class RemoteModel(_Remote, Model):
    """Passes every method of Model on to the program."""


class RemoteLoader(_Remote, Loader):
    """Passes every method of Loader on to the program."""


def _passed_on(kind: type, method: str):
    return lambda self, *args: self._ask(kind, method, args)


for _kind, _remote in (Layer, RemoteLayer), (Model, RemoteModel), (Loader, RemoteLoader):
    for _method in [name for name, value in vars(_kind).items() if callable(value) and not name.startswith("_")]:
        setattr(_remote, _method, _passed_on(_kind, _method))


class ProcessSubject(Subject):
    """A subject whose layers live in a program."""

    def __init__(self, command: list[str], limit: float = LIMIT, memory: float = MEMORY, start: float = START,
                 env: dict[str, str] | None = None):
        """Starts the program and sends it `hello`, for whose answer it has `start` seconds. Its environment is the user's, or
        `env`. Raises OSError, or what Program.ask raises."""
        self.command, self.limit, self.memory, self.start, self.env = command, limit, memory, start, env
        self._built, self._forgotten = 0, []
        self._program = self._started()

    def build(self, config, weight, bias):
        return self._new(RemoteLayer, "build", (config, weight, bias))

    def build_model(self, config, arrays):
        if not self.models:
            return super().build_model(config, arrays)
        return self._new(RemoteModel, "build_model", (config, arrays))

    def build_loader(self, base, kinds):
        if not self.loaders:
            return super().build_loader(base, kinds)
        return self._new(RemoteLoader, "build_loader", (base, kinds))

    def script(self, calls: list[Call], spec: str) -> str | None:
        """The script that the program itself writes. None if it cannot write Python scripts."""
        if not self._speaks_python or not self._program.running or any(call.target is None for call in calls):
            return None  # without a target it could not be built
        return self._script(calls, spec)

    def _script(self, calls: list[Call], spec: str) -> str | None:
        assert isinstance(self._program, Program)
        told = []
        for call in calls:
            request = {"method": call.method, "layer": call.target._number}
            request |= parameters(Subject if call.method == "build" else Layer, call.method, call.args)
            answer = None if call.method == "build" else call.answer
            told.append({"name": call.layer, "request": request, "answer": answer, "raised": call.raised,
                         "shown": call.shown, "changed": call.changed})
        return self._program.ask("script", calls=told, spec=spec)

    def within(self, seconds: float) -> None:
        """Sets how many seconds are left from now for all the calls that follow."""
        self._program.within(seconds)

    def revive(self) -> None:
        """Starts the program again if it has ended."""
        if not self._program.running:
            old, self._program = self._program, self._started()
            self._program.until, self._program.allowed = old.until, old.allowed

    def check_size(self) -> None:
        """Ends the program if it takes too much. Raises Greedy."""
        if self._program.running:
            self._program.check_size()

    def stop(self) -> None:
        """Ends the program and all that it started."""
        self._program.stop()

    def _new(self, kind, method: str, args: tuple):
        self.revive()
        while self._forgotten:
            self._program.forget(self._forgotten.pop())
        self._built += 1
        self._program.call(self._built, Subject, method, args)
        made = kind(self._program, self._built)
        weakref.finalize(made, self._forget, self._program, self._built)
        return made

    def _forget(self, program: Peer, number: int) -> None:
        if program is self._program:
            self._forgotten.append(number)

    def _started(self) -> Peer:
        self._forgotten.clear()
        program = Program(self.command, self.limit, self.memory, self.env)
        try:
            about = program.ask("hello", self.start, protocol=VERSION)
            if not isinstance(about, dict) or type(about.get("protocol")) is not int or about["protocol"] != VERSION:
                said = str(about)[:WORDS]
                raise ProtocolError(f"hello was answered with {said}, expected an object with protocol: {VERSION}")
            self._introduced(about)
        except BaseException:
            program.stop()
            raise
        self._speaks_python = program.strided = about.get("strided") is True
        return program

    def _introduced(self, about: dict) -> None:
        """Notes what the process says about the subject. Raises ProtocolError for what it cannot be."""
        methods = about.get("methods", Subject.methods)
        for name in ("scale", "alpha"):
            fixed = about.get(name)
            if fixed is not None and not (type(fixed) in (int, float) and math.isfinite(fixed)):
                raise ProtocolError(f"its {name} is {str(fixed)[:80]}, expected a finite number or none")
        rank = about.get("rank")
        if rank is not None and not (type(rank) is int and rank > 0):
            raise ProtocolError(f"its rank is {str(rank)[:80]}, expected a positive whole number or none")
        if not isinstance(methods, tuple | list) or not all(isinstance(method, str) for method in methods):
            raise ProtocolError(f"its methods are {str(methods)[:80]}, expected a list of names")
        self.name, self.version = str(about.get("name", ""))[:WORDS], str(about.get("version", ""))[:WORDS]
        self.scale, self.alpha = self.fixed = about.get("scale"), about.get("alpha")
        self.square, self.rank = about.get("square") is True, about.get("rank")
        self.freezes, self.scale_argument = (str(about.get(name, ""))[:WORDS] for name in ("freezes", "scale_argument"))
        self.models, self.methods = about.get("models") is True, tuple(methods)
        self.loaders = about.get("loaders") is True
        made_up_for = about.get("compensates", {})
        self.compensates = {str(name)[:80]: str(words)[:WORDS] for name, words in made_up_for.items()} if isinstance(
            made_up_for, dict) else {}
