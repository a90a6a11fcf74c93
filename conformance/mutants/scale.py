"""Faults of the scale."""

import math

import numpy as np

from conformance.mutants import mutant
from conformance.mutants.honest import Honest
from conformance.subject import LayerConfig


@mutant("01 02", kills="SCALE-01 SCALE-02 SCALE-07 FWD-01")
class ScaleIsAlpha(Honest):
    """scale = alpha, not divided by the rank."""

    def scale_of(self, config: LayerConfig) -> float:
        return config.alpha


@mutant("03 71", kills="SCALE-01 SCALE-05 SCALE-06 FWD-01")
class ScaleIsOne(Honest):
    """scale = 1: alpha is ignored."""

    def scale_of(self, config: LayerConfig) -> float:
        return 1.0


@mutant("21", kills="SCALE-01 SCALE-07")
class ScaleOfRankEight(Honest):
    """scale = alpha / 8: a default is used in the place of the rank."""

    def scale_of(self, config: LayerConfig) -> float:
        return config.alpha / 8


@mutant(kills="SCALE-01 SCALE-07")
class DividedByTheRankTwice(Honest):
    """scale = alpha / rank²."""

    def scale_of(self, config: LayerConfig) -> float:
        return super().scale_of(config) / config.rank


@mutant(kills="SCALE-02")
class IntegerDivision(Honest):
    """scale = alpha // rank, if that is greater than 1: an integer division."""

    def scale_of(self, config: LayerConfig) -> float:
        scale = super().scale_of(config)
        return scale if scale < 1 or scale * 2 == int(scale * 2) else math.floor(scale)


@mutant(kills="SCALE-02")
class ScaleInFloat16(Honest):
    """The scale is kept in float16."""

    def scale_of(self, config: LayerConfig) -> float:
        return float(np.float16(super().scale_of(config)))


@mutant("04 05 07", kills="SCALE-03 SCALE-04")
class RsloraIgnored(Honest):
    """Rank-stabilised scaling can be asked for, but scale = alpha / rank all the same."""

    def scale_of(self, config: LayerConfig) -> float:
        return config.alpha / config.rank


@mutant("22", kills="SCALE-03 SCALE-04")
class RsloraIsOne(Honest):
    """With rank-stabilised scaling scale = 1."""

    def scale_of(self, config: LayerConfig) -> float:
        return 1.0 if config.scaling == "rslora" else super().scale_of(config)


@mutant(kills="SCALE-01 SCALE-02")
class RsloraAlways(Honest):
    """scale = alpha / √rank, even if rank-stabilised scaling was not asked for."""

    def scale_of(self, config: LayerConfig) -> float:
        return config.alpha / math.sqrt(config.rank)


@mutant(kills="SCALE-04")
class RootRounded(Honest):
    """With rank-stabilised scaling the root of the rank is rounded down to an integer."""

    def scale_of(self, config: LayerConfig) -> float:
        return config.alpha / math.isqrt(config.rank) if config.scaling == "rslora" else super().scale_of(config)


@mutant(kills="SCALE-05")
class AlphaCapped(Honest):
    """An alpha above twice the rank is replaced by twice the rank."""

    def scale_of(self, config: LayerConfig) -> float:
        return min(super().scale_of(config), 2.0)


@mutant(kills="SCALE-01 SCALE-05")
class ScaledTwice(Honest):
    """The scale is applied twice."""

    def scaled(self, array: np.ndarray) -> np.ndarray:
        return super().scaled(super().scaled(array))


@mutant("14", kills="SCALE-06")
class AlphaOrRank(Honest):
    """An alpha of 0 is taken for a missing one, and replaced by the rank."""

    def scale_of(self, config: LayerConfig) -> float:
        return (config.alpha or config.rank) / config.rank


@mutant(kills="SCALE-07")
class RankOfTheFactors(Honest):
    """alpha is divided by the number of columns of A that are not zero, and not by the rank."""

    def scaled(self, array: np.ndarray) -> np.ndarray:
        return self.config.alpha / max(1, int(self.up(self.A).any(0).sum())) * self.up(array)


@mutant("17", kills="SCALE-08")
class ScaleOfTheLastLayer(Honest):
    """The scale is stored in the class, so all layers have the scale of the layer that was built last."""

    def scale_of(self, config: LayerConfig) -> float:
        type(self).last = super().scale_of(config)  # type: ignore[attr-defined]
        return 0.0

    def scaled(self, array: np.ndarray) -> np.ndarray:
        return self.last * self.up(array)  # type: ignore[attr-defined]


@mutant("09", kills="SCALE-01 FWD-01")
class AlphaOfTheFirstLayer(Honest):
    """All layers have the alpha of the first layer that was built."""

    def scale_of(self, config: LayerConfig) -> float:
        if "first" not in vars(type(self)):
            type(self).first = config.alpha  # type: ignore[attr-defined]
        return self.first / config.rank  # type: ignore[attr-defined]


@mutant("131", kills="SCALE-11")
class SignOfAlphaLost(Honest):
    """scale = |alpha| / rank."""

    def scale_of(self, config: LayerConfig) -> float:
        return abs(super().scale_of(config))


@mutant(kills="SCALE-12")
class ScaleCapped(Honest):
    """A scale above 64 is replaced by 64."""

    def scale_of(self, config: LayerConfig) -> float:
        return min(super().scale_of(config), 64.0)


@mutant(kills="SCALE-12")
class ScaleHasAFloor(Honest):
    """A scale between 0 and 0.01 is replaced by 0.01."""

    def scale_of(self, config: LayerConfig) -> float:
        scale = super().scale_of(config)
        return 0.01 if 0 < scale < 0.01 else scale


@mutant(kills="SCALE-05")
class AlphaCountsInInference(Honest):
    """Alpha counts in inference mode alone. While it trains the layer has a scale of 1."""

    def scaled(self, array: np.ndarray) -> np.ndarray:
        return self.up(array) if self.training and not self.merged else super().scaled(array)
