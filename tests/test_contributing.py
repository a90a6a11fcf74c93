"""Follows CONTRIBUTING.md in a copy of the packages: what its blocks add works, and needs no change of any other file."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python file=(\S+)( append)?\n(.*?)```", TEXT, re.S)
COMMANDS = re.findall(r"```sh\n(conformance .*?)```", TEXT, re.S)[0].splitlines()
STATUS = {"conformance run conformance.mutants": 1}  # the others end with 0


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the packages, and with every block of CONTRIBUTING.md written to its file."""
    root = tmp_path_factory.mktemp("scratch")
    for package in ("lora_ref", "lora_torch", "conformance"):
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__", "results"))
    for name, append, code in BLOCKS:
        path = root / name
        assert path.exists() == bool(append), name
        path.write_text((path.read_text(encoding="utf-8") + "\n\n" if append else "") + code, encoding="utf-8")
    return root


def run(root: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *command], cwd=root, capture_output=True, text=True, timeout=300)


def test_a_method_is_one_file_in_each_of_four_folders():
    folders = [Path(name).parent.as_posix() for name, append, code in BLOCKS if "FA" in code and not append]
    assert folders == ["lora_ref", "lora_torch", "conformance/requirements", "conformance/mutants"]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_below_do_as_they_should(scratch, command):
    done = run(scratch, *command.split())
    expected = next((status for start, status in STATUS.items() if command.startswith(start)), 0)
    assert done.returncode == expected, done.stdout + done.stderr
    if "two_lines" in command:
        assert re.search(r"^FA +LoRA-FA +3/3 +3/3 +–", done.stdout, re.M), done.stdout  # two_lines offers LoRA alone
        assert re.search(r"^PARAM +Parameters +5/5 +5/5 +5/5", done.stdout, re.M), done.stdout


TRIED = """
from conformance.mutants import all_mutants, honest_subjects
from conformance.run import selftest
new = [i for i, m in enumerate(all_mutants()) if m.group == "FA" or "PARAM-05" in m.kills]
trials = [selftest._mutant(i, 0) for i in new]
honest = selftest._honest([s.name for s in honest_subjects()].index("honest-fa"), 8, 0)
failed = {id for trial in trials for id in trial.by}
print(len(new), [trial.missed for trial in trials], honest.by, {"FA-01", "FA-02", "FA-03", "PARAM-05"} <= failed)
"""


def test_the_new_mutants_are_failed_and_the_new_honest_layer_passes(scratch):
    command = [sys.executable, "-W", "ignore", "-c", TRIED]
    done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "4 [(), (), (), ()] () True", done.stdout + done.stderr


def test_what_is_written_there_reads_as_the_house_does(scratch):
    files = [name for name, _, _ in BLOCKS]
    done = run(scratch, "ruff", "check", "--no-cache", "--config", str(ROOT / "pyproject.toml"), *files)
    assert done.returncode == 0, done.stdout
