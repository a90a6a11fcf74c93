"""A frozen linear layer with LoRA as one function, its gradient written by hand: the fast path of LinearLoRA.

    forward                                      backward, of dy (n, out)
    (1)  k  = mask ∘ x                           (4')  dx  = dy W                     (n, in)
    (2)  h  = scale · k A          (n, rank)     (3')  u   = scale · dy Bᵀ            (n, rank)
    (3)  y  = h B + b              (n, out)            dB  = hᵀ dy                    (rank, out)
    (4)  y += x Wᵀ                               (2')  dk  = u Aᵀ,  dA = kᵀ u         (in, rank)
                                                 (1')  dx += mask ∘ dk

    x (n, in)   W (out, in)   b (out)   A (in, rank)   B (rank, out)
    mask (n, in): 1 without dropout; else 0 with probability `rate` or 1, and `scale` is divided by 1 − rate

The cost of LoRA is memory traffic. So the thin product comes first and the product with W is added to it in place (in
backward, too: (1') before (4')): no pass over a whole matrix beside the products, and the thin part alone is rounded before
the sum. For the backward pass x, h and the parameters are kept and nothing else; the mask is drawn again, from the
state that its generator had. A and B are cast, never x.

Source of the order: Cherniuk et al. 2023, arXiv:2312.03415 (RunLoRA), forward 3. Left out: gradients of W and b, forward
mode, torch.func. LinearLoRA takes its plain path for them.
"""

from typing import Any

import torch
from torch import Tensor

from lora_torch import kernels


class FrozenLinearLoRA(torch.autograd.Function):
    """apply(x, W, b, A, B, scale, rate, one_pass) → y (n, out), of x (…, in) with n rows. W and b are in x's dtype.

    one_pass: (3') by the Triton kernel. A second derivative may be taken: h is then computed again, as a function of x and A.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, W: Tensor, b: Tensor | None, A: Tensor, B: Tensor, scale: float, rate: float, one_pass: bool
    ) -> Tensor:
        k = rows = x.reshape(-1, x.shape[-1])    # (n, in)
        state = None
        if rate:
            state = _default_generator(x.device).get_state()
            k, scale = _mask(rows, rate).mul_(rows), scale / (1 - rate)    # (1)
        h = _to_rank(k, A.to(x.dtype), scale)    # (n, rank) (2)
        del k
        y = _product(h, B.to(x.dtype)) if b is None else torch.addmm(b, h, B.to(x.dtype))    # (n, out) (3)
        y.addmm_(rows, W.t())    # (4)
        ctx.save_for_backward(x, W, A, B, h, state)
        ctx.scale, ctx.rate, ctx.one_pass = scale, rate, one_pass
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, W, A, B, h, state = ctx.saved_tensors
        x_needs, _, _, A_needs, B_needs, *_ = ctx.needs_input_grad
        k = rows = x.reshape(-1, x.shape[-1])
        if dy.stride(1) != 1 or dy.stride(0) < dy.shape[1]:
            dy = dy.contiguous()  # an expanded one, of a sum, would be copied for each product
        mask = dx = dA = dB = u = None
        if ctx.rate:
            mask = _mask(rows, ctx.rate, torch.Generator(x.device).set_state(state))
            k = mask * rows
        twice = torch.is_grad_enabled()
        if twice:
            h = _to_rank(k, A.to(x.dtype), ctx.scale)
        # (3)
        if ctx.one_pass and B_needs and (x_needs or A_needs) and not twice:
            u, dB = kernels.one_pass(dy, B.to(x.dtype), h, ctx.scale)
        else:
            if x_needs or A_needs:
                u = _to_rank(dy, B.to(x.dtype).t(), ctx.scale)    # (n, rank)
            if B_needs:
                dB = _product(h.t(), dy)    # (rank, out)
        # (2)
        if A_needs:
            dA = _of_rows(k, u).to(A.dtype)    # (in, rank)
        if x_needs:
            dx = _product(u, A.to(x.dtype).t())    # (n, in)
            # (1)
            if mask is not None:
                dx.mul_(mask)
            # (4)
            dx = dx.addmm_(dy, W).view(x.shape)
        return dx, None, None, dA, None if dB is None else dB.to(B.dtype), None, None, None


def _product(a: Tensor, b: Tensor, scale: float = 1.0) -> Tensor:
    """scale · a b. In place, which autocast leaves alone: a backward pass inside of it stays in the dtype of forward."""
    return a.new_empty(a.shape[0], b.shape[1]).addmm_(a, b, beta=0, alpha=scale)


# Measured with MKL: what is thinner than its tile of 16 columns costs up to twice as much unless it comes as rows.


def _to_rank(a: Tensor, M: Tensor, scale: float) -> Tensor:
    """scale · a M, where M (…, rank) is thin."""
    if a.device.type == "cpu" and M.shape[1] < 16:
        M = M.t().contiguous().t()
    return _product(a, M, scale)


def _of_rows(k: Tensor, u: Tensor) -> Tensor:
    """kᵀ u, where u (n, rank) is thin."""
    if k.device.type == "cpu" and u.shape[1] <= 16:
        return _product(u.t(), k).t()
    return _product(k.t(), u)


def _mask(rows: Tensor, rate: float, generator: torch.Generator | None = None) -> Tensor:
    """On the CPU the very draws of nn.Dropout."""
    return torch.empty(rows.shape, dtype=rows.dtype, device=rows.device).bernoulli_(1 - rate, generator=generator)


def _default_generator(device: torch.device) -> torch.Generator:
    if device.type == "cpu":
        return torch.default_generator
    return torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
