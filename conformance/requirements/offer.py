"""OFFER: what a layer does not offer follows from its configuration."""

import numpy as np

from conformance.requirements import Group, requirement
from conformance.requirements.helpers.layers import prepared
from conformance.subject import Unsupported
from conformance.truth.compare import expect
from conformance.truth.strategies import exact

GROUP = Group("OFFER", "What is offered", order=15, profile="inference", asks="forward")
SOURCES = ("conformance/subject.py: Unsupported",)
CALLS = 6


@requirement(
    "OFFER-01",
    "What a layer does not offer MUST follow from its configuration alone, and not from the numbers, the rows or the calls.",
    formula="forward(x) is offered ⇔ forward(x') is offered", sources=SOURCES, needs="set_adapter forward", cases=exact(),
)
def same_for_every_call(subject, case):
    """A layer that declines wherever its answer would be wrong looks right. The report counts the cases that were not offered,
    so a choice of the configuration, such as a number format, is seen."""
    rows = case.x.reshape(-1, case.x.shape[-1])
    inputs = [rows, rows[:1], np.repeat(rows, 5, axis=0), -rows, np.zeros_like(rows), np.ones_like(rows)] * CALLS
    for words, other in (("these numbers", case), ("other numbers", case.replace(A=-case.A, W=np.zeros_like(case.W)))):
        layer = prepared(subject, other)
        found = [offered(layer.forward, x.copy()) for x in inputs]
        if not any(found):
            layer.forward(rows)  # is declined again, and so is the case
        first = found.index(not found[0]) if len(set(found)) > 1 else 0
        got = f"{'' if found[first] else 'not '}offered at call {first + 1}, for {len(inputs[first])} rows of {words}"
        expect(all(found), "forward()", got, f"as at call 1: {'' if found[0] else 'not '}offered")
    return 0.0


def offered(method, *args) -> bool:
    try:
        method(*args)
    except Unsupported:
        return False
    return True
