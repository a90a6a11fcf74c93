"""Faults by construction: the observer sees the levels, honest builds pass, and faults are killed where they can show."""

import re
from unittest.mock import patch

import numpy as np
import pytest
from thorough import THOROUGH

from conformance.mutants import LayerSubject
from conformance.mutants.honest import Honest
from conformance.requirements.helpers import life
from conformance.requirements.helpers.inputs import laid
from conformance.run import triggered
from conformance.run.planted.effects import EFFECTS, NAMED, SHOWS
from conformance.run.planted.observed import NEVER_AT, SEEN_AT, Seen, lies
from conformance.run.planted.triggers import Fault, Planted, When
from conformance.run.sweep import Sweeper
from conformance.truth import covering
from conformance.truth.case import DTYPES
from conformance.truth.space import BY_NAME, Levels

ROWS = list(enumerate(covering.array(0)))[::67]
EVERY = 5 if THOROUGH else 15  # one case of the array in so many is lived
KINDS = frozenset((dtype, bias) for dtype in DTYPES for bias in (True, False))


def observed(levels: Levels, number: int) -> dict[str, Seen]:
    """The levels that the judged calls show: those of the backward pass, and of the forward pass that odd numbers come in."""
    planted, levels = Planted(LayerSubject(Honest)), levels | {"handled": "plainly"}
    after = patch.object(life, "_thawed"), patch.object(life._Pass, "judge_without_dropout")  # the passes of the case
    with triggered.quiet(), after[0], after[1]:
        life.live(planted, levels, life.prepared(levels, number))
    passes = {call: seen for call, seen in planted.record if call in ("forward", "backward")}  # the last of each
    return passes["backward"] | {"content": passes["backward"]["content"] + passes["forward"]["content"]}


def recognisable(name: str, levels: Levels, number: int) -> bool:
    if name in ("x lies", "dy lies"):
        case = life.prepared(levels, number)
        return lies(case.x if name == "x lies" else case.dy) == levels[name]
    if name == "content":  # many bits may be in an answer alone
        return levels["mode"] != "dropout" or levels[name] != "many bits"
    if name == "mode":  # odd numbers are tried in inference mode, after dropout
        return levels["mode"] != "dropout" or levels["content"] in ("few bits", "many bits")
    if name == "calls":  # an array that repeats its rows is not written to
        return not (levels[name] == "x changed in place" and levels["x lies"] == "broadcast")
    return True


@pytest.mark.parametrize("number, levels", ROWS, ids=[str(number) for number, _ in ROWS])
def test_the_observer_sees_the_levels_of_a_row(number: int, levels: Levels) -> None:
    seen = observed(levels, number)
    for name, level in levels.items():
        if name != "handled" and recognisable(name, levels, number):
            assert level in seen[name], f"{name}: the calls show {seen[name]}, and the row has {level}; {levels}"


def test_an_array_with_rows_and_columns_shows_how_it_lies() -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    for how in BY_NAME["x lies"].levels:
        assert lies(laid(array, str(how))) == how


def test_every_effect_can_show_with_some_levels() -> None:
    for effect in EFFECTS:
        assert effect.call in SEEN_AT and set(effect.hidden) <= set(SHOWS), effect.name
        assert all(set(levels) < set(BY_NAME[name].levels) for name, levels in effect.needs.items()), effect.name
        assert effect.shows({name: levels[0] for name, levels in effect.needs.items()}), effect.name
    assert len(NAMED) == len(EFFECTS), "two effects have the same name"
    for table in (*SHOWS.values(), *NEVER_AT.values()):
        assert all(set(levels) < set(BY_NAME[name].levels) for name, levels in table.items())


# One fault of each kind of call, with triggers of one to three levels.
FAULTS = (
    ("y has no LoRA part", When("rank", 17)),
    ("y has the LoRA part twice", When("history", "unmerged")),
    ("y is 0 in the last one of the rows", When("rows", 63, "from"), When("format", "float16")),
    ("a NaN in y is 0", When("content", "NaN"), When("mode", "inference")),
    ("the mask is drawn anew before backward", When("mode", "dropout"), When("rate", 0.5)),
    ("dA is not added to the one before", When("calls", "accumulated")),
    ("dB is of the x before", When("calls", "two before backward"), When("in", 33, "not a multiple", 8)),
    ("merged W has the LoRA part without scale", When("merged", True), When("scale", "-1/4")),
    ("W keeps the LoRA part after unmerge", When("history", "cycled"), When("bias", False)),
    ("B is not loaded", When("history", "loaded"), When("scaling", "rslora")),
    ("A takes the step twice", When("history", "stepped")),
    ("y has one bit less", When("content", "many bits")),
    ("x is written to", When("x lies", "strided"), When("needs", "not x")),
    ("dx is of a dy read as if it were contiguous", When("dy lies", "transposed")),
)


@pytest.fixture(scope="module")
def honest() -> triggered.Lived:
    return triggered.lived("Honest", 0, EVERY)


@pytest.mark.parametrize("effect, trigger", [(effect, trigger) for effect, *trigger in FAULTS], ids=[f[0] for f in FAULTS])
def test_a_fault_fails_on_the_cases_that_show_its_trigger_as_on_all(effect: str, trigger: list[When], honest: triggered.Lived):
    fault = Fault(tuple(trigger), effect, "Honest")
    numbers = triggered.shown(fault, honest, honest.index())
    found = triggered.tried(fault, numbers, honest.lacking, 0)
    known = re.match(r"case (\d+): (.*)", found.by)
    assert known, f"{fault.words} is not killed by the array"
    sweeper = Sweeper(Planted(LayerSubject(Honest), fault), KINDS, 0)
    with triggered.quiet():
        cases = list(enumerate(covering.array(0)))[::EVERY]
        outcomes = ((number, sweeper.outcome(levels, number, set())[0]) for number, levels in cases)
        assert next((number, broken.kind) for number, broken in outcomes if broken) == (int(known[1]), known[2])


def test_a_fault_whose_trigger_never_shows_lives_as_the_honest_layer() -> None:
    fault = Fault((When("rank", 16), When("in", 15)), "y has no LoRA part", "Honest")
    sweeper = Sweeper(Planted(LayerSubject(Honest), fault), KINDS, 0)
    with triggered.quiet():
        assert not sweeper.part(3, 40, explain=False).failures


def test_honest_builds_pass_and_faults_are_drawn_evenly(honest: triggered.Lived) -> None:
    assert not honest.false_alarms
    faults = triggered.drawn(600, 0, {"Honest": honest})
    assert len(set(faults)) == 600 and faults == triggered.drawn(600, 0, {"Honest": honest})
    assert [len(fault.trigger) for fault in faults] == [1, 2, 3] * 200
    assert {test.factor for fault in faults for test in fault.trigger} == {*BY_NAME} - {"handled"}  # no call shows it
    assert {test.how for fault in faults for test in fault.trigger} == {"is", "near", "from", "not a multiple"}
    for fault in faults:
        assert NAMED[fault.effect].shows({test.factor: test.level for test in fault.trigger}), fault.words


def test_a_run_counts_what_it_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    faults = [Fault((When("rank", 17),), "y has no LoRA part", "Honest"), Fault((When("rank", 1),), "dA is 0", "Honest")]
    found = triggered.Power([triggered.Tried(faults[0], "case 3: y", 5), triggered.Tried(faults[1], "", 0)], {"Honest": 9})
    assert found.rates(lambda t: t.strength) == {1: (1, 0, 2)}
    assert found.problems == ["1 of 2 faults with 1 level survive"]
    assert found.as_dict()["cells"] == [{"factor": "rank", "group": "LoRA part", "killed": 1, "all": 1},
                                        {"factor": "rank", "group": "gradients", "killed": 0, "all": 1}]
    assert found.as_dict()["survivors"] == [{"trigger": ["rank 1"], "effect": "dA is 0", "build": "Honest", "cases": 0}]
