"""The rounding bounds: no honest implementation exceeds them, and a wrong scale does.

`Honest` computes LoRA as a real implementation might, in any precision. It sums products in some order in the accumulator, and
at each step makes one of the choices that an implementer is free to make. All choices are drawn at random for each case.
"""

from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from lora_ref import lora
from lora_ref.error import bounds
from lora_ref.lora import LoRA

CASES = 400  # for each precision, with and without the frozen part


def to_tf32(a: np.ndarray) -> np.ndarray:
    """Round a float32 array to the 10 stored bits of tf32, ties to even."""
    bits = a.view(np.uint32)
    return ((bits + 0x0FFF + ((bits >> 13) & 1)) & np.uint32(0xFFFFE000)).view(np.float32)


STORED: dict[str, Any] = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "tf32": np.float32}
STORED |= {"float32": np.float32, "float64": np.float64}


class Honest:
    def __init__(self, precision: str, rng: np.random.Generator) -> None:
        self.stored, self.tf32, self.rng = STORED[precision], precision == "tf32", rng
        self.accumulator: Any = np.float64 if precision == "float64" else np.float32
        self.rounds_each_step = rng.random() < 0.7  # otherwise only results, arguments and the scale are stored

    def store(self, a: Any) -> np.ndarray:
        return np.asarray(a, self.accumulator).astype(self.stored).astype(self.accumulator)

    def step(self, a: np.ndarray) -> np.ndarray:
        return self.store(a) if self.rounds_each_step else a

    def product(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """a b, the products added up in the accumulator: one by one in any order, in pairs, or in blocks."""
        if self.tf32 and self.rng.random() < 0.8:  # libraries use it for some shapes and not for others
            a, b = to_tf32(np.ascontiguousarray(a)), to_tf32(np.ascontiguousarray(b))
        terms = [a[:, k, None] * b[None, k] for k in self.rng.permutation(len(b))]
        width = self.rng.choice([1, 2, 8])
        while len(terms) > 1:
            step = len(terms) if width == 1 else width
            terms = [sum(terms[i + 1 : i + step], start=terms[i]) for i in range(0, len(terms), step)]
        return self.step(terms[0])

    def product_of_three(self, s: float, P: np.ndarray, Q: np.ndarray, R: np.ndarray) -> np.ndarray:
        """s P Q R: either association, and the scale on the inner or on the outer product."""
        scale = self.store(s)
        inner = self.rng.random() < 0.5
        first_two = self.rng.random() < 0.5
        half = self.product(P, Q) if first_two else self.product(Q, R)
        half = self.step(scale * half) if inner else half
        whole = self.product(half, R) if first_two else self.product(P, half)
        return whole if inner else self.step(scale * whole)

    def sum(self, *parts: np.ndarray) -> np.ndarray:
        first, *rest = (parts[i] for i in self.rng.permutation(len(parts)))
        for part in rest:
            first = self.step(first + part)
        return self.store(first)

    def run(self, dy: Any, x: Any, W: Any, b: Any, p: LoRA, s: float) -> dict[str, np.ndarray]:
        """y and dx (with the merged weight now and then), dA, dB, the weight merged, and unmerged again."""
        A, B = p
        W2 = self.store(W + self.difference(A, B, s))
        if self.rng.random() < 0.3:
            y, dx = self.sum(self.product(x, W2.T), b), self.store(self.product(dy, W2))
        else:
            y = self.sum(self.product(x, W.T), b, self.product_of_three(s, x, A, B))
            dx = self.sum(self.product(dy, W), self.product_of_three(s, dy, B.T, A.T))
        dA, dB = self.product_of_three(s, x.T, dy, B.T), self.product_of_three(s, A.T, x.T, dy)
        once = self.merge_in_the_accumulator(W, A, B, s)
        dA, dB, unmerged = self.store(dA), self.store(dB), self.store(W2 - self.difference(A, B, s))
        return {"y": y, "dx": dx, "dA": dA, "dB": dB, "merged": W2, "unmerged": unmerged, "merged, one rounding": once}

    def difference(self, A: np.ndarray, B: np.ndarray, s: float) -> np.ndarray:
        return self.step(self.store(s) * self.product(A, B)).T

    def merge_in_the_accumulator(self, W: np.ndarray, A: np.ndarray, B: np.ndarray, s: float) -> np.ndarray:
        total = np.zeros(W.shape, self.accumulator)
        for k in self.rng.permutation(len(B)):
            total = total + B[k, :, None] * A[None, :, k]
        return self.store(W + self.accumulator(s) * total)


def arguments(rng: np.random.Generator, precision: str, small: bool, frozen: bool) -> tuple[Any, ...]:
    """dy, x, W, b, p and the scale, stored in that precision; `small` ones underflow in float16. W may be left at 0."""
    n, n_in, out, rank = (int(k) for k in rng.integers(1, (6, 33, 17, 13)))
    wide = np.float64 if precision == "float64" else np.float32
    size = 2.0 ** rng.integers(-14, -4, 6) if small else 2.0 ** rng.integers(-3, 3, 6)

    def array(k: int, *shape: int) -> np.ndarray:
        return (size[k] * rng.standard_normal(shape)).astype(STORED[precision]).astype(wide)

    p = LoRA(array(0, n_in, rank), array(1, rank, out))
    W, b = frozen * array(4, out, n_in), frozen * array(5, out)
    return array(2, n, out), array(3, n, n_in), W, b, p, float(rng.normal(0, 2))


def true_values(precision: str, dy: Any, x: Any, W: Any, b: Any, p: LoRA, s: float) -> dict[str, np.ndarray]:
    """The true results of the case, computed in a wider format."""
    wider: Any = np.longdouble if precision == "float64" else np.float64
    dy, x, W, b, p = *(a.astype(wider) for a in (dy, x, W, b)), LoRA(*(a.astype(wider) for a in p))
    y, cache = lora.forward(x, W, b, p, s)
    dx, (dA, dB) = lora.backward(dy, cache)
    W2, _ = lora.merge(W, b, p, s)
    return {"y": y, "dx": dx, "dA": dA, "dB": dB, "merged": W2, "unmerged": W, "merged, one rounding": W2}


def bounds_of(precision: str, dy: Any, x: Any, W: Any, b: Any, p: LoRA, s: float) -> dict[str, np.ndarray]:
    dx, (dA, dB) = bounds.backward(dy, x, W, p, s, precision)
    y, merged = bounds.forward(x, W, b, p, s, precision), bounds.merge(W, p, s, precision)
    unmerged, once = bounds.unmerge(W, p, s, precision), bounds.merge_rounded_once(W, p, s, precision)
    return {"y": y, "dx": dx, "dA": dA, "dB": dB, "merged": merged, "unmerged": unmerged, "merged, one rounding": once}


def ratios(precision: str, seed: int, frozen: bool) -> dict[str, float]:
    """The largest error / bound of each result of one honest implementation on one case."""
    rng = np.random.default_rng([seed, *precision.encode()])
    case = arguments(rng, precision, small=seed % 3 == 0, frozen=frozen)
    got, true, allowed = Honest(precision, rng).run(*case), true_values(precision, *case), bounds_of(precision, *case)
    return {name: float(np.max(np.abs(got[name] - true[name]) / allowed[name])) for name in got}


@pytest.mark.parametrize("frozen", [True, False], ids=["", "W and b zero"])
@pytest.mark.parametrize("precision", STORED)
def test_no_honest_implementation_exceeds_a_bound_and_some_come_within_a_tenth(precision: str, frozen: bool) -> None:
    all_ratios = [ratios(precision, seed, frozen) for seed in range(CASES)]
    for name in all_ratios[0]:
        least = 0 if name == "unmerged" and not frozen else 0.1  # the errors of the two merges cancel
        assert least < max(ratio[name] for ratio in all_ratios) <= 1, name


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_a_scale_that_is_off_by_1_percent_exceeds_every_bound(precision: str) -> None:
    for seed in range(50):
        rng = np.random.default_rng(seed)
        n, n_in, out, rank = (int(k) for k in rng.integers(1, (32, 128, 64, 16)))
        dy, x, W, b, A, B = (
            rng.standard_normal(size) for size in ((n, out), (n, n_in), (out, n_in), out, (n_in, rank), (rank, out))
        )
        true, got = (true_values(precision, dy, x, W, b, LoRA(A, B), s) for s in (1.0, 1.01))
        for name, bound in bounds_of(precision, dy, x, W, b, LoRA(A, B), 1.0).items():
            if name != "unmerged":  # which is W, whatever the scale
                assert np.any(np.abs(got[name] - true[name]) > bound), name


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.longdouble])
def test_lora_ref_keeps_the_bounds_of_its_own_dtype_against_exact_fractions(dtype: Any) -> None:
    precision = "longdouble" if dtype is np.longdouble else np.dtype(dtype).name
    for seed in range(10):
        rng = np.random.default_rng(seed)
        arrays = [rng.standard_normal(size).astype(dtype) for size in ((3, 4), (3, 5), (4, 5), (5, 2), (2, 4))]
        dy, x, W, A, B = arrays
        y, cache = lora.forward(x, W, None, LoRA(A, B), 1.5)
        dx, dp = lora.backward(dy, cache)
        got = y, dx, *dp, lora.merge(W, None, LoRA(A, B), 1.5)[0]

        dy_, x_, W_, A_, B_ = map(fractions, arrays)
        s = Fraction(3, 2)
        exact = (
            x_ @ W_.T + s * (x_ @ A_ @ B_), dy_ @ W_ + s * (dy_ @ B_.T @ A_.T),
            s * (x_.T @ dy_ @ B_.T), s * (A_.T @ x_.T @ dy_), W_ + s * (A_ @ B_).T,
        )  # fmt: skip
        bound_y = bounds.forward(x, W, None, LoRA(A, B), 1.5, precision)
        bound_dx, bound_dp = bounds.backward(dy, x, W, LoRA(A, B), 1.5, precision)
        allowed = bound_y, bound_dx, *bound_dp, bounds.merge(W, LoRA(A, B), 1.5, precision)
        for g, e, bound in zip(got, exact, allowed, strict=True):
            assert np.all(abs(fractions(g) - e) <= fractions(bound))


def fractions(a: np.ndarray) -> np.ndarray:
    return np.vectorize(lambda number: Fraction(*number.as_integer_ratio()), otypes=[object])(a)


@pytest.mark.parametrize("precision", ["float64", "float32", "float16", "bfloat16"])
def test_steps_and_sums_of_gradients_keep_their_bounds_and_come_near_them(precision: str) -> None:
    """A step whose rate, product and difference are stored one by one, after gradients that were stored after each sum."""
    rng, worst = np.random.default_rng(2), {"step": 0.0, "total": 0.0}
    kind = STORED[precision]
    for _ in range(CASES):
        p, *terms = (LoRA(rng.standard_normal((5, 2)).astype(kind), rng.standard_normal((2, 3)).astype(kind)) for _ in range(4))
        rate = float(rng.uniform(0.01, 2.0))
        summed = LoRA(*(((a + b).astype(kind) + c).astype(kind) for a, b, c in zip(*terms, strict=True)))
        stepped = LoRA(*((a - (kind(rate) * d).astype(kind)).astype(kind) for a, d in zip(p, summed, strict=True)))
        for name, got, want, bound in (
            ("total", summed, [sum(map(wide, arrays)) for arrays in zip(*terms, strict=True)], bounds.total(terms, precision)),
            ("step", stepped, [wide(a) - rate * wide(d) for a, d in zip(p, summed, strict=True)],
             bounds.step(p, summed, rate, precision)),
        ):
            for g, w, b in zip(got, want, bound, strict=True):
                worst[name] = max(worst[name], float((np.abs(wide(g) - w) / b).max()))
    assert 0.1 < worst["step"] <= 1 and 0.1 < worst["total"] <= 1, worst


def test_each_further_rounding_widens_the_bound_of_the_lora_part() -> None:
    x, W, p = np.ones((1, 4)), np.zeros((3, 4)), LoRA(np.ones((4, 2)), np.ones((2, 3)))
    u = bounds.PRECISIONS["float32"].u
    plain, more = (bounds.forward(x, W, None, p, 1.0, "float32", more=n) for n in (0, 6))
    # |x| |A| |B| = 8 gains a factor of at least 1 + 6u, and of less than 1 + 7u.
    assert (6 * u * 8 <= more - plain).all() and (more - plain < 7 * u * 8).all()


def wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64).astype(np.longdouble)
