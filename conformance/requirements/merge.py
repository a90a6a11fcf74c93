"""MERGE: folding the adapter into the weight, and taking it out again."""

from contextlib import suppress
from itertools import product

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from conformance.record.trace import SubjectError, refuses
from conformance.requirements import HIGHAM, LORALIB, PAPER, PEFT, Group, requirement
from conformance.requirements.helpers.layers import gradients, merge, prepared, saved, set_mode
from conformance.requirements.helpers.sequences import RATE, moved
from conformance.requirements.helpers.variants import SQUARE
from conformance.subject import Unsupported
from conformance.truth.case import exact_in_any_order
from conformance.truth.compare import Mismatch, expect, expect_equal, expect_within, wide
from conformance.truth.strategies import exact, rounding

GROUP = Group("MERGE", "Merging", order=60, profile="merge", asks="merge")
SOURCES = (f"{PAPER}, §4.1: W = W₀ + B A can be computed and stored explicitly", f"{PEFT}, Linear.merge", f"{LORALIB}, train")
NEEDS = "set_adapter forward merge"
MERGED = "W' = W + scale · (A B)ᵀ"
# 2 to that power times a small integer is small, and far from where the format ends.
SMALL = {"float16": -4, "bfloat16": -40, "float32": -40, "float64": -40}


@requirement(
    "MERGE-01",
    "The merged weight MUST be W + scale · (A B)ᵀ.",
    formula=MERGED, sources=SOURCES, needs="set_adapter merge weight", faults="10 22 35 76 77 78 79 80 84 85 102 109",
    cases=exact(),
)
def merged_weight(subject, case):
    """The merged weight is compared with the formula, not with a round trip: a merge and an unmerge that are wrong in the same
    way undo each other. On small integers the answer is exact. A small B, over a weight of zeros, is no reason to leave out the
    merge."""
    layer = prepared(subject, case, training=True)
    merge(layer)
    expect_equal(layer.weight(), case.truth.merged, "W after merge")
    power = SMALL[case.config.dtype]
    small = case.replace(W=0 * case.W, B=np.ldexp(wide(case.B), power).astype(case.dtype))
    layer = prepared(subject, small, training=True)
    merge(layer)
    expect_equal(layer.weight(), np.ldexp(case.truth.merged - wide(case.W), power), "W after a merge of a small B")


@requirement(
    "MERGE-02",
    "On real numbers the merged weight MUST be within the rounding-error bound of its formula.",
    formula="|W' − exact| ≤ γ(1)|W| + γ(rank + …) |scale| (|A||B|)ᵀ", sources=(HIGHAM,), needs="set_adapter merge weight",
    faults="84 85 98", cases=rounding(),
)
def merged_weight_within_rounding(subject, case):
    """This shows a merge that is computed in a lower precision than that of the layer."""
    layer = prepared(subject, case, training=True)
    merge(layer)
    return expect_within(layer.weight(), case.truth.merged, case.bound.merged, "W after merge")


@requirement(
    "MERGE-03",
    "The merged layer MUST compute what the unmerged one does, in both modes; the delta is neither added twice nor left out.",
    formula="x W'ᵀ + b = x Wᵀ + b + scale · (x A) B", sources=SOURCES, needs=NEEDS, faults="10 22 35 40 85 106 109",
    cases=exact(),
)
def merged_equals_unmerged(subject, case):
    """LoRA promises that merging removes the latency and changes no output. A forward pass may add the delta again."""
    layer = prepared(subject, case, training=True)
    merge(layer)
    expect_equal(layer.forward(case.x), case.truth.y, "y after merge")
    for training in (False, True):
        refuses(set_mode, layer, training)  # a merged layer need not go back to training mode
        mode = "training" if training else "inference"
        expect_equal(layer.forward(case.x), case.truth.y, f"y after merge, then in {mode} mode")


@requirement(
    "MERGE-04",
    "On real numbers the merged layer MUST be within the rounding-error bound, that of the merge included.",
    formula="|y' − exact| ≤ bound of y", sources=(HIGHAM,), needs=NEEDS, faults="10 85 98", cases=rounding(), examples=0.5,
)
def merged_within_rounding(subject, case):
    """Merged and unmerged outputs may differ by the bound, not by a chosen tolerance."""
    layer = prepared(subject, case, training=True)
    merge(layer)
    return expect_within(layer.forward(case.x), case.truth.y, case.bound.y, "y after merge")


@requirement(
    "MERGE-05",
    "Merging twice MUST equal merging once, or be refused with nothing changed.",
    formula="merge ∘ merge = merge", sources=SOURCES, needs=f"{NEEDS} weight", faults="86 87 100", cases=exact(), examples=0.5,
)
def merging_twice(subject, case):
    """Saving, exporting and evaluating may each merge. The second merge must not add the delta again."""
    layer = prepared(subject, case, training=True)
    merge(layer)
    refuses(layer.merge)
    expect_equal(layer.weight(), case.truth.merged, "W after a second merge")
    expect_equal(layer.forward(case.x), case.truth.y, "y after a second merge")


@requirement(
    "MERGE-06",
    "Where every sum is exact, unmerge MUST restore W bit for bit, in every cycle.",
    formula="unmerge ∘ merge = id", sources=(*SOURCES, HIGHAM), needs=f"{NEEDS} unmerge weight", faults="78 88 100",
    cases=exact(), examples=0.5,
)
def unmerge_restores(subject, case):
    """On exact cases the weight and the output must come back bit for bit, cycle after cycle."""
    layer = prepared(subject, case, training=True)
    for cycle in ("first", "second"):
        merge(layer)
        layer.unmerge()
        expect_equal(layer.weight(), case.W, f"W after the {cycle} merge and unmerge")
        expect_equal(layer.forward(case.x), case.truth.y, f"y after the {cycle} merge and unmerge")


@requirement(
    "MERGE-07",
    "On real numbers unmerge MUST restore W within the rounding of a merge and a subtraction.",
    formula="|W'' − W| ≤ bound of W' + bound of W' − scale · (A B)ᵀ", sources=(HIGHAM,),
    needs="set_adapter merge unmerge weight", faults="88 100", cases=rounding(), examples=0.5,
)
def unmerge_restores_within_rounding(subject, case):
    """An unmerge that subtracts the delta is allowed. It loses the last bits and no more."""
    layer = prepared(subject, case, training=True)
    merge(layer)
    layer.unmerge()
    return expect_within(layer.weight(), case.W, case.bound.unmerged, "W after merge and unmerge")


@requirement(
    "MERGE-08",
    "Unmerge SHOULD restore W bit for bit, whatever the factors hold.",
    formula="W after = W before", sources=SOURCES, needs="set_adapter merge unmerge weight", faults="99 100",
    cases=rounding(only=("float32", "float64", "float16", "bfloat16")), examples=0.5,
)
def unmerge_restores_every_bit(subject, case):
    """Subtraction drifts with every cycle, and cannot undo an overflow: one bad adapter spoils the model for all later ones.
    Keeping a copy of W, or never changing W in place, avoids both."""
    layer = prepared(subject, case, training=True)
    merge(layer)
    layer.unmerge()
    expect_equal(layer.weight(), case.W, "W after merge and unmerge")
    infinite = {"A": case.A, "B": np.full_like(case.B, np.inf)}
    if not refuses(layer.set_adapter, infinite) and not refuses(layer.merge):
        layer.unmerge()
    expect_equal(layer.weight(), case.W, "W after merging and unmerging an infinite delta")


@requirement(
    "MERGE-09",
    "Merge MUST leave A, B and b as they are.",
    formula="A, B, b after = A, B, b before", sources=SOURCES, needs="set_adapter adapter merge bias", faults="83 92 93",
    cases=rounding(), examples=0.5,
)
def merge_leaves_the_rest(subject, case):
    """They are needed to unmerge, to save and to go on training."""
    layer = prepared(subject, case, training=True)
    merge(layer)
    for name, want in case.adapter.items():
        expect_equal(layer.adapter()[name], want, f"{name} after merge")
    if case.b is not None:
        expect_equal(layer.bias(), case.b, "b after merge")


@requirement(
    "MERGE-10",
    "After unmerge the layer MUST go on training as if it had never been merged.",
    formula="gradients and step after unmerge = before", sources=SOURCES,
    needs=f"{NEEDS} unmerge backward step adapter zero_grad", faults="75 100 110",
    cases=exact(only=("float32", "float64")), examples=0.5,
)
def training_after_unmerge(subject, case):
    """An evaluation during training often merges and unmerges."""
    layer = prepared(subject, case, training=True)
    merge(layer)
    layer.forward(case.x)
    layer.unmerge()
    set_mode(layer, True)
    layer.zero_grad()
    found = gradients(layer, case.x, case.dy)
    for name in ("A", "B"):
        expect_equal(found[name], getattr(case.truth, f"d{name}"), f"d{name} after unmerge")
    layer.step(0.5)
    stepped = {name: before - 0.5 * getattr(case.truth, f"d{name}") for name, before in case.adapter.items()}
    for name, want in stepped.items():
        expect_equal(layer.adapter()[name], want, f"{name} after unmerge and a step")
    after = case.replace(**{name: array.astype(case.dtype) for name, array in stepped.items()})
    assume(exact_in_any_order(after))
    merge(layer)
    expect_equal(layer.forward(case.x), after.truth.y, "y merged again after the step")


@requirement(
    "MERGE-11",
    "Setting the adapter while merged MUST NOT corrupt W: after unmerge W is back, and the layer has the new adapter; or the "
    "setting is refused, and nothing has changed.",
    formula="unmerge ∘ set_adapter ∘ merge ⇒ W, A', B'", sources=SOURCES, needs=f"{NEEDS} unmerge adapter weight",
    faults="99 105 110 111", cases=exact(), examples=0.5,
)
def setting_while_merged(subject, case):
    """If unmerge subtracts the new delta from a weight that holds the old one, W keeps the difference for ever. This can happen
    whenever a checkpoint is loaded into a merged model."""
    other = case.with_other_factors
    assume(exact_in_any_order(other) and not np.array_equal(wide(other.truth.merged), wide(case.truth.merged)))
    for old, words in ((case, "merge"), (case.replace(B=0 * case.B), "a merge with a B of zeros")):
        new, layer = other, prepared(subject, old, training=True)
        merge(layer)
        if refuses(layer.set_adapter, {name: array.copy() for name, array in new.adapter.items()}):
            new = old
            expect_equal(layer.forward(case.x), old.truth.y, f"y after {words}, and a set_adapter that was refused")
        refuses(layer.unmerge)  # setting may have unmerged it
        expect_equal(layer.weight(), case.W, f"W after {words}, set_adapter and unmerge")
        expect_equal(layer.forward(case.x), new.truth.y, f"y after {words}, set_adapter and unmerge")


@requirement(
    "MERGE-12",
    "A merge MUST change W if scale · (A B)ᵀ changes it, and MUST NOT change W if B is zero.",
    formula="scale · (A B)ᵀ ≠ 0 ⇒ W' ≠ W where that is exact; B = 0 ⇒ W' = W", sources=SOURCES,
    needs="set_adapter merge weight", faults="35 76 102 109", cases=exact(), examples=0.5,
)
def merge_has_an_effect(subject, case):
    """An exported model that turns out to be the base model, without the training, is among the most reported faults."""
    layer = prepared(subject, case, training=True)
    merge(layer)
    expect(not np.array_equal(wide(layer.weight()), wide(case.W)), "W after merge", "W as before", "W + scale · (A B)ᵀ")
    none = case.replace(B=0 * case.B)
    layer = prepared(subject, none, training=True)
    merge(layer)
    expect_equal(layer.weight(), case.W, "W after a merge with B = 0")


@requirement(
    "MERGE-13",
    "Over several cycles of merge and unmerge W and the output MUST NOT drift by more than the rounding of that many cycles.",
    formula="|Wₖ − W| ≤ k · bound of a cycle, |yₖ − y| ≤ bound of y + |x| |Wₖ − W|ᵀ", sources=(HIGHAM,),
    needs="set_adapter forward merge unmerge weight", faults="100", cases=rounding(), examples=0.5,
)
def drift_stays_in_its_budget(subject, case):
    """An unmerge that subtracts is allowed. Its errors add up, but must not grow faster than the number of cycles."""
    layer, ratio = prepared(subject, case, training=True), 0.0
    for cycle in range(1, 5):
        merge(layer)
        layer.forward(case.x)
        layer.unmerge()
        drift = cycle * case.bound.unmerged
        ratio = max(ratio, expect_within(layer.weight(), case.W, drift, f"W after {cycle} cycles"))
        allowed = case.bound.y + np.abs(wide(case.x)) @ drift.T
        ratio = max(ratio, expect_within(layer.forward(case.x), case.truth.y, allowed, f"y after {cycle} cycles"))
    return ratio


@requirement(
    "MERGE-14",
    "While merged the gradient of x MUST be dy W', the gradient through the merged weight, or the backward pass is refused.",
    formula="dx = dy W' = dy W + scale · (dy Bᵀ) Aᵀ", sources=SOURCES, needs=f"{NEEDS} backward", faults="106", cases=exact(),
    examples=0.5,
)
def gradient_of_x_while_merged(subject, case):
    """The backward pass must differentiate what the forward pass computed. Layers below may still learn from it."""
    layer = prepared(subject, case, training=True)
    merge(layer)
    layer.forward(case.x)
    try:
        found = layer.backward(case.dy)
    except SubjectError:
        return 0.0
    expect("x" in found, "dx while merged", "none", "a gradient")
    return expect_equal(found["x"], case.truth.dx, "dx while merged")


@requirement(
    "MERGE-15",
    "A square weight MUST be merged like any other, also where rank, in and out are equal.",
    formula=MERGED, sources=SOURCES, needs="set_adapter merge weight", faults="77 78 79 80",
    cases=exact(in_features=SQUARE, out_features=SQUARE, rank=SQUARE, square=True), examples=0.5,
)
def square_weight(subject, case):
    """Most weights of a transformer are square. Code that transposes a delta only if its shape does not fit is wrong there."""
    layer = prepared(subject, case, training=True)
    merge(layer)
    return expect_equal(layer.weight(), case.truth.merged, "W after merge")


@requirement(
    "MERGE-16",
    "Unmerging a layer that is not merged MUST be refused, or change nothing.",
    formula="unmerge of W = W", sources=SOURCES, needs=f"{NEEDS} unmerge weight", faults="86", cases=exact(), examples=0.5,
)
def unmerging_twice(subject, case):
    """The counterpart of MERGE-05: a delta that was never added must not be subtracted."""
    layer = prepared(subject, case, training=True)
    refuses(layer.unmerge)
    expect_equal(layer.weight(), case.W, "W after an unmerge without a merge")
    merge(layer)
    layer.unmerge()
    refuses(layer.unmerge)
    expect_equal(layer.weight(), case.W, "W after a second unmerge")
    expect_equal(layer.forward(case.x), case.truth.y, "y after a second unmerge")


@requirement(
    "MERGE-17",
    "Loading while merged MUST NOT corrupt W: after unmerge W is back, and the layer has what was loaded; or the loading is "
    "refused, and nothing has changed.",
    formula="unmerge ∘ load ∘ merge ⇒ W, A', B'", sources=SOURCES, needs=f"{NEEDS} unmerge weight save load", faults="105 111",
    optional=True, cases=exact(), examples=0.5,
)
def loading_while_merged(subject, case):
    """MERGE-11 again, with factors that come from a file."""
    new = case.with_other_factors
    assume(exact_in_any_order(new) and not np.array_equal(wide(new.truth.merged), wide(case.truth.merged)))
    with saved(prepared(subject, new, training=True)) as directory:
        layer = prepared(subject, case, training=True)
        merge(layer)
        if refuses(layer.load, directory):
            new = case
    refuses(layer.unmerge)  # loading may have unmerged it
    expect_equal(layer.weight(), case.W, "W after merge, load and unmerge")
    expect_equal(layer.forward(case.x), new.truth.y, "y after merge, load and unmerge")


@requirement(
    "MERGE-18",
    "Merging in inference mode MUST give what merging in training mode gives, or be refused.",
    formula=MERGED, sources=SOURCES, needs=f"{NEEDS} weight", faults="76", cases=exact(), examples=0.5,
)
def merging_in_inference_mode(subject, case):
    """Most people merge in inference mode. A layer that merges by itself in that mode has nothing left to do."""
    layer = prepared(subject, case)
    if not refuses(layer.merge):
        expect_equal(layer.weight(), case.truth.merged, "W after merge in inference mode")
    expect_equal(layer.forward(case.x), case.truth.y, "y after merge in inference mode")


@requirement(
    "MERGE-19",
    "A step while merged MUST NOT corrupt W: after unmerge W is back, and A and B have moved by the step or stayed; or the "
    "step is refused, and nothing has changed.",
    formula="unmerge ∘ step ∘ merge ⇒ W, and A, B or A − lr dA, B − lr dB", sources=SOURCES,
    needs=f"{NEEDS} backward step unmerge adapter weight", cases=exact(only=("float32", "float64")), examples=0.5,
)
def step_while_merged(subject, case):
    """A training loop may merge for an evaluation, between the backward pass and the step. If the step moves A and B, an
    unmerge that subtracts their new product leaves the difference in W for ever."""
    stepped = moved(case, case.truth.dA, case.truth.dB)
    assume(stepped is not None)
    assert stepped is not None
    assume(not np.array_equal(wide(stepped.truth.merged), wide(case.truth.merged)))
    layer = prepared(subject, case, training=True)
    gradients(layer, case.x, case.dy)
    merge(layer)
    refused = refuses(layer.step, RATE)
    refuses(layer.unmerge)  # the step may have unmerged it
    expect_equal(layer.weight(), case.W, "W after merge, step and unmerge")
    found = layer.adapter()
    stayed = all(np.array_equal(wide(found[name]), wide(want)) for name, want in case.adapter.items())
    now = case if refused or stayed else stepped
    for name, want in now.adapter.items():
        expect_equal(found[name], want, f"{name} after merge, step and unmerge")
    expect_equal(layer.forward(case.x), now.truth.y, "y after merge, step and unmerge")


@requirement(
    "MERGE-20",
    "Where rank-stabilised scaling is offered, unmerge, and setting and loading while merged, MUST do what they do with "
    "standard scaling.",
    formula="what holds of MERGE-06, MERGE-11 and MERGE-17 for alpha / rank holds for alpha / √rank", sources=SOURCES,
    needs=f"{NEEDS} unmerge adapter weight", faults="22", optional=True,
    cases=exact(scaling="rslora", rank=st.just(4), in_features=st.integers(5, 8), out_features=st.integers(5, 8)), examples=0.5,
)
def root_rank_after_unmerge(subject, case):
    """Unmerge, set and load may each compute the scale again, and by another rule. What fails with standard scaling, too, is a
    matter of MERGE-06, MERGE-11 or MERGE-17."""
    standard = case.replace(scaling="standard", alpha=case.scale * case.config.rank)

    def also(check):
        try:
            check(subject, standard)
        except Mismatch:
            return
        check(subject, case)

    also(unmerge_restores.check)
    also(setting_while_merged.check)
    with suppress(Unsupported):
        also(loading_while_merged.check)


@requirement(
    "MERGE-21",
    "With NaN or infinity in A or B, each entry of the merged W that depends on it MUST be NaN or infinite, and each other one "
    "as without it; or the factors or the merge are refused, and W stays.",
    formula="A[i, r] not finite ⇒ W'[:, i] not finite; B[r, o] not finite ⇒ W'[o, :] not finite", sources=SOURCES,
    needs="set_adapter merge weight", cases=exact(), examples=0.5,
)
def not_finite_is_merged(subject, case):
    """A merge that leaves such a product out, or puts zeros in its place, exports a model that hides a failed training."""
    for name, bad in product(("A", "B"), (np.nan, np.inf)):
        changed = getattr(case, name).copy()
        changed[0, 0] = bad
        damaged = case.replace(**{name: changed})
        if refuses(prepared, subject, damaged, True):
            continue
        layer, what = prepared(subject, damaged, training=True), f"W after merge, with {bad} in {name}[0, 0]"
        if refuses(merge, layer):
            expect_equal(layer.weight(), case.W, f"W after a merge with {bad} in {name}[0, 0] was refused")
            continue
        W, want = wide(layer.weight()), case.truth.merged.copy()
        touched, meets = (np.s_[:, 0], case.B[0]) if name == "A" else (np.s_[0], case.A[:, 0])
        depends = W[touched][meets != 0]  # infinity times zero may be NaN or be left out
        expect(not np.isfinite(depends).any(), what, depends.astype(float), "nothing finite where the other factor is not zero")
        W[touched] = want[touched]
        expect_equal(W, want, f"the other entries of {what}")
