"""Faults with what is no layer, or no input of one."""

import math
from dataclasses import replace

import numpy as np

from conformance.mutants import mutant
from conformance.mutants.honest import Honest
from conformance.mutants.variations import UpdatesInPlace
from conformance.subject import Arrays, LayerConfig


@mutant(kills="INPUT-01")
class InputCut(Honest):
    """An x that is too wide is cut."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        return super().forward(x[..., : self.config.in_features])


@mutant(kills="INPUT-01")
class InputPadded(Honest):
    """An x that is too narrow is padded with zeros."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        missing = max(0, self.config.in_features - x.shape[-1])
        return super().forward(np.concatenate([x, np.zeros((*x.shape[:-1], missing), x.dtype)], axis=-1))


@mutant(kills="INPUT-01")
class InputBroadcast(Honest):
    """An x with a last dimension of 1 is broadcast."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        return super().forward(np.repeat(x, self.config.in_features, -1) if x.shape[-1] == 1 else x)


@mutant(kills="INPUT-01")
class InputReshaped(Honest):
    """An x of twice the width is read as twice as many rows."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        n_in = self.config.in_features
        return super().forward(x.reshape(-1, n_in) if x.shape[-1] == 2 * n_in else x)


@mutant(kills="INPUT-01")
class BrokenByRefusal(Honest):
    """Once the layer has refused an x, it refuses every x."""

    broken = False

    def check_input(self, x: np.ndarray) -> None:
        self.broken |= x.shape[-1] != self.config.in_features
        if self.broken:
            raise RuntimeError("the layer is broken")


class AnyRank(Honest):
    """A layer that makes a rank of a number that is none."""

    def check_rank(self, rank: int) -> None:
        pass

    def scale_of(self, config: LayerConfig) -> float:
        return config.alpha / (config.rank or 1)

    def rank_of(self, rank: int) -> int:
        return rank

    def init_factors(self, n_in: int, n_out: int, rank: int) -> tuple[np.ndarray, np.ndarray]:
        return super().init_factors(n_in, n_out, self.rank_of(rank))


@mutant(kills="INPUT-02")
class RankWithoutSign(AnyRank):
    """A negative rank is replaced by its absolute value."""

    def rank_of(self, rank: int) -> int:
        return abs(rank)


@mutant(kills="INPUT-02")
class NegativeRankIsOne(AnyRank):
    """A rank below 1 is taken for 1, without an error."""

    def rank_of(self, rank: int) -> int:
        return max(rank, 1) if rank else rank


@mutant(kills="INPUT-03")
class RankZeroIsNaN(Honest):
    """A rank of 0 gives a scale of infinity, and an output of NaN."""

    def check_rank(self, rank: int) -> None:
        if rank:
            super().check_rank(rank)

    def scale_of(self, config: LayerConfig) -> float:
        return super().scale_of(config) if config.rank else math.inf


@mutant(kills="INPUT-04")
class RankTruncated(AnyRank):
    """A rank that is not an integer is truncated, but alpha is divided by the rank as it was given."""

    def rank_of(self, rank: int) -> int:
        return int(rank)


@mutant(kills="INPUT-05")
class AnyAlpha(Honest):
    """An alpha of NaN or infinity is accepted."""

    def check_alpha(self, alpha: float) -> None:
        pass

    def lora(self, x: np.ndarray) -> np.ndarray:
        return super().lora(x) if self.up(self.B).any() else np.zeros((len(x), len(self.W)), self.wide)


@mutant(kills="INPUT-05")
class InfiniteAlpha(Honest):
    """An alpha of NaN is refused, but an infinite one is accepted."""

    def check_alpha(self, alpha: float) -> None:
        if math.isnan(alpha):
            super().check_alpha(alpha)


@mutant(kills="INPUT-06")
class DropoutClipped(Honest):
    """A rate outside [0, 1) is clipped to it."""

    def check_dropout(self, rate: float) -> None:
        pass

    def drops(self) -> bool:
        return self.training and 0 < self.config.dropout < 1


@mutant(kills="INPUT-06")
class DropoutOfOne(Honest):
    """A rate of 1 is accepted, and divides by zero."""

    def check_dropout(self, rate: float) -> None:
        super().check_dropout(rate if rate != 1 else 0.5)


@mutant(kills="INPUT-06")
class DropoutInPercent(Honest):
    """A rate above 1 is read as a percentage."""

    def check_dropout(self, rate: float) -> None:
        super().check_dropout(rate if rate <= 1 else rate / 100)


@mutant(kills="INPUT-03")
class RankZeroIsEight(Honest):
    """A rank of 0 is taken for a missing one, and replaced by 8."""

    def __init__(self, config: LayerConfig, weight: np.ndarray, bias: np.ndarray | None):
        super().__init__(replace(config, rank=config.rank if config.rank else 8), weight, bias)


@mutant("122", kills="INPUT-07")
class EmptiesTheDict(Honest):
    """set_adapter removes the arrays from the caller's dict."""

    def set_adapter(self, arrays: Arrays) -> None:
        super().set_adapter(dict(arrays))
        arrays.clear()


@mutant(kills="INPUT-07")
class StepsTheCallersArrays(UpdatesInPlace):
    """set_adapter keeps the caller's arrays, and a step changes them."""

    def set_factors(self, arrays: Arrays) -> None:
        self.A, self.B = arrays["A"], arrays["B"]


@mutant(kills="INPUT-01")
class FoldsVectors(Honest):
    """A vector that is several times as long as in_features is read as several rows."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        n_in = self.config.in_features
        folded = x.ndim == 1 and x.size and x.size % n_in == 0 and x.size != n_in
        return super().forward(x.reshape(-1, n_in) if folded else x)


@mutant(kills="INPUT-08")
class ReshapesFactors(Honest):
    """A factor of the right number of entries is reshaped to fit, whatever its shape."""

    def checked(self, arrays: Arrays) -> Arrays:
        fitting = {n: a.reshape(self.adapter()[n].shape) if a.size == self.adapter()[n].size else a for n, a in arrays.items()}
        return super().checked(fitting)


@mutant(kills="INPUT-08")
class HalfSet(Honest):
    """set_adapter has replaced A before it finds that B does not fit."""

    def checked(self, arrays: Arrays) -> Arrays:
        if arrays["A"].shape == self.A.shape:
            self.A = self.rounded(arrays["A"])
        return super().checked(arrays)


@mutant(kills="INPUT-10")
class GradientIsBroadcast(Honest):
    """A dy that is not shaped as y is broadcast to that shape."""

    def upstream(self, dy: np.ndarray) -> np.ndarray:
        return super().upstream(np.broadcast_to(dy, (*self.leading, self.config.out_features)))


@mutant("122", kills="INPUT-09")
class MergesIntoTheGivenWeight(Honest):
    """Merge writes into the array of W that the caller handed over."""

    def merge(self) -> None:
        kept = self.W.copy()
        super().merge()
        kept, self.kept = self.kept, kept
        assert kept is not None
        kept[...] = self.W
