"""How y is computed with what a call has made: by the module itself, by a linear layer that it has changed, or by both."""

import inspect
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from conformance.drivers.look.arguments import PLACE

# Methods that change another layer.
APPLIES = ("apply_to", "apply", "inject", "inject_lora", "patch", "attach", "add_lora", "enable")


MODEL = "the model whose layers it changes"
REPLACED = "the linear layer whose forward pass it replaces"
PARAMETRISED = "a linear layer whose weight it parametrises"
BESIDE = "a linear layer, to whose output it is added"


class Patched(nn.Module):
    """A linear layer whose forward pass was replaced by that of a LoRA module beside it."""

    def __init__(self, linear: nn.Module, lora: nn.Module | None = None):
        super().__init__()
        self.linear, self.lora = linear, lora

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class Beside(Patched):
    """A linear layer, and a module that computes the LoRA part alone."""

    def forward(self, x: Tensor) -> Tensor:
        assert self.lora is not None
        return self.linear(x) + self.lora(x)


class Model(nn.Module):
    """A model of one linear layer, for functions that change models."""

    def __init__(self, linear: nn.Linear, place: str = PLACE):
        super().__init__()
        self.place = place
        self.add_module(place, linear)

    def forward(self, x: Tensor) -> Tensor:
        return self.get_submodule(self.place)(x)


def ways(made: Any, linear: nn.Linear, model: Model) -> Iterator[tuple[str, nn.Module]]:
    """The modules that may compute y, the likeliest first, and in words what each of them is. Each is made when it is asked
    for, since to make one may change the linear layer."""
    if isinstance(made, nn.Module):
        made.to(linear.weight.device, linear.weight.dtype)
        yield "", made
    several = list(made.values()) if isinstance(made, dict) else list(made) if isinstance(made, list | tuple) else []
    if several and all(isinstance(one, nn.Module) for one in several):
        yield MODEL, Patched(model, nn.ModuleList(several))
        return
    if made is model or not isinstance(made, nn.Module):
        if changed(model.get_submodule(model.place), linear) or made is not model:
            yield MODEL, model
        return
    if _changes(made, linear):
        yield REPLACED, Patched(linear, made)
    with suppress(Exception):
        parametrize.register_parametrization(linear, "weight", made)
        yield PARAMETRISED, linear
    with suppress(Exception):
        parametrize.remove_parametrizations(linear, "weight", leave_parametrized=False)
    yield BESIDE, Beside(linear, made)


def changed(layer: nn.Module, linear: nn.Linear) -> bool:
    """Whether the layer is no longer the plain linear layer."""
    replaced = layer is not linear or "forward" in vars(linear)
    return replaced or bool(linear._forward_hooks) or parametrize.is_parametrized(linear)


def _changes(made: nn.Module, linear: nn.Linear) -> bool:
    """Whether the module has changed the linear layer, by itself or by a method that is there for it."""
    if changed(linear, linear):
        return True
    for name in APPLIES:
        method = getattr(type(made), name, None)
        if method is None or method is getattr(nn.Module, name, None):
            continue
        needed = [p for p in inspect.signature(method).parameters.values()
                  if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
        if len(needed) <= 2:
            with suppress(Exception):
                method(made, *[linear] * (len(needed) - 1))
                if changed(linear, linear):
                    return True
    return False
