"""Checks of the judge itself. They run through the process, the driver and the device of the subject, before it is judged and
after it. Each must fail. A canary that passes is a surprise: what the run says is worth nothing, and the verdict is void.

Wrong expected values must fail every layer. A layer of ours with a doubled scale must fail, and the right one must not: see
run/canary_layers.py. Both are built in the subject's process, so a subject that changes NumPy or torch there for everybody is
seen, and so is a driver that does not work on this machine. For a program, a program of ours is asked.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from conformance.drivers.hosted import HONEST, SUBJECT, WRONG, HostedSubject, own_environment, python
from conformance.drivers.process import USERS_PATH, ProcessSubject
from conformance.requirements import Requirement, all_requirements, requirement
from conformance.requirements.helpers.layers import gradients, prepared
from conformance.run import canary_layers
from conformance.run.examine import Outcome
from conformance.run.examine import examine as examined
from conformance.subject import Subject
from conformance.truth.compare import Mismatch, expect, expect_equal, expect_within, expect_within_spread
from conformance.truth.strategies import exact, rounding

SOURCES = ("conformance/run/canaries.py",)
THIRD = 1 / 3  # no layer, right or wrong, gives a multiple of it on an exact case: these have few bits


@requirement(
    "CANARY-01", "It MUST be seen that y is not y + ⅓.", cases=exact(), needs="set_adapter forward", sources=SOURCES,
    profile="inference", examples=0.2,
)
def output_plus_a_third(subject, case):
    """On an exact case."""
    expect_equal(prepared(subject, case).forward(case.x), case.truth.y + THIRD, "y, expected to be y + ⅓")


@requirement(
    "CANARY-02", "It MUST be seen that y is not off by four times the bound.", cases=rounding(), needs="set_adapter forward",
    sources=SOURCES, profile="inference", examples=0.2,
)
def output_outside_the_bound(subject, case):
    """On real numbers."""
    y = prepared(subject, case).forward(case.x)
    expect_within(y, case.truth.y + 4 * case.bound.y, case.bound.y, "y, expected to be off by four times the bound")


@requirement(
    "CANARY-03", "It MUST be seen that dA is not dA + ⅓.", cases=exact(), needs="set_adapter forward backward",
    sources=SOURCES, profile="training", examples=0.2,
)
def gradient_plus_a_third(subject, case):
    """Through the backward pass."""
    found = gradients(prepared(subject, case, training=True), case.x, case.dy)
    expect_equal(found["A"], case.truth.dA + THIRD, "dA, expected to be dA + ⅓")


@requirement(
    "CANARY-04", "It MUST be seen that a merged weight is not itself plus ⅓.", cases=exact(), needs="set_adapter merge weight",
    sources=SOURCES, profile="merge", examples=0.2,
)
def merged_weight_plus_a_third(subject, case):
    """Through merging."""
    layer = prepared(subject, case, training=True)
    layer.merge()
    expect_equal(layer.weight(), case.truth.merged + THIRD, "W after merge, expected to be W + scale · (A B)ᵀ + ⅓")


@requirement(
    "CANARY-05", "It MUST be seen that y is not within a bound of zero.", cases=rounding(), needs="set_adapter forward",
    sources=SOURCES, profile="inference", examples=0.2,
)
def output_outside_a_bound_of_zero(subject, case):
    """Rounded numbers are never all right to the last bit of a longer format."""
    expect_within(prepared(subject, case).forward(case.x), case.truth.y, 0 * case.bound.y, "y, within a bound of zero")


@requirement(
    "CANARY-06", "It MUST be seen that an array is not another one.", cases=exact(), needs="", sources=SOURCES,
    profile="inference", examples=0.1,
)
def every_comparison(subject, case):
    """Each of the comparisons, without a subject."""
    y, none = case.truth.y, np.zeros(case.truth.y.shape)
    comparisons: list[Callable[[], object]] = [
        partial(expect_equal, y + 1, y, "y"), partial(expect_within, y + 1, y, none + 0.5, "y"),
        partial(expect_within_spread, y + 1, y, none, "y"), partial(expect_equal, y * np.nan, y, "y"),
        partial(expect, False, "y", "false", "true"),
    ]
    for comparison in comparisons:
        try:
            comparison()
        except Mismatch:
            continue
        return 0.0  # it passes: a comparison is broken
    raise Mismatch("each comparison of numbers that differ", "a failure", "a failure")


ALONE = (output_plus_a_third, output_outside_the_bound, gradient_plus_a_third, merged_weight_plus_a_third,
         output_outside_a_bound_of_zero, every_comparison)
ON_LAYERS = ("FWD-01", "GRAD-01", "GRAD-02", "MERGE-01")  # what the two layers of ours are asked
# id → what is asked, of whose layers, and whether it must pass. What must pass and does not is told as a surprise, too.
ALL: dict[str, tuple[Requirement, str, bool]] = {
    r.id: (r, HONEST if r is every_comparison else SUBJECT, False) for r in ALONE} | {
    f"CANARY-{whose}-{r.id}": (replace(r, examples=0.1), whose, whose == HONEST)
    for whose in (HONEST, WRONG) for r in all_requirements() if r.id in ON_LAYERS}


def examine(id: str, subject: Subject, spec: str, **options) -> Outcome:
    """The outcome of a canary. Its status is `pass` if it is a surprise."""
    asked, whose, must_pass = ALL[id]
    try:
        with_layers = _with_layers(subject, whose)
    except (Exception, SystemExit) as error:
        return Outcome(id, "pass", f"a layer of ours could not be built: {type(error).__name__}: {error}")
    if "kinds" in options:  # and no others: layers of ours are offered in each
        options["dtypes"] = tuple({dtype for dtype, _ in options["kinds"]})
    try:
        outcome = examined(asked, with_layers, spec, explain=False, **options)
    finally:
        if isinstance(subject, HostedSubject) and with_layers is subject:
            subject.as_(SUBJECT)
    outcome.id = id
    if must_pass:
        surprise = outcome.status in ("fail", "error", "indeterminate")
        outcome.message = f"a layer of ours that is right failed {asked.id}: {outcome.message}" if surprise else ""
        outcome.status = "pass" if surprise else "fail" if outcome.status == "pass" else outcome.status
    elif outcome.status in ("pass", "indeterminate"):  # not even a case was drawn
        outcome.status, outcome.message = "pass", asked.sentence + (f" {outcome.message}" if outcome.message else "")
    return outcome


_programs: dict[str, ProcessSubject] = {}


def _with_layers(subject: Subject, whose: str) -> Subject:
    """The subject, which builds these layers. For a program and for a subject in this process it is another one."""
    if whose == SUBJECT:
        return subject
    if isinstance(subject, HostedSubject):
        subject.as_(whose)
        return subject
    if not isinstance(subject, ProcessSubject):
        return canary_layers.subject(whose)
    if whose not in _programs:
        env = own_environment(os.environ.get(USERS_PATH, ""))
        _programs[whose] = ProcessSubject(python("conformance.run.canary_layers", whose), env=env)
    return _programs[whose]
