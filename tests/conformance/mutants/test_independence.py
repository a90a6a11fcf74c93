"""The mutants and the honest models share no code with the reference that judges them. The honest models agree with it."""

import ast
from pathlib import Path

import numpy as np
import pytest

from conformance import mutants
from conformance.model import Model
from conformance.mutants import honest_subjects
from conformance.mutants.tape import FUNCTIONS, Node, Tape
from conformance.requirements import Requirement, all_requirements
from conformance.run import case_bank

FILES = sorted(Path(mutants.__file__).parent.glob("*.py"))
OF_MODELS = [r for r in all_requirements() if r.id.split("-")[0] in ("MODEL", "ADAPT", "PREFIX", "PTUNE")]
MODELS = [subject for subject in honest_subjects() if issubclass(subject.layer, Model)]
FORBIDDEN = ("lora_ref", "lora_torch", "conformance.subjects", "conformance.truth", "conformance.files", "torch")
MODULES = ("torch", "torch_use", "torch_states", "honest_torch", "modules")  # files whose layers are torch modules


def imported(path: Path) -> set[str]:
    """Every module that a file names in an import, wherever that stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_file_of_the_mutants_imports_an_oracle(path: Path) -> None:
    forbidden = [root for root in FORBIDDEN if root != "torch" or path.stem not in MODULES]
    parts = [name for name in imported(path) for root in forbidden if name == root or name.startswith(f"{root}.")]
    assert not parts


@pytest.mark.parametrize("requirement", OF_MODELS, ids=lambda r: r.id)
def test_the_honest_models_agree_with_the_reference(requirement: Requirement) -> None:
    """Every honest model agrees in every method of Model, and refuses nothing."""
    cases = case_bank.first(requirement, ("float32", "float64"), 3, seed=1)
    assert cases
    for subject in MODELS:
        assert case_bank.judge(requirement, subject, cases) == ("pass", len(cases)), subject.name


@pytest.mark.parametrize("name", FUNCTIONS)
def test_slopes_are_those_of_the_functions(name: str) -> None:
    x = np.linspace(-3, 3, 50)  # no kink of relu among them
    step = 1e-6
    difference = (FUNCTIONS[name](x + step)[0] - FUNCTIONS[name](x - step)[0]) / (2 * step)
    roundings = 8 * np.finfo(float).eps * (1 + np.abs(FUNCTIONS[name](x)[0])) / step
    assert (np.abs(FUNCTIONS[name](x)[1] - difference) <= roundings + 4 * step**2).all()


def test_a_detached_node_gets_no_gradient_and_others_the_sum_of_theirs() -> None:
    tape, a = Tape(), Node(np.array([1.0, 2.0]), wanted=True)
    tape.begin()
    tape.go_back(tape.plus(tape.times(a, tape.detached(a)), a), np.ones(2))
    assert a.gradient is not None
    assert (a.gradient == a.array + 1).all()
