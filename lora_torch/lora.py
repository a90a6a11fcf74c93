"""LoRA as a method of the transformer: at any of its linear layers. The layer itself is LinearLoRA, of linear.py.

    a place                                       what stands there
    layers.{i}.q_proj and the others of a block   x Wᵀ + b + scale · (x A) B in the place of x Wᵀ + b
    lm_head, where it is not the embedding        the same

    arrays: weight and bias, those of the base; A (in, rank) and B (rank, out), which train
"""

from typing import NamedTuple

import torch
from torch import nn

from lora_torch import block
from lora_torch.checks import is_finite, is_size, require
from lora_torch.linear import LinearLoRA

LAYER = LinearLoRA  # of a single layer with this method


class Config(NamedTuple):
    """scale is the number that A B is multiplied by. It is not alpha."""

    rank: int
    scale: float


def places(config: block.Config) -> list[str]:
    in_blocks = [f"layers.{i}.{name}" for i in range(config.layers) for name in block.linears(config)]
    return in_blocks if config.tied else [*in_blocks, "lm_head"]


def put(
    model: nn.Module, config: block.Config, place: str, method: Config,
    device: torch.device | str | int | None, dtype: torch.dtype | None,
) -> None:
    linear, (parent, _, name) = model.get_submodule(place), place.rpartition(".")
    assert isinstance(linear, nn.Linear)
    setattr(model.get_submodule(parent), name, around(linear, method))


def around(linear: nn.Linear, method: Config) -> LinearLoRA:
    """A LinearLoRA whose frozen layer is `linear` itself, with its device and dtype."""
    require("lora.Config", is_size(method.rank), "rank", method.rank, "an integer ≥ 1", "A is (in, rank)")
    require("lora.Config", is_finite(method.scale), "scale", method.scale, "a finite number", "A B is multiplied by it")
    layer = LinearLoRA.around(linear, method.rank, alpha=method.scale * method.rank)
    layer.scale = float(method.scale)  # alpha / rank may be a rounding away from it
    return layer
