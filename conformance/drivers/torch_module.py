"""Makes an nn.Module class, or a function that makes or changes modules, a Subject: drivers/look/ finds out how.

A base that nobody freezes, a scale of alpha, an alpha without effect, and x of three dimensions only would each fail most
requirements. So they are made up for, and the one requirement about each is asked without that: see `ModuleSubject.raw`, and
ABOUT in run/judge.py.
"""

import inspect
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from conformance.drivers.look.arguments import beside
from conformance.drivers.look.arrays import with_dimensions
from conformance.drivers.look.methods import (
    MODES,
    Methods,
    adds_its_part,
    called,
    found_methods,
    small_numbers,
    switches_of_merging,
)
from conformance.drivers.look.recognised import Found
from conformance.drivers.look.refused import NotRecognised
from conformance.drivers.look.settled import ROOT, call_freezer, recognised
from conformance.drivers.look.ways import MODEL, Model
from conformance.record.torch_script import script, source, written
from conformance.subject import Arrays, Call, Layer, LayerConfig, Subject, Unsupported
from conformance.torch import TorchLayer

SCALE, ALPHA, FREEZING, DIMENSIONS = "scale", "alpha", "freezing", "dimensions"  # what can be made up for


class ModuleLayer(TorchLayer):
    """The layer of a bare module. Its file holds the whole state_dict."""

    wrap: Callable[[nn.Linear], nn.Module] | None = None  # how its class makes one around a given nn.Linear, if it does
    merges, unmerges = "", ""  # the calls that merge and unmerge: see drivers/look/methods.py
    beside: dict[str, Any] = {}  # what stands beside its class
    awaits: tuple[np.ndarray, np.ndarray | None] | None = None  # W and b, of a class that moved W as it made A and B

    def set_adapter(self, arrays: Arrays) -> None:
        if self.awaits is not None and set(arrays) == {"A", "B"}:  # what it took away from W belongs to its own A and B
            self.set_base(*self.awaits)
            self.awaits = None
        super().set_adapter(arrays)

    @property
    def measured(self) -> nn.Module:
        return self.module.get_submodule(self.module.place) if isinstance(self.module, Model) else self.module

    def around(self, linear: nn.Linear) -> nn.Module:
        return super().around(linear) if self.wrap is None else self.wrap(linear)

    def merge(self) -> None:
        self._called(self.merges, "merge()")

    def unmerge(self) -> None:
        self._called(self.unmerges, "unmerge()")

    def merge_source(self, name: str) -> list[str] | None:
        return [f"{name}.{self.merges}"] if self.merges.endswith("()") else None

    def unmerge_source(self, name: str) -> list[str] | None:
        return [f"{name}.{self.unmerges}"] if self.unmerges.endswith("()") else None

    def _called(self, call: str, wanted: str) -> None:
        if not call:
            raise Unsupported(f"{type(self.module).__name__} has no {wanted}")
        called(self.module, call, self.beside)

    def load(self, directory) -> None:
        state, have = torch.load(f"{directory}/state.pt", weights_only=True), self.module.state_dict()
        for name, tensor in state.items():  # torch itself copies what fits before it complains
            if isinstance(tensor, Tensor) and name in have and tensor.shape != have[name].shape:
                raise RuntimeError(f"{name} is {tuple(tensor.shape)} in the file, expected {tuple(have[name].shape)}")
        self.module.load_state_dict(state)

    def load_source(self, name: str, directory: str) -> list[str]:
        return [f"{name}.load_state_dict(torch.load({directory} + '/state.pt', weights_only=True))"]


class WithOwnEval(ModuleLayer):
    """The layer of a module whose class has an eval() of its own. Users call that, and not train(False)."""

    def train(self, mode: bool = True) -> None:
        called(self.module, MODES[mode], {})

    def train_source(self, name: str, mode: bool = True) -> list[str]:
        return [f"{name}.{MODES[mode]}"]


class Reshaped(ModuleLayer):
    """The layer of a module that takes x of three dimensions and no others, or of four."""

    dimensions = 3

    def through(self, module: nn.Module, x: Tensor) -> Tensor:
        return with_dimensions(module, x, self.dimensions)


class ReshapedWithOwnEval(Reshaped, WithOwnEval):
    """Both."""


# By whether x must have three dimensions, and whether the class has an eval() of its own.
KINDS = {(False, False): ModuleLayer, (False, True): WithOwnEval, (True, False): Reshaped, (True, True): ReshapedWithOwnEval}


class ModuleSubject(Subject):
    """The Subject of a bare nn.Module class, or of a function that returns a module or changes one."""

    def __init__(self, cls: Callable[..., object], raw: bool = False, files: type | None = None):
        """With `raw` nothing is made up for. `files` has save() and load(), for a library with files of its own."""
        self.files = files
        self.cls, self.name = cls, getattr(cls, "__name__", type(cls).__name__)
        self.version = getattr(inspect.getmodule(cls), "__version__", "")
        self.is_raw = raw
        self._found: Found | NotRecognised | None = None

    def raw(self) -> "ModuleSubject":
        """The same class as it stands."""
        subject = ModuleSubject(self.cls, raw=True, files=self.files)
        subject._found, subject.name = self._found, self.name
        return subject

    @property
    def found(self) -> Found:
        """What recognition found. Raises NotRecognised."""
        if self._found is None:
            try:
                self._found = recognised(self.cls)
            except NotRecognised as reason:
                self._found = reason
        if isinstance(self._found, NotRecognised):
            raise self._found
        return self._found

    @property
    def _fixed(self) -> tuple[float | None, float | None]:
        """The scale, or else the alpha, that cannot be chosen."""
        try:
            rule = self.found.rule
        except NotRecognised:
            return None, None
        if self.is_raw and self._ignores_alpha:
            return None, None
        number = rule.removeprefix("always ").removesuffix(" / rank")
        return (float(number), None) if rule.startswith("always ") else (
            None, float(number)) if rule.endswith(" / rank") and number != "alpha" else (None, None)

    @property
    def scale(self) -> float | None:
        return self._fixed[0]

    @property
    def alpha(self) -> float | None:
        return self._fixed[1]

    @property
    def rank(self) -> int | None:
        return self._found.rank if isinstance(self._found, Found) else None

    @property
    def square(self) -> bool:
        return isinstance(self._found, Found) and self._found.plan.square

    @property
    def scale_argument(self) -> str:
        return self._found.direct if isinstance(self._found, Found) else ""

    @property
    def _ignores_alpha(self) -> bool:
        rule = self.found.rule
        fixed = rule.startswith("always ") or rule.endswith(" / rank") and rule != "alpha / rank"
        return fixed and self.found.plan.takes("alpha")

    @property
    def freezes(self) -> str:
        if isinstance(self._found, NotRecognised) or self._found is None:
            return ""
        theirs = self._found.given and self._found.base_trains != self._found.unreached
        return self._found.freezer or ("the caller, who gives it W" if theirs and self._found.base_trains else "")

    @property
    def compensates(self) -> dict[str, str]:
        """What is made up for → in words, what the class does."""
        try:
            found = self.found
        except NotRecognised:
            return {}
        said = {}
        if found.rule == "alpha" and not found.direct:
            said[SCALE] = "the scale is alpha: it is not divided by the rank"
        if self._ignores_alpha:
            said[ALPHA] = f"alpha is taken and has no effect: the scale is {found.rule}"
        trains = [name for name in found.base_trains if name not in found.unreached]
        if trains and not found.freezer and not found.given:
            some = " and ".join(trains)
            said[FREEZING] = f"{some} {'trains' if ' ' not in some else 'train'}, and nothing beside the class freezes it"
        elif (thawed := [name for name in found.thawed if name in trains]) and not found.freezer:
            said[FREEZING] = f"the class makes {' and '.join(thawed)} train, also where it was given frozen"
        if found.places.dimensions:
            said[DIMENSIONS] = f"x must have {'three' if found.places.dimensions == 3 else 'four'} dimensions"
        return said

    def build(self, config: LayerConfig, weight: np.ndarray, bias: np.ndarray | None) -> Layer:
        methods, found = self.merging, self.found
        if config.bias not in found.bias:
            raise Unsupported("a bias" if config.bias else "a layer without a bias")
        if found.rank not in (None, config.rank):
            raise Unsupported(f"a rank other than {found.rank}")
        if found.formats and config.dtype in found.formats:
            raise Unsupported(f"{config.dtype}: {found.formats[config.dtype]}")
        try:
            module = found.module(self._told(config), base=(weight, bias))
        except Exception as error:
            if not found.limited:
                raise
            raise Unsupported(f"a scale that the class refuses: {type(error).__name__}: {str(error)[:120]}") from None
        kind = KINDS[found.places.dimensions > 0 and not self.is_raw, type(module).eval is not nn.Module.eval]
        if self.files is not None:
            kind = type(kind.__name__, (self.files, kind), {"save_source": None, "load_source": None})
        layer = found.places.layer(kind, module, config.bias)
        if isinstance(layer, Reshaped):
            layer.dimensions = found.places.dimensions
        layer.merges, layer.unmerges, layer.beside = methods.merge, methods.unmerge, beside(self.cls)
        if found.plan.around == "linear" and not found.way:
            layer.wrap = lambda linear: found.plan.built(config, linear)
        self._freeze(layer)
        if found.moves_base:
            layer.awaits = weight, bias
        else:
            layer.set_base(weight, bias)
        return layer

    def _told(self, config: LayerConfig) -> LayerConfig:
        """The configuration that the class is given, so that its scale is that of `config`."""
        found = self.found
        legitimate = bool(found.direct) or found.rule == ROOT
        if found.rule not in ("alpha", ROOT) or not config.rank or self.is_raw and not legitimate:
            return config
        if found.rule == ROOT and self.is_raw and config.scaling == "standard":
            raise Unsupported("standard scaling: the scale is alpha / √rank")
        scale = config.alpha / (config.rank if config.scaling == "standard" else config.rank**0.5)
        return replace(config, scaling="standard", alpha=scale if found.rule == "alpha" else scale * config.rank**0.5)

    def _freeze(self, layer: ModuleLayer) -> None:
        found = self.found
        if found.freezer:
            call_freezer(self.cls, layer.module, found.freezer)
        elif not self.is_raw:
            for name in set(found.base_trains) & set(layer.paths):
                stored = attrgetter(layer.paths[name])(layer.module)
                if stored.is_leaf:  # what a module computes is no parameter of it
                    stored.requires_grad_(False)

    @cached_property
    def merging(self) -> Methods:
        """What merges the layer. If nothing does, the arguments are tried that may switch merging on: then the layer is built
        with the one that does."""
        plan, methods = self.found.plan, found_methods(self.numbered, beside(self.cls))
        for name in [] if methods.merge else switches_of_merging(plan):
            self.found.plan = replace(plan, literals=plan.literals | {name: True})
            with suppress(Exception):
                switched = found_methods(self.numbered, beside(self.cls))
                if switched.merge and adds_its_part(self.numbered()):  # and was not made merged for good
                    return switched
        self.found.plan = plan
        return methods

    def fresh(self) -> ModuleLayer:
        """A layer as the class makes it, of a configuration that it takes."""
        found = self.found
        layer = found.places.layer(ModuleLayer, found.module(found.probe), found.probe.bias)
        self._freeze(layer)
        return layer

    def numbered(self) -> ModuleLayer:
        """Such a layer of small whole numbers, on which methods are tried."""
        layer = self.fresh()
        small_numbers(layer)
        return layer

    def script(self, calls: list[Call], spec: str) -> str | None:
        place, _, name = spec.rpartition(":")
        if not place:  # a built-in subject
            place, name = _home(self.cls)
        found, plan = self.found, self.found.plan
        changes_a_model = found.way == MODEL and list(plan.roles.values()).count("model") == 1
        simple = (plan.around in ("sizes", "linear") and not found.way or changes_a_model) and not (
            plan.then or plan.part or plan.beside or found.mixed or found.moves_base)
        if name != getattr(self.cls, "__qualname__", "") or plan.call is not self.cls or not simple:
            return None  # the user did not name the class itself, or more is needed than a call of it
        freezer = found.freezer if found.freezer and not found.freezer.startswith(".") else ""
        imports = _imports(place, [name.split(".")[0], *[freezer] * bool(freezer)])
        imports += ["from collections import OrderedDict"] * changes_a_model
        name_of_class = name

        def construction(config: LayerConfig, name: str) -> list[str]:
            moved = [] if config.device == "cpu" else [repr(config.device)]
            moved += [] if config.dtype == "float32" else [f"torch.{config.dtype}"]
            dtype, device = getattr(torch, config.dtype), torch.device(config.device)
            linear = nn.Linear(config.in_features, config.out_features, config.bias, device=device, dtype=dtype)
            values = plan.values(self._told(config), linear)
            first = [values.pop(name) for name in plan.positional]
            if changes_a_model:
                model = next(argument for argument, role in plan.roles.items() if role == "model")
                del values[model]
                call = written("", self.cls, **values)[1:-1]
                lines = [f"{name} = torch.nn.Sequential(OrderedDict({found.place}={source(linear)}))",
                         f"{name_of_class}({', '.join([f'{model}={name}', *[call] * bool(call)])})"]
                lines += [f"{name}.to({', '.join(moved)})"] if moved else []
            else:
                made = written(name_of_class, self.cls, *first, **values)
                lines = [f"{name} = {made}" + (f".to({', '.join(moved)})" if moved else "")]
            if config.dtype == "float64":
                lines = ["torch.set_default_dtype(torch.float64)", *lines, "torch.set_default_dtype(torch.float32)"]
            method = [f"{name}{found.freezer}()"] if found.freezer.startswith(".") else []
            return lines + method + ([f"{freezer}({name})"] if freezer else [])

        return script(calls, imports, construction)


def _home(call: Callable[..., object]) -> tuple[str, str]:
    """Where a class or function of a library is imported from, and its name: from the package itself, if it is there."""
    name, module = getattr(call, "__qualname__", ""), getattr(call, "__module__", "")
    package = module.partition(".")[0]
    return (package if getattr(sys.modules.get(package), name, None) is call else module), name


def _imports(place: str, names: list[str]) -> list[str]:
    """The statements that import these names from a file or a module."""
    if not place.endswith(".py"):
        return [f"from {place} import {', '.join(names)}"]
    path = Path(place)
    imports = [f"import sys; sys.path.insert(0, {str(path.parent)!r})"]
    if path.stem.isidentifier():
        return [*imports, f"from {path.stem} import {', '.join(names)}"]
    return [*imports, *(f"{name} = __import__({path.stem!r}).{name}" for name in names)]
