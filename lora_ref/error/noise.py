"""How far an honest computation may be off, where no closed form says it: the reference itself, run with noisy arithmetic.

    y(1 + v ξ)                       in the place of every y = a + b, a · b, a / b, eᵃ, tanh a, √a, …
    y + v √k ξ Σ |aᵢ bᵢ|              in the place of every y = Σ aᵢ bᵢ of k products, and of every sum

    ξ standard normal, drawn anew for each number;   v = ROUNDINGS · u, u the unit roundoff of the one that is judged

Rounding errors behave as if they were independent and had mean zero (Higham and Mary, "A New Approach to Probabilistic
Rounding Error Analysis", SIAM J. Sci. Comput. 41(5), 2019, model 2.1), and their sum over k terms grows with √k (theorem
2.4). Running a program with random errors in their place shows what they do to its answer, cancellation and all (Parker,
"Monte Carlo Arithmetic", 1997). A worst-case bound, carried through a transformer of two layers, was more than a million
times as wide: true, and of no use. ROUNDINGS is how often an honest program may round where the formula here rounds once:
another association, an exp of two units, a stored scale. The root mean square over RUNS runs estimates the standard
deviation of an honest error; what multiple of it may be reached is for who compares to say.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

ROUNDINGS = 4
RUNS = 16  # an even number: who compares takes it for the degrees of freedom

_EXACT = {np.greater, np.maximum, np.negative}


def spread(
    f: Callable[..., Mapping[str, np.ndarray]], arrays: Mapping[str, np.ndarray], unit: float, seed: int = 0
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """What f gives for the arrays, and the standard deviation of every number of it, under rounding of that unit.

    f takes a dict of arrays and gives one; both runs are in longdouble.
    """
    rng = np.random.default_rng(seed)
    exact = {name: np.asarray(a, np.longdouble) for name, a in arrays.items()}
    truth = {name: np.asarray(a) for name, a in f(exact).items()}
    squares = {name: np.zeros(a.shape) for name, a in truth.items()}
    for _ in range(RUNS):
        for name, a in f({name: _noisy(a, unit, rng) for name, a in exact.items()}).items():
            squares[name] += np.square(np.asarray(a) - truth[name]).astype(float)
    return truth, {name: np.sqrt(square / RUNS) for name, square in squares.items()}


class Noisy(np.ndarray):
    """An array of which every operation makes a random rounding error."""

    unit: float
    rng: np.random.Generator

    def __array_finalize__(self, obj: Any) -> None:
        self.unit, self.rng = getattr(obj, "unit", 0.0), getattr(obj, "rng", None)  # type: ignore[assignment]

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = None, **kwargs: Any) -> Any:
        one = next(a for a in (*inputs, *(out or ())) if isinstance(a, Noisy))
        plain = [np.asarray(a) if isinstance(a, Noisy) else a for a in inputs]
        y = getattr(ufunc, method)(*plain, **kwargs)
        if ufunc in _EXACT:
            return y if np.asarray(y).dtype == bool else _noisy(y, one.unit, one.rng)
        size, terms = np.abs(y), 1
        if ufunc is np.matmul:
            size, terms = np.matmul(*map(np.abs, plain)), np.shape(plain[0])[-1]
        elif method != "__call__":
            size = getattr(ufunc, method)(np.abs(plain[0]), *plain[1:], **kwargs)
            terms = np.size(plain[0]) // max(np.size(y), 1)
        xi = one.rng.standard_normal(np.shape(y))
        error = ROUNDINGS * one.unit * max(terms, 1) ** 0.5 * np.where(np.isfinite(size), size, 0) * xi
        made = _noisy(y + error, one.unit, one.rng)
        if out is None:
            return made
        out[0][...] = made
        return out[0]

    def __array_function__(self, func: Callable, types: Any, args: Any, kwargs: Any) -> Any:
        if func is np.einsum:  # C code that would not tell of its products
            formula, a, b = args
            if formula != "...i,...i->...":
                raise NotImplementedError(f"noise: einsum {formula!r}, expected '...i,...i->...'")
            return np.matmul(a[..., None, :], b[..., None])[..., 0, 0]
        return super().__array_function__(func, types, args, kwargs)  # pyright: ignore[reportAttributeAccessIssue]


def _noisy(a: Any, unit: float, rng: np.random.Generator) -> Noisy:
    made = np.asarray(a).view(Noisy)
    made.unit, made.rng = unit, rng
    return made
