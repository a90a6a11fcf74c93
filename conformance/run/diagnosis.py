"""Finds the likely cause of a failure: a known fault that gives the same answers, and a simple relation of "got" to "want".

A case that has been made small fits many faults. So the subject is asked again on a few cases that have not, and only what
fits all of them is reported. The subject is also asked about the other requirements that such a fault fails. If no cause fits
clearly, none is reported.
"""

import json
import math
import time
from contextlib import suppress
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from hypothesis.errors import UnsatisfiedAssumption

from conformance.files.case import FileCase
from conformance.mutants import Mutant, all_mutants
from conformance.record.trace import SubjectError, Traced
from conformance.requirements import Requirement, all_requirements
from conformance.run import case_bank
from conformance.subject import Subject, Unsupported
from conformance.truth.case import Case, Together, exact_in_any_order
from conformance.truth.compare import Mismatch, alike, ratio_of, same_number, wide
from conformance.truth.model_case import ModelCase

CASES = 6  # in addition to the smallest one


class _Differs(BaseException):
    """Ends a check. It is not an Exception, so that no check catches it."""


class Heard(Traced):
    """Runs a check on a subject, and keeps a copy of every answer and the result of the check. With `like` it ends at the first
    answer that is not the one that `like` heard: a check may be long, and most known faults differ early."""

    def __init__(self, requirement: Requirement, subject: Subject, case: case_bank.AnyCase, like: "Heard | None" = None):
        super().__init__(subject)
        self.case, self.answers, self.like = case, [], like
        self.failure: Mismatch | None = None
        self.decided = True
        try:
            requirement.check(self, case.copy())
        except Mismatch as failure:
            self.failure = failure
        except (SubjectError, Unsupported, UnsatisfiedAssumption, _Differs):
            self.decided = False

    def _ask(self, label, method, args, answer=None):
        result = super()._ask(label, method, args, answer)
        method, known = label.split(".")[-1], len(self.answers)
        if isinstance(result, np.ndarray):
            self.answers.append((method, result.copy()))
        elif isinstance(result, dict):
            self.answers += [(f"{method} {k}", a.copy()) for k, a in sorted(result.items()) if isinstance(a, np.ndarray)]
        if self.like is not None and not self.like.hears(self.answers[known:], known):
            raise _Differs
        return result

    def hears(self, answers: list, place: int) -> bool:
        """Whether it heard these answers, too, from that place on, within what rounding allows to both."""
        exact = self.exact and not (self.failure and self.failure.bound)
        its = self.answers[place : place + len(answers)]
        return len(its) == len(answers) and all(
            name == its_name and alike(a, b, None if exact else _bound(self.case, name))
            for (name, a), (its_name, b) in zip(its, answers, strict=True))

    @cached_property
    def exact(self) -> bool:
        return isinstance(self.case, FileCase) or isinstance(self.case, Case) and exact_in_any_order(self.case)

    def same_as(self, other: "Heard") -> bool:
        """Whether both failed the check with the same answers, within what rounding allows to both."""
        if self.failure is None or other.failure is None or len(self.answers) != len(other.answers):
            return False
        words = [f.what if f.error is not None else str(f) for f in (self.failure, other.failure)]
        if words[0] != words[1]:  # not the same check, or no numbers were compared: a shape, a name, a refusal
            return False
        return self.hears(other.answers, 0)


class Diagnosis(NamedTuple):
    """The likely cause in one sentence, or None. `faults` are the names of all known faults that give the same answers."""

    words: str | None
    faults: tuple[str, ...] = ()


def diagnose(requirement: Requirement, subject: Subject, case: case_bank.AnyCase, until: float = math.inf) -> Diagnosis:
    """The likely cause. It may ask the subject a few dozen times, in the dtype of the case. `until` is
    the time, of time.perf_counter, at which it ends; only slow subjects and busy machines reach it."""
    drawn = case_bank.first(requirement, (case.config.dtype,), round(CASES / requirement.examples))
    cases = [case]
    for other in drawn:
        with suppress(Unsupported):
            cases.append(case_bank.fitted(other, subject))
    asked = (Heard(requirement, subject, c) for c in cases if time.perf_counter() < until)
    heard = [h for h in asked if h.failure is not None][: CASES + 1]
    if not heard:
        return Diagnosis(None)
    known = _known_fault(requirement, subject, heard, until)
    parts = [known.words, _relation(heard)]
    return known._replace(words="; ".join(part for part in parts if part) or None)


def _known_fault(requirement: Requirement, subject: Subject, heard: list[Heard], until: float) -> Diagnosis:
    """The known fault that gives the same answers, in words. Preferred are faults that the requirement is known to catch, then
    those of its group, then those that were reported in public. None if there is no time to try them all."""
    def likelihood(mutant: Mutant) -> tuple[bool, ...]:
        return requirement.id not in mutant.kills, mutant.group != requirement.group, not mutant.reports

    found = []
    for m in sorted(all_mutants(), key=likelihood):
        if time.perf_counter() < until and all(h.same_as(Heard(requirement, m.subject(), h.case, h)) for h in heard):
            found.append(m)
    if not found:
        return Diagnosis(None)
    names = tuple(m.name for m in found)
    mutant = _likeliest(requirement, found, subject, heard[0].case.config.dtype, until)
    if time.perf_counter() > until:
        return Diagnosis(None, names)  # another one may fit better
    likeness = "looks like" if heard[0].failure and heard[0].failure.error is None else "matches"  # "matches": numbers agree
    return Diagnosis(mutant and f"{likeness} a known fault: {mutant.words.rstrip('.')}{_reports(mutant)}", names)


def _likeliest(requirement: Requirement, found: list[Mutant], subject: Subject, dtype: str, until: float) -> Mutant | None:
    """The mutant that fails most like the subject. `found` are the mutants that this requirement cannot tell from the subject.

    They are compared on the other requirements that one of them is known to fail, and the first of several equals is taken.
    None if the best agrees with the subject in at most half of the cases that one of the two fails."""
    alike, told = dict.fromkeys(found, 0), dict.fromkeys(found, 0)
    others = {id for mutant in found for id in mutant.kills} - {requirement.id}
    for other in all_requirements():
        for case in _cases(other, dtype) if other.id in others and time.perf_counter() < until else ():
            asked = Heard(other, subject, case)
            for mutant in found if asked.decided else ():
                its = Heard(other, mutant.subject(), case)
                alike[mutant] += asked.same_as(its)
                told[mutant] += asked.failure is not None or its.failure is not None
    share = {mutant: alike[mutant] / told[mutant] if told[mutant] else 1.0 for mutant in found}
    best = max(found, key=share.__getitem__)
    return best if share[best] > 0.5 else None


@cache
def _cases(requirement: Requirement, dtype: str) -> list[case_bank.AnyCase]:
    return case_bank.first(requirement, (dtype,), CASES)


def _reports(mutant: Mutant) -> str:
    for id in mutant.reports[:1]:
        row = catalogue()[id]
        more = f" and {len(mutant.reports) - 1} more" if len(mutant.reports) > 1 else ""
        return f", as in {row['project']} ({row['links'][0]}, {id}){more}"
    return ""


@cache
def catalogue() -> dict[str, dict]:
    """known_faults.json by id."""
    rows = json.loads((Path(__file__).parents[1] / "known_faults.json").read_text(encoding="utf-8"))["faults"]
    return {row["id"]: row for row in rows}


def _relation(heard: list[Heard]) -> str | None:
    """The simplest relation of got to want that holds in every case. The smallest case has too few numbers and is left out, if
    there are others."""
    found = [dict(_relations(h)) for h in heard[1:] or heard]
    for name, text in found[0].items():
        if all(name in other for other in found):
            return text
    return None


def _relations(heard: Heard):
    """(kind, sentence) for every simple relation that holds in this case, the likeliest first."""
    assert heard.failure is not None
    if heard.failure.arrays is None or isinstance(heard.case, ModelCase):
        return
    got, want = heard.failure.arrays
    if isinstance(heard.case, FileCase):
        yield from _relations_of_a_file(heard.case, got, want)
        return
    case, config = heard.case, heard.case.config
    n = max(1, int(np.prod(case.x.shape[:-1])))
    for name, part in _parts(case, want).items():
        if not part.any():
            continue
        if np.array_equal(got, want - part):
            yield f"without {name}", f"{name} is missing"
        if np.array_equal(got, want + part):
            yield f"with {name}", f"{name} counts twice"
    base = case.truth.base if got.shape == case.truth.base.shape and np.array_equal(want, case.truth.y) else 0 * want
    ratio = ratio_of(got - base, want - base)
    if ratio is not None and ratio != 1:
        names = {
            "the rank": config.rank, "1 / rank": 1 / config.rank, "√rank": config.rank**0.5, "1 / √rank": config.rank**-0.5,
            "the scale": case.scale, "1 / scale": 1 / (case.scale or np.inf),
            "1 / rows, as of a mean in the place of a sum": 1 / n, "−1, the sign": -1.0,
        }
        part = "LoRA part, observed / expected" if base is not want and np.any(base) else "observed / expected"
        for name, value in names.items():
            if same_number(ratio, value):
                yield f"ratio {name}", f"{part} = {name}"  # its value differs from case to case
        yield f"ratio {ratio:.6g}", f"{part} = {ratio:.6g}"
    if got.ndim == 2 and got.shape[0] == got.shape[1] and np.array_equal(got, want.T):
        yield "transpose", "observed is the transpose of expected"
    rows_got, rows_want = (a.reshape(-1, a.shape[-1]) for a in (got, want)) if got.ndim else (got, want)
    if got.ndim > 1 and sorted(map(tuple, rows_got)) == sorted(map(tuple, rows_want)):
        yield "rows", "observed are the rows of expected in another order"
    if got.ndim and sorted(map(tuple, rows_got.T)) == sorted(map(tuple, rows_want.T)):
        yield "columns", "observed are the columns of expected in another order"


def _relations_of_a_file(case: FileCase, got: np.ndarray, want: np.ndarray):
    """The simple relations of what a reader made of a file to what that means. The rank is one of the sizes of the factors."""
    ratio = ratio_of(got, want)
    ranks = {size for array in case.tensors.values() if array.ndim == 2 for size in array.shape} - {1}
    if not got.any():
        yield "nothing", "the LoRA part is missing: this module computes what the base computes"
    elif ratio is not None and ratio != 1:
        for rank in sorted(ranks):
            names = {"the rank": rank, "1 / rank": 1 / rank, "√rank": rank**0.5, "1 / √rank": rank**-0.5}
            for name, value in names.items():
                if same_number(ratio, value):
                    yield f"ratio {name}", f"observed / expected = {name}"
    if got.ndim == 2 and got.shape[0] == got.shape[1] and np.array_equal(got, want.T):
        yield "transpose", "observed is the transpose of expected"


def _parts(case: Case, want: np.ndarray) -> dict[str, np.ndarray]:
    """The terms of the right answer `want`, if it is y, dx or W'. Otherwise {}."""
    W, x, dy = (wide(a) for a in (case.W, case.x, case.dy))
    truth = case.truth
    if want.shape == truth.y.shape and np.array_equal(want, truth.y):
        bias = {} if case.b is None else {"the bias": np.broadcast_to(wide(case.b), want.shape)}
        return bias | {"the LoRA part": want - truth.base, "the base product": x @ W.T}
    if want.shape == truth.dx.shape and np.array_equal(want, truth.dx):
        return {"the LoRA path": want - dy @ W, "the base path": dy @ W}
    if want.shape == truth.merged.shape and np.array_equal(want, truth.merged):
        return {"scale · (A B)ᵀ": want - W, "W": W}
    return {}


def _bound(case: case_bank.AnyCase, name: str):
    """The rounding bound of the answer of that name. None asks for equality."""
    if isinstance(case, FileCase):
        return None
    if isinstance(case, ModelCase):
        return case.bound(name)
    if case.others:
        return Together(case, case.all_weights).bound_of_one if name == "forward" else None
    names = {"forward": "y", "backward x": "dx", "backward A": "dA", "backward B": "dB", "weight": "unmerged"}
    return getattr(case.bound, names[name]) if name in names else None
