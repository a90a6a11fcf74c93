"""The requirements as a document: ids, levels, sources, and SPEC.md."""

import re

from conformance.loader import Loader
from conformance.model import Model
from conformance.mutants import all_mutants
from conformance.report import spec
from conformance.requirements import all_requirements, groups, profiles
from conformance.run.diagnosis import catalogue
from conformance.subject import Layer

REQUIREMENTS = all_requirements()


def test_ids_are_unique_and_numbered_without_gaps():
    assert len({r.id for r in REQUIREMENTS}) == len(REQUIREMENTS)
    for group in groups():
        numbers = [int(r.id.split("-")[1]) for r in REQUIREMENTS if r.group == group]
        assert numbers == list(range(1, len(numbers) + 1)), group
        assert numbers, group


def test_each_says_what_it_must():
    for r in REQUIREMENTS:
        assert len(re.findall(r"\b(MUST|SHOULD)\b", r.sentence)) >= 1, r.id
        assert not {"MUST", "SHOULD"} <= set(r.sentence.split()), f"{r.id} has two levels"
        assert r.sentence.endswith("."), r.id
        assert r.formula and r.sources and r.why, r.id
        assert r.profile in profiles(), r.id
        kind = next((kind for built, kind in (("build_model", Model), ("build_loader", Loader)) if built in r.needs), Layer)
        assert set(r.needs) - {"build_model", "build_loader"} <= set(vars(kind)), r.id


def test_the_levels_of_the_specification():
    """Exactly the requirements in this list are a SHOULD. All others are a MUST."""
    should = {r.id for r in REQUIREMENTS if r.level == "SHOULD"}
    assert should == {
        "ADAPT-08", "INIT-07", "INIT-10", "MERGE-08", "STATE-07", "STATE-08", "DTYPE-07", "DTYPE-11",
        "FILE-17", "FILE-20", "FILE-21",
        "INPUT-04", "INPUT-05", "INPUT-06", "INPUT-07", "INPUT-08", "INPUT-09", "INPUT-10",
        "TORCH-02", "TORCH-06", "TORCH-24", "TORCH-25", "TORCH-28", "TORCH-31", "TORCH-32", "TORCH-38",
        "TORCH-39", "TORCH-40", "TORCH-41", "TORCH-42", "TORCH-54", "TORCH-55", "TORCH-56", "TORCH-63",
    }


def test_known_faults_exist():
    for r in REQUIREMENTS:
        assert set(r.faults) <= set(catalogue()), r.id


def test_spec_names_every_requirement_and_every_mutant():
    """The rendered text is checked here. test_generated.py checks that the file on disk is the same."""
    text = spec.render()
    assert re.findall(r"^### (\S+)", text, re.M) == [r.id for r in REQUIREMENTS]
    for mutant in all_mutants():
        assert f"| {mutant.group} | {mutant.name} | " in text, mutant.name


def test_every_known_fault_is_recreated_or_waits_for_something():
    recreated = {row for mutant in all_mutants() for row in mutant.reports}
    assert recreated == {id for id, row in catalogue().items() if "waits_for" not in row}
    assert len(recreated) >= 75 and len(all_mutants()) >= 120
