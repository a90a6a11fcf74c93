"""Known-bad implementations, one file per group of requirements, and honest ones that differ in what is free.

The tester is tested: each mutant must be failed by the requirements that it names, each requirement must be named by a
mutant, and no honest variation may fail a MUST. A mutant is an honest layer with one fault of a few lines, mostly
one that was reported of a published library. Every module of this folder is read; there is no list to edit.
"""

import importlib
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from conformance import __version__
from conformance.loader import Loader
from conformance.model import Model, ModelConfig
from conformance.subject import Arrays, Layer, LayerConfig, Subject, Unsupported


@dataclass(frozen=True, eq=False)
class LayerSubject(Subject):
    """A subject of one class of layers, of models, or of loaders."""

    layer: type[Layer] | type[Model] | type[Loader]
    version = __version__

    @property
    def scale(self) -> float | None:  # type: ignore[override]
        return getattr(self.layer, "fixed_scale", None)

    @property
    def name(self) -> str:  # type: ignore[override]
        """ScaleIsAlpha → scale-is-alpha."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", self.layer.__name__).lower()

    @property
    def methods(self) -> tuple[str, ...]:  # type: ignore[override]
        of_models = ("lora", "adapter", "prefix", "ptuning")
        return getattr(self.layer, "methods", of_models if issubclass(self.layer, Model) else Subject.methods)

    def build(self, config: LayerConfig, weight: np.ndarray, bias: np.ndarray | None) -> Layer:
        if not issubclass(self.layer, Layer):
            raise Unsupported("single layers")
        return self.layer(config, weight, bias)  # type: ignore[call-arg] every class of this folder takes them

    def build_model(self, config: ModelConfig, arrays: Arrays) -> Model:
        if not issubclass(self.layer, Model):
            raise Unsupported("whole models")
        return self.layer(config, arrays)  # type: ignore[call-arg]

    def build_loader(self, base: Arrays, kinds: dict[str, str]) -> Loader:
        if not issubclass(self.layer, Loader):
            raise Unsupported("adapter files")
        return self.layer(base, kinds)  # type: ignore[call-arg]

    @property
    def spec(self) -> str:
        """What `conformance run` takes for it."""
        return f"{__name__}:{self.layer.__name__}"

    @property
    def words(self) -> str:
        """The docstring of the layer, in one line."""
        return " ".join((self.layer.__doc__ or "").split())


@dataclass(frozen=True, eq=False)
class Mutant(LayerSubject):
    """A subject with a known fault. `words` says which."""

    reports: tuple[str, ...]  # of known_faults.json that it re-creates
    kills: tuple[str, ...]  # ids of the requirements that must fail it

    @property
    def group(self) -> str:
        return self.layer.__module__.rpartition(".")[2].partition("_")[0].upper()

    def subject(self) -> Subject:
        return self


def mutant(reports: str = "", *, kills: str) -> Callable[[type], Mutant]:
    """Makes a Mutant of a class of layers or of models. `reports` are numbers, `kills` ids, divided by spaces."""
    numbers = tuple(f"BUG-{number}" for number in reports.split())
    return lambda layer: Mutant(layer, numbers, tuple(kills.split()))


TORCH = "modules"  # the file that imports torch, and defines no mutant


def _values() -> list[object]:
    """What the files of this folder define, file by file."""
    names = [info.name for info in pkgutil.iter_modules(__path__) if info.name != TORCH]
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    return [value for module in modules for value in vars(module).values()]


@cache
def all_mutants() -> tuple[Mutant, ...]:
    """Every mutant, module by module, in the order in which they are written."""
    return tuple(value for value in _values() if isinstance(value, Mutant))


@cache
def honest_subjects() -> tuple[LayerSubject, ...]:
    """The honest layer, the honest model and the honest reader of files, each with its variations, and every LayerSubject
    of another file that is no Mutant."""
    names = ("honest", "variations", "orders", "habits", "several", "honest_model", "model_variations", "readers")
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    honest = modules[0].Honest, modules[5].HonestModel, modules[7].HonestReader
    layers = [value for module in modules for value in vars(module).values() if isinstance(value, type)]
    found = [LayerSubject(layer) for layer in dict.fromkeys(layers) if issubclass(layer, honest)]
    others = [*_values(), *vars(importlib.import_module(f"{__name__}.{TORCH}")).values()]
    return (*found, *(value for value in others if type(value) is LayerSubject))


def __getattr__(name: str) -> LayerSubject:
    """Each of them by the name of its class, so that `conformance run conformance.mutants:ScaleIsAlpha` finds it."""
    if name[:1].isupper():
        for subject in (*all_mutants(), *honest_subjects()):
            if subject.layer.__name__ == name:
                return subject
    raise AttributeError(f"{__name__} has no attribute {name!r}")
