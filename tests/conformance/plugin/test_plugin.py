"""The pytest plugin as a new user meets it: scratch projects, each with one pytest of its own."""

import datetime
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from conformance.plugin import told
from conformance.plugin.judge import spec_of, together
from conformance.plugin.xfails import read
from conformance.requirements import all_requirements
from conformance.run import canaries
from conformance.run.examine import Outcome
from conformance.run.verdict import Report

ROOT = Path(__file__).parents[3]
CI = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
LAYER = """\
import torch
from torch import nn


class MyLoRA(nn.Module):
    def __init__(self, in_features, out_features, rank, alpha):
        super().__init__()
        self.base = nn.Linear(in_features, out_features).requires_grad_(False)
        self.lora_A = nn.Parameter(torch.randn(in_features, rank) / in_features**0.5)
        self.lora_B = nn.Parameter(torch.zeros(rank, out_features))
        self.scale = alpha / rank

    def forward(self, x):
        return self.base(x) + self.scale * (x @ self.lora_A @ self.lora_B)
"""
WITHOUT_SCALE_IN_B = LAYER.replace(
    "self.scale * (x @ self.lora_A @ self.lora_B)", "self.scale * (x @ self.lora_A) @ self.lora_B * (1 + self.training)")
SUBJECTS = """\
import os
from conformance import Subject, Unsupported
from conformance.skeletons.subject import MyLayer

def subject(**methods):
    layer = type("Layer", (MyLayer,), methods)

    class Made(Subject):
        name, version = "made", "1"

        def build(self, config, weight, bias):
            return layer(config, weight, bias)

    return Made()

crashes = subject(forward=lambda self, x: os._exit(7))

def of_whom_the_judge_is_deceived():
    import conformance.run.canary_layers as ours
    for value in vars(ours).values():
        if isinstance(value, type) and value.__module__ == ours.__name__ and hasattr(value, "forward"):
            value.forward = lambda self, x: 3 * x.sum() + 0 * x[..., :1]
    return subject()

class OffersNothing(Subject):
    name = "nothing"
    def build(self, config, weight, bias):
        raise Unsupported("any layer")
"""


def run(folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """pytest in the folder, as a user of the installed package runs it."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "GITHUB_"))}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=folder, env=plain | {"PYTHONPATH": str(ROOT)} | env, capture_output=True, text=True,
                          timeout=300)


def test_it_costs_nothing_where_it_is_not_used(tmp_path):
    """No option, no fixture: neither torch nor NumPy nor any other module of the harness is imported."""
    (tmp_path / "test_it.py").write_text(
        "import sys\n\ndef test_it():\n"
        "    found = {name for name in sys.modules if name.split('.')[0] in ('conformance', 'lora_ref', 'torch', 'numpy')}\n"
        "    assert found == {'conformance', 'conformance.plugin'}\n")
    done = run(tmp_path, "-W", "error", "--strict-markers")
    assert done.returncode == 0, done.stdout
    assert "lora" not in done.stdout.replace("lora-conformance", "")


def ci_commands(file: str) -> list[str]:
    """The commands of pytest in a file of docs/ci.md."""
    block = re.search(rf"```yaml file={re.escape(file)}\n(.*?)```", CI, re.S)
    assert block, file
    return re.findall(r"\bpytest (?!pytest)(.*--lora-subject.*)$", block[1], re.M)


def test_a_fault_in_a_new_project_is_caught_by_its_own_ci_command(tmp_path):
    """The command of the page's GitHub workflow, on fewer requirements, with an annotation, a summary, and the report."""
    command, = ci_commands(".github/workflows/lora.yml")
    (tmp_path / "my_layers.py").write_text(WITHOUT_SCALE_IN_B)
    arguments = command.replace("-n 4", "-n 2").split()
    done = run(tmp_path, *arguments, "-k", "FWD-01 or GRAD-02 or MERGE-01", "--lora-dtype", "float32", GITHUB_ACTIONS="true",
               GITHUB_STEP_SUMMARY=str(tmp_path / "summary.md"))
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(r"FAILED lora::GRAD-02 - Failed: fail: dA", done.stdout)
    for words in ("  case ", "  got ", "  want ", "likely cause", "to see it alone:", "from my_layers import MyLoRA"):
        assert words in done.stdout, words
    assert "1 failed, 1 passed, 1 skipped" in done.stdout
    assert re.search(r"^::error file=my_layers\.py,line=5,title=GRAD-02 gradient of A::.* MUST ", done.stdout, re.M)
    summary = (tmp_path / "summary.md").read_text()
    assert "❌ MyLoRA: nonconformant" in summary and "<b>GRAD-02</b>" in summary and "from my_layers import MyLoRA" in summary
    report = json.loads((tmp_path / "lora.json").read_text())
    assert report["environment"]["command"].startswith("pytest -m lora") or "-m lora" in report["environment"]["command"]
    entry = report["reports"][0]
    assert entry["verdict"] == "nonconformant" and entry["planned"] == 3 and set(entry["canaries"]) == set(canaries.ALL)


def test_the_other_pages_of_ci_name_one_command_each():
    """They differ from the one above in what they write."""
    for file in (".gitlab-ci.yml", ".pre-commit-config.yaml"):
        command, = ci_commands(file)
        assert "-m lora" in command and "--lora-subject my_layers.py:MyLoRA" in command


@pytest.mark.parametrize(("subject", "status", "verdict", "counts"), [
    ("crashes", 1, "ERROR", "2 failed"),
    ("of_whom_the_judge_is_deceived()", 1, "VOID", "2 passed"),
    ("OffersNothing", 1, "VOID", "2 skipped"),
])
def test_a_verdict_that_says_nothing_fails_the_session(tmp_path, subject, status, verdict, counts):
    """The subject comes from a fixture of a conftest.py in tests/."""
    (tmp_path / "subjects.py").write_text(SUBJECTS + (f"deceived = {subject}\n" if "()" in subject else ""))
    name = "deceived" if "()" in subject else subject
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "conftest.py").write_text(
        f"import pytest\n\n@pytest.fixture(scope='session')\ndef lora_subject():\n    return 'subjects.py:{name}'\n")
    (tmp_path / "tests" / "test_mine.py").write_text("def test_mine():\n    pass\n")
    done = run(tmp_path, "-k", "FWD-01 or FWD-03", "--lora-dtype", "float32", "--lora-seed", "1")
    assert done.returncode == status, done.stdout + done.stderr
    assert f": {verdict}" in done.stdout and counts in done.stdout, done.stdout
    assert "Traceback" not in done.stdout


@pytest.mark.parametrize("option", ["--lora-json", "--lora-summary"])
def test_a_place_that_cannot_be_written_is_told_before(tmp_path, option):
    (tmp_path / "my_layers.py").write_text(LAYER)
    done = run(tmp_path, "--lora-subject", "my_layers.py:MyLoRA", option, "none/lora", "-k", "FWD-01")
    assert done.returncode == 4 and f"{option}: none/lora: there is no folder" in done.stderr, done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_that_can_no_longer_be_written_fails_the_session(tmp_path):
    """A test of the project takes the folder away meanwhile."""
    (tmp_path / "my_layers.py").write_text(LAYER)
    (tmp_path / "out").mkdir()
    (tmp_path / "test_mine.py").write_text("import os\n\ndef test_FWD_01():\n    os.rmdir('out')\n")
    done = run(tmp_path, "--lora-subject", "my_layers.py:MyLoRA", "--lora-json", "out/lora.json",
               "--lora-summary", "out/lora.md", "-k", "FWD-01 or FWD_01", "--lora-dtype", "float32")
    assert done.returncode == 1 and "2 passed" in done.stdout, done.stdout + done.stderr
    for name in ("lora.json", "lora.md"):
        assert f"lora: out/{name} was not written: No such file or directory" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_expected_failures(tmp_path):
    (tmp_path / "lora-xfails.txt").write_text(
        "FWD-01 2099-01-01 known\nFWD-03 2099-01-01 known\nSCALE-01 2099-01-01 known\nMULTI-01 2099-01-01 known\n"
        "FWD-02 2099-01-01 not selected\n")
    (tmp_path / "subjects.py").write_text(SUBJECTS + (
        "def one_row(self, x):\n    return MyLayer.forward(self, x) * (2 if x.ndim == 1 else 1)\n"
        "one_row = subject(forward=one_row)\n"))
    done = run(tmp_path, "--lora-subject", "subjects.py:one_row", "-k", "FWD-01 or FWD-03 or MULTI-01", "-rx")
    assert done.returncode == 1, done.stdout
    assert "lora-xfails.txt:1: FWD-01 is expected to fail, and its status is pass: remove the line" in done.stdout
    assert "lora-xfails.txt:4: MULTI-01 is expected to fail, and its status is unsupported: remove the line" in done.stdout
    assert "XFAIL lora::FWD-03 - until 2099-01-01: known" in done.stdout
    (tmp_path / "lora-xfails.txt").write_text("FWD-01 2001-01-01 known\nNO-99 2099-01-01 known\n")
    done = run(tmp_path, "--lora-subject", "subjects.py:one_row")
    assert done.returncode == 4
    assert "which is over" in done.stderr and "NO-99 matches no requirement" in done.stderr


# --- without a pytest of its own ---------------------------------------------------------------------------------------


def part(**found: dict[str, Outcome]) -> str:
    about = {"spec": "s", "name": "s", "version": "", "seconds": 1.0, "conventions": {}, "declined": [], "compensates": {},
             "files": {}, "outcomes": {}, "space": {}, "canaries": {}, "unloadable": [], "unwatched": []}
    return json.dumps(about | {name: {id: one.as_dict() for id, one in outcomes.items()} for name, outcomes in found.items()})


def planned(*ids: str, parts: tuple[str, ...] = ()) -> Report:
    return Report("", planned=tuple(r for r in all_requirements() if r.id in ids), parts=parts)


FAIL, PASS = Outcome("", "fail", examples=1), Outcome("", "pass", examples=1)
SOUND = dict.fromkeys(canaries.ALL, FAIL)


def test_a_surprise_in_one_process_makes_all_void():
    first = part(outcomes={"FWD-01": PASS}, canaries=SOUND | {"CANARY-03": PASS})
    second = part(outcomes={"FWD-03": PASS}, canaries=SOUND)
    for order in ((first, second), (second, first)):
        report = together(order, planned("FWD-01", "FWD-03"))
        assert report.verdict == "void" and report.passed_canaries == ["CANARY-03"]
        assert told.problems(report, {}, Path("x"))


def test_a_process_that_is_lost_is_no_success():
    report = together([part(outcomes={"FWD-01": PASS}, canaries=SOUND)], planned("FWD-01", "FWD-03"))
    assert report.verdict == "error" and told.problems(report, {}, Path("x"))
    assert together([], planned("FWD-01")).verdict == "error"


def test_a_line_about_the_space_must_be_needed(tmp_path):
    file = tmp_path / "lora-xfails.txt"
    file.write_text("SPACE:FWD-01 2099-01-01 known\nSPACE:MERGE-01 2099-01-01 known\n")
    entries = read(file, {r.id for r in all_requirements()}, datetime.date(2027, 1, 1))
    swept = {"broken": {"FWD-01": FAIL.as_dict()}, "cases": 1, "lived": 1, "left": 0, "declined": {}}
    one = part(outcomes={"FWD-01": PASS}, canaries=SOUND, space={"SPACE-01": Outcome("SPACE-01", "pass", swept=swept)})
    report = together([one], planned("FWD-01", parts=("SPACE-01",)))
    assert report.outcomes["FWD-01"].status == "fail"
    found, = told.problems(report, entries, file)
    assert "SPACE:MERGE-01" in found and "remove the line" in found


def test_the_class_itself_is_a_subject():
    from conformance.skeletons.subject import MyLayer

    assert spec_of("a.py:B") == "a.py:B"
    assert spec_of(MyLayer).endswith("conformance/skeletons/subject.py:MyLayer")
    with pytest.raises(TypeError, match="expected a SPEC"):
        spec_of(42)
