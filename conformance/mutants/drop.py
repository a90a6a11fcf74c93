"""Faults of dropout."""

import numpy as np

from conformance.mutants import mutant
from conformance.mutants.honest import Honest
from conformance.subject import Arrays, LayerConfig


@mutant("74", kills="DROP-01 DROP-05")
class WeakenedInInference(Honest):
    """In inference mode the LoRA part is multiplied by 1 − p once more."""

    def lora(self, x: np.ndarray) -> np.ndarray:
        return super().lora(x) * (1 if self.training else 1 - self.config.dropout)


@mutant(kills="DROP-01")
class DropsInInference(Honest):
    """Dropout stays on in inference mode."""

    def drops(self) -> bool:
        return self.config.dropout > 0


@mutant(kills="DROP-02 DROP-08")
class DropsTheBase(Honest):
    """The base product gets the dropped x, too."""

    def output(self, x: np.ndarray) -> np.ndarray:
        y = self.base(self.dropped(x))
        return y if self.merged else self.plus(y, self.lora(x))


@mutant(kills="DROP-02 DROP-08")
class DropsTheOutput(Honest):
    """Dropout is applied to the whole output, the part of the base layer included."""

    def output(self, x: np.ndarray) -> np.ndarray:
        y = super().output(x)
        rate = self.config.dropout if self.drops() else 0.0
        return y * (self.rng.random(y.shape) >= rate) / (1 - rate)


@mutant(kills="DROP-03")
class RateIsForKeeping(Honest):
    """The rate is read as the probability of keeping an entry, not of dropping it."""

    def draw_mask(self) -> np.ndarray:
        rate = 1 - self.config.dropout
        return ((self.rng.random(self.x.shape) >= rate) / (1 - rate)).astype(self.wide)


@mutant(kills="DROP-03")
class KeptNotScaled(Honest):
    """The entries that are kept are not scaled by 1 / (1 − p)."""

    def draw_mask(self) -> np.ndarray:
        return (super().draw_mask() != 0).astype(self.wide)


@mutant("69 70 71", kills="DROP-03 DROP-05 DROP-07")
class RateIgnored(Honest):
    """The rate is accepted, and nothing is dropped."""

    def drops(self) -> bool:
        return False


@mutant(kills="DROP-04")
class MaskDrawnAgain(Honest):
    """The backward pass draws a mask of its own."""

    def backward(self, dy: np.ndarray) -> Arrays:
        self.mask = self.draw_mask() if self.drops() else None
        return super().backward(dy)


@mutant(kills="DROP-04")
class MaskMissingInDA(Honest):
    """dA is computed with the whole x, without the mask."""

    def gradient_of_A(self, dy: np.ndarray) -> np.ndarray:
        return self.scaled(self.product(self.x.T, self.product(dy, self.B.T)))


@mutant(kills="DROP-04")
class MaskMissingInDx(Honest):
    """dx is computed without the mask: dropped entries get a gradient, too."""

    def lora_dx(self, dy: np.ndarray) -> np.ndarray:
        return self.scaled(self.product(self.product(dy, self.B.T), self.A.T))


@mutant("75", kills="DROP-05")
class NeverBack(Honest):
    """Dropout stays off after the first time in inference mode."""

    def train(self, mode: bool = True) -> None:
        self.training = mode and self.training


@mutant(kills="DROP-06")
class ZeroIsMissing(Honest):
    """A rate of 0 is taken for a missing one, and replaced by a default of 0.1."""

    def drops(self) -> bool:
        return self.training

    def draw_mask(self) -> np.ndarray:
        rate = self.config.dropout or 0.1
        return ((self.rng.random(self.x.shape) >= rate) / (1 - rate)).astype(self.wide)


@mutant(kills="DROP-07")
class OneMaskForEver(Honest):
    """The mask is drawn at the first forward pass, and then used for ever."""

    def draw_mask(self) -> np.ndarray:
        if getattr(self, "drawn", np.zeros(0)).shape != self.x.shape:
            self.drawn = super().draw_mask()
        return self.drawn


@mutant(kills="DROP-07")
class OneMaskForAllRows(Honest):
    """All rows of a batch share one mask."""

    def draw_mask(self) -> np.ndarray:
        return np.broadcast_to(super().draw_mask()[:1], self.x.shape)


@mutant(kills="DROP-07")
class SeededWithEveryCall(Honest):
    """Every forward pass seeds the generator anew, so all masks are equal."""

    def draw_mask(self) -> np.ndarray:
        self.rng = np.random.default_rng(self.config.seed)
        return super().draw_mask()


@mutant("27", kills="DROP-08")
class FreshWithDropoutIsAltered(Honest):
    """B is not zero at the start if there is dropout."""

    def __init__(self, config: LayerConfig, weight: np.ndarray, bias: np.ndarray | None):
        super().__init__(config, weight, bias)
        if config.dropout:
            self.B = self.rounded(self.rng.standard_normal(self.B.shape))


@mutant("43", kills="DROP-09")
class BaseGradientDropped(Honest):
    """The mask is applied to dx of the base path, too."""

    def base_dx(self, dy: np.ndarray) -> np.ndarray:
        return self.dropped(super().base_dx(dy))


@mutant(kills="DROP-10")
class MergedDropsTheBase(Honest):
    """A merged layer in training mode drops entries of the input of the base product."""

    def output(self, x: np.ndarray) -> np.ndarray:
        return self.base(self.dropped(x)) if self.merged else super().output(x)


@mutant("44", kills="DROP-07")
class DropsWholeRows(Honest):
    """Whole rows are dropped, and not single entries."""

    def draw_mask(self) -> np.ndarray:
        mask = super().draw_mask()
        return np.broadcast_to(mask[:, :1], mask.shape).copy()


@mutant(kills="DROP-07")
class DropsTheSameCount(Honest):
    """The same number of entries is dropped in each row."""

    def draw_mask(self) -> np.ndarray:
        n, k = self.x.shape
        keep = round(k * (1 - self.config.dropout))
        order = self.rng.random((n, k)).argsort(1)
        return ((order < keep) / (1 - self.config.dropout)).astype(self.wide)


@mutant("44", kills="DROP-07")
class OneMaskForAllSamples(Honest):
    """With two leading dimensions all samples get the mask of the first one."""

    def draw_mask(self) -> np.ndarray:
        mask = super().draw_mask()
        if len(self.leading) < 2:
            return mask
        return np.broadcast_to(mask.reshape(*self.leading, -1)[:1], self.leading + mask.shape[1:]).reshape(mask.shape)


@mutant(kills="DROP-03")
class SmallRatesAreNone(Honest):
    """A rate below 0.06 drops nothing."""

    def drops(self) -> bool:
        return super().drops() and self.config.dropout >= 0.06


@mutant(kills="DROP-03")
class RateInSixteenths(Honest):
    """The mask is drawn with four random bits per entry, so the rate is rounded down to a multiple of 1/16."""

    def draw_mask(self) -> np.ndarray:
        rate = self.config.dropout
        return ((self.rng.integers(0, 16, self.x.shape) >= int(16 * rate)) / (1 - rate)).astype(self.wide)


@mutant(kills="DROP-07")
class MaskInHalves(Honest):
    """The mask is drawn for one half of the features, and used for both halves."""

    def draw_mask(self) -> np.ndarray:
        mask = super().draw_mask()
        half = mask.shape[1] // 2
        mask[:, half : 2 * half] = mask[:, :half]
        return mask


@mutant(kills="DROP-07")
class AlwaysAsMany(Honest):
    """The number of dropped entries is fixed. Only which entries they are is drawn."""

    def draw_mask(self) -> np.ndarray:
        rate, mask = self.config.dropout, np.ones(self.x.size)
        mask[self.rng.permutation(mask.size)[: round(rate * mask.size)]] = 0
        return (mask.reshape(self.x.shape) / (1 - rate)).astype(self.wide)


@mutant(kills="DROP-07")
class MaskRolls(Honest):
    """The next mask is the last one, moved by one row."""

    before: np.ndarray | None = None

    def draw_mask(self) -> np.ndarray:
        again = self.before is not None and self.before.shape == self.x.shape and len(self.x) > 1
        self.before = np.roll(self.before, 1, 0) if again else super().draw_mask()  # type: ignore[arg-type]
        return self.before


@mutant(kills="DROP-11")
class VectorsAreKept(Honest):
    """Nothing is dropped of an x without leading dimensions."""

    def drops(self) -> bool:
        return super().drops() and self.leading != ()


@mutant(kills="DROP-11")
class SingleRowsAreKept(Honest):
    """Nothing is dropped of a single row."""

    def drops(self) -> bool:
        return super().drops() and len(self.x) != 1


@mutant(kills="DROP-11")
class RsloraDoesNotDrop(Honest):
    """With rank-stabilised scaling the rate is ignored, and nothing is dropped."""

    def drops(self) -> bool:
        return super().drops() and self.config.scaling == "standard"


@mutant(kills="DROP-11")
class HalfPrecisionIsNotRescaled(Honest):
    """In half precision the entries that are kept are not scaled by 1 / (1 − p)."""

    def draw_mask(self) -> np.ndarray:
        mask = super().draw_mask()
        return np.sign(mask) if self.dtype.itemsize == 2 else mask


@mutant(kills="DROP-11")
class Float64IsNotRescaled(Honest):
    """In float64 the entries that are kept are not scaled by 1 / (1 − p)."""

    def draw_mask(self) -> np.ndarray:
        mask = super().draw_mask()
        return np.sign(mask) if self.dtype == np.float64 else mask


@mutant(kills="DROP-04")
class MaskOfThePassBefore(Honest):
    """The backward pass uses the mask of the last forward pass but one, if that mask has the right shape."""

    before: np.ndarray | None = None

    def backward(self, dy: np.ndarray) -> Arrays:
        if self.mask is not None and self.before is not None and self.before.shape == self.mask.shape:
            self.mask = self.before
        return super().backward(dy)

    def draw_mask(self) -> np.ndarray:
        self.before = getattr(self, "mask", None)
        return super().draw_mask()


@mutant("75", kills="DROP-05")
class TwoEvaluationsEndDropout(Honest):
    """Inference mode keeps the rate and sets it to 0, and training mode brings it back: after two evaluations it is 0."""

    rate: float | None = None
    kept: float | None = None

    def drops(self) -> bool:
        return super().drops() and self.rate != 0

    def train(self, mode: bool = True) -> None:
        if not mode:
            self.kept, self.rate = self.config.dropout if self.rate is None else self.rate, 0.0
        elif self.kept is not None:
            self.rate = self.kept
        super().train(mode)


@mutant(kills="DROP-12")
class UnmergeBeginsTraining(Honest):
    """To unmerge switches to training mode, in which the layer drops."""

    def unmerge(self) -> None:
        super().unmerge()
        self.training = True


@mutant("75", kills="DROP-12")
class UnmergeEndsDropout(Honest):
    """Nothing is dropped any more after an unmerge."""

    ended = False

    def unmerge(self) -> None:
        super().unmerge()
        self.ended = True

    def drops(self) -> bool:
        return super().drops() and not self.ended


@mutant("75", kills="DROP-12")
class MergeGoesToInference(Honest):
    """Merge switches to inference mode, and unmerge does not switch back."""

    def merge(self) -> None:
        super().merge()
        self.training = False


@mutant("17", kills="DROP-13")
class RateOfTheLastLayer(Honest):
    """The rate is stored in the class, so all layers have the rate of the layer that was built last."""

    def check_dropout(self, rate: float) -> None:
        super().check_dropout(rate)
        type(self).rate = rate  # type: ignore[attr-defined]

    def drops(self) -> bool:
        return self.training and self.rate > 0  # type: ignore[attr-defined]

    def draw_mask(self) -> np.ndarray:
        return ((self.rng.random(self.x.shape) >= self.rate) / (1 - self.rate)).astype(self.wide)  # type: ignore[attr-defined]


@mutant(kills="DROP-13")
class MaskOfTheLastLayer(Honest):
    """The backward pass uses the mask that was drawn last, even if another layer drew it."""

    def draw_mask(self) -> np.ndarray:
        type(self).drawn = super().draw_mask()  # type: ignore[attr-defined]
        return self.drawn  # type: ignore[attr-defined]

    def backward(self, dy: np.ndarray) -> Arrays:
        if self.mask is not None and self.drawn.shape == self.mask.shape:  # type: ignore[attr-defined]
            self.mask = self.drawn  # type: ignore[attr-defined]
        return super().backward(dy)


@mutant(kills="DROP-13")
class MasksAreSeededAlike(Honest):
    """Every layer draws its masks from the same seed."""

    def draw_mask(self) -> np.ndarray:
        if not hasattr(self, "own"):
            self.own = np.random.default_rng(0)
        return ((self.own.random(self.x.shape) >= self.config.dropout) / (1 - self.config.dropout)).astype(self.wide)


@mutant("75", kills="DROP-14")
class LoadGoesToInference(Honest):
    """Load switches to inference mode."""

    def receive(self, contents: Arrays) -> None:
        super().receive(contents)
        self.training = False


# --- faults at size: of tiles, pools, counters and special code for large x -------------------


@mutant(kills="DROP-15")
class RowsRepeat(Honest):
    """A mask is drawn for 64 rows, and used for each 64 rows of x."""

    def draw_mask(self) -> np.ndarray:
        return np.resize(super().draw_mask()[:64], self.x.shape)


@mutant(kills="DROP-15")
class ColumnsRepeat(Honest):
    """A mask is drawn for 128 columns, and used for each 128 columns of x."""

    def draw_mask(self) -> np.ndarray:
        return np.resize(super().draw_mask().T[:128], self.x.T.shape).T.copy()


@mutant(kills="DROP-15")
class EntriesRepeat(Honest):
    """The random numbers come from a table of 4096, entry after entry, which is drawn for every mask."""

    def draw_mask(self) -> np.ndarray:
        return np.resize(super().draw_mask().ravel()[:4096], self.x.shape)


@mutant(kills="DROP-15")
class SecondHalfRepeats(Honest):
    """From 256 rows on, the second half of the rows has the mask of the first half, which two workers draw with one seed."""

    def draw_mask(self) -> np.ndarray:
        mask, half = super().draw_mask(), len(self.x) // 2
        if half >= 128:
            mask[half : 2 * half] = mask[:half]
        return mask


@mutant(kills="DROP-15")
class OneTileInTwo(Honest):
    """A single tile of 32 rows and 32 columns has the mask of the tile on its left."""

    def draw_mask(self) -> np.ndarray:
        mask = super().draw_mask()
        if min(mask.shape) >= 64:
            mask[32:64, 32:64] = mask[32:64, :32]
        return mask


@mutant(kills="DROP-15")
class PoolOfMasks(Honest):
    """32 masks are drawn for each shape of x, and used in turn."""

    def draw_mask(self) -> np.ndarray:
        vars(self).setdefault("pool", {})
        masks, used = self.pool.setdefault(self.x.shape, ([], [0]))  # type: ignore[attr-defined]
        used[0] += 1
        if len(masks) < 32:
            masks.append(super().draw_mask())
        return masks[(used[0] - 1) % 32].copy()


@mutant(kills="DROP-15")
class SeedPlusCall(Honest):
    """The mask is drawn from the sum of the seed and the number of the pass, so layers with neighbouring seeds share masks."""

    passes = 0

    def draw_mask(self) -> np.ndarray:
        self.passes += 1
        self.rng = np.random.default_rng(self.config.seed + self.passes)
        return super().draw_mask()


@mutant(kills="DROP-15")
class EveryEpochIsTheFirst(Honest):
    """Going to training mode seeds the generator again, so every epoch has the masks of the first one."""

    def train(self, mode: bool = True) -> None:
        super().train(mode)
        self.rng = np.random.default_rng(self.config.seed) if mode else self.rng


@mutant(kills="DROP-15")
class RowsInSixteenBits(Honest):
    """The generator counts the rows with 16 bits, so row 65,536 has the mask of row 0."""

    def draw_mask(self) -> np.ndarray:
        return np.resize(super().draw_mask()[: 2**16], self.x.shape)


@mutant(kills="DROP-16")
class ManyEntriesAreKept(Honest):
    """Entries beyond the first 2¹⁷ of an x are never dropped."""

    def draw_mask(self) -> np.ndarray:
        mask = super().draw_mask()
        mask.ravel()[2**17 :] = mask.max()
        return mask


@mutant(kills="DROP-16")
class TailOfRowsIsKept(Honest):
    """Beyond 128 rows, those that fill no tile of 128 are neither dropped nor scaled."""

    def draw_mask(self) -> np.ndarray:
        mask, n = super().draw_mask(), len(self.x)
        if n > 128:
            mask[n - n % 128 :] = 1
        return mask


@mutant(kills="DROP-16")
class TailOfBitsIsKept(Honest):
    """The mask is packed into bytes. The columns beyond a multiple of 8 have no bits, and are never dropped."""

    def draw_mask(self) -> np.ndarray:
        mask, columns = super().draw_mask(), self.x.shape[1]
        mask[:, columns - columns % 8 :] = 1 / (1 - self.config.dropout)
        return mask


@mutant(kills="DROP-16")
class TailHasTheRateOfHalf(Honest):
    """Columns beyond 128 are dropped with single random bits, so with a rate of ½."""

    def draw_mask(self) -> np.ndarray:
        mask = super().draw_mask()
        half = self.rng.random(mask.shape) < 0.5
        mask[:, 128:] = (half / (1 - self.config.dropout))[:, 128:]
        return mask


@mutant(kills="DROP-16")
class FactorInHalfPrecision(Honest):
    """The factor 1 / (1 − p) is rounded to half precision in every dtype."""

    def draw_mask(self) -> np.ndarray:
        return super().draw_mask().astype(np.float16).astype(self.wide)


@mutant(kills="DROP-16")
class FactorInEighths(Honest):
    """In half precision the factor 1 / (1 − p) is looked up in a table of eighths."""

    def draw_mask(self) -> np.ndarray:
        mask = super().draw_mask()
        return np.round(8 * mask) / 8 if self.dtype.itemsize == 2 else mask


@mutant(kills="DROP-16")
class RateHasALimit(Honest):
    """A rate of more than 0.8 counts as 0.8 where entries are dropped, but not where they are scaled."""

    def draw_mask(self) -> np.ndarray:
        rate = self.config.dropout
        return ((self.rng.random(self.x.shape) >= min(rate, 0.8)) / (1 - rate)).astype(self.wide)


@mutant(kills="DROP-17")
class TransposedMask(Honest):
    """With two leading dimensions the backward pass takes the mask in the order of the exchanged dimensions."""

    def backward(self, dy: np.ndarray) -> Arrays:
        if self.mask is not None and len(self.leading) == 2:
            self.mask = self.mask.reshape(*self.leading, -1).swapaxes(0, 1).reshape(self.mask.shape)
        return super().backward(dy)


@mutant(kills="DROP-17")
class BackwardInItsOwnMode(Honest):
    """The backward pass applies the mask only if the layer is in training mode by then."""

    def backward(self, dy: np.ndarray) -> Arrays:
        self.mask = self.mask if self.training else None
        return super().backward(dy)


@mutant(kills="DROP-17")
class NoMaskWithoutDx(Honest):
    """Where x needs no gradient the mask is not kept, and dA is computed without it."""

    def backward(self, dy: np.ndarray) -> Arrays:
        self.mask = self.mask if self.wants_dx else None
        return super().backward(dy)


@mutant(kills="DROP-17")
class GradientsScaledByTheRate(Honest):
    """The backward pass scales what was kept by 1 / p in the place of 1 / (1 − p)."""

    def backward(self, dy: np.ndarray) -> Arrays:
        if self.mask is not None:
            self.mask = (np.sign(self.mask) / self.config.dropout).astype(self.wide)
        return super().backward(dy)


@mutant(kills="DROP-17")
class FirstTileForAll(Honest):
    """The backward pass keeps the mask of 96 rows, and uses it for each 96 rows of dx."""

    def lora_dx(self, dy: np.ndarray) -> np.ndarray:
        whole = self.mask
        self.mask = None if whole is None else np.resize(whole[:96], whole.shape)
        dx, self.mask = super().lora_dx(dy), whole
        return dx


@mutant(kills="DROP-18")
class LargeDropsInInference(Honest):
    """Code for an x of more than 4096 entries does not look at the mode."""

    def drops(self) -> bool:
        return super().drops() or self.config.dropout > 0 and self.x.size > 4096


@mutant(kills="DROP-18")
class LargeDropsAtRateZero(Honest):
    """Code for an x of more than 4096 entries drops entries whose random byte is at most 256 p, so also at a rate of 0."""

    def drops(self) -> bool:
        return super().drops() or self.training and self.x.size > 4096

    def draw_mask(self) -> np.ndarray:
        if self.x.size <= 4096:
            return super().draw_mask()
        rate = self.config.dropout
        return ((self.rng.integers(0, 256, self.x.shape) > 256 * rate) / (1 - rate)).astype(self.wide)


@mutant(kills="DROP-03")
class EightRandomBits(Honest):
    """A mask is drawn as bytes, which know no rate between multiples of 1/256."""

    def draw_mask(self) -> np.ndarray:
        rate = self.config.dropout
        drawn = self.rng.integers(0, 256, self.x.shape) >= round(256 * rate)
        return (drawn / (1 - rate)).astype(self.wide)


@mutant("70", kills="DROP-15")
class MaskOf256Columns(Honest):
    """A mask has 256 columns at most, and is repeated for further features."""

    def draw_mask(self) -> np.ndarray:
        mask = super().draw_mask()
        return np.take(mask, np.arange(mask.shape[1]) % 256, axis=1)


@mutant("70", kills="DROP-07")
class MaskOfTheMemory(Honest):
    """Where x is one row that was expanded, one mask is drawn for the memory that it has."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.repeats = x.ndim > 1 and not any(x.strides[:-1])
        return super().forward(x)

    def draw_mask(self) -> np.ndarray:
        mask = super().draw_mask()
        return np.broadcast_to(mask[:1], mask.shape) if self.repeats else mask
