"""Faults of the forward pass."""

import ml_dtypes
import numpy as np

from conformance.mutants import mutant
from conformance.mutants.honest import Honest
from conformance.subject import LayerConfig


@mutant(kills="FWD-01 FWD-02")
class AdapterSubtracted(Honest):
    """The LoRA part is subtracted from the base product, not added."""

    def output(self, x: np.ndarray) -> np.ndarray:
        return self.plus(self.base(x), -self.lora(x))


@mutant("48", kills="FWD-01 FWD-02")
class AdapterIgnored(Honest):
    """The LoRA part is never added: the output is that of the base layer."""

    def output(self, x: np.ndarray) -> np.ndarray:
        return self.base(x)


@mutant(kills="FWD-01 GRAD-11")
class AdapterAddedTwice(Honest):
    """The LoRA part is added twice, as when each of two devices adds it before their results are summed."""

    def lora(self, x: np.ndarray) -> np.ndarray:
        return 2 * super().lora(x)


@mutant(kills="FWD-01 INIT-01")
class BiasForgotten(Honest):
    """The bias of the base layer is left out."""

    def base(self, x: np.ndarray) -> np.ndarray:
        return self.product(x, self.W.T)


@mutant("43", kills="FWD-01 INIT-01 INIT-09")
class WholeOutputScaled(Honest):
    """The scale multiplies the whole output, the part of the base layer included."""

    def output(self, x: np.ndarray) -> np.ndarray:
        return self.scaled(self.plus(self.base(x), super().lora(x) / self.scale)) if self.scale else self.base(x)


@mutant("40", kills="FWD-01 INIT-01")
class BaseScaled(Honest):
    """The base product is multiplied by a factor, and the LoRA part is not."""

    def base(self, x: np.ndarray) -> np.ndarray:
        return 2 * super().base(x)


@mutant(kills="FWD-01")
class DeltaOfInputWidth(Honest):
    """The LoRA part is as wide as the input: outputs beyond that width get none of it."""

    def lora(self, x: np.ndarray) -> np.ndarray:
        delta = super().lora(x)
        delta[:, x.shape[1] :] = 0
        return delta


@mutant(kills="FWD-01")
class DeltaOnOtherColumns(Honest):
    """The columns of the LoRA part are in another order than those of the base product."""

    def lora(self, x: np.ndarray) -> np.ndarray:
        return np.roll(super().lora(x), 1, axis=1)


@mutant(kills="FWD-01 FWD-14")
class ReluBetween(Honest):
    """A ReLU stands between the two products, as in a bottleneck adapter."""

    def lora(self, x: np.ndarray) -> np.ndarray:
        return self.scaled(self.product(np.maximum(self.product(x, self.A), 0), self.B))


@mutant(kills="FWD-01 FWD-16")
class LastRankMissing(Honest):
    """The last column of A and the last row of B are ignored, unless they are the only ones."""

    def lora(self, x: np.ndarray) -> np.ndarray:
        r = max(1, self.config.rank - 1)
        return self.scaled(self.product(self.product(x, self.A[:, :r]), self.B[:r]))


@mutant(kills="FWD-02 FWD-17")
class FactorsOnGrid(Honest):
    """The forward pass rounds the factors to fixed point, with a step of 2⁻¹²."""

    def lora(self, x: np.ndarray) -> np.ndarray:
        A, B = (np.round(self.up(f) * 2.0**12) / 2.0**12 for f in (self.A, self.B))
        return self.scaled(self.product(self.product(x, A), B))


@mutant(kills="FWD-17")
class SmallFactorsPruned(Honest):
    """Entries of the factors that are close to zero are treated as zero."""

    def lora(self, x: np.ndarray) -> np.ndarray:
        A, B = (np.where(np.abs(self.up(f)) < 1e-3, 0, self.up(f)) for f in (self.A, self.B))
        return self.scaled(self.product(self.product(x, A), B))


@mutant(kills="FWD-02")
class SquareATransposed(Honest):
    """A is transposed only if it is not shaped (in, rank). So a square A that is stored as (rank, in) stays transposed."""

    def lora(self, x: np.ndarray) -> np.ndarray:
        A = self.A.T if self.A.shape[0] == self.A.shape[1] else self.A
        return self.scaled(self.product(self.product(x, A), self.B))


@mutant("130", kills="FWD-01 FWD-15")
class RankSummedTwice(Honest):
    """The two products are summed over the rank separately: (Σᵣ x A)(Σᵣ B) and not Σᵣ (x A) B."""

    def lora(self, x: np.ndarray) -> np.ndarray:
        return self.scaled(self.product(x, self.A).sum(1, keepdims=True) * self.up(self.B).sum(0))


@mutant("79", kills="FWD-01 SCALE-01")
class FlatBufferOfA(Honest):
    """The numbers of A are read as if A were stored as (rank, in)."""

    def lora(self, x: np.ndarray) -> np.ndarray:
        A = self.A.reshape(self.A.shape[::-1]).T
        return self.scaled(self.product(self.product(x, A), self.B))


@mutant(kills="FWD-02")
class LoRAInFloat16(Honest):
    """The LoRA part is computed in float16."""

    def lora(self, x: np.ndarray) -> np.ndarray:
        return super().lora(x.astype(np.float16)).astype(np.float16)


@mutant(kills="FWD-02 INIT-09")
class Tf32(Honest):
    """The inputs of the forward products are cut to the eleven significant bits of tf32."""

    def product(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        cut = (np.frombuffer((self.up(a).astype("f4").view("u4") & 0xFFFFE000).tobytes(), "f4").reshape(a.shape)
               for a in (left, right))
        return super().product(*cut)


@mutant("54", kills="FWD-02 INIT-09")
class BiasInBfloat16(Honest):
    """The bias is added in an operation of its own, in bfloat16."""

    def base(self, x: np.ndarray) -> np.ndarray:
        y = self.product(x, self.W.T)
        return y if self.b is None else self.plus(y, self.b.astype(ml_dtypes.bfloat16))


@mutant(kills="FWD-02")
class OutputClamped(Honest):
    """The output is clamped to a range that small numbers never leave."""

    def output(self, x: np.ndarray) -> np.ndarray:
        return np.clip(super().output(x), -8, 8)


@mutant(kills="FWD-03")
class VectorRefused(Honest):
    """An x without leading dimensions is refused."""

    def check_input(self, x: np.ndarray) -> None:
        if x.ndim < 2:
            raise ValueError(f"x is {x.shape}, expected a batch")
        super().check_input(x)


@mutant(kills="FWD-03 GRAD-14")
class VectorMadeBatch(Honest):
    """The output for an x without leading dimensions has a leading dimension of size 1."""

    def shaped(self, rows: np.ndarray) -> np.ndarray:
        return self.rounded(rows).reshape(*(self.leading or (1,)), rows.shape[-1])


@mutant(kills="FWD-04 GRAD-14")
class EmptyBatchBreaks(Honest):
    """An empty batch raises an error, because the rows of the output are stacked and there are none."""

    def output(self, x: np.ndarray) -> np.ndarray:
        return np.stack(list(super().output(x)))


@mutant(kills="FWD-04")
class EmptyBatchIsOneRow(Honest):
    """An empty batch gives one row: the empty x is replaced by a default."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        return super().forward(x if x.size else np.zeros((1, x.shape[-1]), x.dtype))


@mutant("44", kills="FWD-05")
class ImageSkipsLoRA(Honest):
    """An x of four dimensions is taken for an image, and gets no LoRA part."""

    def lora(self, x: np.ndarray) -> np.ndarray:
        return super().lora(x) * (len(self.leading) != 3)


@mutant(kills="FWD-05")
class SequencesSwapped(Honest):
    """The output for an x of four or more dimensions is filled as if its first two leading dimensions were exchanged."""

    def shaped(self, rows: np.ndarray) -> np.ndarray:
        if len(self.leading) < 3:
            return super().shaped(rows)
        first, second, *rest = self.leading
        return self.rounded(rows).reshape(second, first, *rest, rows.shape[-1]).swapaxes(0, 1)


@mutant(kills="FWD-06")
class RankOneSqueezed(Honest):
    """At rank 1 the factors lose that dimension, and a product of rows becomes a product of numbers."""

    def lora(self, x: np.ndarray) -> np.ndarray:
        if self.config.rank != 1:
            return super().lora(x)
        return self.scaled(self.product(x, self.A).sum() * self.up(self.B))


@mutant(kills="FWD-02 INIT-09")
class SquareNotTransposed(Honest):
    """W is transposed only if the shapes require it: a square W is not transposed."""

    def base(self, x: np.ndarray) -> np.ndarray:
        y = self.product(x, self.W if self.W.shape[0] == self.W.shape[1] else self.W.T)
        return y if self.b is None else self.plus(y, self.b)


@mutant(kills="FWD-07")
class RankClipped(Honest):
    """If the rank is above min(in, out), only the first min(in, out) columns of A and rows of B are used."""

    def lora(self, x: np.ndarray) -> np.ndarray:
        r = min(self.W.shape)
        return self.scaled(self.product(self.product(x, self.A[:, :r]), self.B[:r]))


@mutant(kills="FWD-08 INIT-01")
class BiasMadeUp(Honest):
    """A layer without a bias gets one, drawn at random as for a new linear layer."""

    def __init__(self, config: LayerConfig, weight: np.ndarray, bias: np.ndarray | None):
        super().__init__(config, weight, bias)
        if bias is None:
            self.b = self.rounded(self.rng.uniform(-1, 1, config.out_features))


@mutant(kills="FWD-08")
class NoBiasNoLoRA(Honest):
    """The LoRA part is added together with the bias, so a layer without a bias has no LoRA part."""

    def lora(self, x: np.ndarray) -> np.ndarray:
        return super().lora(x) * (self.b is not None)


@mutant("53", kills="FWD-09")
class LastTileWithoutLoRA(Honest):
    """The rows after the last full tile of 64 get no LoRA part."""

    def lora(self, x: np.ndarray) -> np.ndarray:
        delta = super().lora(x)
        if len(x) > 64:
            delta[len(x) // 64 * 64 :] = 0
        return delta


@mutant("53", kills="FWD-09")
class LastTileNotWritten(Honest):
    """The rows after the last full tile of 64 are never written, and hold NaN."""

    def output(self, x: np.ndarray) -> np.ndarray:
        y = super().output(x)
        if len(x) > 64:
            y[len(x) // 64 * 64 :] = np.nan
        return y


@mutant(kills="FWD-09 FWD-12")
class FirstBatchSizeKept(Honest):
    """The output has the leading dimensions of the first batch that the layer saw."""

    def shaped(self, rows: np.ndarray) -> np.ndarray:
        self.first = getattr(self, "first", self.leading)
        return self.rounded(rows).reshape(*self.first, rows.shape[-1])


@mutant(kills="FWD-09")
class OneRowSkipsLoRA(Honest):
    """A single row, as in decoding, gets no LoRA part."""

    def lora(self, x: np.ndarray) -> np.ndarray:
        return super().lora(x) * (len(x) != 1)


@mutant("61", kills="FWD-10")
class ReadsBufferOfX(Honest):
    """The numbers of x are read in their order in memory. The strides are ignored."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        return super().forward(x.ravel(order="K").reshape(x.shape))


@mutant(kills="FWD-10")
class ExpandedXReadOnce(Honest):
    """Of an x that is broadcast only the rows that exist in memory are read. The others are taken for zeros."""

    def rows(self, array: np.ndarray) -> np.ndarray:
        array = np.where(np.arange(len(array))[:, None, None] > 0, 0, array) if array.strides[0] == 0 else array
        return super().rows(array)


@mutant(kills="FWD-10")
class ReadOnlyRefused(Honest):
    """A read-only x is refused."""

    def check_input(self, x: np.ndarray) -> None:
        if not x.flags.writeable:
            raise ValueError("x is read-only")
        super().check_input(x)


@mutant("66", kills="FWD-11")
class ScalesXInPlace(Honest):
    """The forward pass scales x in place, and so changes the caller's array."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        y = super().forward(x)
        x *= x.dtype.type(self.scale)
        return y


@mutant("123", kills="FWD-12")
class DriftsWithEveryCall(Honest):
    """Every forward pass, in inference mode too, changes a state that the next one uses."""

    def output(self, x: np.ndarray) -> np.ndarray:
        self.scale *= 0.875
        return super().output(x)


@mutant(kills="FWD-12 FWD-13")
class NoiseInInference(Honest):
    """The noise that regularises training is added to x in inference mode, too."""

    def lora(self, x: np.ndarray) -> np.ndarray:
        return super().lora(x + 1e-3 * self.up(self.rng.standard_normal(x.shape)))


@mutant(kills="FWD-13")
class HidesNaN(Honest):
    """NaN and infinity are replaced by numbers."""

    def output(self, x: np.ndarray) -> np.ndarray:
        return np.nan_to_num(super().output(x))


@mutant(kills="FWD-13")
class SpreadsNaN(Honest):
    """A statistic of the whole batch is used, so one row that is not finite spoils all the others."""

    def output(self, x: np.ndarray) -> np.ndarray:
        return super().output(x) + 0 * x.sum()


@mutant(kills="FWD-18")
class SquareFactorsTransposed(Honest):
    """The layout of A is guessed from its shape. For a square A the guess is wrong."""

    def lora(self, x: np.ndarray) -> np.ndarray:
        A = self.A.T if self.A.shape[0] == self.A.shape[1] else self.A
        return self.scaled(self.product(self.product(self.dropped(x), A), self.B))


@mutant("53", kills="FWD-19")
class FeaturesOfOneTile(Honest):
    """The LoRA part uses the first 64 features of x alone."""

    def lora(self, x: np.ndarray) -> np.ndarray:
        return super().lora(np.where(np.arange(x.shape[1]) < 64, x, 0))


@mutant(kills="FWD-09 GRAD-08")
class LastTileOf1024Lost(Honest):
    """Rows are processed in tiles of 1024. The rows after the last full tile get no LoRA part."""

    def lora(self, x: np.ndarray) -> np.ndarray:
        part = super().lora(x)
        if len(x) > 1024:
            part[len(x) // 1024 * 1024 :] = 0
        return part

    def lora_dx(self, dy: np.ndarray) -> np.ndarray:
        part = super().lora_dx(dy)
        if len(dy) > 1024:
            part[len(dy) // 1024 * 1024 :] = 0
        return part

    def gradient_of_A(self, dy: np.ndarray) -> np.ndarray:
        full = len(dy) // 1024 * 1024 if len(dy) > 1024 else len(dy)
        u = self.product(dy[:full], self.B.T)
        return self.scaled(self.product(self.dropped(self.x)[:full].T, u))


@mutant(kills="FWD-17")
class TinyFactorsAreZero(Honest):
    """A B whose entries are all below 10⁻⁵ is taken for untrained, and the LoRA part is left out."""

    def lora(self, x: np.ndarray) -> np.ndarray:
        part = super().lora(x)
        return part if np.abs(self.up(self.B)).max(initial=0.0) >= 1e-5 else 0 * part


@mutant("61", kills="FWD-10")
class GapsAreRead(Honest):
    """The rows of x are read as if they were contiguous. If x is part of a wider array, what lies between its rows is read,
    too."""

    def rows(self, array: np.ndarray) -> np.ndarray:
        item, width = array.itemsize, array.shape[-1]
        if array.size and array.ndim > 1 and array.strides[-1] == item and array.strides[-2] > width * item:
            flat = np.lib.stride_tricks.as_strided(array, (array.size,), (item,))
            return self.up(flat).reshape(-1, width)
        return super().rows(array)


@mutant(kills="FWD-12")
class RemembersByAddress(Honest):
    """In inference mode y is cached by the address of x. The cached y is returned while the factors are the same."""

    last: tuple | None = None

    def forward(self, x: np.ndarray) -> np.ndarray:
        key = (x.__array_interface__["data"][0], x.shape, x.strides, id(self.A), id(self.B), self.merged)
        if self.training or self.last is None or self.last[0] != key:
            self.last = (key, super().forward(x), x)
        return self.last[1].copy()


@mutant(kills="FWD-19 GRAD-19")
class RankCappedAt64(Honest):
    """alpha is divided by the rank, or by 64 if that is less."""

    def scale_of(self, config: LayerConfig) -> float:
        rank = min(config.rank, 64)
        return config.alpha / (rank**0.5 if config.scaling == "rslora" else rank)


@mutant("53", kills="FWD-19")
class PanelsOf96(Honest):
    """x A is summed over panels of 96 features, and the last one is left to the code for what is left over. Where nothing is
    left over, that code sees nothing."""

    def lora(self, x: np.ndarray) -> np.ndarray:
        left = x.copy()
        if x.shape[-1] % 96 == 0:
            left[:, -96:] = 0
        return super().lora(left)


@mutant("53", kills="FWD-19")
class TailOfFourRanks(Honest):
    """From 17 ranks on, what is left over of 16 is summed in steps of 8, 4 and 1. Without one of 8 that of 4 is left out."""

    def lora(self, x: np.ndarray) -> np.ndarray:
        rank = self.A.shape[1]
        A = self.A.copy()
        if rank > 16 and 4 <= rank % 16 < 8:
            A[:, rank - rank % 16 : rank - rank % 16 + 4] = 0
        h = self.product(self.dropped(x), A)
        return self.scaled(self.product(h, self.B))


@mutant(kills="FWD-13")
class CleansFactorsInTraining(Honest):
    """In training mode NaN and infinity in the factors are replaced by numbers."""

    def lora(self, x: np.ndarray) -> np.ndarray:
        if not self.training:
            return super().lora(x)
        h = self.product(self.dropped(x), np.nan_to_num(self.up(self.A)))
        return self.scaled(self.product(h, np.nan_to_num(self.up(self.B))))


@mutant("53", kills="FWD-20")
class FourWorkersOfThreeThousandRows(Honest):
    """Rows are divided among four workers, who take 3,072 at most."""

    def lora(self, x: np.ndarray) -> np.ndarray:
        y = super().lora(x)
        y[4 * 3072 :] = 0
        return y


@mutant(kills="FWD-09")
class OnePowerForAllRows(Honest):
    """In float16 the rows are divided by one power of two, that of the largest number, so that the small rows are lost."""

    def lora(self, x: np.ndarray) -> np.ndarray:
        if self.config.dtype != "float16" or not x.size or not np.isfinite(x).all():
            return super().lora(x)
        power = max(0, int(np.frexp(np.abs(x).max())[1]))
        return np.ldexp(super().lora(self.up(np.ldexp(x, -power).astype(np.float16))), power)


@mutant("53", kills="FWD-20")
class At65535Blocks(Honest):
    """Each row is a block, and there are 65535 blocks at most. Rows beyond them get no LoRA part."""

    def lora(self, x: np.ndarray) -> np.ndarray:
        part = super().lora(x)
        part[65535:] = 0
        return part
