"""How a module is merged and unmerged, and what its modes do: methods and functions whose names say so, believed if they move
numbers.

A call is written as a user would write it: `merge()` of the module, `q_proj.merge()` of a part, `lora.merge_to(linear)` with
the layer that holds W, and `merge_lora(module)` for a function beside the class.
"""

import inspect
from collections.abc import Callable
from contextlib import suppress
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from conformance.drivers.look.arguments import Plan
from conformance.drivers.look.names import MERGES, harmless
from conformance.drivers.look.plans import signature
from conformance.torch import TorchLayer

UNDOES = ("unmerge", "unfuse", "unfold", "unbake", "demerge", "defuse", "un_merge", "un_fuse", "restore")
MODES = ("eval()", "train()")
NO_ACTION = ("is_", "can_", "set_", "get_", "should_", "_is", "__", "test")  # how other names begin


class Methods(NamedTuple):
    """The calls that merge and unmerge: "merge()", "fuse_lora()", "eval()", … Each is "" if there is none. `notes` tells what
    else was seen."""

    merge: str = ""
    unmerge: str = ""
    notes: tuple[str, ...] = ()


def found_methods(make: Callable[[], TorchLayer], beside: dict[str, Any]) -> Methods:
    """What the methods of the layer do, and the functions `beside` its class. `make` makes a layer anew, with W, b, A and B
    set, for each trial."""
    layer, notes, half = make(), [], ""
    for call in (*_named(layer.module, beside, MERGES, UNDOES), MODES[0]):
        layer = make()
        before, parts = _state(layer), len(list(layer.module.modules()))
        try:
            result = called(layer.module, call, beside)
        except Exception as error:
            notes.append(f"{call} raises {type(error).__name__}")
            continue
        try:
            moved = _state(layer)
        except AttributeError:
            moved = None
        if moved is None or len(list(layer.module.modules())) > parts:
            notes.append(f"{call} puts another module in the place of the layer")
            continue
        if isinstance(result, nn.Module) and result is not layer.module:
            also = ", and changes W in the layer, too" if moved[0] != before[0] else ""
            notes.append(f"{call} gives another module{also}")
            continue
        if moved == before:
            away = _replaces(make().module, call, beside)
            said = "puts another module in the place of the layer" if away else "changes nothing"
            notes += [f"{call} {said}"] if call not in MODES else []
            continue
        if call.endswith("(module)") and _replaces(make().module, call, beside):
            notes.append(f"{call} puts another module in the place of the layer")
            continue
        for back in (*_named(layer.module, beside, UNDOES, ()), MODES[1]):
            with suppress(Exception):
                again = make()
                called(again.module, call, beside)
                called(again.module, back, beside)
                if _state(again) != moved:
                    return Methods(call, back, tuple(notes))
        half = half or call
    if half:
        notes.append(f"{half} merges, and nothing undoes it")
    return Methods(half, "", tuple(notes))


def switches_of_merging(plan: Plan) -> list[str]:
    """The arguments that are False unless the caller says otherwise, and whose names say that they are about merging."""
    return [a.name for a in signature(plan.call)[0] if a.default is False and a.name not in (*plan.roles, *plan.literals)
            and any(word in a.name.lower() for word in MERGES)]


def called(module: nn.Module, call: str, beside: dict[str, Any]) -> Any:
    """What the call gives. Modes are called as a user calls them."""
    name, given = call.removesuffix(")").split("(")
    if given == "module":
        return beside[name](module)
    method = attrgetter(name)(module)
    return method(attrgetter(given)(module)) if given else method()


def _named(module: nn.Module, beside: dict[str, Any], words: tuple[str, ...], but: tuple[str, ...]) -> list[str]:
    """Calls whose names hold one of the words, and that need no argument beyond the module, or the layer with W: the likeliest
    first."""
    found: list[tuple[tuple, str]] = []

    def add(name: str, function: Any, own: int, order: tuple, place: str = "") -> None:
        text = name.lower()
        wanted = any(word in text for word in words) and not any(word in text for word in but)
        if not inspect.isfunction(function) or not wanted or text.startswith(NO_ACTION) or not harmless(name):
            return
        needed = [p for p in list(inspect.signature(function).parameters.values())[own:]
                  if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        given = "module" if not place and own == 0 else "linear" if needed and hasattr(module, "linear") else ""
        if len(needed) == bool(given):
            found.append(((*order, name.startswith("_"), len(name), name), f"{place}{name}({given})"))

    for path, part in module.named_modules():
        for name in dir(type(part)):
            if not hasattr(nn.Module, name):
                add(name, getattr(type(part), name), 1, (0, path.count(".") + bool(path)), f"{path}." if path else "")
    for name, function in beside.items():
        add(name, function, 0, (1, 0))
    return [call for _, call in sorted(found)]


def _replaces(module: nn.Module, call: str, beside: dict[str, Any]) -> bool:
    """Whether a function puts another module in the place of this one in a model that holds it."""
    model = nn.ModuleDict({"layer": module})
    if call.endswith("(module)"):
        with suppress(Exception):
            called(model, call, beside)
    return model["layer"] is not module


def _state(layer: TorchLayer) -> tuple[bytes, ...]:
    """W, and the flags and numbers of the module, but not those of torch's own parts, such as a rate of dropout."""
    parts = ((path, part) for path, part in layer.module.named_modules() if not type(part).__module__.startswith("torch."))
    flags = sorted((f"{path}.{name}", value) for path, part in parts for name, value in vars(part).items()
                   if isinstance(value, bool | int | float) and name != "training")
    return layer.weight().tobytes(), repr(flags).encode()


def adds_its_part(layer: TorchLayer) -> bool:
    """Whether B moves y in training mode."""
    layer.train(True)
    x = np.ones((2, 3, layer.weight().shape[1]), layer.weight().dtype)
    before, B = layer.forward(x), layer.adapter()["B"]
    layer.set_adapter({"A": layer.adapter()["A"], "B": -B})
    return not np.array_equal(before, layer.forward(x))


def small_numbers(layer: TorchLayer) -> None:
    """Sets W, b, A and B to small whole numbers."""
    rng = np.random.default_rng(1)
    shapes = {name: tuple(layer.tensor(name).shape) for name in layer.paths}
    have = {name: rng.integers(1, 4, shape).astype(layer.weight().dtype) for name, shape in shapes.items()}
    layer.set_base(have["W"], have.get("b"))
    layer.set_adapter({"A": have["A"], "B": have["B"]})
