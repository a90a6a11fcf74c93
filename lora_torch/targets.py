"""Which modules of a model get LoRA: names as PEFT reads them.

    targets, exclude      a list: names that equal an entry or end with "." and the entry
                         a string: a regular expression that the whole name matches
    targets="all-linear" every linear layer but the one that gives the model's output
    layers               of a list of targets, only names whose first number after two parts is one of these; with
                         layers_pattern, the first number after a part that matches one of its entries
    modules_to_save      names that end with an entry: these modules are trained and kept whole

A name that is excluded, or that is in a module to save, is no target. An entry of `targets` that is a whole name is a target in
every layer. Source: PEFT 0.21, check_target_module_exists and _maybe_include_all_linear_layers in tuners/tuners_utils.py, and
_set_trainable in utils/other.py.
"""

import re
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

from torch import nn

from lora_torch.adapted import Adapted, Kept, is_conv1d, sizes
from lora_torch.checks import require
from lora_torch.settings import Settings

ALL_LINEAR = "all-linear"
Names = str | tuple[str, ...]
_require = partial(require, "attach")


class Place(NamedTuple):
    """A module, and where it stands: parent._modules[name]."""

    parent: nn.Module
    name: str
    module: Any


def walk(module: nn.Module, path: str = "") -> Iterator[tuple[str, Place]]:
    """All modules below this one by their names, as if no adapter was attached: what is in an Adapted or a Kept is left out."""
    for name, child in module._modules.items():
        if child is not None:
            here = f"{path}.{name}" if path else name
            yield here, Place(module, name, child)
            if not isinstance(child, Adapted | Kept):
                yield from walk(child, here)


def bare(module: nn.Module) -> nn.Module:
    """The module of the model itself."""
    return module.pre_trained_weight if isinstance(module, Adapted) else module


def find(model: nn.Module, settings: Settings) -> tuple[dict[str, Place], dict[str, Place]]:
    """The targets and the modules to save by name. ValueError for what can be neither, and if there is no target."""
    places = dict(walk(model))
    kept = {path: place for path, place in places.items() if path.endswith(settings.modules_to_save)}
    found = {path: place for path, place in places.items() if matches(settings, path)}
    seen: dict[int, str] = {}
    for path, (parent, _, module) in found.items():
        what, kind, twin = f"target {path!r}", type(bare(module)).__name__, seen.setdefault(id(module), path)
        layer = "an nn.Linear, a Conv1D of transformers, or an nn.Embedding"
        _require(sizes(bare(module)) is not None, what, kind, layer, "W must be a matrix of floating-point numbers")
        in_attention = isinstance(parent, nn.MultiheadAttention)
        _require(not in_attention, what, "in nn.MultiheadAttention", "a layer that is called", "this module only reads W")
        _require(twin == path, what, f"the same module as {twin!r}", "a module with one name", "it is replaced")
        _require(path not in kept, what, "in modules_to_save", "one of the two", "such a module is trained whole")
    for path, (_, _, module) in kept.items():
        inside = any(path.startswith(f"{other}.") for other in kept)
        plain = not inside and not isinstance(module, Adapted | nn.ModuleList | nn.ModuleDict)
        plain = plain and not any(isinstance(part, Adapted | Kept) for part in module.modules() if part is not module)
        expected = "a module that can be called and has no adapters in it or around it"
        _require(plain, f"module to save {path!r}", type(module).__name__, expected, "a copy of it is trained in its place")
    if not found:
        known = dict.fromkeys(path.rpartition(".")[2] for path, place in places.items() if sizes(bare(place.module)))
        _require(False, "targets", settings.targets, f"names of layers such as {', '.join([*known][:8])}", "none was found")
    return found, kept


def matches(settings: Settings, path: str) -> bool:
    """Whether a module with this name is a target."""
    if settings.exclude and _selects(settings.exclude, path):
        return False
    if any(f".{name}." in f".{path}." for name in settings.modules_to_save):
        return False
    if not _selects(settings.targets, path):
        return False
    if not settings.layers or path in settings.targets:
        return True
    before = settings.layers_pattern or (r"[^.]*",)
    start = r"(?:^|.*?\.)" if settings.layers_pattern else r".*?\."
    found = next(filter(None, (re.match(rf"{start}{part}\.(\d+)\.", path) for part in before)), None)
    return found is not None and int(found[1]) in settings.layers


def _selects(names: Names, path: str) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, path) is not None
    return path in names or path.endswith(tuple(f".{name}" for name in names))


def all_linear(model: nn.Module) -> Names:
    """The names of all linear layers, but that of the output of a model that says which it is. As a regular expression if a
    name is the end of another one that is not among them."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    layers = [(path, place.module, bare(place.module)) for path, place in walk(model)]
    linear = [each for each in layers if isinstance(each[2], nn.Linear) or is_conv1d(each[2])]
    names = tuple(path for path, module, layer in linear if module is not head and sizes(layer))
    selected = tuple(path for path, _ in walk(model) if _selects(names, path))
    return names if selected == names else "|".join(map(re.escape, names))
