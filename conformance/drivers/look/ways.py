"""How y is computed with what a call has made: by the module itself, by a linear layer that it has changed, or by both."""

import copy
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from conformance.drivers.look.arguments import PLACE
from conformance.drivers.look.names import role_of, switches
from conformance.drivers.look.plans import methods, parameters_of

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
        return getattr(self, self.place)(x)


def ways(made: Any, linear: nn.Linear, model: Model) -> Iterator[tuple[str, nn.Module]]:
    """The modules that may compute y, the likeliest first, and in words what each of them is. Each is made when it is asked
    for, since to make one may change the linear layer."""
    if isinstance(made, nn.Module):
        yield "", made
        made.to(linear.weight.device, linear.weight.dtype)
    inside = [] if isinstance(made, nn.Module) else modules_in(made)
    if not isinstance(made, nn.Module) and inside and model not in inside:
        yield MODEL, Patched(model, nn.ModuleList(inside))
        return
    if made is model or not isinstance(made, nn.Module):
        if changed(model.get_submodule(model.place), linear) or made is not model:
            yield MODEL, model
        return
    if changes(made, linear):
        yield REPLACED, Patched(linear, made)
    if _parametrises(made, linear):
        parametrize.register_parametrization(linear, "weight", made)
        yield PARAMETRISED, linear
        parametrize.remove_parametrizations(linear, "weight", leave_parametrized=False)
    yield BESIDE, Beside(linear, made)


def _parametrises(made: nn.Module, linear: nn.Linear) -> bool:
    """Whether it gives a weight of the same shape when it is given one. A copy is tried: it may change at its first call."""
    with suppress(Exception):
        parametrize.register_parametrization(copy.deepcopy(linear), "weight", copy.deepcopy(made))
        return True
    return False


def modules_in(made: Any, depth: int = 3) -> list[nn.Module]:
    """The modules in an object that is none: in its attributes, lists and dicts."""
    if isinstance(made, nn.Module):
        return [made]
    held = made.values() if isinstance(made, dict) else made if isinstance(made, list | tuple | set) else (
        vars(made).values() if hasattr(made, "__dict__") and not callable(made) else ())
    return [module for one in held for module in modules_in(one, depth - 1)] if depth else []


def changed(layer: nn.Module, linear: nn.Linear) -> bool:
    """Whether the layer is no longer the plain linear layer."""
    replaced = layer is not linear or "forward" in vars(linear)
    return replaced or bool(linear._forward_hooks) or parametrize.is_parametrized(linear)


def changes(made: nn.Module, linear: nn.Linear) -> bool:
    """Whether the module has changed the linear layer, by itself or by a method that is there for it. Copies are tried: a
    method that is there for something else should leave no trace."""
    if changed(linear, linear):
        return True
    for name, method in methods(type(made)).items():
        needed = [p for p in parameters_of(method)[1:] if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
        if not switches(name) or len(needed) > 1 or any(role_of(p.name) not in (None, "linear", "model") for p in needed):
            continue
        with suppress(Exception):
            one, other = copy.deepcopy((made, linear))
            method(one, *[other] * len(needed))
            if changed(other, other):
                method(made, *[linear] * len(needed))
                return True
    return False
