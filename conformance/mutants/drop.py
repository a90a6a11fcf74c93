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
    """Dropout goes on in inference mode."""

    def drops(self) -> bool:
        return self.config.dropout > 0


@mutant(kills="DROP-02 DROP-08")
class DropsTheBase(Honest):
    """The base product sees the dropped x, too."""

    def output(self, x: np.ndarray) -> np.ndarray:
        y = self.base(self.dropped(x))
        return y if self.merged else self.plus(y, self.lora(x))


@mutant(kills="DROP-02 DROP-08")
class DropsTheOutput(Honest):
    """Entries of the output are dropped, those of the base layer with them."""

    def output(self, x: np.ndarray) -> np.ndarray:
        y = super().output(x)
        rate = self.config.dropout if self.drops() else 0.0
        return y * (self.rng.random(y.shape) >= rate) / (1 - rate)


@mutant(kills="DROP-03")
class RateIsForKeeping(Honest):
    """p is taken for the probability of keeping an entry."""

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
    """dA is computed with the whole x."""

    def gradient_of_A(self, dy: np.ndarray) -> np.ndarray:
        return self.scaled(self.product(self.x.T, self.product(dy, self.B.T)))


@mutant(kills="DROP-04")
class MaskMissingInDx(Honest):
    """dx flows through entries that were dropped."""

    def lora_dx(self, dy: np.ndarray) -> np.ndarray:
        return self.scaled(self.product(self.product(dy, self.B.T), self.A.T))


@mutant("75", kills="DROP-05")
class NeverBack(Honest):
    """After the first time in inference mode there is no dropout any more."""

    def train(self, mode: bool = True) -> None:
        self.training = mode and self.training


@mutant(kills="DROP-06")
class ZeroIsMissing(Honest):
    """A rate of 0 counts as missing, and a default of 0.1 is put in its place."""

    def drops(self) -> bool:
        return self.training

    def draw_mask(self) -> np.ndarray:
        rate = self.config.dropout or 0.1
        return ((self.rng.random(self.x.shape) >= rate) / (1 - rate)).astype(self.wide)


@mutant(kills="DROP-07")
class OneMaskForEver(Honest):
    """The mask is drawn once, at the first forward pass."""

    def draw_mask(self) -> np.ndarray:
        if getattr(self, "drawn", np.zeros(0)).shape != self.x.shape:
            self.drawn = super().draw_mask()
        return self.drawn


@mutant(kills="DROP-07")
class OneMaskForAllRows(Honest):
    """All rows of a batch share a mask."""

    def draw_mask(self) -> np.ndarray:
        return np.broadcast_to(super().draw_mask()[:1], self.x.shape)


@mutant(kills="DROP-07")
class SeededWithEveryCall(Honest):
    """The generator is seeded anew in every forward pass, so all masks are equal."""

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
    """dx of the base path is masked like that of the LoRA path."""

    def base_dx(self, dy: np.ndarray) -> np.ndarray:
        return self.dropped(super().base_dx(dy))


@mutant(kills="DROP-10")
class MergedDropsTheBase(Honest):
    """While merged, in training mode, the input of the base product is dropped."""

    def output(self, x: np.ndarray) -> np.ndarray:
        return self.base(self.dropped(x)) if self.merged else super().output(x)


@mutant("44", kills="DROP-07")
class DropsWholeRows(Honest):
    """A row is dropped whole or not at all."""

    def draw_mask(self) -> np.ndarray:
        mask = super().draw_mask()
        return np.broadcast_to(mask[:, :1], mask.shape).copy()


@mutant(kills="DROP-07")
class DropsTheSameCount(Honest):
    """Of each row the same number of entries is dropped."""

    def draw_mask(self) -> np.ndarray:
        n, k = self.x.shape
        keep = round(k * (1 - self.config.dropout))
        order = self.rng.random((n, k)).argsort(1)
        return ((order < keep) / (1 - self.config.dropout)).astype(self.wide)


@mutant("44", kills="DROP-07")
class OneMaskForAllSamples(Honest):
    """With two leading dimensions the mask is that of the first sample."""

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
    """The mask is drawn with four random bits an entry, so the rate is rounded down to a sixteenth."""

    def draw_mask(self) -> np.ndarray:
        rate = self.config.dropout
        return ((self.rng.integers(0, 16, self.x.shape) >= int(16 * rate)) / (1 - rate)).astype(self.wide)


@mutant(kills="DROP-07")
class MaskInHalves(Honest):
    """The mask is drawn for one half of the features, and used for both."""

    def draw_mask(self) -> np.ndarray:
        mask = super().draw_mask()
        half = mask.shape[1] // 2
        mask[:, half : 2 * half] = mask[:, :half]
        return mask


@mutant(kills="DROP-07")
class AlwaysAsMany(Honest):
    """Not each entry is drawn, but which ones of a fixed number are dropped."""

    def draw_mask(self) -> np.ndarray:
        rate, mask = self.config.dropout, np.ones(self.x.size)
        mask[self.rng.permutation(mask.size)[: round(rate * mask.size)]] = 0
        return (mask.reshape(self.x.shape) / (1 - rate)).astype(self.wide)


@mutant(kills="DROP-07")
class MaskRolls(Honest):
    """The next mask is the last one, moved on by a row."""

    before: np.ndarray | None = None

    def draw_mask(self) -> np.ndarray:
        again = self.before is not None and self.before.shape == self.x.shape and len(self.x) > 1
        self.before = np.roll(self.before, 1, 0) if again else super().draw_mask()  # type: ignore[arg-type]
        return self.before


@mutant(kills="DROP-11")
class VectorsAreKept(Honest):
    """An x without a leading dimension is not dropped."""

    def drops(self) -> bool:
        return super().drops() and self.leading != ()


@mutant(kills="DROP-11")
class SingleRowsAreKept(Honest):
    """A single row is not dropped."""

    def drops(self) -> bool:
        return super().drops() and len(self.x) != 1


@mutant(kills="DROP-11")
class RsloraDoesNotDrop(Honest):
    """With rank-stabilised scaling the rate is forgotten."""

    def drops(self) -> bool:
        return super().drops() and self.config.scaling == "standard"


@mutant(kills="DROP-11")
class HalfPrecisionIsNotRescaled(Honest):
    """In half precision kept entries are not scaled by 1 / (1 − p)."""

    def draw_mask(self) -> np.ndarray:
        mask = super().draw_mask()
        return np.sign(mask) if self.dtype.itemsize == 2 else mask


@mutant(kills="DROP-11")
class Float64IsNotRescaled(Honest):
    """In float64 kept entries are not scaled by 1 / (1 − p)."""

    def draw_mask(self) -> np.ndarray:
        mask = super().draw_mask()
        return np.sign(mask) if self.dtype == np.float64 else mask


@mutant(kills="DROP-04")
class MaskOfThePassBefore(Honest):
    """The backward pass takes the mask of the last forward pass but one, if it has the shape."""

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
    """After an unmerge nothing is dropped any more."""

    ended = False

    def unmerge(self) -> None:
        super().unmerge()
        self.ended = True

    def drops(self) -> bool:
        return super().drops() and not self.ended


@mutant("75", kills="DROP-12")
class MergeGoesToInference(Honest):
    """Merge goes to inference mode, and unmerge does not come back."""

    def merge(self) -> None:
        super().merge()
        self.training = False


@mutant("17", kills="DROP-13")
class RateOfTheLastLayer(Honest):
    """The rate is kept by the class, and is that of the layer that was built last."""

    def check_dropout(self, rate: float) -> None:
        super().check_dropout(rate)
        type(self).rate = rate  # type: ignore[attr-defined]

    def drops(self) -> bool:
        return self.training and self.rate > 0  # type: ignore[attr-defined]

    def draw_mask(self) -> np.ndarray:
        return ((self.rng.random(self.x.shape) >= self.rate) / (1 - self.rate)).astype(self.wide)  # type: ignore[attr-defined]


@mutant(kills="DROP-13")
class MaskOfTheLastLayer(Honest):
    """The backward pass takes the mask that was drawn last, by whichever layer."""

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
    """Load goes to inference mode."""

    def receive(self, contents: Arrays) -> None:
        super().receive(contents)
        self.training = False
