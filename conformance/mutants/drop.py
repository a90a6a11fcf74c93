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
