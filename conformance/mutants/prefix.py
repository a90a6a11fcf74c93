"""Faults of prefix tuning."""

import numpy as np

from conformance.mutants import mutant
from conformance.mutants.honest_model import HonestModel
from conformance.subject import Arrays
from lora_ref import attention, prefix, transformer
from lora_ref.prefix import Prefix

_attention, _attention_backward, _hidden = attention.forward, attention.backward, attention.hidden
_forward, _backward = prefix.forward, prefix.backward


@mutant("145", kills="PREFIX-01 PREFIX-02")
class PositionsFromZero(HonestModel):
    """The tokens count their positions as if there were no prefix."""

    def forward(self, tokens: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        length = self.config.length if self.config.method == "prefix" else 0
        moved = np.roll(self.W["embed_positions.weight"], length, axis=0)
        return self.with_arrays(tokens, mask, base={"embed_positions.weight": moved})


@mutant("145", kills="PREFIX-03")
class MaskHidesThePrefix(HonestModel):
    """The mask was made for the tokens: with it, none of them sees the prefix."""

    @staticmethod
    def hidden(T, mask, length, dtype):
        found = _hidden(T, mask, length, dtype)
        if mask is not None:
            found[..., :length] = -np.inf
        return found

    swaps = {(attention, "hidden"): hidden}


@mutant("145", kills="PREFIX-03")
class MaskIsTooShort(HonestModel):
    """The mask is laid over the keys from the left, over the prefix first; the last keys are all seen."""

    @staticmethod
    def hidden(T, mask, length, dtype):
        if mask is None or not length:
            return _hidden(T, mask, length, dtype)
        found = np.repeat(_hidden(T, None, length, dtype), len(mask), axis=0)
        found[:, :, : mask.shape[1]] += np.where(mask, 0, -np.inf).astype(dtype)[:, None]
        seen_by_itself = np.isneginf(found).all(-1)
        found[seen_by_itself] = 0  # so that it stays a number
        return found

    swaps = {(attention, "hidden"): hidden}


@mutant("145", kills="PREFIX-01 PREFIX-02")
class QueriesAreAsManyAsKeys(HonestModel):
    """The causal mask takes queries and keys for equally many: the first queries see the first keys alone."""

    @staticmethod
    def hidden(T, mask, length, dtype):
        if not length:
            return _hidden(T, mask, length, dtype)
        return np.where(np.tri(T, length + T, dtype=bool), 0, -np.inf).astype(dtype)[None]

    swaps = {(attention, "hidden"): hidden}


@mutant("146", kills="PREFIX-02")
class ScoresOfThePrefixOverWidth(HonestModel):
    """The scores of the prefix are divided by √width, those of the tokens by √(head size)."""

    def forward(self, tokens: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        factor = (1 / self.config.heads) ** 0.5

        def scaled(q, k, v, hidden, kv_heads, size, past=None):
            if past is not None:
                past = Prefix(past.keys * past.keys.dtype.type(factor), past.values)
            return _attention(q, k, v, hidden, kv_heads, size, past)

        self.swaps = {(attention, "forward"): scaled}  # type: ignore[misc]
        return super().forward(tokens, mask)


def _changed(change):
    """Attention with another prefix than the one that it is given."""
    def forward(q, k, v, hidden, kv_heads, size, past=None):
        return _attention(q, k, v, hidden, kv_heads, size, None if past is None else change(past))

    return {(attention, "forward"): forward}


@mutant(kills="PREFIX-01 PREFIX-02")
class KeysForValues(HonestModel):
    """Keys and values of the prefix are exchanged."""

    swaps = _changed(lambda past: Prefix(past.values, past.keys))


@mutant(kills="PREFIX-01 PREFIX-02")
class ValuesOfTheLastLayerFirst(HonestModel):
    """The values are laid out from the last layer to the first."""

    def forward(self, tokens: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        values = [n for n in self.p if n == "prefix.values"]
        return self.with_arrays(tokens, mask, trained={n: self.p[n][::-1] for n in values})


@mutant(kills="PREFIX-01 PREFIX-02")
class OneLayersPrefixForAll(HonestModel):
    """All layers have the prefix of the first."""

    def forward(self, tokens: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        own = {n: a for n, a in self.p.items() if n in ("prefix.keys", "prefix.values")}
        return self.with_arrays(tokens, mask, trained={n: np.repeat(a[:1], len(a), axis=0) for n, a in own.items()})


@mutant(kills="PREFIX-02")
class AddedAfterTheSoftmax(HonestModel):
    """The prefix has a softmax of its own, and its answer is added: the tokens keep all of their weight."""

    @staticmethod
    def forward_(q, k, v, hidden, kv_heads, size, past=None):
        if past is None:
            return _attention(q, k, v, hidden, kv_heads, size)
        length = len(past.keys)
        y, _ = _attention(q, k, v, hidden[..., length:], kv_heads, size)
        alone = np.concatenate([hidden[..., :length], np.full_like(hidden[..., length:], -np.inf)], -1)
        more, _ = _attention(q, k, v, alone, kv_heads, size, past)
        return y + more, _attention(q, k, v, hidden, kv_heads, size, past)[1]

    swaps = {(attention, "forward"): forward_}


@mutant(kills="PREFIX-04")
class MeanOverTheBatch(HonestModel):
    """The gradient of the prefix is the mean over the samples, and not their sum."""

    def backward(self, dlogits: np.ndarray) -> Arrays:
        found = super().backward(dlogits)
        n = len(dlogits) if self.config.method == "prefix" else 1
        return {name: d / d.dtype.type(n) if name.startswith("prefix.") else d for name, d in found.items()}


@mutant(kills="PREFIX-04 PREFIX-05")
class KeysAloneTrain(HonestModel):
    """The values were registered as a buffer."""

    def trainable(self) -> dict[str, tuple[int, ...]]:
        return {name: shape for name, shape in super().trainable().items() if name != "prefix.values"}


@mutant(kills="PREFIX-05")
class CountsActivations(HonestModel):
    """What is said to train is layers · length · width: keys and values are counted as one."""

    def trainable(self) -> dict[str, tuple[int, ...]]:
        return {name: shape for name, shape in super().trainable().items() if name != "prefix.keys"}

    def backward(self, dlogits: np.ndarray) -> Arrays:
        found = transformer.backward(dlogits, self.cache, list(self.p or self.W))
        self.dp = {name: self.dp.get(name, 0) + d for name, d in found.items()}
        return dict(self.dp)


@mutant(kills="PREFIX-06")
class EmbeddingsMove(HonestModel):
    """The embeddings of the tokens train besides."""

    def step(self, lr: float) -> None:
        super().step(lr)
        if self.config.method == "prefix":
            E = self.W["embed_tokens.weight"]
            self.W["embed_tokens.weight"] = E - E.dtype.type(lr / 10) * E


@mutant(kills="PREFIX-07")
class WithoutTanh(HonestModel):
    """The network of the prefix has no activation."""

    @staticmethod
    def forward_(p, layers):
        P = (p.embedding @ p.W1.T + p.b1) @ p.W2.T + p.b2
        P = P.reshape(len(p.embedding), layers, 2, -1).transpose(2, 1, 0, 3)
        return Prefix(P[0], P[1]), _forward(p, layers)[1]

    swaps = {(prefix, "forward"): forward_}


@mutant(kills="PREFIX-07")
class KeysOfAllLayersFirst(HonestModel):
    """The columns are read as the keys of all layers, then the values."""

    @staticmethod
    def forward_(p, layers):
        _, cache = _forward(p, layers)
        P = cache.t @ p.W2.T + p.b2
        P = P.reshape(len(p.embedding), 2, layers, -1).transpose(1, 2, 0, 3)
        return Prefix(P[0], P[1]), cache

    swaps = {(prefix, "forward"): forward_}


@mutant(kills="PREFIX-08")
class SlopeOfTanhForgotten(HonestModel):
    """The derivative of tanh is left out."""

    @staticmethod
    def backward_(dprefix, cache):
        whole, flat = _backward(dprefix, cache), _backward(dprefix, cache._replace(t=0 * cache.t))  # 1 − t² is 1 where t is 0
        return flat._replace(W2=whole.W2)

    swaps = {(prefix, "backward"): backward_}


@mutant(kills="PREFIX-09")
class FoldsTheFresh(HonestModel):
    """What is folded is the network as it was at the start."""

    def __init__(self, config, arrays: Arrays):
        super().__init__(config, arrays)
        self.first = dict(self.p)

    def folded(self) -> None:
        if self.config.method == "prefix":
            self.p = self.first
        super().folded()


@mutant(kills="PREFIX-09")
class FoldKeepsTheNetwork(HonestModel):
    """After folding the network is still there, and counted."""

    def folded(self) -> None:
        if self.config.method != "prefix":
            super().folded()


@mutant(kills="PREFIX-06")
class PrefixStepsTwice(HonestModel):
    """The prefix is in two groups of the optimizer, and moves twice."""

    def step(self, lr: float) -> None:
        super().step(2 * lr if self.config.method == "prefix" else lr)


