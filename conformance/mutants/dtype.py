"""Faults of number formats."""

import ml_dtypes
import numpy as np

from conformance.mutants import mutant
from conformance.mutants.honest import BFLOAT16, Honest
from conformance.mutants.orders import pieces
from conformance.subject import Arrays, LayerConfig


class Halves(Honest):
    """A layer that is at fault in half precision only."""

    @property
    def half(self) -> bool:
        return self.dtype.itemsize == 2


@mutant("126 129", kills="DTYPE-01")
class OutputInFloat32(Halves):
    """The output of a layer in half precision is in float32."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        y = super().forward(x)
        return y.astype(np.float32) if self.half else y


@mutant("127", kills="DTYPE-01")
class PromotedByTheScale(Honest):
    """The scale is a float64 and promotes the output."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        return super().forward(x).astype(np.float64)


@mutant("127", kills="DTYPE-02")
class DxInFloat32(Halves):
    """dx of a layer in half precision is in float32."""

    def backward(self, dy: np.ndarray) -> Arrays:
        found = super().backward(dy)
        return found | {"x": found["x"].astype(np.float32)} if self.half and self.wants_dx else found


@mutant("128", kills="DTYPE-03 DTYPE-05")
class Float16ByBfloat16(Honest):
    """A layer in float16 computes in bfloat16."""

    def product(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        y = super().product(left, right)
        return y.astype(BFLOAT16) if self.dtype == np.float16 else y


@mutant("97", kills="DTYPE-03 DTYPE-04 DTYPE-05")
class HalvesByFloat8(Halves):
    """In half precision the inputs of products are cast to the eight bits of float8_e4m3."""

    def product(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        if self.half:
            left, right = (self.up(a).astype(ml_dtypes.float8_e4m3fn) for a in (left, right))
        return super().product(left, right)


@mutant(kills="DTYPE-03")
class Float16Overflows(Honest):
    """In float16 sums are multiplied by a constant before they are stored, and overflow."""

    def product(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        y = super().product(left, right)
        return (y * 2.0**15).astype(np.float16).astype(np.float32) / 2.0**15 if self.dtype == np.float16 else y


@mutant(kills="DTYPE-05")
class GradientsInFloat8(Halves):
    """In half precision the gradients of the factors are kept in float8_e5m2."""

    def kept_gradient(self, gradient: np.ndarray) -> np.ndarray:
        return self.rounded(gradient.astype(ml_dtypes.float8_e5m2) if self.half else gradient)


@mutant("97", kills="DTYPE-06 DTYPE-07")
class HalvesMergedToFloat8(Halves):
    """In half precision the merged weight is stored in float8_e4m3."""

    def merged_weight(self) -> np.ndarray:
        W = super().merged_weight()
        return self.rounded(self.up(W).astype(ml_dtypes.float8_e4m3fn)) if self.half else W


@mutant("98", kills="DTYPE-07")
class DeltaRoundedFirst(Halves):
    """The delta is rounded to half precision before it is added to W, and the sum is rounded again."""

    def delta_weight(self) -> np.ndarray:
        return self.rounded(super().delta_weight())


@mutant("98", kills="DTYPE-07")
class ProductRoundedFirst(Halves):
    """A B is rounded to half precision before it is scaled and added to W."""

    def delta_weight(self) -> np.ndarray:
        return self.scaled(self.rounded(self.product(self.A, self.B))).T


@mutant(kills="DTYPE-08")
class HalvesForgetBias(Halves):
    """In half precision the bias is left out."""

    def base(self, x: np.ndarray) -> np.ndarray:
        return self.product(x, self.W.T) if self.half else super().base(x)


@mutant(kills="DTYPE-05 DTYPE-08")
class LossScaleLeft(Honest):
    """In float16 the gradients of the factors are still multiplied by the loss scale."""

    def kept_gradient(self, gradient: np.ndarray) -> np.ndarray:
        return super().kept_gradient(gradient) * (64 if self.dtype == np.float16 else 1)

    def accumulated(self, dA: np.ndarray, dB: np.ndarray) -> Arrays:
        return {name: self.kept_gradient(array) for name, array in super().accumulated(dA, dB).items()}


@mutant(kills="DTYPE-08")
class HalvesScaledByInteger(Halves):
    """In half precision the scale is rounded to an integer."""

    def scale_of(self, config: LayerConfig) -> float:
        scale = super().scale_of(config)
        return float(round(scale)) if self.half else scale


class SumsIn(Honest):
    """Accumulates the sums of one format in that format."""

    kind = np.dtype(np.float16)

    def product(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        if self.dtype != self.kind:
            return super().product(left, right)
        left, right = left.astype(self.kind), right.astype(self.kind)
        total = np.zeros((left.shape[0], right.shape[1]), self.kind)
        for k in range(left.shape[1]):
            total = (total + left[:, k : k + 1] * right[k : k + 1]).astype(self.kind)
        return self.up(total)


@mutant("128", kills="DTYPE-09")
class SumsInFloat16(SumsIn):
    """A layer in float16 accumulates its sums in float16."""


@mutant("128", kills="DTYPE-09")
class SumsInBfloat16(SumsIn):
    """A layer in bfloat16 accumulates its sums in bfloat16."""

    kind = BFLOAT16


@mutant("128", kills="DTYPE-09")
class TilesAddedUpInHalf(Honest):
    """In half precision a sum is added up over tiles of 8 terms, and rounded to that precision after each tile."""

    def product(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        if self.dtype.itemsize > 2:
            return super().product(left, right)
        total = np.zeros((left.shape[0], right.shape[1]), self.dtype)
        for terms in pieces(len(right), 8):
            total = self.rounded(self.up(total) + self.up(left[:, terms]) @ self.up(right[terms]))
        return self.up(total)


@mutant("126", kills="DTYPE-10")
class Bfloat16ByWayOfFloat16(Honest):
    """The output of a bfloat16 layer is converted through float16: above 65504 it is infinite."""

    def shaped(self, rows: np.ndarray) -> np.ndarray:
        return super().shaped(rows.astype(np.float16) if self.dtype == BFLOAT16 else rows)


@mutant(kills="DTYPE-11")
class ScalesXFirst(Honest):
    """x is multiplied by the scale before anything else, and rounded to its format."""

    def lora(self, x: np.ndarray) -> np.ndarray:
        h = self.product(self.rounded(self.scaled(self.dropped(x))), self.A)
        return self.product(h, self.B)
