"""Bottleneck adapters in PyTorch: two thin trained layers with an activation f between them, inside of a frozen model.

    Ad(z) = scale · (f(z down + down_bias) up + up_bias)

    z (…, width)   down (width, m)   down_bias (m)   up (m, width)   up_bias (width)   Ad(z) (…, width)

    a place in block i            what stands there                       as in
    layers.i.attention.output     a ← a + Ad(a), a the sub-layer's        Houlsby et al. 2019, who put one at both
    layers.i.mlp.output           output before it is added to h
    layers.i.output               h ← h + Ad(h), h after both sums        Pfeiffer et al. 2021
    layers.i.attention            a ← sub(x) + Ad(x), x the normed        He et al. 2022, parallel
    layers.i.mlp                  input of the sub-layer

Where one sub-layer has both, Ad(x) is part of the output a on which the other works.

Start "near", near the identity: down, up ~ N(0, 0.01²), cut off at two standard deviations; biases 0.
Start "zero", at the identity: down ~ U(±1/√width); up and biases 0, so a new model computes what its base computes.

Sources: Houlsby et al. 2019, arXiv:1902.00751, §2.1; Pfeiffer et al. 2021, arXiv:2005.00247; He et al. 2022,
arXiv:2110.04366, table 1. f = gelu is the tanh form. Left out: adapters that several tasks fuse, layer norms that train
beside the adapters, a scale that trains.
"""

import math
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_torch import block
from lora_torch.checks import is_finite, is_size, require

_require = partial(require, "adapter.Config")

PLACES = ("attention.output", "mlp.output", "output", "attention", "mlp")  # each after "layers.{i}."
ACTIVATIONS = {"relu": F.relu, "gelu": partial(F.gelu, approximate="tanh"), "silu": F.silu}
INITS = ("near", "zero")


class Config(NamedTuple):
    """bottleneck is m of the page above. activation: relu, gelu or silu; init: near or zero."""

    bottleneck: int
    activation: str = "relu"
    scale: float = 1.0
    init: str = "near"


def places(config: block.Config) -> list[str]:
    return [f"layers.{i}.{name}" for i in range(config.layers) for name in PLACES]


def put(
    model: nn.Module, config: block.Config, place: str, method: Config,
    device: torch.device | str | int | None, dtype: torch.dtype | None,
) -> None:
    _, i, inside = place.split(".", 2)
    adapters = model.get_submodule(f"layers.{i}.adapters")
    assert isinstance(adapters, nn.ModuleDict)
    adapters[inside.replace(".", "/")] = BottleneckAdapter(config.width, method, device, dtype)


class BottleneckAdapter(nn.Module):
    """The trained down, down_bias, up and up_bias of one place."""

    def __init__(
        self, width: int, method: Config, device: torch.device | str | int | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        m, activation, scale, init = method
        _require(is_size(m), "bottleneck", m, "an integer ≥ 1", "down is (width, bottleneck)")
        _require(activation in ACTIVATIONS, "activation", activation, f"one of {', '.join(ACTIVATIONS)}", "it is f")
        _require(is_finite(scale), "scale", scale, "a finite number", "what the adapter gives is multiplied by it")
        _require(init in INITS, "init", init, f"one of {', '.join(INITS)}", "it draws down and up")
        self.method = method
        self.down = nn.Parameter(torch.empty(width, m, device=device, dtype=dtype))
        self.down_bias = nn.Parameter(torch.empty(m, device=device, dtype=dtype))
        self.up = nn.Parameter(torch.empty(m, width, device=device, dtype=dtype))
        self.up_bias = nn.Parameter(torch.empty(width, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all four arrays anew, as `init` says."""
        nn.init.zeros_(self.down_bias)
        nn.init.zeros_(self.up_bias)
        if self.method.init == "near":
            nn.init.trunc_normal_(self.down, std=0.01, a=-0.02, b=0.02)
            nn.init.trunc_normal_(self.up, std=0.01, a=-0.02, b=0.02)
        else:
            bound = 1 / math.sqrt(self.down.shape[0])
            nn.init.uniform_(self.down, -bound, bound)
            nn.init.zeros_(self.up)

    def forward(self, z: Tensor) -> Tensor:
        """z (…, width) → Ad(z) (…, width)."""
        f = ACTIVATIONS[self.method.activation]
        k = f(F.linear(z, self.down.t(), self.down_bias))    # (…, m)
        return self.method.scale * F.linear(k, self.up.t(), self.up_bias)    # (…, width)

    def extra_repr(self) -> str:
        return f"width={self.down.shape[0]}, {self.method}"
