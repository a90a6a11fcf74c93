"""Faults of merging and unmerging."""

import ml_dtypes
import numpy as np

from conformance.mutants import mutant
from conformance.mutants.honest import Honest
from conformance.mutants.variations import MergesAtEval, UnmergesBySubtraction
from conformance.subject import Arrays, LayerConfig


@mutant("10", kills="MERGE-01 MERGE-02 MERGE-03 MERGE-04")
class MergeWithoutScale(Honest):
    """Merge adds the delta without the scale."""

    def delta_weight(self) -> np.ndarray:
        return self.product(self.A, self.B).T


@mutant("85", kills="MERGE-01 MERGE-03")
class MergeDoubled(UnmergesBySubtraction):
    """Merge adds the delta twice and unmerge subtracts it twice, so a round trip shows nothing."""

    def delta_weight(self) -> np.ndarray:
        return 2 * super().delta_weight()


@mutant(kills="MERGE-01 MERGE-03")
class MergesFirstRankOnly(Honest):
    """Only the first column of A and the first row of B are merged."""

    def delta_weight(self) -> np.ndarray:
        return self.scaled(self.product(self.A[:, :1], self.B[:1])).T


@mutant(kills="MERGE-01 MERGE-03")
class MergesBOnly(Honest):
    """Merge uses B alone, as if every entry of A were one."""

    def delta_weight(self) -> np.ndarray:
        return self.scaled(self.product(np.ones_like(self.A), self.B)).T


@mutant("79", kills="MERGE-01 MERGE-03")
class MergesFlatBuffers(Honest):
    """The delta is computed from flat buffers, with the indices of the transposed layout."""

    def delta_weight(self) -> np.ndarray:
        delta = super().delta_weight()
        return delta.T.reshape(delta.shape)


@mutant("78 80", kills="MERGE-01 MERGE-02 MERGE-12")
class MergesTransposed(Honest):
    """The delta is added without being transposed, which works only for the shape of a square W."""

    def merged_weight(self) -> np.ndarray:
        return self.rounded(self.plus(self.W, self.delta_weight().T))


@mutant("77", kills="MERGE-02 MERGE-04 DTYPE-06")
class SquareMergesTransposed(Honest):
    """The delta is transposed only if its shape requires it. A square W gets it the wrong way round."""

    def delta_weight(self) -> np.ndarray:
        delta = super().delta_weight()
        return delta.T if delta.shape[0] == delta.shape[1] else delta


@mutant("76 109 117", kills="MERGE-03 MERGE-12 MERGE-01")
class MergeDoesNothing(Honest):
    """Merge leaves W as it is, so the merged layer is the base layer."""

    def merged_weight(self) -> np.ndarray:
        return self.W


@mutant("102", kills="MERGE-12 MERGE-01")
class WideMergeSkipped(Honest):
    """For a layer with more outputs than inputs the orientation is guessed wrong, and merge silently does nothing."""

    def merged_weight(self) -> np.ndarray:
        return self.W if self.W.shape[0] > self.W.shape[1] else super().merged_weight()


@mutant("98", kills="MERGE-02 MERGE-04")
class MergesInFloat16(Honest):
    """The delta is computed in float16, whatever the dtype of W."""

    def delta_weight(self) -> np.ndarray:
        return super().delta_weight().astype(np.float16)


@mutant("35", kills="MERGE-03 MERGE-04 MERGE-05")
class DeltaCountsTwice(Honest):
    """The forward pass still adds the LoRA part after a merge."""

    def output(self, x: np.ndarray) -> np.ndarray:
        return self.plus(self.base(x), self.lora(x))


@mutant("86", kills="MERGE-03")
class InferenceMergesAgain(MergesAtEval):
    """Inference mode merges, even if the layer is merged already."""

    def train(self, mode: bool = True) -> None:
        if not mode and self.merged:
            self.W = self.merged_weight()
        super().train(mode)


@mutant(kills="MERGE-03 MERGE-04")
class MergedWithoutBias(Honest):
    """The merged layer computes x W'ᵀ without the bias."""

    def base(self, x: np.ndarray) -> np.ndarray:
        return self.product(x, self.W.T) if self.merged else super().base(x)


@mutant("106", kills="MERGE-04 MERGE-03")
class MergedForwardUsesOldW(Honest):
    """The merged W is a copy for export. The forward pass uses the old W, without the LoRA part."""

    def base(self, x: np.ndarray) -> np.ndarray:
        merged, self.W = self.W, self.W if self.kept is None else self.kept
        y = super().base(x)
        self.W = merged
        return y


@mutant("86", kills="MERGE-05")
class NoGuard(Honest):
    """A second merge adds the delta again."""

    def merge(self) -> None:
        if self.merged:
            self.W = self.merged_weight()
        else:
            super().merge()


@mutant(kills="MERGE-05")
class SecondMergeUndoes(Honest):
    """Merge is a toggle: a second merge takes the delta out again."""

    def merge(self) -> None:
        if self.merged:
            self.unmerge()
        else:
            super().merge()


@mutant("105", kills="MERGE-06 MERGE-07 MERGE-08 MERGE-13")
class UnmergeDoesNothing(Honest):
    """Unmerge clears the flag and leaves the delta in W."""

    def restored_weight(self) -> np.ndarray:
        return self.W


@mutant(kills="MERGE-06 MERGE-07 MERGE-13")
class UnmergeWithoutScale(UnmergesBySubtraction):
    """Unmerge subtracts the delta without the scale."""

    def restored_weight(self) -> np.ndarray:
        return self.rounded(self.plus(self.W, -self.product(self.A, self.B).T))


@mutant("78", kills="MERGE-06 MERGE-07")
class UnmergeTransposed(UnmergesBySubtraction):
    """Merge transposes the delta and unmerge does not."""

    def restored_weight(self) -> np.ndarray:
        return self.rounded(self.plus(self.W, -self.delta_weight().T))


@mutant("100", kills="MERGE-06 MERGE-13 STATE-09")
class FlagNotCleared(Honest):
    """Unmerge does not clear the flag. The layer still counts as merged, and leaves out the LoRA part."""

    flag = False

    def merge(self) -> None:
        if not self.flag:
            super().merge()
        self.flag = True

    def unmerge(self) -> None:
        self.W = self.W if self.kept is None else self.kept
        self.kept = None

    @property
    def merged(self) -> bool:
        return self.flag


@mutant("99", kills="MERGE-07 MERGE-08")
class UnmergesInFloat16(UnmergesBySubtraction):
    """Unmerge computes the delta that it subtracts in float16."""

    def restored_weight(self) -> np.ndarray:
        return self.rounded(self.plus(self.W, -self.delta_weight().astype(np.float16)))


@mutant(kills="MERGE-07")
class KeepsWInBfloat16(Honest):
    """The copy of W that unmerge restores is kept in bfloat16."""

    def restored_weight(self) -> np.ndarray:
        return self.rounded(super().restored_weight().astype(ml_dtypes.bfloat16))


@mutant("99", kills="MERGE-08")
class SubtractsWhateverItIs(UnmergesBySubtraction):
    """Unmerge subtracts the delta. What was lost by rounding or overflow does not come back."""


@mutant("104", kills="MERGE-08")
class ChecksTooLate(Honest):
    """Merge refuses a result that is not finite, but only after it has overwritten W. The layer is then not marked as merged.
    """

    def merge(self) -> None:
        super().merge()
        if not np.isfinite(self.up(self.W)).all():
            self.kept = None
            raise ValueError("merge: not finite")


@mutant("83 84", kills="MERGE-09 MERGE-03")
class BiasMergedToo(UnmergesBySubtraction):
    """Merge changes the bias, too, and unmerge changes it back, so a round trip shows nothing."""

    def merge(self) -> None:
        super().merge()
        self.b = None if self.b is None else self.rounded(self.scaled(self.b))

    def unmerge(self) -> None:
        super().unmerge()
        self.b = None if self.b is None else self.rounded(self.up(self.b) / self.scale)


@mutant(kills="MERGE-09")
class MergeClearsFactors(Honest):
    """Merge sets A and B to zero, because W contains them."""

    def merge(self) -> None:
        super().merge()
        self.A, self.B = 0 * self.A, 0 * self.B


@mutant(kills="MERGE-10")
class FrozenAfterUnmerge(Honest):
    """A and B get no gradients any more after a merge and an unmerge."""

    frozen = False

    def merge(self) -> None:
        super().merge()
        self.frozen = True

    def backward(self, dy: np.ndarray) -> Arrays:
        found = super().backward(dy)
        return {"x": found["x"]} if self.frozen else found


@mutant(kills="MERGE-10")
class UnmergeCopiesFactors(Honest):
    """Unmerge replaces A and B by copies, but the optimiser still has the old arrays."""

    copied = False

    def unmerge(self) -> None:
        super().unmerge()
        self.copied = True

    def step(self, lr: float) -> None:
        if not self.copied:
            super().step(lr)


@mutant("105", kills="MERGE-11")
class SubtractsTheNewDelta(UnmergesBySubtraction):
    """The adapter can be replaced while merged. Unmerge then subtracts the new delta, although W contains the old one."""

    def set_adapter(self, arrays: Arrays) -> None:
        self.set_factors(self.checked(arrays))


@mutant("105", kills="MERGE-11")
class SettingForgetsTheMerge(Honest):
    """A new adapter counts as unmerged, and the W that contains the old adapter counts as the base weight."""

    def set_adapter(self, arrays: Arrays) -> None:
        self.set_factors(self.checked(arrays))
        self.kept = self.W if self.merged else None


@mutant("96", kills="MERGE-02 MERGE-04 DTYPE-06")
class MergesToCoarseGrid(Honest):
    """The merged weight is rounded to the 255 steps of an eight-bit grid."""

    def merged_weight(self) -> np.ndarray:
        W = self.up(super().merged_weight())
        step = max(float(np.abs(W).max(initial=0)), 1e-30) / 127
        return self.rounded(np.round(W / step) * step)


@mutant(kills="MERGE-02")
class ScaleOfTheMergeInBfloat16(Honest):
    """Merge uses its own copy of the scale, stored in bfloat16."""

    def __init__(self, config: LayerConfig, weight: np.ndarray, bias: np.ndarray | None):
        super().__init__(config, weight, bias)
        self.merge_scale = float(np.array(self.scale, ml_dtypes.bfloat16))

    def delta_weight(self) -> np.ndarray:
        return self.merge_scale * self.product(self.A, self.B).T


@mutant("22", kills="SCALE-10")
class RsloraMergedByOne(Honest):
    """With rank-stabilised scaling merge uses a scale of 1."""

    def delta_weight(self) -> np.ndarray:
        return self.product(self.A, self.B).T if self.config.scaling == "rslora" else super().delta_weight()


@mutant("110", kills="MERGE-10 STATE-09")
class DeltaOfTheFirstMerge(Honest):
    """The delta is computed at the first merge, and all later merges use it again."""

    def merged_weight(self) -> np.ndarray:
        if not hasattr(self, "delta"):
            self.delta = self.delta_weight()
        return self.rounded(self.plus(self.W, self.delta))


@mutant(kills="MERGE-14")
class MergedDxByTheOldWeight(Honest):
    """A merged layer computes dx with the W that was put aside, and not with the merged one."""

    def base_dx(self, dy: np.ndarray) -> np.ndarray:
        return self.product(dy, self.W if self.kept is None else self.kept)


@mutant("77", kills="MERGE-15")
class SquareDeltaTransposed(Honest):
    """The delta is transposed only if its shape requires it."""

    def delta_weight(self) -> np.ndarray:
        delta = super().delta_weight()
        return delta.T if delta.shape[0] == delta.shape[1] else delta


@mutant("86", kills="MERGE-16")
class UnmergesUnmerged(UnmergesBySubtraction):
    """Unmerge of a layer that is not merged subtracts the delta all the same."""

    def unmerge(self) -> None:
        if self.merged:
            super().unmerge()
        else:
            self.W = self.restored_weight()


@mutant("105 111", kills="MERGE-17")
class LoadsIntoMerged(UnmergesBySubtraction):
    """Load replaces the factors of a merged layer. Unmerge then subtracts the new delta."""

    def receive(self, contents: Arrays) -> None:
        self.set_factors(self.checked(contents))


@mutant(kills="MERGE-18")
class MergesOnlyInTraining(Honest):
    """In inference mode merge sets the flag, but leaves W as it is."""

    def merged_weight(self) -> np.ndarray:
        return super().merged_weight() if self.training else self.W


@mutant(kills="FWD-07")
class MergesNoRankAboveTheSizes(Honest):
    """If the rank is above min(in, out), only the first min(in, out) columns of A and rows of B are merged."""

    def delta_weight(self) -> np.ndarray:
        rank = min(self.config.rank, *self.W.shape)
        return self.scaled(self.product(self.A[:, :rank], self.B[:rank])).T


@mutant("105", kills="MERGE-19")
class SubtractsTheSteppedDelta(UnmergesBySubtraction):
    """A step moves A and B while W contains their old product. Unmerge then subtracts the new one."""

    def step(self, lr: float) -> None:
        Honest.step(self, lr)


@mutant(kills="MERGE-19")
class StepForgetsTheMerge(Honest):
    """After a step the W that contains the old product counts as the base weight."""

    def step(self, lr: float) -> None:
        super().step(lr)
        self.kept = self.W if self.merged else None


@mutant("22", kills="MERGE-20")
class UnmergesWithoutTheRoot(UnmergesBySubtraction):
    """Unmerge subtracts alpha / rank times the product, also with rank-stabilised scaling."""

    def restored_weight(self) -> np.ndarray:
        scale = self.config.alpha / self.config.rank
        return self.rounded(self.plus(self.W, -scale * self.product(self.A, self.B).T))


@mutant("22", kills="MERGE-20")
class SettingForgetsTheRoot(Honest):
    """If factors are set while it is merged, the layer computes its scale again, as alpha / rank."""

    def set_adapter(self, arrays: Arrays) -> None:
        merged = self.merged
        super().set_adapter(arrays)
        if merged:
            self.scale = self.config.alpha / self.config.rank


@mutant(kills="MERGE-21")
class MergesZerosForNaN(Honest):
    """Merge puts zeros in the place of what is not finite in the delta."""

    def delta_weight(self) -> np.ndarray:
        return np.nan_to_num(super().delta_weight(), nan=0, posinf=0, neginf=0)


@mutant(kills="MERGE-21")
class SkipsTheMergeOfNaN(Honest):
    """If the delta holds NaN, merge leaves W as it is, without an error."""

    def merged_weight(self) -> np.ndarray:
        merged = super().merged_weight()
        return self.W if np.isnan(self.up(merged)).any() else merged


@mutant(kills="MERGE-21")
class OneNaNEverywhere(Honest):
    """If one entry of the delta is not finite, merge makes every entry of W NaN."""

    def merged_weight(self) -> np.ndarray:
        merged = super().merged_weight()
        return merged if np.isfinite(self.up(merged)).all() else np.full_like(merged, np.nan)


@mutant(kills="MERGE-01")
class SmallBNeedsNoMerge(Honest):
    """A B that is close to zero counts as zero where the layer is merged."""

    def delta_weight(self) -> np.ndarray:
        delta = super().delta_weight()
        return 0 * delta if np.allclose(self.up(self.B), 0) else delta


@mutant(kills="MERGE-11")
class NoProductWasKept(Honest):
    """A merge keeps the product, but none that is zero. An unmerge then takes out the product of that time."""

    product_then: np.ndarray | None = None

    def merge(self) -> None:
        delta = self.delta_weight()
        self.product_then = delta if delta.any() else None
        super().merge()

    def set_adapter(self, arrays: Arrays) -> None:
        kept, self.kept = self.kept, None
        super().set_adapter(arrays)
        self.kept = kept

    def unmerge(self) -> None:
        merged = self.W
        super().unmerge()
        if self.product_then is None:
            self.W = self.rounded(self.up(merged) - self.delta_weight())
