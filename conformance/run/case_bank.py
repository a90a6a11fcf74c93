"""Cases that are drawn once and used for many requirements and many subjects.

Many requirements need cases of the same kind, and drawing a case takes longer than most checks of it. So the cases of a kind
are kept, with the true values that were computed for them. Every requirement of that kind starts with the same cases. If a
case fails, Hypothesis searches for a smaller one.

Most cases are the same in every run. The first and then every FRESH-th one are drawn from the seed of the run, so that a
subject that knows the others by heart is seen.
"""

import itertools
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import hypothesis
from hypothesis import HealthCheck, Phase
from hypothesis.errors import Unsatisfiable, UnsatisfiedAssumption

from conformance.files.case import FileCase
from conformance.record.trace import SubjectError, Traced
from conformance.requirements import Requirement
from conformance.subject import Subject, Unsupported
from conformance.truth.case import Case, shows_the_lora_part
from conformance.truth.compare import Mismatch
from conformance.truth.model_case import ModelCase

HEALTH = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large, HealthCheck.large_base_example]
AT_A_TIME, FRESH_AT_A_TIME = 12, 2  # cases drawn at once
FRESH = 12  # one case in so many is drawn from the seed of the run
SAME = 0  # the seed of the cases that are the same in every run
AnyCase = Case | ModelCase | FileCase
_kept: dict[tuple, list[list[AnyCase]]] = {}  # by kind of case, dtypes and seed: batches


def cases(requirement: Requirement, dtypes: tuple[str, ...], seed: int = 0) -> Iterator[AnyCase]:
    """The cases of the requirement's kind, one after another and without end. None of them is minimal.

    Raises Unsupported if this kind has no case in these dtypes. Ends at once if no case can be drawn."""
    fresh = _stream(requirement, dtypes, seed, FRESH_AT_A_TIME, "fresh")
    same = _stream(requirement, dtypes, SAME, AT_A_TIME)
    for number in itertools.count():
        case = next(same if number % FRESH else fresh, None)
        if case is None:
            return
        yield case


def _stream(requirement: Requirement, dtypes: tuple[str, ...], seed: int, count: int, *name: str) -> Iterator[AnyCase]:
    """The cases of one seed. Those that are the same in every run are marked as known: their true values are kept on disk."""
    of = requirement.cases
    batches = _kept.setdefault((of, dtypes, seed, *name), [])
    for number in itertools.count():
        if number == len(batches):
            drawn = _drawn(of(dtypes), count, seed + 1_000_003 * number + (500_009 if name else 0))
            batches.append(drawn if name else [_known(case) for case in drawn])
        if not batches[number]:
            return
        yield from batches[number]


def _known(case: AnyCase) -> AnyCase:
    return replace(case, known=True) if isinstance(case, ModelCase) else case


def first(requirement: Requirement, dtypes: tuple[str, ...], count: int, seed: int = 0) -> list[AnyCase]:
    """About `count` cases of the requirement: `count` times its `examples`, at least one."""
    with suppress(Unsupported):
        return list(itertools.islice(cases(requirement, dtypes, seed), share(requirement, count)))
    return []


def share(requirement: Requirement, count: int) -> int:
    """The number of cases that decide the requirement, if `count` is the usual number."""
    return max(1, round(count * requirement.examples))


def _drawn(strategy, count: int, seed: int) -> list[AnyCase]:
    drawn: list[AnyCase] = []
    settings = hypothesis.settings(
        max_examples=count + 1, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=HEALTH,
    )

    def keep(case: AnyCase) -> None:
        drawn.append(case)

    with suppress(Unsatisfiable):  # too few were found, or none
        hypothesis.seed(seed)(settings(hypothesis.given(strategy)(keep)))()
    return drawn[-count:]  # the first that Hypothesis tries is the simplest one


def fitted(case: AnyCase, subject: Subject) -> AnyCase:
    """The case with the scale, the alpha or the rank that the subject has, if it is fixed, and square if the subject is: see
    Subject."""
    if not isinstance(case, Case):
        return case
    given = case
    case = case.squared if getattr(subject, "square", False) else case
    case = case.of_rank(rank) if (rank := getattr(subject, "rank", None)) and case.config.rank else case
    if case is not given and shows_the_lora_part(given) and not shows_the_lora_part(case):
        raise Unsupported("a case that shows the LoRA part, of such sizes")
    return case.fitted(getattr(subject, "scale", None), getattr(subject, "alpha", None))


def judge(requirement: Requirement, subject: Subject, cases: list) -> tuple[str, int]:
    """The status that `examine` gives, without the search for a smaller case: pass, fail, error or unsupported. And the number
    of cases that were decided."""
    decided = 0
    for case in cases:
        try:
            requirement.check(Traced(subject, record=False), fitted(case, subject).copy())
            decided += 1
        except (Unsupported, UnsatisfiedAssumption):
            pass
        except Mismatch:
            return "fail", decided + 1
        except SubjectError:
            return "error", decided + 1
    return "pass" if decided else "unsupported", decided
