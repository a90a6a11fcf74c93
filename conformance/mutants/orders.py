"""Honest variations of how the layer computes: orders and blocks of sums, places of the scale, formats, layouts in memory."""

import math

import numpy as np

from conformance.mutants.honest import Honest
from conformance.subject import Arrays, LayerConfig

# --- sums ------------------------------------------------------------------------------------


def pieces(size: int, most: int) -> list[slice]:
    """Slices of at most that many, one after another; the last may be shorter."""
    return [slice(start, min(start + most, size)) for start in range(0, size, most)]


class SumsWithCompensation(Honest):
    """Sums the terms of a product one by one, and carries the rounding error of each addition to the next (Kahan)."""

    def product(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        left, right = self.up(left), self.up(right)
        total = np.zeros((left.shape[0], right.shape[1]), self.wide)
        lost = np.zeros_like(total)
        for k in range(left.shape[1]):
            term = left[:, k : k + 1] * right[k : k + 1] - lost
            after = total + term
            lost = np.where(np.isfinite(after), (after - total) - term, 0)
            total = after
        return total


class InTiles(Honest):
    """Computes tiles of 64 × 32 numbers of a product, each as a sum over blocks of 128 terms. Tiles at the end are smaller."""

    def product(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        left, right = self.up(left), self.up(right)
        total = np.zeros((left.shape[0], right.shape[1]), self.wide)
        for rows in pieces(len(left), 64):
            for columns in pieces(right.shape[1], 32):
                for terms in pieces(len(right), 128):
                    total[rows, columns] += left[rows, terms] @ right[terms, columns]
        return total


class PadsToSixteen(Honest):
    """Fills every axis up with zeros to a multiple of 16, and cuts the result off again."""

    def product(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        return (self.filled(left) @ self.filled(right))[: left.shape[0], : right.shape[1]]

    def filled(self, array: np.ndarray) -> np.ndarray:
        return np.pad(self.up(array), [(0, -size % 16) for size in array.shape])


class PadsWithWhatFollows(Honest):
    """In 16 bits, fills sums up to a multiple of 32: with zeros in one factor, and in the other with what follows in memory. So
    what is not finite reaches the rows before it, as in oneDNN on a CPU with AMX."""

    def product(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        total = super().product(left, right)
        rows, terms = left.shape
        if self.dtype.itemsize > 2 or not left.flags.c_contiguous or not left.size:
            return total
        ends = terms * np.arange(1, rows + 1)[:, None] + np.arange(-terms % 32)
        follows = np.append(self.up(left), 0)[np.minimum(ends, left.size)]
        return total + (0 * follows).sum(axis=1, keepdims=True)


class FourSums(Honest):
    """Adds up every fourth term by itself, and then the four sums."""

    def product(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        left, right = self.up(left), self.up(right)
        parts = [left[:, first::4] @ right[first::4] for first in range(4)]
        return (parts[0] + parts[1]) + (parts[2] + parts[3])


class RankByRank(Honest):
    """Adds the part of one rank after another to the base product."""

    def output(self, x: np.ndarray) -> np.ndarray:
        y = self.base(x)
        if not self.merged:
            for r in range(self.config.rank):
                h = self.product(self.dropped(x), self.A[:, r : r + 1])                        # (n, 1)
                y = self.plus(y, self.scaled(self.product(h, self.B[r : r + 1])))
        return y


class OneProduct(Honest):
    """Computes base and LoRA part as one product, of x beside the scaled x A and of W beside Bᵀ."""

    def output(self, x: np.ndarray) -> np.ndarray:
        if self.merged:
            return self.base(x)
        h = self.scaled(self.product(self.dropped(x), self.A))                                 # (n, rank)
        y = self.product(np.hstack([self.up(x), h]), np.vstack([self.up(self.W).T, self.up(self.B)]))
        return y if self.b is None else self.plus(y, self.b)


# --- formats ---------------------------------------------------------------------------------


class ComputesInFloat64(Honest):
    """Computes in float64, whatever the format is, and rounds once at the end."""

    def __init__(self, config: LayerConfig, weight: np.ndarray, bias: np.ndarray | None):
        super().__init__(config, weight, bias)
        self.wide = np.float64


class GradientsInFloat32(Honest):
    """Adds the gradients of half-precision factors up in float32, and rounds what it shows."""

    def accumulated(self, dA: np.ndarray, dB: np.ndarray) -> Arrays:
        return {name: self.rounded(gradient) for name, gradient in super().accumulated(dA, dB).items()}

    def kept_gradient(self, gradient: np.ndarray) -> np.ndarray:
        return self.up(gradient)


class MastersInFloat32(Honest):
    """Keeps A and B in float32 for the optimiser and the files, and computes with copies in half precision."""

    master_A: np.ndarray
    master_B: np.ndarray
    A = property(lambda self: self.rounded(self.master_A), lambda self, value: setattr(self, "master_A", self.up(value)))
    B = property(lambda self: self.rounded(self.master_B), lambda self, value: setattr(self, "master_B", self.up(value)))

    def set_factors(self, arrays: Arrays) -> None:
        self.A, self.B = arrays["A"], arrays["B"]

    def step(self, lr: float) -> None:
        self.A, self.B = self.master_A - lr * self.up(self.dA), self.master_B - lr * self.up(self.dB)

    def contents(self) -> Arrays:
        return {"A": self.master_A, "B": self.master_B}


# --- the scale -------------------------------------------------------------------------------


class ScalesA(Honest):
    """Applies the scale to a copy of A."""

    def lora(self, x: np.ndarray) -> np.ndarray:
        return self.product(self.product(self.dropped(x), self.scaled(self.A)), self.B)

    def lora_dx(self, dy: np.ndarray) -> np.ndarray:
        return self.dropped(self.product(self.product(dy, self.B.T), self.scaled(self.A).T))

    def gradient_of_B(self, dy: np.ndarray) -> np.ndarray:
        return self.product(self.product(self.dropped(self.x), self.scaled(self.A)).T, dy)

    def delta_weight(self) -> np.ndarray:
        return self.product(self.scaled(self.A), self.B).T


class ScalesBothByTheRoot(Honest):
    """Applies the root of the scale to copies of A and B, and its sign to that of B."""

    def part(self, array: np.ndarray) -> np.ndarray:
        return self.wide(math.sqrt(abs(self.scale))) * self.up(array)

    def signed(self, array: np.ndarray) -> np.ndarray:
        return self.wide(math.copysign(1, self.scale)) * self.part(array)

    def lora(self, x: np.ndarray) -> np.ndarray:
        return self.product(self.product(self.dropped(x), self.part(self.A)), self.signed(self.B))

    def lora_dx(self, dy: np.ndarray) -> np.ndarray:
        return self.dropped(self.product(self.product(dy, self.signed(self.B).T), self.part(self.A).T))

    def gradient_of_A(self, dy: np.ndarray) -> np.ndarray:
        return self.part(self.product(self.dropped(self.x).T, self.product(dy, self.signed(self.B).T)))

    def gradient_of_B(self, dy: np.ndarray) -> np.ndarray:
        return self.signed(self.product(self.product(self.dropped(self.x), self.part(self.A)).T, dy))

    def delta_weight(self) -> np.ndarray:
        return self.product(self.part(self.A), self.signed(self.B)).T


class DividesByTheRank(Honest):
    """Multiplies by alpha first, and then divides by the rank or its root."""

    def scaled(self, array: np.ndarray) -> np.ndarray:
        config = self.config
        divisor = math.sqrt(config.rank) if config.scaling == "rslora" else config.rank
        return self.wide(config.alpha) * self.up(array) / self.wide(divisor)


# --- memory ----------------------------------------------------------------------------------


class OneArray(Honest):
    """Keeps A above the transposed B in one array, as optimisers do that divide parameters among machines."""

    A = property(lambda self: self.both[: self.n_in], lambda self, value: self.put(slice(None, self.n_in), value))
    B = property(lambda self: self.both[self.n_in :].T, lambda self, value: self.put(slice(self.n_in, None), value.T))

    def __init__(self, config: LayerConfig, weight: np.ndarray, bias: np.ndarray | None):
        self.n_in = config.in_features
        self.both = np.zeros((config.in_features + config.out_features, config.rank), weight.dtype)
        super().__init__(config, weight, bias)

    def put(self, rows: slice, value: np.ndarray) -> None:
        self.both = self.both.copy()
        self.both[rows] = value


class StoresWTransposed(Honest):
    """Stores W as (in, out), and transposes at the edge."""

    W = property(lambda self: self.turned.T, lambda self, value: setattr(self, "turned", np.ascontiguousarray(value.T)))


class StoresWInBlocks(Honest):
    """Stores W in blocks of 32 out features."""

    W = property(lambda self: np.concatenate(self.blocks),
                 lambda self, value: setattr(self, "blocks", [value[part].copy() for part in pieces(len(value), 32)]))


class AnswersInOtherLayouts(Honest):
    """Copies what it gets, and gives out arrays that lie in memory in other orders than the usual one."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        return np.asfortranarray(super().forward(np.ascontiguousarray(x)))

    def backward(self, dy: np.ndarray) -> Arrays:
        return {name: np.flip(np.flip(array).copy()) for name, array in super().backward(np.ascontiguousarray(dy)).items()}

    def weight(self) -> np.ndarray:
        return np.asfortranarray(self.W)

    def adapter(self) -> Arrays:
        return {"B": np.asfortranarray(self.B), "A": np.asfortranarray(self.A)}
