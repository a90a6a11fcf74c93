"""Faults of several adapters on one layer."""

import numpy as np

from conformance.mutants import mutant
from conformance.mutants.honest import Honest
from conformance.mutants.several import CombinesByRoots, SeveralAdapters
from conformance.subject import Arrays


@mutant("50", kills="MULTI-02 MULTI-04")
class WrapsTheFirst(SeveralAdapters):
    """A further adapter is wrapped around the first one, and the first one is still applied inside it."""

    def base(self, x: np.ndarray) -> np.ndarray:
        below = self.others and "default" not in self.active and not self.merged
        return self.plus(super().base(x), self.lora_of(self, x)) if below else super().base(x)


@mutant(kills="MULTI-01")
class AddingActivates(SeveralAdapters):
    """An adapter that is added is active at once."""

    def add_adapter(self, name: str, arrays: Arrays, alpha: float) -> None:
        super().add_adapter(name, arrays, alpha)
        self.active[name] = 1.0


@mutant(kills="MULTI-01")
class AddingReplaces(SeveralAdapters):
    """An adapter that is added replaces the one that was active."""

    def add_adapter(self, name: str, arrays: Arrays, alpha: float) -> None:
        super().add_adapter(name, arrays, alpha)
        self.active = {name: 1.0}


@mutant(kills="MULTI-01 MULTI-02")
class OneBuffer(SeveralAdapters):
    """All adapters of one rank share a buffer: the factors of the last one overwrite those of the first."""

    def add_adapter(self, name: str, arrays: Arrays, alpha: float) -> None:
        super().add_adapter(name, arrays, alpha)
        if arrays["A"].shape == self.A.shape:
            self.A, self.B = self.rounded(arrays["A"]), self.rounded(arrays["B"])


@mutant(kills="MULTI-02 MULTI-03")
class ScaleOfTheFirst(SeveralAdapters):
    """All adapters have the scale of the first one, its alpha / rank."""

    def add_adapter(self, name: str, arrays: Arrays, alpha: float) -> None:
        super().add_adapter(name, arrays, alpha)
        self.others[name].scale = self.scale


@mutant("17", kills="MULTI-02")
class RankOfTheFirst(SeveralAdapters):
    """The alpha of every further adapter is divided by the rank of the first one."""

    def add_adapter(self, name: str, arrays: Arrays, alpha: float) -> None:
        super().add_adapter(name, arrays, alpha)
        self.others[name].scale = alpha / self.config.rank


@mutant("09", kills="MULTI-02")
class AlphaOfTheFirst(SeveralAdapters):
    """All adapters have the alpha of the first one, each divided by its own rank."""

    def add_adapter(self, name: str, arrays: Arrays, alpha: float) -> None:
        super().add_adapter(name, arrays, self.config.alpha)


@mutant("130", kills="MULTI-03 MULTI-06 MULTI-08")
class SumsOfFactors(SeveralAdapters):
    """Active adapters of one rank are summed factor by factor: (Σ A) (Σ B) has cross terms."""

    def output(self, x: np.ndarray) -> np.ndarray:
        parts = self.parts()
        if self.merged or len({part.A.shape for _, _, part in parts}) != 1 or len(parts) < 2:
            return super().output(x)
        A = np.sum([self.up(part.A) for _, _, part in parts], axis=0)
        B = np.sum([weight * part.scaled(part.B) for _, weight, part in parts], axis=0)
        return self.plus(self.base(x), self.product(self.product(x, A), B))


@mutant(kills="MULTI-03")
class OnlyTheLast(SeveralAdapters):
    """If several adapters are active, only the last one is applied."""

    def parts(self) -> list[tuple[str, float, Honest]]:
        return super().parts()[-1:]


@mutant(kills="MULTI-03")
class OneWeightForAll(SeveralAdapters):
    """All adapters get the weight of the one that is named first."""

    def activate(self, weights: dict[str, float]) -> None:
        super().activate(dict.fromkeys(weights, next(iter(weights.values()), 1.0)))


@mutant(kills="MULTI-03")
class WeightsIgnored(SeveralAdapters):
    """Every active adapter has the weight 1."""

    def activate(self, weights: dict[str, float]) -> None:
        super().activate(dict.fromkeys(weights, 1.0))


@mutant("131", kills="MULTI-03")
class SignOfWeightLost(SeveralAdapters):
    """A negative weight is replaced by its absolute value."""

    def activate(self, weights: dict[str, float]) -> None:
        super().activate({name: abs(weight) for name, weight in weights.items()})


@mutant(kills="MULTI-03")
class WeightsAreShares(SeveralAdapters):
    """The weights of several adapters are divided by their number."""

    def activate(self, weights: dict[str, float]) -> None:
        super().activate({name: weight / len(weights) for name, weight in weights.items()})


@mutant(kills="MULTI-04")
class NoneMeansAsBefore(SeveralAdapters):
    """Activating no adapter changes nothing: the old ones stay active."""

    def activate(self, weights: dict[str, float]) -> None:
        super().activate(weights or self.active)


@mutant("16", kills="MULTI-04")
class SwitchingOffForgets(SeveralAdapters):
    """An adapter that is switched off is multiplied by zero, and cannot be switched on again."""

    def activate(self, weights: dict[str, float]) -> None:
        super().activate(weights)
        if not weights:
            self.A = 0 * self.A


@mutant("15", kills="MULTI-05")
class WeightsMultiply(SeveralAdapters):
    """A new weight is multiplied into the scale, and the old weight is never divided out."""

    def activate(self, weights: dict[str, float]) -> None:
        super().activate(weights)
        for _, weight, part in self.parts():
            part.scale *= weight
        self.active = dict.fromkeys(weights, 1.0)


@mutant(kills="MULTI-05")
class ActivatingAdds(SeveralAdapters):
    """The adapters that were active stay active beside the new ones."""

    def activate(self, weights: dict[str, float]) -> None:
        super().activate((self.active | weights) if weights else {})


@mutant(kills="MULTI-06")
class WeightForwardOnly(SeveralAdapters):
    """The backward pass ignores the weights."""

    def weight_back(self, weight: float) -> float:
        return 1.0


@mutant("65", kills="MULTI-07")
class AllTrain(SeveralAdapters):
    """Every adapter gets a gradient, active or not."""

    def backward(self, dy: np.ndarray) -> Arrays:
        found = super().backward(dy)
        for part in (self, *self.others.values()):
            if self.merged or part in [active for _, _, active in self.parts()]:
                continue
            part.x, part.mask = self.x, self.mask
            part.accumulated(part.gradient_of_A(self.rows(dy)), part.gradient_of_B(self.rows(dy)))
        return found


@mutant(kills="MULTI-06")
class FirstTrainsAlone(SeveralAdapters):
    """Only the first of the active adapters gets its gradient."""

    def backward(self, dy: np.ndarray) -> Arrays:
        found = super().backward(dy)
        for name in list(self.active)[1:]:
            found.pop(f"{name}.A", None)
            found.pop(f"{name}.B", None)
            self.part(name).zero_grad()
        return found


@mutant(kills="MULTI-06")
class InputGradientOfOne(SeveralAdapters):
    """dx has the LoRA part of the first active adapter alone."""

    def backward(self, dy: np.ndarray) -> Arrays:
        found = super().backward(dy)
        if len(self.active) > 1 and not self.merged and "x" in found:
            _, weight, part = self.parts()[0]
            rows = self.rows(dy)
            found["x"] = self.shaped(self.plus(self.base_dx(rows), part.lora_dx(weight * rows)))
        return found


@mutant(kills="MULTI-07")
class WeightDecayForAll(SeveralAdapters):
    """A step shrinks the factors of every adapter, active or not."""

    def step(self, lr: float) -> None:
        super().step(lr)
        for part in (self, *self.others.values()):
            if part not in [active for _, _, active in self.parts()]:
                part.A = self.rounded((1 - lr) * self.up(part.A))


@mutant("91", kills="MULTI-08")
class MergesTheFirst(SeveralAdapters):
    """Merge always merges the first adapter, whichever is active."""

    def delta_weight(self) -> np.ndarray:
        return Honest.delta_weight(self)


@mutant("106", kills="MULTI-08")
class MergesOneOfThem(SeveralAdapters):
    """Merge merges one of the active adapters. The others are not applied while the layer is merged."""

    def delta_weight(self) -> np.ndarray:
        kept, self.active = self.active, dict(list(self.active.items())[:1])
        delta = super().delta_weight()
        self.active = kept
        return delta


@mutant(kills="MULTI-08")
class MergesWithoutWeights(SeveralAdapters):
    """Merge ignores the weights: each adapter is merged with the weight 1."""

    def delta_weight(self) -> np.ndarray:
        kept, self.active = self.active, dict.fromkeys(self.active, 1.0)
        delta = super().delta_weight()
        self.active = kept
        return delta


@mutant(kills="MULTI-08")
class MergesAll(SeveralAdapters):
    """Every adapter is merged, active or not."""

    def delta_weight(self) -> np.ndarray:
        kept, self.active = self.active, dict.fromkeys(("default", *self.others), 1.0) | self.active
        delta = super().delta_weight()
        self.active = kept
        return delta


@mutant("105", kills="MULTI-09")
class UnmergesWhatIsActive(SeveralAdapters):
    """Unmerge subtracts the adapters that are active by then, and not those that were merged."""

    def activate(self, weights: dict[str, float]) -> None:
        for name in weights:
            self.part(name)
        self.active = dict(weights)

    def restored_weight(self) -> np.ndarray:
        return self.rounded(self.up(self.W) - self.delta_weight())


@mutant(kills="MULTI-09")
class ActivatingForgetsTheMerge(SeveralAdapters):
    """Activating while merged clears the flag, but the delta stays in W."""

    def activate(self, weights: dict[str, float]) -> None:
        self.kept = None
        super().activate(weights)


@mutant(kills="MULTI-10")
class UnknownIsSkipped(SeveralAdapters):
    """A name that no adapter has is silently ignored."""

    def activate(self, weights: dict[str, float]) -> None:
        super().activate({name: weight for name, weight in weights.items() if name in ("default", *self.others)})


@mutant(kills="MULTI-10")
class RefusedTooLate(SeveralAdapters):
    """An unknown name is refused, but only after the names before it were activated."""

    def activate(self, weights: dict[str, float]) -> None:
        self.active = {}
        for name, weight in weights.items():
            self.part(name)
            self.active[name] = weight


@mutant("125", kills="MULTI-11")
class RemovedGoesOn(SeveralAdapters):
    """An adapter that is removed while it is active is still applied."""

    def remove_adapter(self, name: str) -> None:
        part = self.part(name)
        if name in self.active:
            self.W = self.rounded(self.plus(self.W, self.active[name] * Honest.delta_weight(part)))
        super().remove_adapter(name)


@mutant(kills="MULTI-11")
class RemovedStaysKnown(SeveralAdapters):
    """An adapter that was removed can still be activated."""

    def remove_adapter(self, name: str) -> None:
        self.part(name)
        self.active.pop(name, None)


@mutant(kills="MULTI-11")
class RemovesTheLast(SeveralAdapters):
    """Whichever name is given, the adapter that was added last is removed."""

    def remove_adapter(self, name: str) -> None:
        super().remove_adapter(list(self.others)[-1])

    def add_adapter(self, name: str, arrays: Arrays, alpha: float) -> None:
        super().add_adapter(name, arrays, alpha)
        self.others = dict(sorted(self.others.items(), reverse=True))


@mutant("105", kills="MULTI-12")
class RemovedStaysMerged(SeveralAdapters):
    """An adapter that is removed while it is merged stays in W for ever."""

    def remove_adapter(self, name: str) -> None:
        self.kept = None
        super().remove_adapter(name)


@mutant("130", kills="MULTI-13")
class CombinesFactors(SeveralAdapters):
    """Adapters of one rank are combined factor by factor, with cross terms."""

    def combine(self, name: str, weights: dict[str, float]) -> None:
        parts = [(weight, self.part(n)) for n, weight in weights.items()]
        if len({part.A.shape for _, part in parts}) > 1 or len(parts) < 2:
            super().combine(name, weights)
            return
        A = self.rounded(np.sum([self.up(part.A) for _, part in parts], axis=0))
        B = self.rounded(np.sum([weight * part.scaled(part.B) for weight, part in parts], axis=0))
        self.add_adapter(name, {"A": A, "B": B}, self.alpha_of_one(A.shape[1]))


@mutant("131", kills="MULTI-13")
class CombinedSignCancels(SeveralAdapters):
    """The sign of a weight is put into A and into B, so a weight of −1 has the effect of 1."""

    def combine(self, name: str, weights: dict[str, float]) -> None:
        super().combine(name, {n: abs(weight) for n, weight in weights.items()})


@mutant("132", kills="MULTI-13")
class CombinedIsScaledTwice(SeveralAdapters):
    """The scale is put into the factors of the combined adapter, and then applied once more."""

    def combine(self, name: str, weights: dict[str, float]) -> None:
        super().combine(name, {n: weight * self.part(n).scale for n, weight in weights.items()})


@mutant(kills="MULTI-13")
class CombinedIsNotScaled(SeveralAdapters):
    """The factors are combined without their scales."""

    def combine(self, name: str, weights: dict[str, float]) -> None:
        super().combine(name, {n: weight / self.part(n).scale for n, weight in weights.items()})


@mutant(kills="MULTI-13")
class CombiningChangesTheParts(SeveralAdapters):
    """Combining multiplies the weights into the given adapters in place."""

    def combine(self, name: str, weights: dict[str, float]) -> None:
        super().combine(name, weights)
        for n, weight in weights.items():
            self.part(n).B = self.rounded(weight * self.up(self.part(n).B))


@mutant("08", kills="MULTI-17")
class CombinedIsRslora(SeveralAdapters):
    """The combined adapter has alpha = rank, for a scale of 1. But it inherits rank-stabilised scaling, so its scale is √rank.
    """

    def alpha_of_one(self, rank: int) -> float:
        return rank


@mutant(kills="MULTI-14")
class FurtherOnesAreStandard(SeveralAdapters):
    """Rank-stabilised scaling applies to the first adapter alone. Further ones have the scale alpha / rank."""

    def add_adapter(self, name: str, arrays: Arrays, alpha: float) -> None:
        super().add_adapter(name, arrays, alpha)
        self.others[name].scale = alpha / arrays["A"].shape[1]

    def alpha_of_one(self, rank: int) -> float:
        return rank


@mutant("45", kills="MULTI-15")
class NoneIsTheFirst(SeveralAdapters):
    """In a mixed batch the samples without an adapter get the first one."""

    def forward_mixed(self, x: np.ndarray, names: tuple[str | None, ...]) -> np.ndarray:
        return super().forward_mixed(x, tuple(name or "default" for name in names))


@mutant("134", kills="MULTI-15")
class SortedAndNotPutBack(SeveralAdapters):
    """A mixed batch is sorted by adapter, and the results are not put back in order."""

    def forward_mixed(self, x: np.ndarray, names: tuple[str | None, ...]) -> np.ndarray:
        order = sorted(range(len(names)), key=lambda i: names[i] or "")
        return super().forward_mixed(x[order], tuple(names[i] for i in order))


@mutant(kills="MULTI-15")
class MixedBatchOfOne(SeveralAdapters):
    """All samples of a mixed batch get the adapter of the first sample."""

    def forward_mixed(self, x: np.ndarray, names: tuple[str | None, ...]) -> np.ndarray:
        return super().forward_mixed(x, (names[0],) * len(names))


@mutant(kills="MULTI-15")
class MixedBatchStaysActive(SeveralAdapters):
    """The adapter of the last sample stays active after a mixed batch."""

    def forward_mixed(self, x: np.ndarray, names: tuple[str | None, ...]) -> np.ndarray:
        y = super().forward_mixed(x, names)
        self.active = {names[-1]: 1.0} if names[-1] else {}
        return y


@mutant("46", kills="MULTI-16")
class UnknownIsBase(SeveralAdapters):
    """In a mixed batch a name that no adapter has gives the base layer, without an error."""

    def forward_mixed(self, x: np.ndarray, names: tuple[str | None, ...]) -> np.ndarray:
        return super().forward_mixed(x, tuple(name if name in ("default", *self.others) else None for name in names))


@mutant(kills="MULTI-13")
class RootsInFloat32(CombinesByRoots):
    """Combining keeps the roots of the weights in float32, so a float64 layer loses half of its digits."""

    def root(self, number: float) -> float:
        return float(np.float32(super().root(number)))
