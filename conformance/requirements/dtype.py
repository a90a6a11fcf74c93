"""DTYPE: number formats, and how much error rounding may cause in each."""

import math
from contextlib import suppress

import ml_dtypes
import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from conformance.requirements import HIGHAM, PEFT, Group, requirement
from conformance.requirements.helpers.layers import gradients, judged, merge, prepared, set_mode, within_bound
from conformance.subject import Unsupported
from conformance.truth.case import Case
from conformance.truth.compare import expect, expect_equal, expect_within, wide
from conformance.truth.strategies import exact, rounding
from lora_ref import lora
from lora_ref.error import bounds

GROUP = Group("DTYPE", "Number formats", order=90, profile="inference", asks="forward")
SOURCES = (HIGHAM, "IEEE 754-2019; bfloat16: 8 bits of significand, the exponent of binary32")
NEEDS = "set_adapter forward"
HALVES = ("float16", "bfloat16")
LONG = 4096  # terms of a long sum
PART = 64  # outputs that a layer computes at a time, at least
OVERFLOWS = 65520  # float16 rounds this number, and larger ones, to infinity
MANY = 128  # ranks of a product that is small beside W


@requirement(
    "DTYPE-01",
    "The output MUST have the dtype of the base layer.",
    formula="dtype(y) = dtype(x Wᵀ)", sources=(f"{PEFT}, Linear.forward: result.to(torch_result_dtype)",),
    needs=NEEDS, faults="126 127 129", cases=exact(degenerate=True),
)
def output_dtype(subject, case):
    """Adapters in float32 over a half-precision base are legitimate. But an output in float32 makes everything after it
    float32 as well, and takes twice the memory. The layer is also built without a bias, since adding a bias can hide the
    fault."""
    y = prepared(subject, case).forward(case.x)
    expect(y.dtype == case.dtype, f"dtype of y of a {case.dtype} layer", y.dtype, case.dtype)
    with suppress(Unsupported):
        y = prepared(subject, case.replace(bias=False, b=None)).forward(case.x)
        expect(y.dtype == case.dtype, f"dtype of y of a {case.dtype} layer without a bias", y.dtype, case.dtype)


@requirement(
    "DTYPE-02",
    "The gradient of x MUST have the dtype of x.",
    formula="dtype(dx) = dtype(x)", sources=("torch.autograd: a gradient has the dtype of its tensor",), profile="training",
    needs=f"{NEEDS} backward", faults="126 127", cases=exact(), examples=0.5,
)
def gradient_dtype(subject, case):
    """The layer below has the same dtype as x, and expects a gradient of it."""
    layer = prepared(subject, case, training=True)
    found = gradients(layer, case.x, case.dy)
    if "x" in found:
        expect(found["x"].dtype == case.dtype, f"dtype of dx of a {case.dtype} layer", found["x"].dtype, case.dtype)


@requirement(
    "DTYPE-03",
    "In float16 the output MUST be within the rounding-error bound.",
    formula="u = 2⁻¹¹ per stored value, float32 sums", sources=SOURCES, needs=NEEDS, faults="128 129", optional=True,
    cases=rounding(only=("float16",)),
)
def float16_output(subject, case):
    """The bound allows a rounding after every product, scaling and addition, and sums in float32."""
    return expect_within(prepared(subject, case).forward(case.x), case.truth.y, case.bound.y, "y in float16")


@requirement(
    "DTYPE-04",
    "In bfloat16 the output MUST be within the rounding-error bound.",
    formula="u = 2⁻⁸ per stored value, float32 sums", sources=SOURCES, needs=NEEDS, faults="128 129", optional=True,
    cases=rounding(only=("bfloat16",)),
)
def bfloat16_output(subject, case):
    """The bound allows a rounding after every product, scaling and addition, and sums in float32."""
    return expect_within(prepared(subject, case).forward(case.x), case.truth.y, case.bound.y, "y in bfloat16")


@requirement(
    "DTYPE-05",
    "In float16 and bfloat16 the gradients MUST be within their rounding-error bounds.",
    formula="u = 2⁻¹¹, 2⁻⁸ per stored value, float32 sums", sources=SOURCES, profile="training", needs=f"{NEEDS} backward",
    faults="128 129", optional=True, cases=rounding(only=HALVES),
)
def low_precision_gradients(subject, case):
    """The gradients are known in closed form. Finite differences would be useless in half precision."""
    layer = prepared(subject, case, training=True)
    return judged(gradients(layer, case.x, case.dy), case, within_bound)


@requirement(
    "DTYPE-06",
    "In float16 and bfloat16 the merged weight MUST be within the rounding-error bound.",
    formula="|W' − exact| ≤ u |W| + 4 u |scale| (|A||B|)ᵀ + …", sources=SOURCES, profile="merge",
    needs="set_adapter merge weight", faults="98", optional=True, cases=rounding(only=HALVES),
)
def low_precision_merge(subject, case):
    """The bound allows the product, the scaling and the sum to be rounded one by one. A product of many ranks that is added to
    W a few ranks at a time is rounded away where it is small beside W."""
    layer = prepared(subject, case, training=True)
    merge(layer)
    ratio = expect_within(layer.weight(), case.truth.merged, case.bound.merged, "W after merge")
    with suppress(Unsupported):  # a scale that cannot be chosen goes with other ranks
        small = small_beside_W(case)
        layer = prepared(subject, small, training=True)
        merge(layer)
        words = f"W after the merge of {MANY} ranks whose product is small"
        ratio = max(ratio, expect_within(layer.weight(), small.truth.merged, small.bound.merged, words))
    return ratio


def small_beside_W(case: Case) -> Case:
    """A square layer with W = 1 and a product of MANY ranks, each of which adds 1/64 of the last bit of 1."""
    dtype, shape = case.dtype, (MANY, MANY)
    bit = float(ml_dtypes.finfo(dtype).eps)
    return case.replace(
        in_features=MANY, out_features=MANY, rank=MANY, alpha=MANY * case.scale, scaling="standard", W=np.ones(shape, dtype),
        b=None if case.b is None else np.zeros(MANY, dtype), A=np.ones(shape, dtype),
        B=np.full(shape, bit / 64 / case.scale, dtype), x=np.ones((1, MANY), dtype), dy=np.ones((1, MANY), dtype))


@requirement(
    "DTYPE-07",
    "In float16 and bfloat16 a merge SHOULD round once: the product and the sum in float32, then one rounding.",
    formula="W' = round(W + scale · (A B)ᵀ)", sources=(*SOURCES, f"{PEFT}, get_delta_weight: fp32 on the CPU, then a cast"),
    profile="merge", needs="set_adapter merge weight", faults="96 97 98", optional=True, cases=rounding(only=HALVES),
)
def low_precision_merge_rounds_once(subject, case):
    """The merged weight is what users get. Rounding the delta before it is added can double the error."""
    layer = prepared(subject, case, training=True)
    merge(layer)
    return expect_within(layer.weight(), case.truth.merged, case.bound.merged_once, "W after merge")


@requirement(
    "DTYPE-08",
    "In float16 and bfloat16 small integers MUST come out exact, in the output and in every gradient.",
    formula="integers below 2¹¹, 2⁸ are exact", sources=SOURCES, profile="training", needs=f"{NEEDS} backward",
    optional=True, cases=exact(only=HALVES),
)
def low_precision_is_exact_on_integers(subject, case):
    """The bounds of low precision are wide, and a wrong term could hide in them. Exact cases leave it no room."""
    layer = prepared(subject, case, training=True)
    expect_equal(layer.forward(case.x), case.truth.y, "y")
    found = gradients(layer, case.x, case.dy)
    for name in ("x", "A", "B"):
        if name in found:
            expect_equal(found[name], getattr(case.truth, f"d{name}"), f"d{name}")


@requirement(
    "DTYPE-09",
    "In float16 and bfloat16 long sums MUST be accumulated in float32 or better, in the output and in the gradients.",
    formula="4096 positive terms over in or out: error ≤ bound with γₖ of float32", sources=SOURCES, profile="training",
    needs=f"{NEEDS} backward", optional=True,
    cases=rounding(only=HALVES, shapes=st.sampled_from([(2, LONG, 6), (2, 6, LONG)]), rank=st.integers(2, 4), positive=True),
    examples=0.5,
)
def low_precision_sums(subject, case):
    """When terms of one sign are added up in bfloat16, the sum stops growing at 256 terms. Sums of tiles stop later, and not at
    512 terms. Mixed signs do not show it. Where a layer computes some rows or some outputs at a time, autograd adds up the
    gradients of the parts in half precision. So sums over rows are not looked at, and those over out may have parts of 64."""
    layer = prepared(subject, case, training=True)
    ratio = expect_within(layer.forward(case.x), case.truth.y, case.bound.y, "y")
    with suppress(Unsupported):  # of what is no torch module
        served = layer.as_module("within", {"x": case.x, "where": "under no_grad"})["y in inference mode"]
        ratio = max(ratio, expect_within(served, case.truth.y, case.bound.y, "y in inference mode under no_grad"))
        set_mode(layer, True)
        layer.forward(case.x)
    found, chunks = gradients(layer, case.x, case.dy), -(-case.config.out_features // PART)
    p, dtype = lora.LoRA(case.A, case.B), case.config.dtype
    dx, factors = bounds.backward(case.dy, case.x, case.W, p, case.scale, dtype, chunks=chunks)
    allowed = {"x": dx, "A": factors.A, "B": factors.B}
    return max(ratio, *(expect_within(found[name], getattr(case.truth, f"d{name}"), allowed[name], f"d{name}")
                        for name in ("x", "A", "B") if name in found))


@requirement(
    "DTYPE-10",
    "bfloat16 layers MUST have the range of bfloat16: without a bias, 2ᵏ x gives 2ᵏ y, and 2ᵏ dy gives 2ᵏ dx.",
    formula="f(2ᵏ x) = 2ᵏ f(x) for b = 0", sources=(HIGHAM, "scaling by a power of two is exact"), needs="set_adapter forward",
    faults="126 129", optional=True, cases=exact(only=("bfloat16",)), examples=0.5,
)
def whole_range(subject, case):
    """bfloat16 has the range of float32. A conversion to float16 on the way loses numbers above 65504 and below 6e-8."""
    case = case.replace(b=None if case.b is None else 0 * case.b)
    for k in (40, -40):
        layer = prepared(subject, case, training=True)
        x, dy = (np.ldexp(wide(array), k).astype(np.float64).astype(case.dtype) for array in (case.x, case.dy))
        expect_equal(layer.forward(x), np.ldexp(case.truth.y, k), f"y of 2^{k} x, against 2^{k} y")
        with suppress(Unsupported):
            layer.forward(case.x)
            found = layer.backward(dy)
            if "x" in found:
                expect_equal(found["x"], np.ldexp(case.truth.dx, k), f"dx of 2^{k} dy, against 2^{k} dx")


@requirement(
    "DTYPE-11",
    "In float16 no intermediate result SHOULD overflow where x, y, and x A and (x A) B with the scale and without it, fit.",
    formula="scale = 64, x ≤ 2¹²: 64 x overflows, 64 (x A) B does not", sources=SOURCES, needs=NEEDS, optional=True,
    cases=exact(only=("float16",), small=True), examples=0.25,
)
def scaled_where_it_fits(subject, case):
    """A scale that is applied to x at once takes some of the range of x away, which is small in float16."""
    power, config = 2.0**12, case.config
    large = case.replace(alpha=64.0 * (config.rank if config.scaling == "standard" else config.rank**0.5),
                         x=(case.x * power).astype(case.dtype), A=(case.A / power).astype(case.dtype),
                         W=(case.W / power).astype(case.dtype))
    return expect_equal(prepared(subject, large).forward(large.x), large.truth.y, "y of a large x, with a scale of 64")


@requirement(
    "DTYPE-12",
    "In float16 what is too large for the format MUST come out as infinity or NaN, in y and in the gradients.",
    formula="|exact| − bound ≥ 65520 ⇒ not finite", sources=(
        "IEEE 754-2019, §7.4: overflow", "PyTorch documentation, torch.amp.GradScaler: steps with infinities are skipped"),
    needs=f"{NEEDS} backward", optional=True, cases=exact(only=("float16",)), examples=0.25,
)
def overflow_is_seen(subject, case):
    """Training with a scaled loss looks for infinities, and then skips the step. A result that was cut off at the largest
    number is taken for a right one."""
    for name in ("y", "dA", "dB"):
        largest = float(np.abs(getattr(case.truth, name)).max(initial=0))
        assume(largest > 0)
        power = math.ceil(math.log2(2 * OVERFLOWS / largest))
        x, dy = (power, 0) if name == "y" else (power // 2, power - power // 2)
        large = case.replace(**{which: np.ldexp(wide(getattr(case, which)), by).astype(np.float64).astype(case.dtype)
                                for which, by in (("x", x), ("dy", dy))})
        assume(np.isfinite(wide(large.x)).all() and np.isfinite(wide(large.dy)).all())
        layer = prepared(subject, large, training=True)
        found = layer.forward(large.x) if name == "y" else gradients(layer, large.x, large.dy)[name[1:]]
        if found.dtype != case.dtype:
            continue  # factors in float32 have gradients in float32
        beyond = np.abs(getattr(large.truth, name)) - getattr(large.bound, name) >= OVERFLOWS
        finite = np.isfinite(wide(found)) & beyond
        expect(not finite.any(), f"finite numbers of {name} where the right ones are beyond the range", finite.sum(), 0)
