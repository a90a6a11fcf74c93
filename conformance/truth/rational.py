"""LoRA in exact rational numbers, from the definitions alone.

No gradient is derived here. ⟨dy, y⟩ is affine in each entry of x, of A and of B, so that its derivative is the difference of
two of its values. Arrays have dtype object, and hold Fractions or whole numbers.
"""

from collections.abc import Callable
from fractions import Fraction
from math import isqrt

import numpy as np

DIGITS = 40  # of the root of a rank, after the point


def exact(array: np.ndarray) -> np.ndarray:
    """The numbers of the array as they are. Raises ValueError for one that is not finite."""
    if not np.isfinite(array.astype(np.float64)).all():
        raise ValueError("rational.exact: an entry is not finite, expected numbers")
    found = np.empty(array.shape, object)
    for place in np.ndindex(array.shape):
        number = Fraction(float(array[place]))
        found[place] = number.numerator if number.denominator == 1 else number
    return found


def scales(alpha: float, rank: int, scaling: str) -> tuple[Fraction, Fraction]:
    """Two rational numbers between which the scale lies. They are equal if the scale is rational."""
    if scaling == "standard":
        return Fraction(alpha) / rank, Fraction(alpha) / rank
    digits = 10**DIGITS
    below = isqrt(rank * digits**2)  # ⌊√rank · 10^DIGITS⌋
    above = below if below**2 == rank * digits**2 else below + 1
    found = Fraction(alpha) * digits / above, Fraction(alpha) * digits / below
    return min(found), max(found)


def forward(x: np.ndarray, W: np.ndarray, b: np.ndarray | None, A: np.ndarray, B: np.ndarray, scale: Fraction,
            mask: np.ndarray | None = None) -> np.ndarray:
    """x Wᵀ + b + scale · ((x ∘ mask) A) B."""
    dropped = x if mask is None else x * mask
    y = product(x, W.T) + scale * product(product(dropped, A), B)
    return y if b is None else y + b


def product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """left (…, k) times right (k, m). A sum of no terms is 0."""
    if left.size and right.size:
        return left @ right
    return np.full((*left.shape[:-1], right.shape[1]), 0, object)


def merged(W: np.ndarray, A: np.ndarray, B: np.ndarray, scale: Fraction) -> np.ndarray:
    """W + scale · (A B)ᵀ."""
    return W + scale * product(A, B).T


def slopes(f: Callable[..., np.ndarray], arrays: list[np.ndarray], dy: np.ndarray) -> list[np.ndarray]:
    """The derivative of ⟨dy, f(*arrays)⟩ for each entry of the arrays. Raises ArithmeticError where f bends between the entry
    minus and plus 2⁻²⁰: then the differences to both sides are not one derivative."""
    step, found = Fraction(1, 2**20), []
    points = [array.copy() for array in arrays]
    here = inner(dy, f(*points))
    for point in points:
        slope = np.empty(point.shape, object)
        for place in np.ndindex(point.shape):
            entry = point[place]
            point[place] = entry + step
            right = (inner(dy, f(*points)) - here) / step
            point[place] = entry - step
            left = (here - inner(dy, f(*points))) / step
            point[place] = entry
            if left != right:
                raise ArithmeticError(f"rational.slopes: {left} on the left and {right} on the right of entry {place}")
            slope[place] = right
        found.append(slope)
    return found


def inner(left: np.ndarray, right: np.ndarray) -> Fraction:
    return sum((a * b for a, b in zip(left.ravel(), right.ravel(), strict=True)), start=Fraction(0))


def inward(low: np.ndarray, high: np.ndarray, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """For each interval of rational numbers its smallest and its largest number of the format."""
    return _each(above, low, dtype), _each(below, high, dtype)


def outward(low: np.ndarray, high: np.ndarray, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """For each interval of rational numbers the nearest numbers of the format that are not inside."""
    return _each(below, low, dtype), _each(above, high, dtype)


def _each(rounded: Callable[[Fraction, np.dtype], float], numbers: np.ndarray, dtype: np.dtype) -> np.ndarray:
    found = [rounded(Fraction(number), dtype) for number in numbers.ravel().tolist()]
    return np.array(found, dtype).reshape(numbers.shape)


def below(number: Fraction, dtype: np.dtype) -> float:
    """The largest number of the format that is not above. Raises OverflowError beyond the format's range."""
    with np.errstate(over="ignore"):
        near = np.array(float(number)).astype(dtype)
    while float(near) > number:
        near = np.nextafter(near, np.array(-np.inf).astype(dtype))
    if np.isneginf(float(near)):
        raise OverflowError(f"rational.below: {float(number):g} is beyond the range of {dtype}")
    return float(near) + 0.0  # −0 becomes 0


def above(number: Fraction, dtype: np.dtype) -> float:
    """The smallest number of the format that is not below. Raises OverflowError beyond the format's range."""
    return 0.0 - below(-number, dtype)
