"""Reads the numbered equations of derivations/*.md and turns them into Python, for the tests of these pages."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import lora_ref

SUBSCRIPTS = dict(zip("ₐₑₕᵢⱼₖₗₘₙₒₚᵣₛₜᵤᵥₓ", "aehijklmnoprstuvx", strict=True))
SYMBOLS = {"ᵀ": ".T", "·": "*", "∘": "*", "−": "-", "²": "**2", "³": "**3", "∑(": "total(", "√(": "sqrt("}


class Equation(NamedTuple):
    """(8)  dB = hᵀ dy    when B = 0    (rank, out). What is not there is empty."""

    page: str
    section: str  # its title, without the number
    number: int
    left: str
    right: str
    condition: str
    shape: str


def text(page: str) -> str:
    return (Path(lora_ref.__file__).parent / "derivations" / f"{page}.md").read_text(encoding="utf-8")


def equations(page: str) -> list[Equation]:
    """The equations of the page: every line of every block. A line that is not an equation fails."""
    found = []
    for section in re.split(r"^## ", text(page), flags=re.M)[1:]:
        title = re.sub(r"^\d+\. ", "", section.splitlines()[0])
        for line in "".join(re.findall(r"^```\n(.*?)^```", section, re.M | re.S)).splitlines():
            match = re.fullmatch(r"\((\d+)\)  (.+?) = (.+?)(?: {3,}when (.+?))?(?: {3,}(\(.+\)))?", line)
            assert match, f"not an equation: {line!r}"
            number, *parts = match.groups(default="")
            found.append(Equation(page, title, int(number), *parts))
    return found


def name_of(equation: Equation) -> str:
    return f"{equation.page}-{equation.number}"


def check_numbers(page: str) -> None:
    """Fails unless equations are numbered from 1, all are in the blocks that are read, and every reference has an equation."""
    numbers = [equation.number for equation in equations(page)]
    assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) > 30
    assert len(re.findall(r"^ *\(\d+\)  ", text(page), re.M)) == len(numbers)
    assert {int(n) for n in re.findall(r"(?<!\w)\((\d+)\)", text(page))} == set(numbers)


def python_of(formula: str) -> str:
    formula = re.sub(r"(?<=[\w)]) (?=[\w(])", " @ ", formula)  # ᵀ is a \w, ] is not
    for ours, index in SUBSCRIPTS.items():
        formula = formula.replace(f"Σ{ours}(", f"loop('{index}', lambda {index}: ")
    for ours, pythons in SYMBOLS.items():
        formula = formula.replace(ours, pythons)
    return re.sub(r"\bin\b", "n_in", formula)


def sums(lengths: Mapping[str, int]) -> dict[str, Any]:
    """What Σ and ∑ become; `lengths` says for each index how far it runs."""
    return {"total": np.sum, "loop": lambda index, term: sum(term(k) for k in range(lengths[index]))}


def sides(left: str, right: str, names: Mapping[str, Any]) -> tuple[Any, Any]:
    """The values of both sides, in Python; T[i,j] on the left is all of T, and the right side is taken at every i and j."""
    indexed = re.fullmatch(r"(\w+)\[([a-z](?:,[a-z])*)\]", left)
    code = compile(right, right, "eval")
    if not indexed:
        return eval(left, {**names}), eval(code, {**names})
    array, indices = names[indexed[1]], indexed[2].split(",")
    values = np.empty(np.shape(array))
    for at in np.ndindex(values.shape):
        values[at] = eval(code, {**names, **dict(zip(indices, at, strict=True))})
    return array, values


def stated_shape(equation: Equation, names: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(eval(f"[{python_of(equation.shape[1:-1])}]", {**names}))


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The matrix product by its definition, in the dtype of the elements."""
    rows = [[sum(a[i, k] * b[k, j] for k in range(len(b))) for j in range(b.shape[1])] for i in range(len(a))]
    return np.array(rows)
