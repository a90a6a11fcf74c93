"""Runs a command of conformance, and sees what it left: its reports, and the processes that did not end with it."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path

LIMIT, GRACE = 60, 10  # seconds: for a subject, and for the processes of a command to see that it was killed
MARK = "ATTACKED_RUN"  # an environment variable that all processes of a run inherit
SHORT = ("--timeout", "5", "--examples", "4", "--jobs", "1")  # of two equal options the last one counts


class Command:
    """`conformance run …` in a folder, with a home, temporary files and a cache of its own."""

    def __init__(self, folder: Path, *arguments: str, stdout=subprocess.PIPE, json="report.json", **environment: str):
        for name in ("home", "tmp", "cache"):
            (folder / name).mkdir(exist_ok=True)
        self.mark, self.json = uuid.uuid4().hex, folder / json
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "conformance", "run", *arguments, *(("--json", str(self.json)) if json else ())],
            cwd=folder, stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.STDOUT, start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # the tests themselves may run under nohup
            env=os.environ | {
                MARK: self.mark, "HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp"), "COLUMNS": "100",
                "CONFORMANCE_CACHE": str(folder / "cache"), "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"} | environment)
        self.output, self.status, self.left = "", None, []

    def wait(self, limit: float = LIMIT) -> "Command":
        """Waits so many seconds for its end, and ends what is left of it. `status` is None if it took longer."""
        with suppress(subprocess.TimeoutExpired):
            self.output = (self.process.communicate(timeout=limit)[0] or b"").decode(errors="backslashreplace")
            self.status = self.process.returncode
        deadline = time.monotonic() + GRACE
        while (found := self.processes()) and time.monotonic() < deadline and self.status is not None:
            time.sleep(0.05)
        for process in found:
            with suppress(OSError):
                words = Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ")
                self.left.append(words.decode(errors="replace")[:100])
                os.kill(process, signal.SIGKILL)
        self.process.wait()
        return self

    def processes(self) -> list[int]:
        """The living processes of the run: its mark is in their environment, or among their arguments."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if self.mark.encode() in (folder / "environ").read_bytes() + (folder / "cmdline").read_bytes():
                    found.append(int(folder.name))
        return found

    def reports(self) -> dict[str, dict]:
        """The reports in the JSON file, by the subject's spec."""
        return {report["subject"]["spec"]: report for report in json.loads(self.json.read_text(encoding="utf-8"))["reports"]}

    def faults(self) -> list[str]:
        """What no run may do, in words: leave processes, take too long, print a traceback or what is no text."""
        found = [f"a process is left: {name}" for name in self.left]
        if self.status is None:
            found.append("it took too long")
        found += [f"the output holds {words!r}" for words in ("Traceback", "the harness itself failed") if words in self.output]
        odd = {c for c in self.output if not c.isprintable() and c != "\n"}
        return [*found, f"the output holds {sorted(odd)}"] if odd else found
