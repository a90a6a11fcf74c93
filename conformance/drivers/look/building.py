"""Makes the module that computes y, by a plan and in a way: see arguments.py and ways.py."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from conformance.drivers.look.arguments import PLACE, Plan
from conformance.drivers.look.names import role_of
from conformance.drivers.look.ways import Model, ways
from conformance.subject import LayerConfig, Unsupported
from conformance.torch import set_seed, to_tensor

Base = tuple[np.ndarray, np.ndarray | None]  # W and b
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


def each(plan: Plan, config: LayerConfig, place: str = PLACE, frozen: bool = False,
         base: Base | None = None) -> Iterator[tuple[str, nn.Module]]:
    """The modules that may compute y after one call: see ways.py. With `frozen` the layer that the call gets does not train;
    `base` are its W and b. Raises Unsupported, and whatever the call raises."""
    set_seed(config)
    dtype, device = getattr(torch, config.dtype), torch.device(config.device)
    with _default(dtype):
        linear = nn.Linear(config.in_features, config.out_features, config.bias, device=device, dtype=dtype)
        linear.requires_grad_(not frozen)
        for parameter, array in zip(linear.parameters(), base or (), strict=False):
            if array is not None:
                parameter.data.copy_(to_tensor(array.copy()))
        for parameter in linear.parameters():
            setattr(parameter, GIVEN, True)
        model = Model(linear, place)
        made = plan.built(config, linear, model)
    for words, module in ways(made, linear, model):
        if not plan.offers("dropout"):
            set_dropout(module, config.dropout)
        own = any(role == "dtype" and name in inspect.signature(plan.call).parameters for name, role in plan.roles.items())
        complete = plan.around == "sizes" and own and not words  # the class sees to the dtype itself
        yield words, module.to(device) if complete else module.to(device, dtype)


def set_dropout(module: nn.Module, rate: float) -> None:
    """Sets the rate where the class has one in its code. Raises Unsupported for a rate other than 0 if there is none."""
    places = dropouts(module)
    for part, name in places:
        setattr(part, name, rate)
    if rate and not places:
        raise Unsupported("dropout")


def dropouts(module: nn.Module) -> list[tuple[nn.Module, str]]:
    """The parts that hold a rate of dropout, and the attribute in each."""
    found: list[tuple[nn.Module, str]] = []
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            found.append((part, "p"))
        elif not type(part).__module__.startswith("torch."):
            found += [(part, name) for name, value in vars(part).items()
                      if role_of(name) == "dropout" and isinstance(value, float) and 0 <= value < 1]
    return found


def module_of(plan: Plan, config: LayerConfig, way: str, place: str = PLACE, frozen: bool = False,
              base: Base | None = None) -> nn.Module:
    """The module that computes y in this way; the ways after it are not tried."""
    for words, module in each(plan, config, place, frozen, base):
        if words == way:
            return module
    raise RuntimeError(f"{plan.words} no longer gives {way or 'a module'}")
