"""Executes derivations/lora.md: each numbered equation must hold exactly, between values that were computed in other ways.

The equations are read from the page and turned into Python by `equations.py`. The arrays are small integers. Every name
in an equation, on either side, is bound to a value from `values`, which uses loops and the complex step alone.
"""

import itertools
import re
from typing import Any

import numpy as np
import pytest
from pages.equations import (
    Equation,
    check_numbers,
    equations,
    name_of,
    product,
    python_of,
    sides,
    stated_shape,
    sums,
)

from lora_ref.error.gradcheck import complex_step

EQUATIONS = equations("lora")
SIZES = {"n": 3, "in": 4, "rank": 2, "out": 5}
LOOPS = {"n": SIZES["n"], "i": SIZES["in"], "r": SIZES["rank"], "o": SIZES["out"]}


def output(x: Any, W: Any, b: Any, h: Any, B: Any) -> np.ndarray:
    """The frozen layer plus h B, element by element."""
    y = product(h, B)
    for n, o in np.ndindex(y.shape):
        y[n, o] += b[o] + sum(x[n, i] * W[o, i] for i in range(x.shape[1]))
    return y


def values(condition: str) -> dict[str, Any]:
    rng = np.random.default_rng(7)
    n, n_in, rank, out = SIZES.values()
    x, W, b, A, B, dy = (
        rng.choice([-3, -2, -1, 1, 2, 3], size).astype(float)
        for size in ((n, n_in), (out, n_in), (out,), (n_in, rank), (rank, out), (n, out))
    )
    mask = np.array([[0, 2, 2, 0], [2, 2, 0, 2], [2, 0, 2, 2]], float)  # rate ½
    s, lr = 3.0, 2.0
    assert condition in ("", "A = 0", "B = 0", "mask = 1")
    A, B = (0 * A if condition == "A = 0" else A), (0 * B if condition == "B = 0" else B)
    mask = np.ones_like(mask) if condition == "mask = 1" else mask

    def y_of(x: Any, A: Any, B: Any, mask: Any = mask) -> np.ndarray:
        return output(x, W, b, s * product(x * mask, A), B)

    z, u = x * mask, product(x * mask, A)
    dx, dA, dB = complex_step(y_of, (x, A, B), dy)
    unit = np.eye(n_in)
    W2 = output(unit, W, 0 * b, s * product(unit, A), B).T  # its columns are the images of the unit vectors
    masks = [y_of(x, A, B, 2 * np.array(m, float)) for m in itertools.product((0, 1), repeat=n_in)]
    return {
        "x": x, "W": W, "b": b, "A": A, "B": B, "mask": mask, "scale": s, "lr": lr, "dy": dy,
        "z": z, "h": s * u, "y": y_of(x, A, B), "dx": dx, "dA": dA, "dB": dB, "W2": W2,
        "mean_y": sum(masks) / len(masks),
        "dh": complex_step(lambda h: output(x, W, b, h, B), (s * u,), dy)[0],
        "du": complex_step(lambda u: output(x, W, b, s * u, B), (u,), dy)[0],
        "dz": complex_step(lambda z: output(x, W, b, s * product(z, A), B), (z,), dy)[0],
        "G": complex_step(lambda V: product(z, V.T), (np.ones_like(W),), dy)[0],
        "change": s * product(A - lr * dA, B - lr * dB).T - s * product(A, B).T,
        "n": n, "n_in": n_in, "out": out, "rank": rank, "count": A.size + B.size, **sums(LOOPS),
    }  # fmt: skip


def holds(left: str, right: str, condition: str) -> bool:
    return np.array_equal(*sides(python_of(left), python_of(right), values(condition)))


@pytest.mark.parametrize("equation", EQUATIONS, ids=name_of)
def test_the_equation_holds(equation: Equation) -> None:
    assert holds(equation.left, equation.right, equation.condition)


@pytest.mark.parametrize("equation", EQUATIONS, ids=name_of)
def test_the_equation_has_the_stated_shape(equation: Equation) -> None:
    names = values(equation.condition)
    left, _ = sides(python_of(equation.left), "0", names)
    assert np.shape(left) == stated_shape(equation, names)


@pytest.mark.parametrize("equation", EQUATIONS, ids=name_of)
def test_a_mistake_in_the_equation_is_seen(equation: Equation) -> None:
    left, right, condition = equation.left, equation.right, equation.condition
    mistakes = [f"{right} + 1"] if "0 ·" in right else [f"−({right})"]
    slips = ("ᵀ", ""), (" + ", " − "), ("scale · ", ""), (" ∘ mask", ""), (" · mask[n,i]", ""), ("0 · ", "")
    for what, instead in slips:
        mistakes += [right[: m.start()] + instead + right[m.end() :] for m in re.finditer(re.escape(what), right)]
    for mistake in mistakes:
        try:
            assert not holds(left, mistake, condition), f"{left} = {mistake} holds too"
        except ValueError as error:  # NumPy refuses the shapes, which is as good
            assert "matmul" in str(error) or "broadcast" in str(error)


def test_the_equations_are_numbered_from_1_and_every_reference_has_its_equation() -> None:
    check_numbers("lora")
