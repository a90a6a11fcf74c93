"""Faults of whole models, and of LoRA on several of their matrices."""

import numpy as np

from conformance.mutants import mutant
from conformance.mutants.honest_model import HonestModel
from conformance.subject import Arrays
from lora_ref import attention, lora, ops, transformer

_attention, _norm, _merge = attention.forward, ops.norm, lora.merge


@mutant(kills="MODEL-01")
class ScoresOverWidth(HonestModel):
    """The scores are divided by √width in the place of √(head size)."""

    def forward(self, tokens: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        factor = (1 / self.config.heads) ** 0.5
        self.swaps = {(attention, "forward"): lambda q, *rest: _attention(q * q.dtype.type(factor), *rest)}  # type: ignore[misc]
        return super().forward(tokens, mask)


@mutant(kills="MODEL-01")
class LooksAhead(HonestModel):
    """Every token sees all others: nothing is hidden but padding."""

    swaps = {(attention, "hidden"): lambda T, mask, length, dtype: np.zeros((1, T, length + T), dtype)}


@mutant(kills="MODEL-01")
class EpsilonOutside(HonestModel):
    """A norm divides by √variance + ε in the place of √(variance + ε)."""

    @staticmethod
    def norm(x: np.ndarray, w: np.ndarray, b: np.ndarray | None):
        y, cache = _norm(x, w, b)
        factor = 1 / (np.sqrt(cache.inverse**-2 - ops.EPSILON) + ops.EPSILON) / cache.inverse
        return (y if b is None else y - b) * factor + (0 if b is None else b), cache

    swaps = {(ops, "norm"): norm}


@mutant(kills="MODEL-02")
class MaskIgnored(HonestModel):
    """Padding is seen as if it were text."""

    def forward(self, tokens: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        return super().forward(tokens)


@mutant(kills="MODEL-02")
class MaskOfTheFirst(HonestModel):
    """The mask of the first sample is that of all."""

    def forward(self, tokens: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        return super().forward(tokens, None if mask is None else np.repeat(mask[:1], len(mask), axis=0))


@mutant(kills="MODEL-03")
class StartsAwayFromZero(HonestModel):
    """B of the last target starts at random."""

    def __init__(self, config, arrays: Arrays):
        super().__init__(config, arrays)
        for name in [f"{place}.B" for place in self.adapted[-1:] if config.method == "lora"]:
            self.p[name] = self.p[name] + self.p[name].dtype.type(0.01)


@mutant(kills="MODEL-04")
class FirstLayerOnly(HonestModel):
    """The targets are wrapped in the first layer alone."""

    def forward(self, tokens: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        above = [n for n in self.p if self.config.method == "lora" and not n.startswith("layers.0.")]
        return self.with_arrays(tokens, mask, trained={n: 0 * self.p[n] for n in above})


@mutant(kills="MODEL-04 MODEL-05")
class OneAdapterForAllLayers(HonestModel):
    """The layers share the A and B of the first one."""

    def forward(self, tokens: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        names = self.p if self.config.method == "lora" else ()
        return self.with_arrays(tokens, mask, trained={n: self.p[f"layers.0.{n.split('.', 2)[2]}"] for n in names})


@mutant(kills="MODEL-05")
class GradientOfTheLastLayerOnly(HonestModel):
    """The graph is cut below the last layer: the adapters further down get no gradient, and stay as they are."""

    def backward(self, dlogits: np.ndarray) -> Arrays:
        last = f"layers.{self.config.layers - 1}."
        return {n: d for n, d in super().backward(dlogits).items() if not n.startswith("layers.") or n.startswith(last)}


@mutant(kills="MODEL-06")
class MergesAllButOne(HonestModel):
    """The merge passes over the last target, whose LoRA is dropped."""

    def folded(self) -> None:
        for name in [f"{place}.B" for place in self.adapted[-1:] if self.config.method == "lora"]:
            self.p[name] = 0 * self.p[name]
        super().folded()


@mutant(kills="MODEL-06")
class MergesAndKeeps(HonestModel):
    """A merged model goes on adding LoRA."""

    def folded(self) -> None:
        kept = self.methods, self.p
        super().folded()
        if self.config.method == "lora":
            self.methods, self.p = kept


@mutant(kills="MODEL-06")
class MergesWithoutTheScale(HonestModel):
    """The merge adds (A B)ᵀ without the scale."""

    swaps = {(lora, "merge"): lambda W, b, p, scale: _merge(W, b, p, 1.0)}


@mutant(kills="MODEL-06")
class MergedButNotGone(HonestModel):
    """A merged model subtracts LoRA from W and adds it again in every pass: right, and slower, and not the same bits."""

    def folded(self) -> None:
        kept, W = (self.methods, self.p), self.W
        super().folded()
        if self.config.method == "lora":
            self.merged, self.W, (self.methods, self.p) = self.W, W, kept

    def base(self) -> Arrays:
        return dict(getattr(self, "merged", self.W))


@mutant(kills="MODEL-05 MODEL-07 MODEL-08")
class NormsTrainToo(HonestModel):
    """The norms are left trainable beside the method."""

    def norms(self) -> list[str]:
        return [] if self.config.method in ("none", "full") else [name for name in self.W if "norm." in name]

    def trainable(self) -> dict[str, tuple[int, ...]]:
        return super().trainable() | {name: self.W[name].shape for name in self.norms()}

    def step(self, lr: float) -> None:
        norms = self.norms()
        for name in norms:
            self.W[name] = self.W[name] - self.W[name].dtype.type(lr) * self.dp.pop(name)
        super().step(lr)


@mutant(kills="MODEL-07")
class LastBNotSaid(HonestModel):
    """What is said to train leaves out the B of the last target."""

    def trainable(self) -> dict[str, tuple[int, ...]]:
        found = super().trainable()
        if self.config.method == "lora":
            found.pop(f"{self.adapted[-1]}.B")
        return found

    def backward(self, dlogits: np.ndarray) -> Arrays:
        found = transformer.backward(dlogits, self.cache, list(self.p or self.W))
        self.dp = {name: self.dp.get(name, 0) + d for name, d in found.items()}
        return dict(self.dp)


@mutant(kills="MODEL-08")
class ModelStepsUphill(HonestModel):
    """The step adds the gradient."""

    def step(self, lr: float) -> None:
        super().step(-lr)


@mutant(kills="MODEL-08")
class DecaysTheBase(HonestModel):
    """The optimizer has weight decay, and was given the frozen arrays, too."""

    def step(self, lr: float) -> None:
        super().step(lr)
        self.W = {name: array - array.dtype.type(lr * 0.01) * array for name, array in self.W.items()}


@mutant(kills="MODEL-09")
class TiedHeadOnce(HonestModel):
    """The embedding that is the head, too, gets the gradient of its last use alone."""

    def backward(self, dlogits: np.ndarray) -> Arrays:
        found = super().backward(dlogits)
        if self.config.method == "full" and self.config.tied:
            dh = self.cache.kept["embed_tokens"][0]
            found["embed_tokens.weight"] = dlogits.reshape(-1, dlogits.shape[-1]).T @ dh.reshape(-1, dh.shape[-1])
        return found


@mutant(kills="MODEL-09")
class PositionsDoNotTrain(HonestModel):
    """Full fine-tuning leaves out the embedding of positions."""

    def backward(self, dlogits: np.ndarray) -> Arrays:
        return {name: d for name, d in super().backward(dlogits).items() if name != "embed_positions.weight"}


@mutant(kills="MODEL-10")
class SwitchLeavesOneOn(HonestModel):
    """Switching LoRA off passes over the last target."""

    def forward(self, tokens: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        if self.on or self.config.method != "lora":
            return super().forward(tokens, mask)
        last = self.adapted[-1]
        left = {n: a for n, a in self.p.items() if n.startswith(f"{last}.")}
        return transformer.forward(tokens, self.W | left, self.reference, {last: self.methods[last]}, mask)[0]


@mutant(kills="MODEL-10")
class SwitchForgets(HonestModel):
    """Switching LoRA off drops what it has learned."""

    def switch(self, on: bool) -> None:
        super().switch(on)
        self.p = {name: 0 * array for name, array in self.p.items()}


@mutant(kills="MODEL-04 MODEL-11")
class FusedInAnotherOrder(HonestModel):
    """LoRA's part for a fused matrix is laid out as k, q, v."""

    def forward(self, tokens: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        d = self.config.width
        order = np.r_[d : 2 * d, 0:d, 2 * d : 3 * d]
        return self.with_arrays(tokens, mask, trained={n: a[:, order] for n, a in self.p.items() if n.endswith("qkv_proj.B")})
