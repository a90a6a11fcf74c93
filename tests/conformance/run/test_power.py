"""The suite detects small errors of the scale, its canaries fail, and it names the likely cause of a failure."""

import threading
import time

import numpy as np
import pytest
from thorough import few

from conformance.mutants import LayerSubject, all_mutants
from conformance.mutants.honest import Honest
from conformance.requirements import Requirement, all_requirements
from conformance.run import canaries, plan, runner, verdict
from conformance.run.diagnosis import diagnose
from conformance.run.examine import Outcome, examine
from conformance.truth.case import DTYPES, resolution
from conformance.truth.compare import FAULT_OF_INTEREST
from conformance.truth.strategies import rounding

REQUIREMENTS = {r.id: r for r in all_requirements()}
MUTANTS = {m.name: m for m in all_mutants()}


def scaled_by(factor: float) -> LayerSubject:
    """The honest layer with its scale multiplied by a factor, in every method alike."""
    return LayerSubject(type("Off", (Honest,), {"scale_of": lambda self, config: factor * Honest.scale_of(self, config)}))


def statuses(subject, ids: tuple[str, ...], dtype: str) -> dict[str, str]:
    found = {}
    for id in ids:
        found[id] = examine(REQUIREMENTS[id], subject, "off", dtypes=(dtype,), examples=24, seed=0).status
    return found


@pytest.mark.parametrize("dtype", few(DTYPES))
def test_one_percent_of_the_scale_is_seen_in_every_dtype(dtype):
    assert statuses(scaled_by(1.01), ("FWD-01", "SCALE-01", "GRAD-02"), dtype) == {
        "FWD-01": "fail", "SCALE-01": "fail", "GRAD-02": "fail"
    }
    assert set(statuses(scaled_by(1.0), ("FWD-01", "SCALE-01", "GRAD-02"), dtype).values()) == {"pass"}


def test_a_thousandth_of_the_scale_is_seen_in_float32():
    ids = ("FWD-01", "FWD-02", "SCALE-02", "GRAD-04", "MERGE-02")
    assert set(statuses(scaled_by(1.001), ids, "float32").values()) == {"fail"}
    assert set(statuses(scaled_by(1.0), ids, "float32").values()) == {"pass"}


def test_cases_without_power_are_not_used():
    from hypothesis import find

    case = find(rounding(only=("float32",))(("float32",)), lambda c: True)
    assert resolution(case) <= FAULT_OF_INTEREST["float32"]
    assert resolution(case.replace(B=0 * case.B)) == np.inf


def test_what_cannot_be_decided_is_indeterminate():
    from hypothesis import strategies as st

    never = REQUIREMENTS["FWD-01"]
    fields = {**vars(never), "cases": lambda dtypes: st.integers().map(lambda i: None).filter(lambda c: False)}
    outcome = examine(Requirement(**fields), scaled_by(1.0), "off", dtypes=("float32",), examples=5, seed=0)
    assert outcome.status == "indeterminate"


@pytest.mark.parametrize("id", canaries.ALL)
def test_canaries_fail_on_an_honest_layer(id):
    outcome = canaries.examine(id, scaled_by(1.0), "honest", dtypes=("float32",), examples=24, seed=0)
    assert outcome.status == "fail", outcome.message


def test_a_canary_that_passes_voids_the_run(monkeypatch):
    """If the comparison is replaced by one that compares nothing, the canaries pass and the verdict is void."""
    monkeypatch.setattr(canaries, "expect_equal", lambda got, want, what: 0.0)
    outcome = canaries.examine("CANARY-01", scaled_by(1.0), "honest", dtypes=("float32",), examples=24, seed=0)
    assert outcome.status == "pass"
    report = verdict.Report("honest", planned=(REQUIREMENTS["FWD-01"],), outcomes={"FWD-01": Outcome("FWD-01", "pass")})
    assert report.exit_status == 0
    report.canaries["CANARY-01"] = outcome
    assert (report.verdict, report.exit_status) == ("void", 3)


def test_fewer_checks_than_planned_is_void():
    planned = (REQUIREMENTS["FWD-01"], REQUIREMENTS["FWD-02"])
    report = verdict.Report("short", planned=planned, outcomes={"FWD-01": Outcome("FWD-01", "pass")})
    assert (report.verdict, report.exit_status) == ("void", 3)


# The subtlest rows of the catalogue that a layer can have, the runners-up among them: a plain test suite passes them.
SUBTLE = {f"BUG-{n:02}" for n in (7, 15, 16, 26, 55, 64, 75, 84, 85, 96, 97, 98, 106, 111, 130, 131)}


@pytest.mark.parametrize("mutant", few([m for m in all_mutants() if SUBTLE & set(m.reports)]), ids=lambda m: m.name)
def test_the_subtlest_reports_are_caught_and_named(mutant):
    """The diagnosis names the mutant itself, or another mutant of the same report that gives the same answers."""
    requirement = REQUIREMENTS[mutant.kills[0]]
    outcome = examine(requirement, mutant.subject(), mutant.spec, dtypes=tuple(DTYPES), examples=24, seed=0)
    assert outcome.status == "fail", outcome.message
    named = [m for m in all_mutants() if m.words.rstrip(".") in (outcome.diagnosis or "")]
    assert any(set(m.reports) & set(mutant.reports) for m in named), outcome.diagnosis


DIAGNOSES = {  # and some that are not so subtle
    "scale-is-alpha": "SCALE-01", "merge-doubled": "MERGE-01", "bias-merged-too": "MERGE-03",
    "merged-saves-merged-w": "STATE-06", "needs-gradient-of-x": "GRAD-13", "weight-gets-gradient": "GRAD-10",
    "both-zero": "INIT-03", "subtracts-the-new-delta": "MERGE-11", "rate-ignored": "DROP-05",
    "rslora-ignored": "SCALE-03", "mean-in-da": "GRAD-02", "dx-without-lo-ra": "GRAD-01",
}


@pytest.mark.parametrize("name", few(DIAGNOSES))
def test_the_likely_cause_is_the_cause(name):
    requirement, mutant = REQUIREMENTS[DIAGNOSES[name]], MUTANTS[name]
    outcome = examine(requirement, mutant.subject(), mutant.spec, dtypes=tuple(DTYPES), examples=24, seed=0)
    assert outcome.status == "fail"
    assert outcome.diagnosis is not None and mutant.words.rstrip(".") in outcome.diagnosis


def test_simple_relations_are_named():
    """The layers are no mutants, so the diagnosis can only name the relation of got to want."""
    class Thrice(Honest):
        def lora(self, x):
            return 3 * super().lora(x)

    outcome = examine(REQUIREMENTS["FWD-01"], LayerSubject(Thrice), "thrice", dtypes=("float32",), examples=24, seed=0)
    assert outcome.diagnosis == "LoRA part, observed / expected = 3"


def test_an_honest_layer_has_no_diagnosis():
    case = next(iter(all_cases("FWD-01")))
    assert diagnose(REQUIREMENTS["FWD-01"], scaled_by(1.0), case).words is None


def all_cases(id: str):
    from conformance.run import case_bank

    return case_bank.first(REQUIREMENTS[id], ("float32",), 4)


def test_a_surprise_of_one_worker_is_kept_whatever_another_sees(monkeypatch):
    """Both are asked a canary at the same time. The one that sees nothing answers last."""
    together, numbers = threading.Barrier(2), iter(range(2))

    class Two:
        about = {"name": "", "version": "", "declined": [], "compensates": {}}
        cancelled, hung, timeout = False, 0, 1.0

        def __init__(self, *_):
            self.number = next(numbers)

        def start(self):
            pass

        def examine(self, id):
            if id != "CANARY-01":
                return Outcome(id, "fail" if id in canaries.ALL else "pass")
            together.wait(30)
            time.sleep(0.1 * self.number)
            return Outcome(id, "fail" if self.number else "pass")

        def ask_about(self, what):
            return {}

        def stop(self):
            pass

    monkeypatch.setattr(runner, "Worker", Two)
    report = runner.run(["honest"], plan.Options(only=("FWD",), jobs=2))[0]
    assert report.passed_canaries == ["CANARY-01"] and report.verdict == "void"
