"""Faults of whole models, and of LoRA on several of their matrices."""

import numpy as np

from conformance.mutants import mutant
from conformance.mutants.honest_model import HonestModel
from conformance.mutants.tape import EPSILON, Node
from conformance.subject import Arrays


@mutant(kills="MODEL-01")
class ScoresOverWidth(HonestModel):
    """The scores are divided by √width and not by √(head size)."""

    def score_scale(self) -> float:
        return self.config.width**-0.5


@mutant(kills="MODEL-01")
class LooksAhead(HonestModel):
    """Every token sees all others, later ones too. Only padding is hidden."""

    def earlier(self, count: int) -> np.ndarray:
        return np.ones((count, count), bool)


@mutant(kills="MODEL-01")
class EpsilonOutside(HonestModel):
    """A norm divides by √variance + ε and not by √(variance + ε)."""

    def size_of(self, square: np.ndarray) -> np.ndarray:
        return np.sqrt(square) + EPSILON


@mutant(kills="MODEL-02")
class MaskIgnored(HonestModel):
    """The model ignores the mask: padding is seen as if it were text."""

    def forward(self, tokens: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        return super().forward(tokens)


@mutant(kills="MODEL-02")
class MaskOfTheFirst(HonestModel):
    """The mask of the first sample is used for all samples."""

    def forward(self, tokens: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        return super().forward(tokens, None if mask is None else np.repeat(mask[:1], len(mask), axis=0))


class KnowsItsLast(HonestModel):
    """An honest model that can say which target of LoRA is its last."""

    @property
    def last(self) -> str:
        return self.places()[-1] if self.config.method == "lora" else ""


@mutant(kills="MODEL-03")
class StartsAwayFromZero(KnowsItsLast):
    """B of the last target starts at a constant and not at zero."""

    def start_lora(self, place: str) -> Arrays:
        found = super().start_lora(place)
        return found | {"B": found["B"] + 0.01} if place == self.last else found


@mutant(kills="MODEL-04")
class FirstLayerOnly(HonestModel):
    """LoRA is applied to the targets of the first layer alone."""

    def has(self, name: str) -> bool:
        return super().has(name) and (self.config.method != "lora" or name.startswith("layers.0."))


@mutant(kills="MODEL-04 MODEL-05")
class OneAdapterForAllLayers(HonestModel):
    """All layers use the A and B of the first layer."""

    def leaf(self, name: str) -> Node:
        lora = self.config.method == "lora" and name in self.p
        return super().leaf(f"layers.0.{name.split('.', 2)[2]}" if lora else name)


@mutant(kills="MODEL-05")
class GradientOfTheLastLayerOnly(HonestModel):
    """The graph is cut below the last layer: the lower layers get no gradient, and their adapters never change."""

    def layer(self, h: Node, i: int) -> Node:
        return super().layer(self.detached(h) if i == self.config.layers - 1 else h, i)


@mutant(kills="MODEL-06")
class MergesAllButOne(KnowsItsLast):
    """The merge leaves out the last target, whose LoRA is lost."""

    def merged_weight(self, place: str) -> np.ndarray:
        return self.array(f"{place}.weight") if place == self.last else super().merged_weight(place)


@mutant(kills="MODEL-06")
class MergesAndKeeps(HonestModel):
    """A merged model still adds LoRA, which is then there twice."""

    def merge(self) -> None:
        kept = self.p
        super().merge()
        self.p = kept


@mutant(kills="MODEL-06")
class MergesWithoutTheScale(HonestModel):
    """The merge adds (A B)ᵀ without the scale."""

    def delta(self, place: str) -> np.ndarray:
        return super().delta(place) / self.scale


@mutant(kills="MODEL-06")
class MergedButNotGone(HonestModel):
    """A merged model subtracts LoRA from W and adds it again in every pass. The result is right, but it takes longer, and its
    last bits differ."""

    merged = False

    def merge(self) -> None:
        kept = self.p
        super().merge()
        self.p, self.merged = kept, True

    def array(self, name: str) -> np.ndarray:
        place = name.removesuffix(".weight")
        return super().array(name) - self.delta(place) if self.merged and f"{place}.A" in self.p else super().array(name)


@mutant(kills="MODEL-05 MODEL-07 MODEL-08")
class NormsTrainToo(HonestModel):
    """The norms train, too, whatever the method."""

    def trains(self) -> list[str]:
        return list(dict.fromkeys([*super().trains(), *self.norms()]))

    def norms(self) -> list[str]:
        return [] if self.config.method == "none" else [name for name in self.W if "norm." in name]


@mutant(kills="MODEL-07")
class LastBNotSaid(KnowsItsLast):
    """The list of what trains leaves out the B of the last target."""

    def trainable(self) -> dict[str, tuple[int, ...]]:
        return {name: shape for name, shape in super().trainable().items() if name != f"{self.last}.B"}


@mutant(kills="MODEL-08")
class ModelStepsUphill(HonestModel):
    """The step adds the gradient and does not subtract it."""

    def step(self, lr: float) -> None:
        super().step(-lr)


@mutant(kills="MODEL-08")
class DecaysTheBase(HonestModel):
    """The optimizer has weight decay, and it was given the frozen arrays, too."""

    def step(self, lr: float) -> None:
        super().step(lr)
        self.W = {name: array - lr * 0.01 * array for name, array in self.W.items()}


@mutant(kills="MODEL-09")
class TiedHeadOnce(HonestModel):
    """The table that is embedding and head in one gets the gradient of the head alone."""

    def words(self, tokens: np.ndarray) -> Node:
        h = super().words(tokens)
        return self.detached(h) if self.config.tied else h


@mutant(kills="MODEL-09")
class PositionsDoNotTrain(HonestModel):
    """Full fine-tuning leaves out the embedding of positions."""

    def trains(self) -> list[str]:
        return [name for name in super().trains() if name != "embed_positions.weight"]


@mutant(kills="MODEL-10")
class SwitchLeavesOneOn(KnowsItsLast):
    """Switching LoRA off leaves it on at the last target."""

    def has(self, name: str) -> bool:
        return super().has(name) or bool(self.last) and name.startswith(f"{self.last}.") and name in self.p


@mutant(kills="MODEL-10")
class SwitchForgets(HonestModel):
    """Switching LoRA off deletes what it has learned."""

    def switch(self, on: bool) -> None:
        super().switch(on)
        self.p = {name: 0 * array for name, array in self.p.items()}


@mutant(kills="MODEL-04 MODEL-11")
class FusedInAnotherOrder(HonestModel):
    """The LoRA of a fused matrix has the order k, q, v and not q, k, v."""

    def array(self, name: str) -> np.ndarray:
        d = self.config.width
        order = np.r_[d : 2 * d, 0:d, 2 * d : 3 * d]
        return super().array(name)[:, order] if name.endswith("qkv_proj.B") else super().array(name)
