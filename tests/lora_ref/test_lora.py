"""lora_ref.lora and lora_ref.linear: exact results on integers, gradients compared with the complex step, and the rules that
all functions of lora_ref keep for dtypes, memory and rounding."""

from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_ref import init, linear, lora
from lora_ref.error import bounds
from lora_ref.error.gradcheck import complex_step, relative_error
from lora_ref.lora import LoRA
from lora_ref.shapes import DTYPES

GRADIENT_ERROR = 1e-14  # every gradient agrees with the complex step to this, relatively


class Case(NamedTuple):
    x: np.ndarray
    W: np.ndarray
    b: np.ndarray | None
    p: LoRA
    scale: float
    mask: np.ndarray | None
    dy: np.ndarray


@st.composite
def cases(draw: st.DrawFn, integers: bool = False, dropout: bool = True) -> Case:
    """No leading axes, empty batches, rank 1 and rank > min(in, out) included; the values come from a drawn seed."""
    leading = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
    least = 0 if integers else 1  # an axis of size 0 is a sum of nothing
    n_in, out, rank = (draw(st.integers(least, most)) for most in (6, 6, 8))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def array(*shape: int) -> np.ndarray:
        return rng.integers(-3, 4, shape).astype(float) if integers else rng.standard_normal(shape)

    scale = draw(st.sampled_from([-2, -0.5, 0, 0.25, 1, 3]) if integers else st.floats(-4, 4, width=16))
    mask = lora.dropout_mask(rng, (*leading, n_in), 0.5) if dropout and draw(st.booleans()) else None
    b = array(out) if draw(st.booleans()) else None
    p = LoRA(array(n_in, rank), array(rank, out))
    return Case(array(*leading, n_in), array(out, n_in), b, p, scale, mask, array(*leading, out))


def cast(case: Any, dtype: Any) -> Any:
    """Every array of a (nested) tuple in that dtype, and read-only, so that writing into an argument fails."""
    if isinstance(case, tuple):
        return case._make(cast(a, dtype) for a in case)  # type: ignore[attr-defined]
    if isinstance(case, np.ndarray):
        case = case.astype(dtype)
        case.flags.writeable = False
    return case


def run(case: Case) -> tuple[np.ndarray, np.ndarray, LoRA]:
    y, cache = lora.forward(*case[:-1])
    return y, *lora.backward(case.dy, cache)


@settings(deadline=None, max_examples=150)
@given(cases())
def test_every_gradient_agrees_with_the_complex_step(case: Case) -> None:
    def gradients(case: Case) -> tuple[np.ndarray, ...]:
        held = cast(case, complex)  # what f holds still must be complex too

        def f(x: np.ndarray, A: np.ndarray, B: np.ndarray) -> np.ndarray:
            return lora.forward(x, held.W, held.b, LoRA(A, B), case.scale, held.mask)[0]

        return complex_step(f, (case.x, *case.p), case.dy)

    _, dx, (dA, dB) = run(case)
    for got, want, terms in zip((dx, dA, dB), gradients(case), gradients(absolute(case)), strict=True):
        assert relative_error(got, want, terms) <= GRADIENT_ERROR


def absolute(case: Any) -> Any:
    """The same case with the absolute value of every number."""
    if isinstance(case, tuple):
        return case._make(map(absolute, case))  # type: ignore[attr-defined]
    return None if case is None else abs(case)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None, max_examples=60)
@given(cases(integers=True))
def test_on_integers_every_dtype_gives_exactly_what_plain_loops_give(dtype: Any, case: Case) -> None:
    x, W, b, (A, B), s, mask, dy = case
    z = x if mask is None else x * mask
    leading, n_in, out, rank = x.shape[:-1], len(A), len(W), len(B)
    y, dx, dA, dB = np.zeros(dy.shape), np.zeros(x.shape), np.zeros(A.shape), np.zeros(B.shape)
    for n in np.ndindex(leading):
        for o in range(out):
            y[n][o] += 0 if b is None else b[o]
            for i in range(n_in):
                y[n][o] += x[n][i] * W[o, i]
                dx[n][i] += dy[n][o] * W[o, i]
                for r in range(rank):
                    y[n][o] += s * z[n][i] * A[i, r] * B[r, o]
                    dx[n][i] += dy[n][o] * s * A[i, r] * B[r, o] * (1 if mask is None else mask[n][i])
                    dA[i, r] += dy[n][o] * s * z[n][i] * B[r, o]
                    dB[r, o] += dy[n][o] * s * z[n][i] * A[i, r]

    got_y, got_dx, got = run(cast(case, dtype))
    for array, want in (got_y, y), (got_dx, dx), (got.A, dA), (got.B, dB):
        assert array.dtype == dtype and np.array_equal(array, want)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None, max_examples=40)
@given(cases())
def test_nothing_that_comes_out_shares_memory_with_what_went_in(dtype: Any, case: Case) -> None:
    case = cast(case, dtype)  # read-only, so that a write into an argument raises
    y, dx, dp = run(case)
    W2, b2 = lora.merge(*case[1:5])
    ins = [a for a in (case.x, case.W, case.b, *case.p, case.mask, case.dy) if a is not None]
    outs = [a for a in (y, dx, *dp, W2, b2) if a is not None]
    assert not any(np.may_share_memory(a, b) for a in ins for b in outs if a.size and b.size)
    assert {a.dtype for a in outs} == {np.dtype(dtype)}
    assert all(a.flags.writeable for a in outs)


@settings(deadline=None, max_examples=60)
@given(cases(integers=True))
def test_any_memory_layout_will_do(case: Case) -> None:
    def strided(a: Any) -> Any:
        if isinstance(a, tuple):
            return a._make(map(strided, a))  # type: ignore[attr-defined]
        return np.repeat(a.T, 2, axis=-1)[..., ::2].T if isinstance(a, np.ndarray) else a

    (y, dx, dp), (want_y, want_dx, want_dp) = run(strided(case)), run(case)
    for got, want in zip((y, dx, *dp), (want_y, want_dx, *want_dp), strict=True):
        assert np.array_equal(got, want)


@settings(deadline=None, max_examples=100)
@given(cases(integers=True, dropout=False))
def test_merged_equals_unmerged(case: Case) -> None:
    y, dx, _ = run(case)
    W2, b2 = lora.merge(*case[1:5])
    merged_y, cache = linear.forward(case.x, W2, b2)
    assert np.array_equal(merged_y, y) and np.array_equal(linear.backward(case.dy, cache), dx)
    assert (b2 is None) == (case.b is None)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@settings(deadline=None, max_examples=100)
@given(cases(dropout=False))
def test_forward_backward_and_merge_keep_their_rounding_bounds(dtype: str, case: Case) -> None:
    case = cast(case, dtype)
    x, W, b, p, s, _, dy = case
    s = float(np.dtype(dtype).type(s))  # the scale that forward sees
    (y, dx, dp), (true_y, true_dx, true_dp) = run(case), run(cast(case, np.longdouble)._replace(scale=s))
    bound_dx, bound_dp = bounds.backward(dy, x, W, p, s, dtype)
    bound_y, merged_y = bounds.forward(x, W, b, p, s, dtype), linear.forward(x, *lora.merge(W, b, p, s))[0]
    assert np.all(np.abs(y - true_y) <= bound_y) and np.all(np.abs(merged_y - true_y) <= bound_y)
    for got, true, bound in (dx, true_dx, bound_dx), (dp.A, true_dp.A, bound_dp.A), (dp.B, true_dp.B, bound_dp.B):
        assert np.all(np.abs(got - true) <= bound)
    true_W2 = lora.merge(W.astype(np.longdouble), None, cast(p, np.longdouble), s)[0]
    assert np.all(np.abs(lora.merge(W, b, p, s)[0] - true_W2) <= bounds.merge(W, p, s, dtype))


def test_a_layer_starts_as_the_frozen_one() -> None:
    rng = np.random.default_rng(0)
    p = lora.init(rng, 6, 5, 3, init_A=init.kaiming_uniform)
    x, W, b = rng.standard_normal((4, 6)), rng.standard_normal((5, 6)), rng.standard_normal(5)
    assert p.A.shape == (6, 3) and np.all(p.A != 0) and np.array_equal(p.B, np.zeros((3, 5)))
    assert np.array_equal(lora.forward(x, W, b, p, 2.0)[0], linear.forward(x, W, b)[0])
    assert np.array_equal(p.A, init.kaiming_uniform(np.random.default_rng(0), 6, 3))


def test_parameter_count() -> None:
    assert lora.parameter_count(1000, 1000, 2) == 4000 and 1000 * 1000 == 250 * 4000
    assert lora.parameter_count(6, 5, 3) == sum(a.size for a in lora.init(np.random.default_rng(0), 6, 5, 3)) == 33
    assert lora.parameter_count(*np.array([100_000, 100_000, 65_536], np.int32)) == 13_107_200_000  # beyond 32 bits


def test_scale() -> None:
    assert lora.scale(16, 4) == 4 and lora.scale(16, 4, "rslora") == 8
    assert lora.scale(-1.5, 2, scaling="standard") == -0.75 and lora.scale(0, 3) == 0
    alpha, rank = np.array([1.5], np.float32)[0], np.array([2])[0]
    assert type(lora.scale(alpha, rank)) is float and lora.scale(alpha, rank) == 0.75


def test_the_scale_may_be_any_real_number_and_does_not_change_the_dtype() -> None:
    x, W, b, A, B, dy = (np.ones(shape, np.float32) for shape in ((2, 3), (4, 3), 4, (3, 2), (2, 4), (2, 4)))
    case = Case(x, W, b, LoRA(A, B), 1, None, dy)
    for s in 2, 2.0, np.float64(2), np.float16(2), np.longdouble(2), np.int64(2):
        y, dx, dp = run(case._replace(scale=s))
        assert {a.dtype for a in (y, dx, *dp)} == {np.dtype("float32")} and np.all(y == 3 + 1 + 2 * 3 * 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rate", [0, 0.25, 0.9])
def test_dropout_mask_is_0_or_1_over_what_is_kept_and_drops_that_share(rate: float, dtype: Any) -> None:
    n = 40_000
    mask = lora.dropout_mask(np.random.default_rng(3), (n // 100, 10, 10), rate, dtype)
    kept = mask != 0
    assert mask.dtype == dtype and mask.shape == (400, 10, 10)
    assert np.all(mask[kept] == np.dtype(dtype).type(1) / np.dtype(dtype).type(1 - rate))
    # Hoeffding: P(|share − rate| ≥ e) ≤ 2 exp(−2 n e²); for a random seed this would fail once in 1e10 runs
    assert abs(kept.mean() - (1 - rate)) < np.sqrt(np.log(2e10) / (2 * n)) and (rate > 0 or kept.all())
