"""The formulas of LoRA that libraries use, each written as a module of a few lines.

`conformance bench` measures them next to the layers of this project. They leave out whatever a library adds to its formula.
`conformance run` can check each of them, too: `conformance run conformance.bench.forms:Torchtune`.
"""

import math

import torch
from torch import Tensor, nn

from lora_torch import LinearLoRA


class LoraTorchPlain(LinearLoRA):
    """lora_torch without its fast path: autograd differentiates the formula."""

    fast = False


class LoraTorchOnePass(LinearLoRA):
    """lora_torch with its Triton kernel. On the CPU the kernel is not used."""

    one_pass = True


class Torchtune(nn.Module):
    """torchtune's LoRALinear: out + (alpha / rank) · lora_b(lora_a(dropout(x)))."""

    def __init__(self, in_features: int, out_features: int, rank: int, alpha: float, bias: bool = True, dropout: float = 0.0):
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias).requires_grad_(False)
        self.lora_a, self.lora_b = nn.Linear(in_features, rank, bias=False), nn.Linear(rank, out_features, bias=False)
        self.dropout, self.scaling = nn.Dropout(dropout), alpha / rank
        nn.init.kaiming_uniform_(self.lora_a.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_b.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.scaling * self.lora_b(self.lora_a(self.dropout(x)))


class Peft(Torchtune):
    """PEFT's order: result + lora_B(lora_A(dropout(x))) · scaling."""

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.lora_b(self.lora_a(self.dropout(x))) * self.scaling


def compiled_peft(in_features: int, out_features: int, rank: int, alpha: float, bias: bool = True, dropout: float = 0.0):
    """torch.compile of PEFT's formula."""
    module = Peft(in_features, out_features, rank, alpha, bias, dropout)
    module.compile(fullgraph=True, dynamic=False)
    return module


def max_autotuned_peft(in_features: int, out_features: int, rank: int, alpha: float, bias: bool = True, dropout: float = 0.0):
    """torch.compile of PEFT's formula, which tries several kernels and keeps the fastest (mode max-autotune-no-cudagraphs)."""
    module = Peft(in_features, out_features, rank, alpha, bias, dropout)
    module.compile(fullgraph=True, dynamic=False, mode="max-autotune-no-cudagraphs")
    return module


def peft_adapters_as_base(in_features: int, out_features: int, rank: int, alpha: float, bias: bool = True, dtype=None):
    """PEFT with autocast_adapter_dtype=False: A and B stay in the dtype of the base."""
    import peft

    config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=["0"])  # pyright: ignore[reportArgumentType]
    base = nn.Sequential(nn.Linear(in_features, out_features, bias, dtype=dtype))
    return peft.get_peft_model(base, config, autocast_adapter_dtype=False).base_model.model[0]  # pyright: ignore


class BaseFirst(torch.autograd.Function):
    """The order of Unsloth's LoRA_W: x A B is added into the product with W, and the backward pass computes x A again."""

    @staticmethod
    def forward(ctx, x: Tensor, W: Tensor, b: Tensor | None, A: Tensor, B: Tensor, scale: float) -> Tensor:
        y = nn.functional.linear(x, W, b)
        y.addmm_(x @ A.t(), B.t(), alpha=scale)
        ctx.save_for_backward(x, W, A, B)
        ctx.scale = scale
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, W, A, B = ctx.saved_tensors
        u = dy @ B    # (n, rank)
        dA, dB = u.t() @ x * ctx.scale, dy.t() @ (x @ A.t()) * ctx.scale
        dx = dy @ W
        dx.addmm_(u, A, alpha=ctx.scale)
        return dx, None, None, dA, dB, None


class Unsloth(Torchtune):
    """Unsloth's order of products, with a gradient written by hand."""

    def forward(self, x: Tensor) -> Tensor:
        y = BaseFirst.apply(x.reshape(-1, x.shape[-1]), self.linear.weight, self.linear.bias, self.lora_a.weight,
                            self.lora_b.weight, self.scaling)
        return y.reshape(*x.shape[:-1], -1)  # pyright: ignore[reportAttributeAccessIssue]


FORMS = {
    "lora_torch-plain": LoraTorchPlain, "lora_torch-one-pass": LoraTorchOnePass, "peft-base-dtype": peft_adapters_as_base,
    "torchtune-form": Torchtune, "peft-form-compiled": compiled_peft, "peft-form-autotuned": max_autotuned_peft,
    "unsloth-form": Unsloth,
}
