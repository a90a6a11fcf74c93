"""Hypothesis strategies for cases. Each function here returns a function that takes the dtypes in play and returns the
strategy. In this way `--dtype` reaches every requirement.

Exact cases hold small integers, and scales with few bits. Every sum is exact in every dtype and in every order, so an
honest layer is right bit for bit. Rounding cases hold normal draws, scaled as in practice. They are judged by the bounds.
"""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
from hypothesis import strategies as st

from conformance.subject import LayerConfig, Unsupported
from conformance.truth import lattice
from conformance.truth.case import (
    DTYPES,
    Case,
    FurtherAdapter,
    exact_in_any_order,
    exact_together,
    in_range,
    resolution,
    shows_the_lora_part,
)
from conformance.truth.compare import FAULT_OF_INTEREST
from conformance.truth.space import PLAIN

# The simplest first, since Hypothesis shrinks bytes towards 0.
_SMALL = np.array([0, 1, -1, *[1, -1, 1, -1, 0] * 50])
_LARGER = np.array([0, 1, -1, 2, -2, 3, -3, *[1, -1, 2, -2, 3, -3, 0] * 35])
# Never 0 or 1, which hide faults. All are squares, since a layer may multiply each factor by the root of the scale.
EXACT_SCALES = (4.0, 0.25, 2.25, 9.0, 16.0)
WEIGHTS = (4.0, -1.0, 0.25, 1.0, -4.0)  # of one of several adapters; squares up to sign, too
Integers = st.SearchStrategy[int]
SIZES: Integers = st.integers(1, 5)
# Powers of two: a gradient that is divided by another rank before it is summed is not exact.
RANKS: Integers = st.sampled_from((1, 2, 4))
DRAWN, ROW = 32, 8  # bytes for an array, and for each of its rows if they are that short


def integers(draw, shape: tuple[int, ...], dtype: str, small: bool = False) -> np.ndarray:
    """An array of small integers that shrink one by one. They come from a single draw of DRAWN bytes, whatever the shape. An
    entry keeps its byte when a size changes, up to ROW columns, so that a size can shrink while the numbers stay. A larger
    array uses the bytes again for other numbers; a zero stays a zero."""
    table = _SMALL if small or DTYPES[dtype].itemsize == 2 else _LARGER
    drawn = np.frombuffer(draw(st.binary(min_size=DRAWN, max_size=DRAWN)), np.uint8).astype(np.int64)
    columns = shape[-1] if shape else 1
    row, column = np.divmod(np.arange(int(np.prod(shape))), max(columns, 1))
    rounds, place = np.divmod(max(columns, ROW) * row + column, DRAWN)
    index = np.where(drawn[place] == 0, 0, drawn[place] + 89 * rounds)
    return table[index % len(table)].reshape(shape).astype(DTYPES[dtype])


def normals(rng: np.random.Generator, shape: tuple[int, ...], std: float, dtype: str) -> np.ndarray:
    return (std * rng.standard_normal(shape)).astype(DTYPES[dtype])


def among(only: tuple[str, ...], dtypes: tuple[str, ...]):
    """A strategy for one of the dtypes that the requirement is about and that are in play."""
    both = [dtype for dtype in only if dtype in dtypes]
    if not both:
        raise Unsupported(f"{' or '.join(only)}")
    return st.sampled_from(both)


@cache
def exact(
    *,
    in_features: Integers = SIZES, out_features: Integers = SIZES, rank: Integers = RANKS, scales=EXACT_SCALES,
    leading=None, bias=st.booleans(),
    scaling: str = "standard", dropout: float = 0.0, only: tuple[str, ...] = tuple(DTYPES), degenerate: bool = False,
    operations=None, square: bool = False, wide_rank: bool = False, small: bool = False, method: str = "lora",
):
    """Cases of small integers. Sizes are all different (unless `square`) and the LoRA part is visible, unless `degenerate`.

    The rank is at most min(in, out), unless `wide_rank`: some implementations refuse more. `leading` is a strategy for the
    leading dimensions of x; `only` are the dtypes that the requirement is about. With `small` all numbers are 0, 1 or −1.
    `method` is the configuration's, for methods whose layers have LoRA's A and B.
    """
    leading = st.lists(st.integers(1, 3), min_size=1, max_size=2).map(tuple) if leading is None else leading

    def of(dtypes: tuple[str, ...]):
        dtype_of = among(only, dtypes)

        @st.composite
        def case(draw) -> Case:
            dtype = draw(dtype_of)
            sizes = st.tuples(rank, in_features, out_features).filter(
                lambda s: (wide_rank or s[0] == min(s)) and (degenerate or square or len(set(s)) == 3)
            )
            r, n_in, n_out = draw(sizes)
            factor = r**0.5 if scaling == "rslora" else r
            alpha = draw(st.sampled_from(scales)) * factor
            config = LayerConfig(n_in, n_out, r, alpha, draw(bias), dtype, dropout=dropout, scaling=scaling, method=method)
            lead = draw(leading)
            return Case(
                config,
                W=integers(draw, (n_out, n_in), dtype, small),
                b=integers(draw, (n_out,), dtype, small) if config.bias else None,
                A=integers(draw, (n_in, r), dtype, small),
                B=integers(draw, (r, n_out), dtype, small),
                x=integers(draw, (*lead, n_in), dtype, small),
                dy=integers(draw, (*lead, n_out), dtype, small),
                operations=tuple(draw(operations)) if operations is not None else (),
            )
        return case().filter(lambda c: exact_in_any_order(c) and (degenerate or shows_the_lora_part(c)))

    return of


@cache
def any_size(*, dropout: float = 0.0, only: tuple[str, ...] = tuple(DTYPES), **options):
    """The cases of `exact`, and among them a third of larger sizes, at and around those of tiles, from the lattice."""

    def of(dtypes: tuple[str, ...]):
        small = exact(dropout=dropout, only=only, **options)(dtypes)
        formats = [dtype for dtype in only if dtype in dtypes and dtype in ("float32", "float64")]  # whose sums are exact
        if not formats:
            return small
        levels = st.fixed_dictionaries({
            "rows": st.sampled_from((17, 33, 129)), "in": st.sampled_from((9, 16, 33, 65)), "leading": st.integers(1, 3),
            "out": st.sampled_from((8, 17, 31, 64)), "rank": st.sampled_from((2, 4, 8)), "bias": st.booleans(),
            "format": st.sampled_from(formats), "scale": st.sampled_from(("4", "1/64", "64")), "rate": st.just(dropout),
        })
        large = st.builds(lambda chosen, seed: lattice.build(PLAIN | chosen, seed), levels, st.integers(0, 2**31))
        large = large.filter(lambda c: exact_in_any_order(c.replace(x=c.x / c.x.dtype.type(1 - dropout))))
        return st.one_of(small, small, large)

    return of


@cache
def several(**options):
    """Exact cases with three adapters. Each has its own rank, alpha and weight, and each gives another y."""

    def of(dtypes: tuple[str, ...]):
        @st.composite
        def case(draw) -> Case:
            first: Case = draw(exact(**options)(dtypes))
            n_in, n_out, others = first.config.in_features, first.config.out_features, []
            ranks = (1, 4) if first.config.scaling == "rslora" else (1, 2, 4)  # whose root is exact
            for name in ("second", "third"):
                r = draw(st.sampled_from([r for r in ranks if r <= min(n_in, n_out)]))
                A, B = integers(draw, (n_in, r), first.config.dtype), integers(draw, (r, n_out), first.config.dtype)
                factor = r**0.5 if first.config.scaling == "rslora" else r
                others.append(FurtherAdapter(name, A, B, draw(st.sampled_from(EXACT_SCALES)) * factor))
            weights = tuple(draw(st.sampled_from(WEIGHTS)) for _ in range(3))
            return replace(first, others=tuple(others), weights=weights)

        return case().filter(lambda c: exact_together(c) and all_differ(c))

    return of


def all_differ(case: Case) -> bool:
    parts = [case.alone(name) for name in case.names]
    outputs = {part.truth.y.astype(np.float64).tobytes() for part in parts}
    return all(map(shows_the_lora_part, parts)) and len(outputs) == len(parts)


@cache
def rounding(
    *, only: tuple[str, ...] = ("float32", "float64"), bias=st.booleans(), scaling: str = "standard", dropout: float = 0.0,
    sizes=st.integers(2, 40), rank=st.integers(1, 9), positive: bool = False, operations=None, shapes=None,
):
    """Cases of normal draws. W and A have standard deviation 1/√in, and alpha is from a twentieth to twenty times the rank.
    Only cases that can show a scale error of FAULT_OF_INTEREST are used. With `positive` numbers the rounding errors of long
    sums add up. `shapes` draws rows, in and out together."""

    def of(dtypes: tuple[str, ...]):
        dtype_of = among(only, dtypes)

        @st.composite
        def case(draw) -> Case:
            dtype = draw(dtype_of)
            n, n_in, n_out = draw(st.tuples(st.integers(1, 20), sizes, sizes) if shapes is None else shapes)
            r = min(draw(rank), n_in, n_out)
            alpha = r * draw(st.sampled_from([2.75, 0.3, 1.7, 8.0, 0.05, 20.0]))
            config = LayerConfig(n_in, n_out, r, alpha, draw(bias), dtype, dropout=dropout, scaling=scaling)
            rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

            def array(shape: tuple[int, ...], std: float) -> np.ndarray:
                drawn = normals(rng, shape, std, dtype)
                return np.abs(drawn) if positive else drawn

            return Case(
                config,
                W=array((n_out, n_in), n_in**-0.5),
                b=array((n_out,), 1.0) if config.bias else None,
                A=array((n_in, r), n_in**-0.5),
                B=array((r, n_out), r**-0.5),
                x=array((n, n_in), 1.0),
                dy=array((n, n_out), 1.0),
                operations=tuple(draw(operations)) if operations is not None else (),
            )

        return case().filter(lambda c: in_range(c) and resolution(c) <= FAULT_OF_INTEREST[c.config.dtype])

    return of


@cache
def sized(in_features: int, out_features: int, rank: int, alpha: float, *, only: tuple[str, ...] = tuple(DTYPES), **config):
    """Cases of one configuration with other weights and seeds, for requirements on a fresh layer. x, dy as in `rounding`."""

    def of(dtypes: tuple[str, ...]):
        dtype = next((d for d in only if d in dtypes), None)
        if dtype is None:
            raise Unsupported(" or ".join(only))

        def case(seed: int, bias: bool) -> Case:
            rng = np.random.default_rng(seed)
            options: dict[str, Any] = {"bias": bias} | config
            made = LayerConfig(in_features, out_features, rank, alpha, dtype=dtype, seed=seed, **options)
            return Case(
                made,
                W=normals(rng, (out_features, in_features), in_features**-0.5, dtype),
                b=normals(rng, (out_features,), 1.0, dtype) if made.bias else None,
                A=normals(rng, (in_features, rank), in_features**-0.5, dtype),
                B=normals(rng, (rank, out_features), 1.0, dtype),
                x=normals(rng, (4, in_features), 1.0, dtype),
                dy=normals(rng, (4, out_features), 1.0, dtype),
            )

        return st.builds(case, st.integers(0, 2**31 - 1), st.booleans())

    return of
