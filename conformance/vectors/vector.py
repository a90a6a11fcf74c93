"""A vector: what is given, what is asked, and the interval in which each number of the answer must lie."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from conformance.subject import Arrays, LayerConfig
from conformance.truth.case import DTYPES, Case, FurtherAdapter

CONFIG = ("in_features", "out_features", "rank", "alpha", "bias", "scaling")


class Interval(NamedTuple):
    """Two arrays of one shape: the right answer, or one that is accepted, lies between them."""

    low: np.ndarray
    high: np.ndarray


class Answer(NamedTuple):
    """`accepted` is in the format of the vector, and `certified`, which holds the exact real numbers, is in float64. Where low
    is NaN, a number is asked for that is not finite."""

    accepted: Interval
    certified: Interval

    @property
    def exact(self) -> bool:
        """Whether the exact number alone is accepted in every place."""
        first, *others = (side.astype(np.float64) for side in (*self.accepted, *self.certified))
        return all(np.array_equal(first, other, equal_nan=True) for other in others)


@dataclass(frozen=True, eq=False)
class Vector:
    id: str
    requirement: str
    operation: str
    dtype: str
    settings: dict[str, Any]
    given: Arrays
    answers: dict[str, Answer] = field(default_factory=dict)
    kills: tuple[str, ...] = ()  # names of mutants
    nearest: str = ""  # the mutant whose answers are the nearest to the right ones
    power: float | None = None  # its distance; None if no fault gave other numbers, but errors alone

    def only(self, names: tuple[str, ...]) -> "Vector":
        """The vector that asks for these answers alone."""
        return replace(self, answers={name: self.answers[name] for name in names})

    @cached_property
    def case(self) -> Case:
        """The layer of the vector as a Case. Arrays that it does not give are zero."""
        s, given = self.settings, self.given
        config = LayerConfig(**{name: s[name] for name in CONFIG}, dtype=self.dtype, dropout=s.get("dropout", 0.0),
                             seed=1)  # a known fault takes 0 for no seed
        shape = given["x"].shape[:-1] if "x" in given else (1,)
        shapes = {"x": (*shape, config.in_features), "dy": (*shape, config.out_features),
                  "A": (config.in_features, config.rank), "B": (config.rank, config.out_features)}
        x, dy, A, B = (given.get(name, np.zeros(shape, DTYPES[self.dtype])) for name, shape in shapes.items())
        others = tuple(FurtherAdapter(name, given[f"{name}.A"], given[f"{name}.B"], alpha)
                       for name, alpha in s.get("further", {}).items())
        weights = tuple(s.get("weights", {}).values())
        return Case(config, given["W"], given.get("b"), A, B, x, dy, others=others, weights=weights)


def settings_of(case: Case) -> dict[str, Any]:
    return {name: getattr(case.config, name) for name in CONFIG}
