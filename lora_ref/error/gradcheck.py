"""Derivatives by the complex step, which the tests compare with the hand-written gradients.

    ∂f/∂a = Im f(a + i·step) / step + O(step²)

No difference is taken, so nothing cancels. The step is so small that its square vanishes beside 1, and the only error left is
the rounding of f itself. f must be analytic as written: without abs, conj, real and comparisons. Source: Squire and Trapp,
"Using Complex Variables to Estimate Derivatives of Real Functions", SIAM Review 40(1), 1998.
"""

from collections.abc import Callable, Sequence

import numpy as np

# A power of two, so that multiplying and dividing by it is exact: for arrays of small integers the derivative of a
# polynomial comes out exactly, and may be compared with ==.
STEP = 2.0**-100


def complex_step(f: Callable[..., np.ndarray], arrays: Sequence[np.ndarray], dy: np.ndarray) -> tuple[np.ndarray, ...]:
    """The gradient of ⟨dy, f(*arrays)⟩ for each of the arrays, in float64. It calls f once for each element.

    f gets complex128 copies of the arrays and returns a complex128 array of the shape of dy. Raises ValueError if it does
    not. Derivatives below about 1e-277 lose digits, because their product with the step underflows.
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
    """The largest |got − want| / terms. `terms` has for each element the sum of the absolute values of what is added up.

    It does not divide by |want|: a sum of k products errs by up to about k u Σ|aᵢ||bᵢ| (Higham 2002, §3.1), whatever its
    value. Where the products cancel, |want| is far smaller than that, and an honest computation would sometimes fail. For a
    polynomial with positive coefficients, such as LoRA, `terms` is the gradient at the absolute values of all arguments.

    A difference without terms, or a NaN, is an infinite error. Raises ValueError for unequal shapes.
    """
    if not got.shape == want.shape == terms.shape:
        shapes = f"got is {got.shape}, want is {want.shape}, terms is {terms.shape}"
        raise ValueError(f"gradcheck.relative_error: {shapes}, expected one shape")
    error = np.abs(got - want)
    ratio = np.divide(error, terms, out=np.where(error == 0, 0.0, np.inf), where=terms > 0)
    return float(np.max(np.where(np.isnan(ratio), np.inf, ratio), initial=0.0))
