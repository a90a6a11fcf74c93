"""Failures are grouped by what explains them. What follows from a multiple of the LoRA part is not diagnosed again."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from conformance.report import json as json_report
from conformance.requirements import all_requirements
from conformance.run import plan, runner
from conformance.run.causes import causes
from conformance.run.examine import Outcome

FILE = Path(__file__).parents[1] / "modules.py"
REQUIREMENTS = {r.id: r for r in all_requirements()}
ASKED = ("FWD-01", "FWD-06", "GRAD-01", "GRAD-02", "SCALE-05", "INIT-02", "INPUT-05")


@pytest.fixture(scope="module", params=["NegativePart", "DividedTwice"])
def report(request):
    return runner.run([f"{FILE}:{request.param}"], plan.Options(only=ASKED, jobs=1, examples=6))[0]


def test_what_follows_from_a_multiple_is_one_cause(report):
    words = {"NegativePart": "-1", "DividedTwice": "1 / rank"}[report.name]
    first, *others = report.causes
    of_rank_one = ("FWD-06",) if report.name == "NegativePart" else ()
    assert first.requirements == ("FWD-01", *of_rank_one, "GRAD-01", "GRAD-02")
    assert first.fault == f"the LoRA part is {words} times what it should be"
    assert [cause.requirements for cause in others] == [("INPUT-05",)]
    assert report.outcomes["FWD-01"].diagnosis
    assert report.outcomes["GRAD-01"].diagnosis is None


def test_the_json_report_has_the_causes(report, tmp_path):
    path = tmp_path / "report.json"
    json_report.write(str(path), [report], plan.Options(only=ASKED))
    found = json.loads(path.read_text(encoding="utf-8"))["reports"][0]["causes"]
    assert [cause["requirements"] for cause in found] == [list(cause.requirements) for cause in report.causes]
    assert found[0]["title"] == "FWD-01 formula"
    assert found[0]["reproduce"] and found[0]["case"]


def outcome(id: str, **more) -> Outcome:
    return Outcome(id, "fail", failure={"what": "y", "got": "1", "want": "2"}, **more)


def test_the_fault_that_explains_most_comes_first():
    """GRAD-01 has two explanations, and goes with the one that it shares with GRAD-02."""
    found = causes([REQUIREMENTS[id] for id in ("FWD-01", "GRAD-01", "GRAD-02", "MERGE-01")], {
        "FWD-01": outcome("FWD-01", faults=("a",)), "GRAD-01": outcome("GRAD-01", faults=("a", "b")),
        "GRAD-02": outcome("GRAD-02", faults=("b",)), "MERGE-01": outcome("MERGE-01")}, ("fail",))
    assert [(cause.requirements, cause.fault) for cause in found] == [
        (("FWD-01", "GRAD-01"), "a"), (("GRAD-02",), "b"), (("MERGE-01",), "")]


def test_the_same_exception_is_one_cause():
    raised = {"what": "build()", "got": "ValueError: no"}
    outcomes = {id: replace(outcome(id), status="error", failure=raised) for id in ("FWD-01", "GRAD-01")}
    outcomes["GRAD-02"] = replace(outcome("GRAD-02"), status="error", failure={"what": "build()", "got": "TypeError: no"})
    found = causes([REQUIREMENTS[id] for id in outcomes], outcomes, ("fail", "error"))
    assert [cause.requirements for cause in found] == [("FWD-01", "GRAD-01"), ("GRAD-02",)]


def test_a_must_comes_before_a_should():
    found = causes([REQUIREMENTS[id] for id in ("MERGE-08", "STATE-01")],
                   {"MERGE-08": outcome("MERGE-08"), "STATE-01": outcome("STATE-01")}, ("fail",))
    assert [cause.head.id for cause in found] == ["STATE-01", "MERGE-08"]
