"""The judge sits apart: what a subject's process holds, that the way there changes no outcome, and what repeats."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conformance.drivers import frames
from conformance.mutants import all_mutants, honest_subjects
from conformance.requirements import all_requirements
from conformance.run import canaries, case_bank, plan, runner
from conformance.run.examine import examine, offered
from conformance.run.loading import reach
from conformance.subject import LayerConfig
from conformance.truth.case import DTYPES

ROOT = Path(__file__).parents[3]
REQUIREMENTS = {r.id: r for r in all_requirements()}
SOME = [*all_mutants()[::40], *honest_subjects()[::13]]


def program(tmp_path: Path, text: str, name: str = "mine.py") -> str:
    (tmp_path / name).write_text(f"from conformance.skeletons.subject import *\n{text}", encoding="utf-8")
    return f"{tmp_path / name}:MySubject"


@pytest.mark.parametrize("subject", SOME, ids=lambda s: s.name)
def test_the_way_to_a_subject_changes_no_outcome(subject):
    """The self-test judges in one process. A process apart gives the same statuses, messages and scripts."""
    there = reach(subject.spec)
    kinds = offered(there, tuple(DTYPES))
    assert kinds == offered(subject, tuple(DTYPES))
    for id in dict.fromkeys([*getattr(subject, "kills", ()), "FWD-01", "FWD-10", "FWD-12", "GRAD-02", "MERGE-01", "STATE-01"]):
        options = {"examples": 4, "seed": 1, "kinds": kinds, "explain": False}
        far, near = (examine(REQUIREMENTS[id], s, subject.spec, **options).as_dict() for s in (there, subject))
        assert {**far, "seconds": 0} == {**near, "seconds": 0}
    there.stop()


HELD = """
import sys
def forward(self, x):
    held = [name for name in sys.modules if name.startswith(("lora_ref", "hypothesis", "conformance"))]
    raise RuntimeError(" ".join(held))
MyLayer.forward = forward
"""


def test_the_process_of_a_subject_holds_no_truth(tmp_path):
    layer = reach(program(tmp_path, HELD)).build(LayerConfig(2, 2, 1, 1.0), np.eye(2, dtype=np.float32), None)
    with pytest.raises(Exception, match="conformance") as told:
        layer.forward(np.ones((1, 2), np.float32))
    held = str(told.value).split()
    assert not [name for name in held if name.startswith(("lora_ref", "hypothesis"))]
    judges = ("truth.case", "truth.compare", "truth.model_case", "truth.strategies", "requirements", "run.examine", "run.judge",
              "run.case_bank", "run.canaries", "report", "mutants")
    assert not [name for name in held if name.removeprefix("conformance.").startswith(judges)]


def test_an_array_is_the_same_on_both_sides():
    """Handed over again it is the same array there and holds what it holds here. What is written to it there is seen here."""
    subject = reach("conformance.mutants:ScalesXInPlace")
    layer = subject.build(LayerConfig(3, 2, 1, 2.0), np.ones((2, 3), np.float32), None)
    x = np.ones((2, 3), np.float32)
    layer.forward(x)
    assert (x == 2).all()  # the mutant scales it, by 2
    x[:] = 5
    layer.forward(x)
    assert (x == 10).all()
    strided = np.arange(12, dtype=np.float32).reshape(2, 6)[:, ::-2]
    before = strided.copy()
    layer.forward(strided)
    assert (strided == 2 * before).all()
    subject.stop()


def test_a_subject_that_knows_the_other_cases_meets_new_ones():
    cases = {seed: case_bank.first(REQUIREMENTS["FWD-01"], ("float32",), 24, seed) for seed in (1, 2)}
    same = [a.x.tobytes() == b.x.tobytes() and a.W.tobytes() == b.W.tobytes() for a, b in zip(*cases.values(), strict=True)]
    assert same == [bool(i % case_bank.FRESH) for i in range(len(same))] and len(same) > case_bank.FRESH
    for requirement in REQUIREMENTS.values():
        drawn = [case_bank.first(requirement, tuple(DTYPES), 1, seed) for seed in (1, 2)]
        assert len(drawn[0]) == len(drawn[1]) > 0  # the first of each is one of those that are drawn anew


def report(*words: str, **env: str) -> dict:
    command = [sys.executable, "-m", "conformance", "run", "lora_ref", "conformance.mutants:ScaleIsAlpha", "--examples", "3",
               "--only", "FWD-01", "FWD-19", "SCALE-01", "MODEL-01", "--seed", "5", "--timeout", "300",
               "--json", "/dev/stderr", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | env)
    found = json.loads(done.stderr)
    found.pop("environment")
    for one in found["reports"]:
        one["seconds"] = 0
        for row in one["requirements"]:
            row["seconds"] = 0
    return found


def test_the_same_seed_gives_the_same_report():
    """On any number of cores, and whatever the hash seed is, as long as no time runs out."""
    first = report("--jobs", "1", PYTHONHASHSEED="0")
    assert report("--jobs", "4", PYTHONHASHSEED="77") == first
    assert {one["verdict"] for one in first["reports"]} == {"conformant", "nonconformant"}


COMES_AND_GOES = """
count = [0]
plain = MySubject.build
def build(self, config, weight, bias):
    count[0] += 1
    if count[0] % 3 == 0:
        raise Unsupported("every third layer")
    return plain(self, config, weight, bias)
MySubject.build = build
"""
FEW = """
plain = MySubject.build
def build(self, config, weight, bias):
    if config.rank > 1 or config.in_features > 3:
        raise Unsupported("large layers")
    return plain(self, config, weight, bias)
MySubject.build = build
"""


def test_what_is_not_offered_has_a_price(tmp_path):
    """What comes and goes is a failure. What follows from the configuration is none, and is counted."""
    options = plan.Options(only=("FWD-01", "FWD-02"), jobs=1, examples=8)
    specs = [program(tmp_path, COMES_AND_GOES, "goes.py"), program(tmp_path, FEW, "few.py")]
    goes, few = runner.run(specs, options)
    assert goes.verdict == "nonconformant"
    assert "what is offered: got not offered: every third layer" in goes.outcomes["FWD-01"].message
    assert few.verdict == "partial" and few.exit_status == 3
    assert 0 < few.answered < few.asked / 2
    assert {outcome.status for outcome in few.outcomes.values()} == {"pass"}


@pytest.mark.parametrize("spec", ["lora_ref", f"cmd:{sys.executable} -c 'import sys; sys.path.insert(0, \"{ROOT}\"); "
                                  "from conformance.drivers.protocol import serve; from conformance.subjects import lora_ref; "
                                  "serve(lora_ref.subject())'"])
def test_a_broken_judge_is_seen(spec, monkeypatch):
    """Each canary fails as long as the judge is sound. With a wrong truth, with bounds of a million and with a comparison that
    finds nothing, some pass."""
    subject = reach(spec)
    given = {"examples": 8, "seed": 0, "kinds": offered(subject, ("float32",))}

    def surprises() -> list[str]:
        return [id for id in canaries.ALL if canaries.examine(id, subject, spec, **given).status == "pass"]

    assert surprises() == []
    with monkeypatch.context() as broken:
        for module in ("helpers.layers", "fwd", "merge"):
            broken.setattr(f"conformance.requirements.{module}.expect_equal", lambda got, want, what: 0.0)
        assert any(id.startswith("CANARY-wrong") for id in surprises())
    with monkeypatch.context() as broken:
        broken.setattr(case_bank, "_kept", {})  # with the true values of its cases
        broken.setattr("lora_ref.lora.scale", lambda alpha, rank, scaling="standard": 3.0)
        assert any(id.startswith("CANARY-honest") for id in surprises())
    with monkeypatch.context() as broken:
        broken.setattr("conformance.run.canaries.expect_within", lambda got, want, bound, what: 0.0)
        assert {"CANARY-02", "CANARY-05"} <= set(surprises())
    subject.stop()


def test_in_process_is_told():
    found = runner.run(["lora_ref"], plan.Options(only=("FWD-01",), examples=4, in_process=True))[0]
    assert found.verdict == "conformant" and found.in_process
    found = runner.run(["lora_ref"], plan.Options(only=("FWD-01",), examples=4, jobs=1))[0]
    assert found.verdict == "conformant" and not found.in_process


SLOW = """
import time
plain = MyLayer.forward
MyLayer.forward = lambda self, x: (time.sleep(0.1), 2 * plain(self, x))[1]
"""


def test_a_slow_failure_is_no_timeout(tmp_path):
    """The search for a smaller case ends in time for the failure to be told."""
    found = runner.run([program(tmp_path, SLOW)], plan.Options(only=("FWD-01",), jobs=1, examples=4, timeout=3.0))[0]
    outcome = found.outcomes["FWD-01"]
    assert outcome.status == "fail" and "got" in outcome.message, outcome


LATE = """
import time
plain, calls = MyLayer.forward, [0]
def forward(self, x):
    calls[0] += 1
    time.sleep(1.2 if calls[0] > 1 else 0)
    return 2 * plain(self, x)
MyLayer.forward = forward
"""
WARMS_UP = """
plain, count = MySubject.build, [0]
def build(self, config, weight, bias):
    count[0] += 1
    if config.dtype == "float32" and count[0] < 20:
        raise Unsupported("warming up")
    return plain(self, config, weight, bias)
MySubject.build = build
"""
WRITES_NO_SCRIPT = """
import os
plain = MyLayer.forward
MyLayer.forward = lambda self, x: 2 * plain(self, x)
MySubject.script = lambda self, calls, spec: os._exit(3)
"""


def test_a_failure_stays_one_when_the_time_is_over(tmp_path):
    """A smaller case that has no answer any more does not take the place of one that failed."""
    options = plan.Options(only=("FWD-01", "FWD-02"), jobs=1, examples=4, timeout=2.0)
    found = runner.run([program(tmp_path, LATE)], options)[0]
    assert {outcome.status for outcome in found.outcomes.values()} <= {"fail", "timeout"}
    assert "fail" in {outcome.status for outcome in found.outcomes.values()}
    found = runner.run([program(tmp_path, WRITES_NO_SCRIPT, "noscript.py")], options)[0]
    assert {outcome.status for outcome in found.outcomes.values()} == {"fail"} and found.verdict == "nonconformant"


def test_a_kind_of_layers_is_offered_or_not(tmp_path):
    """What was declined at the start is asked for again and again."""
    options = plan.Options(only=("FWD",), jobs=1, examples=4)
    found = runner.run([program(tmp_path, WARMS_UP)], options)[0]
    assert found.verdict == "nonconformant"
    assert "float32 without a bias, want none" in " ".join(outcome.message for outcome in found.outcomes.values())
    assert "float32 with a bias" in found.declined


@pytest.mark.parametrize("seed", range(5))
def test_both_sides_remember_the_same_arrays(seed):
    """After more arrays than are kept, in any order, the other side still knows each that this one thinks it knows."""
    rng, ours, theirs = np.random.default_rng(seed), frames.Given(), frames.Given()
    arrays = [np.full(2, i, np.float32) for i in range(100)]
    for _ in range(2000):
        array = arrays[min(int(rng.exponential(25)), 99)]
        if rng.random() < 0.1:
            array += 1
        writer = frames.Writer(ours)
        said = writer.say((array,))
        (found,) = frames.Reader(json.dumps(said).encode(), b"".join(writer.bytes), theirs).value(said)
        assert (found == array).all()


NUMBERS = st.integers(-3, 2**70) | st.floats() | st.text() | st.booleans() | st.none()
JSON = st.recursive(NUMBERS, lambda item: st.lists(item, max_size=4) | st.dictionaries(st.text(), item, max_size=3))
WORDS = st.sampled_from(["array", "tuple", "list", "dict", "odd", "given", "again", "Name", "LayerConfig", "float32"])


@given(st.lists(WORDS | JSON | st.lists(WORDS | JSON, max_size=6), max_size=6), st.binary(max_size=64))
def test_an_answer_is_a_value_or_malformed(said, body):
    reader = frames.Reader(json.dumps(said).encode(), body)
    try:
        value = reader.value(reader.message)
    except frames.Malformed:
        return
    size = sum(array.nbytes for array in [value] if isinstance(array, np.ndarray))
    assert size <= len(body)
