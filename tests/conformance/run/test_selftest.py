"""Tests the suite itself: known-bad layers must fail, at the right requirements, and honest ones must pass.

`conformance selftest --brief`, which .ci/run runs, tries all of them. These tests try some of them, so that they alone
notice if the suite no longer detects faults. HYPOTHESIS_PROFILE=thorough tries all.
"""

import json
from importlib.resources import files

import pytest
from thorough import THOROUGH

from conformance.mutants import LayerSubject, Mutant, all_mutants, honest_subjects
from conformance.requirements import all_requirements
from conformance.run import examine as search
from conformance.run.examine import examine, offered
from conformance.run.loading import load
from conformance.truth.case import DTYPES

REQUIREMENTS = {r.id: r for r in all_requirements()}
HONEST_EXAMPLES = 40 if THOROUGH else 3


@pytest.fixture(autouse=True)
def short_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "UNSUPPORTED_IN_A_ROW", 2)


MUTANTS = all_mutants() if THOROUGH else all_mutants()[::24]
HONEST = honest_subjects() if THOROUGH else honest_subjects()[::15]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_mutant_is_failed_by_what_it_names(mutant: Mutant) -> None:
    for id in mutant.kills:
        dtypes = tuple(DTYPES)
        outcome = examine(REQUIREMENTS[id], mutant.subject(), mutant.spec, dtypes=dtypes, examples=24, seed=0, explain=False)
        assert outcome.status in ("fail", "error"), f"{mutant.name} ({mutant.words}): {id} {outcome.status}"
        assert "harness itself" not in outcome.message, outcome.message


@pytest.mark.parametrize("subject", HONEST, ids=lambda s: s.name)
def test_honest_variation_fails_no_must(subject: LayerSubject) -> None:
    place = honest_subjects().index(subject)  # the layer itself at three seeds, each variation at one of its own
    kinds = offered(subject, tuple(DTYPES))
    for requirement in REQUIREMENTS.values():
        for seed in (place,) if place or not THOROUGH else range(100, 103):
            outcome = examine(requirement, subject, subject.spec, kinds=kinds, examples=HONEST_EXAMPLES, seed=seed)
            known = requirement.level == "SHOULD" and requirement.id in subject.words  # that it fails by convention
            assert outcome.status in ("pass", "unsupported") or known, f"seed {seed}: {outcome.id} {outcome.message}"


def test_every_requirement_is_failed_by_a_mutant() -> None:
    named = {id for mutant in all_mutants() for id in mutant.kills}
    assert not set(REQUIREMENTS) - named, "no mutant shows that these can fail"
    assert not named - set(REQUIREMENTS), "there are no such requirements"


def test_every_mutant_names_a_requirement_and_says_what_is_wrong() -> None:
    for mutant in all_mutants():
        assert mutant.kills, mutant.name
        assert mutant.layer.__doc__ and mutant.words.endswith("."), mutant.name


def test_mutants_have_names_of_their_own() -> None:
    names = [subject.name for subject in (*all_mutants(), *honest_subjects())]
    assert sorted(names) == sorted(set(names))


def test_each_is_found_by_its_spec() -> None:
    for subject in (*all_mutants(), *honest_subjects()):
        assert load(subject.spec) is subject


def test_rows_are_in_the_catalogue() -> None:
    faults = json.loads(files("conformance").joinpath("known_faults.json").read_text(encoding="utf-8"))["faults"]
    known = {fault["id"] for fault in faults}
    for mutant in all_mutants():
        assert set(mutant.reports) <= known, mutant.name
