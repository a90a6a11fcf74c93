"""Groups the failures of a report by what explains them: one known fault, one multiple, or one exception."""

from collections.abc import Iterable
from dataclasses import dataclass

from conformance.requirements import Requirement
from conformance.run.examine import Outcome

ERRORS = ("error", "crash", "timeout")


@dataclass(frozen=True)
class Cause:
    """One cause, the failure that shows it best, and the requirements that fail because of it, that one first."""

    head: Requirement
    requirements: tuple[str, ...]
    fault: str = ""  # what explains them all: the name of a known fault, or a multiple of the LoRA part, in words


def causes(planned: Iterable[Requirement], outcomes: dict[str, Outcome], failing: tuple[str, ...]) -> list[Cause]:
    """The causes, the most basic first: in the order of the specification, a MUST before a SHOULD.

    A known fault explains a failure if it fails the requirement with the same answers. The fault that explains most failures is
    the first cause, and so on with those that are left. Failures in which the subject raised the same exception in the same
    call are one cause. Every other failure is a cause of its own."""
    left = [r for r in planned if r.id in outcomes and outcomes[r.id].status in failing]
    left.sort(key=lambda r: r.level != "MUST")  # the order of the specification stays
    order = [r.id for r in left]
    found: list[Cause] = []
    while left:
        groups: dict[tuple, list[Requirement]] = {}
        for requirement in left:
            for key in _keys(outcomes[requirement.id]) or [("alone", requirement.id)]:
                groups.setdefault(key, []).append(requirement)
        (kind, name), members = max(groups.items(), key=lambda item: (len(item[1]), -order.index(item[1][0].id)))
        found.append(Cause(members[0], tuple(r.id for r in members), name if kind in ("fault", "follows") else ""))
        left = [r for r in left if r not in members]
    return sorted(found, key=lambda cause: order.index(cause.head.id))


def _keys(outcome: Outcome) -> list[tuple[str, str]]:
    """What may explain the failure: a multiple of the LoRA part, known faults, or the exception that a call raised."""
    if outcome.status in ERRORS and outcome.failure:
        return [("raised", f"{outcome.failure.get('what')} {outcome.failure.get('got')}")]
    return [("follows", outcome.follows)] * bool(outcome.follows) + [("fault", name) for name in outcome.faults]
