"""Honest variations of the honest model: each does something that implementations are free to do, and must pass every MUST."""

import numpy as np

from conformance.model import ModelConfig
from conformance.mutants.honest_model import HonestModel, Past
from conformance.mutants.tape import Node, rows
from conformance.subject import Arrays


class SampleBySample(HonestModel):
    """Sends every sample through the model alone."""

    def logits(self, tokens: np.ndarray, mask: np.ndarray | None) -> Node:
        samples = [slice(i, i + 1) for i in range(len(tokens))]
        alone = [super(SampleBySample, self).logits(tokens[i], None if mask is None else mask[i]) for i in samples]
        ways = [(node, lambda d, at=at: d[at]) for node, at in zip(alone, samples, strict=True)]
        return self.made(np.concatenate([node.array for node in alone]), *ways)


class AddsIntoTheWeights(HonestModel):
    """Adds LoRA into W in every forward pass, which at the start is W + 0. The gradients come through that sum."""

    def linear(self, x: Node, place: str) -> Node:
        W = self.leaf(f"{place}.weight")
        if self.has(f"{place}.A"):
            delta = self.product(self.transposed(self.leaf(f"{place}.B")), self.leaf(f"{place}.A"))
            W = self.plus(W, self.scaled(delta, self.scale))
        y = self.product(x, W)
        return self.plus(y, self.leaf(f"{place}.bias")) if f"{place}.bias" in self.W else y


class RoundsAtTheEnd(HonestModel):
    """Computes everything in a wider format, and rounds once."""

    def __init__(self, config: ModelConfig, arrays: Arrays):
        super().__init__(config, arrays)
        self.wide = np.longdouble


class ScalesTheInput(HonestModel):
    """Scales x, and not the product with A and B."""

    def lora(self, x: Node, place: str) -> Node:
        h = self.product(self.scaled(x, self.scale), self.transposed(self.leaf(f"{place}.A")))
        return self.product(h, self.transposed(self.leaf(f"{place}.B")))


class SumsFromTheEnd(HonestModel):
    """Sums the terms of a product with a matrix one by one, from the last to the first."""

    def product(self, x: Node, W: Node) -> Node:
        def summed(left: np.ndarray, right: np.ndarray) -> np.ndarray:
            total = np.zeros((len(left), right.shape[1]), left.dtype)
            for k in reversed(range(len(right))):
                total += left[:, k : k + 1] * right[k]
            return total

        y = summed(rows(x.array), W.array.T).reshape(*x.array.shape[:-1], -1)
        return self.made(y, (x, lambda d: summed(rows(d), W.array).reshape(x.array.shape)),
                         (W, lambda d: summed(rows(d).T, rows(x.array))))


class SquaresFirst(HonestModel):
    """Computes the variance of a norm as E[x²] − E[x]², in a wider format."""

    def moments(self, x: np.ndarray, centred: bool) -> tuple[np.ndarray | float, np.ndarray]:
        long = x.astype(np.longdouble)
        mean = long.mean(-1, keepdims=True) if centred else np.zeros(1, np.longdouble)
        square = (long * long).mean(-1, keepdims=True) - mean * mean
        return mean.astype(x.dtype), square.astype(x.dtype)


class HeadByHead(HonestModel):
    """Computes attention in a loop over the heads."""

    def all_heads(self, q: Node, k: Node, v: Node, seen: np.ndarray) -> Node:
        def of(head: int) -> Node:
            one_q, one_k, one_v = (self.part(a, (slice(None), head)) for a in (q, k, v))
            return self.one_attention(one_q, one_k, one_v, seen)

        return self.joined([of(head) for head in range(q.array.shape[1])], -1)


class PrefixIsAGate(HonestModel):
    """Attends to the prefix and to the tokens apart, and mixes the two: (1 − λ) · alone + λ · past, where λ is the share of the
    prefix in the common softmax."""

    def attend(self, q: Node, k: Node, v: Node, past: Past | None, seen: np.ndarray) -> Node:
        if past is None:
            return super().attend(q, k, v, None, seen)
        samples, each, groups = len(q.array), self.config.heads // self.config.kv_heads, self.config.kv_heads
        q = self.split_into_heads(q, self.config.heads, 1)
        keys, values = (self.split_into_heads(self.for_each_sample(p, samples), groups, each) for p in past)
        k, v = self.split_into_heads(k, groups, each), self.split_into_heads(v, groups, each)
        seen = seen[:, None, :, self.length :]
        s, r = self.scores(q, k), self.scores(q, keys)
        alone, ahead = self.matmul(self.softmax(s, seen), v), self.matmul(self.softmax(r, np.ones(1, bool)), values)
        gate = self.bent(self.plus(self.log_sum(r, np.ones(1, bool)), self.scaled(self.log_sum(s, seen), -1)), "sigmoid")
        gate = self.matmul(gate, Node(np.ones((1, v.array.shape[-1]), v.array.dtype)))         # (n, heads, T, size)
        return self.heads_together(self.plus(alone, self.times(gate, self.plus(ahead, self.scaled(alone, -1)))))

    def log_sum(self, s: Node, seen: np.ndarray) -> Node:
        """log Σ exp(s) over what is seen, (…, 1)."""
        shares = self.softmax(s, seen).array
        top = np.where(seen, s.array, -np.inf).max(-1, keepdims=True)
        total = np.where(seen, np.exp(np.minimum(s.array - top, 0)), 0).sum(-1, keepdims=True)
        return self.made(top + np.log(total), (s, lambda d: d * shares))


class PromptsAreWords(HonestModel):
    """Appends the prompts to the table of words for each pass, and looks them up there with the tokens."""

    def words(self, tokens: np.ndarray) -> Node:
        if not self.has("prompt.embedding"):
            return super().words(tokens)
        table = self.joined([self.leaf("embed_tokens.weight"), self.prompts()], -2)
        count = len(self.positions)
        ids = np.empty((len(tokens), tokens.shape[1] + count), int)
        ids[:, self.rows_of_tokens(ids.shape[1])] = tokens
        ids[:, list(self.positions)] = np.arange(self.config.vocabulary, self.config.vocabulary + count)
        return self.looked_up(table, ids)

    def with_prompts(self, h: Node, prompts: Node) -> Node:
        return h
