"""`conventions` and `bench` keep a subject out of the command's own process, so that it goes on when the subject ends it."""

import subprocess
import sys
from pathlib import Path

ENDS = """
import os
from conformance.bench.forms import Torchtune
from conformance.skeletons.subject import *

class Ends(Torchtune):
    def forward(self, x):
        os._exit(0)

MyLayer.merge = lambda self: os._exit(0)
"""


def conformance(tmp_path: Path, command: str, name: str, *words: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "ends.py").write_text(ENDS, encoding="utf-8")
    run = [sys.executable, "-m", "conformance", command, f"{tmp_path / 'ends.py'}:{name}", *words]
    return subprocess.run(run, capture_output=True, text=True, timeout=300, cwd=Path(__file__).parents[3])


def test_conventions_go_on_with_what_is_left(tmp_path):
    done = conformance(tmp_path, "conventions", "MySubject")
    said = " ".join(done.stdout.split())
    assert done.returncode == 0 and done.stderr == ""
    assert "no answer: merge() raised Died: the subject's process exited with status 0" in said and "B is zero" in said


def test_bench_says_that_the_measuring_ended(tmp_path):
    done = conformance(tmp_path, "bench", "Ends", "--small", "--workloads", "C1", "--no-sweep", "--rounds", "2")
    assert done.returncode == 4
    assert done.stderr.strip() == "conformance bench: the process that measured exited with status 0"
