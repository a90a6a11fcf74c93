"""Which single faults a case shows: what is left out or exchanged along one axis changes an answer, or does not.

All answers are sums of products, so this is linear algebra. If index k of an axis is left out, a sum over the axis loses the
outer product of two vectors, which is zero only if one of them is. An answer that has the axis itself loses a vector. If i and
j are exchanged in one operand of a product alone, the sum changes by (aᵢ − aⱼ) ⊗ (bᵢ − bⱼ).

Vectors are compared by their products with one random vector (Freivalds, *Probabilistic machines can use less running time*,
1977). Vectors that differ have equal products with probability zero. Products that differ by rounding count as equal.
"""

from typing import NamedTuple

import numpy as np

from conformance.truth.case import Case

TILES = (1, 8, 16, 32, 64, 128)
ROUNDING = 1e-9  # far above the rounding of the products, far below the difference of numbers of few bits
AXES = {
    "x": ("rows", "in"), "W": ("out", "in"), "b": ("out",), "A": ("in", "rank"), "B": ("rank", "out"), "dy": ("rows", "out"),
}


class Fault(NamedTuple):
    """Tiles of `width` left out along an axis, in whatever product has it; or two indices exchanged in one operand."""

    axis: str
    width: int = 0  # 0: an exchange
    operand: str = ""


Seen = dict[Fault, dict[str, np.ndarray]]  # for each fault and answer: for each tile or pair, whether the answer changes


def seen(case: Case, truth) -> Seen:
    """The faults that each answer shows. `truth` is the Answers of the case."""
    p = _Products(case, truth)
    found: Seen = {}
    for axis, size in p.sizes.items():
        for width in TILES:
            if width == 1 or width < size:
                starts = np.arange(0, size, width)
                found[Fault(axis, width)] = {answer: _lost(part, starts) for answer, part in p.parts(axis).items()}
        pairs = [np.arange(size - step) for step in _steps(size)]
        first = np.concatenate([np.zeros(0, int), *pairs])
        second = np.concatenate([np.zeros(0, int), *(i + step for i, step in zip(pairs, _steps(size), strict=True))])
        for operand in AXES:
            if axis in AXES[operand] and not (operand == "b" and case.b is None):
                found[Fault(axis, 0, operand)] = {
                    answer: np.logical_and.reduce([_differ(vector, first, second) for vector in vectors])
                    for answer, vectors in p.factors(operand, axis).items()
                }
    return found


def by_any(answers: dict[str, np.ndarray]) -> np.ndarray:
    """For each tile or pair, whether some answer shows the fault."""
    return np.logical_or.reduce(list(answers.values()))


def _steps(size: int) -> list[int]:
    return [1 << k for k in range(size.bit_length()) if 1 << k < size]


def _lost(part: tuple[np.ndarray, ...], starts: np.ndarray) -> np.ndarray:
    """Whether tiles are not zero: of a vector, in any of their entries; of a product of two, in their sum."""
    terms = np.abs(part[0]) if len(part) == 1 else part[0] * part[1]
    return np.abs(np.add.reduceat(terms, starts)) > ROUNDING * np.add.reduceat(np.abs(terms), starts)


def _differ(vector: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.abs(vector[first] - vector[second]) > ROUNDING * np.abs(vector).max(initial=0.0)


class _Products:
    """The products of all arrays and answers with random vectors. `of[name, axis]` has a number for each index of the axis."""

    def __init__(self, case: Case, truth):
        W, A, B = (array.astype(np.float64) for array in (case.W, case.A, case.B))
        x, dy, y, dx = (a.astype(np.float64).reshape(-1, a.shape[-1]) for a in (case.x, case.dy, truth.y, truth.dx))
        rng = np.random.default_rng(0)
        self.sizes = {"rows": len(x), "in": len(A), "out": len(W), "rank": len(B)}
        v = {axis: rng.standard_normal(size) for axis, size in self.sizes.items()}
        s = case.scale
        b = np.zeros(len(W)) if case.b is None else case.b.astype(np.float64)
        h, u = s * (x @ A), s * (dy @ B.T)
        named = {"x": x, "W": W, "A": A, "B": B, "dy": dy, "merged": truth.merged}
        axes = AXES | {"merged": ("out", "in")}
        named |= {"y": y - b, "dx": dx, "dA": truth.dA, "dB": truth.dB, "h": h, "u": u}
        axes |= {"y": ("rows", "out"), "dx": ("rows", "in"), "dA": ("in", "rank"), "dB": ("rank", "out")}
        axes |= {"h": ("rows", "rank"), "u": ("rows", "rank")}
        self.of = {("b", "out"): b}
        for name, array in named.items():
            first, second = axes[name]
            self.of[name, first], self.of[name, second] = array @ v[second], v[first] @ array
        of = self.of
        of["sA", "in"], of["sA", "rank"], of["sB", "out"] = s * of["A", "in"], s * of["A", "rank"], s * of["B", "out"]
        of["G", "in"], of["G", "out"] = of["dy", "rows"] @ x, of["x", "rows"] @ dy  # xᵀ dy, (in, out)
        of["AB", "in"], of["AB", "out"] = s * (A @ of["B", "rank"]), s * (of["A", "rank"] @ B)  # s A B, (in, out)
        of["base y", "out"], of["LoRA y", "out"] = W @ of["x", "in"], of["h", "rank"] @ B
        of["base dx", "in"], of["LoRA dx", "in"] = of["dy", "out"] @ W, A @ of["u", "rank"]

    def _named(self, table: dict[str, str], axis: str) -> dict[str, tuple[np.ndarray, ...]]:
        return {answer: tuple(self.of[name, axis] for name in names.split(", ")) for answer, names in table.items()}

    def parts(self, axis: str) -> dict[str, tuple[np.ndarray, ...]]:
        """What an answer loses at each index: one vector, or the product of two. The scale is in h, u, A B, dA and dB."""
        return self._named({
            "rows": {"y": "y", "dx": "dx", "dA": "x, u", "dB": "h, dy"},
            "in": {"y": "x, merged", "dx": "dx", "dA": "dA", "dB": "sA, G", "merged": "merged"},
            "out": {"y": "y", "dx": "dy, merged", "dA": "G, sB", "dB": "dB", "merged": "merged"},
            "rank": {"y": "h, B", "dx": "u, A", "dA": "dA", "dB": "dB", "merged": "sA, B"},
        }[axis], axis)

    def factors(self, operand: str, axis: str) -> dict[str, tuple[np.ndarray, ...]]:
        """The vectors that must all differ at i and j, so that an answer shows their exchange in this operand."""
        return self._named({
            ("x", "rows"): {"y": "y", "dA": "x, u", "dB": "h, dy"},
            ("x", "in"): {"y": "x, merged", "dA": "dA", "dB": "sA, G"},
            ("W", "out"): {"y": "base y", "dx": "dy, W", "merged": "W"},
            ("W", "in"): {"y": "x, W", "dx": "base dx", "merged": "W"},
            ("b", "out"): {"y": "b"},
            ("A", "in"): {"y": "x, AB", "dx": "LoRA dx", "dB": "sA, G", "merged": "AB"},
            ("A", "rank"): {"y": "h, B", "dx": "u, A", "dB": "dB", "merged": "sA, B"},
            ("B", "rank"): {"y": "h, B", "dx": "u, A", "dA": "dA", "merged": "sA, B"},
            ("B", "out"): {"y": "LoRA y", "dx": "dy, AB", "dA": "sB, G", "merged": "AB"},
            ("dy", "rows"): {"dx": "dx", "dA": "x, u", "dB": "h, dy"},
            ("dy", "out"): {"dx": "dy, merged", "dA": "G, sB", "dB": "dB"},
        }[operand, axis], axis)
