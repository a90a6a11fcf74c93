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

All runs are made together: the program sees arrays of the shapes that it expects, and each of them carries RUNS values in
the place of every number. What cannot be done for all runs alike raises NotImplementedError.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from types import EllipsisType
from typing import Any, NoReturn

import numpy as np

ROUNDINGS = 4
RUNS = 16  # an even number: who compares takes it for the degrees of freedom

Program = Callable[..., Mapping[str, np.ndarray]]  # takes a dict of arrays and gives one

_EXACT = {np.maximum, np.minimum, np.negative, np.positive, np.absolute}  # and whatever gives no floating-point numbers
_DEFAULTS = ("dtype", None), ("where", True), ("out", None), ("casting", "same_kind")  # arguments that say nothing
_FLOAT64 = 2.0**-40  # from this unit on float64 is fine enough for the runs: see _kind


def spread(
    f: Program, arrays: Mapping[str, np.ndarray], unit: float, seed: int = 0
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """What f gives for the arrays, in longdouble, and the standard deviation of every number of it under rounding of that
    unit."""
    truth = {name: np.asarray(a) for name, a in f({name: _as(a, np.longdouble) for name, a in arrays.items()}).items()}
    deviation = {}
    for name, found in runs(f, arrays, unit, seed).items():
        error = (found - truth[name]).astype(float)
        if (np.isnan(error) & np.isfinite(truth[name])).any():
            raise NotImplementedError(f"noise: some run has no number for {name}; something took its array for a plain one")
        deviation[name] = np.sqrt(np.square(error).mean(0))
    return truth, deviation


def runs(f: Program, arrays: Mapping[str, np.ndarray], unit: float, seed: int = 0) -> dict[str, np.ndarray]:
    """What f gives for the arrays in each of RUNS runs, (RUNS, …), every operation with a random rounding error."""
    noise = Noise(unit, seed)
    found = f({name: _noisy(_in_all_runs(_as(a, _kind(unit))), noise) for name, a in arrays.items()})
    for name, a in found.items():
        if not isinstance(a, Noisy):
            raise NotImplementedError(f"noise: {name} is a plain {type(a).__name__}, expected what follows from the arrays")
    return {name: a.runs for name, a in found.items() if isinstance(a, Noisy)}


class Noise:
    """Where the errors of all runs come from."""

    def __init__(self, unit: float, seed: int):
        self.v, self.rng = ROUNDINGS * unit, np.random.default_rng(seed)

    def errors(self, shape: tuple[int, ...]) -> np.ndarray:
        """v ξ, in float32: 24 bits of what is random are enough."""
        return np.float32(self.v) * self.rng.standard_normal(shape, np.float32)


class Noisy(np.ndarray):
    """An array of which every operation makes a random rounding error, in all runs at once.

    `runs` (RUNS, …) holds the numbers. The array itself has the shape and the dtype of one run, for the program to see, and
    NaN for every number (zero for a truth value), which cannot be written to: what reads the memory past the operations below
    finds no number.
    """

    runs: np.ndarray
    noise: Noise

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, out: tuple = (), **kwargs: Any) -> Any:
        if method == "__call__" and not (out or kwargs or ufunc.signature) and ufunc.nout == 1:
            return self._rounded(ufunc, ufunc(*_aligned(inputs)))
        kwargs = {key: value for key, value in kwargs.items() if (key, value) not in _DEFAULTS}
        of = {"__call__": self._call, "reduce": self._reduce, "reduceat": self._reduceat, "at": self._at}.get(method)
        if of is None or ufunc.nout != 1 or (ufunc.signature is not None and ufunc is not np.matmul):
            _refuse(f"{ufunc.__name__}.{method}")
        made = of(ufunc, *inputs, **kwargs)
        if not out:
            return made
        if not isinstance(out[0], Noisy) or out[0].shape != made.shape:
            _refuse(f"{ufunc.__name__} into an array of {out[0].shape} that is no answer of the arrays")
        out[0].runs[...] = made.runs
        return out[0]

    def _call(self, ufunc: np.ufunc, *inputs: Any, **kwargs: Any) -> "Noisy":
        _no_more(ufunc.__name__, kwargs)
        return self._matmul(*inputs) if ufunc is np.matmul else self._rounded(ufunc, ufunc(*_aligned(inputs)))

    def _matmul(self, a: Any, b: Any) -> "Noisy":
        if np.ndim(a) == 1:
            return self._matmul(a[None], b)[..., 0, :]
        if np.ndim(b) == 1:
            return self._matmul(a, b[:, None])[..., 0]
        a, b = _aligned((a, b))
        return self._rounded_sum(a @ b, np.abs(a) @ np.abs(b), a.shape[-1])

    def _reduce(self, ufunc: np.ufunc, x: "Noisy", axis: Any = 0, keepdims: bool = False, **kwargs: Any) -> "Noisy":
        _no_more(f"{ufunc.__name__}.reduce", kwargs, "dtype")
        axes = _axes(range(x.ndim) if axis is None else axis if isinstance(axis, tuple) else (axis,), x.ndim)
        y = ufunc.reduce(x.runs, axes, keepdims=keepdims, **kwargs)
        if ufunc is not np.add:
            return self._rounded(ufunc, y)
        return self._rounded_sum(y, np.abs(x.runs).sum(axes, keepdims=keepdims), x.runs.size // max(y.size, 1))

    def _reduceat(self, ufunc: np.ufunc, x: "Noisy", starts: Any, axis: int = 0, **kwargs: Any) -> "Noisy":
        _no_more(f"{ufunc.__name__}.reduceat", kwargs)
        if ufunc is not np.add or isinstance(starts, Noisy):
            _refuse(f"{ufunc.__name__}.reduceat")
        (axis,) = _axes((axis,), x.ndim)
        y, size = np.add.reduceat(x.runs, starts, axis), np.add.reduceat(np.abs(x.runs), starts, axis)
        return self._rounded_sum(y, size, x.runs.size // max(y.size, 1))

    def _at(self, ufunc: np.ufunc, x: Any, index: Any, values: Any) -> "Noisy":
        """In place: every element of x becomes a sum, of itself and of the values that have its index."""
        if ufunc is not np.add or not isinstance(x, Noisy):
            _refuse(f"{ufunc.__name__}.at")
        index = _index(index, x.ndim)
        counts, size = np.zeros(x.shape, int), np.abs(x.runs)
        np.add.at(counts, index[1:], 1)
        _, values = _aligned((x.runs[0][index[1:]], values))
        np.add.at(x.runs, index, values)
        np.add.at(size, index, np.abs(values))
        x.runs[...] = self._rounded_sum(x.runs, size, counts).runs
        return x

    def _rounded(self, ufunc: np.ufunc, y: np.ndarray) -> "Noisy":
        if y.dtype.kind == "f" and ufunc not in _EXACT:
            y *= self.noise.errors(y.shape) + y.dtype.type(1)  # not y + y v ξ, where y may be infinite
        return _noisy(y, self.noise)

    def _rounded_sum(self, y: np.ndarray, size: np.ndarray, terms: Any) -> "Noisy":
        """`size` is the sum of the sizes of what was summed, `terms` their number."""
        if y.dtype.kind == "f":
            y += self.noise.errors(y.shape) * np.sqrt(terms) * np.where(np.isfinite(size), size, 0)
        return _noisy(y, self.noise)

    def __array_function__(self, func: Callable, types: Any, args: Any, kwargs: Any) -> Any:
        if func in _FUNCTIONS:
            return _FUNCTIONS[func](self, *args, **kwargs)
        if func in _BY_METHODS:
            return super().__array_function__(func, types, args, kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        _refuse(func.__name__)

    def __getitem__(self, index: Any) -> "Noisy":
        found = self.runs[_index(index, self.ndim)]
        copied = not np.may_share_memory(found, self.runs)  # by indices: then NumPy may lay the runs side by side
        return _noisy(np.ascontiguousarray(found) if copied else found, self.noise)

    def __setitem__(self, index: Any, value: Any) -> None:
        index = _index(index, self.ndim)
        place = self.runs[index]
        if np.ndim(value) >= place.ndim:
            _refuse(f"an item of {np.shape(value)} in a place of {place.shape[1:]}")
        self.runs[index] = _aligned((value,), place.ndim - 1)[0]

    def __iter__(self) -> Iterator["Noisy"]:
        return (self[i] for i in range(len(self)))

    def reshape(self, *shape: Any) -> "Noisy":  # type: ignore[override]
        shape = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape
        return _noisy(self.runs.reshape(len(self.runs), *shape), self.noise)

    def ravel(self) -> "Noisy":  # type: ignore[override]
        return self.reshape(-1)

    def transpose(self, *axes: Any) -> "Noisy":
        axes = tuple(axes[0]) if len(axes) == 1 and isinstance(axes[0], tuple | list) else axes
        return _noisy(self.runs.transpose(0, *_axes(axes or reversed(range(self.ndim)), self.ndim)), self.noise)

    def swapaxes(self, axis1: Any, axis2: Any) -> "Noisy":  # type: ignore[override]
        return _noisy(self.runs.swapaxes(*_axes((axis1, axis2), self.ndim)), self.noise)

    def astype(self, dtype: Any) -> "Noisy":  # type: ignore[override]
        return _noisy(self.runs.astype(dtype), self.noise)

    def copy(self) -> "Noisy":  # type: ignore[override]
        return _noisy(self.runs.copy(), self.noise)

    T = property(transpose)  # type: ignore[assignment]
    real = property(lambda self: self)  # type: ignore[assignment]


def _concatenate(one: Noisy, arrays: Any, axis: int = 0, **kwargs: Any) -> Noisy:
    _no_more("concatenate", {key: value for key, value in kwargs.items() if (key, value) not in _DEFAULTS})
    (axis,) = _axes((axis,), np.ndim(arrays[0]))
    return _noisy(np.concatenate([_values(a) for a in arrays], axis), one.noise)


def _where(one: Noisy, *arguments: Any) -> Noisy:
    if len(arguments) != 3:
        _refuse("where without values")
    return _noisy(np.where(*_aligned(arguments)), one.noise)


def _broadcast_to(one: Noisy, array: Noisy, shape: tuple[int, ...]) -> Noisy:
    (aligned,) = _aligned((array,), len(shape))
    return _noisy(np.broadcast_to(aligned, (len(aligned), *shape)), one.noise)


def _zeros_like(one: Noisy, array: Any, dtype: Any = None, shape: Any = None) -> Noisy:
    shape = array.shape if shape is None else shape if isinstance(shape, tuple) else (shape,)
    return _noisy(np.zeros((len(one.runs), *shape), dtype or array.dtype), one.noise)


def _einsum(one: Noisy, formula: str, *operands: Any) -> Noisy:
    if formula != "...i,...i->...":
        _refuse(f"einsum {formula!r}")
    a, b = _aligned(operands)
    return one._rounded_sum(np.einsum(formula, a, b), np.einsum(formula, np.abs(a), np.abs(b)), a.shape[-1])


def _outer(one: Noisy, a: Any, b: Any) -> Noisy:
    return a.reshape(-1, 1) * b.reshape(-1)


_FUNCTIONS: dict[Callable, Callable] = {
    np.concatenate: _concatenate, np.where: _where, np.broadcast_to: _broadcast_to, np.zeros_like: _zeros_like,
    np.empty_like: _zeros_like, np.einsum: _einsum, np.outer: _outer,
}
# What NumPy writes in Python, with nothing but the methods and functions above.
_BY_METHODS = {
    np.sum, np.max, np.min, np.any, np.all, np.shape, np.ndim, np.size, np.real, np.reshape, np.ravel, np.transpose,
    np.swapaxes, np.moveaxis, np.expand_dims, np.stack, np.split, np.array_split, np.take_along_axis, np.put_along_axis,
}
_METHODS = {
    "reshape", "ravel", "transpose", "swapaxes", "astype", "copy", "T", "real",
    "sum", "max", "min", "any", "all",  # which NumPy hands to a ufunc
    "shape", "ndim", "size", "dtype", "itemsize", "nbytes",  # which are of one run
}


def _refuse(what: str) -> NoReturn:
    raise NotImplementedError(f"noise: {what} cannot be done for all runs at once; lora_ref/error/noise.py says what can")


def _refusal(name: str) -> Callable:
    return lambda self, *args, **kwargs: _refuse(name)


for _name in dir(np.ndarray):
    if not _name.startswith("_") and _name not in _METHODS:
        setattr(Noisy, _name, property(_refusal(_name)))
for _name in (
    "__bool__", "__int__", "__float__", "__complex__", "__index__", "__contains__", "__copy__", "__deepcopy__", "__reduce__",
    "__reduce_ex__", "__format__", "__str__", "__repr__", "__array__",
):
    setattr(Noisy, _name, _refusal(_name))


def _kind(unit: float) -> type[np.floating]:
    """In what the runs are computed. Its own rounding errors must be small beside the random ones: those of float64 are less
    than 2⁻¹³ of a unit of 2⁻⁴⁰ or more, so a deviation, the root of a sum of squares, is off by less than 2⁻²⁶ of itself."""
    return np.float64 if unit >= _FLOAT64 else np.longdouble


def _as(array: np.ndarray, dtype: Any) -> np.ndarray:
    return np.asarray(array, dtype)


def _noisy(values: np.ndarray, noise: Noise) -> Noisy:
    """The array whose runs are the values (RUNS, …)."""
    shape, dtype = values.shape[1:], values.dtype
    made = np.ndarray.__new__(Noisy, shape, dtype, _nan(dtype), 0, (0,) * len(shape))
    made.runs, made.noise = values, noise
    return made


@cache
def _nan(dtype: np.dtype) -> bytes:
    """The memory of one NaN, or of a zero where there is no NaN."""
    return np.full(1, np.nan if dtype.kind == "f" else 0, dtype).tobytes()


def _in_all_runs(plain: np.ndarray) -> np.ndarray:
    return np.broadcast_to(plain, (RUNS, *plain.shape))


def _values(a: Any) -> np.ndarray:
    return a.runs if isinstance(a, Noisy) else _in_all_runs(np.asarray(a))


def _aligned(arrays: Any, ndim: int = 0) -> list[Any]:
    """The values of the arrays, those of every run with as many axes as the largest array has, or `ndim`; a plain array
    needs no more axes to be the same in all runs."""
    ndim = max(ndim, *map(_ndim, arrays), 0)
    return [_padded(a, ndim) if isinstance(a, Noisy) else a for a in arrays]


def _ndim(a: Any) -> int:
    return a.ndim if isinstance(a, np.ndarray) else 0 if isinstance(a, int | float) else np.ndim(a)


def _padded(a: Noisy, ndim: int) -> np.ndarray:
    return a.runs if a.ndim == ndim else a.runs.reshape(len(a.runs), *(1,) * (ndim - a.ndim), *a.shape)


def _axes(axes: Any, ndim: int) -> tuple[int, ...]:
    """Axes of one run as axes of the runs."""
    return tuple(range(1, ndim + 1)[axis] for axis in axes)


def _index(index: Any, ndim: int) -> tuple:
    """An index of one run as an index of the runs. NumPy moves what indices select to the front, before the runs, where a slice
    stands between the indices."""
    index = index if isinstance(index, tuple) else (index,)
    arrays = [i for i, part in enumerate(index) if not isinstance(part, slice | EllipsisType | None)]
    if any(isinstance(index[i], Noisy) for i in arrays):
        _refuse("an index that depends on the run")
    if any(np.ndim(index[i]) for i in arrays) and arrays != list(range(arrays[0], arrays[0] + len(arrays))):
        _refuse("indices on both sides of a slice")
    return (slice(None), *index)


def _no_more(what: str, kwargs: dict, *known: str) -> None:
    for key in kwargs:
        if key not in known:
            _refuse(f"{what} with {key}={kwargs[key]!r}")
