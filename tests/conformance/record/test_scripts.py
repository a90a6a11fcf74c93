"""A failure comes with a script that needs the subject's library and not this project, and that prints what the report says."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from conformance import LayerConfig, load
from conformance.mutants import all_mutants
from conformance.record.script import nested, wrapped
from conformance.record.torch_script import assigned, dtype_of, tensor, written
from conformance.record.trace import SubjectError, Traced
from conformance.requirements import all_requirements
from conformance.run import examine
from conformance.run.diagnosis import Diagnosis
from conformance.torch import to_tensor
from conformance.truth.case import DTYPES

FAULTY, MODULES = (Path(__file__).parents[1] / name for name in ("faulty.py", "modules.py"))
REQUIREMENTS = {r.id: r for r in all_requirements()}
ALONE = "\nimport sys; assert not {'conformance', 'lora_ref'} & set(sys.modules)"


@pytest.fixture(autouse=True)
def short_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examine, "SHRINK_CALLS", 60)
    monkeypatch.setattr(examine, "diagnose", lambda *_: Diagnosis(None))


def failure(spec: str, id: str, dtypes=("float32",)):
    outcome = examine.examine(REQUIREMENTS[id], load(spec).raw(), spec, dtypes=dtypes, examples=12, seed=0)
    assert outcome.status in ("fail", "error"), outcome
    assert outcome.reproduce is not None
    return outcome


def run(script: str, where: Path, alone: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs the script in a new process, in another folder, with nothing of this project on its path."""
    command = [sys.executable, *(["-I"] if alone else []), "-c", script + ALONE * alone]
    return subprocess.run(command, cwd=where, capture_output=True, text=True, timeout=120)


def printed(text: str) -> set[str]:
    """The numbers of an output, as a report writes them."""
    return {f"{float(found):.9g}" for found in re.findall(r"-?(?:\d+\.?\d*(?:e[-+]?\d+)?|nan|inf)", text)}


@pytest.mark.parametrize(
    ("name", "id"),
    [
        ("NotDivided", "SCALE-01"), ("NotDivided", "FWD-02"), ("NotDivided", "MERGE-01"),
        ("MergesWithoutScale", "MERGE-01"), ("MergesWithoutScale", "MERGE-03"), ("MergesWithoutScale", "MERGE-04"),
        ("NothingReachesX", "GRAD-01"), ("NothingReachesX", "GRAD-04"),
        ("HalvesGradients", "GRAD-02"), ("HalvesGradients", "GRAD-07"), ("HalvesGradients", "GRAD-13"),
        ("HalvesGradients", "PARAM-04"), ("HalvesGradients", "LEARN-01"),
        ("SavesHalf", "STATE-01"), ("SavesHalf", "STATE-05"), ("DropsInInference", "DROP-01"),
        ("TakesViewsForRows", "FWD-10"), ("ChangesItsInput", "FWD-11"), ("RoundsToHalf", "FWD-02"), ("Base", "MERGE-08"),
    ],
)
def test_the_script_alone_prints_the_wrong_number(name, id, tmp_path):
    outcome = failure(f"{FAULTY}:{name}", id)
    ran = run(outcome.reproduce, tmp_path)
    assert ran.returncode == 0, outcome.reproduce + ran.stderr
    assert outcome.failure["got"] in printed(ran.stdout), f"{outcome.reproduce}\n{ran.stdout}\n{outcome.failure}"
    assert f"want {outcome.failure['want']}" in outcome.reproduce


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
@pytest.mark.parametrize(("name", "id"), [("NotDivided", "FWD-01"), ("Base", "MERGE-08")])
def test_in_every_dtype(name, id, dtype, tmp_path):
    outcome = failure(f"{FAULTY}:{name}", id, (dtype,))
    ran = run(outcome.reproduce, tmp_path)
    assert f"torch.{dtype}" in outcome.reproduce
    got = outcome.failure["got"]  # in nine digits, or in all if those do not tell it from what is wanted
    seen = printed(ran.stdout) | set(ran.stdout.replace("[", " ").replace("]", " ").replace(",", " ").split())
    assert got in seen, f"{outcome.reproduce}\n{ran.stdout}\n{ran.stderr}\n{outcome.failure}"


@pytest.mark.parametrize(
    ("name", "id", "says"),
    [
        ("RefusesBatches", "FWD-05", r"ValueError: x has [345] dimensions"), ("ReturnsNothing", "FWD-01", r"^None$"),
        ("TrainsTheBase", "PARAM-02", r"'linear.bias'"), ("TrainsTheBase", "GRAD-10", r"db \["),
    ],
)
def test_the_script_alone_shows_what_is_no_number(name, id, says, tmp_path):
    outcome = failure(f"{FAULTY}:{name}", id)
    ran = run(outcome.reproduce, tmp_path)
    assert re.search(says, ran.stdout + ran.stderr, re.M), f"{outcome.reproduce}\n{ran.stdout}\n{ran.stderr}"


def test_a_base_layer_is_built_in_place(tmp_path):
    outcome = failure(f"{MODULES}:Wrapper", "STATE-06")
    assert "Wrapper(linear=torch.nn.Linear(" in outcome.reproduce
    assert outcome.failure["got"] in printed(run(outcome.reproduce, tmp_path).stdout), outcome.reproduce


@pytest.mark.parametrize("id", ["MERGE-11", "STATE-08"])
@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.peers(name)) for name in ("peft", "loralib")])
def test_libraries_are_called_as_they_call_themselves(name, id, tmp_path):
    outcome = failure(name, id)
    ran = run(outcome.reproduce, tmp_path)
    assert ran.returncode == 0, outcome.reproduce + ran.stderr
    assert outcome.failure["got"] in printed(ran.stdout), f"{outcome.reproduce}\n{ran.stdout}\n{outcome.failure}"
    assert max(map(len, outcome.reproduce.splitlines())) <= 100


@pytest.mark.parametrize("name", ["scale-is-alpha", "merge-without-scale"])
def test_others_are_told_through_this_package(name, tmp_path):
    mutant = next(m for m in all_mutants() if m.name == name)
    outcome = failure(mutant.spec, mutant.kills[0])
    ran = run(f"import sys; sys.path[:0] = {sys.path!r}\n" + outcome.reproduce, tmp_path, alone=False)
    assert ran.returncode == 0, outcome.reproduce + ran.stderr
    assert outcome.failure["got"] in printed(ran.stdout), f"{outcome.reproduce}\n{ran.stdout}"


@pytest.mark.parametrize("name", list(DTYPES))
@pytest.mark.parametrize("view", ["plain", "transposed", "strided", "broadcast", "reversed", "whole", "empty"])
def test_literals_are_the_tensors(name, view):
    """The tensors that the script writes have the same bits and the same strides."""
    x = np.array([[1.1, -2, 3e-5], [0, np.inf, np.nan]]).astype(DTYPES[name])
    x = {"plain": x, "transposed": x.T, "strided": x[:, ::2], "broadcast": np.broadcast_to(x[:1], (3, 3)),
         "reversed": x[::-1], "whole": np.trunc(x[:, :2]), "empty": x[:0]}[view]
    made, want = eval(tensor(x, *dtype_of(x))), to_tensor(x)
    assert made.dtype == want.dtype and made.shape == want.shape
    assert made.stride() == want.stride() or view == "empty"
    assert made.nan_to_num().tolist() == want.nan_to_num().tolist()
    layer = nn.Linear(1, 1)
    layer.weight = nn.Parameter(torch.ones(want.shape, dtype=want.dtype))
    with torch.no_grad():
        exec(assigned("layer.weight", x).strip(), {"layer": layer, "torch": torch})
    assert layer.weight.nan_to_num().tolist() == want.nan_to_num().tolist()


def test_options_that_are_usual_are_left_out():
    def build(size, r=8, bias=True, dropout=0.0, dtype=None, **more): ...

    said = written("build", build, 3, r=8, bias=True, dropout=0.0, dtype=torch.float32, device=torch.device("cpu"))
    assert said == "build(3)"
    said = written("build", build, 3, r=2, dropout=float("nan"), dtype=torch.float16, device="cuda")
    assert said == "build(3, r=2, dropout=float('nan'), dtype=torch.float16, device='cuda')"


def test_long_lines_are_broken_where_it_changes_nothing():
    line = f"layer.copy_(torch.tensor({nested(np.arange(60.0))}))"
    assert max(map(len, wrapped(line).splitlines())) <= 100
    unbreakable = f"x = {'a' * 120!r}\nprint('{'b ' * 80}')"
    assert wrapped(unbreakable) == unbreakable


def test_what_was_not_offered_is_left_out_and_what_was_refused_is_caught():
    traced = Traced(load("lora_ref"))
    config = LayerConfig(2, 3, 1, 2.0)
    layer = traced.build(config, np.zeros((3, 2), np.float32), np.zeros(3, np.float32))
    with pytest.raises(SubjectError):
        layer.forward(np.ones((1, 5), np.float32))
    layer.forward(np.ones((1, 2), np.float32))
    script = traced.script("lora_ref")
    assert script is not None and "except Exception as error" in script and script.count("forward") == 2
