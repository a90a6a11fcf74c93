"""Drives a subject that is a program in another process, in any language. This is the harness's side of protocol.py.

The program is started when the subject is loaded. It is started again after it died, or was stopped because it took too long.
This costs only the current case. Other output of the program is kept for the message about its end.
"""

import json
import os
import select
import signal
import subprocess
import tempfile
import time
import weakref
from collections import OrderedDict
from contextlib import suppress
from typing import Any

import numpy as np

from conformance.drivers.protocol import REMEMBERED, VERSION, decode, encode, parameters
from conformance.model import Model
from conformance.subject import Call, Layer, Subject, Unsupported

LIMIT = 10.0  # seconds for one answer
START = 120.0  # for the first one: programs import
LINE = 1 << 28  # bytes of one line
MEMORY = 8.0  # GiB of a program's own data
USERS_PATH = "CONFORMANCE_USERS_PYTHONPATH"  # holds the user's PYTHONPATH, which programs get; a worker's own is another
# One thread each for the libraries under NumPy and PyTorch, unless the user set another number. Cases are small, and every core
# already has a busy process. Threads that wait for each other make both processes slower, by half.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class ProgramError(Exception):
    """The program answered with an error, whose text is the message."""


class ProtocolError(Exception):
    """The program's answer does not follow PROTOCOL.md."""


class Died(SystemExit):
    """The program ended without an answer."""


class Hung(SystemExit):
    """The program took too long and was stopped."""


def ended(code: int) -> str:
    """How a process ended, in words, from its return code."""
    if code >= 0:
        return f"exited with status {code}"
    with suppress(ValueError):
        return f"was killed by {signal.Signals(-code).name}"
    return f"was killed by signal {-code}"


class Program:
    """A running program, asked one question at a time."""

    def __init__(self, command: list[str], limit: float = LIMIT, memory: float = MEMORY):
        """Starts it. Raises OSError if there is no such program."""
        self.limit = limit
        self._asked, self._got, self._stray = 0, bytearray(), ""
        noise = tempfile.TemporaryFile()  # noqa: SIM115 it lives as long as the process
        try:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=noise,
                                             env=_environment(), bufsize=0)
        except BaseException:
            noise.close()
            raise
        self._noise = noise
        self._finalizer = weakref.finalize(self, _stopped, self._process, noise)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        os.set_blocking(self._stdin.fileno(), False)
        _limit_memory(self._process.pid, memory)
        self._handed: OrderedDict[tuple[int, str, str], np.ndarray] = OrderedDict()  # whose changes are reported
        self.strided = False

    @property
    def running(self) -> bool:
        return self._process.poll() is None and not self._stdin.closed

    def ask(self, method: str, seconds: float | None = None, **arguments) -> Any:
        """Sends a request and gives the result. Raises Unsupported, ProgramError, ProtocolError, Died or Hung."""
        self._asked += 1
        for name, value in arguments.items():
            self._remember(name, value)
        message = {"id": self._asked, "method": method} | encode(arguments, self.strided)
        answer = self._answer(json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode() + b"\n",
                              seconds or self.limit)
        for change in answer.get("changed", ()):
            with suppress(KeyError, ValueError):  # the array is forgotten, or read-only here
                self._handed[change["id"], change["argument"], change["key"]][...] = decode(change["value"])
        if "unsupported" in answer:
            raise Unsupported(str(answer["unsupported"]))
        if "error" in answer:
            kind = str(answer.get("type", ProgramError.__name__))
            raise type(kind, (ProgramError,), {})(str(answer["error"]))
        if "result" not in answer:
            raise ProtocolError(f"the answer to {method} has neither result, unsupported nor error, but {sorted(answer)}")
        try:
            return decode(answer["result"])
        except Exception as error:
            raise ProtocolError(f"the result of {method} cannot be read: {type(error).__name__}: {error}") from error

    def stop(self) -> None:
        """Ends the process. This also happens when the Program is garbage-collected."""
        self._finalizer()

    def _remember(self, name: str, value) -> None:
        for key, array in value.items() if isinstance(value, dict) else [("", value)]:
            if isinstance(array, np.ndarray):
                self._handed[self._asked, name, key] = array
        while len(self._handed) > REMEMBERED:
            self._handed.popitem(last=False)

    def _answer(self, line: bytes, seconds: float) -> dict:
        """Sends the line, and reads until the answer to it comes. Other lines are ignored."""
        deadline, left = time.monotonic() + seconds, memoryview(line)
        while True:
            ready, free, _ = select.select([self._stdout], [self._stdin] if left else [], [],
                                           max(0.0, deadline - time.monotonic()))
            if not ready and not free:
                self._end(Hung, f"took longer than {seconds:g} s")
            try:
                if free:
                    left = left[os.write(self._stdin.fileno(), left[:65536]):]
                chunk = os.read(self._stdout.fileno(), 1 << 20) if ready else None
            except BrokenPipeError:
                chunk = b""
            if chunk == b"":
                self._end(Died, "")
            if chunk:
                *lines, rest = chunk.split(b"\n")
                if lines:
                    lines[0], self._got = bytes(self._got) + lines[0], bytearray()
                self._got += rest
                if len(self._got) > LINE:
                    self._end(Died, f"was stopped: it printed a line of more than {LINE >> 20} MiB")
                for found in lines:
                    with suppress(ValueError):
                        answer = json.loads(found)
                        if isinstance(answer, dict) and answer.get("id") == self._asked:
                            return answer
                    self._stray = found.decode(errors="replace") or self._stray
            if time.monotonic() > deadline:  # it prints on and on
                self._end(Hung, f"took longer than {seconds:g} s")

    def _end(self, kind: type[SystemExit], how: str) -> None:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(0 if how else 5)
        with suppress(ProcessLookupError):
            self._process.kill()
        code = self._process.wait()
        with suppress(OSError):
            self._noise.seek(0, os.SEEK_END)
            self._noise.seek(max(0, self._noise.tell() - 4000))
        said = self._noise.read().decode(errors="replace").strip() or self._stray.strip()
        words = f"; it last printed: {said.splitlines()[-1][:200]}" if said else ""
        self.stop()
        raise kind(f"the program {how or ended(code)}{words}")


def _environment() -> dict[str, str]:
    found = ONE_THREAD | os.environ
    path = found.pop(USERS_PATH, found.get("PYTHONPATH", ""))
    found.pop("PYTHONPATH", None)
    return found | ({"PYTHONPATH": path} if path else {})


def _stopped(process: subprocess.Popen, noise) -> None:
    with suppress(ProcessLookupError):
        process.kill()
    process.wait()
    for file in filter(None, (process.stdin, process.stdout, noise)):
        with suppress(OSError):
            file.close()


def _limit_memory(pid: int, gib: float) -> None:
    """Limits the data of the process to so many GiB, where the system can do that. Its address space is not limited: runtimes
    reserve more of it than there is memory."""
    with suppress(ImportError, AttributeError, OSError):
        import resource

        resource.prlimit(pid, resource.RLIMIT_DATA, (int(gib * 2**30), int(gib * 2**30)))


class _Remote:
    """A layer or a model that lives in a program."""

    def __init__(self, program: Program, number: int):
        self._program, self._number = program, number

    def _ask(self, kind: type, method: str, args: tuple) -> Any:
        if not self._program.running:
            raise Died("the program has ended, and the layer with it")
        return self._program.ask(method, layer=self._number, **parameters(kind, method, args))


class RemoteLayer(_Remote, Layer):
    """Passes every method of Layer on to the program."""


class RemoteModel(_Remote, Model):
    """Passes every method of Model on to the program."""


def _passed_on(kind: type, method: str):
    return lambda self, *args: self._ask(kind, method, args)


for _kind, _remote in (Layer, RemoteLayer), (Model, RemoteModel):
    for _method in [name for name, value in vars(_kind).items() if callable(value) and not name.startswith("_")]:
        setattr(_remote, _method, _passed_on(_kind, _method))


class ProcessSubject(Subject):
    """A subject whose layers live in a program."""

    def __init__(self, command: list[str], limit: float = LIMIT, memory: float = MEMORY):
        """Starts the program and sends it `hello`. Raises OSError, or what Program.ask raises."""
        self.command, self.limit, self.memory = command, limit, memory
        self._built, self._forgotten = 0, []
        self._program = self._started()

    def build(self, config, weight, bias):
        return self._new(RemoteLayer, "build", (config, weight, bias))

    def script(self, calls: list[Call], spec: str) -> str | None:
        """The script that the program itself writes. None if it cannot write Python scripts."""
        if not self._speaks_python or not self._program.running:
            return None
        told = []
        for call in calls:
            if call.target is None:  # it could not be built
                return None
            request = {"method": call.method, "layer": call.target._number}
            request |= parameters(Subject if call.method == "build" else Layer, call.method, call.args)
            answer = None if call.method == "build" else call.answer
            told.append({"name": call.layer, "request": request, "answer": answer, "raised": call.raised,
                         "shown": call.shown, "changed": call.changed})
        return self._program.ask("script", calls=told, spec=spec)

    def revive(self) -> None:
        """Starts the program again if it has ended."""
        if not self._program.running:
            self._program = self._started()

    def _new(self, kind, method: str, args: tuple):
        self.revive()
        while self._forgotten:
            with suppress(Unsupported, ProgramError):
                self._program.ask("forget", layer=self._forgotten.pop())
        self._built += 1
        self._program.ask(method, layer=self._built, **parameters(Subject, method, args))
        made = kind(self._program, self._built)
        weakref.finalize(made, self._forget, self._program, self._built)
        return made

    def _forget(self, program: Program, number: int) -> None:
        if program is self._program:
            self._forgotten.append(number)

    def _started(self) -> Program:
        self._forgotten.clear()
        program = Program(self.command, self.limit, self.memory)
        try:
            about = program.ask("hello", max(START, self.limit), protocol=VERSION)
            if not isinstance(about, dict) or about.get("protocol") != VERSION:
                raise ProtocolError(f"hello was answered with {about!r}, expected an object with protocol: {VERSION}")
        except BaseException:
            program.stop()
            raise
        self.name, self.version = str(about.get("name", "")), str(about.get("version", ""))
        self.scale, self.freezes = about.get("scale"), str(about.get("freezes", ""))
        self._speaks_python = program.strided = bool(about.get("strided"))
        self.models = bool(about.get("models"))
        self.methods = tuple(map(str, about.get("methods", Subject.methods)))
        return program


class ProcessModels(ProcessSubject):
    """A ProcessSubject whose program also offers whole models."""

    def __init__(self, subject: ProcessSubject):
        """Takes over the program of `subject`."""
        vars(self).update(vars(subject))

    def build_model(self, config, arrays):
        return self._new(RemoteModel, "build_model", (config, arrays))
