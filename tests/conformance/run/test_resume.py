"""`conformance run --resume` continues a run that was cut off, and refuses the report of another run."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
RUN = [sys.executable, "-m", "conformance", "run", "lora_ref", "article", "tests/conformance/broken.py:exits_hard"]


def run(file: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [*RUN, "--only", "FWD-01", "INIT-03", "--json", str(file), *more]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_what_is_there_is_not_asked_again(tmp_path):
    file = tmp_path / "report.json"
    first = run(file)
    stored = json.loads(file.read_text())
    assert [report["subject"]["spec"] for report in stored["reports"]] == RUN[4:]
    stored["reports"][0]["seconds"] = 12345.0  # as the mark of a report that was not made again
    del stored["reports"][1]  # as if the run had been cut off there
    file.write_text(json.dumps(stored))
    again = run(file, "--resume")
    assert again.returncode == first.returncode == 1
    after = json.loads(file.read_text())["reports"]
    assert [report["subject"]["spec"] for report in after] == RUN[4:]
    assert [report["verdict"] for report in after] == ["conformant", "conformant", "nonconformant"]
    assert after[0]["seconds"] == 12345.0 and "12345.0 s" in again.stdout
    assert after[1]["executed"] == 2


@pytest.mark.parametrize("more", [("--seed", "1"), ("--dtype", "float64")])
def test_another_run_is_not_gone_on_with(tmp_path, more):
    file = tmp_path / "report.json"
    run(file)
    before = file.read_text()
    done = run(file, "--resume", *more)
    assert done.returncode == 2 and "other options" in done.stderr
    assert file.read_text() == before


def test_resume_needs_a_file():
    done = subprocess.run([*RUN, "--resume"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "--resume needs --json" in done.stderr


def test_what_was_interrupted_is_not_taken_for_whole(tmp_path):
    file = tmp_path / "report.json"
    command = [sys.executable, "-m", "conformance", "run", "lora_ref", "--json", str(file), "--jobs", "1"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        time.sleep(8)  # it is among the requirements, of which there are more than eight seconds of work
        run.send_signal(signal.SIGINT)
        _, said = run.communicate(timeout=60)
    assert run.returncode == 130 and "--resume goes on" in said, said
    stored = json.loads(file.read_text())["reports"]
    assert [report["message"] for report in stored] == ["the run was interrupted"]
    assert stored[0]["verdict"] == "error" and stored[0]["executed"] < stored[0]["planned"]
