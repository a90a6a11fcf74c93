"""Numbers with a proven bound: a midpoint in longdouble, and a radius within which the exact number lies.

    (m, r) stands for all real numbers from m − r to m + r. A result holds every result of numbers that its operands hold.

A NumPy program runs on Balls as it does on arrays, with the operations below. Each adds the rounding of its own midpoint: 4
units of longdouble, which is more than its exp errs, and k + 4 units for a sum of k terms. Radii are rounded up by a factor of
1 + 2⁻⁴⁰. Source: Rump, "Verification methods: Rigorous results using floating-point arithmetic", Acta Numerica 19, 2010, §9.
"""

from fractions import Fraction
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

U = np.finfo(np.longdouble).eps / 2
UP = 1 + 2.0**-40
UNITS = 4


class Ball(NDArrayOperatorsMixin):
    """An array of midpoints and one of radii."""

    def __init__(self, middle: Any, radius: Any = 0.0):
        self.middle = np.asarray(middle, np.longdouble)
        self.radius = np.broadcast_to(np.asarray(radius, np.longdouble), self.middle.shape)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> "Ball":
        if method != "__call__" or kwargs or ufunc not in RULES:
            raise NotImplementedError(f"balls: {ufunc.__name__} {method}")
        balls = [one if isinstance(one, Ball) else Ball(one) for one in inputs]
        with np.errstate(divide="ignore", invalid="ignore"):  # the rule refuses what this is about
            middle = ufunc(*(ball.middle for ball in balls))
        return Ball(middle, (RULES[ufunc](*balls) + UNITS * U * np.abs(middle)) * UP)

    def __array_function__(self, function: Any, types: Any, args: tuple, kwargs: dict) -> "Ball":
        if function is not np.concatenate:
            raise NotImplementedError(f"balls: {function.__name__}")
        parts, more = [one if isinstance(one, Ball) else Ball(one) for one in args[0]], args[1:]
        return Ball(*(np.concatenate(side, *more, **kwargs) for side in ([p.middle for p in parts], [p.radius for p in parts])))

    def __getitem__(self, index: Any) -> "Ball":
        return Ball(self.middle[index], self.radius[index])

    def reshape(self, *shape: int) -> "Ball":
        return Ball(self.middle.reshape(*shape), self.radius.reshape(*shape))

    def swapaxes(self, first: int, second: int) -> "Ball":
        return Ball(self.middle.swapaxes(first, second), self.radius.swapaxes(first, second))

    def sum(self, axis: int, keepdims: bool = False) -> "Ball":
        middle, terms = self.middle.sum(axis, keepdims=keepdims), np.abs(self.middle).sum(axis, keepdims=keepdims)
        return Ball(middle, (self.radius.sum(axis, keepdims=keepdims) + (self.middle.shape[axis] + UNITS) * U * terms) * UP)

    def max(self, axis: int, keepdims: bool = False) -> np.ndarray:
        """The largest midpoints, as plain numbers: a softmax may be shifted by any number."""
        return self.middle.max(axis, keepdims=keepdims)

    def ends(self) -> tuple[np.ndarray, np.ndarray]:
        """The smallest and the largest numbers of the intervals, as rational numbers."""
        sides = self.middle.ravel(), self.radius.ravel()
        middle, radius = ([Fraction(*number.as_integer_ratio()) for number in side] for side in sides)
        low = np.array([m - r for m, r in zip(middle, radius, strict=True)], object)
        high = np.array([m + r for m, r in zip(middle, radius, strict=True)], object)
        return low.reshape(self.shape), high.reshape(self.shape)

    @property
    def T(self) -> "Ball":
        return Ball(self.middle.T, self.radius.T)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.middle.shape


def _product(a: Ball, b: Ball) -> np.ndarray:
    return np.abs(a.middle) * b.radius + a.radius * (np.abs(b.middle) + b.radius)


def _quotient(a: Ball, b: Ball) -> np.ndarray:
    away = np.abs(b.middle) - b.radius
    if not (away > 0).all():
        raise ZeroDivisionError("balls: a divisor may be zero")
    return (a.radius + np.abs(a.middle / b.middle) * b.radius) / away


def _matrix_product(a: Ball, b: Ball) -> np.ndarray:
    units = (a.shape[-1] + UNITS) * U
    return np.abs(a.middle) @ (b.radius + units * np.abs(b.middle)) + a.radius @ (np.abs(b.middle) + b.radius)


def _root(a: Ball) -> np.ndarray:
    if not (a.middle > a.radius).all():
        raise ValueError("balls: the root of a number that may be negative")
    return a.radius / (2 * np.sqrt(a.middle - a.radius))


RULES = {
    np.add: lambda a, b: a.radius + b.radius, np.subtract: lambda a, b: a.radius + b.radius, np.negative: lambda a: a.radius,
    np.multiply: _product, np.divide: _quotient, np.matmul: _matrix_product, np.sqrt: _root,
    np.tanh: lambda a: a.radius,  # whose slope is 1 at most
    np.exp: lambda a: np.exp(a.middle) * np.expm1(a.radius),
}
