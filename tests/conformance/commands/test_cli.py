"""The command line as a user sees it: each command runs in its own process, 80 columns wide and without a terminal."""

import json
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as xml

import pytest
from thorough import THOROUGH

ROOT = Path(__file__).parents[3]
MODULES = "tests/conformance/modules.py"
BROKEN = "tests/conformance/broken.py"


def conformance(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "conformance", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("run", "lora_ref", "--only", "FWD-01"), 0),
        (("run", f"{BROKEN}:wrong_scale", "--only", "FWD-01"), 1),
        (("run", "lora_ref", f"{BROKEN}:wrong_scale", "--only", "FWD-01"), 1),
        (("run", f"{BROKEN}:OffersNothing", "--only", "FWD-01"), 3),
        (("run", "no_such_subject", "--only", "FWD-01"), 4),
        (("run", f"{BROKEN}:wrong_scale", "no_such_subject", "--only", "FWD-01"), 4),
        (("run", "lora_ref", "--only", "NO-99"), 2),
        (("run", "lora_ref", "lora_ref"), 2),
        (("run", "--examples", "0"), 2),
        (("run", "--dtype", "float8"), 2),
        (("run", "lora_ref", "--only", "FWD-01", "--json", "no/such/folder/report.json"), 2),
        (("explain", "NO-99"), 2),
        (("selftest", "--triggered", "10", "--brief"), 2),
        (("frobnicate",), 2),
        ((), 2),
    ],
)
def test_exit_status(arguments, status):
    done = conformance(*arguments)
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_should_alone_does_not_fail():
    done = conformance("run", "article", "--only", "INIT-07")
    assert done.returncode == 0
    assert "FAIL SHOULD article INIT-07" in done.stdout
    assert "CONFORMANT" in done.stdout


def test_a_failure_says_all_that_is_needed():
    """The report has the sentence, the smallest case, got, want, error / bound, and a script. The script is run here."""
    done = conformance("run", f"{MODULES}:NotDivided", "--only", "SCALE-01")
    text = done.stdout
    for part in ("The scale MUST be alpha / rank", "case ", "got ", "want ", "error / bound", "to see it alone:"):
        assert part in text
    assert max(map(len, text.split("to see it alone:")[0].splitlines())) <= 80
    script = "\n".join(line[4:] for line in text.split("to see it alone:\n")[1].split("\n\n")[0].splitlines())
    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    got, want = (re.search(rf"^  {name} +(\S+) *$", text, re.M) for name in ("got", "want"))
    assert got and want and got[1] != want[1]
    assert got[1] in re.findall(r"-?\d+", ran.stdout)
    assert f"want {want[1]}" in script


def test_the_smallest_case_is_small():
    done = conformance("run", f"{MODULES}:NotDivided", "--only", "SCALE-01", "--seed", "0")  # a few seeds stop at out 8
    sizes = re.search(r"in (\d+), out (\d+), rank (\d+)", done.stdout)
    assert sizes and all(int(size) <= 4 for size in sizes.groups()), done.stdout
    numbers = re.findall(r"-?\d+", " ".join(re.findall(r"lora_[AB]\.copy_\((.*)\)", done.stdout)))
    assert set(map(int, numbers)) <= {-1, 0, 1}, done.stdout


def test_one_seed_gives_one_report():
    command = "run", f"{BROKEN}:wrong_scale", "--only", "FWD-01", "FWD-05", "--seed", "5"
    first, second = (conformance(*command).stdout for _ in range(2))
    assert re.sub(r"[\d.]+ s\b", "", first) == re.sub(r"[\d.]+ s\b", "", second)


def test_json_report(tmp_path):
    file = tmp_path / "report.json"
    asked = ("--only", "FWD-01", "SCALE", "--examples", "6")
    done = conformance("run", "lora_ref", f"{BROKEN}:wrong_scale", *asked, "--json", str(file))
    report = json.loads(file.read_text())
    assert done.returncode == 1
    assert report["schema"] == 1
    assert set(report["environment"]) == {"python", "numpy", "torch", "platform", "device", "command"}
    assert report["environment"]["command"].startswith("conformance run lora_ref")
    good, bad = report["reports"]
    assert good["subject"] == {"name": "lora_ref", "version": good["subject"]["version"], "spec": "lora_ref"}
    assert (good["verdict"], bad["verdict"]) == ("conformant", "nonconformant")
    assert good["profiles"]["inference"] == "partial" and bad["profiles"]["inference"] == "nonconformant"  # not all was asked
    assert set(good["canaries"].values()) == {"fail"}
    assert good["planned"] == good["executed"] == len(good["requirements"]) > 9
    for row in good["requirements"] + bad["requirements"]:
        assert {"id", "level", "group", "title", "status", "examples", "seconds", "worst", "message", "diagnosis",
                "reproduce"} <= set(row)
        assert row["status"] in ("pass", "fail", "unsupported")
        assert (row["status"] == "fail") == bool(row["reproduce"])
    assert next(row for row in bad["requirements"] if row["id"] == "FWD-01")["status"] == "fail"


def test_junit_report(tmp_path):
    file = tmp_path / "report.xml"
    subjects = ("lora_ref", f"{BROKEN}:wrong_scale", "no_such_subject")
    conformance("run", *subjects, "--only", "FWD-01", "DROP-01", "--junit", str(file))
    suites = xml.parse(file).getroot()
    assert [suite.get("name") for suite in suites] == ["lora_ref", "broken", "no_such_subject"]
    assert [[suite.get(k) for k in ("tests", "failures", "errors", "skipped")] for suite in suites] == [
        ["2", "0", "0", "0"], ["2", "1", "0", "1"], ["1", "0", "1", "0"],
    ]
    failure = suites[1].find("testcase/failure")
    assert failure is not None and "MUST equal" in (failure.text or "")


def test_list_and_explain():
    listed = conformance("list").stdout
    assert "MERGE-11" in listed and max(map(len, listed.splitlines())) <= 80
    rows = json.loads(conformance("list", "--json").stdout)
    assert {"id", "level", "group", "sentence"} <= set(rows[0])
    told = conformance("explain", "merge-11").stdout
    for part in ("MUST NOT corrupt W", "unmerge ∘ set_adapter ∘ merge", "arXiv:2106.09685", "BUG-111", "github.com"):
        assert part in told
    assert max(map(len, told.splitlines())) <= 80


def test_subjects_says_what_can_run():
    told = conformance("subjects").stdout
    assert re.search(r"^lora_ref +ready$", told, re.M)
    assert re.search(r"^peft +(ready|not available: .*peft not installed.*)$", told, re.M)


def test_what_is_not_installed_is_said(tmp_path, monkeypatch):
    """A built-in subject whose library is missing is an error with the reason, never a silent skip."""
    from conformance.run import loading

    monkeypatch.setattr(loading, "_installed", lambda package: package != "peft")
    monkeypatch.setenv("CONFORMANCE_CACHE", str(tmp_path))
    with pytest.raises(loading.LoadError, match="peft is not available: peft not installed .conformance subjects --inst"):
        loading.load("peft")


def test_init_writes_a_subject_that_passes(tmp_path):
    written = conformance("init", "mine.py", cwd=tmp_path)
    assert written.returncode == 0 and "conformance run mine.py:MySubject" in written.stdout
    again = conformance("init", "mine.py", cwd=tmp_path)
    assert again.returncode == 2 and "exists already" in again.stderr
    every = () if THOROUGH else ("--only", "FWD-01", "INIT", "GRAD", "MERGE-01")
    done = conformance("run", "mine.py:MySubject", "--examples", "4", *every, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert re.search(rf"profile training +{'yes' if THOROUGH else 'partial'}", done.stdout)


def test_help_teaches():
    told = conformance("--help").stdout
    for command in ("run", "list", "explain", "subjects", "init"):
        assert re.search(rf"^    {command} ", told, re.M)
    assert "exit status" in told and "examples:" in told
    assert max(map(len, told.splitlines())) <= 80
