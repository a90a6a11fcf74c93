"""Attacks and accidents on the command itself, one test for each entry of corpus.COMMANDS."""

import json
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
import corpus
from watched import SHORT, Command

HERE = Path(__file__).parent
RIGHT, WRONG, SLEEPS = (str(HERE / spec) for spec in (
    "accidents.py:refers_to_itself", "judge.py:saves_its_own_report", "processes.py:sleeps"))
FAST = ("--only", "FWD-01", *SHORT)


def sound(done: Command) -> Command:
    assert not done.faults(), done.output
    return done


def verdicts(done: Command) -> list[str]:
    return [report["verdict"] for report in done.reports().values()]


def begun(folder: Path) -> Command:
    """A run whose first subject is done, and whose second one sleeps."""
    run = Command(folder, RIGHT, SLEEPS, *FAST, "--timeout", "50")
    while run.process.poll() is None and not (run.json.exists() and RIGHT in run.reports()):
        time.sleep(0.05)
    time.sleep(1)  # until the second subject is asked
    return run


def stopped(folder: Path, number: int) -> Command:
    run = begun(folder)
    run.process.send_signal(number)
    return sound(run.wait())


def ends_in_order(folder: Path, number: int) -> None:
    run = stopped(folder, number)
    assert run.status == 128 + number
    assert run.reports()[RIGHT]["verdict"] == "conformant"
    assert run.reports().get(SLEEPS, {"verdict": "error"})["verdict"] == "error"
    assert not list(folder.glob("*.part*"))


def test_is_terminated(tmp_path):
    ends_in_order(tmp_path, signal.SIGTERM)


def test_is_interrupted(tmp_path):
    ends_in_order(tmp_path, signal.SIGINT)


def test_is_hung_up(tmp_path):
    ends_in_order(tmp_path, signal.SIGHUP)


def test_is_killed(tmp_path):
    run = stopped(tmp_path, signal.SIGKILL)
    assert run.status == -signal.SIGKILL
    assert run.reports()[RIGHT]["verdict"] == "conformant"


def test_is_killed_with_its_workers(tmp_path):
    """All processes of the run at once, as a container does that runs out of memory."""
    run = begun(tmp_path)
    for process in run.processes():
        os.kill(process, signal.SIGKILL)
    assert sound(run.wait()).reports()[RIGHT]["verdict"] == "conformant"


def test_writes_to_a_full_device(tmp_path):
    (tmp_path / "report.json").symlink_to("/dev/full")
    done = sound(Command(tmp_path, RIGHT, *FAST).wait())
    assert done.status == 3
    assert "CONFORMANT" in done.output and "report.json" in done.output
    assert (tmp_path / "report.json").is_symlink() and Path("/dev/full").is_char_device()


def test_writes_to_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "report.json")
    found: list[str] = []
    reader = threading.Thread(target=lambda: found.append((tmp_path / "report.json").read_text(encoding="utf-8")), daemon=True)
    reader.start()
    done = sound(Command(tmp_path, RIGHT, *FAST).wait())
    reader.join(5)
    assert done.status == 0 and (tmp_path / "report.json").is_fifo()
    assert json.loads(found[0])["reports"][0]["verdict"] == "conformant"


def test_writes_to_a_folder_that_is_not_there(tmp_path):
    done = sound(Command(tmp_path, RIGHT, *FAST, json="nowhere/report.json").wait())
    assert done.status == 2 and "nowhere" in done.output


def test_prints_to_a_closed_pipe(tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    done = sound(Command(tmp_path, WRONG, *FAST, stdout=writing).wait())
    os.close(writing)
    assert done.status not in (0, None) and verdicts(done) == ["nonconformant"]


def test_prints_to_a_full_device(tmp_path):
    with open("/dev/full", "wb") as full:
        done = sound(Command(tmp_path, RIGHT, *FAST, stdout=full).wait())
    assert done.status not in (0, 1) and verdicts(done) == ["conformant"]


def test_two_write_one_file(tmp_path):
    runs = [Command(tmp_path, spec, *FAST) for spec in (RIGHT, WRONG)]
    assert [sound(run.wait()).status for run in runs] == [0, 1]
    assert verdicts(runs[0]) in (["conformant"], ["nonconformant"])
    assert not list(tmp_path.glob("*.part*"))


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"\xff\x00", b'{"schema": 1, "reports": 7}', b"null"])
def test_goes_on_with_rubbish(tmp_path, text):
    (tmp_path / "report.json").write_bytes(text)
    done = sound(Command(tmp_path, RIGHT, *FAST, "--resume").wait())
    assert done.status == 2 and "report.json" in done.output
    assert (tmp_path / "report.json").read_bytes() == text


def test_goes_on_after_a_change(tmp_path):
    """A right subject becomes a wrong one between a run and its continuation."""
    shutil.copy(HERE / "layers.py", tmp_path)
    subject = tmp_path / "mine.py"
    subject.write_text(corpus.RIGHT, encoding="utf-8")
    spec = f"{subject}:mine"
    assert verdicts(sound(Command(tmp_path, spec, *FAST).wait())) == ["conformant"]
    subject.write_text(corpus.OF_A_WRONG_ONE, encoding="utf-8")
    assert verdicts(sound(Command(tmp_path, spec, *FAST, "--resume").wait())) == ["nonconformant"]


def test_goes_on_after_a_change_beside(tmp_path):
    """The same, but what changes is a file that the subject imports."""
    shutil.copy(HERE / "layers.py", tmp_path)
    (tmp_path / "mine.py").write_text(corpus.RIGHT, encoding="utf-8")
    spec = f"{tmp_path / 'mine.py'}:mine"
    assert verdicts(sound(Command(tmp_path, spec, *FAST).wait())) == ["conformant"]
    with open(tmp_path / "layers.py", "a", encoding="utf-8") as file:
        file.write("\nHonest.forward = lambda self, x: -x @ self.W.T\n")
    assert verdicts(sound(Command(tmp_path, spec, *FAST, "--resume").wait())) == ["nonconformant"]


def test_shows_text_on_a_poor_terminal(tmp_path):
    done = sound(Command(tmp_path, WRONG, *FAST, LC_ALL="C", LANG="C", PYTHONIOENCODING="ascii", PYTHONUTF8="0", COLUMNS="20",
                         TERM="dumb").wait())
    assert done.output.isascii() and "NONCONFORMANT" in done.output and done.status == 1


def test_learns_from_run_to_run(tmp_path):
    """The second run has other cases than the first, since nobody asked for a seed."""
    spec = f"{HERE / 'offers.py'}:learns_from_run_to_run"
    assert verdicts(sound(Command(tmp_path, spec, *FAST).wait())) == ["conformant"]
    assert verdicts(sound(Command(tmp_path, spec, *FAST).wait())) in (["nonconformant"], ["void"])


def test_has_no_time(tmp_path):
    """A thousandth of a second for each requirement."""
    done = sound(Command(tmp_path, RIGHT, *FAST, "--timeout", "0.001").wait())
    assert done.status in (3, 4) and verdicts(done) in (["error"], ["void"])


def test_each_entry_has_a_test():
    assert {f"test_{attack.name}" for attack in corpus.COMMANDS.attacks} == {
        name for name in globals() if name.startswith("test_")} - {"test_each_entry_has_a_test"}

