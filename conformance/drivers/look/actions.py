"""What can be done with a module that a call has made, besides calling one of its methods."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Attribute:
    """Sets an attribute of all parts of a module that have it."""

    def __init__(self, name: str, value: Any):
        self.name, self.value = name, value

    @property
    def words(self) -> str:
        return f"{self.name} = {self.value!r}"

    def __call__(self, made: Any) -> None:
        for part in parts_of(made):
            if self.name in vars(part):
                setattr(part, self.name, self.value)


class Aside:
    """Calls a function beside the class, which does not get the module."""

    def __init__(self, function: Callable[..., Any]):
        self.function, self.__name__ = function, function.__name__

    def __call__(self, made: Any, **values: Any) -> None:
        self.function(**values)


class FirstPass:
    """Calls the module once, for one that makes its factors then."""

    __name__ = "called"

    def __call__(self, made: Any, x: Tensor) -> None:
        with torch.no_grad():
            try:
                made(x)
            except Exception:
                made(x[None])


class Forward:
    """Gives the forward pass the arguments that it needs besides x."""

    __name__ = "forward"

    def __call__(self, made: nn.Module, **values: Any) -> None:
        made.forward = functools.partial(made.forward, **values)


def parts_of(made: Any) -> list[Any]:
    """The object, and all modules in it."""
    return list(made.modules()) if isinstance(made, nn.Module) else [made]
