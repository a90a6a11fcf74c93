"""Dropout in the sweep: the mask is read from the gradient of x, and every other answer must have it."""

from itertools import product

import numpy as np
import pytest

from conformance.requirements.helpers import dropped
from conformance.requirements.helpers.dropped import Pass
from conformance.truth import lattice
from conformance.truth.compare import Mismatch, same_number, wide
from conformance.truth.space import PLAIN


def drawn(dtype: str, rate: float, content: str = "few bits", rows: int = 31, seed: int = 0):
    """A case with dropout, its mask, and the answers of a layer that keeps these entries of x."""
    levels = PLAIN | {"mode": "dropout", "rate": rate, "format": dtype, "content": content, "rows": rows, "rank": 9}
    case = lattice.build(levels, seed)
    mask = (np.random.default_rng(seed).random(case.x.shape) >= rate) / (1 - rate)
    W, A, B, x, dy = (wide(a).astype(np.float64) for a in (case.W, case.A, case.B, case.x, case.dy))
    b, s, kept = wide(case.b).astype(np.float64), case.scale, x * mask
    u = s * dy @ B.T
    y, dx = x @ W.T + b + s * kept @ A @ B, dy @ W + mask * (u @ A.T)
    gradients = {"A": kept.T @ u, "B": s * (kept @ A).T @ dy}
    return case, mask, *(a.astype(case.dtype) for a in (y, dx)), {n: g.astype(case.dtype) for n, g in gradients.items()}


@pytest.mark.parametrize("content", ["few bits", "many bits"])
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_the_mask_is_read_and_right_answers_pass(dtype, rate, content):
    case, mask, y, dx, gradients = drawn(dtype, rate, content)
    read = dropped.read(dx, case.dy, case)
    assert (np.abs(mask - read.middle) <= read.open).all()
    # The numbers of many bits stand alone in their sums, so most entries of dx do not depend on the mask.
    assert content == "many bits" or (read.open == 0).mean() > 0.6
    once = Pass(case.x, case.dy, y, dx)
    dropped.explain([once], gradients, case)
    dropped.of_one_mask([once], gradients, case)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("name", ["y", "dA", "dB"])
def test_one_wrong_row_is_seen(dtype, name):
    case, _, y, dx, gradients = drawn(dtype, 0.5)
    changed = y if name == "y" else gradients[name[1]]
    assert changed[-1].any()
    changed[-1] = 0
    with pytest.raises(Mismatch, match=f"^{name}.* with the mask"):
        dropped.explain([Pass(case.x, case.dy, y, dx)], gradients, case)


def test_no_mask_explains_a_gradient_of_x_without_its_base():
    case, _, _, dx, _ = drawn("float32", 0.5)
    dx[-1] = 0
    with pytest.raises(Mismatch, match="^dx with dropout, row 30"):
        dropped.read(dx, case.dy, case)


def test_gradients_are_sums_over_the_passes():
    first, second = drawn("float64", 0.1, seed=3), drawn("float64", 0.1, seed=3)
    case = first[0]
    passes = [Pass(case.x, case.dy, y, dx) for _, _, y, dx, _ in (first, second)]
    both = {name: first[4][name] + second[4][name] for name in "AB"}
    dropped.explain(passes, both, case)
    dropped.of_one_mask(passes, both, case)
    with pytest.raises(Mismatch, match="^dA with the mask"):
        dropped.explain(passes, first[4], case)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("terms", [(1,), (1, 1), (1, -1), (1, 2, 3), (2, 2, -2, 2), (1,) * 9, (1, -1) * 4])
def test_no_value_of_a_sum_is_likelier_than_the_bound(terms, rate):
    """All masks of the terms are gone through."""
    likely: dict[int, float] = {}
    for kept in product((0, 1), repeat=len(terms)):
        value = sum(term * one for term, one in zip(terms, kept, strict=True))
        likely[value] = likely.get(value, 0.0) + (1 - rate) ** sum(kept) * rate ** (len(kept) - sum(kept))
    most, bound = max(likely.values()), dropped.probability(len(terms), rate)
    assert most <= bound or same_number(most, bound)


def test_more_entries_than_a_float_can_count_are_no_trouble():
    assert dropped.probability(4097, 0.1) <= dropped.probability(100, 0.1) < 1


def test_an_accident_is_no_layer_that_drops_nothing():
    """With one row and one rank a mask may give the y without dropout. So one pass does not tell."""
    case = lattice.build(PLAIN | {"mode": "dropout", "rate": 0.5, "rows": 1, "rank": 1}, 0)
    y = lattice.truth(case).y.astype(case.dtype)
    assert dropped.nothing_seems_dropped(y, case, lattice.truth(case), drops_x=True)
    assert dropped.tries(case, drops_x=True) > 10
