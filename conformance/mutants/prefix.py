"""Faults of prefix tuning."""

import numpy as np

from conformance.model import ModelConfig
from conformance.mutants import mutant
from conformance.mutants.honest_model import HonestModel, Past
from conformance.mutants.tape import Node
from conformance.subject import Arrays


@mutant("145", kills="PREFIX-01 PREFIX-02")
class PositionsFromZero(HonestModel):
    """The tokens count their positions from 0, as if there were no prefix."""

    def numbered(self, count: int) -> np.ndarray:
        return np.arange(count)


@mutant("145", kills="PREFIX-03")
class MaskHidesThePrefix(HonestModel):
    """A mask of the tokens hides the prefix from all of them."""

    def visible(self, count: int, mask: np.ndarray | None) -> np.ndarray:
        seen = super().visible(count, mask)
        if mask is not None:
            seen[..., : self.length] = False
        return seen


@mutant("145", kills="PREFIX-03")
class MaskIsTooShort(HonestModel):
    """The mask lies over the first keys, which are those of the prefix. The last keys are never hidden."""

    def visible(self, count: int, mask: np.ndarray | None) -> np.ndarray:
        if mask is None or not self.length:
            return super().visible(count, mask)
        laid = np.concatenate([mask, np.ones((len(mask), self.length), bool)], axis=1)
        itself = np.eye(count, count + self.length, self.length, dtype=bool)  # so that there is something to see
        return super().visible(count, None) & laid[:, None] | itself


@mutant("145", kills="PREFIX-01 PREFIX-02")
class QueriesAreAsManyAsKeys(HonestModel):
    """The causal mask assumes as many queries as keys: query i sees the first i + 1 keys, which begin with the prefix."""

    def visible(self, count: int, mask: np.ndarray | None) -> np.ndarray:
        return np.tri(count, self.length + count, dtype=bool)[None] if self.length else super().visible(count, mask)


@mutant("146", kills="PREFIX-02")
class ScoresOfThePrefixOverWidth(HonestModel):
    """The scores of the prefix are divided by √width, and those of the tokens by √(head size)."""

    def past(self, i: int) -> Past:
        keys, values = super().past(i)
        return self.scaled(keys, self.config.heads**-0.5), values


@mutant(kills="PREFIX-01 PREFIX-02")
class KeysForValues(HonestModel):
    """The keys of the prefix are used as its values, and its values as its keys."""

    def past(self, i: int) -> Past:
        keys, values = super().past(i)
        return values, keys


@mutant(kills="PREFIX-01 PREFIX-02")
class ValuesOfTheLastLayerFirst(HonestModel):
    """The values are read from the last layer to the first, the keys from the first to the last."""

    def past(self, i: int) -> Past:
        return super().past(i)[0], super().past(self.config.layers - 1 - i)[1]


@mutant(kills="PREFIX-01 PREFIX-02")
class OneLayersPrefixForAll(HonestModel):
    """All layers use the prefix of the first layer."""

    def past(self, i: int) -> Past:
        return super().past(0)


@mutant(kills="PREFIX-02")
class AddedAfterTheSoftmax(HonestModel):
    """The prefix has a softmax of its own, and its result is added. So it takes no weight from the tokens."""

    def attend(self, q: Node, k: Node, v: Node, past: Past | None, seen: np.ndarray) -> Node:
        if past is None:
            return super().attend(q, k, v, None, seen)
        tokens = np.arange(seen.shape[-1]) >= self.length
        alone = super().attend(q, k, v, None, seen[..., tokens])
        return self.plus(alone, super().attend(q, k, v, past, ~tokens & np.ones_like(seen)))


@mutant(kills="PREFIX-04")
class MeanOverTheBatch(HonestModel):
    """The gradient of the prefix is the mean over the samples and not the sum."""

    def for_each_sample(self, a: Node, samples: int) -> Node:
        return super().for_each_sample(self.made(a.array, (a, lambda d: d / samples)), samples)


@mutant(kills="PREFIX-04 PREFIX-05")
class KeysAloneTrain(HonestModel):
    """Only the keys train: the values were registered as a buffer."""

    def trains(self) -> list[str]:
        return [name for name in super().trains() if name != "prefix.values"]


@mutant(kills="PREFIX-05")
class CountsActivations(HonestModel):
    """The number of trained parameters is given as layers · length · width: keys and values are counted once and not twice."""

    def trainable(self) -> dict[str, tuple[int, ...]]:
        return {name: shape for name, shape in super().trainable().items() if name != "prefix.keys"}


@mutant(kills="PREFIX-06")
class EmbeddingsMove(HonestModel):
    """A step of the prefix also moves the embeddings of the tokens."""

    def step(self, lr: float) -> None:
        super().step(lr)
        if self.config.method == "prefix":
            E = self.W["embed_tokens.weight"]
            self.W["embed_tokens.weight"] = E - lr / 10 * E


@mutant(kills="PREFIX-07")
class WithoutTanh(HonestModel):
    """The network of the prefix has no activation."""

    def prefix_bent(self, z: Node) -> Node:
        return z


@mutant(kills="PREFIX-07")
class KeysOfAllLayersFirst(HonestModel):
    """The columns that the network gives are read as the keys of all layers, and then the values of all layers."""

    def columns(self, i: int) -> tuple[slice, slice]:
        width, below = self.key_width, self.config.layers
        return slice(i * width, (i + 1) * width), slice((below + i) * width, (below + i + 1) * width)


@mutant(kills="PREFIX-08")
class SlopeOfTanhForgotten(HonestModel):
    """The gradient of the network leaves out the derivative of tanh."""

    def prefix_bent(self, z: Node) -> Node:
        return self.made(super().prefix_bent(z).array, (z, lambda d: d))


@mutant(kills="PREFIX-09")
class FoldsTheFresh(HonestModel):
    """Folding uses the network as it was at the start, before it was trained."""

    def __init__(self, config: ModelConfig, arrays: Arrays):
        super().__init__(config, arrays)
        self.first = dict(self.p)

    def fold(self) -> None:
        if self.config.method == "prefix":
            self.p = self.first
        super().fold()


@mutant(kills="PREFIX-09")
class FoldKeepsTheNetwork(HonestModel):
    """Folding leaves the network in place, and it is still counted."""

    def fold(self) -> None:
        if self.config.method != "prefix":
            super().fold()


@mutant(kills="PREFIX-06")
class PrefixStepsTwice(HonestModel):
    """The prefix is in two groups of the optimizer, so one step moves it twice."""

    def step(self, lr: float) -> None:
        super().step(2 * lr if self.config.method == "prefix" else lr)
