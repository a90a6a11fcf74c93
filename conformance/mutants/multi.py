"""Faults of several adapters on one layer."""

import numpy as np

from conformance.mutants import mutant
from conformance.mutants.honest import Honest
from conformance.mutants.several import CombinesByRoots, SeveralAdapters
from conformance.subject import Arrays


@mutant("50", kills="MULTI-02 MULTI-04")
class WrapsTheFirst(SeveralAdapters):
    """A further adapter is wrapped around the first one, which goes on being applied below it."""

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
    """An adapter that is added takes the place of what was active."""

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
    """All adapters are scaled by the first one's alpha / rank."""

    def add_adapter(self, name: str, arrays: Arrays, alpha: float) -> None:
        super().add_adapter(name, arrays, alpha)
        self.others[name].scale = self.scale


@mutant("17", kills="MULTI-02")
class RankOfTheFirst(SeveralAdapters):
    """The alpha of a further adapter is divided by the first one's rank."""

    def add_adapter(self, name: str, arrays: Arrays, alpha: float) -> None:
        super().add_adapter(name, arrays, alpha)
        self.others[name].scale = alpha / self.config.rank


@mutant("09", kills="MULTI-02")
class AlphaOfTheFirst(SeveralAdapters):
    """The first one's alpha is that of all adapters, each divided by its own rank."""

    def add_adapter(self, name: str, arrays: Arrays, alpha: float) -> None:
        super().add_adapter(name, arrays, self.config.alpha)


@mutant("130", kills="MULTI-03 MULTI-06 MULTI-08")
class SumsOfFactors(SeveralAdapters):
    """What is active and of one rank is added factor by factor: (Σ A) (Σ B) has cross terms."""

    def output(self, x: np.ndarray) -> np.ndarray:
        parts = self.parts()
        if self.merged or len({part.A.shape for _, _, part in parts}) != 1 or len(parts) < 2:
            return super().output(x)
        A = np.sum([self.up(part.A) for _, _, part in parts], axis=0)
        B = np.sum([weight * part.scaled(part.B) for _, weight, part in parts], axis=0)
        return self.plus(self.base(x), self.product(self.product(x, A), B))


@mutant(kills="MULTI-03")
class OnlyTheLast(SeveralAdapters):
    """Of several active adapters the last one alone is applied."""

    def parts(self) -> list[tuple[str, float, Honest]]:
        return super().parts()[-1:]


@mutant(kills="MULTI-03")
class OneWeightForAll(SeveralAdapters):
    """The weight that is named first is that of all adapters."""

    def activate(self, weights: dict[str, float]) -> None:
        super().activate(dict.fromkeys(weights, next(iter(weights.values()), 1.0)))


@mutant(kills="MULTI-03")
class WeightsIgnored(SeveralAdapters):
    """Every active adapter has the weight 1."""

    def activate(self, weights: dict[str, float]) -> None:
        super().activate(dict.fromkeys(weights, 1.0))


@mutant("131", kills="MULTI-03")
class SignOfWeightLost(SeveralAdapters):
    """A negative weight counts as a positive one."""

    def activate(self, weights: dict[str, float]) -> None:
        super().activate({name: abs(weight) for name, weight in weights.items()})


@mutant(kills="MULTI-03")
class WeightsAreShares(SeveralAdapters):
    """The weights of several adapters are divided by their number."""

    def activate(self, weights: dict[str, float]) -> None:
        super().activate({name: weight / len(weights) for name, weight in weights.items()})


@mutant(kills="MULTI-04")
class NoneMeansAsBefore(SeveralAdapters):
    """Activating none is taken for nothing to do."""

    def activate(self, weights: dict[str, float]) -> None:
        super().activate(weights or self.active)


@mutant("16", kills="MULTI-04")
class SwitchingOffForgets(SeveralAdapters):
    """What is switched off is multiplied by zero, for ever."""

    def activate(self, weights: dict[str, float]) -> None:
        super().activate(weights)
        if not weights:
            self.A = 0 * self.A


@mutant("15", kills="MULTI-05")
class WeightsMultiply(SeveralAdapters):
    """A weight is multiplied into the scale that is there, and nobody divides by it afterwards."""

    def activate(self, weights: dict[str, float]) -> None:
        super().activate(weights)
        for _, weight, part in self.parts():
            part.scale *= weight
        self.active = dict.fromkeys(weights, 1.0)


@mutant(kills="MULTI-05")
class ActivatingAdds(SeveralAdapters):
    """What was active stays active."""

    def activate(self, weights: dict[str, float]) -> None:
        super().activate((self.active | weights) if weights else {})


@mutant(kills="MULTI-06")
class WeightForwardOnly(SeveralAdapters):
    """The backward pass knows no weights."""

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
            found.pop(f"{name}.A", None), found.pop(f"{name}.B", None)
            self.part(name).zero_grad()
        return found


@mutant(kills="MULTI-06")
class InputGradientOfOne(SeveralAdapters):
    """dx has the LoRA part of the first active adapter, and not those of the others."""

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
    """The adapter that is merged is the first of all, whichever is active."""

    def delta_weight(self) -> np.ndarray:
        return Honest.delta_weight(self)


@mutant("106", kills="MULTI-08")
class MergesOneOfThem(SeveralAdapters):
    """One of the active adapters is merged, and the others are not applied while it is."""

    def delta_weight(self) -> np.ndarray:
        kept, self.active = self.active, dict(list(self.active.items())[:1])
        delta = super().delta_weight()
        self.active = kept
        return delta


@mutant(kills="MULTI-08")
class MergesWithoutWeights(SeveralAdapters):
    """What is merged has the weight 1."""

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
    """Unmerge subtracts what is active by then, and not what was merged."""

    def activate(self, weights: dict[str, float]) -> None:
        for name in weights:
            self.part(name)
        self.active = dict(weights)

    def restored_weight(self) -> np.ndarray:
        return self.rounded(self.up(self.W) - self.delta_weight())


@mutant(kills="MULTI-09")
class ActivatingForgetsTheMerge(SeveralAdapters):
    """Activating while merged clears the flag, and the delta stays in W."""

    def activate(self, weights: dict[str, float]) -> None:
        self.kept = None
        super().activate(weights)


@mutant(kills="MULTI-10")
class UnknownIsSkipped(SeveralAdapters):
    """A name that no adapter has is skipped without a word."""

    def activate(self, weights: dict[str, float]) -> None:
        super().activate({name: weight for name, weight in weights.items() if name in ("default", *self.others)})


@mutant(kills="MULTI-10")
class RefusedTooLate(SeveralAdapters):
    """An unknown name is refused after what stands before it was activated."""

    def activate(self, weights: dict[str, float]) -> None:
        self.active = {}
        for name, weight in weights.items():
            self.part(name)
            self.active[name] = weight


@mutant("125", kills="MULTI-11")
class RemovedGoesOn(SeveralAdapters):
    """What was removed while it was active goes on being applied."""

    def remove_adapter(self, name: str) -> None:
        part = self.part(name)
        if name in self.active:
            self.W = self.rounded(self.plus(self.W, self.active[name] * Honest.delta_weight(part)))
        super().remove_adapter(name)


@mutant(kills="MULTI-11")
class RemovedStaysKnown(SeveralAdapters):
    """What was removed can still be activated."""

    def remove_adapter(self, name: str) -> None:
        self.part(name)
        self.active.pop(name, None)


@mutant(kills="MULTI-11")
class RemovesTheLast(SeveralAdapters):
    """Whichever name is given, the adapter that was added last goes."""

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
    """The sign of a weight goes into A as into B, and −1 gives what 1 gives."""

    def combine(self, name: str, weights: dict[str, float]) -> None:
        super().combine(name, {n: abs(weight) for n, weight in weights.items()})


@mutant("132", kills="MULTI-13")
class CombinedIsScaledTwice(SeveralAdapters):
    """The scale goes into the factors of the combined adapter, and into its weight once more."""

    def combine(self, name: str, weights: dict[str, float]) -> None:
        super().combine(name, {n: weight * self.part(n).scale for n, weight in weights.items()})


@mutant(kills="MULTI-13")
class CombinedIsNotScaled(SeveralAdapters):
    """The factors are put together without their scales."""

    def combine(self, name: str, weights: dict[str, float]) -> None:
        super().combine(name, {n: weight / self.part(n).scale for n, weight in weights.items()})


@mutant(kills="MULTI-13")
class CombiningChangesTheParts(SeveralAdapters):
    """The weights are multiplied into the factors that are combined, in place."""

    def combine(self, name: str, weights: dict[str, float]) -> None:
        super().combine(name, weights)
        for n, weight in weights.items():
            self.part(n).B = self.rounded(weight * self.up(self.part(n).B))


@mutant("08", kills="MULTI-17")
class CombinedIsRslora(SeveralAdapters):
    """The combined adapter has alpha = rank, for a scale of 1, and inherits the option of rank-stabilised scaling."""

    def alpha_of_one(self, rank: int) -> float:
        return rank


@mutant(kills="MULTI-14")
class FurtherOnesAreStandard(SeveralAdapters):
    """Rank-stabilised scaling is for the first adapter; further ones have alpha / rank."""

    def add_adapter(self, name: str, arrays: Arrays, alpha: float) -> None:
        super().add_adapter(name, arrays, alpha)
        self.others[name].scale = alpha / arrays["A"].shape[1]

    def alpha_of_one(self, rank: int) -> float:
        return rank


@mutant("45", kills="MULTI-15")
class NoneIsTheFirst(SeveralAdapters):
    """In a mixed batch, samples without an adapter get the first one."""

    def forward_mixed(self, x: np.ndarray, names: tuple[str | None, ...]) -> np.ndarray:
        return super().forward_mixed(x, tuple(name or "default" for name in names))


@mutant("134", kills="MULTI-15")
class SortedAndNotPutBack(SeveralAdapters):
    """A mixed batch is sorted by adapter, and its samples are not put back."""

    def forward_mixed(self, x: np.ndarray, names: tuple[str | None, ...]) -> np.ndarray:
        order = sorted(range(len(names)), key=lambda i: names[i] or "")
        return super().forward_mixed(x[order], tuple(names[i] for i in order))


@mutant(kills="MULTI-15")
class MixedBatchOfOne(SeveralAdapters):
    """The adapter of the first sample is that of the whole batch."""

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
    """In a mixed batch, a name that no adapter has gives the base layer."""

    def forward_mixed(self, x: np.ndarray, names: tuple[str | None, ...]) -> np.ndarray:
        return super().forward_mixed(x, tuple(name if name in ("default", *self.others) else None for name in names))


@mutant(kills="MULTI-13")
class RootsInFloat32(CombinesByRoots):
    """The roots of a combination's weights are kept in float32, and a float64 layer loses half of its digits."""

    def root(self, number: float) -> float:
        return float(np.float32(super().root(number)))
