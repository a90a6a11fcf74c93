"""The process of a Python subject: loads it, and answers what drivers/hosted.py asks. It holds no case and no right answer.

    python -P -m conformance.run.host SPEC SOCKET

The subject's output goes to standard error, which the judge reads, and its standard input is empty. Besides the subject's own
layers it builds two of ours, on which the judge tries whether this process, this driver and this device work as they should:
see run/canaries.py.
"""

import gc
import os
import socket
import sys
import warnings
from typing import Any

import numpy as np

from conformance.drivers.children import end_with_parent
from conformance.drivers.frames import HEAD, Given, Reader, Writer
from conformance.drivers.hosted import RAW, SUBJECT
from conformance.drivers.protocol import WORDS, about
from conformance.run import canary_layers
from conformance.run.loading import LoadError, load
from conformance.subject import Call, Subject, Unsupported


class Driver:
    """Answers one question after another. It keeps the subject's layers and models under the numbers that the judge gave."""

    def __init__(self, spec: str):
        self.spec, self.given = spec, Given()
        self.subjects: dict[str, Subject] = {}
        self.layers: dict[int, Any] = {}

    def answer(self, head: bytes, body: bytes) -> bytes:
        """The frame that answers the frame."""
        reader = Reader(head, body, self.given)
        asked, method, number, whose, args, forgotten, over = reader.message
        for layer in forgotten:
            self.layers.pop(layer, None)
        if over:
            self.given.forget()
        args, writer = reader.value(args), Writer()
        before = [(place, dict(arg)) for place, arg in enumerate(args) if isinstance(arg, dict)]
        try:
            kind, said = "result", writer.say(self.do(method, number, whose, args))
        except Unsupported as reason:
            kind, said = "unsupported", _text(reason)
        except LoadError as error:
            kind, said = "unloadable", _text(error)
        except Exception as error:
            kind, said = "error", ["tuple", type(error).__name__, _text(error)]
        except BaseException as error:  # the process goes on, and the judge is told
            kind, said = "quit", ["tuple", type(error).__name__, _text(error)]
        if kind != "result":
            writer.bytes.clear()
        dicts = [[place, writer.say(args[place])] for place, was in before if not _same(args[place], was)]
        changed = []
        for known in self.given.changed():
            writer.bytes.append(self.given.peek(known).tobytes())
            changed.append([known, len(writer.bytes[-1])])
        return writer.frame([asked, kind, said, dicts, changed])

    def do(self, method: str, number: int, whose: str, args: tuple) -> Any:
        if method == "hello":
            self.subjects[SUBJECT] = load(self.spec)
            gc.collect()
            gc.freeze()  # what is here now stays, and need not be looked through again and again
            return {"name": self.spec.rpartition(":")[2]} | {k: v for k, v in about(self.subjects[SUBJECT]).items() if v != ""}
        if method == "loaded":
            return loaded()
        if method == "script":
            calls, spec = args
            return self.subjects[RAW if whose == RAW else SUBJECT].script([self.call(*call) for call in calls], spec)
        if method in ("build", "build_model", "build_loader"):
            warnings.simplefilter("ignore")
            np.seterr(all="ignore")  # the subject may have changed it
            if whose not in self.subjects:
                self.subjects[whose] = self.subjects[SUBJECT].raw() if whose == RAW else canary_layers.subject(whose)
            made = getattr(self.subjects[whose], method)(*args)
            if made is None:
                raise TypeError(f"{method}() returned nothing (None), expected a layer")
            self.layers[number] = made
            return None
        return getattr(self.layers[number], method)(*args)

    def call(self, layer, method, args, answer, raised, number, shown, changed) -> Call:
        return Call(layer, method, args, answer, raised, self.layers.get(number), shown, changed)


def _same(now: dict, before: dict) -> bool:
    """Whether the dict holds the very same things under the same names."""
    return list(now) == list(before) and all(now[name] is value for name, value in before.items())


def loaded() -> list[str]:
    """The files of the modules that were loaded from outside the installed packages and this one."""
    ours, found = os.path.dirname(os.path.dirname(os.path.abspath(__file__))), []
    apart = {os.path.realpath(path) for path in (sys.prefix, sys.base_prefix, os.path.dirname(os.__file__), ours)}
    for module in list(sys.modules.values()):
        path = os.path.realpath(getattr(module, "__file__", None) or "/")
        if path != "/" and not any(path.startswith(place + os.sep) for place in apart):
            found.append(path)
    return sorted(set(found))


def _text(error: BaseException) -> str:
    try:
        return str(error)[:WORDS]
    except BaseException as second:
        return f"a {type(error).__name__} without words: its str() raised {type(second).__name__}"


def serve(spec: str, number: int) -> None:
    """Answers until the judge closes the connection."""
    os.dup2(2, 1)  # what the subject prints goes to standard error
    os.set_inheritable(number, False)
    driver = Driver(spec)
    line, got = socket.socket(fileno=number), bytearray()
    while True:
        while len(got) < HEAD.size or len(got) < HEAD.size + sum(HEAD.unpack_from(got)):
            part = line.recv(1 << 16)
            if not part:
                os._exit(0)  # the judge has ended: nothing of the subject has a say in that
            got += part
        said, body = HEAD.unpack_from(got)
        end = HEAD.size + said + body
        frame, got = bytes(got[HEAD.size : end]), got[end:]
        line.sendall(driver.answer(frame[:said], frame[said:]))


if __name__ == "__main__":
    end_with_parent()
    serve(sys.argv[1], int(sys.argv[2]))
