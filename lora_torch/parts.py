"""The modules of one adapter, and what a model with adapters remembers: how they come into the model.

`parts` makes the modules of a new adapter outside of the model, after it has tested all that can be refused. `put` puts them in
at once. `parts_of` finds those of an adapter that is there.
"""

from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lora_torch.adapted import FACTORS, Adapted, Adapter, Kept
from lora_torch.checks import require
from lora_torch.merging import put_at_once
from lora_torch.settings import Settings
from lora_torch.targets import bare, find, walk

_require = partial(require, "attach")


@dataclass
class Attached:
    """What the modules alone do not say of a model with adapters. It is `model.lora_attached`."""

    settings: dict[str, Settings]  # by adapter
    trained: frozenset[str]  # the parameters that trained before
    biases: dict[str, Tensor]  # the numbers of the biases that train, as they were before


class Parts(NamedTuple):
    """The modules of one adapter, by the names of those that they are for."""

    adapters: dict[str, Adapter]
    kept: dict[str, nn.Module]


def state_of(model: nn.Module) -> Attached:
    return getattr(model, "lora_attached", Attached({}, frozenset(), {}))


def named_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """One that has several names under each of them: a merge may give them different numbers."""
    return list(model.named_parameters(remove_duplicate=False))


def refuse_merged(model: nn.Module, caller: str) -> None:
    """RuntimeError if the model is merged: W is not in its place."""
    if any(layer.merged for layer in adapted(model)):
        raise RuntimeError(f"{caller}: the model is merged, expected an unmerged one, because W is not in its place")


def adapted(model: nn.Module) -> list[Adapted]:
    return [place.module for _, place in walk(model) if isinstance(place.module, Adapted)]


def parts(model: nn.Module, name: str, settings: Settings, init: str | None, dtype: torch.dtype | None) -> Parts:
    """The modules of a new adapter, which are not in the model yet: without `init`, A and B are on the meta device. ValueError
    if the model cannot have them."""
    state = state_of(model)
    _require(isinstance(name, str) and name != "" and "." not in name, "name", name, "a word without a dot", "keys contain it")
    _require(name not in state.settings, "name", name, "a new one", f"the model has adapters {', '.join(state.settings)}")
    _require(dtype is None or dtype in FACTORS, "dtype", dtype, "a dtype of floating-point numbers", "A and B have it")
    elsewhere = not state.settings and any(isinstance(module, Adapted | Kept) for module in model.modules())
    _require(not elsewhere, "model", type(model).__name__, "the module that was attached to", "a part of it has adapters")
    biased = [settings.bias, *(other.bias for other in state.settings.values())]
    alone = len(biased) == 1 or set(biased) == {"none"}
    _require(alone, "bias", settings.bias, "none in all adapters of a model of several", "a bias of the model has one value")
    refuse_merged(model, "attach")
    found, kept = find(model, settings)
    return Parts(
        {path: Adapter(bare(place.module), *settings.of(path), settings.dropout, settings.scaling, init, dtype)
         for path, place in found.items()},
        {path: deepcopy(place.module.original if isinstance(place.module, Kept) else place.module)
         for path, place in kept.items()},
    )


def put(model: nn.Module, name: str, settings: Settings, new: Parts) -> None:
    """Put the parts of a new adapter into the model, all of them at once, and freeze the model's own parameters."""
    state, places, changes = state_of(model), dict(walk(model)), []
    if not state.settings:
        state = Attached({}, frozenset(n for n, p in named_parameters(model) if p.requires_grad), {})
        model.requires_grad_(False)
    for of, wrapper, inside in ((new.adapters, Adapted, "adapters"), (new.kept, Kept, "copies")):
        for path, module in of.items():
            parent, child, there = places[path]
            wrapped = there if isinstance(there, wrapper) else wrapper(there)
            changes += [(getattr(wrapped, inside)._modules, {name: module}), (parent._modules, {child: wrapped})]
    own = {path: bias.detach().clone() for path, bias in biases(model, settings, new).items()}
    after = Attached({**state.settings, name: settings}, state.trained, {**state.biases, **own})
    put_at_once(*changes, (model.__dict__, {"lora_attached": after}))


def biases(model: nn.Module, settings: Settings, of: Parts) -> dict[str, Tensor]:
    """The biases of the model that train with this adapter, by their names in a model without adapters."""
    modules = {path: bare(place.module) for path, place in walk(model) if not isinstance(place.module, Kept)} | {"": model}
    found = {}
    for path, module in modules.items():
        trains = path in of.adapters if settings.bias == "lora_only" else settings.bias == "all"
        bias = module._parameters.get("bias")
        if trains and bias is not None:
            found[f"{path}.bias".removeprefix(".")] = bias
    return found


def parts_of(model: nn.Module, name: str) -> Parts:
    """The modules of an adapter that the model has. ValueError if it has none of this name."""
    have = state_of(model).settings
    expected = f"one of {', '.join(have) or 'no names'}"
    require("lora_torch", name in have, "name", name, expected, "the model has these adapters")
    own = Parts({}, {})
    for path, place in walk(model):
        if isinstance(place.module, Adapted) and name in place.module.adapters:
            own.adapters[path] = place.module.adapters[name]  # pyright: ignore[reportArgumentType]
        elif isinstance(place.module, Kept) and name in place.module.copies:
            own.kept[path] = place.module.copies[name]
    return own
