"""Starts the process of a reader or writer, and asks it: see serve.py."""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from conformance.drivers import children, environments

START, LIMIT = 600.0, 120.0  # seconds for the first two answers, in which libraries are imported, and for each other
ENDED = "its process ended, or gave no answer in time"


class Talk:
    """The process of a reader or a writer."""

    def __init__(self, process: subprocess.Popen):
        self.process, self.got, self.asked = process, b"", 0

    def ask(self, question: Any) -> dict | None:
        """Its answer. None if it has ended, or says nothing in time, or what is no answer."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(question).encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            return None
        self.asked += 1
        return self.answer(START if self.asked == 1 else LIMIT)

    def answer(self, seconds: float = START) -> dict | None:
        assert self.process.stdout is not None
        until = time.monotonic() + seconds
        while b"\n" not in self.got:
            left = until - time.monotonic()
            if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
                return None
            part = os.read(self.process.stdout.fileno(), 1 << 16)
            if not part:
                return None
            self.got += part
        line, _, self.got = self.got.partition(b"\n")
        try:
            found = json.loads(line)
        except ValueError:
            return None
        return found if isinstance(found, dict) else None


@contextmanager
def process(kind: str, name: str, environment: str | None, out: Path) -> Iterator[Talk]:
    """The process of a reader or writer, with this interpreter or in that environment. It is ended at the end, with what it has
    started."""
    paths = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    module = "conformance.files.serve"
    here = [sys.executable, "-P", "-m", module]
    command = environments.command(environment, f"{module}:main") if environment else here
    running = subprocess.Popen([*command, kind, name, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": paths}, start_new_session=True)
    try:
        yield Talk(running)
    finally:
        children.end(running.pid)
        running.wait()
        for pipe in filter(None, (running.stdin, running.stdout)):
            with suppress(OSError):
                pipe.close()
