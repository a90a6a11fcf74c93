"""Works in a copy of the package in which one requirement is new and another has new words. The tests of the findings pass
without a new run, and `conformance release` brings everything up to date."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conformance import __version__
from conformance.findings import page as findings
from conformance.requirements import all_requirements

ROOT = Path(__file__).parents[3]
KNOWN = {requirement.id for requirement in all_requirements()}
FAILED = next(id for finding in findings.all_findings() for id in finding.requirements if id in KNOWN)
SCRATCH = '''

from dataclasses import replace

scratch = replace(formula, id="FWD-99", sentence="A scratch requirement MUST be so.")
'''
# Stands in for the long run: every subject is there, and answers as in full.json what full.json knows, and passes the rest.
RELEASE = '''
import json, sys
from conformance.commands import release
from conformance.findings import page
from conformance.report import json as json_report
from conformance.run import plan, runner, verdict

def run(arguments):
    assert arguments.subjects == ["all"] and arguments.resume
    whole = page.full_run()
    whole["options"] = json_report.as_dict([], plan.Options(timeout=arguments.timeout))["options"]
    now = page.worded_now()
    for report in whole["reports"]:
        rows = {row["id"]: row for row in report["requirements"]}
        first = next(iter(rows.values()))
        report["requirements"] = [rows.get(id, first | {"id": id, "status": "pass"}) | row._asdict() for id, row in now.items()]
        report["planned"] = report["executed"] = len(now)
        report["files"], report["taken_from"] = {"/home/me/mine.py": "0" * 64}, arguments.json
    if sys.argv[1] == "answers":
        whole["reports"][0]["executed"] -= 1
    open(arguments.json, "w").write(json.dumps(whole))
    return 1

release.run_command.run = run
release.built_in = lambda: dict.fromkeys(("peft", "loralib"), "")
from conformance.__main__ import main
sys.exit(main(["release", *sys.argv[2:]]))
'''


@pytest.fixture
def copy(tmp_path) -> Path:
    """A copy of the checkout in which FWD-99 is new, and FWD-02 has other words."""
    pictures = shutil.ignore_patterns("__pycache__", "*.png", "*.svg")
    shutil.copytree(ROOT / "conformance", tmp_path / "conformance", ignore=pictures)
    for name in ("README.md", "CHANGELOG.md", "pyproject.toml", "tests/conformance/findings/test_findings.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    path = tmp_path / "conformance" / "requirements" / "fwd.py"
    path.write_text(path.read_text(encoding="utf-8") + SCRATCH, encoding="utf-8")
    head, id, tail = source(tmp_path, "FWD-02").read_text(encoding="utf-8").partition('"FWD-02"')
    source(tmp_path, "FWD-02").write_text(head + id + tail.replace(" MUST ", " then MUST ", 1), encoding="utf-8")
    return tmp_path


def source(copy: Path, id: str) -> Path:
    """The file that has the requirement."""
    return next(path for path in (copy / "conformance" / "requirements").glob("*.py") if f'"{id}"' in path.read_text("utf-8"))


def rename(copy: Path, old: str, new: str) -> None:
    path = source(copy, old)
    path.write_text(path.read_text(encoding="utf-8").replace(f'"{old}"', f'"{new}"'), encoding="utf-8")


def python(copy: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs Python in the copy, with its package; lora_ref and lora_torch are those of this checkout."""
    paths = os.pathsep.join(map(str, (copy, ROOT)))
    return subprocess.run([sys.executable, *arguments], cwd=copy, env=os.environ | {"PYTHONPATH": paths}, capture_output=True,
                          text=True, timeout=300)


def findings_pass(copy: Path) -> bool:
    """Whether the tests of the findings pass in the copy, without those that run the scripts."""
    tests = "tests/conformance/findings/test_findings.py"
    done = python(copy, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", tests, "-k", "not scripts")
    print(done.stdout, done.stderr)
    return done.returncode == 0


def page(copy: Path) -> str:
    return (copy / "conformance" / "findings" / "FINDINGS.md").read_text(encoding="utf-8")


def listed(copy: Path, what: str) -> list[str]:
    """The ids in the line of the region `since` that begins so."""
    found = re.search(rf"^\* {what}: (.*)\.$", page(copy), re.M)
    return found[1].split(", ") if found else []


def name(copy: Path, version: str = __version__) -> None:
    (copy / "CHANGELOG.md").write_text(f"# Changelog\n\n## {version}\n\n* All new.\n", encoding="utf-8")


def test_a_new_requirement_asks_for_no_run(copy):
    """The tests of the findings pass. Only the region `since` of FINDINGS.md is out of date, and one command updates it."""
    rename(copy, FAILED, "FWD-98")
    before = page(copy)
    assert findings_pass(copy)
    done = python(copy, "-m", "conformance.report.generated")
    assert done.returncode == 0 and {"FINDINGS.md", "SPEC.md"} <= set(re.findall(r"\w+\.md", done.stdout)), done.stderr
    assert {"FWD-98", "FWD-99"} <= set(listed(copy, "Not asked yet"))
    assert FAILED in listed(copy, "No longer a requirement") and "FWD-02" in listed(copy, "Worded otherwise now")
    assert findings_pass(copy)
    changed = set(page(copy).splitlines()) ^ set(before.splitlines())
    assert all(line.startswith("* ") and ": " in line for line in changed - {""}) and len(changed) <= 9, changed


def test_a_release(copy):
    """It asks every requirement. After it, the region `since` lists no requirement that was not asked."""
    name(copy)
    told = python(copy, "-m", "conformance", "release", "--check")
    assert told.returncode == 1 and "SPEC.md is stale" in told.stdout and "results/full.json is of version" in told.stdout
    assert re.search(r"^Not asked yet: .*FWD-99", told.stdout, re.M)
    done = python(copy, "-c", RELEASE, "")
    assert done.returncode == 0 and "tag it v" in done.stdout, done.stdout + done.stderr
    assert listed(copy, "Not asked yet") == listed(copy, "Worded otherwise now") == []
    stored = json.loads((copy / "conformance" / "results" / "requirements.json").read_text(encoding="utf-8"))["requirements"]
    assert stored["FWD-99"]["sentence"] == "A scratch requirement MUST be so." and " then MUST " in stored["FWD-02"]["sentence"]
    assert findings_pass(copy)
    assert "/home/me" not in (copy / "conformance" / "results" / "full.json").read_text(encoding="utf-8")
    again = python(copy, "-c", RELEASE, "", "--check")
    assert (again.returncode, again.stdout) == (0, "nothing is to be done\n"), again.stdout


@pytest.mark.parametrize(("lacking", "status", "said"), [
    ("environments", 3, "keras is not available"),
    ("an entry", 3, "the newest entry of CHANGELOG.md is Next"),
    ("answers", 3, "not every requirement was asked"),
    ("a script", 1, f"{FAILED} does not fail, but a finding says so"),
])
def test_a_release_that_lacks_something_says_so(copy, monkeypatch, lacking, status, said):
    """It writes no report, unless only a script of findings is missing."""
    name(copy, "Next" if lacking == "an entry" else __version__)
    if lacking == "a script":
        rename(copy, FAILED, "FWD-98")
    monkeypatch.setenv("CONFORMANCE_CACHE", str(copy / "none"))
    given = ("-m", "conformance", "release") if lacking == "environments" else ("-c", RELEASE, lacking)
    done = python(copy, *given)
    assert done.returncode == status and said in done.stderr, done.stdout + done.stderr
    full = Path("conformance", "results", "full.json")
    assert ((copy / full).read_bytes() == (ROOT / full).read_bytes()) == (status == 3)
