"""How a method comes into the transformer of transformer.py, and what its arrays are called there.

Each method has one file, and nothing else knows of it. The file holds

    Config                     a NamedTuple: what a user says of the method at one place
    places(config)             the names of all places where it can stand in a transformer of this block.Config
    put(model, config, place, method, device, dtype)
                               makes the method's module and puts it into the model at that place; `method` is its Config

A user gives {place: Config}, and the file is found as the module that the class of that Config was written in. lora.py is
the shortest example. The modules of a model are in transformer.py and block.py. There are four ways to stand in it:

    replace a linear layer                                                                     lora.py
    be in layers.{i}.adapters under one of adapter.PLACES, "/" for ".": its output is added    adapter.py
    be model.prefix: gives keys and values for every layer, and has a `length`                 prefix.py
    be model.prompt: inserts rows among the embedded tokens, and has `positions`               ptuning.py

Only the method's own arrays may train. If its module has `merge`, `unmerge` and `merged`, or `fold`, the model calls them.
The name of an array is "{place}.{name of the parameter}". A module that names them otherwise has `array_names`, a dictionary
from the path of a parameter inside of it to the name, or to None for a parameter that is no array of the method.
"""

import re
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from lora_torch import block
from lora_torch.checks import require
from lora_torch.merging import as_own, copy_at_once

Method = tuple[Any, ...]  # a Config of a method's file
_require = partial(require, "Transformer")


@runtime_checkable
class Mergeable(Protocol):
    @property
    def merged(self) -> bool: ...
    def merge(self) -> None: ...
    def unmerge(self) -> None: ...


@runtime_checkable
class Foldable(Protocol):
    def fold(self) -> None: ...


def put_methods(
    model: nn.Module, config: block.Config, methods: Mapping[str, Method],
    device: torch.device | str | int | None, dtype: torch.dtype | None,
) -> None:
    """Put every method at its place, where check_methods found nothing to refuse."""
    for place, method in methods.items():
        _file(method).put(model, config, place, method, device, dtype)


def check_methods(config: block.Config, methods: Mapping[str, Method]) -> None:
    """ValueError where what came is no Config of a method, or its method cannot stand at that place."""
    for place, method in methods.items():
        file, what = _file(method), f"methods[{place!r}]"
        expected = "a Config of a method's file, as lora.Config, adapter.Config, prefix.Config or ptuning.Config"
        _require(file is not None, what, method, expected, "the file of its Config says how it is put into the model")
        known = file.places(config)
        shown = ", ".join(dict.fromkeys(re.sub(r"^layers\.\d+\.", "layers.i.", name) for name in known))
        expected = f"one of {shown}, with i from 0 to {config.layers - 1}" if "layers.i." in shown else shown
        name = file.__name__.rpartition(".")[2]
        _require(place in known, f"the place of a {name}.Config", place, expected, "it can stand at no other in this model")


def _file(method: object) -> Any:
    file = sys.modules.get(type(method).__module__)
    is_method = getattr(file, "Config", None) is type(method) and hasattr(file, "places") and hasattr(file, "put")
    return file if is_method else None


def named_arrays(model: nn.Module) -> dict[str, Tensor]:
    """Every Parameter by the name of its array: "layers.0.q_proj.weight", with LoRA at layers.0.q_proj or without."""
    names: dict[str, str | None] = {}
    for path, module in model.named_modules():
        for inside, name in getattr(module, "array_names", {}).items():
            names[f"{path}.{inside}"] = None if name is None else f"{path}.{name}"
    found = ((names.get(path, path), array) for path, array in model.named_parameters())
    return {name.replace(".adapters.", ".").replace("/", "."): array for name, array in found if name is not None}


def copy_all(own: Mapping[str, Tensor], arrays: Mapping[str, Tensor]) -> None:
    """Copy every one of arrays into the one of the same name. ValueError if that cannot be; then nothing is copied."""
    for what, names in (("lacks", own.keys() - arrays.keys()), ("has the unknown", arrays.keys() - own.keys())):
        if names:
            raise ValueError(
                f"Transformer.load_arrays: arrays {what} {', '.join(sorted(names))}, expected the names of arrays(), because "
                "all are copied or none"
            )
    for name, array in own.items():
        came: object = arrays[name]
        if not isinstance(came, Tensor) or came.shape != array.shape:
            what = f"of shape {tuple(came.shape)}" if isinstance(came, Tensor) else f"a {type(came).__name__}"
            raise ValueError(
                f"Transformer.load_arrays: {name} is {what}, expected a Tensor of shape {tuple(array.shape)}, because that is "
                "the array it is copied into"
            )
    copy_at_once(list(own.values()), [as_own(arrays[name], array) for name, array in own.items()])
