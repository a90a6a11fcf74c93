"""Which known faults a vector shows, and how clearly. The faults are run; nothing about them is written down."""

import warnings
from collections.abc import Iterator
from copy import copy
from dataclasses import replace

import numpy as np

from conformance.mutants import LayerSubject, Mutant, all_mutants, honest_subjects
from conformance.mutants.honest import Honest
from conformance.mutants.honest_model import HonestModel
from conformance.record.trace import SubjectError
from conformance.subject import Arrays, Unsupported
from conformance.truth.compare import Mismatch, expect, expect_between, wide
from conformance.vectors import layer, methods, prefixes
from conformance.vectors.vector import Answer, Vector


def new(subject: LayerSubject) -> LayerSubject:
    """The same subject with a class of layers of its own. Some faults keep something in the class, and would remember the
    vectors before this one."""
    kept = {name: copy(value) for name, value in vars(subject.layer).items() if isinstance(value, list | dict)}
    return replace(subject, layer=type(subject.layer.__name__, (subject.layer,), kept | {"__doc__": subject.layer.__doc__}))


def ask(subject: LayerSubject, vector: Vector) -> Arrays:
    """What the subject answers. Raises Unsupported, SubjectError, and what a broken model raises."""
    subject = new(subject)
    module = next(module for module in (layer, methods, prefixes) if vector.operation in module.OPERATIONS)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return module.ask(subject, vector)


def judge(vector: Vector, found: Arrays) -> None:
    """Raises Mismatch unless each answer of the vector is there and is accepted."""
    for name, answer in vector.answers.items():
        expect(name in found, name, f"only {sorted(found)}", f"{name} among the answers")
        expect_between(found[name], *answer.accepted, name)


def faults(vector: Vector) -> Iterator[Mutant]:
    """The known faults of the kind of subject that the vector is about."""
    kind = Honest if vector.operation in layer.OPERATIONS else HonestModel
    return (mutant for mutant in all_mutants() if issubclass(mutant.layer, kind))


def honest(vector: Vector) -> Iterator[LayerSubject]:
    kind = Honest if vector.operation in layer.OPERATIONS else HonestModel
    return (subject for subject in honest_subjects() if issubclass(subject.layer, kind))


def seen(vector: Vector) -> Vector:
    """The vector with the faults that it shows, the nearest of them, and its power. Raises Mismatch if an honest implementation
    fails it."""
    for subject in honest(vector):
        try:
            judge(vector, ask(subject, vector))
        except (Unsupported, SubjectError):  # it may refuse
            continue
        except Mismatch as failure:
            what = f"{vector.id}, {failure.what} of the honest {subject.name}{failure.where}"
            raise Mismatch(what, failure.got, failure.want) from failure
    distances = {m.name: distance for m in faults(vector) if (distance := distance_of(m, vector)) is not None}
    finite = {name: distance for name, distance in distances.items() if np.isfinite(distance)}
    nearest = min(finite, key=finite.__getitem__, default="")
    power = float(f"{finite[nearest]:.3g}") if nearest else None
    return replace(vector, kills=tuple(distances), nearest=nearest, power=power)


def distance_of(mutant: Mutant, vector: Vector) -> float | None:
    """How far the fault moves the answers, in units of what is allowed. Infinite if it gives an error, or no numbers. None if
    its answers are accepted, or it offers none."""
    try:
        found = ask(mutant, vector)
    except Unsupported:
        return None
    except Exception:  # whatever a subject with a fault raises, or a Mismatch: what it gave are no numbers
        return np.inf
    try:
        judge(vector, found)
    except Mismatch:
        return max(_apart(found[name], answer) if name in found else np.inf for name, answer in vector.answers.items())
    return None


def _apart(got: np.ndarray, answer: Answer) -> float:
    """The largest distance from the middle in units of half the width. Where one number alone is accepted, the unit is the last
    place of the largest number of the answer."""
    low, high = answer.accepted
    if np.shape(got) != low.shape:
        return np.inf
    middle, half = (wide(low) + wide(high)) / 2, (wide(high) - wide(low)) / 2
    last = np.spacing(np.nanmax(np.abs(low), initial=0, where=np.isfinite(low)))
    ratios = np.abs(wide(got) - middle) / np.where(half > 0, half, wide(last))
    ratios = np.where(np.isnan(middle), np.where(np.isfinite(wide(got)), np.inf, 0), ratios)
    return float(np.nan_to_num(ratios, nan=np.inf).max(initial=0.0))
