"""Reads the masks of dropout at real sizes, from layers with W = 0, b = 0 and A = B = I: their output is scale · mask · x /
(1 − p), wherever on the LoRA path they drop entries."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache

import numpy as np
from hypothesis import strategies as st

from conformance.requirements.helpers.layers import known_weight, prepared
from conformance.subject import Layer, LayerConfig, Subject, Unsupported
from conformance.truth.case import DTYPES, Case
from conformance.truth.compare import wide

SEEDS = 64  # seeds that belong to one case: its own and those that follow
WIDTH = 203  # in = out = rank: 3 more than a multiple of 8, 11 more than one of 32, 75 more than one of 128
LARGE = ((331,), (3, 110), (2, 3, 55), (2, 3, 5, 11))  # leading dimensions of a large x
# Leading dimensions of an x that gradients are taken for. Sums over its rows, at most 255, have 8 bits, which bfloat16 holds.
SUMMED = ((203,), (2, 64), (64, 2), (2, 3, 4, 8))


@cache
def at_size(rate: float):
    """Cases whose layers show their masks. The operations of a case are the dtypes in play, in an order that is drawn: see
    `form`. Its x is one row of ones, since the truth of a large x would take long."""

    def of(dtypes: tuple[str, ...]) -> st.SearchStrategy[Case]:
        def case(order: list[str], seed: int) -> Case:
            dtype = DTYPES[order[0]]
            eye, zeros, ones = np.eye(WIDTH, dtype=dtype), np.zeros((WIDTH, WIDTH), dtype), np.ones((1, WIDTH), dtype)
            config = LayerConfig(WIDTH, WIDTH, WIDTH, 4.0 * WIDTH, dtype=order[0], dropout=rate, seed=seed)
            return Case(config, W=zeros, b=zeros[0], A=eye, B=eye, x=ones, dy=ones, operations=tuple(order))

        if not dtypes:
            raise Unsupported("any dtype")
        return st.builds(case, st.permutations(dtypes), st.integers(0, 2**31 - SEEDS))

    return of


def form(case: Case, number: int) -> tuple[Case, tuple[int, ...]]:
    """One of the forms that a case stands for: a case in one of the dtypes, with another seed for each number, and the shape of
    a large x. A case with four dtypes has each with another number of leading dimensions."""
    dtype = case.operations[number % len(case.operations)]
    return case.replace(dtype=dtype, seed=case.config.seed + number), (*LARGE[number % len(LARGE)], WIDTH)


def many_rows(case: Case) -> tuple[Case, tuple[int, ...]]:
    """A form of the case with two features, and the shape of an x whose last rows have numbers of more than 16 bits."""
    seed = case.config.seed + SEEDS - 1
    return case.replace(in_features=2, out_features=2, rank=2, alpha=2 * case.scale, seed=seed), (2**16 + 512, 2)


def many_columns(case: Case) -> tuple[Case, tuple[int, int], np.ndarray]:
    """A form of the case with many features, of which A lets through these columns, the shape of an x, and the columns. Among
    them every distance from 1 to in − 1 occurs. 256 rows have equal masks of two features with a probability of 2⁻²⁵⁶."""
    near, far = np.arange(32), 32 * np.arange(2, 33) - 1
    columns, n_in = np.concatenate([near, far]), 1024
    A = np.zeros((n_in, len(columns)), case.dtype)
    A[columns, np.arange(len(columns))] = 1
    eye = np.eye(len(columns), dtype=case.dtype)
    config = {"in_features": n_in, "out_features": len(eye), "rank": len(eye), "alpha": case.scale * len(eye)}
    zeros = np.zeros((len(eye), n_in), case.dtype)
    b = None if case.b is None else zeros[:, 0]
    return case.replace(**config, W=zeros, b=b, A=A, B=eye, seed=case.config.seed + SEEDS - 2), (256, n_in), columns


def revealing(subject: Subject, case: Case) -> Layer:
    """A training-mode layer of the case's configuration, with W = 0, b = 0 and A = B = I."""
    eye = np.eye(case.config.in_features, dtype=case.dtype)
    if case.config.rank != len(eye):  # it has one rank only
        raise Unsupported("a rank that is in and out")
    case = case.replace(W=0 * eye, b=None if case.b is None else 0 * eye[0], A=eye, B=eye)
    layer = prepared(subject, case, training=True)
    layer.train(True)
    return layer


def mask_of(layer: Layer, case: Case, shape: tuple[int, ...]) -> np.ndarray:
    """The mask (rows, in) of a pass of such a layer, as multiples of x, which are ones of that shape."""
    return (wide(layer.forward(np.ones(shape, case.dtype))) / case.scale).reshape(-1, shape[-1])


def without_repeats(masks: np.ndarray) -> np.ndarray:
    """The masks (…, in) without the passes, samples or rows that are all equal to the first: what was drawn is read once."""
    for axis in range(masks.ndim - 1):
        first = masks.take([0], axis)
        masks = first if (masks == first).all() else masks
    return masks


def events(subject: Subject, layer: Layer, case: Case) -> Iterator[tuple[str, Callable[[], object]]]:
    """What may happen between a forward pass of the layer and its backward pass: in words, and as a function that does it."""

    def another() -> None:
        mask_of(revealing(subject, case.replace(seed=case.config.seed + SEEDS // 2)), case, (*SUMMED[0], WIDTH))

    yield "after another layer was built and used", another
    before = known_weight(layer)
    layer.train(False)
    after = known_weight(layer)
    layer.train(True)
    if before is not None and after is not None and np.array_equal(before, after):  # else it merges in inference mode
        yield "after going to inference mode", lambda: layer.train(False)
        layer.train(True)
    with suppress(Unsupported):
        layer.input_needs_grad(False)
        yield "where x needs no gradient", lambda: None
