"""Faults of a layer that has just been built: what it holds, and what trains."""

import torch
from torch import nn

from .arrays import Arrays
from .catalogue import fault
from .patch import Patch


@fault(kills="INIT-01 INIT-03 INIT-09")
def B_not_zero(p: Patch) -> None:
    """B is random at the start, as A is."""
    p.start(lambda arrays: arrays.write("B", 0.02 * torch.randn_like(arrays["B"])))


@fault(kills="INIT-03 INIT-08 GRAD-06")
def both_factors_zero(p: Patch) -> None:
    """A and B are zero at the start: neither ever learns."""
    p.start(lambda arrays: arrays.write("A", 0 * arrays["A"]))


@fault(kills="INIT-05")
def A_of_rank_one(p: Patch) -> None:
    """All columns of A are the same at the start."""
    p.start(lambda arrays: arrays.write("A", arrays["A"][:, :1].clone().expand_as(arrays["A"])))


@fault(kills="INIT-04")
def A_never_negative(p: Patch) -> None:
    """The entries of A are all positive at the start."""
    p.start(lambda arrays: arrays.write("A", arrays["A"].abs().clone()))


@fault(kills="INIT-06")
def A_always_the_same(p: Patch) -> None:
    """Every layer starts with the same A."""
    def change(arrays: Arrays) -> None:
        generator = torch.Generator().manual_seed(0)
        A = arrays["A"]
        if A.device.type == "cpu" and A.dtype.is_floating_point:
            arrays.write("A", torch.randn(A.shape, generator=generator).to(A.dtype) / max(A.shape[0], 1) ** 0.5)

    p.start(change)


@fault(kills="PARAM-02 PARAM-01 GRAD-10 PARAM-03")
def base_not_frozen(p: Patch) -> None:
    """W trains."""
    p.start(lambda arrays: _trains(arrays, "W", True))


@fault(kills="PARAM-02 PARAM-01 GRAD-10 PARAM-03")
def bias_not_frozen(p: Patch) -> None:
    """The bias of the base trains."""
    p.start(lambda arrays: _trains(arrays, "b", True))


@fault(kills="PARAM-02 PARAM-01 GRAD-02")
def A_frozen(p: Patch) -> None:
    """A does not train."""
    p.start(lambda arrays: _trains(arrays, "A", False))


@fault(kills="PARAM-02 PARAM-01 GRAD-03")
def B_frozen(p: Patch) -> None:
    """B does not train."""
    p.start(lambda arrays: _trains(arrays, "B", False))


@fault(kills="PARAM-02 PARAM-01")
def one_parameter_more(p: Patch) -> None:
    """The layer has a parameter that it does not use, and it trains."""
    p.start(lambda arrays: arrays.module.register_parameter("unused", nn.Parameter(torch.zeros(1))))


def _trains(arrays: Arrays, name: str, mode: bool) -> None:
    if name in arrays and isinstance(arrays.stored(name), nn.Parameter):
        arrays.stored(name).requires_grad_(mode)
