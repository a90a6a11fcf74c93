"""Wrong layers that write to every pipe, fork, kill, stay behind, flood and eat. What they do is bounded, so that no test is in
danger if the harness lets them. Each process that is meant to stay would do so for a thousand seconds."""

import atexit
import contextlib
import ctypes
import importlib
import json
import os
import re
import shutil
import signal
import site
import struct
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from layers import Honest, Wrong, at, subject

LONG = 1000.0  # seconds
READY = b'{"ready": {"name": "forged", "version": "1", "dtypes": ["float32"]}}\n'


def outcome(status: str, number: int = 0) -> bytes:
    """What the harness's own processes say of a requirement."""
    said = {"number": number, "outcome": {"id": "FWD-01", "status": status, "examples": 8}}
    return json.dumps(said).encode() + b"\n"


FORGED = outcome("fail") * 3 + outcome("pass") + outcome("fail")  # the checks that must fail come first


def write(file: int, data: bytes) -> None:
    """Writes without waiting, if there is such a file and it takes the data."""
    with contextlib.suppress(OSError, ValueError):
        blocking = os.get_blocking(file)
        os.set_blocking(file, False)
        try:
            os.write(file, data)
        finally:
            os.set_blocking(file, blocking)


def everyone(data: bytes) -> None:
    for file in range(256):
        write(file, data)


def frames() -> list[bytes]:
    """Answers of zeros to whatever is asked next, as the two processes tell them to each other."""
    said = [json.dumps([asked, "result", ["array", "float32", [1, 4]], []]).encode() for asked in range(1, 100)]
    return [struct.pack("<QQ", len(words), 16) + words + bytes(16) for words in said]


def ancestors() -> list[int]:
    """The processes above this one, from the parent on, as far as they belong to this run."""
    found, process = [], os.getppid()
    while process > 1:
        with contextlib.suppress(OSError):
            if f"ATTACKED_RUN={os.environ['ATTACKED_RUN']}".encode() in Path(f"/proc/{process}/environ").read_bytes():
                found.append(process)
        process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    return found


def once(action, _done=[]) -> None:  # noqa: B006 it is kept on purpose
    """Calls the function, if it is the first one in this process."""
    if not _done:
        _done.append(action)
        action()


def stay(daemon: bool) -> None:
    """Leaves a process that holds all pipes open; as a daemon it is in a session of its own, and no child of this process."""
    if os.fork():
        return
    if daemon:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if os.fork():
            os._exit(0)
    time.sleep(LONG)
    os._exit(0)


# --- pipes and files ----------------------------------------------------------------------------------------------

@at("forward")
def writes_answers_to_all_files(layer, x):
    once(lambda: everyone(FORGED))


@at("load")
def writes_answers_when_it_is_loaded():
    everyone(READY + FORGED)


@at("forward")
def writes_frames_to_all_files(layer, x):
    for frame in frames():
        everyone(frame)


@at("forward")
def writes_zeros_to_all_files(layer, x):
    everyone(bytes(4096))


@at("forward")
def writes_much_to_all_files(layer, x):
    for _ in range(64):
        everyone(b"\n" * 65536)


@at("forward")
def answers_for_the_judge(layer, x):
    """Opens the pipe to which the process above writes its outcomes, writes them all, and lets that process wait."""
    first = len(importlib.import_module("conformance.run.canaries").ALL)  # they come before what is asked, and after it
    said = b"".join(outcome("pass" if number == first + 1 else "fail", number) for number in range(1, 2 * first + 2))
    said += json.dumps({"number": 2 * first + 2, "files": []}).encode() + b"\n"
    for file in Path(f"/proc/{ancestors()[0]}/fd").iterdir():
        with contextlib.suppress(OSError):
            flags = int(Path(str(file).replace("/fd/", "/fdinfo/")).read_text().split()[3], 8)
            if os.readlink(file).startswith("pipe:") and flags & os.O_WRONLY:
                opened = os.open(file, os.O_WRONLY | os.O_NONBLOCK)
                os.write(opened, said)
    time.sleep(LONG)


@at("forward")
def closes_all_files(layer, x):
    os.closerange(0, 256)


@at("load")
def closes_all_files_when_it_is_loaded():
    os.closerange(3, 256)


@at("forward")
def replaces_all_files(layer, x):
    null = os.open(os.devnull, os.O_RDWR)
    for file in range(3, 64):
        if file != null:
            with contextlib.suppress(OSError):
                os.fstat(file)
                os.dup2(null, file)


@at("forward")
def reads_all_files(layer, x):
    """Takes the next question away from whoever should answer it."""
    for file in range(3, 64):
        with contextlib.suppress(OSError):
            os.set_blocking(file, False)
            os.read(file, 1 << 20)


@at("forward")
def a_thread_writes_answers(layer, x):
    def go_on():
        for _ in range(100):
            everyone(outcome("pass"))
            time.sleep(0.001)

    once(threading.Thread(target=go_on, daemon=True).start)


@at("load")
def writes_answers_at_exit():
    atexit.register(everyone, FORGED * 2)


# --- ends and forks -----------------------------------------------------------------------------------------------

@at("load")
def exits_when_it_is_loaded():
    os._exit(0)


@at("build")
def exits_when_it_builds(config, weight, bias):
    os._exit(0)


@at("forward")
def exits_well_when_it_is_asked(layer, x):
    os._exit(0)


@at("forward")
def becomes_another_program(layer, x):
    os.execv("/bin/true", ["true"])


@at("forward")
def becomes_a_silent_program(layer, x):
    os.execv("/bin/sleep", ["sleep", str(LONG)])


@at("forward")
def forks_and_a_child_exits(layer, x):
    if os.fork() == 0:
        os._exit(0)
    os.wait()


@at("forward")
def forks_and_both_answer(layer, x):
    os.fork()


@at("forward")
def forks_and_the_child_answers_first(layer, x):
    if os.fork():
        time.sleep(0.05)


@at("forward", Honest)
def forks_and_the_parent_exits(layer, x):
    """The child goes on with the work, under another number."""
    if os.fork():
        os._exit(0)


@at("forward")
def dies_of_itself(layer, x):
    os.kill(os.getpid(), signal.SIGKILL)


@at("forward")
def stops_itself(layer, x):
    os.kill(os.getpid(), signal.SIGSTOP)


@at("forward")
def overflows_its_stack(layer, x):
    ctypes.string_at(0)


# --- others -------------------------------------------------------------------------------------------------------

def killing(name: str, number: int):
    """A subject that sends a signal to the process above it, if that belongs to the run."""
    def forward(self, x):
        if os.getppid() in ancestors():
            os.kill(os.getppid(), number)
            time.sleep(0.2)
        return Wrong.forward(self, x)

    return subject(name, Wrong, forward=forward)


kills_its_parent = killing("kills_its_parent", signal.SIGKILL)
stops_its_parent = killing("stops_its_parent", signal.SIGSTOP)
terminates_its_parent = killing("terminates_its_parent", signal.SIGTERM)
interrupts_its_parent = killing("interrupts_its_parent", signal.SIGINT)
hangs_up_on_its_parent = killing("hangs_up_on_its_parent", signal.SIGHUP)


@at("forward")
def kills_its_group(layer, x):
    os.killpg(0, signal.SIGKILL)


@at("forward")
def terminates_its_group(layer, x):
    os.killpg(0, signal.SIGTERM)


# --- what stays ---------------------------------------------------------------------------------------------------

@at("forward")
def leaves_a_child(layer, x):
    once(lambda: stay(daemon=False))


@at("forward")
def leaves_a_daemon(layer, x):
    once(lambda: stay(daemon=True))


@at("load")
def leaves_a_daemon_when_it_is_loaded():
    stay(daemon=True)


@at("forward")
def leaves_a_daemon_and_dies(layer, x):
    stay(daemon=True)
    os._exit(0)


@at("forward")
def leaves_a_daemon_and_kills_its_parent(layer, x):
    """Nobody is left then who knows that the daemon belongs to the run."""
    stay(daemon=True)
    time.sleep(0.1)
    if os.getppid() in ancestors():
        os.kill(os.getppid(), signal.SIGKILL)


@at("forward")
def leaves_a_stranger_and_kills_its_parent(layer, x):
    """The same with a program whose environment is empty. The test knows it by its arguments."""
    words = ["/bin/sh", "-c", f"sleep {LONG}; true", os.environ["ATTACKED_RUN"]]
    once(lambda: subprocess.Popen(words, env={}, start_new_session=True))
    if os.getppid() in ancestors():
        os.kill(os.getppid(), signal.SIGKILL)


@at("forward")
def runs_from_process_to_process(layer, x):
    """A daemon that is another process every few milliseconds, for half a minute."""
    def run():
        if os.fork() == 0:
            os.setsid()
            end = time.monotonic() + 30
            while time.monotonic() < end:
                if os.fork():
                    os._exit(0)
                time.sleep(0.002)
            os._exit(0)

    once(run)


@at("forward")
def leaves_a_program(layer, x):
    once(lambda: subprocess.Popen(["/bin/sleep", str(LONG)], start_new_session=True))


@at("forward")
def forks_three_hundred(layer, x):
    once(lambda: [stay(daemon=False) for _ in range(300)])


@at("forward")
def starts_a_thousand_threads(layer, x):
    once(lambda: [threading.Thread(target=time.sleep, args=(LONG,), daemon=True).start() for _ in range(1000)])


@at("forward")
def a_thread_does_not_end(layer, x):
    """The process cannot end by itself, since such a thread is waited for."""
    if threading.active_count() < 4:
        threading.Thread(target=time.sleep, args=(LONG,)).start()


# --- time, memory, output -----------------------------------------------------------------------------------------

@at("forward")
def sleeps(layer, x):
    time.sleep(LONG)


@at("load")
def sleeps_when_it_is_loaded():
    time.sleep(LONG)


@at("forward")
def cannot_be_interrupted(layer, x):
    """Blocks every signal, and is busy in a call that Python does not leave."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    re.match("(a*)*b", "a" * 64)


@at("forward")
def answers_slowly(layer, x):
    time.sleep(0.6)


@at("forward")
def goes_slowly(layer, x):
    """Sleeps when the layer is thrown away."""
    layer.rest = type("Rest", (), {"__del__": lambda self: time.sleep(LONG)})()


@at("forward")
def prints_a_gigabyte(layer, x):
    line = b"noise " * 10_000 + b"\n"
    once(lambda: [os.write(1, line) for _ in range(10**9 // len(line))])


@at("forward")
def prints_one_long_line(layer, x):
    once(lambda: [os.write(2, b"noise " * 100_000) for _ in range(100)])


@at("forward")
def eats_memory(layer, x):
    kept = [np.ones(1 << 23) for _ in range(96)]  # 6 GiB in all
    return kept and None


@at("forward")
def its_children_eat_memory(layer, x):
    for _ in range(8):
        if os.fork() == 0:
            kept = [np.ones(1 << 23) for _ in range(12)]
            time.sleep(LONG if kept else 0)
            os._exit(0)


@at("forward")
def fills_the_disk(layer, x):
    """Up to half a gigabyte, in the temporary folder."""
    once(lambda: (Path(tempfile.gettempdir()) / "filled").write_bytes(bytes(1 << 29)))


@at("forward")
def uses_up_all_files(layer, x):
    kept = []
    with contextlib.suppress(OSError):
        while len(kept) < 100_000:
            kept.append(os.open(os.devnull, os.O_RDONLY))
    return Wrong.forward(layer, x)


# --- what later processes read ------------------------------------------------------------------------------------

@at("load")
def plants_modules_in_the_folder():
    """A truth, a harness and a start file in the current folder, for the processes that start later; then it dies."""
    for name in ("lora_ref", "conformance"):
        Path(name).mkdir(exist_ok=True)
        (Path(name) / "__init__.py").write_text("raise SystemExit(0)\n")
    for name in ("sitecustomize", "usercustomize", "random", "json", "struct", "hypothesis"):
        Path(f"{name}.py").write_text("raise SystemExit(0)\n")
    os._exit(0)


@at("load")
def plants_modules_at_home():
    """Files that a Python of this user reads when it starts."""
    folder = Path(site.getusersitepackages())
    if Path.home() == Path.cwd() / "home":  # of the test, and not of whoever runs it
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("sitecustomize.py", "usercustomize.py"):
            (folder / name).write_text("raise SystemExit(0)\n")
        (folder / "planted.pth").write_text("import os; os._exit(0)\n")
    os._exit(0)


@at("load")
def changes_the_environment():
    for name in ("PYTHONPATH", "PYTHONHOME", "LD_PRELOAD", "LD_LIBRARY_PATH", "PATH", "HOME", "TMPDIR"):
        os.environ[name] = "/nowhere"
    os.environ["CONFORMANCE_CACHE"] = tempfile.gettempdir()


@at("load")
def spoils_the_cache():
    """Puts rubbish, and files that claim any spread to be right, in the place of the numbers that runs keep."""
    folder = Path(os.environ["CONFORMANCE_CACHE"]) / "spreads"
    folder.mkdir(parents=True, exist_ok=True)
    for path in [*folder.iterdir(), folder / ("0" * 64)]:
        path.write_bytes(b"{}" * 100)


@at("forward")
def removes_temporary_files(layer, x):
    """All files of the temporary folder, which is the test's own."""
    folder = Path(tempfile.gettempdir())
    if folder.parent == Path.cwd():
        for path in folder.iterdir():
            shutil.rmtree(path, ignore_errors=True)
            with contextlib.suppress(OSError):
                path.unlink()
