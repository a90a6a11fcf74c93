"""Tests of arguments. A refusal names its owner, the argument, what came, what was expected, and why."""

import math
from numbers import Integral, Real


def require(owner: str, met: bool, name: str, got: object, expected: str, why: str) -> None:
    if not met:
        raise ValueError(f"{owner}: {name} is {got!r}, expected {expected}, because {why}")


def is_size(n: object) -> bool:
    return isinstance(n, Integral) and not isinstance(n, bool) and int(n) >= 1


def is_finite(number: object) -> bool:
    try:
        return isinstance(number, Real) and not isinstance(number, bool) and math.isfinite(number)
    except OverflowError:  # an integer that no float can hold
        return False
