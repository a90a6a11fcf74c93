"""The inputs of a case of the space: how x and dy lie in memory, and odd numbers: not finite, zero, very small, very large."""

import math
from typing import Any, NamedTuple

import numpy as np

from conformance.truth import lattice
from conformance.truth.case import Case
from conformance.truth.compare import expect, wide
from conformance.truth.lattice import Answers
from conformance.truth.space import Levels

TILE = 32  # numbers of 16 bits that an AMX unit adds up at once
EXPONENT = {"float32": 60, "float64": 400, "float16": 3, "bfloat16": 60}  # 2 to that power times x is still far from the end


def laid(array: np.ndarray, how: str) -> np.ndarray:
    """The numbers of the array, as a view that lies in memory in this way. A broadcast one has those of its first row alone."""
    axis = next((axis for axis, size in enumerate(array.shape[:-1]) if size > 1), -1)  # the first that has an order
    if how == "transposed" and axis >= 0:
        return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, axis, -1)), -1, axis)
    if how == "reversed":
        return np.flip(np.ascontiguousarray(np.flip(array, axis)), axis)
    if how == "broadcast" and axis >= 0:
        return np.broadcast_to(array.take([0], axis), array.shape)
    if how == "one token" and array.ndim > 1:
        return np.broadcast_to(array[..., :1, :].copy(), array.shape)
    if how == "one number":
        return np.broadcast_to(array.reshape(-1)[:1].copy(), array.shape)
    if how == "shifted":  # by one element, so that no address is a multiple of more than that
        view = np.zeros(array.size + 1, array.dtype)[1:].reshape(array.shape)
    elif how in ("strided", "cut out"):
        *rows, last = array.shape
        step, more = (2, 0) if how == "strided" else (1, 3)
        if how == "cut out" and math.prod(rows[:-1]) > 1:  # of longer sequences, and where their features are odd, of more
            rows[-1], more = rows[-1] + 1, 3 * (last % 2)
        beside = 0.0 if array.dtype.itemsize == 2 else np.nan  # in 16 bits oneDNN may multiply it by zero: see `_reached`
        whole = np.full((*rows, step * last + more), beside, array.dtype)[..., : step * last : step]
        view = whole[tuple(slice(n) for n in array.shape)]
    else:
        return array.copy()
    view[...] = array
    return view


class Odd(NamedTuple):
    """A case of which some numbers of x are not finite, zero, very small or very large, or all of dy are very small."""

    even: Case  # the case without them
    lost: dict[str, Any] = {}  # of each answer, the index of what cannot be finite
    open: dict[str, np.ndarray] = {}  # of each answer, where two honest layers may differ

    def judged(self, got: np.ndarray, want: np.ndarray, name: str, what: str) -> np.ndarray:
        """The answer, with that of `want` where it must not be finite, or is open. Raises a Mismatch where it is finite."""
        if got.shape != want.shape or not (name in self.lost or name in self.open):
            return got
        got = wide(got)
        if name in self.lost:
            expect(not np.isfinite(got[self.lost[name]]).any(), f"{what}, where x is not finite", "finite numbers", "none")
            got[self.lost[name]] = want[self.lost[name]]
        return np.where(self.open[name], want, got) if name in self.open else got


def odd(levels: Levels, case: Case, true: Answers) -> tuple[Case, Answers, Odd]:
    """The case with an x or dy as `content` says, and its right answers."""
    content, how = levels["content"], str(levels["x lies"])
    x, row = case.x.copy(), (case.x.size // case.x.shape[-1]) // 2
    rows = x.reshape(-1, x.shape[-1])
    row = slice(None) if how == "broadcast" else row  # then all rows are the same
    if content in ("NaN", "infinity"):
        column = rows.shape[1] // 2
        rows[row, column] = np.nan if content == "NaN" else np.inf
        hit = np.zeros(len(rows), bool)
        hit[row] = True
        lost = {"y": hit.reshape(x.shape[:-1]), "dA": column, "dB": ...}
        return case.replace(x=laid(x, how)), true, Odd(case, lost, _reached(case, row, column))
    if content == "zeros":
        rows[row] = 0
        changed = case.replace(x=laid(x, how))
        return changed, lattice.truth(changed), Odd(changed)
    power = EXPONENT[case.config.dtype] * (1 if content == "huge" else -1)
    if content == "tiny dy":
        dy = laid(np.ldexp(wide(case.dy), power).astype(case.dtype), str(levels["dy lies"]))
        dx, dA, dB = (np.ldexp(array, power) for array in (true.dx, true.dA, true.dB))
        return case.replace(dy=dy), true._replace(dx=dx, dA=dA, dB=dB), Odd(case)
    changed = case.replace(x=laid(np.ldexp(wide(x), power).astype(case.dtype), how))
    b = np.broadcast_to(0.0 if case.b is None else case.b.astype(np.float64), true.y.shape)
    product = np.ldexp(true.y - b, power)
    # Of b and the product the smaller one is lost in rounding. Where huge terms cancel, it depends on the order whether b is.
    # In float16, whose range is small, nothing may be lost.
    y, both = (np.where(b == 0, product, b), {}) if content == "tiny" else (product, {"y": (product == 0) & (b != 0)})
    if case.config.dtype == "float16":
        both = {"y": b != 0}
    return changed, true._replace(y=y, dA=np.ldexp(true.dA, power), dB=np.ldexp(true.dB, power)), Odd(case, {}, both)


def _reached(case: Case, row: int | slice, column: int) -> dict[str, np.ndarray]:
    """What of y and dA a number of x that is not finite may reach in a right layer, although it does not depend on that number:
    in 16 bits, the rows before it in memory. oneDNN fills up sums to a multiple of TILE for the AMX units of a CPU: with zeros
    on one side, and with what follows in memory, the next rows, on the other. Zero times infinity is NaN (oneDNN, issue 5717;
    seen with torch 2.13)."""
    if case.dtype.itemsize > 2:
        return {}
    found, rows = {}, case.x.size // case.x.shape[-1]
    if isinstance(row, int) and (case.config.in_features % TILE or case.config.rank % TILE):
        found["y"] = np.broadcast_to((np.arange(rows) < row).reshape(*case.x.shape[:-1], 1), case.dy.shape)
    if rows % TILE:
        found["dA"] = np.broadcast_to((np.arange(case.x.shape[-1]) < column)[:, None], case.A.shape)
    return found
