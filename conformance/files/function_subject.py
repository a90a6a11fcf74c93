"""Makes a subject of a function that reads adapter files, so that `conformance run FILE.py:FUNCTION --only FILE` judges it.

    def read(path, base): return {module: ΔW}               base: {"{module}.weight": W, "{module}.bias": b}
    def read(path, base, kinds): …                          kinds: {module: "linear", "embedding" or "conv1d"}

ΔW has the shape of W. What is added to the output of a module stands under "{module}.bias". The function raises an exception
for a file that it refuses. A function without `kinds` is asked about linear layers alone. `conformance exchange` takes such
functions as readers, too. In files of kohya and diffusers it names modules as the file does. Here they have the base's names.
"""

import inspect
from collections.abc import Callable
from os import PathLike, fspath

from conformance.loader import Loader
from conformance.subject import Arrays, Subject, Unsupported

Read = Callable[..., Arrays]


class FunctionLoader(Loader):
    """Holds what the function made of the last file that it did not refuse."""

    def __init__(self, read: Read, base: Arrays, *kinds: dict[str, str]):
        self.read, self.given, self.kinds, self.now = read, base, kinds, {}

    def load(self, path: str | PathLike[str]) -> None:
        self.now = self.read(fspath(path), self.given, *self.kinds)

    def delta(self) -> Arrays:
        return self.now

    def base(self) -> Arrays:
        return self.given


class FunctionSubject(Subject):
    """A subject that has no layers and reads files by a function."""

    def __init__(self, read: Read):
        self.read, self.name = read, read.__name__

    def build(self, config, weight, bias):
        raise Unsupported("single layers: it reads adapter files")

    def build_loader(self, base: Arrays, kinds: dict[str, str]) -> Loader:
        if not takes_kinds(self.read) and set(kinds.values()) != {"linear"}:
            raise Unsupported("layers that are not linear: the function does not take `kinds`")
        return FunctionLoader(self.read, base, *([kinds] if takes_kinds(self.read) else []))


def takes_kinds(read: Callable) -> bool:
    return len(inspect.signature(read).parameters) > 2


def is_reader(value: object) -> bool:
    """Whether it is a function of a path and the base's arrays, by the names of its parameters."""
    if not inspect.isfunction(value):
        return False
    names = list(inspect.signature(value).parameters)
    return len(names) in (2, 3) and names[1] == "base"
