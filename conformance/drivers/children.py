"""Processes that must not outlive the one that started them: limits, what they print, and their end with all their children.

On Linux a child that went into a session of its own is found, too: the judge adopts the orphans among its descendants (a
"child subreaper", see prctl(2)), and /proc tells who descends from whom. On other systems only the process itself is ended.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress

MEMORY = 8.0  # GiB that a process and its children may take
PROCESSES = 64  # that a subject may have at the same time
KEPT = 4000  # bytes of what a process printed last
SWEEPS = 50  # rounds of looking for processes to end; new ones may be started meanwhile
GOING = 2.0  # seconds that a killed process may take to go
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 1, 4, 36  # linux/prctl.h

alive: set[int] = set()  # the processes that this one has started and waits for
starting = threading.Lock()  # held while a process is started and noted in `alive`
_adopts: list[bool] = []


def adopt_orphans() -> None:
    """Makes this process the parent of those of its descendants whose own parent has ended."""
    if not _adopts:
        alive.update(descendants(os.getpid()))  # what was here before is none of the judged
        _prctl(PR_SET_CHILD_SUBREAPER, 1)
        _adopts.append(True)


def adopting() -> bool:
    return bool(_adopts)


def end_with_parent() -> None:
    """Has the system kill this process when the thread that started it ends."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def close_to_others() -> None:
    """Keeps other processes of the same user, except those of root, from this one's memory, files and environment."""
    _prctl(PR_SET_DUMPABLE, 0)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def descendants(*roots: int) -> list[int]:
    """The processes that descend from these, without them, as far as the system tells."""
    children: dict[int, list[int]] = {}
    for pid in _pids():
        with suppress(OSError, IndexError, ValueError):
            with open(f"/proc/{pid}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()  # a name may hold anything, also ")"
            if fields[0] != b"Z":  # it has ended and waits to be asked how
                children.setdefault(int(fields[1]), []).append(pid)
    found = [*roots]
    for pid in found:
        found += children.get(pid, [])
    return found[len(roots):]


def memory(pids: Iterable[int]) -> float:
    """GiB of memory that the processes have to themselves: what is resident and not shared with a file."""
    pages = 0
    for pid in pids:
        with suppress(OSError, IndexError, ValueError), open(f"/proc/{pid}/statm", "rb") as file:
            _, resident, shared, *_ = map(int, file.read().split())
            pages += resident - shared
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**30


def end(*roots: int, but: Iterable[int] = ()) -> None:
    """Kills the processes and everything that descends from them, except those in `but`. It stops them first, so that none
    starts another one meanwhile."""
    spared, seen = {os.getpid(), *but}, set()
    for signalled in (signal.SIGSTOP, signal.SIGKILL):
        seen = set()
        for _ in range(SWEEPS):
            new = {*roots, *descendants(*roots)} - seen - spared
            if not new:
                break
            for pid in new:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signalled)
            seen |= new
    until = time.monotonic() + GOING
    while any(_state(pid) not in ("", "Z") for pid in seen) and time.monotonic() < until:
        time.sleep(0.002)  # the system takes a moment


def _state(pid: int) -> str:
    """The letter for the state of the process, as in proc(5). "" if there is none, or if the system does not tell."""
    with suppress(OSError, IndexError), open(f"/proc/{pid}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()[0].decode()
    return ""


def end_marked(name: str, value: str) -> None:
    """Kills every process whose environment variable of that name has the value, and what descends from it. Whatever a process
    starts inherits its environment, also where its parent was killed and nobody can tell whose child it was."""
    mark = f"{name}={value}".encode()
    for _ in range(5):
        found = []
        for pid in _pids():
            with suppress(OSError), open(f"/proc/{pid}/environ", "rb") as file:
                if mark in file.read().split(b"\0"):
                    found.append(pid)
        if not set(found) - {os.getpid()}:
            return
        end(*found)


def family(pid: int) -> list[int]:
    """What the process has started: its descendants, and the adopted orphans, which may be its own."""
    own = descendants(pid)
    if adopting():
        own += set(descendants(os.getpid())) - set(own) - {pid} - alive - set(descendants(*alive - {pid}))
    return own


def end_orphans() -> None:
    """Kills the processes that this one has adopted, with their descendants. They are in other sessions than this process,
    since all that it judges begins in a session of its own, and they are not `alive`, nor descend from what is."""
    for _ in range(SWEEPS if adopting() else 0):
        with starting:
            found = set(descendants(os.getpid())) - alive - set(descendants(*alive))
        found = {pid for pid in found if _session(pid) != os.getsid(0)}
        if not found:
            return
        end(*found, but=alive)
        reap(found)


def _session(pid: int) -> int:
    """The session of the process. This one's own if the process has gone."""
    with suppress(ProcessLookupError):
        return os.getsid(pid)
    return os.getsid(0)


def reap(pids: Iterable[int]) -> None:
    """Lets the system forget those of the processes that were children of this one and have ended."""
    for pid in pids:
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def _pids() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []


def limit_memory(pid: int, gib: float) -> None:
    """Limits the data of the process, and of each process that it starts, to so many GiB, where the system can do that. Its
    address space is not limited: runtimes reserve more of it than there is memory."""
    with suppress(ImportError, AttributeError, OSError):
        import resource

        resource.prlimit(pid, resource.RLIMIT_DATA, (int(gib * 2**30), int(gib * 2**30)))


def ended(code: int) -> str:
    """How a process ended, in words, from its return code."""
    if code >= 0:
        return f"exited with status {code}"
    with suppress(ValueError):
        return f"was killed by {signal.Signals(-code).name}"
    return f"was killed by signal {-code}"


def how_it_ended(process: subprocess.Popen, seconds: float = 1.0) -> str:
    """How the process ended, in words. If it does not end within the seconds, it is killed."""
    with suppress(subprocess.TimeoutExpired):
        return ended(process.wait(seconds))
    end(process.pid)
    process.wait()
    return "closed its connection, and lived on"


class Noise:
    """What a process prints. The last bytes are kept, and the rest is read and forgotten, so that it can print for ever."""

    def __init__(self) -> None:
        self._reading, self.writing = os.pipe()  # the process gets `writing`
        self._kept = b""
        self._thread = threading.Thread(target=self._read, daemon=True)  # a process left behind may keep the pipe open

    def start(self) -> None:
        """Begins to read, once the process has its end of the pipe."""
        os.close(self.writing)
        self._thread.start()

    def _read(self) -> None:
        with suppress(OSError):
            while chunk := os.read(self._reading, 1 << 16):
                self._kept = (self._kept + chunk)[-KEPT:]
        os.close(self._reading)

    def last_words(self) -> str:
        """The last line that was printed, for the end of a message. After a crash it often gives the reason."""
        self._thread.join(timeout=0.5)  # until it has read all, unless a process left behind keeps the pipe open
        lines = self._kept.decode(errors="replace").strip().splitlines()
        return f"; it last printed: {lines[-1][:200]}" if lines else ""
