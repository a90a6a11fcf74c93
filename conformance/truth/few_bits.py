"""Exact cases of small whole numbers times powers of two: the first lattice of `lattice`.

Write s = m · 2^k with m odd. A and B are whole numbers, divided by 2^⌊k/2⌋ if k > 0. The unit of W is 2^k times that of A B. So
the base and the LoRA part count in the same unit and are of similar size, whatever the scale is. A sum is exact in every
order if all its terms are multiples of the unit and if it cannot exceed 2^bits units. In float16, x and dy are divided by 16,
so that even alpha times a sum stays in range.

* In float32 and float64 the sums of absolute values stay below that, mostly even where A B is multiplied by alpha before it
  is divided (`case.exact_in_any_order`).
* In float16 and bfloat16 that is not possible for large sizes. There float32 accumulates exactly, and what is stored must fit:
  every h, u, part of y and of dx, dA, dB and merged W. Densities follow from the variance of the sums (`_densities`). Where
  arrays cannot be thin enough, because each row and column needs an entry, signs are chosen one after another so that
  the sums stay near zero (`_balance`).
"""

from fractions import Fraction
from itertools import pairwise
from math import prod
from typing import NamedTuple

import numpy as np

from conformance.truth.case import BITS

Sizes = tuple[int, int, int, int]  # rows, in, out, rank
NAMES = ("x", "W", "A", "B", "dy")


class _Plan(NamedTuple):
    """A way to fit the sums: `factor` and `base` multiply the LoRA part and the base, in units."""

    strict: bool  # of sums of absolute values, or else of what is stored
    factor: float
    base: float
    thin: int  # arrays whose shorter side is below this have entries ±1, ±2 and ±3, others ±1


def arrays(rng: np.random.Generator, sizes: Sizes, scale: Fraction, divisor: int, dtype: str, bias: bool):
    """W (out, in), b (out) or None, A (in, rank), B (rank, out), x (rows, in) and dy (rows, out) in float32 or float64.
    `divisor` is alpha / scale. In a few cases of many rows in a half format no exact one is found: then sums may be rounded.
    Raises ArithmeticError if the LoRA part never showed."""
    (odd, power), rounded = _parts(scale), None
    for plan in _plans(scale, divisor, odd, power, dtype):
        for slack in (1.0, 0.5, 0.25):
            densities = _densities(plan, sizes, BITS[dtype], slack)
            if densities is None:
                break
            found = {name: _entries(rng, shape, densities[name], plan.thin) for name, shape in _shapes(sizes).items()}
            found["b"] = _entries(rng, (1, sizes[2]), 1.0, 2)[0] if bias else np.zeros(sizes[2], np.float32)
            _mend(found, odd)
            fits = _fits(found, plan, BITS[dtype])
            if not fits and not plan.strict:
                _balance(rng, found, plan.factor)
                fits = _fits(found, plan, BITS[dtype])
            if _shows(found):
                if fits:
                    return _in_units(found, power, bias, dtype)
                rounded = found
    if rounded is None:
        raise ArithmeticError(f"no case of few bits shows the LoRA part: {sizes}, scale {scale}, {dtype}")
    return _in_units(rounded, power, bias, dtype)


def _parts(scale: Fraction) -> tuple[int, int]:
    """m and k of a scale m · 2^k. A scale of zero counts as 1."""
    if not scale:
        return 1, 0
    numerator, power = scale.numerator, 1 - scale.denominator.bit_length()
    while numerator % 2 == 0:
        numerator, power = numerator // 2, power + 1
    return numerator, power


def _shapes(sizes: Sizes) -> dict[str, tuple[int, int]]:
    rows, n_in, n_out, rank = sizes
    return {"x": (rows, n_in), "W": (n_out, n_in), "A": (n_in, rank), "B": (rank, n_out), "dy": (rows, n_out)}


def _plans(scale: Fraction, divisor: int, odd: int, power: int, dtype: str) -> list[_Plan]:
    """The strictest plan first. In a strict one the LoRA part may be multiplied by alpha, by s, by √|s| or by 1."""
    plans: list[_Plan] = []
    two = 2.0**power
    factors = [1.0, *(abs(float(f)) for f in (scale, scale * divisor) if f)]
    root = abs(float(scale)) ** 0.5
    if not scale or root * 2 == int(root * 2):
        factors += [root] if scale else []
        unit = min([two, *(_last_bit(f) for f in factors)])
        plans = [_Plan(True, max(factors) / unit, two / unit, thin) for thin in (2000, 16)]
    return plans + [_Plan(BITS[dtype] >= 24, odd, 1.0, thin) for thin in (64, 8, 2, 0)]


def _last_bit(number: float) -> float:
    numerator, denominator = number.as_integer_ratio()
    return (numerator & -numerator) / denominator


def _densities(plan: _Plan, sizes: Sizes, bits: int, slack: float) -> dict[str, float] | None:
    """The share of entries that are not zero, for each array: as many as the sums allow, and at least one for each row and
    column. None if a strict plan cannot hold that."""
    rows, n_in, n_out, rank = sizes
    power = 1 if plan.strict else 2  # absolute values add up, or else variances do
    means = {n: 14 / 3 if min(shape) < plan.thin else 1.0 for n, shape in zip("xWABy", _shapes(sizes).values(), strict=True)}
    if power == 1:
        means = {n: 2.0 if mean > 1 else 1.0 for n, mean in means.items()}
    limit = (0.6 * 2.0**bits if plan.strict else (2.0**bits / 5) ** 2) * slack
    f, q = abs(plan.factor) ** power, plan.base**power
    sums: list[tuple[float, str]] = [
        (f * n_in, "xA"), (f * n_out, "yB"), (f * n_in * rank * 2, "xAB"), (f * n_out * rank * 2, "yBA"),
        (q * n_in * 2, "xW"), (q * n_out * 2, "yW"), (f * rank * 2, "AB"), (rows, "xy"),
        (f * rows * n_out, "xyB"), (f * rows * n_in, "xyA"),
    ]
    floors = {"xWABy"[i]: 1 / min(shape) for i, shape in enumerate(_shapes(sizes).values())}
    densities = dict.fromkeys("xWABy", 1.0)
    for _ in range(60):
        over, members = max(
            (factor * prod(means[n] * densities[n] for n in names) / limit, names) for factor, names in sums
        )
        if over <= 1:
            break
        free = [name for name in members if densities[name] > floors[name]]
        if not free:
            if plan.strict:
                return None
            sums = [(factor, names) for factor, names in sums if names != members]  # `_balance` sees to it
            if not sums:
                break
        for name in free:
            densities[name] = max(floors[name], densities[name] * over ** (-1.01 / len(free)))
    return dict(zip(NAMES, densities.values(), strict=True))


def _entries(rng: np.random.Generator, shape: tuple[int, int], density: float, thin: int) -> np.ndarray:
    """Random entries, with at least one in each row and each column. In a thin array those of rows i and j, or columns i and
    j, have different magnitudes if i − j is no multiple of 3. That is so for neighbours, and for i and i + 2^k."""
    rows, columns = shape
    size, long, short = rows * columns, max(shape), min(shape)
    if density >= 1:
        full = np.unpackbits(np.frombuffer(rng.bytes(size // 8 + 1), np.uint8), count=size).astype(np.float32).reshape(shape)
        full *= 2
        full -= 1
        if short < thin:
            for first in range(min(3, rows)):
                full[first::3] *= (first + np.arange(columns, dtype=np.float32)) % 3 + 1
        return full
    across = np.concatenate([rng.permutation(short) for _ in range(-(-long // short))])[:long]
    i, j = (np.arange(long), across) if rows == long else (across, np.arange(long))
    places = np.concatenate([i * columns + j, rng.integers(0, size, rng.poisson(max(0.0, density * size - long)))])
    values = rng.integers(0, 2, len(places), np.int8) * np.float32(2) - 1
    if short < thin:
        values *= (places // columns + places % columns) % 3 + 1
    found = np.zeros(size, np.float32)
    found[places] = values
    return found.reshape(shape)


def _mend(found: dict[str, np.ndarray], odd: int) -> None:
    """Changes the sign of W where the merged W would have a column or a row of zeros."""
    if min(found["W"].shape) > 64:
        return  # that will not happen by chance
    W, delta = found["W"], odd * (found["A"] @ found["B"]).T
    W *= np.where((W + delta).any(0), np.float32(1), np.float32(-1))
    W *= np.where((W + delta).any(1), np.float32(1), np.float32(-1))[:, None]


def _sums(found: dict[str, np.ndarray], plan: _Plan):
    """Everything that some step may store, in units. In a strict plan: the sums of absolute values."""
    W, b, A, B, x, dy = (np.abs(found[n]) if plan.strict else found[n] for n in ("W", "b", "A", "B", "x", "dy"))
    f, q = np.float32(abs(plan.factor) if plan.strict else plan.factor), np.float32(plan.base)
    h, u, G = f * (x @ A), f * (dy @ B.T), x.T @ dy
    yield from (h, u, G, x.T @ u, h.T @ dy)
    lora, delta = h @ B, f * (A @ B).T
    base = q * (x @ W.T)
    yield from (() if plan.strict else (lora, base, delta, base + q * b, base + lora, lora + q * b))
    yield from (base + q * b + lora, q * W + delta)
    lora, base = u @ A.T, q * (dy @ W)
    yield from (() if plan.strict else (lora, base))
    yield base + lora


def _fits(found: dict[str, np.ndarray], plan: _Plan, bits: int) -> bool:
    (rows, n_in), (n_out, rank) = found["x"].shape, found["B"].T.shape
    longest = max(rows, rank) * max(n_in, n_out)  # terms of a sum; each is at most 27, and those of the base 12 more
    if plan.strict and 39 * longest * max(abs(plan.factor), plan.base) < 2.0**bits:
        return True  # always so in float64
    return all(float(np.abs(total).max()) < 2.0**bits for total in _sums(found, plan))


def _shows(found: dict[str, np.ndarray]) -> bool:
    """Whether the LoRA part is in y, dx, dA and dB. In arrays of one rank, say, it may be zero by chance."""
    A, B, x, dy = found["A"], found["B"], found["x"], found["dy"]
    h, u = x @ A, dy @ B.T
    return bool((h @ B).any() and (u @ A.T).any() and (x.T @ u).any() and (h.T @ dy).any())


def _balance(rng: np.random.Generator, found: dict[str, np.ndarray], f: float) -> None:
    """Chooses signs of x's columns, of the columns of B and the rows of W, and of dy's rows, each so that the sums over them
    stay near zero. Each choice leaves the sums of the choices before it as they are, but for signs."""
    W, A, B, x, dy = found["W"], found["A"], found["B"], found["x"], found["dy"]
    x *= _signs(rng, x.T, np.hstack([W.T, f * A, f * (A @ B)]))
    signs = _signs(rng, dy.T, np.hstack([W, f * B.T, f * (A @ B).T]))
    B *= signs
    W *= signs[:, None]
    u, h = f * (dy @ B.T), f * (x @ A)
    dy *= _signs(rng, np.hstack([x, h]), np.hstack([u, dy]))[:, None]


def _signs(rng: np.random.Generator, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """A sign for each term left[i] ⊗ right[i], so that their sum stays near zero: each is chosen against the sum so far."""
    total = np.zeros(left.shape[1] * right.shape[1], np.float32)
    signs = np.ones(len(left), np.float32)
    coins = rng.random(len(left)) < 0.5
    lefts, rights = _rows(left), _rows(right)
    for i in rng.permutation(len(left)):
        (rows, of_row), (columns, of_column) = lefts[i], rights[i]
        places = (rows * right.shape[1])[:, None] + columns
        sums = total[places]
        against = of_row @ sums @ of_column
        signs[i] = -1 if against > 0 or (against == 0 and coins[i]) else 1
        total[places] = sums + (signs[i] * of_row)[:, None] * of_column
    return signs


def _rows(array: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each row the places of the numbers that are not zero, and these numbers."""
    rows, columns = array.nonzero()
    values, ends = array[rows, columns], np.searchsorted(rows, np.arange(len(array) + 1)).tolist()
    return [(columns[start:end], values[start:end]) for start, end in pairwise(ends)]


def _in_units(found: dict[str, np.ndarray], power: int, bias: bool, dtype: str):
    kind = np.dtype(np.float64 if dtype == "float64" else np.float32)
    half, of_x = max(0, power // 2), -4 if dtype == "float16" else 0
    of_W = power - 2 * half
    exponents = {"W": of_W, "b": of_W + of_x, "A": -half, "B": -half, "x": of_x, "dy": of_x}
    units = (found[name].astype(kind) * kind.type(2.0**exponent) for name, exponent in exponents.items())
    return tuple(array if bias or name != "b" else None for name, array in zip(exponents, units, strict=True))
