"""A small pre-norm causal transformer in PyTorch, and the methods that train few arrays of it while the base is frozen.

    h = embed_tokens[tokens], virtual rows of a prompt inserted     (batch, S, width)    S = T + prompts
    h ← h + embed_positions[P, …, P + S − 1]                        P = length of the prefix
    h ← block(h), once per layer                                    block.py
    logits = norm(h) lm_headᵀ at the tokens                         (batch, T, vocabulary)

    a query sees the prefix, places up to its own that the mask leaves, virtual ones always, and itself

    a place                                      its method        trained arrays, each "{place}.{array}"
    a linear layer: layers.0.q_proj, lm_head     lora.Config       A, B
    layers.0.attention.output and four more      adapter.Config    down, down_bias, up, up_bias
    prefix                                       prefix.Config     keys, values, or what makes them
    prompt                                       ptuning.Config    embedding, and what is above it

A method may stand at many places at once. places.py says how one more method is written. With `full=True` there is no method,
and the whole base trains (full fine-tuning).

Start: weights ~ N(0, 0.02²), those of o_proj and down_proj N(0, 0.02² / (2 layers)), as in GPT-2; biases 0, norms 1. The base
is drawn before the methods' arrays: after the same seed it is the same under each.

Left out: generation with a cache, dropout, a method of the embeddings or of biases alone.
"""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_torch.block import Block, Config, make_attention_mask, norm
from lora_torch.checks import require
from lora_torch.merging import put_at_once
from lora_torch.places import Foldable, Mergeable, Method, check_methods, copy_all, named_arrays, put_methods
from lora_torch.prefix import PrefixTuning
from lora_torch.ptuning import PromptEncoder

__all__ = ["Config", "Method", "Transformer", "loss"]

_require = partial(require, "Transformer")


def loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean of −log softmax(logits)[target] over the targets other than −100: logits (…, vocabulary), targets (…)."""
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=-100)


def _unmerge(layers: list[Mergeable]) -> None:
    for layer in layers:
        if layer.merged:
            layer.unmerge()


class Transformer(nn.Module):
    """tokens (batch, T) → logits (batch, T, vocabulary). `methods`: place → the Config of a method.

    arrays() has every array by its own name, whatever module holds it: a LoRA layer at layers.0.q_proj gives
    layers.0.q_proj.weight, .bias, .A and .B. Only arrays of methods train, or with `full` those of the base.

    Raises ValueError naming the argument that is out of range, what came, what was expected and why.
    """

    def __init__(
        self, config: Config, methods: Mapping[str, Method] | None = None, full: bool = False,
        device: torch.device | str | int | None = None, dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        methods = dict(methods or {})
        config.check()
        _require(isinstance(full, bool), "full", full, "True or False", "it says whether the base trains")
        _require(not (full and methods), "full", full, f"False beside the methods {methods}", "they train on a frozen base")
        check_methods(config, methods)

        self.config = config
        self.embed_tokens = nn.Embedding(config.vocabulary, config.width, device=device, dtype=dtype)
        self.embed_positions = nn.Embedding(config.context, config.width, device=device, dtype=dtype)
        self.layers = nn.ModuleList(Block(config, device, dtype) for _ in range(config.layers))
        self.norm = norm(config, device, dtype)
        self.lm_head = None if config.tied else nn.Linear(config.width, config.vocabulary, False, device, dtype)
        self._draw_base()
        self.requires_grad_(full)
        self.prefix: PrefixTuning | None = None
        self.prompt: PromptEncoder | None = None
        put_methods(self, config, methods, device, dtype)

    def _draw_base(self) -> None:
        for name, array in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(array)
            elif name.endswith("norm.weight"):
                nn.init.ones_(array)
            else:
                into_h = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(array, std=0.02 / (2 * self.config.layers) ** 0.5 if into_h else 0.02)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """tokens (batch, T) of ints, mask (batch, T) of bools: False at padding → logits (batch, T, vocabulary)."""
        first, prompts = self.virtual
        self._check_input(tokens, mask, first + prompts)
        h, places = self.embed_tokens(tokens), None
        if self.prompt is not None:
            h, places = self.prompt.insert(h)    # (batch, S, width), (T)
        h = h + self.embed_positions.weight[first : first + h.shape[1]]
        attention_mask = make_attention_mask(h, mask, places, first)    # (…, 1, S, P + S)
        keys_values = None if self.prefix is None else self.prefix()    # (layers, P, kv) each
        for i, block in enumerate(self.layers):
            h = block(h, None if keys_values is None else (keys_values[0][i], keys_values[1][i]), attention_mask)
        h = self.norm(h if places is None else h[:, places])    # (batch, T, width)
        return F.linear(h, self.embed_tokens.weight) if self.lm_head is None else self.lm_head(h)

    def _check_input(self, tokens: Tensor, mask: Tensor | None, virtual: int) -> None:
        shape, context = tuple(tokens.shape), self.config.context
        _require(len(shape) == 2, "tokens", shape, "(batch, T)", "every sample is a row")
        expected, why = f"T + {virtual} virtual tokens ≤ context = {context}", "embed_positions has a row for each"
        _require(shape[1] + virtual <= context, "tokens", shape, expected, why)
        if mask is not None:
            came, expected = (mask.dtype, tuple(mask.shape)), f"{torch.bool} and {shape}"
            _require(came == (torch.bool, shape), "mask", came, expected, "it says of each token whether others see it")

    @property
    def virtual(self) -> tuple[int, int]:
        """How many virtual tokens the prefix and the prompt have."""
        return (
            0 if self.prefix is None else self.prefix.length,
            0 if self.prompt is None else len(self.prompt.positions),
        )

    def arrays(self) -> dict[str, Tensor]:
        """Every array of the base and of the methods by name, the Parameters themselves. Of a merged model: those of a
        model without LoRA, whose W are the merged ones."""
        return named_arrays(self)

    def gradients(self) -> dict[str, Tensor | None]:
        """The gradient of every array that trains by name, None before the first backward pass."""
        return {name: array.grad for name, array in self.arrays().items() if array.requires_grad}

    def load_arrays(self, arrays: Mapping[str, Tensor]) -> None:
        """Copy in all arrays. ValueError if one lacks, is unknown or has another shape; then nothing is copied."""
        if self.merged:
            raise RuntimeError("Transformer.load_arrays: the model is merged, expected an unmerged one: unmerge() puts W back")
        copy_all(self.arrays(), arrays)

    @property
    def merged(self) -> bool:
        return any(module.merged for module in self._mergeable())

    def merge(self) -> None:
        """Put W + scale · (A B)ᵀ into every layer with LoRA. RuntimeError if there is none, or if it is merged."""
        layers = self._checked("merge", merged=False)
        try:
            for layer in layers:
                layer.merge()
        except BaseException:
            _unmerge(layers)
            raise

    def unmerge(self) -> None:
        """Put every W back, bit for bit. RuntimeError if there is no LoRA, or if it is not merged."""
        layers = self._checked("unmerge", merged=True)
        try:
            _unmerge(layers)
        finally:  # what was interrupted is done all the same
            _unmerge(layers)

    def _mergeable(self) -> list[Mergeable]:
        return [module for module in self.modules() if module is not self and isinstance(module, Mergeable)]

    def _checked(self, caller: str, merged: bool) -> list[Mergeable]:
        layers = self._mergeable()
        if not layers or any(layer.merged != merged for layer in layers):
            state = "an unmerged" if caller == "merge" else "a merged"
            have = "has no LoRA" if not layers else "is merged" if self.merged else "is not merged"
            raise RuntimeError(f"Transformer.{caller}: the model {have}, expected {state} one with LoRA at some place")
        return layers

    def fold(self) -> None:
        """After training: what the MLP of a prefix or the encoder of a prompt gives takes its place, bit for bit. Optimizers
        made before do not know the new Parameters. RuntimeError if there is neither prefix nor prompt."""
        foldable = [module for module in self.modules() if module is not self and isinstance(module, Foldable)]
        if not foldable:
            raise RuntimeError("Transformer.fold: the model has neither prefix nor prompt, expected one to fold")
        before = [(vars(module), dict(vars(module))) for module in foldable]
        try:
            for module in foldable:
                module.fold()
        except BaseException:
            put_at_once(*before)
            raise
