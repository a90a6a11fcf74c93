"""What an implementation of a whole model provides, where a single layer cannot show it: LoRA on several matrices, adapters,
prefixes, prompts. NumPy arrays go in, NumPy arrays come out, by the names of `lora_ref.transformer`.

    base      embed_tokens.weight   embed_positions.weight   layers.0.attention_norm.weight   layers.0.qkv_proj.weight (out,
              in)   layers.0.o_proj.bias   layers.0.mlp_norm.weight   layers.0.up_proj.weight   norm.weight   and so on
    lora      layers.0.qkv_proj.A (in, rank), .B (rank, out)                        at each of `targets` in each layer
    adapter   layers.0.mlp.output.down (width, bottleneck), .down_bias, .up (bottleneck, width), .up_bias       "houlsby",
              also layers.0.attention.output;   layers.0.output "pfeiffer";   layers.0.mlp "parallel"
    prefix    prefix.keys, prefix.values (layers, length, kv_heads · head size);   with hidden_size: .embedding, W1, b1, W2, b2
    ptuning   prompt.embedding (n, width);   encoder "mlp" or "lstm": what `lora_ref.ptuning` has besides
    none      nothing;   full: nothing besides, and the base trains
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from conformance.subject import Arrays, Unsupported


@dataclass(frozen=True)
class ModelConfig:
    """A small causal transformer with learned positions and norms first, as GPT-2 unless it says otherwise, and one method."""

    vocabulary: int
    width: int
    layers: int
    heads: int
    mlp_width: int
    context: int
    kv_heads: int
    activation: str = "gelu"  # in the tanh form; "silu": gated
    norm: str = "layer"  # or "rms"; ε is 1e-5
    bias: bool = True  # of every linear layer but the head
    fused: bool = True  # q, k, v in one matrix, qkv_proj, in this order of rows
    tied: bool = True  # the head is embed_tokens
    method: str = "none"  # or "full", "lora", "adapter", "prefix", "ptuning"
    targets: tuple[str, ...] = ()  # of "lora": "qkv_proj", "o_proj", …
    rank: int = 1
    alpha: float = 1.0  # scale = alpha / rank
    form: str = "houlsby"  # of "adapter": or "pfeiffer", "parallel"
    bottleneck: int = 1
    nonlinearity: str = "gelu"  # in the tanh form; or "relu"
    adapter_scale: float = 1.0
    start: str = "near"  # or "zero": the up projection is zero
    length: int = 1  # of "prefix"
    positions: tuple[int, ...] = ()  # of "ptuning": where the prompts stand in the sequence that results
    encoder: str = "embedding"  # of "ptuning": or "mlp", "lstm"
    hidden_size: int | None = None  # of the prefix's or the prompts' network; None: no network
    dtype: str = "float64"
    device: str = "cpu"
    seed: int = 0


class Model:
    """A model with a method on it. Every method raises Unsupported unless it is overridden."""

    def arrays(self) -> Arrays:
        """What the method trains, now, by name."""
        raise Unsupported("arrays()")

    def set_arrays(self, arrays: Arrays) -> None:
        """Overwrite some of it, shaped as `arrays` gives it."""
        raise Unsupported("set_arrays()")

    def base(self) -> Arrays:
        """The arrays of the base, as the model uses them now: the merged ones while merged."""
        raise Unsupported("base()")

    def forward(self, tokens: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        """Logits (batch, T, vocabulary) of the tokens (batch, T): row t is of the t-th token, whatever virtual tokens there
        are. `mask` (batch, T) is False for padding; it says nothing of virtual tokens, which are always seen. Positions count
        from 0, or from behind the prefix, padding included."""
        raise Unsupported("forward()")

    def backward(self, dlogits: np.ndarray) -> Arrays:
        """The gradients after the last forward, by name, of everything that got one; they add up until `zero_grad`."""
        raise Unsupported("backward()")

    def zero_grad(self) -> None:
        """Clear all gradients."""
        raise Unsupported("zero_grad()")

    def trainable(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of every parameter that would train."""
        raise Unsupported("trainable()")

    def step(self, lr: float) -> None:
        """One plain SGD step on everything that is trainable."""
        raise Unsupported("step()")

    def merge(self) -> None:
        """Fold LoRA into the matrices."""
        raise Unsupported("merge()")

    def fold(self) -> None:
        """Put what the prefix's or the prompts' network gives in its place; `arrays` is then keys and values, or prompts."""
        raise Unsupported("fold()")

    def switch(self, on: bool) -> None:
        """Leave the method out of what follows, or take it in again."""
        raise Unsupported("switch()")


def places(config: ModelConfig) -> tuple[str, ...]:
    """Where the method is: the places of its arrays."""
    if config.method in ("none", "full"):
        return ()
    if config.method in ("prefix", "ptuning"):
        return ("prefix" if config.method == "prefix" else "prompt",)
    forms = {"houlsby": ("attention.output", "mlp.output"), "pfeiffer": ("output",), "parallel": ("mlp",)}
    parts = config.targets if config.method == "lora" else forms[config.form]
    return tuple(f"layers.{i}.{part}" for i in range(config.layers) for part in parts)


def gpt2_like(config: ModelConfig) -> bool:
    """Whether the base is GPT-2's architecture, which most libraries can build."""
    kinds: tuple[Any, ...] = (config.activation, config.norm, config.bias, config.fused, config.tied)
    return kinds == ("gelu", "layer", True, True, True) and config.kv_heads == config.heads
