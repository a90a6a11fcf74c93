"""Honest layers that are PyTorch modules, each built in another way. The suite reaches them as it reaches published libraries.

Importing this file imports torch, which takes seconds. Only `honest_subjects` does it.
"""

import math
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from conformance.mutants import LayerSubject
from conformance.subject import LayerConfig, Unsupported
from conformance.torch import TorchLayer, set_seed, to_tensor


class OfModule(TorchLayer):
    """A layer around the module that `module_of` makes from an nn.Linear, which holds W and b. It keeps W while merged."""

    W, b, A, B, transposed = "base.weight", "base.bias", "lora_A", "lora_B", ""

    def __init__(self, config: LayerConfig, weight: np.ndarray, bias: np.ndarray | None):
        if config.method != "lora" or config.device != "cpu":
            raise Unsupported(f"{config.method} on {config.device}")
        if config.rank < 1 or not math.isfinite(config.alpha) or not 0 <= config.dropout < 1:
            raise ValueError(f"rank {config.rank}, alpha {config.alpha} and dropout {config.dropout} are no layer")
        set_seed(config)
        W = to_tensor(weight)
        base = nn.Linear(config.in_features, config.out_features, bias is not None, dtype=W.dtype).requires_grad_(False)
        with torch.no_grad():
            base.weight.copy_(W)
            if bias is not None:
                base.bias.copy_(to_tensor(bias))
        self.scale = config.alpha / (math.sqrt(config.rank) if config.scaling == "rslora" else config.rank)
        self.kept: Tensor | None = None
        b = self.b if bias is not None else None
        super().__init__(self.module_of(config, base), W=self.W, b=b, A=self.A, B=self.B, transposed=self.transposed)

    def module_of(self, config: LayerConfig, base: nn.Linear) -> nn.Module:
        return Plain(config, base, self.scale)

    def merge(self) -> None:
        if self.kept is not None:
            raise RuntimeError("merge: the layer is merged already")
        with torch.no_grad():
            W, A, B = (self.tensor(name) for name in "WAB")
            wide = torch.float64 if W.dtype == torch.float64 else torch.float32
            self.kept = W.clone()
            W.copy_(W.to(wide) + self.scale * (A.to(wide) @ B.to(wide)).t())
        self.switch(False)

    def unmerge(self) -> None:
        if self.kept is None:
            raise RuntimeError("unmerge: the layer is not merged")
        with torch.no_grad():
            self.tensor("W").copy_(self.kept)
        self.kept = None
        self.switch(True)

    def switch(self, on: bool) -> None:
        """Applies the LoRA part, or not."""
        self.module.on = on  # pyright: ignore[reportArgumentType]

    def step(self, lr: float) -> None:
        self.refuse_while_merged("step")
        super().step(lr)

    def set_adapter(self, arrays) -> None:
        self.refuse_while_merged("set_adapter")
        super().set_adapter(arrays)

    def save(self, directory) -> None:
        self.refuse_while_merged("save")
        super().save(directory)

    def load(self, directory) -> None:
        self.refuse_while_merged("load")
        state = torch.load(f"{directory}/state.pt", weights_only=True)
        shapes = {name: tensor.shape for name, tensor in self.module.state_dict().items()}
        if {name: tensor.shape for name, tensor in state.items()} != shapes:  # torch copies what fits before it complains
            raise ValueError(f"load: the file holds other arrays, expected {shapes}")
        self.module.load_state_dict(state)

    def refuse_while_merged(self, method: str) -> None:
        if self.kept is not None:
            raise RuntimeError(f"{method}: unmerge first")


def factors(config: LayerConfig, base: nn.Linear) -> tuple[nn.Parameter, nn.Parameter]:
    """A (in, rank), drawn, and B (rank, out), zeros."""
    A = torch.randn(config.in_features, config.rank) / math.sqrt(config.in_features)
    B = torch.zeros(config.rank, config.out_features, dtype=base.weight.dtype)
    return nn.Parameter(A.to(base.weight.dtype)), nn.Parameter(B)


class Plain(nn.Module):
    """y = base(x) + scale · (dropout(x) A) B around a given nn.Linear."""

    on: bool

    def __init__(self, config: LayerConfig, base: nn.Linear, scale: float):
        super().__init__()
        self.lora_A, self.lora_B = factors(config, base)
        self.base, self.scale, self.on, self.dropout = base, scale, True, nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        if self.on:
            y = y + self.scale * torch.matmul(torch.matmul(self.dropout(x), self.lora_A), self.lora_B)
        return y


@LayerSubject
class WrapsALinear(OfModule):
    """Wraps an nn.Linear that holds W and b already. A merged one is loaded as if it were none, which TORCH-54 says it SHOULD
    not be."""


@LayerSubject
class Checkpoints(OfModule):
    """Keeps no intermediate results: torch computes the LoRA part again in the backward pass, in the forward pass's mode.
    torch.func.grad cannot go through that, which TORCH-25 says it SHOULD. Loads while merged are against TORCH-54."""

    def module_of(self, config: LayerConfig, base: nn.Linear) -> nn.Module:
        class Checkpointed(Plain):
            def part(self, x: Tensor, A: Tensor, B: Tensor, training: bool) -> Tensor:
                return self.scale * (nn.functional.dropout(x, config.dropout, training) @ A @ B)

            def forward(self, x: Tensor) -> Tensor:
                y = self.base(x)
                given = x, self.lora_A, self.lora_B, self.training  # as they are now, not as they are in the backward pass
                return y + checkpoint(self.part, *given, use_reentrant=False) if self.on else y

        return Checkpointed(config, base, self.scale)


@LayerSubject
class Scripted(OfModule):
    """Is compiled by TorchScript. Such a module has no hooks, no inference mode and no bfloat16(), so it is not offered as a
    module of Python."""

    def as_module(self, experiment: str, given: dict[str, Any]) -> dict[str, Any]:
        raise Unsupported("as_module()")

    def module_of(self, config: LayerConfig, base: nn.Linear) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is deprecated
            return torch.jit.script(Plain(config, base, self.scale))  # pyright: ignore[reportReturnType]


@LayerSubject
class Hooked(OfModule):
    """Leaves the nn.Linear in its place, and adds the LoRA part to its output in a hook. The module cannot be pickled, which
    TORCH-02 says it SHOULD. Loads while merged are against TORCH-54."""

    W, b = "weight", "bias"

    def module_of(self, config: LayerConfig, base: nn.Linear) -> nn.Module:
        A, B = factors(config, base)
        base.register_parameter("lora_A", A)
        base.register_parameter("lora_B", B)
        base.on = True  # pyright: ignore[reportArgumentType]

        def add(module, arguments, y: Tensor) -> Tensor | None:
            x = nn.functional.dropout(arguments[0], config.dropout, module.training)
            return y + self.scale * (x @ module.lora_A @ module.lora_B) if module.on else None

        base.register_forward_hook(add)
        return base


@LayerSubject
class Parametrized(OfModule):
    """Computes the weight W + scale · (A B)ᵀ of an nn.Linear anew in every pass, by torch's parametrize. It has no dropout.
    Loads while merged are against TORCH-54."""

    W, b = "parametrizations.weight.original", "bias"
    A, B = "parametrizations.weight.0.lora_A", "parametrizations.weight.0.lora_B"

    def module_of(self, config: LayerConfig, base: nn.Linear) -> nn.Module:
        if config.dropout:
            raise Unsupported("dropout")
        scale = self.scale

        class Plus(nn.Module):
            def __init__(self):
                super().__init__()
                self.lora_A, self.lora_B = factors(config, base)
                self.on = True

            def forward(self, W: Tensor) -> Tensor:
                return W + scale * (self.lora_A @ self.lora_B).t() if self.on else W

        self.plus = Plus()
        parametrize.register_parametrization(base, "weight", self.plus)
        return base

    def switch(self, on: bool) -> None:
        self.plus.on = on


class Formula(torch.autograd.Function):
    """The LoRA part with a backward pass written by hand. x (n, in), A (in, rank), B (rank, out)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
        return scale * ((x @ A) @ B)

    @staticmethod
    def setup_context(context, inputs, output) -> None:
        *saved, context.scale = inputs
        context.save_for_backward(*saved)

    @staticmethod
    def backward(context, dy: Tensor):
        (x, A, B), scale = context.saved_tensors, context.scale
        x, dx_dtype, dy = x.to(A.dtype), x.dtype, dy.to(A.dtype)  # autocast gives others
        u = scale * (dy @ B.t())                                                               # (n, rank)
        return (u @ A.t()).to(dx_dtype), x.t() @ u, scale * ((x @ A).t() @ dy), None


@LayerSubject
class BackwardByHand(OfModule):
    """Has a backward pass of its own, and stores A as (rank, in) and B as (out, rank). Loads while merged are against
    TORCH-54."""

    transposed = "AB"

    def module_of(self, config: LayerConfig, base: nn.Linear) -> nn.Module:
        class ByHand(Plain):
            def __init__(self, *arguments):
                super().__init__(*arguments)
                self.lora_A, self.lora_B = (nn.Parameter(p.detach().t().contiguous()) for p in (self.lora_A, self.lora_B))

            def forward(self, x: Tensor) -> Tensor:
                y = self.base(x)
                if not self.on:
                    return y
                rows = self.dropout(x).reshape(-1, x.shape[-1])
                return y + Formula.apply(rows, self.lora_A.t(), self.lora_B.t(), self.scale).reshape(y.shape)

        return ByHand(config, base, self.scale)
