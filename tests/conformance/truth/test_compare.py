"""The comparisons of compare.py accept right answers, and reject answers with the smallest error that counts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conformance.truth import compare
from conformance.truth.compare import (
    Mismatch,
    expect,
    expect_equal,
    expect_few_in_common,
    expect_fraction,
    expect_fractions,
    expect_kept_factor,
    expect_no_patch_twice,
    expect_same_spread,
    expect_unlike,
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


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.5, 0.9])
def test_entries_that_come_again(rate):
    """Honest draws pass, also at another rate than the one named. Draws that come again, or as their opposites, do not."""
    rng = np.random.default_rng(int(100 * rate))
    draws = rng.random(60_000) >= rate
    assert expect_unlike(draws, 1 - rate, "entries") < 1
    assert expect_unlike(draws, 0.5, "entries") < 1
    for distance in (203, 4096, 30_000, 50_001):
        with pytest.raises(Mismatch, match=r"correlation of entries that are \d+ entries apart"):
            expect_unlike(np.resize(draws[:distance], draws.shape), 1 - rate, "entries")
    with pytest.raises(Mismatch, match="30000 entries apart"):
        expect_unlike(np.concatenate([draws[:30_000], ~draws[:30_000]]), 0.5, "entries")


def test_patches_that_come_again():
    """One patch of 8 by 8 entries is enough, in one table or in another, where it begins at multiples of 8."""
    rng = np.random.default_rng(0)
    first, second = (rng.random((331, 203)) < 0.5 for _ in range(2))
    expect_no_patch_twice([first, second], "of masks")
    for table, to in ((first, first), (first, second), (second, first)):
        copy = to.copy()
        copy[8:16, 192:200] = table[40:48, 16:24]
        with pytest.raises(Mismatch, match="1 of 2050"):
            expect_no_patch_twice([first, copy] if to is second else [copy, second], "of masks")
    with pytest.raises(Mismatch):
        expect_no_patch_twice([first, first], "of masks")
    many = rng.random((2000, 1000)) < 0.5  # so many that one coincidence may be chance
    many[:8, :8] = many[-8:, -8:]
    expect_no_patch_twice([many], "of masks")


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.3, 0.9])
def test_fractions_of_rows_columns_and_tiles(rate):
    rng = np.random.default_rng(int(100 * rate))
    draws = rng.random((2, 331, 203)) >= rate
    assert 0 < expect_fractions(draws, 1 - rate, "kept entries") < 1
    for kept in (True, False):
        for rows, columns in ((slice(None), slice(200, None)), (slice(328, None), slice(None)), (slice(64, 128), slice(32))):
            wrong = draws.copy()
            wrong[:, rows, columns] = kept
            with pytest.raises(Mismatch, match=r"fraction of kept entries in rows \d+ to \d+, columns \d+ to \d+: got"):
                expect_fractions(wrong, 1 - rate, "kept entries")
    with pytest.raises(Mismatch):
        expect_fractions(rng.random((2, 331, 203)) >= rate + 0.02, 1 - rate, "kept entries")


def test_factor_of_kept_entries():
    """Each dtype may round at every step. A factor that was rounded to a narrower dtype is wrong."""
    for dtype, narrower in ((np.float64, np.float32), (np.float32, np.float16), (np.float16, None)):
        for rate in (0.1, 0.3, 0.7):
            p = dtype(rate)
            honest = [1 / (1 - rate), dtype(1) / (dtype(1) - p), dtype(1 / (1 - rate))]
            for value in honest:
                assert expect_kept_factor(np.array([0, value]), rate, dtype.__name__, "entries") <= 1
            for wrong in [1.0, 1 / rate, np.nan] + ([] if narrower is None else [float(narrower(1 / (1 - rate)))]):
                with pytest.raises(Mismatch):
                    expect_kept_factor(np.array([0, wrong]), rate, dtype.__name__, "entries")


def test_the_reach_of_noise_is_that_of_its_root_mean_square():
    """A log of a ratio of two root mean squares is a normal draw with the deviation that `noise_reach` takes: what it allows is
    6.8 of those deviations, and 2.6 are exceeded in one of a hundred cases."""
    rng = np.random.default_rng(0)
    first, second = (rng.standard_normal((20_000, count)) for count in (16, 48))
    logs = np.log(np.sqrt((first**2).mean(1) / (second**2).mean(1)))
    allowed = np.log(compare.noise_reach(16, 48))
    assert not (logs > allowed).any()
    assert 0.001 < (np.abs(logs) > allowed * 2.576 / 6.805).mean() < 0.03
    assert compare.noise_reach(4, 4) > compare.noise_reach(4, 16) > compare.noise_reach(16, 16) > 1


def test_the_smallest_noise_is_that_of_float32():
    assert compare.smallest_noise(1.0) == 4 * 2.0**-24
