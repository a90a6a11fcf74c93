"""LoRA: a frozen linear layer and a trained product of two thin matrices beside it.

    y  = x Wᵀ + b + scale · (dropout(x) A) B        W' = W + scale · (A B)ᵀ

    x (…, in)   W (out, in)   b (out)   A (in, rank)   B (rank, out)   y (…, out)
    scale = alpha / rank ("standard")  or  alpha / √rank ("rslora")

B starts at zero, so a new layer computes exactly what its frozen layer computes.

Sources: Hu et al. 2021, arXiv:2106.09685, equation 3 and §4.1, with A and B stored transposed; dropout on the input of
A alone as in microsoft/LoRA's loralib; Kalajdzievski 2023, arXiv:2312.03732 (rslora).
The gradient is written by hand in fast.py; LinearLoRA.plain is the same formula with autograd's gradient.
Left out: several adapters on one layer, quantised weights.
"""

import math
from functools import cache, partial
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from lora_torch.checks import is_finite, is_size, require
from lora_torch.fast import FrozenLinearLoRA
from lora_torch.merging import merge_after_load, merged_weight, save_unmerged, unmerge_before_load

_require = partial(require, "LinearLoRA")

# Of A only, (in, rank). The paper says "random Gaussian" and names no width. torch takes a tensor's last dimension for
# its fan-in, here the rank: the first two give fan-in = in themselves, "kaiming_rank" is torch's call as it stands.
INITS = {
    "gaussian": lambda A: nn.init.normal_(A, std=1 / math.sqrt(A.shape[0])),
    # kaiming_uniform_(a=√5) on loralib's and PEFT's (rank, in)
    "kaiming_uniform": lambda A: nn.init.uniform_(A, -1 / math.sqrt(A.shape[0]), 1 / math.sqrt(A.shape[0])),
    "kaiming_rank": lambda A: nn.init.kaiming_normal_(A, a=0.01),
}
SCALINGS = {
    "standard": lambda alpha, rank: alpha / rank,
    "rslora": lambda alpha, rank: alpha / math.sqrt(rank),
}


class LoRA(NamedTuple):
    """What lora_torch.transformer puts around a linear layer; scale is what A B is multiplied by, not alpha."""

    rank: int
    scale: float


class LinearLoRA(nn.Module):
    """A frozen nn.Linear, `pre_trained_weight`, and the trainable `lora_A` (in, rank) and `lora_B` (rank, out).

    `dropout` acts on the input of A alone, in training alone, and divides by 1 − dropout what it keeps. `alpha` may
    be 0 or negative. `device` and `dtype` are those of every tensor; a layer whose A and B are later given a wider
    dtype still answers in that of its frozen layer.

    The layer takes the fast path (fast.py) where it is valid: at most A and B train, all is of one dtype or under autocast,
    no part of the layer was replaced or has hooks, and nobody traces or transforms the call. Elsewhere, and everywhere with
    `fast = False`, it takes `plain`. After the same seed both drop the same elements of an x that is contiguous, on the CPU.

    merge() puts another Parameter into `pre_trained_weight.weight` and unmerge() puts the first one back: W returns
    bit for bit, and another module that shares W never sees the merge. state_dict and load_state_dict of this layer,
    or of a parent, hold W, merged or not: pre_trained_weight.weight, pre_trained_weight.bias, lora_A, lora_B. Loading
    into a merged layer leaves it merged, with what was loaded; a state of another shape is a RuntimeError, and changes
    nothing of this layer.

    Raises ValueError naming the argument that is out of range, what came, what was expected and why.
    """

    fast: bool = True
    one_pass: bool = False  # dy Bᵀ and dB by the Triton kernel of kernels.py, on CUDA; off until it is measured to pay
    unmerged_weight: Tensor | None  # W while merged, else None
    lora_A: nn.Parameter
    lora_B: nn.Parameter

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        alpha: float,
        bias: bool = True,
        dropout: float = 0.0,
        scaling: str = "standard",
        init: str = "gaussian",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _require(is_size(in_features), "in_features", in_features, "an integer ≥ 1", "W is (out, in)")
        _require(is_size(out_features), "out_features", out_features, "an integer ≥ 1", "W is (out, in)")
        _require(is_size(rank), "rank", rank, "an integer ≥ 1", "A is (in, rank) and scale divides by it")
        _require(isinstance(bias, bool), "bias", bias, "True or False", "its values go into pre_trained_weight.bias")
        _require(is_finite(alpha), "alpha", alpha, "a finite number", "scale is a multiple of it")
        valid = is_finite(dropout) and 0 <= dropout < 1
        _require(valid, "dropout", dropout, "a number in [0, 1)", "what it keeps is divided by 1 − dropout")
        _require(scaling in SCALINGS, "scaling", scaling, f"one of {', '.join(SCALINGS)}", "it makes scale from alpha")
        _require(init in INITS, "init", init, f"one of {', '.join(INITS)}", "it draws A")

        self.in_features, self.out_features, self.rank = int(in_features), int(out_features), int(rank)
        self.alpha, self.scaling, self.init = alpha, scaling, init
        self.scale = float(SCALINGS[scaling](alpha, self.rank))
        self.pre_trained_weight = nn.Linear(self.in_features, self.out_features, bias, device, dtype)
        self.pre_trained_weight.requires_grad_(False)
        self.lora_A = nn.Parameter(torch.empty(self.in_features, self.rank, device=device, dtype=dtype))
        self.lora_B = nn.Parameter(torch.empty(self.rank, self.out_features, device=device, dtype=dtype))
        self.lora_dropout = nn.Dropout(dropout)
        self.reset_parameters()

        # A buffer, so that W follows the layer through .to(), deepcopy and pickle; not persistent: no file holds it.
        self.register_buffer("unmerged_weight", None, persistent=False)
        self._was_merged = False
        self.register_state_dict_post_hook(save_unmerged)
        self.register_load_state_dict_pre_hook(unmerge_before_load)
        self.register_load_state_dict_post_hook(merge_after_load)

    def reset_parameters(self) -> None:
        """Draw A anew and set B to zero; W and b stay."""
        INITS[self.init](self.lora_A)
        nn.init.zeros_(self.lora_B)

    def forward(self, x: Tensor) -> Tensor:
        """x (…, in) → y (…, out), in the dtype of the frozen layer's output. ValueError if x does not end in `in`."""
        if x.dim() == 0 or x.shape[-1] != self.in_features:
            raise ValueError(
                f"LinearLoRA.forward: x is {tuple(x.shape)}, expected (…, in) = (…, {self.in_features}), because W is "
                f"(out, in) = {(self.out_features, self.in_features)}"
            )
        base, dropout = self.pre_trained_weight, self.lora_dropout
        if not self.fast or self.merged or not _is_bare(base, nn.Linear) or not _is_bare(dropout, nn.Dropout):
            return self.plain(x)
        W, b, A, B = base.weight, base.bias, self.lora_A, self.lora_B
        to, rate = _autocast_dtype(x), dropout.p if dropout.training else 0.0
        if not _fast_is_valid(x, W, b, A, B, to, rate):
            return self.plain(x)
        if to is not None:
            x, W, b = x.to(to), W.to(to), None if b is None else b.to(to)
        one_pass = self.one_pass and x.is_cuda and x.dtype != torch.float64 and self.rank <= 128 and _has_triton()
        y = FrozenLinearLoRA.apply(x, W, b, A, B, self.scale, rate, one_pass)    # (n, out)
        return y if x.dim() == 2 else y.view(*x.shape[:-1], self.out_features)    # (…, out)

    def plain(self, x: Tensor) -> Tensor:
        """The same as forward, as a formula that autograd differentiates: x (…, in) → y (…, out)."""
        y = self.pre_trained_weight(x)    # (…, out)
        if self.merged:
            return y
        h = self.lora_dropout(x).to(self.lora_A.dtype) @ self.lora_A    # (…, rank)
        # One fused pass: in half precision the scaled product is added before it is rounded.
        return torch.add(y, h @ self.lora_B, alpha=self.scale).to(y.dtype)    # (…, out)

    @property
    def merged(self) -> bool:
        return self.unmerged_weight is not None

    @torch.no_grad()
    def merge(self) -> None:
        """Put W + scale · (A B)ᵀ into pre_trained_weight.weight; A, B and b stay. RuntimeError if merged already."""
        if self.merged:
            raise RuntimeError(
                "LinearLoRA.merge: the layer is merged, expected an unmerged one, because A B would be added twice"
            )
        W = self.pre_trained_weight.weight
        merged = merged_weight(W, self.lora_A, self.lora_B, self.scale)    # (out, in)
        # register_buffer, for `self.unmerged_weight = W` would make the Parameter W a parameter of this module.
        self.register_buffer("unmerged_weight", W, persistent=False)
        self.pre_trained_weight.weight = nn.Parameter(merged, requires_grad=False)

    def unmerge(self) -> None:
        """Put W back as it was, bit for bit, whatever A and B are by now. RuntimeError if the layer is not merged."""
        W = self.unmerged_weight
        if W is None:
            raise RuntimeError(
                "LinearLoRA.unmerge: the layer is not merged, expected a merged one, because there is no W to put back"
            )
        # The same Parameter as before merge(), unless .to() has made another tensor of it meanwhile.
        self.pre_trained_weight.weight = W if isinstance(W, nn.Parameter) else nn.Parameter(W, requires_grad=False)
        self.unmerged_weight = None

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}, alpha={self.alpha}, "
            f"scale={self.scale:g}, scaling={self.scaling}, init={self.init}, merged={self.merged}"
        )


def around(linear: nn.Linear, method: LoRA) -> LinearLoRA:
    """A LinearLoRA whose frozen layer is `linear` itself."""
    require("LoRA", is_size(method.rank), "rank", method.rank, "an integer ≥ 1", "A is (in, rank)")
    require("LoRA", is_finite(method.scale), "scale", method.scale, "a finite number", "A B is multiplied by it")
    W, alpha = linear.weight, method.scale * method.rank
    layer = LinearLoRA(
        linear.in_features, linear.out_features, method.rank, alpha, linear.bias is not None, device=W.device, dtype=W.dtype
    )
    layer.pre_trained_weight = linear.requires_grad_(False)
    layer.scale = float(method.scale)  # alpha / rank may be a rounding away from it
    return layer


def _fast_is_valid(
    x: Tensor, W: Tensor, b: Tensor | None, A: Tensor, B: Tensor, to: torch.dtype | None, rate: float
) -> bool:
    """to: see _autocast_dtype; rate: the probability with which this call drops."""
    dtype = x.dtype
    return (
        # One dtype: a wider A and B are there to be computed with. Autocast casts all but float64.
        (dtype == W.dtype == A.dtype == B.dtype if to is None else torch.float64 not in (W.dtype, A.dtype, B.dtype))
        and dtype.is_floating_point
        and not W.requires_grad and not (b is not None and b.requires_grad)
        and rate < 1 and not (rate and _draws_cannot_be_repeated(x))
        # A subclass of Tensor, quantised or distributed, may know the operations of the plain path alone.
        and all(type(t) in (Tensor, nn.Parameter) for t in (x, W, A, B)) and x.layout == W.layout == torch.strided
        # So may who traces or transforms the call.
        and not torch.compiler.is_compiling() and not torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
        and forward_ad._current_level < 0 and not torch._C._are_functorch_transforms_active()
    )


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def _is_bare(module: nn.Module, kind: type) -> bool:
    """Whether to call it is to call its forward method, as torch has it, and nothing else."""
    return type(module) is kind and "forward" not in module.__dict__ and not (
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
        or nn.modules.module._has_any_global_hook()
    )


def _autocast_dtype(x: Tensor) -> torch.dtype | None:
    """To what autocast casts the input of a linear layer, if it is on: it leaves float64 alone."""
    device = x.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device) or x.dtype == torch.float64:
        return None
    return torch.get_autocast_dtype(device)


def _draws_cannot_be_repeated(x: Tensor) -> bool:
    return x.device.type not in ("cpu", "cuda") or (x.is_cuda and torch.cuda.is_current_stream_capturing())
