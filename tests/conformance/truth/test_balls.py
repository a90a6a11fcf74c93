"""Balls hold the exact numbers: compared with rational numbers, and with decimal numbers of 60 digits."""

from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conformance.truth import rational
from conformance.truth.balls import Ball

NUMBERS = st.integers(-(2**20), 2**20).map(lambda number: number / 2**17)  # from −8 to 8
PAIRS = st.lists(NUMBERS, min_size=6, max_size=6)


def inside(ball: Ball, exact: np.ndarray) -> bool:
    low, high = ball.ends()
    return bool(((low <= exact) & (exact <= high)).all())


@given(a=PAIRS, b=PAIRS)
def test_arithmetic(a, b):
    x, y = np.array(a).reshape(2, 3), np.array(b).reshape(3, 2)
    X, Y, u, v = Ball(x), Ball(y), rational.exact(x), rational.exact(y)
    third = Ball(np.ones((2, 2))) / Ball(np.full((2, 2), 3.0))
    product = (X @ Y) * third - 2 * third
    assert inside(product, rational.product(u, v) * Fraction(1, 3) - Fraction(2, 3))
    assert inside(-X.T + Y, v - u.T)
    both: Any = np.concatenate  # of Balls it makes one
    assert inside(both([X, Y.T], 0).sum(0)[1:], np.concatenate([u, v.T], 0).sum(0)[1:])
    assert inside(X.reshape(3, 2).swapaxes(0, 1) * third.sum(0, keepdims=True)[:, :1], u.reshape(3, 2).T * Fraction(2, 3))


@given(number=NUMBERS)
def test_functions(number):
    with localcontext(prec=60):
        third = Decimal(number) / 3
        root, power = (third * third + 1).sqrt(), third.exp()
        exact = [root, power, (power - 1 / power) / (power + 1 / power)]
    ball = Ball(number) / Ball(3.0)
    for found, want in zip((np.sqrt(ball * ball + 1), np.exp(ball), np.tanh(ball)), exact, strict=True):
        assert inside(found, np.array(Fraction(want), object))


def test_a_ball_that_is_too_small_is_told():
    assert not inside(Ball(np.array([1.0]), 1e-12), np.array([1 + Fraction(1, 10**11)], object))


@pytest.mark.parametrize(("action", "error"), [
    (lambda a: 1 / a, ZeroDivisionError), (np.sqrt, ValueError), (np.sin, NotImplementedError), (np.stack, NotImplementedError),
])
def test_what_has_no_bound_is_refused(action, error):
    ball = Ball(np.array([0.0]), 1.0)
    with pytest.raises(error):
        action([ball] if action is np.stack else ball)
