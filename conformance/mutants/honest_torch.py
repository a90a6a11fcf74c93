"""A LoRA layer as a torch module, small and plain: what the mutants of TORCH are mutants of. And honest variations of it.

    y = x Wᵀ + b + scale · (dropout(x) A) B            x (…, in)    W (out, in)    A (in, rank)    B (rank, out)
"""

import importlib
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from conformance.mutants import LayerSubject
from conformance.mutants.honest import Honest
from conformance.subject import Arrays, LayerConfig, Unsupported
from conformance.torch import TorchLayer, set_seed


class LoRA(nn.Module):
    """A and B beside an nn.Linear. A merge keeps W."""

    scale: Any  # a number, or a tensor of one

    def __init__(self, linear: nn.Linear, rank: int, scale: float, dropout: float):
        super().__init__()
        self.linear = linear.requires_grad_(False)
        options: dict[str, Any] = {"device": linear.weight.device, "dtype": linear.weight.dtype}
        self.A = nn.Parameter(torch.randn(linear.in_features, rank, **options) / math.sqrt(linear.in_features))
        self.B = nn.Parameter(torch.zeros(rank, linear.out_features, **options))
        self.dropout, self.scale = nn.Dropout(dropout), scale
        self.kept: Tensor | None = None  # W, while the layer is merged

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return y if self.kept is not None else y + self.lora(x)

    def lora(self, x: Tensor) -> Tensor:
        return self.scale * (self.dropout(x) @ self.A @ self.B)

    @torch.no_grad()
    def merge(self) -> None:
        if self.kept is not None:
            raise RuntimeError("merge: the layer is merged already")
        W, delta = self.linear.weight, self.scale * (self.A.double() @ self.B.double()).T
        self.kept = W.clone()
        W.copy_(W.double() + delta)

    @torch.no_grad()
    def unmerge(self) -> None:
        if self.kept is None:
            raise RuntimeError("unmerge: the layer is not merged")
        self.linear.weight.copy_(self.kept)
        self.kept = None

    def load(self, factors: dict[str, Tensor]) -> None:
        self.load_state_dict(factors, strict=False)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        if self.kept is not None:
            self.unmerge()
        super()._load_from_state_dict(*arguments)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A mutant stands in its file in the place of its class, so pickle must look for the class in the mutant."""
        return remade, (type(self).__module__, type(self).__name__), self.__dict__


def remade(place: str, name: str) -> nn.Module:
    """A module of that class, without its members."""
    found: Any = getattr(importlib.import_module(place), name)
    kind = vars(found.layer)["kind"] if isinstance(found, LayerSubject) else found
    return kind.__new__(kind)


class ModuleLayer(TorchLayer):
    """The layer of a LoRA module. A subclass names the class of its module in `kind`."""

    kind: type[LoRA] = LoRA
    module: Any  # a LoRA

    def __init__(self, config: LayerConfig, weight: np.ndarray, bias: np.ndarray | None):
        if config.device != "cpu":
            raise Unsupported(config.device)
        checked = Honest(config, weight, bias)  # raises for what is no layer
        set_seed(config)
        self.config, self.scale = config, checked.scale
        linear = nn.Linear(config.in_features, config.out_features, config.bias, dtype=getattr(torch, config.dtype))
        super().__init__(self.around(linear), W="linear.weight", b="linear.bias" if config.bias else None, A="A", B="B")
        self.set_base(weight, bias)

    def around(self, linear: nn.Linear) -> nn.Module:
        return self.kind(linear, self.config.rank, self.scale, self.config.dropout)

    def set_adapter(self, arrays: Arrays) -> None:
        for name, array in arrays.items():
            self.check(name, array)
        merged = self.module.kept is not None
        if merged:
            self.unmerge()
        super().set_adapter(arrays)
        if merged:
            self.merge()

    def save(self, directory) -> None:
        torch.save({name: self.tensor(name).detach().clone() for name in ("A", "B")}, f"{directory}/factors.pt")

    def load(self, directory) -> None:
        factors = torch.load(f"{directory}/factors.pt", weights_only=True)
        for name in ("A", "B"):
            have, came = tuple(self.tensor(name).shape), tuple(factors[name].shape)
            if came != have:
                raise RuntimeError(f"{name} is {came} in the file, expected {have}")
        merged = self.module.kept is not None
        if merged:
            self.unmerge()
        self.module.load(factors)
        if merged:
            self.merge()


def layer_of(kind: type[LoRA]) -> type[ModuleLayer]:
    """The class of layers around modules of that class, under its name and with its docstring."""
    return type(kind.__name__, (ModuleLayer,), {"__doc__": kind.__doc__, "__module__": kind.__module__, "kind": kind})


class Product(torch.autograd.Function):
    """scale · (x A) B (n, out), with a backward pass written by hand, of which there is no derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(x, A, B)
        ctx.scale = scale
        return scale * (x @ A @ B)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, A, B = ctx.saved_tensors
        dx, dA, dB = products(x.to(A.dtype), A, B, ctx.scale * dy.to(A.dtype))  # under autocast x may be in half precision
        dx = dx.to(x.dtype)
        wanted = ctx.needs_input_grad
        return dx if wanted[0] else None, dA if wanted[1] else None, dB if wanted[2] else None, None


def products(x: Tensor, A: Tensor, B: Tensor, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """dx (n, in), dA (in, rank) and dB (rank, out) of y = (x A) B."""
    u = dy @ B.T    # (n, rank)
    return u @ A.T, x.T @ u, (x @ A).T @ dy


class ByHand(LoRA):
    """An autograd function computes the LoRA part. It refuses second derivatives and the transforms of torch.func."""

    def lora(self, x: Tensor) -> Tensor:
        rows = self.dropout(x).reshape(-1, x.shape[-1])    # (n, in)
        return self.part(rows).reshape(*x.shape[:-1], self.B.shape[1])

    def part(self, rows: Tensor) -> Tensor:
        return Product.apply(rows, self.A, self.B, self.scale)  # pyright: ignore[reportReturnType]


class WeightFirst(LoRA):
    """W + scale · (A B)ᵀ is computed in each forward pass, while nothing is dropped. The scale is a buffer."""

    def __init__(self, linear: nn.Linear, rank: int, scale: float, dropout: float):
        super().__init__(linear, rank, scale, dropout)
        del self.scale
        self.register_buffer("scale", torch.tensor(scale, dtype=linear.weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        if self.kept is not None or self.dropout.p and self.training:
            return super().forward(x)
        return nn.functional.linear(x, self.linear.weight + self.scale * (self.A @ self.B).T, self.linear.bias)


class OutputsInParts(LoRA):
    """64 outputs are computed at a time. autograd adds up the gradients of the parts, in the format of the layer."""

    def forward(self, x: Tensor) -> Tensor:
        if self.kept is not None:
            return self.linear(x)
        h, W, b = self.dropout(x) @ self.A, self.linear.weight, self.linear.bias
        columns = [slice(i, i + 64) for i in range(0, len(W), 64)]
        parts = [nn.functional.linear(x, W[c], None if b is None else b[c]) + self.scale * (h @ self.B[:, c]) for c in columns]
        return torch.cat(parts, -1)


PLAIN, BY_HAND, WEIGHT_FIRST, IN_PARTS = (
    LayerSubject(layer_of(kind)) for kind in (LoRA, ByHand, WeightFirst, OutputsInParts))
