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


class FrozenLinearLoRA(torch.autograd.Function):
    """apply(x, W, b, A, B, scale, rate, one_pass) → y (n, out), of x (…, in) with n rows. W and b are in x's dtype.

    one_pass: (3') by the Triton kernel. A second derivative may be taken: h is then computed again, as a function of x and A.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, W: Tensor, b: Tensor | None, A: Tensor, B: Tensor, scale: float, rate: float, one_pass: bool
    ) -> Tensor:
        k = rows = _rows(x)    # (n, in)
        a, c, state = _cast(A, x.dtype), _cast(B, x.dtype), None
        if rate:
            state = _default_generator(x.device).get_state()
            k, scale = _mask(rows, rate).mul_(rows), scale / (1 - rate)    # (1)
        h = _to_rank(k, a, scale)    # (n, rank) (2)
        del k
        y = _product(h, c) if b is None else torch.addmm(b, h, c)    # (n, out) (3)
        y.addmm_(rows, W.t())    # (4)
        ctx.save_for_backward(x, W, A, B, h, state)
        ctx.scale, ctx.rate, ctx.one_pass = scale, rate, one_pass
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, W, A, B, h, state = ctx.saved_tensors
        x_needs, _, _, A_needs, B_needs, *_ = ctx.needs_input_grad
        k, a, c = _rows(x), _cast(A, x.dtype), _cast(B, x.dtype)
        if dy.stride(1) != 1 or dy.stride(0) < dy.shape[1]:
            dy = dy.contiguous()  # an expanded one, of a sum, would be copied for each product
        mask = dx = dA = dB = None
        if ctx.rate:
            mask = _mask(k, ctx.rate, torch.Generator(x.device).set_state(state))
            k = mask * k
        twice = torch.is_grad_enabled()
        if twice:
            h = _to_rank(k, a, ctx.scale)
        if x_needs or A_needs:
            # (3)
            if ctx.one_pass and B_needs and not twice:
                from lora_torch import kernels

                u, dB = kernels.one_pass(dy, c, h, ctx.scale)
            else:
                u = _to_rank(dy, c.t(), ctx.scale)    # (n, rank)
            # (2)
            if A_needs:
                dA = _cast(_of_rows(k, u), A.dtype)    # (in, rank)
            if x_needs:
                dx = _product(u, a.t())    # (n, in)
                # (1)
                if mask is not None:
                    dx.mul_(mask)
                # (4)
                dx = dx.addmm_(dy, W)
                dx = dx if x.dim() == 2 else dx.view(x.shape)
        if B_needs:
            dB = _cast(_product(h.t(), dy) if dB is None else dB, B.dtype)    # (rank, out)
        return dx, None, None, dA, dB, None, None, None


def _product(a: Tensor, b: Tensor, scale: float = 1.0) -> Tensor:
    """scale · a b. In place, which autocast leaves alone: a backward pass inside of it stays in the dtype of forward."""
    return a.new_empty(a.shape[0], b.shape[1]).addmm_(a, b, beta=0, alpha=scale)


# A factor of fewer than 16 columns costs MKL up to twice as much as the same numbers in rows: 16 columns are its tile.


def _to_rank(a: Tensor, M: Tensor, scale: float) -> Tensor:
    """scale · a M, where M (…, rank) is thin."""
    if M.shape[1] < 16 and a.device.type == "cpu":
        if len(a) <= 512:
            return _product(M.t(), a.t(), scale).t()
        M = M.t().contiguous().t()
    return _product(a, M, scale)


def _of_rows(k: Tensor, u: Tensor) -> Tensor:
    """kᵀ u, where u (n, rank) is thin."""
    if u.shape[1] < 16 and k.device.type == "cpu":
        return _product(u.t(), k).t()
    return _product(k.t(), u)


# What is there already is not made again: a call that changes nothing takes a microsecond, too.


def _rows(x: Tensor) -> Tensor:
    return x if x.dim() == 2 else x.reshape(-1, x.shape[-1])


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def _mask(rows: Tensor, rate: float, generator: torch.Generator | None = None) -> Tensor:
    """On the CPU the very draws of nn.Dropout."""
    return torch.empty(rows.shape, dtype=rows.dtype, device=rows.device).bernoulli_(1 - rate, generator=generator)


def _default_generator(device: torch.device) -> torch.Generator:
    if device.type == "cpu":
        return torch.default_generator
    return torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
