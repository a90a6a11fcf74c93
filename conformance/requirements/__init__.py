"""The requirements: one file per group, and a requirement is a sentence, its sources and a property of a subject.

A property is a function of (subject, case) that raises Mismatch, or returns the largest error / bound that it saw. Its
docstring says why the requirement is there. Every module of this folder is read; there is no list to edit.
"""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from hypothesis.strategies import SearchStrategy

from conformance.subject import Subject

Check = Callable[[Subject, Any], float | None]  # the case is of the kind that `cases` draws
LEVELS = ("MUST", "SHOULD", "MAY")


class Profile(NamedTuple):
    """What a subject is judged for as a whole."""

    method: str  # of Layer: a subject that does not have it does not offer the profile
    groups: tuple[str, ...]  # that count towards it, unless a requirement names another profile


PROFILES = {
    "inference": Profile("forward", ("FWD", "SCALE", "DTYPE", "INPUT")),
    "training": Profile("backward", ("INIT", "GRAD", "PARAM", "DROP", "LEARN")),
    "merge": Profile("merge", ("MERGE",)),
    "files": Profile("save", ("STATE",)),
    "multi": Profile("add_adapter", ("MULTI",)),
    "model": Profile("build_model", ("MODEL",)),
    "adapter": Profile("build_model", ("ADAPT",)),
    "prefix": Profile("build_model", ("PREFIX",)),
    "ptuning": Profile("build_model", ("PTUNE",)),
}
GROUPS = {
    "FWD": "Forward", "INIT": "Initialisation", "GRAD": "Gradients", "PARAM": "Parameters", "SCALE": "Scale",
    "MERGE": "Merging", "DROP": "Dropout", "STATE": "Saving and loading", "DTYPE": "Number formats",
    "INPUT": "Bad input", "LEARN": "Learning", "MULTI": "Several adapters",
    "MODEL": "Whole models", "ADAPT": "Bottleneck adapters", "PREFIX": "Prefix tuning", "PTUNE": "P-tuning",
}


@dataclass(frozen=True, eq=False)
class Requirement:
    id: str
    sentence: str  # holds MUST, SHOULD or MAY, which is its level (RFC 2119)
    check: Check
    cases: Callable[[tuple[str, ...]], SearchStrategy]  # dtypes in play → cases
    needs: tuple[str, ...]  # methods of Layer, beyond build
    formula: str
    sources: tuple[str, ...]
    faults: tuple[str, ...]  # rows of known_faults.json that it catches
    profile: str
    optional: bool  # a profile does not wait for it: binding only on those that offer the feature
    examples: float  # of the number of cases that a run is asked for

    @property
    def level(self) -> str:
        return next(level for level in LEVELS if level in self.sentence.split())

    @property
    def group(self) -> str:
        return self.id.split("-")[0]

    @property
    def title(self) -> str:
        return self.check.__name__.replace("_", " ")

    @property
    def why(self) -> str:
        return " ".join((self.check.__doc__ or "").split())


def requirement(
    id: str, sentence: str, *, cases, needs: str, formula: str = "", sources: tuple[str, ...] = (),
    faults: str = "", profile: str = "", optional: bool = False, examples: float = 1.0,
) -> Callable[[Check], Requirement]:
    """Makes a Requirement of a property. `needs` are method names, `faults` row numbers, divided by spaces."""
    group = id.split("-")[0]
    profile = profile or next((name for name, its in PROFILES.items() if group in its.groups), "inference")
    rows = tuple(f"BUG-{number}" for number in faults.split())
    return lambda check: Requirement(
        id, sentence, check, cases, tuple(needs.split()), formula, sources, rows, profile, optional, examples
    )


@cache
def all_requirements() -> tuple[Requirement, ...]:
    """Every requirement, by group in the order of GROUPS, then by number."""
    found = []
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        found += [value for value in vars(module).values() if isinstance(value, Requirement)]
    return tuple(sorted(found, key=lambda r: (list(GROUPS).index(r.group), r.id)))


PAPER = "Hu et al., LoRA, arXiv:2106.09685v2"
HIGHAM = "Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., 2002, §3.1, §3.5"
PEFT = "huggingface/peft, tuners/lora/layer.py"
LORALIB = "microsoft/LoRA, loralib/layers.py"
