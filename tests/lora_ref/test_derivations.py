"""derivations/lora.md is executed: each numbered equation must hold exactly, between values found in other ways.

The equations are read from the page and turned into Python by `python_of`. The arrays are small integers. Every name
in an equation, on either side, is bound to a value from `values`, which uses loops and the complex step alone.
"""

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lora_ref
from lora_ref.gradcheck import complex_step

PAGE = (Path(lora_ref.__file__).parent / "derivations" / "lora.md").read_text(encoding="utf-8")
LINES = [line for block in re.findall(r"^```\n(.*?)^```", PAGE, re.M | re.S) for line in block.splitlines()]
SIZES = {"n": 3, "in": 4, "rank": 2, "out": 5}
LOOPS = {"n": SIZES["n"], "i": SIZES["in"], "r": SIZES["rank"], "o": SIZES["out"]}


def parse(line: str) -> tuple[str, str, str, str]:
    """(8)  dB = hᵀ dy    when B = 0    (rank, out)   → left, right, condition, shape; the last two may be empty."""
    match = re.fullmatch(r"\(\d+\)  (.+?) = (.+?)(?: {3,}when (.+?))?(?: {3,}(\(.+\)))?", line)
    assert match, f"not an equation: {line!r}"
    left, right, condition, shape = match.groups(default="")
    return left, right, condition, shape


def python_of(formula: str) -> str:
    formula = re.sub(r"(?<=[\w)]) (?=[\w(])", " @ ", formula)  # ᵀ is a \w, ] is not
    for ours, index in zip("ₙᵢᵣₒ", LOOPS, strict=True):
        formula = formula.replace(f"Σ{ours}(", f"loop('{index}', lambda {index}: ")
    for ours, pythons in ("ᵀ", ".T"), ("·", "*"), ("∘", "*"), ("−", "-"), ("∑(", "total("):
        formula = formula.replace(ours, pythons)
    return re.sub(r"\bin\b", "n_in", formula)


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The matrix product by its definition, in the dtype of the elements."""
    rows = [[sum(a[i, k] * b[k, j] for k in range(len(b))) for j in range(b.shape[1])] for i in range(len(a))]
    return np.array(rows)


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
        "n_in": n_in, "out": out, "rank": rank, "count": A.size + B.size,
        "total": np.sum, "loop": lambda index, term: sum(term(k) for k in range(LOOPS[index])),
    }  # fmt: skip


def holds(left: str, right: str, condition: str) -> bool:
    names = values(condition)
    indexed = re.fullmatch(r"\w+\[([niro]),([niro])\]", left)
    if not indexed:
        return np.array_equal(eval(python_of(left), names), eval(python_of(right), names))
    a, b = indexed.groups()
    return all(
        eval(left, names | {a: i, b: j}) == eval(python_of(right), names | {a: i, b: j})
        for i, j in np.ndindex(LOOPS[a], LOOPS[b])
    )


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.split()[0])
def test_the_equation_holds(line: str) -> None:
    left, right, condition, _ = parse(line)
    assert holds(left, right, condition)


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.split()[0])
def test_the_equation_has_the_stated_shape(line: str) -> None:
    left, _, condition, shape = parse(line)
    got = np.shape(values(condition)[left.split("[")[0]]) if "∑" not in left else ()
    assert got == tuple(SIZES[axis] for axis in re.findall(r"\w+", shape))


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.split()[0])
def test_a_mistake_in_the_equation_is_seen(line: str) -> None:
    left, right, condition, _ = parse(line)
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
    numbers = [int(line[1 : line.index(")")]) for line in LINES]
    assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) > 30
    assert len(re.findall(r"^ *\(\d+\)  ", PAGE, re.M)) == len(numbers)  # none outside the blocks that are read
    assert {int(n) for n in re.findall(r"\((\d+)\)", PAGE)} == set(numbers)
