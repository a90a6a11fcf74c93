"""Experiments run in the process of the subject, by every way that leads there, and their scripts run with torch alone."""

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis.errors import UnsatisfiedAssumption
from torch import nn

from conformance import LayerConfig, load
from conformance.drivers.hosted import HostedSubject
from conformance.drivers.process import ProcessSubject
from conformance.mutants import all_mutants
from conformance.record.trace import Traced
from conformance.requirements import all_requirements
from conformance.requirements.torch import Facts
from conformance.run import case_bank, examine
from conformance.run.examine import ALL_KINDS
from conformance.run.sweep import Sweeper
from conformance.subject import Unsupported
from conformance.torch import TorchLayer
from conformance.torch_experiments import EXPERIMENTS
from conformance.truth.compare import Mismatch
from conformance.truth.space import BY_NAME, PLAIN

MODULES = Path(__file__).parent / "modules.py"
REQUIREMENTS = {r.id: r for r in all_requirements() if r.group == "TORCH"}
CONFIG = LayerConfig(3, 2, 1, 2.0)
W, B = np.arange(6, dtype=np.float32).reshape(2, 3), np.array([1, 2], np.float32)
SERVE = "from conformance.run.loading import load; from conformance.drivers.protocol import serve; serve(load({!r}))"


class Asked(Traced):
    """A subject that notes which experiments it is asked for."""

    def _ask(self, label, action, args, answer=None):
        if label.endswith(".as_module"):
            asked.add(args[0])
        return super()._ask(label, action, args, answer)


asked: set[str] = set()


def checked(requirement, made) -> Traced | None:
    """The subject of `made`, after the requirement was checked on the first case that could tell. None if it is not offered."""
    for case in case_bank.first(requirement, ("float32",), 60):
        subject = made()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # hypothesis.assume is called outside of a property
                requirement.check(subject, case.copy())
        except UnsatisfiedAssumption:
            continue
        except Unsupported:
            return None
        return subject
    raise AssertionError(f"no case could tell: {requirement.id}")


def test_every_experiment_is_asked_for():
    subject = load("lora_torch")
    for requirement in REQUIREMENTS.values():
        assert checked(requirement, lambda: Asked(subject)) is not None
    for level in BY_NAME["handled"].levels:
        assert not Sweeper(Asked(subject), ALL_KINDS, 0).one(PLAIN | {"handled": level}, 0).failures
    assert asked == {function.__name__ for function in EXPERIMENTS}


@pytest.mark.parametrize("way", ["in this process", "hosted", "by the protocol"])
def test_facts_are_the_same_in_every_way(way):
    spec = f"{MODULES}:Wrapper"
    subject = {"in this process": lambda: load(spec), "hosted": lambda: HostedSubject(spec, 60),
               "by the protocol": lambda: ProcessSubject([sys.executable, "-c", SERVE.format(spec)], 60)}[way]()
    layer = subject.build(CONFIG, W, B)
    layer.set_adapter({"A": np.ones((3, 1), np.float32), "B": np.ones((1, 2), np.float32)})
    x = np.eye(3, dtype=np.float32)
    facts = layer.as_module("hold", {"x": x})
    np.testing.assert_array_equal(facts["y"], W.T + B + 2)
    assert (list(facts["keys"]), list(facts["trains"])) == (["A", "B", "linear.bias", "linear.weight"], ["A", "B"])
    held = layer.as_module("held", {})
    assert held["A is the same"] is held["B is the same"] is True
    with pytest.raises(Exception, match="dyed"):
        layer.as_module("dyed", {})


def test_a_program_of_others_is_not_asked():
    subject = ProcessSubject([sys.executable, "-c", SERVE.format("article")], 60)
    subject._program.strided = False  # pyright: ignore[reportAttributeAccessIssue] it says that it is none of ours
    with pytest.raises(Unsupported, match="own server"):
        subject.build(CONFIG, W, B).as_module("modes", {})


class Halved(nn.Module):
    """Its output is half of what is wanted."""

    def __init__(self):
        super().__init__()
        self.W, self.A, self.B = (nn.Parameter(torch.ones(shape)) for shape in ((2, 3), (3, 1), (1, 2)))

    def forward(self, x):
        return (x @ self.W.T + x @ self.A @ self.B) / 2


class Twice(TorchLayer):
    def forward(self, x):
        return 2 * super().forward(x)


class TwiceThrough(TorchLayer):
    def through(self, module, x):
        return 2 * module(x)


def test_a_forward_pass_of_its_own_needs_through():
    x = np.ones((1, 3), np.float32)
    with pytest.raises(Unsupported, match=r"forward\(\) of its own, and no through"):
        Twice(Halved(), W="W", b=None, A="A", B="B").as_module("in_modes", {"x": x})
    layer = TwiceThrough(Halved(), W="W", b=None, A="A", B="B")
    facts = layer.as_module("in_modes", {"x": x})
    assert facts["y in no_grad"].tolist() == layer.forward(x).tolist() == [[6, 6]]
    with pytest.raises(Unsupported, match="hooks"):
        layer.as_module("hooked", {"x": x, "dy": x[:, :2]})


def test_facts_of_another_kind_are_mismatches():
    facts = Facts("copied", {"y": True, "keys": 3})
    for ask in (lambda: facts["x"], lambda: facts.equal("y", 1.0), lambda: facts.names("keys"), lambda: facts.true("keys")):
        with pytest.raises(Mismatch):
            ask()


ALONE = """
import sys, torch
for text in {scripts!r}:
    try:
        exec(text, {{"__name__": "__main__"}})
    except SystemExit:
        raise
    except Exception as error:
        sys.exit(f"{{text}}\\n{{type(error).__name__}}: {{error}}")
assert not {{"conformance", "lora_ref"}} & set(sys.modules)
"""


def test_the_scripts_of_all_experiments_run_alone(tmp_path):
    scripts, spec = {}, f"{MODULES}:Plain"
    for id, requirement in REQUIREMENTS.items():
        traced = checked(requirement, lambda: Traced(load(spec)))
        if traced is None:
            continue
        script = traced.script(spec)
        assert script is not None or traced.elements > 400, id
        scripts[id] = script or ""
        assert "LayerConfig" not in scripts[id], id  # as in a script that needs this package
    assert sum(map(bool, scripts.values())) > 20
    (tmp_path / "alone.py").write_text(ALONE.format(scripts=[*scripts.values()]))
    ran = subprocess.run([sys.executable, "-I", "alone.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert "y of the changed copy" in ran.stdout and "A is the same" in ran.stdout


@pytest.mark.parametrize("name", ["x-is-scratch", "train-returns-nothing", "second-reference", "call-is-forward"])
def test_a_mutant_is_named_as_the_likely_cause(name):
    known = {m.name: m for m in all_mutants()}
    mutant = known[name]
    outcome = examine.examine(REQUIREMENTS[mutant.kills[0]], mutant, mutant.spec, dtypes=("float32",), examples=24, seed=0)
    assert outcome.status == "fail", outcome.message
    assert mutant.words.rstrip(".") in (outcome.diagnosis or ""), outcome.diagnosis


def test_what_a_layer_keeps_is_its_own():
    """Two layers of one subject do not see what the other one holds."""
    subject = load("article")
    first, second = (subject.build(CONFIG, W, B) for _ in range(2))
    for layer in (first, second):
        layer.as_module("hold", {"x": np.ones((1, 3), np.float32)})
    assert first.as_module("held", {})["A is the same"] is True
    assert second.as_module("held", {})["A is the same"] is True


def test_gradients_are_cleared_before_an_experiment():
    layer = load("article").build(CONFIG, W, B)
    x, dy = np.ones((1, 3), np.float32), np.ones((1, 2), np.float32)
    first = layer.as_module("retained", {"x": x, "dy": dy})
    again = layer.as_module("retained", {"x": x, "dy": dy})
    for name in ("d A", "d B", "d x"):
        np.testing.assert_array_equal(first[name], again[name])
