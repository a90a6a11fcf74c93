"""The requirements, in one file per group. A requirement is a sentence, its sources, and a property that is checked.

A property is a function of (subject, case). It raises Mismatch, or returns the largest error / bound that it saw. Its
docstring says why the requirement is there. Every module of this folder is loaded; there is no list to edit.
"""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

from hypothesis.strategies import SearchStrategy

from conformance.subject import Subject

Check = Callable[[Subject, Any], float | None]  # of the subject and a case that `cases` drew
LEVELS = ("MUST", "SHOULD", "MAY")


class Group(NamedTuple):
    """A group of requirements. The file of the group says GROUP = Group(…)."""

    id: str  # its requirements are ID-01, ID-02, …
    title: str
    order: int  # its place among the groups
    profile: str  # which verdict it counts towards, unless a requirement names another one
    asks: str  # method of Layer or Subject that a subject must have to offer the profile


@dataclass(frozen=True, eq=False)
class Requirement:
    id: str
    sentence: str  # holds MUST, SHOULD or MAY, which is its level (RFC 2119)
    check: Check
    cases: Callable[[tuple[str, ...]], SearchStrategy]  # takes the dtypes in play, returns a strategy for cases
    needs: tuple[str, ...]  # methods of Layer, beyond build
    formula: str
    sources: tuple[str, ...]
    faults: tuple[str, ...]  # rows of known_faults.json that it catches
    own_profile: str  # "" means the profile of its group
    optional: bool  # binds only subjects that offer the feature; a profile does not need it
    examples: float  # share of the number of cases that a run is asked for
    costly: bool  # whether a case takes so long that a failure is neither made smaller nor explained

    @property
    def level(self) -> str:
        return next(level for level in LEVELS if level in self.sentence.split())

    @property
    def group(self) -> str:
        return self.id.split("-")[0]

    @property
    def calls(self) -> tuple[str, ...]:
        """All methods that it needs: `build` comes first, if nothing else is built."""
        return self.needs if {"build_model", "build_loader"} & set(self.needs) else ("build", *self.needs)

    @property
    def profile(self) -> str:
        return self.own_profile or groups()[self.group].profile

    @property
    def title(self) -> str:
        return self.check.__name__.replace("_", " ")

    @property
    def why(self) -> str:
        return " ".join((self.check.__doc__ or "").split())


def requirement(
    id: str, sentence: str, *, cases, needs: str, formula: str = "", sources: tuple[str, ...] = (),
    faults: str = "", profile: str = "", optional: bool = False, examples: float = 1.0,
    costly: bool = False,
) -> Callable[[Check], Requirement]:
    """Makes a Requirement from a property. `needs` are method names and `faults` BUG numbers, separated by spaces."""
    reports = tuple(f"BUG-{number}" for number in faults.split())
    return lambda check: Requirement(
        id, sentence, check, cases, tuple(needs.split()), formula, sources, reports, profile, optional, examples, costly
    )


@cache
def _modules() -> tuple[ModuleType, ...]:
    """The module of each group, in the order of the groups."""
    names = [info.name for info in pkgutil.iter_modules(__path__) if not info.ispkg]
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    return tuple(sorted(modules, key=lambda module: (module.GROUP.order, module.GROUP.id)))


@cache
def groups() -> dict[str, Group]:
    """The groups by id, in their order."""
    return {module.GROUP.id: module.GROUP for module in _modules()}


@cache
def profiles() -> dict[str, frozenset[str]]:
    """For each profile, in the order of the groups, the methods of which a subject must have one to offer it."""
    found: dict[str, frozenset[str]] = {}
    for group in groups().values():
        found[group.profile] = found.get(group.profile, frozenset()) | {group.asks}
    return found


@cache
def all_requirements() -> tuple[Requirement, ...]:
    """Every requirement, by group, then by number."""
    found = [value for module in _modules() for value in vars(module).values() if isinstance(value, Requirement)]
    return tuple(sorted(found, key=lambda r: (list(groups()).index(r.group), r.id)))


PAPER = "Hu et al., LoRA, arXiv:2106.09685v2"
HIGHAM = "Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., 2002, §3.1, §3.5"
PEFT = "huggingface/peft, tuners/lora/layer.py"
LORALIB = "microsoft/LoRA, loralib/layers.py"
