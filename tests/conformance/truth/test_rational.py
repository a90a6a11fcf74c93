"""Rational numbers: roundings to a format are the next numbers, slopes are derivatives, and the scale is where it is said."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conformance.truth import rational
from conformance.truth.case import DTYPES
from conformance.truth.compare import Mismatch, accepted, expect_between

NUMBERS = st.fractions(min_value=-60000, max_value=60000)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=list(DTYPES))
@given(number=NUMBERS)
def test_below_and_above_are_the_nearest_numbers_of_the_format(dtype, number):
    low, high = rational.below(number, dtype), rational.above(number, dtype)
    assert Fraction(low) <= number <= Fraction(high)
    for end in low, high:
        assert float(np.array(end).astype(dtype)) == end
    if low != number:
        assert float(np.nextafter(np.array(low).astype(dtype), np.array(np.inf).astype(dtype))) == high
    else:
        assert low == high


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=list(DTYPES))
def test_numbers_beyond_the_range_are_refused(dtype):
    with pytest.raises(OverflowError):
        rational.above(Fraction(10) ** 400 if dtype == np.float64 else Fraction(10) ** 39, dtype)


@given(alpha=st.integers(-40, 40), rank=st.integers(1, 300))
def test_the_scale_lies_between_its_ends(alpha, rank):
    low, high = rational.scales(alpha, rank, "rslora")
    assert min(low**2, high**2) <= Fraction(alpha**2, rank) <= max(low**2, high**2)
    assert high - low <= Fraction(abs(alpha), 10**30)
    assert rational.scales(alpha, rank, "standard") == (Fraction(alpha, rank),) * 2


def test_slopes_are_those_of_a_product_and_a_bend_is_refused():
    A, x = (rational.exact(np.array(numbers, np.float32)) for numbers in ([[1.0, 2.0], [3.0, -4.0]], [[0.5, 2.0]]))
    dx, dA = rational.slopes(lambda x, A: rational.product(x, A), [x, A], rational.exact(np.array([[1.0, 10.0]])))
    assert dx.tolist() == [[21, -37]] and dA.tolist() == [[Fraction(1, 2), 5], [2, 20]]
    with pytest.raises(ArithmeticError, match="on the left"):
        rational.slopes(lambda a: np.maximum(a, 0), [rational.exact(np.zeros(1))], np.array([1], object))


def test_what_is_not_finite_is_no_rational_number():
    with pytest.raises(ValueError, match="not finite"):
        rational.exact(np.array([np.nan]))


@given(numbers=st.lists(NUMBERS, min_size=1, max_size=4), margin=st.floats(0, 8))
def test_an_interval_holds_what_is_within_the_bound_and_nothing_else(numbers, margin):
    exact, dtype = np.array([Fraction(number) for number in numbers], object), np.dtype(np.float32)
    low, high = accepted(exact, exact, margin, dtype)
    for number, first, last in zip(numbers, low, high, strict=True):
        if first <= last:
            assert Fraction(float(first)) >= number - Fraction(margin) and Fraction(float(last)) <= number + Fraction(margin)
        assert Fraction(float(np.nextafter(first, np.float32(-np.inf)))) < number - Fraction(margin)
        assert Fraction(float(np.nextafter(last, np.float32(np.inf)))) > number + Fraction(margin)


def test_between_takes_both_ends_and_asks_for_what_is_not_finite():
    low, high = np.array([1.0, np.nan], np.float32), np.array([1.5, np.nan], np.float32)
    assert expect_between(np.array([1.0, np.inf]), low, high, "y") == 1
    assert expect_between(np.array([1.25, np.nan]), low, high, "y") == 0
    for wrong in ([1.6, np.nan], [np.nan, np.nan], [1.2, 3.0], [1e300, np.nan]):
        with pytest.raises(Mismatch):
            expect_between(np.array(wrong), low, high, "y")
    with pytest.raises(Mismatch, match="shape"):
        expect_between(np.array([1.2]), low, high, "y")
