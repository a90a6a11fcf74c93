"""The README is run: its Python blocks print what stands below them, and its commands what is shown of them."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", TEXT, re.S)
COMMANDS = [(block.splitlines()[0][2:], block.splitlines()[1:]) for block in re.findall(r"```console\n(.*?)```", TEXT, re.S)]


def test_the_examples_are_found():
    assert len(PYTHON) == TEXT.count("```python\n")
    assert len(COMMANDS) == TEXT.count("```console\n") >= 2


@pytest.mark.parametrize(("code", "printed"), PYTHON)
def test_python_prints_what_it_says(code, printed):
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == printed


@pytest.mark.parametrize(("command", "lines"), COMMANDS)
def test_commands_print_what_is_shown(command, lines):
    """The lines shown stand in the output one after another; … is a number that differs from run to run."""
    assert command.startswith("conformance ")
    done = subprocess.run(
        [sys.executable, "-m", *shlex.split(command)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    output = "\n".join(line.rstrip() for line in done.stdout.splitlines())
    pattern = re.escape("\n".join(lines)).replace("…", r"[\d.]+")
    assert re.search(pattern, output), output


def test_the_set_up_commands_are_those_that_ci_runs():
    """.ci/run takes them from the README itself."""
    first, second = re.findall(r"^python3 -m venv .*$", TEXT, re.M)
    assert first.endswith("/conformance run") and second.endswith("/pytest")
    assert "README.md" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", TEXT):
        assert (ROOT / target).exists(), target
