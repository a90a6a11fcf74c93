"""A case: the arrays and the configuration of one trial, and the right answers, which `lora_ref` alone computes."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import ml_dtypes
import numpy as np

from conformance.subject import LayerConfig, Unsupported
from conformance.truth.compare import wide
from lora_ref import lora
from lora_ref.error import bounds

DTYPES = {
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
BITS = {"float32": 24, "float64": 53, "float16": 11, "bfloat16": 8}  # bits of the significand


class FurtherAdapter(NamedTuple):
    """A further adapter of a layer: A (in, rank), B (rank, out). It has its own rank and alpha."""

    name: str
    A: np.ndarray
    B: np.ndarray
    alpha: float


@dataclass(frozen=True, eq=False)
class Case:
    """The configuration and the arrays of one trial: x (…, in), W (out, in), b (out) or None, A (in, rank), B (rank, out) and
    dy (…, out), all of the config's dtype."""

    config: LayerConfig
    W: np.ndarray
    b: np.ndarray | None
    A: np.ndarray
    B: np.ndarray
    x: np.ndarray
    dy: np.ndarray
    operations: tuple[str, ...] = ()  # for requirements about sequences of operations
    others: tuple[FurtherAdapter, ...] = ()  # further adapters; A and B are the adapter "default"
    weights: tuple[float, ...] = ()  # one for "default" and one for each of the others

    @property
    def adapter(self) -> dict[str, np.ndarray]:
        return {"A": self.A, "B": self.B}

    @property
    def dtype(self) -> np.dtype:
        return DTYPES[self.config.dtype]

    @property
    def scale(self) -> float:
        return lora.scale(self.config.alpha, self.config.rank, self.config.scaling)

    @property
    def size(self) -> float:
        """Size of the case: fewer and smaller numbers are easier to read."""
        factors = [a for other in self.others for a in (other.A, other.B)]
        arrays = [wide(a) for a in (self.W, self.A, self.B, self.x, self.dy, *factors)]
        return len(self.operations) + float(sum(a.size + np.abs(a[np.isfinite(a)]).sum() for a in arrays))

    @property
    def numbers(self) -> int:
        """How many numbers the case holds. The time that it takes grows with them."""
        return sum(a.size for a in (self.W, self.A, self.B, self.x, self.dy))

    def replace(self, **changes) -> "Case":
        """The same case with some arrays, or some fields of its LayerConfig, replaced."""
        arrays = {k: v for k, v in changes.items() if k in ("W", "b", "A", "B", "x", "dy")}
        config = {k: v for k, v in changes.items() if k not in arrays}
        return replace(self, config=replace(self.config, **config), **arrays)

    def stored_as(self, dtype: str) -> "Case":
        """The same case with all arrays in another number format."""
        arrays = {name: getattr(self, name) for name in ("W", "b", "A", "B", "x", "dy")}
        return self.replace(dtype=dtype, **{
            name: None if array is None else wide(array).astype(np.float64).astype(DTYPES[dtype])
            for name, array in arrays.items()})

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all adapters."""
        return ("default", *(other.name for other in self.others))

    def alone(self, name: str) -> "Case":
        """The case of a layer whose only adapter is the one of that name."""
        A, B, alpha = next(((o.A, o.B, o.alpha) for o in self.others if o.name == name), (self.A, self.B, self.config.alpha))
        return replace(self.replace(A=A, B=B, alpha=alpha, rank=A.shape[1]), others=(), weights=())

    @property
    def all_weights(self) -> dict[str, float]:
        return dict(zip(self.names, self.weights, strict=True))

    def fitted(self, scale: float | None, alpha: float | None) -> "Case":
        """The case for an implementation whose scale or whose alpha is fixed. The case itself if neither is. Raises Unsupported
        if an exact case would not be exact any more. A scale that is fixed is written as a number, so nobody takes its root."""
        if scale is None and alpha is None or self.config.scaling != "standard":
            return self
        changed = self.replace(alpha=alpha if scale is None else scale * self.config.rank)
        if exact_in_any_order(self) and not exact_in_any_order(changed, with_root=False):
            raise Unsupported(f"a case that is exact at a scale of {changed.scale:g}")
        return changed

    @property
    def squared(self) -> "Case":
        """The case without the last inputs, or the last outputs, so that there are as many of both."""
        n = min(self.config.in_features, self.config.out_features)
        changed = self.replace(
            in_features=n, out_features=n, W=self.W[:n, :n].copy(), b=None if self.b is None else self.b[:n].copy(),
            A=self.A[:n].copy(), B=self.B[:, :n].copy(), x=self.x[..., :n].copy(), dy=self.dy[..., :n].copy())
        others = tuple(other._replace(A=other.A[:n].copy(), B=other.B[:, :n].copy()) for other in self.others)
        return replace(changed, others=others)

    def of_rank(self, rank: int) -> "Case":
        """The case with so many ranks and the same scale. Further ones have a row of B that is zero. Raises Unsupported if an
        exact case would not be exact any more."""
        have = self.config.rank
        if rank == have:
            return self
        A = np.take(self.A, np.arange(rank) % have, axis=1)
        B = np.zeros((rank, self.B.shape[1]), self.B.dtype)
        B[:have] = self.B[:rank]
        alpha = self.scale * (rank**0.5 if self.config.scaling == "rslora" else rank)
        changed = self.replace(rank=rank, alpha=alpha, A=A, B=B)
        if exact_in_any_order(self) and not exact_in_any_order(changed):
            raise Unsupported(f"a case that is exact at rank {rank}")
        return changed

    @property
    def with_other_factors(self) -> "Case":
        """The case with another adapter of the same shapes."""
        return self.replace(A=np.flip(self.A).astype(self.dtype), B=np.flip(self.B).astype(self.dtype))

    def copy(self) -> "Case":
        """A copy with its own x and dy, since some layers write into their arguments. Computed truths and bounds are kept."""
        copied = self.replace(x=self.x.copy(), dy=self.dy.copy())
        vars(copied).update({"truth": self.truth} | {name: known for name, known in vars(self).items() if name == "bound"})
        return copied

    @cached_property
    def truth(self) -> "Truth":
        return Truth(self)

    @cached_property
    def bound(self) -> "Bound":
        return Bound(self)


class Truth:
    """The right y, dx, dA, dB and merged W of a case, in longdouble for float64 layers and in float64 for all others."""

    def __init__(self, case: Case):
        kind = np.longdouble if case.config.dtype == "float64" else np.float64
        W, A, B, x, dy = (wide(a).astype(kind) for a in (case.W, case.A, case.B, case.x, case.dy))
        b = None if case.b is None else wide(case.b).astype(kind)
        p = lora.LoRA(A, B)
        self.y, cache = lora.forward(x, W, b, p, case.scale)
        self.base = lora.forward(x, W, b, lora.LoRA(0 * A, 0 * B), case.scale)[0]
        self.dx, (self.dA, self.dB) = lora.backward(dy, cache)
        self.merged, _ = lora.merge(W, b, p, case.scale)


class Together:
    """The right answers with several active adapters: y, dx, merged W, and gradients under the names of Layer.backward."""

    def __init__(self, case: Case, weights: dict[str, float]):
        self.case, self.weights = case, weights
        W, dx = wide(case.W), wide(case.dy) @ wide(case.W)
        self.y, self.dx, self.merged = case.truth.base.copy(), dx.copy(), W.copy()
        self.gradients: dict[str, np.ndarray] = {}
        for name, weight in weights.items():
            truth, prefix = case.alone(name).truth, "" if name == "default" else f"{name}."
            self.y += weight * (truth.y - truth.base)
            self.dx += weight * (truth.dx - dx)
            self.merged += weight * (truth.merged - W)
            self.gradients |= {f"{prefix}A": weight * truth.dA, f"{prefix}B": weight * truth.dB}

    @cached_property
    def bound_of_one(self) -> np.ndarray:
        """Bound of y of one adapter that combines them all. The combination may have multiplied both A and B by
        √(weight · scale), which was rounded twice, and rounded the products."""
        case, parts = self.case, [(weight, self.case.alone(name)) for name, weight in self.weights.items()]
        A = np.hstack([wide(part.A) for _, part in parts])
        B = np.vstack([weight * part.scale * wide(part.B) for weight, part in parts])
        layer, truth = (
            bounds.forward(case.x, case.W, case.b, lora.LoRA(A, B), 1.0, precision, more=6)
            for precision in (case.config.dtype, "longdouble")
        )
        return layer + truth


class Bound:
    """How far an honest layer of the case's dtype may be from the truth. The rounding of the truth itself is included. Each
    bound is computed when it is asked for."""

    def __init__(self, case: Case):
        self._W, self._x, self._dy, A, B = (wide(a).astype(np.float64) for a in (case.W, case.x, case.dy, case.A, case.B))
        self._p, self._case, dtype = lora.LoRA(A, B), case, case.config.dtype
        self._precisions = dtype, "longdouble" if dtype == "float64" else "float64"

    @cached_property
    def y(self) -> np.ndarray:
        case = self._case
        of_layer, of_truth = (
            bounds.forward(self._x, self._W, case.b, self._p, case.scale, each) for each in self._precisions)
        return of_layer + of_truth

    @cached_property
    def _gradients(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        of_layer, of_truth = (
            bounds.backward(self._dy, self._x, self._W, self._p, self._case.scale, each) for each in self._precisions)
        return of_layer[0] + of_truth[0], of_layer[1].A + of_truth[1].A, of_layer[1].B + of_truth[1].B

    @property
    def dx(self) -> np.ndarray:
        return self._gradients[0]

    @property
    def dA(self) -> np.ndarray:
        return self._gradients[1]

    @property
    def dB(self) -> np.ndarray:
        return self._gradients[2]

    @cached_property
    def merged(self) -> np.ndarray:
        return self._of_weight(bounds.merge)

    @cached_property
    def merged_once(self) -> np.ndarray:
        return self._of_weight(bounds.merge_rounded_once)

    @cached_property
    def unmerged(self) -> np.ndarray:
        return self._of_weight(bounds.unmerge)

    def _of_weight(self, bound: Callable[..., np.ndarray]) -> np.ndarray:
        of_layer, of_truth = (bound(self._W, self._p, self._case.scale, each) for each in self._precisions)
        return of_layer + of_truth


def resolution(case: Case) -> float:
    """The smallest relative error of the scale that exceeds the bounds of y, dx, dA, dB and W', in each of them. It is infinite
    if the LoRA part of one of them is zero."""
    truth, W, dy = case.truth, wide(case.W), wide(case.dy)
    parts = {
        "y": truth.y - truth.base, "dx": truth.dx - dy @ W, "dA": truth.dA, "dB": truth.dB, "merged": truth.merged - W,
    }
    with np.errstate(divide="ignore", invalid="ignore"):
        return max(float(np.nanmin(getattr(case.bound, name) / np.abs(part), initial=np.inf)) for name, part in parts.items())


def exact_in_any_order(case: Case, with_root: bool = True) -> bool:
    """Whether every honest way of computing the case is free of rounding in its dtype. That is so if all numbers that can
    occur in a step are multiples of one power of two, and no sum of absolute values exceeds 2^bits times that power. Such a
    way may multiply each factor by the root of the scale, unless `with_root` is False."""
    return all(total <= bit * 2.0 ** BITS[case.config.dtype] for total, bit in _sums(case, with_root))


def exact_together(case: Case) -> bool:
    """Whether a case with several adapters is exact in any order, with its weights and with all weights 1. This is asked of
    the one adapter that combines them all, and of each adapter alone, with and without its weight in the scale."""
    for weights in (case.weights, (1.0,) * len(case.names)):
        parts = [case.alone(name) for name in case.names]
        weighted = [part.replace(alpha=weight * part.config.alpha) for part, weight in zip(parts, weights, strict=True)]
        A = np.hstack([part.A for part in weighted])
        B = np.vstack([(part.scale * wide(part.B)).astype(case.dtype) for part in weighted])
        whole = case.replace(A=A, B=B, rank=A.shape[1], alpha=A.shape[1], scaling="standard")
        if not all(map(exact_in_any_order, (*parts, *weighted, whole))):
            return False
    return True


def in_range(case: Case) -> bool:
    """Whether no honest way of computing the case can overflow. The largest float16 is 65504."""
    return case.config.dtype != "float16" or all(total <= 2.0**15 for total, _ in _sums(case))


def holds(dtype: str, array: np.ndarray) -> bool:
    """Whether the format has numbers as large as these."""
    return bool((np.abs(array) <= float(ml_dtypes.finfo(DTYPES[dtype]).max)).all())


def _sums(case: Case, with_root: bool = True) -> list[tuple[float, float]]:
    """For every step: the largest sum of absolute values that can occur, and the last bit of its terms."""
    arrays = [wide(a).astype(np.float64) for a in (case.W, case.A, case.B, case.x, case.dy)]
    W, A, B, x, dy = map(np.abs, arrays)
    gW, gA, gB, gx, gdy = map(last_bit, arrays)
    b, gb = (0.0, np.inf) if case.b is None else (np.abs(wide(case.b).astype(np.float64)), last_bit(case.b))
    root = abs(case.scale) ** 0.5 if with_root else 1.0  # a layer may multiply each factor by it
    factors = (case.scale, case.config.alpha, 1.0, root)  # scaled, scaled by alpha alone, not scaled, scaled by the root
    s, gs = max(map(abs, factors)), min(last_bit(np.array(factor)) for factor in factors)
    x2, dy2 = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    h, u = s * (x2 @ A), s * (dy2 @ B.T)
    sums = (
        (h, gs * gx * gA),
        (u, gs * gdy * gB),
        (x2 @ W.T + b + h @ B, min(gx * gW, gb, gs * gx * gA * gB)),
        (dy2 @ W + u @ A.T, min(gdy * gW, gs * gdy * gA * gB)),
        (x2.T @ u, gs * gx * gdy * gB),
        (h.T @ dy2, gs * gx * gdy * gA),
        (W + s * (A @ B).T, min(gW, gs * gA * gB)),
        (x2.T @ dy2, gx * gdy),  # for an implementation that computes dW first
    )
    return [(float(total.max(initial=0.0)), bit) for total, bit in sums]


def last_bit(array: np.ndarray) -> float:
    """The largest power of two that divides every entry; infinite if all entries are zero."""
    mantissa, exponent = np.frexp(wide(array).astype(np.float64))
    whole = (mantissa * 2.0**53).astype(np.int64)
    bits = np.where(whole == 0, np.inf, np.ldexp((whole & -whole).astype(np.float64), exponent - 53))
    return float(bits.min(initial=np.inf))


def shows_the_lora_part(case: Case) -> bool:
    """Whether the LoRA part is visible in the output and in every gradient. Where it is not, a wrong LoRA part could pass."""
    W, A, B, x, dy = (wide(a).astype(np.float64) for a in (case.W, case.A, case.B, case.x, case.dy))
    x2, dy2 = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    parts = (x @ A @ B, dy @ B.T @ A.T, x2.T @ dy2 @ B.T, A.T @ x2.T @ dy2)
    return all(part.any() for part in parts)

