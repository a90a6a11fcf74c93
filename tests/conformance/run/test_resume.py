"""`conformance run --resume` continues a run that was cut off, and refuses the report of another run."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from conformance.report import json as json_report
from conformance.run import canaries, files, plan
from conformance.run.examine import Outcome
from conformance.run.files import files_of, hashed
from conformance.run.verdict import Report
from conformance.run.worker import INTERRUPTED

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


def test_code_that_was_changed_is_run_again(tmp_path):
    """One subject is wrong after the change, by its own file or by one beside it. One that was not changed is taken."""
    for name in ("changed", "same"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text(MINE)
        (tmp_path / name / "factor.py").write_text("FACTOR = 1\n")
    specs = [f"{tmp_path}/{name}/mine.py:MySubject" for name in ("changed", "same")]
    command = [sys.executable, "-m", "conformance", "run", *specs, "--only", "FWD-01", "--json", str(tmp_path / "report.json")]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert first.returncode == 0, first.stdout + first.stderr
    files = [report["files"] for report in json.loads((tmp_path / "report.json").read_text())["reports"]]
    assert [sorted(Path(file).name for file in each) for each in files] == [["factor.py", "mine.py"]] * 2
    (tmp_path / "changed" / "factor.py").write_text("FACTOR = 2\n")
    again = subprocess.run([*command, "--resume"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    reports = json.loads((tmp_path / "report.json").read_text())["reports"]
    assert [report["verdict"] for report in reports] == ["nonconformant", "conformant"] and again.returncode == 1
    assert [report["taken_from"] for report in reports] == ["", str(tmp_path / "report.json")]
    assert again.stdout.count("taken from") == 1 and f"taken from {tmp_path}" in " ".join(again.stdout.split())


SKELETON = Path(ROOT, "conformance/skeletons/subject.py").read_text(encoding="utf-8")
MINE = SKELETON.replace("import numpy as np\n", "import numpy as np\nfrom factor import FACTOR\n").replace(
    "self.scale * ", "FACTOR * self.scale * ")


def stored(tmp_path: Path, **report) -> tuple[str, dict]:
    """A file with one whole report, on lora_ref or as given, and the report as in the file."""
    options, spec = plan.Options(only=("FWD-01",)), report.pop("spec", "lora_ref")
    outcomes = {r.id: Outcome(r.id, "pass", examples=3, worst=0.5) for r in PLANNED}
    checks = {id: Outcome(id, "fail") for id in canaries.ALL}
    path = str(tmp_path / "report.json")
    json_report.write(path, [Report(spec, spec, "1", PLANNED, outcomes, checks, 1.0, **report)], options)
    return path, json.loads(Path(path).read_text(encoding="utf-8"))


PLANNED = plan.plan(plan.Options(only=("FWD-01",)))


def taken(path: str) -> list[str]:
    return list(json_report.read(path, plan.Options(only=("FWD-01",)), PLANNED))


def test_a_report_is_taken_if_its_files_are_as_they_were(tmp_path):
    code = tmp_path / "code"
    code.write_text("one")
    path, _ = stored(tmp_path, spec="a:b", files=hashed([code]))
    assert taken(path) == ["a:b"]
    code.write_text("two")
    assert taken(path) == []
    code.unlink()
    assert taken(path) == []


def test_a_subject_whose_files_are_not_known_is_run_again(tmp_path):
    path, _ = stored(tmp_path, spec="package.module:attribute")
    assert taken(path) == []
    path, _ = stored(tmp_path, spec="lora_ref")
    assert taken(path) == ["lora_ref"]


def test_a_new_file_beside_a_subject_counts(tmp_path):
    (tmp_path / "mine.py").write_text("")
    spec = f"{tmp_path}/mine.py:It"
    path, _ = stored(tmp_path, spec=spec, files=files_of(spec))
    assert taken(path) == [spec]
    (tmp_path / "numpy.py").write_text("")
    assert taken(path) == []


@pytest.mark.parametrize("name", ["_code", "_packages"])
def test_other_code_or_packages_make_another_run(tmp_path, monkeypatch, name):
    path, _ = stored(tmp_path)
    monkeypatch.setattr(json_report, name, lambda: "other")
    with pytest.raises(ValueError, match="of another version or with other packages"):
        taken(path)


def test_what_decides_is_in_the_hashes(tmp_path, monkeypatch):
    """The code of the reference, of the layer and of the harness, and the version of every package."""
    for name in ("lora_ref", "lora_torch"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
    code, packages = json_report._code.__wrapped__, json_report._packages.__wrapped__
    before = code()
    monkeypatch.setattr(json_report, "find_spec", lambda name: SimpleNamespace(origin=str(tmp_path / name / "__init__.py")))
    found = {before, code()}
    for name in ("lora_ref", "lora_torch"):
        (tmp_path / name / "lora.py").write_text("x = 1\n")
        found.add(code())
    assert len(found) == 4
    before = packages()
    (tmp_path / "numpy-9.dist-info").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert packages() != before


def test_files_of_a_program(tmp_path):
    (tmp_path / "my model.py").write_text("x = 1\n")
    found = files_of(f"cmd:{sys.executable} '{tmp_path}/my model.py' --size 3 {tmp_path}")
    assert set(found) == {sys.executable, str(tmp_path / "my model.py")}
    assert found[str(tmp_path / "my model.py")] == hashlib.sha256(b"x = 1\n").hexdigest()
    assert str(shutil.which("sh")) in files_of("cmd:sh -c true")
    assert files_of("cmd:'not closed") == files_of("cmd:") == files_of("no_such_subject") == files_of("") == {}
    assert hashed([tmp_path, tmp_path / "absent", "a\0b"]) == {}


def test_files_of_an_environment(tmp_path, monkeypatch):
    """The versions that are installed in it decide, not only those that were asked for."""
    monkeypatch.setattr(files, "missing_here", lambda name: ["flax"])
    monkeypatch.setenv("CONFORMANCE_CACHE", str(tmp_path))
    records = tmp_path / "environments/jax/lib/python3.11/site-packages"
    for name in ("flax-1.dist-info", "jax-1.dist-info"):
        (records / name).mkdir(parents=True)
        (records / name / "RECORD").write_text(name)
    (tmp_path / "environments/jax/made.json").write_text("{}")
    assert sorted(Path(file).name for file in files_of("flax_nnx")) == ["RECORD", "RECORD", "made.json"]


def broken(whole: dict, what: str) -> str:
    """The text of a file that holds no report."""
    report, text = whole["reports"][0], json.dumps(whole)
    changes = {"wrong type": ("seconds", "1.0"), "no object": ("subject", []), "no list": ("requirements", {}),
               "huge": ("seconds", 10**400), "unknown status": ("canaries", {"CANARY-01": "great"}), "null": ("files", None)}
    if what in changes:
        report.update([changes[what]])
    elif what == "no reports":
        del whole["reports"]
    elif what == "no message":
        del report["message"]
    elif what == "a row is a word":
        report["requirements"] = ["FWD-01"]
    elif what == "a row without status":
        del report["requirements"][0]["status"]
    elif what == "a row of wrong types":
        report["requirements"][0] |= {"id": ["FWD-01"], "worst": "much"}
    else:
        return {"truncated": text[: len(text) // 2], "empty": "", "null file": "null", "nested": "[" * 100_000}.get(what, what)
    return json.dumps(whole)


@pytest.mark.parametrize("what", [
    "truncated", "empty", "[]", "{}", "null file", "word", "nested", "wrong type", "no object", "no list", "huge",
    "unknown status", "null", "no reports", "no message", "a row is a word", "a row without status", "a row of wrong types"])
def test_a_file_that_holds_no_report_is_said(tmp_path, what):
    path, whole = stored(tmp_path)
    text = broken(whole, what)
    Path(path).write_text(text)
    with pytest.raises(ValueError, match=rf"--resume: {path} is no (report of a run: it|JSON: )"):
        taken(path)
    assert Path(path).read_text() == text


def test_a_file_that_is_no_text_is_said(tmp_path):
    file = tmp_path / "report.json"
    file.write_bytes(b"\xff\xfe{}")
    done = run(file, "--resume")
    assert done.returncode == 2 and f"{file} is no JSON" in done.stderr and "Traceback" not in done.stderr
    assert file.read_bytes() == b"\xff\xfe{}"


def test_what_was_interrupted_is_not_taken_for_whole(tmp_path):
    path, _ = stored(tmp_path, unloadable=INTERRUPTED)
    assert taken(path) == []


def test_without_its_canaries_a_report_is_not_whole(tmp_path):
    path, whole = stored(tmp_path)
    del whole["reports"][0]["canaries"]["CANARY-01"]
    Path(path).write_text(json.dumps(whole))
    assert taken(path) == []


def test_only_a_file_is_gone_on_with():
    done = subprocess.run([*RUN, "--json", "/dev/null", "--resume"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "/dev/null is no file" in done.stderr
