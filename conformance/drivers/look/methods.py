"""How a module is merged and unmerged, and what its modes do: methods whose names say so, believed if they move numbers."""

import inspect
from contextlib import suppress
from typing import NamedTuple

import numpy as np
from torch import nn

from conformance.torch import TorchLayer

MERGES = ("merge", "fuse", "fold", "bake", "absorb")
UNDOES = ("unmerge", "unfuse", "unfold", "unbake", "demerge", "defuse", "un_merge", "un_fuse", "restore")
MODES = ("eval()", "train()")


class Methods(NamedTuple):
    """The calls that merge and unmerge: "merge()", "fuse_lora()", "eval()", … Each is "" if there is none. `notes` tells what
    else was seen."""

    merge: str = ""
    unmerge: str = ""
    notes: tuple[str, ...] = ()


def found_methods(make) -> Methods:
    """What the methods of the layer do. `make` makes a TorchLayer anew, with W, b, A and B set, for each trial."""
    layer, notes, half = make(), [], ""
    for call in (*_named(layer.module, MERGES, UNDOES), MODES[0]):
        layer = make()
        before = _state(layer)
        try:
            result = called(layer.module, call)
        except Exception as error:
            notes.append(f"{call} raises {type(error).__name__}")
            continue
        if isinstance(result, nn.Module) and result is not layer.module:
            notes.append(f"{call} gives another module")
            continue
        moved = _state(layer)
        if moved == before:
            notes += [f"{call} changes nothing"] if call not in MODES else []
            continue
        for back in (*_named(layer.module, UNDOES, ()), MODES[1]):
            with suppress(Exception):
                again = make()
                called(again.module, call)
                called(again.module, back)
                if _state(again) != moved:
                    return Methods(call, back, tuple(notes))
        half = half or call
    if half:
        notes.append(f"{half} merges, and nothing undoes it")
    return Methods(half, "", tuple(notes))


def called(module: nn.Module, call: str):
    """What the method gives. Modes are called as a user calls them."""
    return getattr(module, call.removesuffix("()"))()


def _named(module: nn.Module, words: tuple[str, ...], but: tuple[str, ...]) -> list[str]:
    """The calls of methods of the module's class that need no argument and whose names hold one of the words."""
    found = []
    for name in dir(type(module)):
        text = name.lower()
        method = getattr(type(module), name)
        if hasattr(nn.Module, name) or not inspect.isfunction(method) or any(word in text for word in but):
            continue
        if any(word in text for word in words) and not text.startswith(("is_", "can_", "set_", "get_", "should_", "_is", "__")):
            needed = [p for p in inspect.signature(method).parameters.values()
                      if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
            if len(needed) == 1:
                found.append(f"{name}()")
    return sorted(found, key=lambda call: (call.startswith("_"), len(call), call))


def _state(layer: TorchLayer) -> tuple[bytes, ...]:
    """W, and the flags and numbers of the module."""
    parts = layer.module.named_modules()
    flags = sorted((f"{path}.{name}", value) for path, part in parts for name, value in vars(part).items()
                   if isinstance(value, bool | int | float) and name != "training")
    return layer.weight().tobytes(), repr(flags).encode()


def small_numbers(layer: TorchLayer) -> None:
    """Sets W, b, A and B to small whole numbers."""
    rng = np.random.default_rng(1)
    shapes = {name: tuple(layer.tensor(name).shape) for name in layer.paths}
    have = {name: rng.integers(1, 4, shape).astype(layer.weight().dtype) for name, shape in shapes.items()}
    layer.set_base(have["W"], have.get("b"))
    layer.set_adapter({"A": have["A"], "B": have["B"]})
