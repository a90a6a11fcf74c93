"""A few cases for each requirement, drawn once and used for many subjects: what hundreds of mutants are tried on."""

from contextlib import suppress

import hypothesis
from hypothesis import HealthCheck, Phase
from hypothesis.errors import HypothesisException, UnsatisfiedAssumption

from conformance.record.trace import SubjectError, Traced
from conformance.requirements import Requirement
from conformance.subject import Subject, Unsupported
from conformance.truth.case import Case
from conformance.truth.compare import Mismatch
from conformance.truth.model_case import ModelCase

HEALTH = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large, HealthCheck.large_base_example]


def draw(requirement: Requirement, dtypes: tuple[str, ...], count: int, seed: int = 0) -> list:
    """About `count` cases of the requirement (times its own share of examples, at least one), none of them minimal."""
    wanted = max(1, round(count * requirement.examples))
    drawn: list[Case | ModelCase] = []
    settings = hypothesis.settings(
        max_examples=wanted + 1, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=HEALTH,
    )

    def keep(case: Case | ModelCase) -> None:
        drawn.append(case)

    with suppress(Unsupported, HypothesisException):
        hypothesis.seed(seed)(settings(hypothesis.given(requirement.cases(dtypes))(keep)))()
    return drawn[-wanted:]  # the first that Hypothesis tries is the simplest one


def fitted(case: Case | ModelCase, subject: Subject) -> Case | ModelCase:
    """The case as it can be put to the subject: see Subject.scale."""
    return case.at_scale(getattr(subject, "scale", None)) if isinstance(case, Case) else case


def judge(requirement: Requirement, subject: Subject, cases: list) -> tuple[str, int]:
    """pass, fail, error or unsupported, as `examine` has it without the search for the smallest case; and how many cases
    were decided."""
    decided = 0
    for case in cases:
        try:
            requirement.check(Traced(subject), fitted(case, subject).copy())
            decided += 1
        except (Unsupported, UnsatisfiedAssumption):
            pass
        except Mismatch:
            return "fail", decided + 1
        except SubjectError:
            return "error", decided + 1
    return "pass" if decided else "unsupported", decided
