"""A frozen linear layer with LoRA as one function, its gradient written by hand: the fast path of LinearLoRA.

    forward                                      backward, of dy (n, out), each step beside the one it differentiates
    (1)  k  = mask ∘ x             (n, in)       (1')  dx  = mask ∘ dk                (n, in)
    (2)  h  = scale · k A          (n, rank)     (2')  dA  = kᵀ u,  dk = u Aᵀ         (in, rank) and (n, in)
    (3)  y  = h B + b              (n, out)      (3')  dB  = hᵀ dy,  u = scale · dy Bᵀ    (rank, out) and (n, rank)
    (4)  y += x Wᵀ                               (4')  dx += dy W

    x (n, in)   W (out, in)   b (out)   A (in, rank)   B (rank, out)
    mask (n, in): 1 without dropout; else 0 with probability `rate` or 1, and `scale` is divided by 1 − rate

What LoRA costs is memory traffic, not arithmetic. So the product with W is added in place to the thin product, or the thin
product to it, and no pass over a whole matrix stands beside the products. In half precision the thin product comes first: it is
rounded before the sum.

For the backward pass the function keeps h, and x and the parameters as far as gradients need them. Under autocast it keeps the
casts of x and W, as the frozen layer does. It does not keep the mask: backward draws it again, from the state that the
generator had.

Source of the order: Cherniuk et al. 2023, arXiv:2312.03415 (RunLoRA), forward 3. Left out: gradients of W and b, forward
mode, torch.func. LinearLoRA takes its plain path for them.
"""

from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch  # pyright: ignore[reportAttributeAccessIssue]


class FrozenLinearLoRA(torch.autograd.Function):
    """apply(x, W, b, A, B, scale, rate, one_pass) → y (n, out), of x (…, in) with n rows. W and b are in x's dtype.

    one_pass: (3') by the Triton kernel. A second derivative may be taken: h is then computed again, as a function of x and A.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, W: Tensor, b: Tensor | None, A: Tensor, B: Tensor, scale: float, rate: float, one_pass: bool
    ) -> Tensor:
        x_needs, _, _, A_needs, B_needs, *_ = ctx.needs_input_grad
        k = rows = _rows(x)    # (n, in)
        a, c, state = _cast(A, x.dtype), _cast(B, x.dtype), None
        if rate:
            default = _default_generator(x.device)
            state, own = default.get_state(), torch.Generator(x.device)
            k, scale = _mask(rows, rate, own.set_state(state)).mul_(rows), scale / (1 - rate)    # (1)
            default.set_state(own.get_state())  # as if it had drawn; another thread cannot come in between
        h = _to_rank(k, a, scale)    # (n, rank) (2)
        del k
        y = _product(h, c) if b is None else torch.addmm(b, h, c)    # (n, out) (3)
        y.addmm_(rows, W.t())    # (4)
        ctx.save_for_backward(
            x if A_needs else None, W if x_needs else None, A if x_needs or A_needs else None,
            B if x_needs or A_needs else None, h if B_needs else None, state,
        )
        ctx.shape, ctx.scale, ctx.rate, ctx.one_pass = x.shape, scale, rate, one_pass
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, W, A, B, h, state = ctx.saved_tensors
        x_needs, _, _, A_needs, B_needs, *_ = ctx.needs_input_grad
        dx = dA = dB = mask = None
        k: Any = None  # None where no gradient needs it, as h, and u
        u: Any = None
        if dy.stride(1) != 1 or dy.stride(0) < dy.shape[1]:
            dy = dy.contiguous()  # an expanded one, of a sum, would be copied for each product
        if ctx.rate and (x_needs or A_needs):
            mask = _mask(dy.new_empty(len(dy), ctx.shape[-1]), ctx.rate, torch.Generator(dy.device).set_state(state))
        if x is not None:
            k = _rows(x) if mask is None else mask * _rows(x)
        once = not torch.is_grad_enabled()
        if not once and B_needs and (x_needs or A_needs):
            if k is None:
                raise RuntimeError(
                    "LinearLoRA: a second derivative was asked for while lora_A is frozen, expected one that trains, because "
                    "h = x A depends on x, which the fast path did not keep; layer.fast = False keeps it"
                )
            h = _to_rank(k, _cast(A, dy.dtype), ctx.scale)  # the one that was kept is a constant
        # A batch of gradients, by is_grads_batched=True or by torch.func.vmap of this pass: no products in place.
        if _functorch.is_legacy_batchedtensor(dy) or _functorch.is_batchedtensor(dy):
            u = None if B is None else ctx.scale * dy @ _cast(B, dy.dtype).t()
            if x_needs:
                dk = u @ _cast(A, dy.dtype).t()
                dx = ((dk if mask is None else mask * dk) + dy @ W).view(ctx.shape)
            return dx, None, None, k.t() @ u if A_needs else None, h.t() @ dy if B_needs else None, None, None, None
        # (3')
        if ctx.one_pass and once and B_needs and (x_needs or A_needs):
            from lora_torch import kernels

            u, dB = kernels.one_pass(dy, _cast(B, dy.dtype), h, ctx.scale)
        else:
            if x_needs or A_needs:
                u = _to_rank(dy, _cast(B, dy.dtype).t(), ctx.scale)    # (n, rank)
            if B_needs:
                dB = _over_rows(h, dy)    # (rank, out)
        # (2')
        if A_needs:
            dA = _over_rows(k, u)    # (in, rank)
        if x_needs:
            a = _cast(A, dy.dtype)
            if mask is None and _is_mkl(dy):
                # (4') first: what it writes is then at hand
                dx = _product(dy, W).addmm_(u, a.t())    # (n, in)
            else:
                dx = _product(u, a.t())    # (n, in)
                # (1')
                if mask is not None:
                    dx.mul_(mask)
                # (4')
                dx.addmm_(dy, W)
            dx = dx if len(ctx.shape) == 2 else dx.view(ctx.shape)
        return dx, None, None, dA, dB, None, None, None  # a gradient in another dtype than its tensor's is cast by autograd


def _product(a: Tensor, b: Tensor, scale: float = 1.0) -> Tensor:
    """scale · a b. In place, which autocast leaves alone: a backward pass inside of it stays in the dtype of forward."""
    return a.new_empty(a.shape[0], b.shape[1]).addmm_(a, b, beta=0, alpha=scale)


# How a thin product is written decides its cost on the CPU; tests/bench/thin_products.py measures the ways. A factor of fewer
# than 16 columns can cost MKL several times as much as the same numbers in rows. A sum over many rows is one long task, which
# threads share badly; strips of columns are several.

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


def _rows(x: Tensor) -> Tensor:
    return x if x.dim() == 2 else x.reshape(-1, x.shape[-1])


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def _mask(rows: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    """Zeros and ones of the shape of rows: on the CPU the draws of nn.Dropout."""
    return torch.empty(rows.shape, dtype=rows.dtype, device=rows.device).bernoulli_(1 - rate, generator=generator)


def _default_generator(device: torch.device) -> torch.Generator:
    if device.type == "cpu":
        return torch.default_generator
    return torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
