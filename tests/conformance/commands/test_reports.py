"""diff, join and check-report, on a report that is made once and changed in each way that must be seen."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest

from conformance.__main__ import main
from conformance.report import json as json_report
from conformance.report import stored

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
    assert main(["diff", written("old.json"), written("new.json", without("MERGE-01"))]) == 3
    assert "gone        MERGE-01" in capsys.readouterr().out


@pytest.mark.parametrize("verdict", ["void", "error", "partial"])
def test_a_verdict_that_says_nothing_is_no_success(written, verdict):
    def silent(report: dict) -> None:
        mended(report)
        report["reports"][0]["verdict"] = verdict

    assert main(["diff", written("old.json", mended), written("new.json", silent)]) == 3


def test_two_void_runs_are_no_success(written):
    def void(report: dict) -> None:
        report["reports"][0]["verdict"] = "void"

    assert main(["diff", written("old.json", void), written("new.json", void)]) == 3


def test_a_verdict_is_worse_although_a_requirement_is_gone(written):
    def broken(report: dict) -> None:
        without("MERGE-01", "FWD-01")(report)
        row(report, "FWD-02")["status"] = "pass"
        report["reports"][0]["verdict"] = "nonconformant"

    assert main(["diff", written("old.json", mended), written("new.json", broken)]) == 1


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


def test_a_run_that_broke_off_is_not_joined(written, capsys):
    def broken_off(report: dict) -> None:
        without("MERGE-01")(report)
        report["reports"][0].update(planned=4, verdict="void")

    for files in (("a.json", "b.json"), ("b.json", "a.json")):
        written("a.json", broken_off), written("b.json")
        assert main(["join", *files, "--json", "c.json"]) == 2
        assert f"{SPEC} in a.json asked 3 of 4 requirements: run it again" in capsys.readouterr().err


def test_what_limits_one_run_limits_all(written):
    def one(report: dict) -> None:
        report["reports"][0].update(compensates={"FWD-01": "a"}, declined=["embeddings"], sandbox=True)

    def two(report: dict) -> None:
        report["reports"][0].update(compensates={"FWD-02": "b"}, declined=["embeddings", "convolutions"], sandbox=False,
                                    space={"cases": 2, "lived": 1, "left": 0, "declined": {}, "parts": 2, "swept": 1})

    def whole(report: dict) -> None:
        one(report)
        report["reports"][0]["space"] = {"cases": 2, "lived": 2, "left": 0, "declined": {}, "parts": 2, "swept": 2}

    assert main(["join", written("a.json", whole), written("b.json", two), "--json", "c.json"]) == 0
    entry = json.loads(Path("c.json").read_text())["reports"][0]
    assert entry["compensates"] == {"FWD-01": "a", "FWD-02": "b"} and entry["declined"] == ["embeddings", "convolutions"]
    assert entry["sandbox"] is False and entry["space"]["swept"] == 1 and entry["verdict"] == "void"


def test_each_subject_of_a_joined_report_has_its_own_plan(written, capsys):
    def asked(spec: str, *left_out: str):
        def change(report: dict) -> None:
            without(*left_out)(report)
            report["reports"][0]["subject"]["spec"] = spec
            report["reports"] = [json_report.entry(stored.report_of(report["reports"][0]))]
        return change

    assert main(["join", written("a.json", asked("one", "FWD-02")), written("b.json", asked("another", "MERGE-01")),
                 "--json", "c.json"]) == 0
    assert main(["join", "c.json", written("d.json", asked("one", "FWD-01")), "--json", "e.json"]) == 0
    for file in ("c.json", "e.json"):
        assert main(["check-report", "--partial", file]) == 0, capsys.readouterr().out
    joined = json.loads(Path("c.json").read_text())
    joined["joined"] = [{"file": "a.json"}]
    Path("c.json").write_text(json.dumps(joined))
    assert main(["check-report", "c.json"]) == 2


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
    "a sweep of the space that broke off": lambda r: r["options"].update(space=[]),
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


@pytest.mark.parametrize("change", [
    lambda r: r["reports"][0].update(in_process=True), lambda r: r["options"].update(in_process=True),
])
def test_a_run_in_one_process_is_partial(written, change, capsys):
    assert main(["check-report", written("a.json", change)]) == 3
    told = capsys.readouterr().out
    assert "partial: --in-process" in told and "partial: --examples 4" in told


def test_a_level_that_there_is_not(written, capsys):
    assert main(["check-report", written("a.json", lambda r: r["options"].update(level="foo"))]) == 2
    assert "it['options']['level'] is none of must, should, may" in capsys.readouterr().err


def test_a_report_in_a_folder_is_known_by_what_it_holds(written, capsys):
    Path(written("compact.json")).write_text(json.dumps(json.loads(Path("compact.json").read_text()), separators=(",", ":")))
    Path("other.json").write_text('[{"reports": [1]}]')
    assert main(["check-report", "--partial", "."]) == 0
    told = capsys.readouterr().out
    assert "compact.json" in told and "other.json" not in told
    Path("broken.json").write_text('{"reports": [')
    assert main(["check-report", "--partial", "."]) == 2
    assert "broken.json is no JSON" in capsys.readouterr().err


def test_a_folder_without_a_report_is_no_success(tmp_path, capsys):
    assert main(["check-report", str(tmp_path)]) == 2
    assert "holds no report" in capsys.readouterr().err


def test_a_run_of_other_code_says_what_was_not_checked(written, capsys):
    assert main(["check-report", "--partial", written("a.json", lambda r: r["options"].update(code="0"))]) == 0
    assert "not checked: the plan and the rules" in capsys.readouterr().out
