"""GRAD: the gradients of the backward pass."""

from contextlib import suppress

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from conformance.record.trace import SubjectError, refuses
from conformance.requirements import HIGHAM, PAPER, Group, requirement
from conformance.requirements.helpers.layers import exactly, gradient, gradients, judged, prepared, set_mode, within_bound
from conformance.requirements.helpers.sequences import RATE
from conformance.requirements.helpers.variants import large_or_round, layouts, regauged
from conformance.subject import Unsupported
from conformance.truth.case import Case, exact_in_any_order
from conformance.truth.compare import Mismatch, expect, expect_equal, wide
from conformance.truth.strategies import exact, rounding

GROUP = Group("GRAD", "Gradients", order=30, profile="training", asks="backward")
SOURCES = (f"{PAPER}, §4.1 eq. 3, differentiated in lora_ref/derivations/lora.md",)
NEEDS = "set_adapter forward backward"


@requirement(
    "GRAD-01",
    "The gradient of x MUST be dy W + scale · (dy Bᵀ) Aᵀ.",
    formula="dx = dy W + scale · (dy Bᵀ) Aᵀ", sources=SOURCES, needs=NEEDS, faults="55 58", cases=exact(),
)
def gradient_of_x(subject, case):
    """Everything below the layer learns from this gradient alone."""
    layer = prepared(subject, case, training=True)
    return expect_equal(gradient(layer, case, "x"), case.truth.dx, "dx")


@requirement(
    "GRAD-02",
    "The gradient of A MUST be scale · xᵀ (dy Bᵀ).",
    formula="dA = scale · xᵀ (dy Bᵀ)", sources=SOURCES, needs=NEEDS, faults="48 49 57 58", cases=exact(),
)
def gradient_of_A(subject, case):
    """Summed over every leading dimension, and not averaged. On small integers the answer is exact."""
    layer = prepared(subject, case, training=True)
    return expect_equal(gradient(layer, case, "A"), case.truth.dA, "dA")


@requirement(
    "GRAD-03",
    "The gradient of B MUST be scale · (x A)ᵀ dy.",
    formula="dB = scale · (x A)ᵀ dy", sources=SOURCES, needs=NEEDS, faults="48 49 57 58", cases=exact(),
)
def gradient_of_B(subject, case):
    """Summed over every leading dimension, and not averaged. On small integers the answer is exact."""
    layer = prepared(subject, case, training=True)
    return expect_equal(gradient(layer, case, "B"), case.truth.dB, "dB")


@requirement(
    "GRAD-04",
    "On real numbers dx, dA and dB MUST be within the rounding-error bounds of their formulas.",
    formula="|dA − exact| ≤ γ(out + n + …) |scale| |x|ᵀ(|dy||B|ᵀ), …", sources=(HIGHAM,), needs=NEEDS, cases=rounding(),
    examples=2,
)
def gradients_within_rounding(subject, case):
    """This shows gradients that are stored or computed in a lower precision than that of the layer."""
    layer = prepared(subject, case, training=True)
    found = gradients(layer, case.x, case.dy)
    return judged(found, case, within_bound)


@requirement(
    "GRAD-05",
    "The gradient of x MUST hold both paths: dy W when A or B is zero, scale · (dy Bᵀ) Aᵀ when W is zero.",
    formula="dx|B=0 = dy W, dx|W=0 = scale · (dy Bᵀ) Aᵀ", sources=SOURCES, needs=NEEDS, faults="55 66", cases=exact(),
    examples=0.5,
)
def both_paths_reach_x(subject, case):
    """If one path is cut, the gradient still looks plausible and the model still trains, but worse."""
    for changed in (case.replace(B=0 * case.B), case.replace(W=0 * case.W)):
        expect_equal(gradient(prepared(subject, changed, training=True), changed, "x"), changed.truth.dx, "dx")


@requirement(
    "GRAD-06",
    "While B is zero the gradient of A MUST be zero and that of B MUST NOT be.",
    formula="B = 0 ⇒ dA = 0, dB = scale · (x A)ᵀ dy", sources=SOURCES, needs=NEEDS, cases=exact(), examples=0.5,
)
def gradients_at_the_start(subject, case):
    """dA = 0 at the first step is right, though it is often reported as a fault. B must still get its gradient."""
    case = case.replace(B=0 * case.B)
    found = gradients(prepared(subject, case, training=True), case.x, case.dy)
    expect_equal(found["A"], 0 * case.A, "dA while B is zero")
    return expect_equal(found["B"], case.truth.dB, "dB while B is zero")


@requirement(
    "GRAD-07",
    "Gradients MUST add up over backward passes, and start again from zero after zero_grad.",
    formula="dA = dA₁ + dA₂", sources=("torch.Tensor.backward: gradients accumulate in the leaves",),
    needs=f"{NEEDS} zero_grad", cases=exact(), examples=0.5,
)
def gradients_accumulate(subject, case):
    """Large batches are split into small ones in this way. The sum of two equal gradients is exact if its double is. A step
    right after zero_grad finds no gradients, so it leaves A and B as they are."""
    layer = prepared(subject, case, training=True)
    gradients(layer, case.x, case.dy)
    twice = gradients(layer, case.x, case.dy)
    for name, want in (("A", case.truth.dA), ("B", case.truth.dB)):
        expect_equal(twice[name], 2 * want, f"d{name} after two backward passes")
    if "x" in twice:
        expect_equal(twice["x"], case.truth.dx, "dx after two backward passes, that of the last alone")
    layer.zero_grad()
    with suppress(Unsupported):
        refuses(layer.step, RATE)
        for name, want in case.adapter.items():
            expect_equal(layer.adapter()[name], want, f"{name} after zero_grad and a step")
    once = gradients(layer, case.x, case.dy)
    for name, want in (("A", case.truth.dA), ("B", case.truth.dB)):
        expect_equal(once[name], want, f"d{name} after zero_grad and one backward pass")


@requirement(
    "GRAD-08",
    "The gradients of A and B of a batch MUST be the sum of those of its rows.",
    formula="dA(x, dy) = Σᵢ dA(xᵢ, dyᵢ)", sources=SOURCES, needs=f"{NEEDS} zero_grad",
    cases=exact(leading=st.sampled_from([(3,), (2,), (4,), (65,), (257,), (1030,)]), only=("float32", "float64")), examples=0.5,
)
def batch_is_the_sum_of_rows(subject, case):
    """This shows a mean in place of the sum, and a row that is counted twice or left out at the end of a tile. Such faults
    depend on the batch size only."""
    layer = prepared(subject, case, training=True)
    batch = gradients(layer, case.x, case.dy)
    layer.zero_grad()
    rows, found = 1 if len(case.x) < 10 else 13, {}
    for i in range(0, len(case.x), rows):
        found = gradients(layer, case.x[i : i + rows], case.dy[i : i + rows])
    expect_equal(found["A"], batch["A"], f"dA summed over {rows} rows at a time, against the batch")
    expect_equal(found["B"], batch["B"], f"dB summed over {rows} rows at a time, against the batch")


@requirement(
    "GRAD-09",
    "An upstream gradient of any strides MUST give what a plain copy of it gives.",
    formula="backward(view) = backward(copy)", sources=SOURCES, needs=f"{NEEDS} zero_grad", faults="61",
    cases=exact(leading=st.lists(st.integers(2, 3), min_size=1, max_size=2).map(tuple)), examples=0.5,
)
def any_strides_of_dy(subject, case):
    """Autograd passes expanded gradients (of a sum) and transposed ones. Hand-written code may assume contiguous ones."""
    layer = prepared(subject, case, training=True)
    for name, dy in layouts(case.dy).items():
        layer.zero_grad()
        want = {key: array.copy() for key, array in gradients(layer, case.x, dy.copy()).items()}
        layer.zero_grad()
        found = gradients(layer, case.x, dy)
        for key in want:
            expect(key in found, f"d{key} of a {name} dy", "none", "a gradient, as of its copy")
            expect_equal(found[key], want[key], f"d{key} of a {name} dy, against its copy")


@requirement(
    "GRAD-10",
    "No parameter other than A and B MUST get a gradient.",
    formula="dW, db: none", sources=(f"{PAPER}, §4.1: W₀ is frozen and does not receive gradient updates",), needs=NEEDS,
    faults="31 64", cases=exact(), examples=0.5,
)
def frozen_parameters_get_none(subject, case):
    """The gradient of a frozen weight takes memory, and an optimiser that is given the weight will move it."""
    layer = prepared(subject, case, training=True)
    found = gradients(layer, case.x, case.dy)
    others = sorted(set(found) - {"x", "A", "B"})
    expect(not others, "parameters that got a gradient, beside A and B", ", ".join(others), "none")


@requirement(
    "GRAD-11",
    "The backward pass MUST be the adjoint of the forward pass: ⟨dy, J v⟩ = ⟨Jᵀ dy, v⟩ for x, for A and for B.",
    formula="⟨dy, f(x + v) − f(x)⟩ = ⟨dx, v⟩, and likewise in A and in B", sources=SOURCES,
    needs=f"{NEEDS} zero_grad", faults="57 58", cases=exact(), examples=0.5,
)
def backward_is_the_adjoint(subject, case):
    """This law needs no reference implementation. The layer is affine in x, in A and in B, so a difference of two outputs is
    exactly the derivative."""
    layer = prepared(subject, case, training=True)
    y = wide(layer.forward(case.x))
    found = layer.backward(case.dy)
    for name, changed in {
        "x": case.replace(x=np.flip(case.x).copy()),
        "A": case.replace(A=np.flip(case.A).copy()),
        "B": case.replace(B=np.flip(case.B).copy()),
    }.items():
        assume(exact_in_any_order(changed))
        other = prepared(subject, changed, training=True)
        before = getattr(case, name)
        v = wide(getattr(changed, name)) - wide(before)
        if name in found:
            left = (wide(case.dy) * (wide(other.forward(changed.x)) - y)).sum()
            expect_equal((wide(found[name]) * v).sum(), left, f"⟨d{name}, v⟩ against ⟨dy, J v⟩")


@requirement(
    "GRAD-12",
    "Without dropout, training and inference mode MUST give the same output and the same gradients; those of A and B MAY "
    "be withheld in inference mode while merged, and the backward pass there MAY be refused.",
    formula="f_train = f_eval", sources=SOURCES, needs=f"{NEEDS} train", faults="57 74 75", cases=exact(),
    optional=True, examples=0.5,
)
def modes_agree(subject, case):
    """Some evaluations and analyses take gradients in inference mode. A layer that merges there has no path through A and B."""
    for training in (True, False):
        layer = prepared(subject, case)
        layer.train(training)
        mode = "training" if training else "inference"
        expect_equal(layer.forward(case.x), case.truth.y, f"y in {mode} mode")
        try:
            found = layer.backward(case.dy)
        except SubjectError:
            if training:
                raise
            return
        if not training and not found:  # as under torch.inference_mode
            return
        expect_equal(found.get("x", np.zeros(0)), case.truth.dx, f"dx in {mode} mode")
        for name, want in (("A", case.truth.dA), ("B", case.truth.dB)):
            if name in found:
                expect_equal(found[name], want, f"d{name} in {mode} mode")
            elif training or not merged(layer, case):
                raise Mismatch(f"d{name} in {mode} mode", "none", "a gradient, since the layer is not merged")


@requirement(
    "GRAD-13",
    "A and B MUST get the same gradients when x needs none.",
    formula="dA, dB do not depend on whether dx is wanted", sources=SOURCES, needs=f"{NEEDS} input_needs_grad",
    faults="55 56 59", cases=exact(), optional=True, examples=0.5,
)
def input_without_gradient(subject, case):
    """The first adapted layer of a model sits on a frozen embedding, whose output needs no gradient."""
    layer = prepared(subject, case, training=True)
    layer.input_needs_grad(False)
    judged(gradients(layer, case.x, case.dy), case, exactly, " when x needs none")


@requirement(
    "GRAD-14",
    "Gradients MUST be right for no leading dimension, for many, and for an empty batch, where dA and dB are zero.",
    formula="dA = scale · Σ xᵀ (dy Bᵀ) over all leading dimensions", sources=SOURCES, needs=NEEDS, faults="44 61",
    cases=exact(leading=st.sampled_from([(), (2, 1, 3), (0,), (2, 0)]), degenerate=True),
)
def gradients_of_any_leading_dimensions(subject, case):
    """The forward pass treats leading dimensions as rows; the backward pass must sum over all of them. An empty batch adds
    nothing to the gradients of an earlier batch."""
    layer = prepared(subject, case, training=True)
    if not case.x.size:
        one, done = np.ones((1, case.x.shape[-1]), case.dtype), np.ones((1, case.dy.shape[-1]), case.dtype)
        before = {name: array.copy() for name, array in gradients(layer, one, done).items()}
        layer.forward(case.x)
        found = layer.backward(case.dy)
        for name in {"A", "B"} & set(found):
            expect_equal(found[name], before[name], f"d{name} after an empty batch, against before")
        layer = prepared(subject, case, training=True)
    layer.forward(case.x)
    found = layer.backward(case.dy)
    for name in ("A", "B"):
        if case.x.size and case.dy.size or name in found:  # for an empty batch no gradient is as good as zero
            expect(name in found, f"d{name}", "none", "a gradient")
    judged(found, case, exactly)


@requirement(
    "GRAD-15",
    "A backward pass MUST NOT change dy, x, W, b, A or B.",
    formula="all as before", sources=SOURCES, needs=f"{NEEDS} adapter", faults="16 66", cases=exact(), examples=0.5,
)
def backward_changes_nothing_else(subject, case):
    """Writing dx over the saved x, or over dy, saves a buffer, but breaks other code that still uses that array."""
    x, dy = case.x.copy(), case.dy.copy()
    layer = prepared(subject, case, training=True)
    before = layer.forward(case.x).copy()
    gradients(layer, x, dy)
    expect_equal(x, case.x, "x after the backward pass")
    expect_equal(dy, case.dy, "dy after the backward pass")
    for name, want in case.adapter.items():
        expect_equal(layer.adapter()[name], want, f"{name} after the backward pass")
    expect_equal(layer.forward(case.x), before, "y after the backward pass, against y before")


@requirement(
    "GRAD-16",
    "When A is replaced by A M and B by M⁻¹ B, dx MUST stay the same, dA MUST become dA M⁻ᵀ, and dB MUST become Mᵀ dB.",
    formula="dx' = dx, dA' Mᵀ = dA, dB' = Mᵀ dB", sources=(*SOURCES, "f(A M, M⁻¹ B) = f(A, B), differentiated"), needs=NEEDS,
    cases=exact(), examples=0.5,
)
def gradients_turn_with_the_gauge(subject, case):
    """The law of FWD-14, for the backward pass. It holds for the layer itself, whatever its scale or base may be."""
    changed, M = regauged(case)
    first = gradients(prepared(subject, case, training=True), case.x, case.dy)
    second = gradients(prepared(subject, changed, training=True), case.x, case.dy)
    if "x" in first and "x" in second:
        expect_equal(second["x"], first["x"], "dx of A M, M⁻¹ B")
    expect_equal(wide(second["A"]) @ M.T, first["A"], "dA' Mᵀ, against dA")
    expect_equal(second["B"], M.T @ wide(first["B"]), "dB', against Mᵀ dB")


@requirement(
    "GRAD-17",
    "NaN and infinity in dy MUST reach dx, dA and dB, and no other row of dx.",
    formula="dy[i] not finite ⇒ dx[i], dA, dB not finite", sources=SOURCES, needs=f"{NEEDS} zero_grad", faults="63",
    cases=exact(leading=st.tuples(st.integers(2, 3))), examples=0.5,
)
def not_finite_flows_back(subject, case):
    """Mixed precision finds an overflow by looking at the gradients. If NaN is replaced by zero, it takes a wrong step."""
    layer = prepared(subject, case, training=True)
    for bad in (np.nan, np.inf):
        dy = case.dy.copy()
        dy[0, 0] = bad
        layer.zero_grad()
        found = gradients(layer, case.x, dy)
        touched = {"A": wide(case.x)[:1].T @ wide(case.B)[:, :1].T, "B": wide(case.x @ case.A)[:1].T * np.eye(1, len(dy[0]))}
        for name, depends in touched.items():
            seen = wide(found[name])[depends != 0]
            expect(not np.isfinite(seen).any(), f"d{name} where dy[0, 0] is {bad}", seen.astype(float), "nothing finite")
        if "x" in found:
            expect_equal(wide(found["x"])[1:], case.truth.dx[1:], f"the other rows of dx where dy[0, 0] is {bad}")
            expect(not np.isfinite(wide(found["x"])[0]).all(), f"dx[0] where dy[0, 0] is {bad}", "all finite", "not finite")


@requirement(
    "GRAD-18",
    "Two layers MUST NOT share anything: passes through one layer change neither outputs nor gradients of the other.",
    formula="forward₁ forward₂ backward₁ backward₂ = (forward backward)₁ (forward backward)₂", sources=SOURCES,
    needs=f"{NEEDS} zero_grad", faults="17", cases=exact(), examples=0.5,
)
def layers_are_independent(subject, case):
    """Caches and buffers that belong to a class, or to a shape, work only as long as there is one layer."""
    other = case.with_other_factors.replace(x=-case.x)
    assume(exact_in_any_order(other))
    layers = [(prepared(subject, c, training=True), c) for c in (case, other)]
    for layer, c in layers:
        layer.forward(c.x)
    for layer, c in layers:
        judged(layer.backward(c.dy), c, exactly, ", with another layer used in between")
    layers[1][0].zero_grad()
    twice = gradients(layers[0][0], case.x, case.dy)
    for name in ("A", "B"):
        expect_equal(twice[name], 2 * getattr(case.truth, f"d{name}"),
                     f"d{name} added up, with another layer's cleared in between")


@requirement(
    "GRAD-19",
    "Gradients MUST be right for sizes and ranks larger than a tile.",
    formula="dx, dA, dB as for small sizes", sources=SOURCES, needs=NEEDS, faults="53", cases=large_or_round, examples=1.75,
)
def gradients_of_large_sizes(subject, case):
    """The sizes of FWD-19. There are up to 2401 rows."""
    return judged(gradients(prepared(subject, case, training=True), case.x, case.dy), case, exactly)


@requirement(
    "GRAD-20",
    "The gradients MUST be those of the last forward pass, whatever was computed before it, in whichever mode.",
    formula="backward ∘ forward(x) ∘ forward(x') = backward ∘ forward(x)", sources=SOURCES, needs=NEEDS, faults="57",
    cases=exact(), examples=0.5,
)
def last_forward_counts(subject, case):
    """Forward passes without a backward pass are common: in an evaluation, or for a value that is logged."""
    before = -case.x
    for first, last in ((True, True), (True, False), (False, True)):
        layer = prepared(subject, case, first)
        layer.forward(before)
        set_mode(layer, last)
        layer.forward(case.x)
        modes = " and ".join("training" if mode else "inference" for mode in dict.fromkeys((first, last)))
        try:
            found = layer.backward(case.dy)
        except SubjectError:
            if last:
                raise
            continue  # there need be no gradients in inference mode
        judged(found, case, exactly, f" of the second of two forward passes, in {modes} mode")


@requirement(
    "GRAD-21",
    "While A or B needs no gradient, it MUST get none, and x and the other factor MUST get theirs.",
    formula="dx, dA, dB do not depend on which of them is wanted", sources=("LoRA-FA, arXiv:2308.03303: A is frozen",),
    needs=f"{NEEDS} factor_needs_grad", cases=exact(), optional=True, examples=0.5,
)
def factor_without_gradient(subject, case):
    """LoRA-FA freezes A, and recipes of two phases freeze one factor at a time. Custom backward passes return the gradients by
    position, and one that is left out moves the others."""
    for frozen, other in (("A", "B"), ("B", "A")):
        layer = prepared(subject, case, training=True)
        layer.factor_needs_grad(frozen, False)
        layer.forward(case.x)
        found = layer.backward(case.dy)
        expect(frozen not in found or not found[frozen].any(), f"d{frozen} while {frozen} needs none", "a gradient", "none")
        for name in ("x", other):
            expect(name in found, f"d{name} while {frozen} needs none", "none", "a gradient")
        judged({name: found[name] for name in ("x", other)}, case, exactly, f" while {frozen} needs no gradient")


def merged(layer, case: Case) -> bool:
    """Whether the base product uses another weight than W now. A layer that does not show its weight counts as merged."""
    try:
        return not np.array_equal(wide(layer.weight()), wide(case.W))
    except Unsupported:
        return True


@requirement(
    "GRAD-22",
    "Gradients MUST be right for an x of any strides, also one whose rows overlap in memory.",
    formula="backward after forward(view) = backward after forward(copy)", sources=SOURCES, needs=f"{NEEDS} zero_grad",
    faults="61", cases=exact(leading=st.lists(st.integers(2, 3), min_size=1, max_size=2).map(tuple)), examples=0.25,
)
def any_strides_of_x(subject, case):
    """Windows of a signal overlap in memory. A gradient that is written with the strides of x then overwrites itself."""
    layer = prepared(subject, case, training=True)
    for name, x in layouts(case.x).items():
        layer.zero_grad()
        want = {key: array.copy() for key, array in gradients(layer, x.copy(), case.dy).items()}
        layer.zero_grad()
        found = gradients(layer, x, case.dy)
        for key in want:
            expect(key in found, f"d{key} of a {name} x", "none", "a gradient, as of its copy")
            expect_equal(found[key], want[key], f"d{key} of a {name} x, against its copy")
