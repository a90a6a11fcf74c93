"""Drives a Python subject in a process of its own: the judge's side. run/host.py is the other side, and frames.py what is said.

That process holds no case, no right answer and no comparison. It gets the arguments of one call at a time, and gives back the
answer, and which of the arrays that it was handed have changed.
"""

import os
import socket
import struct
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import conformance
from conformance.drivers.children import MEMORY
from conformance.drivers.frames import HEAD, LARGEST, Given, Malformed, Reader, Writer
from conformance.drivers.process import (
    ONE_THREAD,
    START,
    TICK,
    USERS_PATH,
    Died,
    Peer,
    ProcessSubject,
    ProtocolError,
    named,
)
from conformance.drivers.protocol import WORDS
from conformance.subject import Call, Unsupported

SUBJECT, RAW, HONEST, WRONG = "subject", "raw", "honest", "wrong"  # whose layers are built: see run/host.py


class NotLoaded(Exception):
    """The process could not load the subject. The message gives the reason."""


class Quit(SystemExit):
    """The subject asked for the end of its process, and did not get it."""


def python(*arguments: str) -> list[str]:
    """The command that runs a module of this package with this interpreter. The current folder hides no other module."""
    return [sys.executable, "-P", "-m", *arguments]


def own_environment(path: str) -> dict[str, str]:
    """The environment of a process of this package, which finds the modules that this one finds. `path` is the PYTHONPATH of
    the user."""
    here, root = os.getcwd(), str(Path(conformance.__file__).parents[1])
    paths = [os.path.abspath(entry) for entry in sys.path]  # "" is the current folder
    found = [path for path in paths if path != here or path == root]
    found += [root] if root not in found else []
    return ONE_THREAD | os.environ | {"PYTHONPATH": os.pathsep.join(found), USERS_PATH: path}


class Host(Peer):
    """The process of a Python subject."""

    called = "the subject's process"

    def __init__(self, spec: str, limit: float, memory: float, wrapped: tuple[str, ...] = ()):
        """Starts it. `wrapped` is a command that runs the rest of the command line, such as a sandbox."""
        ours, theirs = socket.socketpair()
        with theirs:
            command = [*wrapped, *python("conformance.run.host", spec, str(theirs.fileno()))]
            env = own_environment(os.environ.get(USERS_PATH, os.environ.get("PYTHONPATH", "")))
            super().__init__(command, limit, memory, env, (ours,), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                             pass_fds=(theirs.fileno(),))
        for waiting in socket.SO_RCVTIMEO, socket.SO_SNDTIMEO:  # settimeout() would ask the system before each part
            ours.setsockopt(socket.SOL_SOCKET, waiting, struct.pack("ll", int(TICK), round(TICK % 1 * 1e6)))
        self._line, self._asked, self._given = ours, 0, Given()
        self._forgotten: list[int] = []
        self._layers = 0
        self.whose = SUBJECT  # whose layers `build` makes

    def forget(self, number: int) -> None:
        self._forgotten.append(number)  # it is told with the next question

    def call(self, number: int, kind: type, method: str, args: tuple) -> Any:
        if method in ("build", "build_model", "build_loader"):
            self._layers += 1
        return self.ask(method, args, number)

    def ask(self, method: str, args: tuple = (), number: int = 0, seconds: float | None = None) -> Any:
        """Asks, and gives the result. Raises Unsupported, ProgramError, ProtocolError, NotLoaded, Quit or Ended."""
        self._asked += 1
        forgotten, self._forgotten = self._forgotten, []
        self._layers -= len(forgotten)
        over = not self._layers  # no layer is left that could write into what it was handed
        if over:
            self._given.forget()
        writer = Writer(self._given)
        said = [self._asked, method, number, self.whose, writer.say(args), forgotten, over]
        deadline = self.deadline(seconds or self.limit)
        try:
            self._send(writer.frame(said), deadline)
            answer = self._received(deadline)
            return self._understood(answer, args)
        except (OSError, Malformed) as error:
            if isinstance(error, OSError):
                self.end(Died, "")
            self.end(ProtocolError, f"answered {method}() with what no driver of ours says: {error}"[:WORDS])

    def _understood(self, reader: Reader, args: tuple) -> Any:
        said = reader.message
        if not isinstance(said, list) or len(said) != 5:
            raise Malformed(f"expected five items, got {str(said)[:200]}")
        asked, kind, what, dicts, changed = said
        if asked != self._asked:
            raise Malformed(f"an answer to question {str(asked)[:40]}, expected one to {self._asked}: {str(said)[:200]}")
        value = reader.value(what)
        try:
            for place, now in dicts:  # what a method has done to a dict that it was given
                held, items = args[place], reader.value(now)
                held.clear()
                held.update(items)
            for number, count in changed:  # and to the arrays that it, or an earlier one, was given
                self._given.put(number, reader.taken(count))
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            raise Malformed(f"{type(error).__name__}: {error}") from None
        reader.end()
        if kind == "result":
            return value
        if kind == "unsupported":
            raise Unsupported(str(value)[:WORDS])
        if kind == "unloadable":
            raise NotLoaded(str(value)[:WORDS])
        name, text = value
        if kind == "quit":
            raise type(str(name) if str(name).isidentifier() else "Quit", (Quit,), {})(str(text)[:WORDS])
        raise named(name)(str(text)[:WORDS])

    def _send(self, frame: bytes, deadline: float) -> None:
        left = memoryview(frame)
        while left:
            try:
                left = left[self._line.send(left):]
            except BlockingIOError:
                self.waited(deadline)

    def _received(self, deadline: float) -> Reader:
        got = b""
        while len(got) < HEAD.size:
            got += self._part(1 << 16, deadline)
        said, body = HEAD.unpack_from(got)
        if said + body > LARGEST:
            raise Malformed(f"a message of {said + body} bytes, more than {LARGEST >> 20} MiB")
        parts, left = [got], HEAD.size + said + body - len(got)
        while left > 0:
            parts.append(self._part(min(left, 1 << 20), deadline))
            left -= len(parts[-1])
        if left < 0:
            raise Malformed(f"{-left} bytes more than the message has")
        found = memoryview(b"".join(parts))[HEAD.size :]
        return Reader(bytes(found[:said]), found[said:])  # an answer hands nothing over

    def _part(self, count: int, deadline: float) -> bytes:
        """The next bytes, at most `count`. Raises OSError where nothing comes any more."""
        while True:
            try:
                part = self._line.recv(count)
            except BlockingIOError:
                self.waited(deadline)
                continue
            if not part:
                raise ConnectionResetError
            if time.monotonic() >= deadline:  # it drips
                self.hung()
            return part


class HostedSubject(ProcessSubject):
    """A Python subject whose layers live in a process of its own."""

    def __init__(self, spec: str, limit: float, memory: float = MEMORY, start: float = START, wrapped: tuple[str, ...] = ()):
        """Starts the process and has it load the subject within `start` seconds. Raises NotLoaded, or what Host.ask raises."""
        self.wrapped = wrapped
        super().__init__([spec], limit, memory, start)

    def as_(self, whose: str) -> None:
        """Sets whose layers are built from now on: the subject's, or those of a canary: see run/host.py."""
        self.revive()
        assert isinstance(self._program, Host)
        self._program.whose = whose
        if "alpha" in self.compensates:  # it takes an alpha, which has no effect
            self.scale, self.alpha = (None, None) if whose == RAW else self.fixed

    def loaded(self) -> list[str]:
        """The files of Python code that the process has loaded, and that belong to no installed package."""
        assert isinstance(self._program, Host)
        found = self._program.ask("loaded") if self._program.running else ()
        return [path for path in found if isinstance(path, str)] if isinstance(found, tuple | list) else []

    def _script(self, calls: list[Call], spec: str) -> str | None:
        assert isinstance(self._program, Host)
        told = tuple((c.layer, c.method, c.args, c.answer if c.method != "build" else None, c.raised, c.target._number, c.shown,
                      c.changed) for c in calls)
        written = self._program.ask("script", (told, spec))
        return written if isinstance(written, str) else None

    def _started(self) -> Peer:
        self._forgotten.clear()
        host = Host(self.command[0], self.limit, self.memory, self.wrapped)
        try:
            about = host.ask("hello", seconds=self.start)
            if not isinstance(about, dict):
                raise ProtocolError(f"hello was answered with {str(about)[:WORDS]}, expected what the subject is")
            self._introduced(about)
        except BaseException:
            with suppress(OSError):
                host.stop()
            raise
        self._speaks_python = True
        return host

