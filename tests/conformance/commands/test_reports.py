"""diff, join and check-report, on a report that is made once and changed in each way that must be seen."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest

from conformance.__main__ import main

ROOT = Path(__file__).parents[3]
SPEC = "tests/conformance/broken.py:wrong_scale"
ASKED = ("FWD-01", "FWD-02", "SCALE-01", "MERGE-01")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict:
    """The report of a layer with a wrong scale, on four requirements."""
    file = tmp_path_factory.mktemp("report") / "report.json"
    command = [sys.executable, "-m", "conformance", "run", SPEC, "--only", *ASKED, "--dtype", "float32", "--examples", "4",
               "--json", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr
    return json.loads(file.read_text())


@pytest.fixture
def written(whole, tmp_path, monkeypatch):
    """Writes the report under a name, after a change."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, change=lambda report: None) -> str:
        report = copy.deepcopy(whole)
        change(report)
        Path(name).write_text(json.dumps(report))
        return name

    return write


def row(report: dict, id: str) -> dict:
    return next(row for row in report["reports"][0]["requirements"] if row["id"] == id)


def mended(report: dict) -> None:
    for one in report["reports"][0]["requirements"]:
        one["status"] = "pass"
    report["reports"][0]["verdict"] = "conformant"


def without(*ids: str):
    def change(report: dict) -> None:
        entry = report["reports"][0]
        entry["requirements"] = [one for one in entry["requirements"] if one["id"] not in ids]
        entry["planned"] = entry["executed"] = len(entry["requirements"])
        report["options"]["only"] = [id for id in report["options"]["only"] if id not in ids]
    return change


def test_a_report_does_not_differ_from_itself(written, capsys):
    assert main(["diff", written("a.json"), written("b.json")]) == 0
    assert "nonconformant, as before\n  no requirement changed" in capsys.readouterr().out


def test_better_and_worse(written, capsys):
    old, new = written("old.json"), written("new.json", mended)
    assert main(["diff", old, new, "--json", "d.json"]) == 0
    assert "better      FWD-01: fail → pass" in capsys.readouterr().out
    found = json.loads(Path("d.json").read_text())["subjects"][0]
    assert found["better"] and not found["worse"] and found["verdict"] == ["nonconformant", "conformant"]
    assert main(["diff", new, old]) == 1
    assert "worse       FWD-01: pass → fail" in capsys.readouterr().out


def test_what_is_no_longer_decided_is_worse(written):
    def lost(report: dict) -> None:
        mended(report)
        row(report, "FWD-01")["status"] = "unsupported"

    assert main(["diff", written("old.json", mended), written("new.json", lost)]) == 1


def test_headroom_new_and_gone(written, capsys):
    def tight(report: dict) -> None:
        mended(report)
        row(report, "FWD-02")["worst"] = 0.9

    def loose(report: dict) -> None:
        mended(report)
        row(report, "FWD-02")["worst"] = 0.09

    assert main(["diff", written("old.json", loose), written("new.json", tight)]) == 0
    assert "FWD-02: error / bound 0.09 → 0.9" in capsys.readouterr().out
    assert main(["diff", written("old.json"), written("new.json", without("MERGE-01"))]) == 0
    assert "gone        MERGE-01" in capsys.readouterr().out


@pytest.mark.parametrize("verdict", ["void", "error", "partial"])
def test_a_verdict_that_says_nothing_is_no_success(written, verdict):
    def silent(report: dict) -> None:
        mended(report)
        report["reports"][0]["verdict"] = verdict

    assert main(["diff", written("old.json", mended), written("new.json", silent)]) == 3


def test_what_is_no_report_is_named(written, capsys):
    Path("text.json").write_text("{}")
    assert main(["diff", "none.json", written("new.json")]) == 2
    assert "none.json is no file" in capsys.readouterr().err
    assert main(["diff", "text.json", "new.json"]) == 2
    assert "text.json is no report of a run: it has no 'schema'" in capsys.readouterr().err


def test_the_parts_of_a_report_joined_are_the_report(written, whole, capsys):
    one, two = written("one.json", without("MERGE-01", "FWD-02")), written("two.json", without("FWD-01", "SCALE-01"))
    assert main(["join", one, two, "--json", "all.json"]) == 0
    joined = json.loads(Path("all.json").read_text())
    assert [part["file"] for part in joined["joined"]] == ["one.json", "two.json"]
    entry, wanted = joined["reports"][0], whole["reports"][0]
    for name in ("verdict", "profiles", "planned", "executed", "asked", "answered", "causes", "canaries"):
        assert entry[name] == wanted[name], name
    assert main(["check-report", "--partial", "all.json"]) == 0, capsys.readouterr().out


def test_two_answers_are_refused(written, capsys):
    def other(report: dict) -> None:
        row(report, "FWD-01")["status"] = "pass"

    assert main(["join", written("a.json"), written("b.json", other), "--json", "c.json"]) == 2
    assert f"{SPEC} FWD-01 is fail in a.json and pass in b.json" in capsys.readouterr().err
    assert not Path("c.json").exists()


@pytest.mark.parametrize(("change", "said"), [
    (lambda r: r["reports"][0]["subject"].update(version="9"), "has version"),
    (lambda r: r["options"].update(code="0"), "with code"),
    (lambda r: r["options"].update(dtypes=["float64"]), "with dtypes"),
    (lambda r: r["reports"][0]["files"].update(dict.fromkeys(r["reports"][0]["files"], "0")), "is not the same in both"),
])
def test_what_does_not_fit_together_is_refused(written, capsys, change, said):
    assert main(["join", written("a.json"), written("b.json", change), "--json", "c.json"]) == 2
    told = capsys.readouterr().err
    assert said in told and "a.json" in told and "b.json" in told


def test_a_surprise_of_one_run_is_one_of_all(written):
    def surprised(report: dict) -> None:
        report["reports"][0]["canaries"]["CANARY-01"] = "pass"

    assert main(["join", written("a.json"), written("b.json", surprised), "--json", "c.json"]) == 0
    assert json.loads(Path("c.json").read_text())["reports"][0]["verdict"] == "void"


def test_an_unmodified_report_is_accepted(written, capsys):
    assert main(["check-report", written("a.json")]) == 3
    assert "partial: --only FWD-01" in capsys.readouterr().out
    assert main(["check-report", "a.json", "--partial"]) == 0


TAMPERED = {
    "a status": lambda r: row(r, "FWD-01").update(status="pass"),
    "all statuses and the verdict": mended,
    "the verdict": lambda r: r["reports"][0].update(verdict="conformant"),
    "a profile": lambda r: r["reports"][0]["profiles"].update(inference="conformant"),
    "a failure that was taken out": without("FWD-01"),
    "a failure taken out, and the counts left": lambda r: r["reports"][0]["requirements"].pop(0),
    "a level": lambda r: row(r, "FWD-01").update(level="SHOULD"),
    "a requirement twice": lambda r: r["reports"][0]["requirements"].append(row(r, "FWD-02")),
    "one that there is not": lambda r: row(r, "FWD-02").update(id="FWD-99"),
    "a canary that is absent": lambda r: r["reports"][0]["canaries"].pop("CANARY-01"),
    "a canary that passed": lambda r: r["reports"][0]["canaries"].update({"CANARY-01": "pass"}),
    "no reproduction": lambda r: row(r, "FWD-01").update(reproduce=None),
    "no command": lambda r: r["environment"].update(command="none of your business"),
    "the number of cases": lambda r: r["reports"][0].update(answered=10**6),
    "a subject twice": lambda r: r["reports"].append(r["reports"][0]),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_a_report_that_was_changed_is_refused(written, what, capsys):
    def change(report: dict) -> None:
        only = report["options"]["only"]
        TAMPERED[what](report)
        report["options"]["only"] = only  # that this was left out, too, nobody can see

    written("a.json", change)
    status = main(["check-report", "--partial", "a.json"])
    assert status == 1, capsys.readouterr().out
    assert capsys.readouterr().out.count("\n") >= 2


def test_a_folder_without_a_report_is_no_success(tmp_path, capsys):
    assert main(["check-report", str(tmp_path)]) == 2
    assert "holds no report" in capsys.readouterr().err


def test_a_run_of_other_code_says_what_was_not_checked(written, capsys):
    assert main(["check-report", "--partial", written("a.json", lambda r: r["options"].update(code="0"))]) == 0
    assert "not checked: the plan and the rules" in capsys.readouterr().out
