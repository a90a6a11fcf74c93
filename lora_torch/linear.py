"""LoRA: a frozen linear layer and a trained product of two thin matrices beside it.

    y  = x Wᵀ + b + scale · (dropout(x) A) B        W' = W + scale · (A B)ᵀ

    x (…, in)   W (out, in)   b (out)   A (in, rank)   B (rank, out)   y (…, out)
    scale = alpha / rank ("standard")  or  alpha / √rank ("rslora")

B starts at zero, so a new layer computes what its frozen layer computes; LinearLoRA says how exactly.

Sources: Hu et al. 2021, arXiv:2106.09685, equation 3 and §4.1, with A and B stored transposed; dropout on the input of
A alone as in microsoft/LoRA's loralib; Kalajdzievski 2023, arXiv:2312.03732 (rslora).
In fast.py the gradient is written by hand. LinearLoRA.plain is the same formula, and autograd differentiates it.
Left out: several adapters on one layer, quantised weights.
"""

import math
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lora_torch.checks import is_finite, is_size, require
from lora_torch.merging import copy_at_once, load_at_once, merged_weight, put_turned, save_unmerged
from lora_torch.paths import SMALL, are_bare, fast, is_traced, small

_require = partial(require, "LinearLoRA")

# How A (in, rank) is drawn. The paper says "random Gaussian" and names no width. torch's functions take the last dimension
# of a tensor for its fan-in, which here is the rank. The first two use fan-in = in; "kaiming_rank" is torch's call as it is.
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


TRIES = 100  # of a call that another thread disturbs by merging or unmerging


class LinearLoRA(nn.Module):
    """A frozen nn.Linear, `pre_trained_weight`, and the trainable `lora_A` (in, rank) and `lora_B` (rank, out).

    `dropout` acts on the input of A alone, and only in training. It divides what it keeps by 1 − dropout. `alpha` may be 0
    or negative. All tensors have `device` and `dtype`. If A and B are given a wider dtype later, the output still has the
    dtype of the frozen layer.

    A new layer gives what its frozen layer gives. On the CPU the outputs are equal bit for bit. On CUDA they are equal where
    every sum is exact. Where sums are rounded, both are within the bounds of rounding, and they may differ in the last bits:
    cuBLAS may sum in another order when it adds to numbers that are there.

    `fast` says how a call is computed; paths.py has the three ways. None, the default: a small layer takes two products and
    one addmm_, a larger one the fast path of fast.py. True: the fast path at every size. False: `plain` always. What a way is
    not valid for goes to `plain`. The fast path is valid if at most A and B train, all tensors have one dtype or autocast is
    on, no part of the layer was replaced or has hooks, and nobody traces or transforms the call. On the CPU, after the same
    seed, all ways drop the same elements of a contiguous x.

    merge() puts another Parameter into `pre_trained_weight.weight`, and unmerge() puts the first one back. So W returns bit
    for bit, and another module that shares W never sees the merge. Beside the merged weight a merge allocates one tile of
    2 MiB and thin parts of A and B.

    state_dict and load_state_dict of this layer, or of a parent, hold W itself, whether the layer is merged or not. The keys
    are pre_trained_weight.weight, pre_trained_weight.bias, lora_A and lora_B. A merged layer that loads a state stays merged,
    with what was loaded. Something else than a tensor, or one of another shape, is a RuntimeError and changes nothing of this
    layer. Under its own load_state_dict, a key that lacks or is unknown changes nothing either. Under that of a parent, torch
    finds such keys after it has loaded all others. Of its own modules torch loads what fits, and complains then.

    merge(), unmerge(), reset_parameters() and loading are whole or not at all: whatever interrupts them, an exception of any
    kind at any place, the layer is as it was before or as it is after. Other threads may call the layer meanwhile, and each
    call sees it merged or unmerged. If two threads merge or unmerge it at once, one of them gets a RuntimeError. Loading and
    reset_parameters() write into tensors that a call may be reading, as torch does in every module.

    Raises ValueError naming the argument that is out of range, what came, what was expected and why.
    """

    fast: bool | None = None
    one_pass: bool = False  # on the fast path on CUDA: dy Bᵀ and dB by the Triton kernel of kernels.py. Not measured yet
    unmerged_weight: Tensor | None  # W while merged, else None
    _turns: list[int]  # one number: how often the layer was turned, merged or unmerged
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
        _require(isinstance(bias, bool), "bias", bias, "True or False", "its values go into pre_trained_weight.bias")
        _check_choices(rank, alpha, dropout, scaling, init)
        self._build(nn.Linear(int(in_features), int(out_features), bias, device, dtype), rank, alpha, dropout, scaling, init)

    @classmethod
    def around(
        cls, linear: nn.Linear, rank: int, alpha: float, dropout: float = 0.0, scaling: str = "standard", init: str = "gaussian"
    ) -> "LinearLoRA":
        """A layer whose frozen layer is `linear` itself: it keeps its weights, dtype, device and mode, and is frozen."""
        fits = isinstance(linear, nn.Linear) and linear.weight.is_floating_point()
        _require(fits, "linear", linear, "an nn.Linear of floating-point numbers", "A and B get its sizes, dtype and device")
        _check_choices(rank, alpha, dropout, scaling, init)
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer._build(linear, rank, alpha, dropout, scaling, init)
        return layer

    def _build(self, linear: nn.Linear, rank: int, alpha: float, dropout: float, scaling: str, init: str) -> None:
        self.in_features, self.out_features, self.rank = linear.in_features, linear.out_features, int(rank)
        self.alpha, self.scaling, self.init = alpha, scaling, init
        self.scale = float(SCALINGS[scaling](alpha, self.rank))
        self.pre_trained_weight, W = linear, linear.weight
        self.lora_A = nn.Parameter(W.new_empty(self.in_features, self.rank))
        self.lora_B = nn.Parameter(W.new_empty(self.rank, self.out_features))
        self.lora_dropout = nn.Dropout(dropout)
        self.train(linear.training)
        self.reset_parameters()

        # A buffer, so that W follows the layer through .to(), deepcopy and pickle; not persistent: no file holds it.
        self.register_buffer("unmerged_weight", None, persistent=False)
        self._turns = [0]
        self.register_state_dict_post_hook(save_unmerged)
        linear.requires_grad_(False)  # at the end: where no layer is made, it stays as it was

    def reset_parameters(self) -> None:
        """Draw A anew and set B to zero; W and b stay."""
        A = torch.empty_like(self.lora_A, requires_grad=False)
        INITS[self.init](A)
        copy_at_once([self.lora_A, self.lora_B], [A, torch.zeros_like(self.lora_B, requires_grad=False)])

    def forward(self, x: Tensor) -> Tensor:
        """x (…, in) → y (…, out), in the dtype of the frozen layer's output. ValueError if x does not end in `in`."""
        if x.dim() == 0 or x.shape[-1] != self.in_features:
            raise ValueError(
                f"LinearLoRA.forward: x is {tuple(x.shape)}, expected (…, in) = (…, {self.in_features}), because W is "
                f"(out, in) = {(self.out_features, self.in_features)}"
            )
        y = None
        if self.fast is not False and not is_traced():
            is_small = self.fast is None and x.numel() * self.out_features < SMALL
            y = small(self, x, self.scale) if is_small else self._fast(x)
        return self.plain(x) if y is None else y

    def _fast(self, x: Tensor) -> Tensor | None:
        """The same as forward by fast.py. None where that is not valid."""
        base, dropout = self.pre_trained_weight, self.lora_dropout
        if not are_bare(base, dropout):
            return None
        W, b, A, B = base.weight, base.bias, self.lora_A, self.lora_B
        if self.merged or base.weight is not W:  # looked up twice, as in paths.small
            return None
        return fast(x, W, b, A, B, self.scale, dropout.p if dropout.training else 0.0, self.one_pass)

    def plain(self, x: Tensor) -> Tensor:
        """The same as forward, as a formula that autograd differentiates: x (…, in) → y (…, out)."""
        y, merged = self._frozen(x)    # (…, out)
        if merged:
            return y
        h = self.lora_dropout(x).to(self.lora_A.dtype) @ self.lora_A    # (…, rank)
        # One fused pass: in half precision the scaled product is added before it is rounded.
        return torch.add(y, h @ self.lora_B, alpha=self.scale).to(y.dtype)    # (…, out)

    def _frozen(self, x: Tensor) -> tuple[Tensor, bool]:
        """What the frozen layer gives, and whether its weight was the merged one."""
        if is_traced():  # by one thread; and each number of turns would be traced anew
            return self.pre_trained_weight(x), self.merged
        for _ in range(TRIES):
            turn, merged = self._turns[0], self.merged
            y = self.pre_trained_weight(x)    # (…, out)
            if self._turns[0] == turn:
                return y, merged
        raise RuntimeError(
            f"LinearLoRA.forward: the layer was merged or unmerged during each of {TRIES} calls of pre_trained_weight, "
            "expected one that is left alone, because A B is added to what the unmerged weight gives"
        )

    @property
    def merged(self) -> bool:
        return self._buffers["unmerged_weight"] is not None  # read so, it costs less than as an attribute

    def merge(self) -> None:
        """Put W + scale · (A B)ᵀ into pre_trained_weight.weight; A, B and b stay. RuntimeError if merged already."""
        turn = self._turns[0]
        if self.merged:
            raise RuntimeError(
                "LinearLoRA.merge: the layer is merged, expected an unmerged one, because A B would be added twice"
            )
        W = self.pre_trained_weight.weight
        with torch.inference_mode(False):  # no backward pass may use a tensor that was made under inference_mode
            merged = nn.Parameter(merged_weight(W, self.lora_A, self.lora_B, self.scale), requires_grad=False)    # (out, in)
        put_turned(self, turn, merged, W)

    def unmerge(self) -> None:
        """Put W back as it was, bit for bit, whatever A and B are by now. RuntimeError if the layer is not merged."""
        turn, W = self._turns[0], self.unmerged_weight
        if W is None:
            raise RuntimeError(
                "LinearLoRA.unmerge: the layer is not merged, expected a merged one, because there is no W to put back"
            )
        # The same Parameter as before merge(), unless .to() has made another tensor of it meanwhile.
        with torch.inference_mode(False):
            unmerged = W if isinstance(W, nn.Parameter) else nn.Parameter(W, requires_grad=False)
        put_turned(self, turn, unmerged, None)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As torch's. But if it raises, nothing of this layer was changed."""
        if isinstance(state_dict, Mapping):
            metadata = dict(getattr(state_dict, "_metadata", None) or {})
            metadata[""] = {**metadata.get("", {}), "strict": strict}  # torch keeps it from the hooks
            state_dict = OrderedDict(state_dict)
            state_dict._metadata = metadata  # pyright: ignore[reportAttributeAccessIssue]
        return super().load_state_dict(state_dict, strict, assign)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        hook = self.register_load_state_dict_pre_hook(load_at_once)  # as the last, for others may give the tensors other names
        try:
            super()._load_from_state_dict(*arguments)
        finally:
            hook.remove()

    @property
    def array_names(self) -> dict[str, str | None]:
        """What a whole model calls these arrays. A merged layer has those of a linear layer alone."""
        base = {f"pre_trained_weight.{name}": name for name in ("weight", "bias")}
        return {**base, "lora_A": None if self.merged else "A", "lora_B": None if self.merged else "B"}

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}, alpha={self.alpha}, "
            f"scale={self.scale:g}, scaling={self.scaling}, init={self.init}, merged={self.merged}"
        )


def _check_choices(rank: int, alpha: float, dropout: float, scaling: str, init: str) -> None:
    _require(is_size(rank), "rank", rank, "an integer ≥ 1", "A is (in, rank) and scale divides by it")
    _require(is_finite(alpha), "alpha", alpha, "a finite number", "scale is a multiple of it")
    valid = is_finite(dropout) and 0 <= dropout < 1
    _require(valid, "dropout", dropout, "a number in [0, 1)", "what it keeps is divided by 1 − dropout")
    _require(scaling in SCALINGS, "scaling", scaling, f"one of {', '.join(SCALINGS)}", "it makes scale from alpha")
    _require(init in INITS, "init", init, f"one of {', '.join(INITS)}", "it draws A")
