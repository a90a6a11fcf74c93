"""LoRA at the linear layers of the transformer: its configuration, its places, and how it is put there.

The layer itself is LinearLoRA, of linear.py.
"""

from typing import NamedTuple

from torch import nn

from lora_torch.checks import is_finite, is_size, require
from lora_torch.linear import LinearLoRA


class LoRA(NamedTuple):
    """What lora_torch.transformer puts around a linear layer; scale is what A B is multiplied by, not alpha."""

    rank: int
    scale: float


def around(linear: nn.Linear, method: LoRA) -> LinearLoRA:
    """A LinearLoRA whose frozen layer is `linear` itself."""
    require("LoRA", is_size(method.rank), "rank", method.rank, "an integer ≥ 1", "A is (in, rank)")
    require("LoRA", is_finite(method.scale), "scale", method.scale, "a finite number", "A B is multiplied by it")
    layer = LinearLoRA.around(linear, method.rank, alpha=method.scale * method.rank)
    layer.scale = float(method.scale)  # alpha / rank may be a rounding away from it
    return layer
