"""Checks of arguments. Every message says where, what the argument is, what was expected, and why.

    lora.forward: A is (4, 7), expected (in, rank) = (6, rank) because x is (…, 6)
"""

import math
from collections.abc import Iterable
from contextlib import suppress
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

DTYPES = (np.float32, np.float64, np.longdouble, np.complex128)


def check(where: str, **arrays: tuple[Any, str]) -> None:
    """Checks the axes of arrays: `check("lora.forward", x=(x, "… in"), W=(W, "out in"), b=(b, "out or None"))`.

    The first array to name an axis settles its size, and the first array settles the dtype. "…" stands for any
    leading axes. Raises ValueError.
    """
    sizes: dict[str, Any] = {}  # axis → its size; "…" → a tuple of sizes
    settled: dict[str, tuple[str, list[str]]] = {}  # axis → the array that settled it, and that array's axes
    first = None
    for name, (array, axes) in arrays.items():
        if array is None and axes.endswith(" or None"):
            continue
        if not isinstance(array, np.ndarray):
            raise ValueError(f"{where}: {name} is a {type(array).__name__}, expected a NumPy array")
        if first is None:
            first = name, check_dtype(where, name, array.dtype)
        elif array.dtype != first[1]:
            raise ValueError(f"{where}: {name} is {array.dtype}, expected {first[1]} because {first[0]} is {first[1]}")

        expected, got = axes.removesuffix(" or None").split(), array.shape
        leading = len(got) - (len(expected) - 1)
        if expected[0] == "…" and leading >= 0:
            got = (got[:leading], *got[leading:])
        if len(got) != len(expected) or any(sizes.get(axis, n) != n for axis, n in zip(expected, got, strict=True)):
            known = f" = {_show(sizes.get(axis, axis) for axis in expected)}" if sizes.keys() & set(expected) else ""
            why = _because(expected, sizes, settled)
            raise ValueError(f"{where}: {name} is {_show(array.shape)}, expected {_show(expected)}{known}{why}")
        for axis, n in zip(expected, got, strict=True):
            sizes.setdefault(axis, n)
            settled.setdefault(axis, (name, expected))


def check_dtype(where: str, name: str, dtype: DTypeLike) -> np.dtype:
    """The dtype, if it is one in which the package computes. Raises ValueError."""
    dtype = np.dtype(dtype)
    if dtype not in DTYPES:
        half = dtype.itemsize == 2 and dtype.kind not in "iu"
        why = "NumPy would accumulate in half precision" if half else "every step is done in the arguments' own dtype"
        expected = "float32, float64, longdouble or complex128"
        raise ValueError(f"{where}: {name} is {dtype}, expected {expected} because {why}")
    return dtype


def check_size(where: str, name: str, value: Any) -> None:
    """Raises ValueError unless the value, a number of features or a rank, is an integer of at least 1."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{where}: {name} is {value!r}, expected an integer of at least 1 because it is an axis' size")


def finite(where: str, name: str, value: Any, dtype: DTypeLike = np.float64) -> Any:
    """The value in that dtype. Raises ValueError unless it is a real number, and finite in that dtype."""
    kind: Any = np.dtype(dtype).type
    if isinstance(value, int | float | np.integer | np.floating):
        with np.errstate(over="ignore"), suppress(OverflowError):  # an int beyond every float
            number = kind(value)
            if np.isfinite(number):
                return number
    raise ValueError(f"{where}: {name} is {value!r}, expected a real number that is finite in {np.dtype(dtype)}")


def rows(x: np.ndarray) -> np.ndarray:
    """(…, k) → (n, k), the leading axes as one. A plain reshape(-1, k) fails where k is 0."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _because(expected: list[str], sizes: dict[str, Any], settled: dict[str, tuple[str, list[str]]]) -> str:
    shapes = {}  # each array that settled one of the expected axes → how its shape reads
    for name, axes in (settled[axis] for axis in expected if axis in settled):
        shapes[name] = _show(axis if axis == "…" and axis not in expected else sizes[axis] for axis in axes)
    return " because " + " and ".join(f"{name} is {shape}" for name, shape in shapes.items()) if shapes else ""


def _show(axes: Iterable[Any]) -> str:
    flat = [n for axis in axes for n in (axis if isinstance(axis, tuple) else (axis,))]
    return f"({', '.join(map(str, flat))})"
