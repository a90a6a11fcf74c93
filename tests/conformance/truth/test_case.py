"""Exact cases are exact: no correct way of computing them rounds."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance.subject import Unsupported
from conformance.truth.case import BITS, DTYPES, exact_in_any_order, last_bit, shows_the_lora_part
from conformance.truth.strategies import EXACT_SCALES, exact, rounding, several

CASES = {dtype: exact()((dtype,)) for dtype in DTYPES}


@settings(max_examples=40)
@given(case=several()(tuple(DTYPES)))
def test_a_square_case_is_the_case_without_its_last_inputs_or_outputs(case):
    square = case.squared
    n = square.config.in_features
    assert n == square.config.out_features == min(case.config.in_features, case.config.out_features)
    assert square.W.shape == (n, n) and square.A.shape == (n, case.config.rank) and exact_in_any_order(square)
    assert square.x.shape == (*case.x.shape[:-1], n) and square.dy.shape == (*case.dy.shape[:-1], n)
    if n == case.config.in_features:  # outputs were left out
        np.testing.assert_array_equal(square.truth.y, case.truth.y[..., :n])
        for name in case.names:
            np.testing.assert_array_equal(square.alone(name).truth.y, case.alone(name).truth.y[..., :n])


@settings(max_examples=60)
@given(case=exact()(("float32",)), rank=st.sampled_from((1, 2, 4, 8)))
def test_a_case_of_another_rank_has_the_same_scale(case, rank):
    try:
        changed = case.of_rank(rank)
    except Unsupported:
        return
    assert changed.config.rank == rank and changed.scale == case.scale and exact_in_any_order(changed)
    assert changed.A.shape == (case.config.in_features, rank) and changed.B.shape == (rank, case.config.out_features)
    if rank >= case.config.rank:
        np.testing.assert_array_equal(changed.truth.y, case.truth.y)
        assert case.config.rank == rank or changed.truth.dB[case.config.rank :].any() == case.truth.dB.any()


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=60)
@given(data=st.data())
def test_every_order_is_exact(dtype, data):
    """Each product and sum, in a random order and association, with a rounding to the dtype after each operation."""
    case = data.draw(CASES[dtype])
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    kind = DTYPES[dtype]

    def dot(a, b):
        total = np.zeros((a.shape[0], b.shape[1]), kind)
        for k in rng.permutation(a.shape[1]):
            total = (total + (a[:, k : k + 1] * b[k : k + 1]).astype(kind)).astype(kind)
        return total

    W, A, B = case.W, case.A, case.B
    x, dy = case.x.reshape(-1, W.shape[1]), case.dy.reshape(-1, W.shape[0])
    b = np.zeros(W.shape[0], kind) if case.b is None else case.b
    s, alpha, rank = (kind.type(v) for v in (case.scale, case.config.alpha, case.config.rank))
    assert float(s) == case.scale
    truth = {name: getattr(case.truth, name) for name in ("y", "dx", "dA", "dB", "merged")}
    ways = {
        "y": [
            dot(x, W.T) + b + dot(dot(x, A) * s, B),
            dot(x, W.T) + (dot(dot(x, A), B) * alpha / rank + b),
            dot(x, (W + dot(A, B).T * s).T) + b,
        ],
        "dx": [dot(dy, W) + dot(s * dot(dy, B.T), A.T), dot(dy, W + (dot(A, B) * s).T)],
        "dA": [dot(x.T, s * dot(dy, B.T)), s * dot(dot(x.T, dy), B.T)],
        "dB": [dot((s * dot(x, A)).T, dy), dot(A.T, dot(x.T, dy)) * s],
        "merged": [W + s * dot(A, B).T, W + dot(s * A, B).T],
    }
    for name, results in ways.items():
        for got in results:
            assert got.dtype == kind
            want = truth[name].reshape(got.shape).astype(np.float64)
            np.testing.assert_array_equal(got.astype(np.float64), want, err_msg=name)


DYADIC = st.builds(Fraction, st.integers(-200, 200), st.sampled_from([1, 2, 4, 8, 64]))


@given(st.lists(DYADIC, min_size=1))
def test_last_bit(values):
    bit = last_bit(np.array([float(v) for v in values]))
    if any(values):
        unit = Fraction(bit)
        assert all((v / unit).denominator == 1 for v in values)
        assert any((v / unit).numerator % 2 for v in values)
    else:
        assert bit == np.inf


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=30)
@given(data=st.data())
def test_the_guard_knows_when_it_is_not(dtype, data):
    case = data.draw(CASES[dtype])
    assert exact_in_any_order(case)
    assert shows_the_lora_part(case)
    large = case.replace(W=np.full_like(case.W, 2 ** BITS[dtype]), x=np.where(case.x == 0, 1, case.x).astype(case.dtype) * 3)
    assert not exact_in_any_order(large)
    assert not shows_the_lora_part(case.replace(B=0 * case.B))


@given(exact()(tuple(DTYPES)))
def test_cases_are_not_degenerate(case):
    config = case.config
    assert len({config.in_features, config.out_features, config.rank}) == 3
    assert case.scale in EXACT_SCALES
    assert case.truth.dA.any() and case.truth.dB.any()
    assert not np.array_equal(case.truth.y, case.truth.base)


@settings(max_examples=30)
@given(rounding(only=tuple(DTYPES))(tuple(DTYPES)))
def test_truth_is_far_inside_the_bound(case):
    """The truth in float64 and in long double differ by a small part of the bound for a layer."""
    W, A, B, x = (a.astype(np.float64) for a in (case.W, case.A, case.B, case.x))
    y = x @ W.T + (0 if case.b is None else case.b.astype(np.float64)) + case.scale * x @ (A @ B)
    assert (np.abs(y - case.truth.y) <= case.bound.y).all()
