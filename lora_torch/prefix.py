"""Prefix tuning in PyTorch: trained keys and values that stand before all others, in the attention of every layer.

    directly          keys, values                                   (layers, length, kv)   kv = kv_heads · head size
    reparameterised   [keys | values] = tanh(E W1ᵀ + b1) W2ᵀ + b2    (length, 2 · layers · kv)

    E = embedding (length, width)   W1 (m, width)   b1 (m)   W2 (2 · layers · kv, m)   b2 (2 · layers · kv)   m = hidden_size
    columns: the keys of layer 0, the values of layer 0, the keys of layer 1, …

No position embedding is added to a prefix, every token sees it, and the tokens' positions begin after it. After fold() only
keys and values are left, which is all that is used after training.

Start: keys, values and E ~ N(0, 1); W1, b1 ~ U(±1/√width), W2, b2 ~ U(±1/√m), which are torch's draws for an embedding
and for linear layers.

Sources: Li & Liang 2021, arXiv:2101.00190, §4; P-tuning v2, Liu et al. 2022, arXiv:2110.07602, whose deep prompts are the
same arrays, with or without the two layers. Left out: dropout, a start from the activations of real words.
"""

import math
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_torch import block
from lora_torch.checks import is_size, require
from lora_torch.merging import put_at_once

_require = partial(require, "prefix.Config")


class Config(NamedTuple):
    """hidden_size: how many units stand between the two layers. None: keys and values are trained directly."""

    length: int
    hidden_size: int | None = None


def places(config: block.Config) -> list[str]:
    return ["prefix"]


def put(
    model: nn.Module, config: block.Config, place: str, method: Config,
    device: torch.device | str | int | None, dtype: torch.dtype | None,
) -> None:
    model.prefix = PrefixTuning(config.layers, config.kv, config.width, method, device, dtype)


class PrefixTuning(nn.Module):
    """The trained arrays at the place "prefix". kv: columns of the keys, and of the values, of one layer."""

    def __init__(
        self, layers: int, kv: int, width: int, method: Config,
        device: torch.device | str | int | None = None, dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        length, hidden_size = method
        _require(is_size(length), "length", length, "an integer ≥ 1", "keys are (layers, length, …)")
        valid = hidden_size is None or is_size(hidden_size)
        _require(valid, "hidden_size", hidden_size, "an integer ≥ 1, or None", "W1 is (hidden_size, width)")
        self.method, self.layers, self.kv = method, layers, kv
        empty = partial(torch.empty, device=device, dtype=dtype)
        if hidden_size is None:
            self.keys = nn.Parameter(empty(layers, length, kv))
            self.values = nn.Parameter(empty(layers, length, kv))
        else:
            self.embedding = nn.Parameter(empty(length, width))
            self.W1, self.b1 = nn.Parameter(empty(hidden_size, width)), nn.Parameter(empty(hidden_size))
            self.W2, self.b2 = nn.Parameter(empty(2 * layers * kv, hidden_size)), nn.Parameter(empty(2 * layers * kv))
        self.reset_parameters()

    @property
    def length(self) -> int:
        return self.method.length

    def reset_parameters(self) -> None:
        """Draw every array anew."""
        if self.method.hidden_size is None:
            nn.init.normal_(self.keys)
            nn.init.normal_(self.values)
        else:
            nn.init.normal_(self.embedding)
            draw_linear(self.W1, self.b1)
            draw_linear(self.W2, self.b2)

    def forward(self) -> tuple[Tensor, Tensor]:
        """→ keys and values (layers, length, kv)."""
        if self.method.hidden_size is None:
            return self.keys, self.values
        k = torch.tanh(F.linear(self.embedding, self.W1, self.b1))    # (length, m)
        both = F.linear(k, self.W2, self.b2)    # (length, 2 · layers · kv)
        keys, values = both.view(-1, self.layers, 2, self.kv).permute(2, 1, 0, 3)    # (layers, length, kv) each
        return keys, values

    def fold(self) -> None:
        """Put what the two layers give in their place, as keys and values that are new Parameters."""
        keys, values = (t.detach().clone(memory_format=torch.contiguous_format) for t in self())
        arrays = {"keys": nn.Parameter(keys), "values": nn.Parameter(values)}
        put_at_once((self.__dict__, {"_parameters": arrays, "method": self.method._replace(hidden_size=None)}))

    def extra_repr(self) -> str:
        return f"layers={self.layers}, kv={self.kv}, length={self.method.length}, hidden_size={self.method.hidden_size}"


def draw_linear(W: Tensor, b: Tensor) -> None:
    """W (out, in) and b (out) ~ U(±1/√in)."""
    bound = 1 / math.sqrt(W.shape[1])
    nn.init.uniform_(W, -bound, bound)
    nn.init.uniform_(b, -bound, bound)
