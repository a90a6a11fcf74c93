"""Exact LoRA cases of every size in `space`: their answers are free of rounding in the case's own format, in any order of sums.

Two lattices, by the level "content":
* few bits: entries are 0, ±1, ±2 and ±3 times one power of two for each array. Every sum is a whole number of units. Where a
  format holds few whole numbers, entries are thinned out, and signs are chosen so that the sums stay small (`few_bits`).
* many bits: each answer is a single product, in which a number with as many bits as the format has meets powers of two alone.
  A detour through a narrower format changes it (`many_bits`).

`seen` in `conformance/truth/seen.py` tells which faults a case shows.
"""

from typing import NamedTuple

import numpy as np

from conformance.subject import LayerConfig
from conformance.truth import few_bits, many_bits
from conformance.truth.case import DTYPES, Case
from conformance.truth.space import Levels, scale_of
from lora_ref import lora


class Answers(NamedTuple):
    """The right answers in float64: y and base y (…, out), dx (…, in), dA (in, rank), dB (rank, out), merged W (out, in)."""

    y: np.ndarray
    base: np.ndarray
    dx: np.ndarray
    dA: np.ndarray
    dB: np.ndarray
    merged: np.ndarray


def build(levels: Levels, seed: int) -> Case:
    """The case of these levels, one for each factor of `space`. Equal seeds give equal cases.

    Raises ValueError for many bits with a scale that is no power of two, and ArithmeticError if no case showed the LoRA part,
    which no row of the covering array has met."""
    rng = np.random.default_rng(seed)
    rows, n_in, n_out, rank = (int(levels[name]) for name in ("rows", "in", "out", "rank"))
    scale, dtype = scale_of(levels), str(levels["format"])
    divisor = rank if levels["scaling"] == "standard" else round(rank**0.5)
    if levels["content"] == "many bits":
        found = many_bits.arrays(rng, (rows, n_in, n_out, rank), scale, dtype, bool(levels["bias"]))
    else:
        found = few_bits.arrays(rng, (rows, n_in, n_out, rank), scale, divisor, dtype, bool(levels["bias"]))
    W, b, A, B, x, dy = (None if array is None else np.ascontiguousarray(array, DTYPES[dtype]) for array in found)
    assert W is not None and A is not None and B is not None and x is not None and dy is not None
    if b is not None and levels["content"] in ("tiny", "huge"):
        b[2::3] = 0  # there the product of x shows, and elsewhere it may be lost beside b, or b beside it
    lead = leading(rng, rows, int(levels["leading"]))
    config = LayerConfig(
        n_in, n_out, rank, float(scale) * (rank if levels["scaling"] == "standard" else rank**0.5), bias=bool(levels["bias"]),
        dtype=dtype, dropout=float(levels["rate"]), scaling=str(levels["scaling"]), seed=seed,
    )
    return Case(config, W, b, A, B, x.reshape(*lead, n_in), dy.reshape(*lead, n_out))


def leading(rng: np.random.Generator, rows: int, dimensions: int) -> tuple[int, ...]:
    """That many dimensions whose product is `rows`, in random order. Two of them are equal in half of the cases in which `rows`
    is a square. Otherwise they are as different as some random splits have shown."""
    if not dimensions:
        return ()
    root = round(rows**0.5)
    if root**2 == rows and dimensions > 1 and rng.random() < 0.5:
        return tuple(int(n) for n in rng.permutation([root, root] + [1] * (dimensions - 2)))
    splits = []
    for _ in range(8):
        lead = [1] * dimensions
        for p in _primes(rows):
            lead[rng.integers(dimensions)] *= p
        splits.append(tuple(lead))
    return max(splits, key=lambda split: (len(set(split)), -max(split)))  # the first of the best


def _primes(n: int) -> list[int]:
    found, p = [], 2
    while n > 1:
        while n % p == 0:
            found.append(p)
            n //= p
        p += 1
    return found


def truth(case: Case) -> Answers:
    """The right answers without dropout, by `lora_ref` in float64, which is exact for the cases that `build` makes."""
    W, A, B, x, dy = (array.astype(np.float64) for array in (case.W, case.A, case.B, case.x, case.dy))
    b = None if case.b is None else case.b.astype(np.float64)
    p = lora.LoRA(A, B)
    y, cache = lora.forward(x, W, b, p, case.scale)
    base = y - (cache.h @ B).reshape(y.shape)
    dx, (dA, dB) = lora.backward(dy, cache)
    return Answers(y, base, dx, dA, dB, lora.merge(W, b, p, case.scale)[0])


