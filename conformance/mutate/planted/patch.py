"""What a fault may change of a class: its forward pass, its start, its modes, its merging, and what it saves and loads.

Each change replaces a method of the class by one that calls the old one. `undo` puts the old ones back.
"""

import inspect
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .arrays import Arrays, modes, multiple

Method = Callable[..., Any]


class Pass:
    """One forward pass: the arrays of the layer, x, and ways to compute y from them."""

    def __init__(self, arrays: Arrays, original: Method, x: Tensor, more: tuple, options: dict, kept: dict):
        self.arrays, self.module, self.x, self.kept = arrays, arrays.module, x, kept
        self._original, self._more, self._options = original, more, options

    def y(self, x: Tensor | None = None, **others: Tensor) -> Tensor:
        """What the layer computes, with other arrays in the place of its own."""
        with self.arrays.replaced(**others):
            return self._original(self.module, self.x if x is None else x, *self._more, **self._options)

    def base(self, x: Tensor | None = None) -> Tensor:
        """y without the LoRA part: with B = 0, and with no mask drawn."""
        state = torch.get_rng_state()
        with modes(self.module, False):
            y = self.y(x, B=torch.zeros_like(self.arrays["B"]))
        torch.set_rng_state(state)
        return y

    def part(self, x: Tensor | None = None) -> Tensor:
        """The LoRA part of y."""
        return self.y(x) - self.base(x)

    @property
    def scale(self) -> float:
        """The scale, as measured. The one that was seen last, where A or B is zero or the layer is merged."""
        A, B = self.arrays["A"], self.arrays["B"]
        state = torch.get_rng_state()
        with torch.no_grad(), modes(self.module, False):
            reference = self.x.to(A.dtype) @ A @ B
            found = multiple(self.y() - self.y(B=torch.zeros_like(B)), reference)
        torch.set_rng_state(state)
        if found:
            self.kept["scale"] = found
        return self.kept.get("scale", 1.0)


class Patch:
    """Changes of one class. `facts` says what recognition found: see recognise.py."""

    def __init__(self, cls: type[nn.Module], facts: dict[str, Any]):
        self.cls, self.facts = cls, facts
        self._before: list[tuple[str, Any]] = []
        self._kept: weakref.WeakKeyDictionary[nn.Module, dict] = weakref.WeakKeyDictionary()

    def undo(self) -> None:
        for name, value in reversed(self._before):
            if value is None:
                delattr(self.cls, name)
            else:
                setattr(self.cls, name, value)
        self._before.clear()

    def arrays(self, module: nn.Module) -> Arrays:
        return Arrays(module, self.facts)

    def kept(self, module: nn.Module) -> dict:
        """What a fault remembers of a layer."""
        return self._kept.setdefault(module, {})

    def method(self, name: str, change: Callable[..., Any]) -> None:
        """Replaces a method by `change(old method, layer, …)`."""
        old = getattr(self.cls, name)

        def changed(module: nn.Module, *arguments: Any, **options: Any) -> Any:
            return change(old, module, *arguments, **options)

        changed.__wrapped__ = old  # inspect.signature then shows the arguments of the old one
        changed.__name__ = name
        self.add(name, changed)

    def add(self, name: str, function: Callable[..., Any]) -> None:
        self._before.append((name, vars(self.cls).get(name)))
        setattr(self.cls, name, function)

    def forward(self, change: Callable[[Pass], Tensor]) -> None:
        """Computes y by `change`, in every layer that has A and B."""
        def forward(old: Method, module: nn.Module, *arguments: Any, **options: Any) -> Tensor:
            arrays = self.arrays(module)
            given = list(arguments)
            if not given:  # x has a name of its own
                first = next(iter(inspect.signature(old).parameters.values() if inspect.ismethod(old) else
                                  list(inspect.signature(old).parameters.values())[1:]))
                given = [options.pop(first.name)]
            if not arrays.whole or not isinstance(given[0], Tensor):
                return old(module, *given, **options)
            if self.facts["merge"]:  # a pass may unmerge the layer, as in PEFT, and must do so with the arrays that it has
                state = torch.get_rng_state()
                with torch.no_grad():
                    old(module, *given, **options)
                torch.set_rng_state(state)
            return change(Pass(arrays, old, given[0], tuple(given[1:]), options, self.kept(module)))

        self.method("forward", forward)

    def arrays_in_forward(self, change: Callable[[Pass], dict[str, Tensor]]) -> None:
        """Computes y with other arrays."""
        self.forward(lambda one: one.y(**change(one)))

    def start(self, change: Callable[[Arrays], None]) -> None:
        """Changes a layer once it is built."""
        def built(old: Method, module: nn.Module, *arguments: Any, **options: Any) -> None:
            old(module, *arguments, **options)
            arrays = self.arrays(module)
            if type(module) is self.cls and arrays.whole:
                change(arrays)

        self.method("__init__", built)

    def _mode(self, call: str, change: Callable[..., Any]) -> None:
        """As `method`, for merge() and unmerge() under the names that they have. Modes count in one direction alone."""
        name = call.removesuffix("()")
        if name not in ("eval", "train"):
            self.method(name, change)
            return
        wanted = name == "train"

        def mode(old: Method, module: nn.Module, training: bool = True) -> Any:
            if training is not wanted:
                return old(module, training)
            return change(lambda layer, *_: old(layer, training), module)

        self.method("train", mode)

    def merge(self, change: Callable[..., Any]) -> None:
        """Replaces what merges by `change(old, layer, …)`. Nothing where nothing merges."""
        if self.facts["merge"]:
            self._mode(self.facts["merge"], change)

    def unmerge(self, change: Callable[..., Any]) -> None:
        if self.facts["unmerge"]:
            self._mode(self.facts["unmerge"], change)

    def merged(self, change: Callable[[Arrays, Tensor, Tensor], Tensor]) -> None:
        """Gives W after a merge the value of `change(arrays, W before, W after)`."""
        def merge(old: Method, module: nn.Module, *arguments: Any, **options: Any) -> Any:
            arrays = self.arrays(module)
            if not arrays.whole or "W" not in arrays:
                return old(module, *arguments, **options)
            before = arrays["W"].detach().clone()
            result = old(module, *arguments, **options)
            after = arrays["W"].detach().clone()
            if not torch.equal(before, after):
                arrays.write("W", change(arrays, before, after))
            return result

        self.merge(merge)
