"""The command line when things go wrong around it: signals, full disks, closed outputs, poor terminals, and names that no
terminal and no file was made for."""

import errno
import io
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from argparse import Namespace
from pathlib import Path
from xml.etree import ElementTree as xml

import pytest
from rich.console import Console

from conformance.__main__ import main
from conformance.commands import selftest
from conformance.commands.shared import console
from conformance.report import json as json_report
from conformance.report import junit, terminal
from conformance.run import plan, runner
from conformance.run.examine import Outcome
from conformance.run.selftest import SelfTest, Trial
from conformance.run.verdict import Report

ROOT = Path(__file__).parents[3]
SKELETON = (ROOT / "conformance/skeletons/subject.py").read_text(encoding="utf-8")
COMMAND = [sys.executable, "-m", "conformance"]
ONE = ("run", "lora_ref", "--only", "FWD-01")
AWKWARD = "[/bold] [red]\x1b[31m\0\x07\ud800\u202e😀\n<&>\"']]>"


def conformance(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], cwd=ROOT, text=True, timeout=300, errors="surrogateescape", **{
        "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options})


def reports(file: Path) -> list[dict]:
    return json.loads(file.read_bytes().decode("utf-8"))["reports"]


# Outputs


UNBUFFERED, BUFFERED = ({"PYTHONUNBUFFERED": value} for value in ("1", ""))


@pytest.mark.parametrize(("arguments", "more"), [
    (("list",), UNBUFFERED), (("list",), BUFFERED), (("list", "--json"), UNBUFFERED), (("list", "--json"), BUFFERED),
    (("run", "--help"), BUFFERED), (ONE, UNBUFFERED), (ONE, BUFFERED)])
def test_an_output_that_nobody_reads_is_no_verdict(arguments, more):
    read, write = os.pipe()
    os.close(read)
    done = conformance(*arguments, stdout=write, env=os.environ | more)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(("arguments", "more"), [
    (("list",), BUFFERED), (("list", "--json"), UNBUFFERED), (("run", "--help"), BUFFERED), (ONE, UNBUFFERED), (ONE, BUFFERED)])
def test_an_output_that_is_full_is_no_verdict(arguments, more):
    with open("/dev/full", "w") as full:
        done = conformance(*arguments, stdout=full, env=os.environ | more)
    assert done.returncode == 3 and "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_closed_streams_change_no_verdict(tmp_path, closed):
    file, shut = tmp_path / "report.json", " ".join(f"{number}>&-" for number in closed)
    line = " ".join([*COMMAND, *ONE, "--json", str(file), shut])
    done = subprocess.run(line, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and reports(file)[0]["verdict"] == "conformant"


@pytest.mark.parametrize("words", [["list"], ["explain", "FWD-02"]], ids=lambda words: words[0])
def test_a_command_imports_no_other(words):
    """All of them together import torch, which takes seconds."""
    code = f"import sys; from conformance.__main__ import main; main({words}); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.splitlines()[-1]
    assert f"'conformance.commands.{words[0]}'" in loaded
    assert "'torch'" not in loaded and "'conformance.commands.probe'" not in loaded


@pytest.mark.parametrize("what", ["a command fails", "a command cannot be imported"])
def test_a_fault_of_the_harness_is_no_verdict(what):
    breaking = {"a command fails": "from conformance.commands import list as it; it.run = lambda arguments: 1 / 0",
                "a command cannot be imported": "sys.modules['conformance.commands.list'] = None"}[what]
    code = f"import sys; {breaking}; from conformance.__main__ import main; sys.exit(main(['list']))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 3
    assert "this is a fault of conformance itself" in done.stderr and "Traceback" in done.stderr


def test_json_to_standard_output_is_written_once():
    done = conformance("run", "lora_ref", "article", "--only", "FWD-01", "--json", "/dev/stdout")
    assert done.returncode == 0 and done.stdout.count('"schema"') == 1
    whole, end = json.JSONDecoder().raw_decode(done.stdout)
    assert len(whole["reports"]) == 2 and "CONFORMANT" in done.stdout[end:]


def test_list_is_json_in_every_locale():
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    rows = [json.loads(conformance("list", "--json", env=os.environ | more).stdout) for more in ({}, plain)]
    assert rows[0] == rows[1] and any("ᵀ" in row["formula"] for row in rows[0])


# Reports that cannot be written


@pytest.mark.parametrize(("subject", "status"), [("lora_ref", 3), ("tests/conformance/broken.py:wrong_scale", 3),
                                                 ("no_such_subject", 4)])
def test_a_full_disk_does_not_cost_the_run(tmp_path, subject, status):
    files, old = [tmp_path / "report.json", tmp_path / "report.xml"], "old"
    for file in files:
        file.write_text(old)
    done = conformance("run", subject, "--only", "FWD", "--json", str(files[0]), "--junit", str(files[1]), preexec_fn=lambda:
                       resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY)))
    assert done.returncode == status, done.stderr
    assert {"lora_ref": ": CONFORMANT", "no_such_subject": ": ERROR"}.get(subject, ": NONCONFORMANT") in done.stdout
    for file in files:
        assert f"{file} was not written: File too large" in done.stderr and file.read_text() == old
    assert sorted(tmp_path.iterdir()) == files


def test_a_full_disk_does_not_cost_the_self_test(tmp_path, monkeypatch, capsys):
    def full(file, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    found = SelfTest([Trial("bad", "FWD", (), ("FWD-01",), ("FWD-01",), 1)], [Trial("good", "HONEST", (), (), (), 1)])
    monkeypatch.setattr(selftest.selftest, "run", lambda *arguments, **options: found)
    monkeypatch.setattr(selftest.output, "write", full)
    file = str(tmp_path / "selftest.json")
    assert selftest.run(Namespace(jobs=1, examples=1, seed=0, triggered=None, brief=True, json=file)) == 3
    said = capsys.readouterr()
    assert "1 of 1 honest variations passed" in said.out and f"{file} was not written: No space left" in said.err


def test_init_leaves_no_half_of_a_file(tmp_path):
    done = conformance("init", str(tmp_path / "mine.py"), preexec_fn=lambda:
                       resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY)))
    assert done.returncode == 3 and "File too large" in done.stderr and not list(tmp_path.iterdir())


def test_a_folder_that_vanishes_does_not_cost_the_run(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "mine.py").write_text(f"import os\nif os.path.exists({str(tmp_path / 'out')!r}):\n"
                                      f"    os.rmdir({str(tmp_path / 'out')!r})\n{SKELETON}")
    done = conformance("run", f"{tmp_path}/mine.py:MySubject", "--only", "FWD-01", "--json", f"{tmp_path}/out/report.json")
    assert done.returncode == 3 and "was not written: No such file or directory" in done.stderr
    assert ": CONFORMANT" in done.stdout and "Traceback" not in done.stderr


@pytest.mark.parametrize(("arguments", "said"), [
    (("--json", "{0}/new", "--junit", "{0}/new"), "named for two reports"),
    (("--json", "{0}/new", "--junit", "{0}/../{1}/new"), "named for two reports"),
    (("--json", "{0}"), "is a folder"),
    (("--json", "{0}/none/new"), "there is no folder"),
    (("--junit", "/proc/new"), "cannot be written"),
    (("--examples", "nan"), "--examples"), (("--timeout", "nan"), "not a positive number"),
    (("--timeout", "inf"), "not a positive number"), (("--memory", "0"), "not a positive number"),
    (("--jobs", "1.5"), "--jobs"), (("--jobs", "0"), "not a positive number"), (("--seed", "x"), "--seed"),
    (("--only",), "--only"), (("--only", ""), "no such requirement"),
    (("lora_ref",), "is named twice"), (("",), "a SUBJECT is empty"), ((" ",), "a SUBJECT is empty"),
])
def test_accidents_with_arguments(tmp_path, arguments, said):
    done = conformance("run", "lora_ref", *(word.format(tmp_path, tmp_path.name) for word in arguments))
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not list(tmp_path.iterdir())


# Names


@pytest.mark.parametrize("plain", [True, False])
def test_awkward_names_break_nothing(tmp_path, plain):
    """Of a subject that is judged, of one that cannot be loaded, and of one whose last words are coloured."""
    folder = tmp_path / "[red] ✓ [bold"
    folder.mkdir()
    named = f"{SKELETON}\nMySubject.name = MySubject.version = {AWKWARD!r}\n"
    dies = "import os\nos.write(2, b'\\x1b[31m\\0 [/bold]')\nos._exit(3)\n"
    for name, code in (("named", named), ("raises", f"raise ValueError({AWKWARD!r})\n"), ("dies", dies)):
        (folder / f"{name}.py").write_text(code, encoding="utf-8")
    specs = [f"{folder}/{name}.py:MySubject" for name in ("named", "raises", "dies")]
    files = tmp_path / "report.json", tmp_path / "report.xml"
    more = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"} if plain else {}
    done = conformance("run", *specs, "--only", "FWD-01", "--json", str(files[0]), "--junit", str(files[1]), "--jobs", "1",
                       env=os.environ | more)
    assert done.returncode == 4 and "Traceback" not in done.stderr, done.stderr
    assert "[/bold] [red]\\x1b[31m\\x00" in done.stdout and not set(done.stdout) & set("\x1b\0\x07\u202e")
    found = reports(files[0])
    shown = "[/bold] [red]\\x1b[31m\\x00\\x07\\ud800\\u202e😀 <&>\"']]>"
    assert found[0]["subject"]["name"] == found[0]["subject"]["version"] == shown
    assert [report["verdict"] for report in found] == ["conformant", "error", "error"]
    assert all("\\x1b[31m" in report["message"] for report in found[1:])
    suites = xml.parse(files[1]).getroot()
    assert suites[0].get("name") == shown and len(suites) == 3


def test_a_spec_that_is_no_text_is_written_and_found_again(tmp_path):
    """A byte that is not UTF-8 comes from the command line as half of a surrogate pair."""
    files = [str(tmp_path / name) for name in ("report.json", "report.xml")]
    options, report = plan.Options(), Report("cmd:a\udcff", name="a\udcff", unloadable="no\udcff")
    json_report.write(files[0], [report], options)
    junit.write(files[1], [report])
    subject = reports(Path(files[0]))[0]["subject"]
    assert subject == {"name": "a\\udcff", "version": "", "spec": "cmd:a\udcff"}
    assert xml.parse(files[1]).getroot()[0].get("name") == "a\\udcff"


def test_progress_and_tables_show_names_as_they_are():
    """On a terminal: rich reads [red] as a colour, and [/bold] as an error."""
    planned = plan.plan(plan.Options(only=("FWD-01",)))
    report = Report("a.py:[/bold]", "[/bold]", "[red]", planned, {"FWD-01": Outcome("FWD-01", "pass")})
    for make in (Console, lambda **options: console()):
        screen = make(force_terminal=True, width=80)
        screen.file = io.StringIO()
        with terminal.progress(screen, [report.spec], 1) as told:
            told(report, Outcome("[/red]", "pass"))
        terminal.show(screen, [report], 0)
        terminal.show_conventions(screen, [("[/bold]", {"scale": "[/x]"})])
        assert screen.file.getvalue().count("[/bold]") >= 3
    screen.print("a path such as /tmp/[/bold]")  # of the console that the commands share


# Signals

WAITS = """
import pathlib, os, time

def wait():
    with open({marker!r} + ".part", "w") as file:
        file.write(str(os.getpid()))
    os.rename({marker!r} + ".part", {marker!r})
    time.sleep(3600)
"""


def heard() -> None:
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def interrupted(tmp_path: Path, moment: str, numbers: list[int], *, often: bool = False, **options) -> tuple[int, str]:
    """Runs lora_ref, a subject that waits when it is loaded or asked, and a third that is never begun. Sends the signals while
    it waits, once or until the command has ended. Gives the exit status and standard error."""
    (tmp_path / "code").mkdir()
    (tmp_path / "out").mkdir()
    marker = tmp_path / "code" / "marker"
    waits = WAITS.format(marker=str(marker))
    text = {"loading": f"{waits}\nwait()\n", "asking": f"{SKELETON}{waits}\nMyLayer.forward = lambda self, x: wait()\n"}[moment]
    (tmp_path / "code" / "mine.py").write_text(text, encoding="utf-8")
    specs = ["lora_ref", f"{tmp_path}/code/mine.py:MySubject", "article"]
    files = [str(tmp_path / "out" / name) for name in ("report.json", "report.xml")]
    command = [*COMMAND, "run", *specs, "--only", "FWD-01", "--jobs", "1", "--timeout", "3000", "--json", files[0], "--junit",
               files[1]]
    options = {"preexec_fn": heard} | options  # the tests themselves may run under nohup
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options) as run:
        while not marker.exists():
            assert run.poll() is None, run.communicate()
            time.sleep(0.05)
        for number in numbers:
            run.send_signal(number)
        while often and run.poll() is None:
            run.send_signal(numbers[0])
            time.sleep(0.001)
        _, said = run.communicate(timeout=100)
    assert not Path("/proc", marker.read_text()).exists()
    return run.returncode, said


@pytest.mark.parametrize(("moment", "number", "often"), [
    ("loading", signal.SIGINT, False), ("asking", signal.SIGTERM, False), ("asking", signal.SIGHUP, True),
    ("loading", signal.SIGTERM, True), ("asking", signal.SIGINT, True)])
def test_a_signal_ends_a_run_in_order(tmp_path, moment, number, often):
    status, said = interrupted(tmp_path, moment, [number], often=often)
    assert status == 128 + number
    assert said == "conformance run: interrupted; the same command with --resume goes on\n"
    first, *others = reports(tmp_path / "out" / "report.json")
    assert first["verdict"] == "conformant"
    assert [(report["verdict"], report["message"]) for report in others] == [("error", "the run was interrupted")] * 2
    suites = xml.parse(tmp_path / "out" / "report.xml").getroot()
    assert [suite.get("errors") for suite in suites] == ["0", "1", "1"]
    assert sorted(os.listdir(tmp_path / "out")) == ["report.json", "report.xml"]


def test_a_program_that_calls_a_command_keeps_its_signals(capsys):
    before = [signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)]
    assert main(["list"]) == 0
    assert [signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)] == before


def test_what_the_caller_ignores_stays_ignored(tmp_path):
    """As nohup has it."""
    status, _ = interrupted(tmp_path, "asking", [signal.SIGHUP, signal.SIGTERM],
                            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    assert status == 128 + signal.SIGTERM


def test_what_is_interrupted_without_a_file_cannot_go_on(tmp_path):
    (tmp_path / "mine.py").write_text("""
import os, signal, time
with open(f"/proc/{os.getppid()}/stat") as file:  # of the judge, which the command has started
    command = int(file.read().rpartition(")")[2].split()[1])
os.kill(command, signal.SIGINT)
time.sleep(3600)
""")
    done = conformance("run", f"{tmp_path}/mine.py:It", "--only", "FWD-01")
    assert (done.returncode, done.stderr) == (130, "conformance run: interrupted\n")


def test_a_worker_that_is_made_during_an_interrupt_is_not_started(monkeypatch):
    """The second worker is made while all that are known are cancelled, and is not among them."""
    cancelled, started = threading.Event(), []

    class Late:
        def __init__(self, spec, options, timeout):
            self.spec, self.cancelled = spec, False
            if spec == "b":
                interrupt.set()
                cancelled.wait(60)

        def cancel(self):
            self.cancelled = True
            if self.spec == "a":
                cancelled.set()

        def start(self):
            started.append((self.spec, self.cancelled))
            if self.spec == "a":
                second.set()
                cancelled.wait(60)
            raise runner.Unloadable("it is over")

        def stop(self):
            pass

    interrupt, second, result = threading.Event(), threading.Event(), runner.ThreadPoolExecutor.submit

    class Interrupted:
        def result(self):
            interrupt.wait(60)
            raise KeyboardInterrupt

    def submit(self, function, spec):
        if spec == "b":
            second.wait(60)  # the first has been started
        result(self, function, spec)
        return Interrupted()

    monkeypatch.setattr(runner, "Worker", Late)
    monkeypatch.setattr(runner.ThreadPoolExecutor, "submit", submit)
    with pytest.raises(KeyboardInterrupt):
        runner.run(["a", "b"], plan.Options(only=("FWD-01",), jobs=2))
    assert started == [("a", False), ("b", True)]
