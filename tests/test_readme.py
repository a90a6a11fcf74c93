"""Runs the examples of the pages in the root folder and in docs/: each Python block must print the text block below it, and
each command the lines that are shown. Links must lead to files that exist."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted(ROOT.glob("*.md")) + sorted((ROOT / "docs").glob("*.md"))
TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}
PYTHON = [found for text in TEXTS.values() for found in re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", text, re.S)]
COMMANDS = [(block.splitlines()[0][2:], block.splitlines()[1:])
            for text in TEXTS.values() for block in re.findall(r"```console\n(.*?)```", text, re.S)]


def test_the_examples_are_found():
    assert len(PYTHON) >= 3
    assert len(COMMANDS) == sum(text.count("```console\n") for text in TEXTS.values()) >= 2


@pytest.mark.parametrize(("code", "printed"), PYTHON)
def test_python_prints_what_it_says(code, printed):
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == printed


@pytest.mark.parametrize(("command", "lines"), COMMANDS)
def test_commands_print_what_is_shown(command, lines):
    """The output contains the lines that are shown, in this order. … stands for a number that differs from run to run."""
    assert command.startswith("conformance ")
    done = subprocess.run(
        [sys.executable, "-m", *shlex.split(command)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    output = "\n".join(line.rstrip() for line in done.stdout.splitlines())
    pattern = re.escape("\n".join(lines)).replace("…", r"[\d.]+")
    assert re.search(pattern, output), output


def test_the_set_up_commands_are_those_that_ci_runs():
    """.ci/run reads the second command from the README."""
    first, second = re.findall(r"^python3 -m venv .*$", README, re.M)
    assert first.endswith("/conformance run") and second.endswith("/pytest -n 2")
    assert "README.md" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", TEXTS[page]):
        assert (page.parent / target).exists(), target
