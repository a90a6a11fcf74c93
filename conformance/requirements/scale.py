"""SCALE: the factor of the LoRA part."""

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from conformance.record.trace import SubjectError, refuses
from conformance.requirements import HIGHAM, PAPER, PEFT, Group, requirement
from conformance.requirements.helpers.layers import exactly, fresh, gradients, judged, merge, prepared
from conformance.subject import Unsupported
from conformance.truth.case import exact_in_any_order
from conformance.truth.compare import expect_equal, expect_within, wide
from conformance.truth.strategies import exact, rounding

GROUP = Group("SCALE", "Scale", order=50, profile="inference", asks="forward")
STANDARD = (f"{PAPER}, §4.1: ΔW x is scaled by α / r", f"{PEFT}, update_layer")
RSLORA = ("Kalajdzievski 2023, rsLoRA, arXiv:2312.03732: α / √r", f"{PEFT}, update_layer, use_rslora")
NEEDS = "set_adapter forward"


@requirement(
    "SCALE-01",
    "The scale MUST be alpha / rank, for ranks that are powers of two and for others.",
    formula="scale = alpha / rank", sources=STANDARD, needs=NEEDS, faults="01 02 03 71",
    cases=exact(rank=st.integers(2, 6), in_features=st.integers(3, 8), out_features=st.integers(3, 8)),
)
def alpha_over_rank(subject, case):
    """The fault that is reported most. With the base taken away, the output is the scale times integers."""
    case = case.replace(W=0 * case.W, b=None if case.b is None else 0 * case.b)
    return expect_equal(prepared(subject, case).forward(case.x), case.truth.y, "y with W = 0 and b = 0, scale · (x A) B")


@requirement(
    "SCALE-02",
    "If alpha / rank cannot be stored exactly, the scale MUST be right to within rounding.",
    formula="scale = alpha / rank", sources=(*STANDARD, HIGHAM), needs=NEEDS, optional=True, faults="01 02 03",
    cases=rounding(rank=st.sampled_from([3, 5, 6, 7])),
)
def scale_within_rounding(subject, case):
    """An integer division, or a scale in low precision, gives exact results for the pairs that are usually tried."""
    case = case.replace(alpha=16.0, W=0 * case.W, b=None if case.b is None else 0 * case.b)
    y = prepared(subject, case).forward(case.x)
    return expect_within(y, case.truth.y, case.bound.y, "y with W = 0 and b = 0, scale · (x A) B")


@requirement(
    "SCALE-03",
    "Where rank-stabilised scaling is offered, the scale MUST be alpha / √rank.",
    formula="scale = alpha / √rank", sources=RSLORA, needs=NEEDS, faults="04 05 06 07 22", optional=True,
    cases=exact(scaling="rslora", rank=st.just(4), in_features=st.integers(5, 8), out_features=st.integers(5, 8)),
)
def alpha_over_root_rank(subject, case):
    """If the option is accepted but ignored, the strength is off by √rank without an error. At rank 4 the scale is exact."""
    return expect_equal(prepared(subject, case).forward(case.x), case.truth.y, "y with rslora scaling")


@requirement(
    "SCALE-04",
    "Where rank-stabilised scaling is offered, it MUST hold to within rounding for every rank.",
    formula="scale = alpha / √rank", sources=(*RSLORA, HIGHAM), needs=NEEDS, faults="04 05 06", optional=True,
    cases=rounding(scaling="rslora", rank=st.integers(2, 9)), examples=0.5,
)
def root_rank_within_rounding(subject, case):
    """√rank is not an integer in general. Only then does a root that was rounded to an integer show."""
    y = prepared(subject, case).forward(case.x)
    return expect_within(y, case.truth.y, case.bound.y, "y with rslora scaling")


@requirement(
    "SCALE-05",
    "The LoRA part MUST be linear in alpha.",
    formula="y(4 alpha) − y(0) = 4 (y(alpha) − y(0))", sources=STANDARD, needs=NEEDS,
    optional=True, faults="03 71", cases=exact(),
    examples=0.5,
)
def linear_in_alpha(subject, case):
    """This law needs no reference implementation. It holds for every convention in which the scale depends on alpha. A layer
    that merges in inference mode may know alpha there alone."""
    more = case.replace(alpha=4 * case.config.alpha)
    assume(exact_in_any_order(more))
    for training in (False, True):
        once, four = (wide(prepared(subject, c, training).forward(c.x)) - c.truth.base for c in (case, more))
        mode = "training" if training else "inference"
        what = f"LoRA part in {mode} mode at four times the alpha, against four times the part"
        expect_equal(four, 4 * once, what)


@requirement(
    "SCALE-06",
    "With alpha = 0 the layer MUST be the base layer, or be refused when it is built.",
    formula="alpha = 0 ⇒ y = x Wᵀ + b, or an error", sources=STANDARD, needs=NEEDS,
    optional=True, faults="11 14", cases=exact(), examples=0.5,
)
def alpha_zero_is_the_base(subject, case):
    """alpha = 0 turns the adapter off. Code that takes 0 for a missing value puts a default in its place and turns it on."""
    case = case.replace(alpha=0.0)
    if refuses(fresh, subject, case):
        return 0.0
    return expect_equal(prepared(subject, case).forward(case.x), case.truth.base, "y with alpha = 0")


@requirement(
    "SCALE-07",
    "Padding the rank with zero columns of A, and scaling alpha with it, MUST change nothing.",
    formula="f(A, B; r, alpha) = f([A 0], [B; C]; r', alpha r' / r) for any C", sources=STANDARD, needs=NEEDS,
    faults="01 02 12 21", examples=0.5,
    cases=exact(in_features=st.integers(4, 8), out_features=st.integers(4, 8), rank=st.sampled_from((1, 2))),
)
def padding_the_rank(subject, case):
    """The rank that divides alpha must be the rank of the factors."""
    r, more = case.config.rank, case.config.rank * 2
    fill = np.ones((more - r, case.B.shape[1]), case.dtype)
    padded = case.replace(
        rank=more, alpha=case.config.alpha * more / r,
        A=np.concatenate([case.A, 0 * case.A], 1), B=np.concatenate([case.B, fill]),
    )
    assume(exact_in_any_order(padded))
    return expect_equal(prepared(subject, padded).forward(case.x), case.truth.y, "y of the padded layer, against the layer")


@requirement(
    "SCALE-08",
    "The scale MUST belong to the layer: another layer with another alpha and rank changes nothing.",
    formula="scale₁ = alpha₁ / rank₁ whatever alpha₂, rank₂", sources=STANDARD, needs=NEEDS,
    optional=True, faults="06 09 17",
    cases=exact(), examples=0.5,
)
def scale_is_per_layer(subject, case):
    """Models have layers of different rank. A scale that is stored in the class, or globally, is that of the last layer."""
    first = prepared(subject, case)
    expect_equal(first.forward(case.x), case.truth.y, "y before the second layer is made")
    other = case.replace(
        rank=case.config.rank + 1, alpha=8 * case.config.alpha,
        A=np.pad(case.A, ((0, 0), (0, 1))), B=np.pad(case.B, ((0, 1), (0, 0))),
    )
    prepared(subject, other).forward(case.x)
    return expect_equal(first.forward(case.x), case.truth.y, "y after a second layer was made and used")


@requirement(
    "SCALE-09",
    "Where rank-stabilised scaling is offered, the gradients MUST have its scale.",
    formula="dA = alpha / √rank · xᵀ (dy Bᵀ), and so on", sources=RSLORA, needs=f"{NEEDS} backward", faults="04 06",
    profile="training", optional=True,
    cases=exact(scaling="rslora", rank=st.just(4), in_features=st.integers(5, 8), out_features=st.integers(5, 8)), examples=0.5,
)
def root_rank_in_the_gradients(subject, case):
    """A hand-written backward pass may compute the scale again, and by another rule."""
    return judged(gradients(prepared(subject, case, training=True), case.x, case.dy), case, exactly, " with rslora scaling")


@requirement(
    "SCALE-10",
    "Where rank-stabilised scaling is offered, the merged weight MUST have its scale.",
    formula="W' = W + alpha / √rank · (A B)ᵀ", sources=RSLORA, needs="set_adapter merge weight", faults="22",
    profile="merge", optional=True,
    cases=exact(scaling="rslora", rank=st.just(4), in_features=st.integers(5, 8), out_features=st.integers(5, 8)), examples=0.5,
)
def root_rank_in_the_merge(subject, case):
    """Merge tools read the configuration themselves, and may ignore the option."""
    layer = prepared(subject, case, training=True)
    merge(layer)
    return expect_equal(layer.weight(), case.truth.merged, "W after merge, with rslora scaling")


@requirement(
    "SCALE-11",
    "A negative alpha, where it is accepted, MUST change the sign of the LoRA part.",
    formula="y(−alpha) − base = −(y(alpha) − base)", sources=STANDARD, needs=NEEDS, faults="131", optional=True,
    cases=exact(), examples=0.5,
)
def negative_alpha(subject, case):
    """Subtracting an adapter can remove a concept from a model. A layer may refuse a negative alpha, not ignore its sign."""
    turned = case.replace(alpha=-case.config.alpha)
    try:
        layer = prepared(subject, turned)
    except SubjectError as refusal:
        raise Unsupported("a negative alpha") from refusal
    return expect_equal(layer.forward(case.x), turned.truth.y, "y with a negative alpha")


@requirement(
    "SCALE-12",
    "A very large or a very small alpha MUST be applied in full.",
    formula="y = x Wᵀ + b + scale · (x A) B, alpha / rank from 2⁻¹² to 2¹²", sources=STANDARD, needs=NEEDS,
    optional=True, faults="03",
    cases=exact(only=("float32", "float64"), scales=(2.0**12, 2.0**-12, 2.0**8, 2.0**-8)), examples=0.5,
)
def extremes_of_alpha(subject, case):
    """Some layers clip the scale to a range that seemed reasonable to their authors."""
    return expect_equal(prepared(subject, case).forward(case.x), case.truth.y, "y")
