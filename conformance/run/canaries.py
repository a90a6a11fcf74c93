"""Checks with wrong expected values. They run like all other checks, and each must fail: no layer, right or wrong, gives these
values.

If a canary passes, the run has compared nothing: the code that drives the subject answers with the expected values, or no case
was tried, or the comparison is broken. The verdict is then void.
"""

from conformance.requirements import Requirement, requirement
from conformance.requirements.helpers.layers import gradients, prepared
from conformance.truth.compare import expect_equal, expect_within
from conformance.truth.strategies import exact, rounding

SOURCES = ("conformance/run/canaries.py",)


@requirement(
    "CANARY-01", "It MUST be seen that y is not y + 1.", cases=exact(), needs="set_adapter forward", sources=SOURCES,
    profile="inference", examples=0.2,
)
def output_plus_one(subject, case):
    """On an exact case."""
    expect_equal(prepared(subject, case).forward(case.x), case.truth.y + 1, "y, expected to be y + 1")


@requirement(
    "CANARY-02", "It MUST be seen that y is not off by four times the bound.", cases=rounding(), needs="set_adapter forward",
    sources=SOURCES, profile="inference", examples=0.2,
)
def output_outside_the_bound(subject, case):
    """On real numbers."""
    y = prepared(subject, case).forward(case.x)
    expect_within(y, case.truth.y + 4 * case.bound.y, case.bound.y, "y, expected to be off by four times the bound")


@requirement(
    "CANARY-03", "It MUST be seen that dA is not dA + 1.", cases=exact(), needs="set_adapter forward backward",
    sources=SOURCES, profile="training", examples=0.2,
)
def gradient_plus_one(subject, case):
    """Through the backward pass."""
    found = gradients(prepared(subject, case, training=True), case.x, case.dy)
    expect_equal(found["A"], case.truth.dA + 1, "dA, expected to be dA + 1")


@requirement(
    "CANARY-04", "It MUST be seen that a merged weight is not itself plus 1.", cases=exact(), needs="set_adapter merge weight",
    sources=SOURCES, profile="merge", examples=0.2,
)
def merged_weight_plus_one(subject, case):
    """Through merging."""
    layer = prepared(subject, case, training=True)
    layer.merge()
    expect_equal(layer.weight(), case.truth.merged + 1, "W after merge, expected to be W + scale · (A B)ᵀ + 1")


ALL: tuple[Requirement, ...] = (output_plus_one, output_outside_the_bound, gradient_plus_one, merged_weight_plus_one)
