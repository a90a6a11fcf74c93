"""The complex step and its error measure are right on functions with known derivatives, and show a small fault."""

import numpy as np
import pytest

from lora_ref import lora
from lora_ref.error.gradcheck import complex_step, relative_error

RNG = np.random.default_rng(2)


def test_it_is_exact_for_a_polynomial_of_integers() -> None:
    a, c, dy = (RNG.integers(-5, 6, (3, 2)) for _ in range(3))
    da, dc = complex_step(lambda a, c: a**3 * c, (a, c), dy)
    assert np.array_equal(da, 3 * a**2 * c * dy) and np.array_equal(dc, a**3 * dy)


def test_it_agrees_with_analysis_elsewhere() -> None:
    a = RNG.standard_normal(50)
    for f, derivative in (np.exp, np.exp(a)), (np.sin, np.cos(a)), (np.tanh, 1 / np.cosh(a) ** 2):
        (got,) = complex_step(f, (a,), np.ones(50))
        assert relative_error(got, derivative, np.abs(derivative)) <= 1e-14


def test_each_element_sums_over_all_outputs_and_the_arguments_stay() -> None:
    M, a, dy = RNG.integers(-5, 6, (4, 3)), RNG.integers(-5, 6, 3), RNG.integers(-5, 6, 4)
    before = a.copy()
    (da,) = complex_step(lambda a: M @ a, (a,), dy)
    assert np.array_equal(da, dy @ M) and np.array_equal(a, before)
    (nothing,) = complex_step(lambda a: a, (np.zeros((0, 3)),), np.zeros((0, 3)))
    assert nothing.shape == (0, 3)


def test_the_error_is_relative_to_the_terms() -> None:
    def error(got: float, want: float, terms: float) -> float:
        return relative_error(np.array([got, 1]), np.array([want, 1]), np.array([terms, 1]))

    assert error(1.5, 1, 2) == 0.25 and error(1, 1.5, 2) == 0.25
    assert error(0, 0, 0) == 0 and error(1, 0, 0) == np.inf
    assert error(np.nan, 1, 1) == np.inf and error(1, np.nan, 1) == np.inf
    assert relative_error(np.array(3.0), np.array(1.0), np.array(4.0)) == 0.5
    assert relative_error(*(np.zeros((0, 2)) for _ in range(3))) == 0


@pytest.mark.parametrize("fault", ["scale left out of dA", "0.05 % too much", "dB transposed", "mask forgotten"])
def test_it_sees_a_fault(fault: str) -> None:
    x, W, A, B, dy = (RNG.standard_normal(s) for s in ((5, 4), (3, 4), (4, 3), (3, 3), (5, 3)))
    mask, s = np.where(RNG.random((5, 4)) < 0.5, 0.0, 2.0), 1.5

    def gradients(sign: int) -> tuple[np.ndarray, ...]:
        x1, W1, A1, B1, dy1 = (a if sign else np.abs(a) for a in (x, W, A, B, dy))
        W1, mask1 = W1.astype(complex), mask.astype(complex)
        return complex_step(lambda x, *p: lora.forward(x, W1, None, lora.LoRA(*p), s, mask1)[0], (x1, A1, B1), dy1)

    dx, (dA, dB) = lora.backward(dy, lora.forward(x, W, None, lora.LoRA(A, B), s, mask)[1])
    if fault == "mask forgotten":
        dx = dy @ W + s * dy @ B.T @ A.T
    dA = {"scale left out of dA": dA / s, "0.05 % too much": dA * 1.0005}.get(fault, dA)
    dB = dB.T if fault == "dB transposed" else dB
    worst = [relative_error(*arrays) for arrays in zip((dx, dA, dB), gradients(1), gradients(0), strict=True)]
    assert sum(error > 1e-14 for error in worst) == 1
