"""The faults by name. Each is a function that changes a class through a Patch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .patch import Pass, Patch


@dataclass(frozen=True)
class Fault:
    """A known fault. `kills` are the requirements that catch it, the most telling first."""

    name: str
    words: str
    kills: tuple[str, ...]
    apply: Callable[[Patch], None]


FAULTS: dict[str, Fault] = {}


def fault(kills: str) -> Callable[[Callable[[Patch], None]], Callable[[Patch], None]]:
    """Enters a function as a fault. Its name becomes that of the fault, and its docstring says what is wrong."""
    def enter(apply: Callable[[Patch], None]) -> Callable[[Patch], None]:
        name = apply.__name__.replace("_", "-")
        FAULTS[name] = Fault(name, " ".join((apply.__doc__ or "").split()), tuple(kills.split()), apply)
        return apply

    return enter


NOTHING = "nothing"  # the name of what changes no answer, and does all that a fault does


def nothing(patch: Patch) -> None:
    def forward(one: Pass) -> Tensor:
        with torch.no_grad():
            one.base()
            _ = one.scale
        return one.y(A=one.arrays["A"] * 1, B=one.arrays["B"] * 1)

    patch.forward(forward)
    patch.start(lambda arrays: None)
    patch.merged(lambda arrays, before, after: after)
    patch.method("state_dict", lambda old, module, *more, **options: old(module, *more, **options))
    patch.method("_load_from_state_dict", lambda old, module, *more: old(module, *more))
    patch.method("train", lambda old, module, mode=True: old(module, mode))


def plant(cls: type[nn.Module], facts: dict[str, Any], name: str) -> Patch:
    """Plants a fault into a class. `undo` of what it gives takes it away again."""
    patch = Patch(cls, facts)
    (nothing if name == NOTHING else FAULTS[name].apply)(patch)
    return patch
