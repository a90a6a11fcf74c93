"""The interface of a whole model under test, for what one layer cannot show: LoRA on several matrices, adapters, prefixes,
prompts. NumPy arrays go in, NumPy arrays come out, under the names of `lora_ref.transformer`.

    base      embed_tokens.weight   embed_positions.weight   layers.0.attention_norm.weight   layers.0.qkv_proj.weight (out,
              in)   layers.0.o_proj.bias   layers.0.mlp_norm.weight   layers.0.up_proj.weight   norm.weight   and so on
    lora      layers.0.qkv_proj.A (in, rank), .B (rank, out)                        at each of `targets` in each layer
    adapter   layers.0.mlp.output.down (width, bottleneck), .down_bias, .up (bottleneck, width), .up_bias       "houlsby",
              also layers.0.attention.output;   layers.0.output "pfeiffer";   layers.0.mlp "parallel"
    prefix    prefix.keys, prefix.values (layers, length, kv_heads · head size);   with hidden_size: .embedding, W1, b1, W2, b2
    ptuning   prompt.embedding (n, width);   encoder "mlp" or "lstm": also the other arrays of `lora_ref.ptuning`
    none      no arrays;   full: no arrays, and the base trains
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from conformance.subject import Arrays, Unsupported


@dataclass(frozen=True)
class ModelConfig:
    """A small causal transformer with one method. It has learned positions and norms before each part. The defaults of its
    architecture are GPT-2's."""

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
    fused: bool = True  # q, k, v are rows of one matrix, qkv_proj, in this order
    tied: bool = True  # the head's weight is embed_tokens
    method: str = "none"  # or "full", "lora", "adapter", "prefix", "ptuning"
    targets: tuple[str, ...] = ()  # for "lora": "qkv_proj", "o_proj", …
    rank: int = 1
    alpha: float = 1.0  # scale = alpha / rank
    form: str = "houlsby"  # for "adapter"; or "pfeiffer", "parallel"
    bottleneck: int = 1
    nonlinearity: str = "gelu"  # in the tanh form; or "relu"
    adapter_scale: float = 1.0
    start: str = "near"  # or "zero": the up projection is zero
    length: int = 1  # for "prefix"
    positions: tuple[int, ...] = ()  # for "ptuning": the positions of the prompts in the sequence that includes them
    encoder: str = "embedding"  # for "ptuning"; or "mlp", "lstm"
    hidden_size: int | None = None  # of the network that makes the prefix or the prompts; None: no network
    dtype: str = "float64"
    device: str = "cpu"
    seed: int = 0


class Model:
    """A model with a method on it. Every method raises Unsupported unless it is overridden."""

    def arrays(self) -> Arrays:
        """The current arrays of the method, by name."""
        raise Unsupported("arrays()")

    def set_arrays(self, arrays: Arrays) -> None:
        """Overwrite some arrays of the method. They have the shapes that `arrays` gives."""
        raise Unsupported("set_arrays()")

    def base(self) -> Arrays:
        """The current arrays of the base. While the model is merged these are the merged ones."""
        raise Unsupported("base()")

    def forward(self, tokens: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        """Logits (batch, T, vocabulary) of the tokens (batch, T). Row t belongs to the t-th token: virtual tokens have no row.
        `mask` (batch, T) is False for padding. It does not cover virtual tokens, which are always seen. Positions count from
        0, or from the end of the prefix, and padding counts."""
        raise Unsupported("forward()")

    def backward(self, dlogits: np.ndarray) -> Arrays:
        """The gradients for the last forward pass, by name, of every array that got one. They add up until `zero_grad`."""
        raise Unsupported("backward()")

    def zero_grad(self) -> None:
        """Clear all gradients."""
        raise Unsupported("zero_grad()")

    def trainable(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of every parameter that trains."""
        raise Unsupported("trainable()")

    def step(self, lr: float) -> None:
        """One plain SGD step on every trainable parameter."""
        raise Unsupported("step()")

    def merge(self) -> None:
        """Add LoRA's update to each of its matrices."""
        raise Unsupported("merge()")

    def fold(self) -> None:
        """Replace the network of the prefix or the prompts by its output. `arrays` then gives keys and values, or prompts."""
        raise Unsupported("fold()")

    def switch(self, on: bool) -> None:
        """With on=False, compute as if there were no method; with on=True, use the method again."""
        raise Unsupported("switch()")


def places(config: ModelConfig) -> tuple[str, ...]:
    """The places of the model where the method has arrays, for instance "layers.0.qkv_proj"."""
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
