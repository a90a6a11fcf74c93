"""Makes the module that computes y, by a plan and in a way: see arguments.py and ways.py."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from conformance.drivers.look.arguments import PLACE, Plan
from conformance.drivers.look.ways import Model, ways
from conformance.subject import LayerConfig
from conformance.torch import set_seed

GIVEN = "is_given"  # an attribute of the parameters of the layer that a call gets


@contextmanager
def _default(dtype: torch.dtype):
    usual = torch.get_default_dtype()
    if dtype == torch.float64:  # a buffer made in float32 would lose digits before .to()
        torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(usual)


def each(plan: Plan, config: LayerConfig, place: str = PLACE, frozen: bool = False) -> Iterator[tuple[str, nn.Module]]:
    """The modules that may compute y after one call: see ways.py. With `frozen` the layer that the call gets does not train.
    Raises Unsupported, and whatever the call raises."""
    set_seed(config)
    dtype, device = getattr(torch, config.dtype), torch.device(config.device)
    with _default(dtype):
        linear = nn.Linear(config.in_features, config.out_features, config.bias, device=device, dtype=dtype)
        linear.requires_grad_(not frozen)
        for parameter in linear.parameters():
            setattr(parameter, GIVEN, True)
        model = Model(linear, place)
        made = plan.built(config, linear, model)
    for words, module in ways(made, linear, model):
        yield words, module.to(device=device, dtype=dtype)


def module_of(plan: Plan, config: LayerConfig, way: str, place: str = PLACE, frozen: bool = False) -> nn.Module:
    """The module that computes y in this way; the ways after it are not tried."""
    for words, module in each(plan, config, place, frozen):
        if words == way:
            return module
    raise RuntimeError(f"{plan.words} no longer gives {way or 'a module'}")
