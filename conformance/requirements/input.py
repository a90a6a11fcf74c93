"""INPUT: configurations and inputs that are wrong, and arguments that must not be changed."""

import math
from contextlib import suppress

from hypothesis import strategies as st

from conformance.record.trace import SubjectError, refuses
from conformance.requirements import PEFT, Group, requirement
from conformance.requirements.helpers.layers import fresh, gradients, merge, prepared
from conformance.subject import Unsupported
from conformance.truth.compare import expect, expect_equal
from conformance.truth.strategies import exact

GROUP = Group("INPUT", "Bad input", order=100, profile="inference", asks="forward")
SOURCES = (f"{PEFT}, update_layer: r must be positive", "torch.nn.Linear and torch.nn.Dropout refuse the like")


def accepted(subject, case) -> bool:
    """Whether a layer can be built and run. Unsupported is not caught."""
    try:
        fresh(subject, case).forward(case.x)
    except SubjectError as error:
        if error.broke:
            raise
        return False
    return True


def all_refused(subject, case, argument: str, values: tuple) -> None:
    """Demands that the case itself works, and that with any of the values no layer can be built and run."""
    fresh(subject, case).forward(case.x)
    for value in values:
        refused = not accepted(subject, case.replace(**{argument: value}))
        expect(refused, f"a layer with {argument} = {value}", "a result", "an error")


def refused_or_off(subject, case, rank: int) -> None:
    """Demands that a layer of this rank is refused, or is the base layer and has no factors."""
    none = case.replace(rank=rank)
    if accepted(subject, none):
        layer = fresh(subject, none)
        expect_equal(layer.forward(case.x), case.truth.base, f"y with rank = {rank}")
        with suppress(Unsupported, SubjectError):  # there may be no factors to show
            shapes = {name: array.shape for name, array in layer.adapter().items()}
            expect(not any(map(math.prod, shapes.values())), f"factors of a layer with rank = {rank}", shapes, "none")


@requirement(
    "INPUT-01",
    "An input whose last dimension is not in_features MUST be refused with an error, after which the layer works as before.",
    formula="x (…, k), k ≠ in ⇒ an error", sources=SOURCES, needs="set_adapter forward",
    cases=exact(in_features=st.integers(2, 5), leading=st.tuples(st.integers(1, 3))), examples=0.5,
)
def wrong_last_dimension(subject, case):
    """Without a check, broadcasting accepts a last dimension of 1, and reshaping accepts a multiple of in_features."""
    layer = prepared(subject, case)
    before = layer.forward(case.x).copy()
    n_in = case.config.in_features
    for wrong in (1, n_in - 1, n_in + 1, 2 * n_in):
        if wrong != n_in:
            x = case.x[:, :1].repeat(wrong, 1)
            for given in (x, x[0]):
                expect(refuses(layer.forward, given), f"forward of x {given.shape} with in = {n_in}", "a result", "an error")
    return expect_equal(layer.forward(case.x), before, "y after the refusals, against y before")


@requirement(
    "INPUT-02",
    "A negative rank MUST be refused with an error, or give exactly the base layer.",
    formula="rank < 0 ⇒ an error, or y = x Wᵀ + b", sources=(*SOURCES, "loralib: LoRA is on where r > 0"), needs="forward",
    cases=exact(degenerate=True), examples=0.2,
)
def negative_rank(subject, case):
    """Slices and ranges accept negative numbers without an error."""
    fresh(subject, case).forward(case.x)
    for rank in (-1, -case.config.rank - 1):
        refused_or_off(subject, case, rank)


@requirement(
    "INPUT-03",
    "A rank of 0 MUST be refused with an error, or give exactly the base layer.",
    formula="rank = 0 ⇒ an error, or y = x Wᵀ + b", sources=(*SOURCES, "loralib: r = 0 turns LoRA off"), needs="forward",
    cases=exact(degenerate=True), examples=0.2,
)
def rank_zero(subject, case):
    """Both readings are in use. A division by zero that gives NaN, or a default rank in place of 0, is neither."""
    fresh(subject, case).forward(case.x)
    refused_or_off(subject, case, 0)


@requirement(
    "INPUT-04",
    "A rank that is no integer SHOULD be refused with an error.",
    formula="rank ∉ ℤ ⇒ an error", sources=SOURCES, needs="forward", cases=exact(degenerate=True), examples=0.2,
)
def fractional_rank(subject, case):
    """If the rank is rounded for the shapes but not in the scale, the layer has two different ranks."""
    all_refused(subject, case, "rank", (2.5,))


@requirement(
    "INPUT-05",
    "An alpha that is not finite SHOULD be refused with an error.",
    formula="alpha ∈ {NaN, ±∞} ⇒ an error", sources=SOURCES, needs="forward", faults="14", cases=exact(degenerate=True),
    examples=0.2,
)
def alpha_not_finite(subject, case):
    """It gives NaN in place of the base model, at once or after the first step."""
    all_refused(subject, case, "alpha", (math.nan, math.inf, -math.inf))


@requirement(
    "INPUT-06",
    "A dropout outside [0, 1) SHOULD be refused with an error.",
    formula="p ∉ [0, 1) ⇒ an error", sources=SOURCES, needs="forward", optional=True,
    cases=exact(dropout=0.5, degenerate=True), examples=0.2,
)
def dropout_out_of_range(subject, case):
    """p = 1 divides by zero. A percentage in place of a fraction drops everything."""
    all_refused(subject, case, "dropout", (-0.1, 1.0, 1.5, math.nan))


@requirement(
    "INPUT-07",
    "Setting the adapter, and training after it, SHOULD NOT change the arrays that were handed over, or their dict.",
    formula="arguments after = arguments before", sources=("copies at the edge: numpy.array, torch.Tensor.copy_",),
    needs="set_adapter forward backward step", profile="training", faults="122", cases=exact(), examples=0.5,
)
def arguments_are_left_alone(subject, case):
    """The caller may set them in a second layer, or write them to a file."""
    layer = fresh(subject, case)
    handed = {name: array.copy() for name, array in case.adapter.items()}
    layer.set_adapter(handed)
    gradients(layer, case.x, case.dy)
    layer.step(0.5)
    expect(sorted(handed) == ["A", "B"], "keys of the dict given to set_adapter", sorted(handed), ["A", "B"])
    for name, want in case.adapter.items():
        expect_equal(handed[name], want, f"the array given to set_adapter as {name}")


@requirement(
    "INPUT-08",
    "Factors of another shape SHOULD be refused, and leave the layer as it was.",
    formula="shapes differ ⇒ an error, and A, B as before", sources=("torch.Tensor.copy_ broadcasts, numpy.resize repeats",),
    needs="set_adapter adapter forward", faults="36 115", cases=exact(), examples=0.5,
)
def factors_of_another_shape(subject, case):
    """Reshaping a factor that has the other layout scrambles it. Broadcasting a factor gives it rank 1."""
    layer = prepared(subject, case, training=True)
    A, B = case.A, case.B
    for wrong in ({"A": A, "B": B.T}, {"A": A.T, "B": B}, {"A": A, "B": B[:, :1]}, {"A": A[:1], "B": B}):
        if any(wrong[name].shape != right.shape for name, right in case.adapter.items()):
            arrays = {name: -array for name, array in wrong.items()}
            shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
            expect(refuses(layer.set_adapter, arrays), f"set_adapter of {shapes}", "accepted", "an error")
            for name, want in case.adapter.items():
                expect_equal(layer.adapter()[name], want, f"{name} after a set_adapter that was refused")
    return expect_equal(layer.forward(case.x), case.truth.y, "y after a set_adapter that was refused")


@requirement(
    "INPUT-09",
    "Building, merging and training SHOULD NOT change the arrays that were handed over as weight and bias.",
    formula="W₀, b₀ after = W₀, b₀ before", sources=("copies at the edge: numpy.array, torch.Tensor.copy_",),
    needs="set_adapter forward backward step merge", faults="122", profile="training", cases=exact(), examples=0.5,
)
def base_weights_are_left_alone(subject, case):
    """The caller may build a second layer from them, or compare with them."""
    W, b = case.W.copy(), None if case.b is None else case.b.copy()
    layer = subject.build(case.config, W, b)
    layer.set_adapter({name: array.copy() for name, array in case.adapter.items()})
    gradients(layer, case.x, case.dy)
    layer.step(0.5)
    merge(layer)
    expect_equal(W, case.W, "the array given to build as weight")
    if b is not None:
        expect_equal(b, case.b, "the array given to build as bias")


@requirement(
    "INPUT-10",
    "A dy whose shape is not that of y SHOULD be refused.",
    formula="shape of dy ≠ shape of y ⇒ an error", sources=("torch.autograd: the gradient has the shape of the output",),
    needs="set_adapter forward backward", profile="training", cases=exact(leading=st.tuples(st.integers(2, 4))), examples=0.5,
)
def gradient_of_another_shape(subject, case):
    """If dy is broadcast over the rows, the gradient is that of another loss."""
    for dy in (case.dy[:1], case.dy[:, :1], case.dy[0]):
        if dy.shape != case.dy.shape:
            layer = prepared(subject, case, training=True)
            layer.forward(case.x)
            refused = refuses(layer.backward, dy)
            expect(refused, f"backward of dy {dy.shape} with y {case.dy.shape}", "a result", "an error")
