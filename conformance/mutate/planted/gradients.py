"""Faults of the backward pass. The output of the forward pass stays as it is."""

from typing import Any

import torch
from torch import Tensor

from .catalogue import fault
from .patch import Pass, Patch


def times(tensor: Tensor, factor: Any) -> Tensor:
    """The tensor, whose gradient is multiplied by the factor."""
    return tensor.detach() + (tensor - tensor.detach()) * factor


class Changed(torch.autograd.Function):
    """The tensor as it is. `change` makes its gradient from the right one."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, change: Any) -> Tensor:
        ctx.change = change
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return ctx.change(gradients[0]), None


def with_gradient(p: Patch, name: str, factor) -> None:
    """Multiplies the gradient of A or B by `factor(pass)`."""
    p.arrays_in_forward(lambda one: {name: times(one.arrays[name], factor(one))})


@fault(kills="GRAD-02 GRAD-10")
def A_without_gradient(p: Patch) -> None:
    """A gets no gradient: it is detached."""
    p.arrays_in_forward(lambda one: {"A": one.arrays["A"].detach()})


@fault(kills="GRAD-03")
def B_without_gradient(p: Patch) -> None:
    """B gets no gradient: it is detached."""
    p.arrays_in_forward(lambda one: {"B": one.arrays["B"].detach()})


@fault(kills="GRAD-02")
def gradient_of_A_without_scale(p: Patch) -> None:
    """The gradient of A lacks the scale."""
    with_gradient(p, "A", lambda one: 1 / one.scale)


@fault(kills="GRAD-03")
def gradient_of_B_without_scale(p: Patch) -> None:
    """The gradient of B lacks the scale."""
    with_gradient(p, "B", lambda one: 1 / one.scale)


@fault(kills="GRAD-02")
def gradient_of_A_twice(p: Patch) -> None:
    """The gradient of A is twice what it should be."""
    with_gradient(p, "A", lambda one: 2)


@fault(kills="GRAD-03")
def gradient_of_B_negative(p: Patch) -> None:
    """The gradient of B has the wrong sign."""
    with_gradient(p, "B", lambda one: -1)


@fault(kills="GRAD-02 GRAD-08")
def gradient_is_a_mean(p: Patch) -> None:
    """The gradient of A is divided by the number of rows."""
    with_gradient(p, "A", lambda one: one.x.shape[-1] / max(one.x.numel(), 1))


@fault(kills="GRAD-02")
def gradient_of_A_for_one_rank(p: Patch) -> None:
    """Only the first column of A gets a gradient."""
    def change(one: Pass) -> dict[str, Tensor]:
        A = one.arrays["A"]
        return {"A": times(A, (torch.arange(A.shape[1], device=A.device) < 1).to(A.dtype))}

    p.arrays_in_forward(change)


@fault(kills="GRAD-03 GRAD-04")
def upstream_gradient_ignored(p: Patch) -> None:
    """The LoRA part takes the gradient of y for ones."""
    p.forward(lambda one: one.base() + Changed.apply(one.part(), torch.ones_like))


@fault(kills="GRAD-01 GRAD-05")
def lora_path_without_dx(p: Patch) -> None:
    """The gradient of x comes from the base alone."""
    p.forward(lambda one: one.base() + one.part(one.x.detach()))


@fault(kills="GRAD-01 GRAD-05")
def base_path_without_dx(p: Patch) -> None:
    """The gradient of x comes from the LoRA part alone."""
    p.forward(lambda one: one.part() + one.base(one.x.detach()))


@fault(kills="GRAD-01 GRAD-05")
def dx_without_scale(p: Patch) -> None:
    """The gradient of x through the LoRA part lacks the scale."""
    p.forward(lambda one: one.base() + one.part(times(one.x, 1 / one.scale)))


@fault(kills="GRAD-07")
def gradients_do_not_accumulate(p: Patch) -> None:
    """A new gradient of A takes the place of the old one."""
    def change(one: Pass) -> dict[str, Tensor]:
        A = one.arrays.stored("A")
        if not A.requires_grad or not A.is_leaf:
            return {}

        def replaced(gradient: Tensor) -> Tensor:
            A.grad = None
            return gradient

        return {"A": Changed.apply(one.arrays["A"], replaced)}

    p.arrays_in_forward(change)


@fault(kills="GRAD-02 GRAD-01")
def y_without_graph(p: Patch) -> None:
    """y is detached in training mode: nothing gets a gradient."""
    p.forward(lambda one: one.y().detach() if one.module.training else one.y())


@fault(kills="GRAD-17 GRAD-04 GRAD-02 GRAD-03")
def gradients_clipped(p: Patch) -> None:
    """The gradient of B is clipped to entries between −1 and 1."""
    p.arrays_in_forward(lambda one: {"B": Changed.apply(one.arrays["B"], lambda gradient: gradient.clamp(-1, 1))})
