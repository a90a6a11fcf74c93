"""The comparisons of compare.py accept right answers, and reject answers with the smallest error that counts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conformance.truth.compare import (
    Mismatch,
    expect,
    expect_equal,
    expect_few_in_common,
    expect_fraction,
    expect_same_spread,
    expect_within,
    expect_zero_mean,
)

floats = st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(floats, min_size=1, max_size=5), st.data())
def test_same_sees_one_bit(values, data):
    want = np.array(values)
    assert expect_equal(want.copy(), want, "y") == 0
    got, i = want.copy(), data.draw(st.integers(0, len(values) - 1))
    got[i] = np.nextafter(got[i], np.inf if got[i] <= 0 else 0)
    with pytest.raises(Mismatch):
        expect_equal(got, want, "y")


def test_same_across_dtypes_and_specials():
    expect_equal(np.array([1.5, np.nan, -0.0, np.inf], np.float16), np.array([1.5, np.nan, 0.0, np.inf]), "y")
    for got, want in (([np.nan], [1.0]), ([1.0], [np.nan]), ([np.inf], [-np.inf])):
        with pytest.raises(Mismatch):
            expect_equal(np.array(got), np.array(want), "y")


def test_shapes_never_broadcast():
    for judge in (lambda g, w: expect_equal(g, w, "y"), lambda g, w: expect_within(g, w, 1.0, "y")):
        with pytest.raises(Mismatch, match=r"shape of y: got \(1, 2\), want \(2, 2\)"):
            judge(np.ones((1, 2)), np.ones((2, 2)))


@given(floats.filter(lambda v: 1e-300 < abs(v) < 1e300))
def test_within_is_sharp(bound):
    bound = abs(bound)
    assert expect_within(np.array([bound]), np.zeros(1), np.array([bound]), "y") == 1.0
    with pytest.raises(Mismatch) as caught:
        expect_within(np.array([bound * (1 + 1e-15)]), np.zeros(1), np.array([bound]), "y")
    assert caught.value.ratio is not None and caught.value.ratio > 1


def test_within_refuses_nan_and_finds_the_worst():
    with pytest.raises(Mismatch, match="got nan"):
        expect_within(np.array([0.0, np.nan]), np.zeros(2), np.ones(2), "y")
    with pytest.raises(Mismatch, match=r"y\[2\]: got 9, want 0 \(error 9 / bound 1 = 9\)"):
        expect_within(np.array([0.0, 5.0, 9.0]), np.zeros(3), np.ones(3), "y")
    assert expect_within(np.array([0.0, 0.5]), np.zeros(2), np.array([0.0, 1.0]), "y") == 0.5


def test_holds():
    expect(True, "a fact", 1, 2)
    with pytest.raises(Mismatch, match="a fact: got 1, want 2"):
        expect(False, "a fact", 1, 2)


@given(st.integers(0, 2**32 - 1))
def test_statistics_accept_honest_draws(seed):
    rng = np.random.default_rng(seed)
    normal, uniform = rng.standard_normal(4096), rng.uniform(-1, 1, 4096)
    expect_zero_mean(normal, "mean")
    expect_zero_mean(uniform, "mean")
    expect_same_spread(normal, 1.0 * rng.standard_normal(2048), "spread")
    expect_fraction(int((rng.random(4096) < 0.25).sum()), 4096, 0.25, "fraction")


def test_few_rows_in_common():
    """Fresh tosses pass; the same rows in another order, or only two of them, do not."""
    rng = np.random.default_rng(0)
    first, second = (rng.random((64, 32)) < 0.5 for _ in range(2))
    expect_few_in_common(first, second, "rows")
    second[5] = first[9]
    expect_few_in_common(first, second, "rows")  # one may be chance
    second[6] = first[11]
    for again in (second, np.roll(first, 1, 0)):
        with pytest.raises(Mismatch, match="at most 1 of 64"):
            expect_few_in_common(first, again, "rows")


@given(st.integers(0, 2**32 - 1))
def test_statistics_refuse_faults(seed):
    rng = np.random.default_rng(seed)
    with pytest.raises(Mismatch):
        expect_zero_mean(rng.uniform(0, 1, 4096), "mean")
    with pytest.raises(Mismatch):
        expect_same_spread(rng.standard_normal(4096), 1.5 * rng.standard_normal(4096), "spread")
    with pytest.raises(Mismatch):
        expect_fraction(int((rng.random(4096) < 0.75).sum()), 4096, 0.25, "fraction")
