"""PARAM: which parameters train, and which are frozen."""

import math

import numpy as np
from hypothesis import strategies as st

from conformance.requirements import PAPER, Group, requirement
from conformance.requirements.helpers.layers import fresh, gradients, prepared
from conformance.subject import Unsupported
from conformance.truth.case import exact_in_any_order
from conformance.truth.compare import expect, expect_equal
from conformance.truth.strategies import exact, rounding

GROUP = Group("PARAM", "Parameters", order=40, profile="training", asks="backward")
SOURCES = (f"{PAPER}, §4.2: |Θ| = 2 · L · d_model · r for square matrices",)
# For a matrix out × in the count is r (in + out). With in = out = d it is the paper's 2 d r.


@requirement(
    "PARAM-01",
    "The number of trainable parameters MUST be rank · (in + out), which is 2 · d · rank for a square matrix.",
    formula="|Θ| = rank · (in + out)", sources=SOURCES, needs="trainable", faults="52 64 124",
    cases=exact(in_features=st.integers(9, 40), out_features=st.integers(9, 40), rank=st.integers(1, 9), degenerate=True),
)
def trainable_count(subject, case):
    """LoRA is chosen for its small number of parameters. A larger number shows that something else trains."""
    n = case.config.in_features
    b = None if case.b is None else np.resize(case.b, n)
    for c in (case, case.replace(out_features=n, W=np.resize(case.W, (n, n)), b=b)):
        shapes = fresh(subject, c).trainable()
        want = c.config.rank * (c.config.in_features + c.config.out_features)
        expect(sum(map(math.prod, shapes.values())) == want, "trainable parameters", shapes, f"{want} in all")


@requirement(
    "PARAM-02",
    "Only A and B MUST train: W, b and everything else are frozen.",
    formula="Θ = {A, B}", sources=(f"{PAPER}, §4.1: W₀ is frozen",), needs="trainable", faults="31 52 64",
    cases=exact(degenerate=True), examples=0.5,
)
def only_the_factors_train(subject, case):
    """The count alone can be right by accident."""
    refusals: list[Unsupported] = []
    for scaling in ("standard", "rslora"):
        try:
            names = sorted(fresh(subject, case.replace(scaling=scaling)).trainable())
        except Unsupported as refusal:
            refusals.append(refusal)
            continue
        expect(names == ["A", "B"], f"names of the trainable parameters, with {scaling} scaling", names, ["A", "B"])
    if len(refusals) == 2:
        raise refusals[0]


@requirement(
    "PARAM-03",
    "An optimiser step MUST leave W and b bit-identical.",
    formula="W, b after = W, b before", sources=(f"{PAPER}, §4.1: W₀ is frozen",), profile="training",
    needs="set_adapter forward backward step weight bias", faults="31 64", cases=rounding(), examples=0.5,
)
def step_leaves_frozen_weights(subject, case):
    """A weight that is marked as frozen still moves if the optimiser is given it."""
    layer = prepared(subject, case, training=True)
    for _ in range(2):
        gradients(layer, case.x, case.dy)
        layer.step(0.25)
    expect_equal(layer.weight(), case.W, "W after two SGD steps")
    if case.b is not None:
        expect_equal(layer.bias(), case.b, "b after two SGD steps")


@requirement(
    "PARAM-04",
    "An SGD step MUST move A and B by −lr times their gradients, and by nothing else.",
    formula="A ← A − lr · dA, B ← B − lr · dB", sources=("Robbins and Monro 1951; torch.optim.SGD without options",),
    needs="set_adapter forward backward step adapter", faults="57 63 68", cases=exact(only=("float32", "float64")),
    examples=0.5,
)
def step_is_plain_sgd(subject, case):
    """With a power of two as the rate the step is exact. This shows a factor that gets a gradient but does not move."""
    dA, dB = case.truth.dA, case.truth.dB
    for rate in (4.0, 0.5):
        layer = prepared(subject, case, training=True)
        gradients(layer, case.x, case.dy)
        layer.step(rate)
        after = case.replace(A=(case.A - rate * dA).astype(case.dtype), B=(case.B - rate * dB).astype(case.dtype))
        for name, want in after.adapter.items():
            expect_equal(layer.adapter()[name], want, f"{name} after an SGD step of rate {rate:g}")
    if exact_in_any_order(after):
        expect_equal(layer.forward(case.x), after.truth.y, "y after an SGD step")
    layer.step(rate)
    for name, before in case.adapter.items():
        gradient = getattr(case.truth, f"d{name}")
        expect_equal(layer.adapter()[name], before - 2 * rate * gradient, f"{name} after another step along the same gradients")
