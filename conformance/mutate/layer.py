"""What must be known of a layer to plant faults into it, and which faults show in it."""

import inspect
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from conformance.drivers.look.recognised import NotRecognised
from conformance.drivers.torch_module import ModuleSubject
from conformance.mutate.planted.all import FAULTS, plant
from conformance.requirements import all_requirements
from conformance.run.examine import examine, offered
from conformance.run.loading import LoadError, load
from conformance.truth.case import DTYPES

EXAMPLES = 12  # cases of a requirement, about, that a fault may show in
IN_TRAINING = ("GRAD-12", "GRAD-03", "GRAD-02")  # ask in training mode what others ask of a layer that merges in inference


class Layer(NamedTuple):
    """A class of somebody else, and what recognition found out about it: see `facts`."""

    subject: ModuleSubject
    cls: type[nn.Module]
    facts: dict[str, Any]


def found(spec: str) -> Layer:
    """The layer that the spec names. Raises LoadError, also for what has no class of its own in which A and B are."""
    subject = load(spec)
    if not isinstance(subject, ModuleSubject):
        raise LoadError(f"{spec} is a Subject, expected an nn.Module class, or a function that makes or changes modules")
    try:
        layer = subject.fresh()
    except NotRecognised as reason:
        raise LoadError(str(reason)) from reason
    paths = layer.paths
    shared = _shared(paths[name] for name in "AB")
    with_base = _shared(paths[name] for name in "ABW")
    for place in dict.fromkeys((with_base, shared)):
        owner = layer.module.get_submodule(place)
        file = inspect.getsourcefile(type(owner)) or ""
        if _is_theirs(type(owner)):
            inside = {name: path[len(place) :].lstrip(".") for name, path in paths.items() if path.startswith(place)}
            methods = subject.merging
            mode = place == ""
            return Layer(subject, type(owner), {
                "file": os.path.realpath(file), "class": type(owner).__qualname__,
                "module": type(owner).__module__, "paths": inside,
                "transposed": layer.transposed, "merge": methods[0] if mode else "", "unmerge": methods[1] if mode else ""})
    raise LoadError(f"{spec}: A and B are {paths['A']} and {paths['B']}, in no module whose class is defined in a file of its "
                    "own: no fault can be planted there")


def _shared(paths: Iterator[str]) -> str:
    """The path of the innermost module that holds them all."""
    parts = [path.split(".")[:-1] for path in paths]
    common = os.path.commonprefix(parts)
    return ".".join(common)


def _is_theirs(cls: type) -> bool:
    return not (cls.__module__ or "").startswith(("torch.", "conformance.drivers"))


def proven(layer: Layer, names: list[str]) -> Iterator[tuple[str, str]]:
    """For each fault the requirement that it fails and that the layer itself passes. "" if there is none: then it does not show
    in this layer, or the layer has it already."""
    requirements = {r.id: r for r in all_requirements()}
    honest: dict[str, str] = {}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        kinds = offered(layer.subject, tuple(DTYPES))

        def status(id: str) -> str:
            return examine(requirements[id], layer.subject, "", examples=EXAMPLES, seed=0, kinds=kinds, explain=False).status

        for name in names:
            shown = ""
            for id in (*FAULTS[name].kills, *IN_TRAINING):
                if id not in honest:
                    honest[id] = status(id)
                if honest[id] != "pass":
                    continue
                patch = plant(layer.cls, layer.facts, name)
                try:
                    seen = status(id)
                finally:
                    patch.undo()
                if seen == "fail":
                    shown = id
                    break
            yield name, shown


if __name__ == "__main__":  # python -m conformance.mutate.layer SPEC [FAULT …]: a line of JSON for each fault
    import json

    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the layer prints is none of it
    sys.dont_write_bytecode = True  # nothing is left beside the user's files

    def say(message: dict) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    try:
        told = found(sys.argv[1])
        say({"facts": told.facts})
        with suppress(BrokenPipeError):
            for fault, requirement in proven(told, sys.argv[2:] or list(FAULTS)):
                say({"fault": fault, "requirement": requirement})
    except LoadError as error:
        say({"unloadable": str(error)})
