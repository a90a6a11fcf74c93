"""Derivatives by the complex step, to hold hand-written gradients against.

    ∂f/∂a = Im f(a + i·step) / step + O(step²)

No difference is taken, so nothing cancels, and the step can be so small that its square vanishes beside 1: what remains
is the rounding of f itself. Source: Squire and Trapp, "Using Complex Variables to Estimate Derivatives of Real
Functions", SIAM Review 40(1), 1998. It needs an f that is analytic as written, free of abs, conj, real and comparisons.
"""

from collections.abc import Callable, Sequence

import numpy as np

# A power of two, so that multiplying and dividing by it is exact: for arrays of small integers the derivative of a
# polynomial comes out exactly, and may be compared with ==.
STEP = 2.0**-100


def complex_step(f: Callable[..., np.ndarray], arrays: Sequence[np.ndarray], dy: np.ndarray) -> tuple[np.ndarray, ...]:
    """The gradient of ⟨dy, f(*arrays)⟩ for each of the arrays, in float64, at one call of f for each element of each.

    f is given complex128 copies of the arrays, and returns a complex128 array of the shape of dy. Raises ValueError if
    it does not. Derivatives below about 1e-277 lose digits, since their product with the step underflows.
    """
    points = [np.array(a, np.complex128) for a in arrays]
    gradients = tuple(np.empty(a.shape) for a in points)
    for a, gradient in zip(points, gradients, strict=True):
        for i in np.ndindex(a.shape):
            exact = a[i]
            a[i] = exact + 1j * STEP
            y = f(*points)
            a[i] = exact
            if (y.shape, y.dtype) != (dy.shape, np.complex128):
                got, expected = f"f returns {y.dtype} {y.shape}", f"complex128 {dy.shape}"
                raise ValueError(f"gradcheck.complex_step: {got}, expected {expected} because dy is {dy.shape}")
            gradient[i] = np.sum(dy * (np.imag(y) / STEP))
    return gradients


def relative_error(got: np.ndarray, want: np.ndarray, terms: np.ndarray) -> float:
    """The worst |got − want| / terms, elementwise; `terms` are the sums of the absolute values of what is added up.

    Why not divide by |want|: a sum of k products errs by up to about k u Σ|aᵢ||bᵢ| (Higham 2002, §3.1), whatever it
    comes to. Where the products cancel, neither |want| nor, for a small array, its norm says how far an honest
    computation may be off, and a random test would now and then fail. For a polynomial with positive coefficients, such
    as LoRA, `terms` is the gradient at the absolute values of everything.

    A difference without terms, or a NaN, is an infinite error. Raises ValueError for unequal shapes.
    """
    if not got.shape == want.shape == terms.shape:
        shapes = f"got is {got.shape}, want is {want.shape}, terms is {terms.shape}"
        raise ValueError(f"gradcheck.relative_error: {shapes}, expected one shape")
    error = np.abs(got - want)
    ratio = np.divide(error, terms, out=np.where(error == 0, 0.0, np.inf), where=terms > 0)
    return float(np.max(np.where(np.isnan(ratio), np.inf, ratio), initial=0.0))
