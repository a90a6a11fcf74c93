"""A frozen linear layer with LoRA as one function, its gradient written by hand: the fast path of LinearLoRA.

    forward                                      backward, of dy (n, out), each step beside the one it differentiates
    (1)  k  = mask ∘ x             (n, in)       (1')  dx  = mask ∘ dk                (n, in)
    (2)  h  = scale · k A          (n, rank)     (2')  dA  = kᵀ u,  dk = u Aᵀ         (in, rank) and (n, in)
    (3)  y  = h B + b              (n, out)      (3')  dB  = hᵀ dy,  u = scale · dy Bᵀ    (rank, out) and (n, rank)
    (4)  y += x Wᵀ                               (4')  dx += dy W

    x (n, in)   W (out, in)   b (out)   A (in, rank)   B (rank, out)
    mask (n, in): 1 without dropout; else 0 with probability `rate` or 1, and `scale` is divided by 1 − rate

The cost of LoRA is memory traffic, not arithmetic. The product with W is added in place to the thin one, or the thin one to
it: no pass over a whole matrix beside the products. Where the thin one comes first, as always in half precision, it alone is
rounded before the sum. For the backward pass x, h and the parameters are kept and nothing else; the mask is drawn again, from
the state that its generator had. A and B are cast, never x.

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
        dx = dA = dB = mask = None
        if dy.stride(1) != 1 or dy.stride(0) < dy.shape[1]:
            dy = dy.contiguous()  # an expanded one, of a sum, would be copied for each product
        if ctx.rate:
            mask = _mask(k, ctx.rate, torch.Generator(x.device).set_state(state))
            k = mask * k
        once = not torch.is_grad_enabled()
        if not once:
            h = _to_rank(k, a, ctx.scale)  # the one that was kept is a constant
        # (3)
        if ctx.one_pass and once:
            from lora_torch import kernels

            u, dB = kernels.one_pass(dy, c, h, ctx.scale)
        else:
            u = _to_rank(dy, c.t(), ctx.scale)    # (n, rank)
            dB = _over_rows(h, dy) if B_needs else None    # (rank, out)
        # (2)
        if A_needs:
            dA = _over_rows(k, u)    # (in, rank)
        if x_needs and mask is None and _is_mkl(dy):
            # (4) first: what it writes is then at hand
            dx = _product(dy, W).addmm_(u, a.t())    # (n, in)
        elif x_needs:
            dx = _product(u, a.t())    # (n, in)
            # (1)
            if mask is not None:
                dx.mul_(mask)
            # (4)
            dx.addmm_(dy, W)
        # A gradient in another dtype than its tensor's is cast by autograd.
        return dx if dx is None or x.dim() == 2 else dx.view(x.shape), None, None, dA, dB, None, None, None


def _product(a: Tensor, b: Tensor, scale: float = 1.0) -> Tensor:
    """scale · a b. In place, which autocast leaves alone: a backward pass inside of it stays in the dtype of forward."""
    return a.new_empty(a.shape[0], b.shape[1]).addmm_(a, b, beta=0, alpha=scale)


# How a thin product is written decides its cost on the CPU; tests/bench/thin_products.py measures the ways. A factor of fewer
# than 16 columns costs MKL up to three times as much as the same numbers in rows. A sum over many rows is one long task,
# which threads share badly; strips of columns are several.

STRIPS = 4


def _is_mkl(a: Tensor) -> bool:
    return a.device.type == "cpu" and a.element_size() >= 4


def _to_rank(a: Tensor, M: Tensor, scale: float) -> Tensor:
    """scale · a M (n, rank), where M (…, rank) is thin."""
    if M.shape[1] < 16 and _is_mkl(a):
        if len(a) <= 512:
            return _product(M.t(), a.t(), scale).t()
        M = M.t().contiguous().t()
    return _product(a, M, scale)


def _over_rows(a: Tensor, b: Tensor) -> Tensor:
    """aᵀ b (p, q), of a (n, p) and b (n, q), one of which is thin."""
    thin, wide = (a, b) if a.shape[1] <= b.shape[1] else (b, a)
    (n, width), rank = wide.shape, thin.shape[1]
    if not _is_mkl(a) or n < 128 or width % STRIPS:
        return _product(a.t(), b)
    strips = wide.view(n, STRIPS, width // STRIPS).transpose(0, 1)    # (strips, n, width / strips)
    rows = thin.t().expand(STRIPS, rank, n)
    parts = wide.new_empty(STRIPS, rank, width // STRIPS).baddbmm_(rows, strips, beta=0)
    return (parts.transpose(0, 1) if thin is a else parts.transpose(1, 2)).reshape(a.shape[1], b.shape[1])


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
