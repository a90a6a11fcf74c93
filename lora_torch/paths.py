"""Which way LinearLoRA computes a call, and what it tests to know.

    plain   the formula of LinearLoRA.plain, which calls the layer's parts: always valid
    small   two products and one addmm_ of torch, which autograd differentiates: the fewest calls for a layer that is small
    fast    the autograd function of fast.py: the least memory traffic for a layer that is not

`small` and `fast` read the numbers of the parts and do not call them. They are for parts that nobody changed.
"""

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from lora_torch.fast import FrozenLinearLoRA

# Below so many multiply-adds of x Wᵀ, `small` is the fastest. Measured by tests/bench/small_layers.py, on the CPU.
SMALL = 1 << 27
_TENSORS = (Tensor, nn.Parameter)


def are_bare(base: nn.Module, dropout: nn.Module) -> bool:
    """Whether calls of the two do what torch's nn.Linear and nn.Dropout do, and nothing else."""
    return type(base) is nn.Linear and type(dropout) is nn.Dropout and not (
        "forward" in base.__dict__ or "forward" in dropout.__dict__
        or base._forward_hooks or base._forward_pre_hooks or base._backward_hooks or base._backward_pre_hooks
        or dropout._forward_hooks or dropout._forward_pre_hooks or dropout._backward_hooks or dropout._backward_pre_hooks
        or nn.modules.module._has_any_global_hook()
    )


def small(layer: nn.Module, x: Tensor, scale: float) -> Tensor | None:
    """x (…, in) → y (…, out) of a LinearLoRA. None where this way is not valid.

    It reads the dictionaries in which nn.Module keeps its members: each read as an attribute costs as much as a tenth of
    the product. What is not found there was replaced by somebody.
    """
    arrays, modules = layer._parameters, layer._modules
    base, dropout = modules.get("pre_trained_weight"), modules.get("lora_dropout")
    if base is None or dropout is None:
        return None
    # The weight is looked up twice. A merged one never comes back, so it was there while the layer was found unmerged.
    W = base._parameters.get("weight")
    if layer._buffers.get("unmerged_weight") is not None or base._parameters.get("weight") is not W:
        return None
    b, A, B = base._parameters.get("bias"), arrays.get("lora_A"), arrays.get("lora_B")
    if W is None or A is None or B is None or "bias" not in base._parameters or not are_bare(base, dropout) or (
        dropout.training and dropout.p
        or not (type(x) in _TENSORS and type(W) in _TENSORS and type(A) in _TENSORS and type(B) in _TENSORS)
        or not (x.dtype == W.dtype == A.dtype == B.dtype and x.layout == W.layout == torch.strided)
        or autocast_dtype(x) is not None or _is_transformed()
    ):
        return None
    rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])    # (n, in)
    y = F.linear(rows, W, b).addmm_(torch.mm(rows, A), B, alpha=scale)    # (n, out)
    return y if x.dim() == 2 else y.view(*x.shape[:-1], y.shape[1])


def fast(
    x: Tensor, W: Tensor, b: Tensor | None, A: Tensor, B: Tensor, scale: float, rate: float, one_pass: bool = False
) -> Tensor | None:
    """x (…, in) → y (…, out) by fast.py, where `rate` of the entries of x are dropped. None where this way is not valid."""
    to = autocast_dtype(x)
    if not fast_is_valid(x, W, b, A, B, to, rate):
        return None
    if to is not None:
        x, W, b = x.to(to), W.to(to), None if b is None else b.to(to)
    one_pass = one_pass and x.is_cuda and x.dtype != torch.float64 and A.shape[1] <= 128 and has_triton()
    y = FrozenLinearLoRA.apply(x, W, b, A, B, scale, rate, one_pass)    # (n, out)
    return y if x.dim() == 2 else y.view(*x.shape[:-1], y.shape[1])    # (…, out)


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype that autocast gives to the input of a linear layer. None if it is off, or x is float64, which it leaves."""
    device = x.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device) or x.dtype == torch.float64:
        return None
    return torch.get_autocast_dtype(device)


def fast_is_valid(
    x: Tensor, W: Tensor, b: Tensor | None, A: Tensor, B: Tensor, to: torch.dtype | None, rate: float
) -> bool:
    """to: what autocast_dtype gives; rate: the probability with which this call drops."""
    dtype = x.dtype
    return (
        # One dtype: a wider A and B are there to be computed with. Autocast casts all but float64.
        (dtype == W.dtype == A.dtype == B.dtype if to is None else torch.float64 not in (W.dtype, A.dtype, B.dtype))
        and dtype.is_floating_point
        and not W.requires_grad and not (b is not None and b.requires_grad)
        and rate < 1 and not (rate and _draws_cannot_be_repeated(x))
        # A subclass of Tensor, quantised or distributed, may know the operations of the plain path alone.
        and all(type(t) in _TENSORS for t in (x, W, A, B)) and x.layout == W.layout == torch.strided
        and not _is_transformed()
    )


def is_traced() -> bool:
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]


@cache
def has_triton() -> bool:
    return find_spec("triton") is not None


def _is_transformed() -> bool:
    """Whether torch.func or forward mode is at work: they know neither fast.py nor every product in place."""
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def _draws_cannot_be_repeated(x: Tensor) -> bool:
    """A CUDA graph that is captured must take its draws from the generator that belongs to the graph."""
    return x.device.type not in ("cpu", "cuda") or (x.is_cuda and torch.cuda.is_current_stream_capturing())
