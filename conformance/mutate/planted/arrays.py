"""W, b, A and B of a layer of somebody else, by the paths that recognition found; other arrays in their place; its modes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

NAMED = "default"  # the name that recognition gives an adapter; a user's may be called otherwise


class Arrays:
    """The arrays of one layer, as W (out, in), b (out), A (in, rank), B (rank, out), in whatever way it stores them."""

    def __init__(self, module: nn.Module, facts: dict[str, Any]):
        """`facts` holds the "paths" by name, and the names that are "transposed". Arrays that are not there are left out."""
        self.module, self.turned = module, facts["transposed"]
        self.paths = {name: path for name, wanted in facts["paths"].items() if (path := _found(module, wanted))}

    @property
    def whole(self) -> bool:
        """Whether the layer has A and B. Some have none, with rank 0."""
        return {"A", "B"} <= set(self.paths)

    def __getitem__(self, name: str) -> Tensor:
        return self._turned(name, self.stored(name))

    def __contains__(self, name: str) -> bool:
        return name in self.paths

    def stored(self, name: str) -> Tensor:
        """As it is stored."""
        owner, leaf = self._place(name)
        return getattr(owner, leaf)

    def write(self, name: str, value: Tensor) -> None:
        with torch.no_grad():
            self[name].copy_(value)

    @property
    def rank(self) -> int:
        return self["A"].shape[1]

    @contextmanager
    def replaced(self, **others: Tensor) -> Iterator[None]:
        """Other tensors in the place of these arrays. They may have a graph."""
        before = []
        for name, tensor in others.items():
            owner, leaf = self._place(name)
            within: dict[str, Any] = next((d for d in (owner._parameters, owner._buffers) if leaf in d), vars(owner))
            before.append((within, leaf, within[leaf]))
            within[leaf] = self._turned(name, tensor)
        try:
            yield
        finally:
            for within, leaf, value in before:
                within[leaf] = value

    def _place(self, name: str) -> tuple[nn.Module, str]:
        above, _, leaf = self.paths[name].rpartition(".")
        return self.module.get_submodule(above), leaf

    def _turned(self, name: str, tensor: Tensor) -> Tensor:
        return tensor.t() if name in self.turned else tensor


def _found(module: nn.Module, wanted: str) -> str | None:
    """The path of a tensor that is called as wanted, where any name may stand for that of the adapter."""
    parts = wanted.split(".")
    if NAMED not in parts:
        return wanted if isinstance(_at(module, parts), Tensor) else None
    place = parts.index(NAMED)
    holder = _at(module, parts[:place])
    names = list(getattr(holder, "_modules", {}) or getattr(holder, "_parameters", {}))
    for name in names:
        if isinstance(_at(module, [*parts[:place], name, *parts[place + 1 :]]), Tensor):
            return ".".join([*parts[:place], name, *parts[place + 1 :]])
    return None


def _at(module: Any, parts: list[str]) -> Any:
    for part in parts:
        module = getattr(module, part, None)
    return module


@contextmanager
def modes(module: nn.Module, training: bool, of: Callable[[nn.Module], bool] = lambda part: True) -> Iterator[None]:
    """The mode of those parts that `of` chooses, without a call of their train(), which may merge."""
    before = [(part, part.training) for part in module.modules() if of(part)]
    for part, _ in before:
        part.training = training
    try:
        yield
    finally:
        for part, was in before:
            part.training = was


def drops(part: nn.Module) -> bool:
    return isinstance(part, nn.modules.dropout._DropoutNd)


def rate_of(module: nn.Module) -> float:
    """The rate of its dropout. 0 if it has none."""
    rates: list[Any] = [part.p for part in module.modules() if drops(part)]
    rates += [value for name, value in vars(module).items() if "drop" in name and isinstance(value, float)]
    return max((rate for rate in rates if 0 < rate < 1), default=0.0)


def multiple(found: Tensor, of: Tensor) -> float | None:
    """The number that makes `of` most like `found`. None if `of` is zero."""
    found, of = found.detach().double(), of.detach().double()
    square = float((of * of).sum())
    return float((found * of).sum()) / square if square else None
