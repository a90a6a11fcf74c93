"""MULTI: several adapters on one layer, each with its own rank and scale.

    y = x Wᵀ + b + Σ weight · scale · (x A) B        over the active adapters
"""

import numpy as np
from hypothesis import strategies as st

from conformance.record.trace import refuses
from conformance.requirements import LORALIB, PEFT, Group, requirement
from conformance.requirements.helpers.layers import merge, prepared, set_mode
from conformance.subject import Layer, Subject
from conformance.truth.case import Case, Together
from conformance.truth.compare import expect, expect_equal, expect_within
from conformance.truth.strategies import several

GROUP = Group("MULTI", "Several adapters", order=120, profile="multi", asks="add_adapter")
SOURCES = ("linearity of y in scale · (A B)ᵀ: lora_ref/derivations/lora.md", PEFT)
NEEDS = "set_adapter forward add_adapter"
LARGE = st.integers(5, 8)
SUM = "y = x Wᵀ + b + Σ weight · scale · (x A) B"
CASES = several(only=("float32", "float64"))
RSLORA = several(only=("float32", "float64"), scaling="rslora", rank=st.just(4), in_features=LARGE, out_features=LARGE)


def together(subject: Subject, case: Case) -> Layer:
    """The layer with all adapters of the case. Only "default" is active. It is in training mode, without dropout."""
    layer = prepared(subject, case, training=True)
    for name, A, B, alpha in case.others:
        layer.add_adapter(name, {"A": A.copy(), "B": B.copy()}, alpha)
    return layer


@requirement(
    "MULTI-01",
    "Adding an adapter MUST NOT change the output or the factors of the adapters that are there.",
    formula="y after adding = y before", sources=SOURCES, needs=f"{NEEDS} adapter", faults="50", cases=CASES, examples=0.5,
)
def adding_changes_nothing(subject, case):
    """An added adapter has no effect until it is activated. This shows a second adapter that is wrapped around the first, or
    that replaces it."""
    layer = together(subject, case)
    expect_equal(layer.forward(case.x), case.truth.y, "y after adding two adapters")
    for name, want in case.adapter.items():
        expect_equal(layer.adapter()[name], want, f"{name} after adding two adapters")


@requirement(
    "MULTI-02",
    "One active adapter MUST do what it does as the only adapter of the layer, with its own rank and scale.",
    formula=SUM, sources=SOURCES, needs=f"{NEEDS} activate", faults="09 17 50", cases=CASES,
)
def one_of_several(subject, case):
    """With the scale or the rank of another adapter it has the wrong strength, and no error shows that."""
    layer = together(subject, case)
    for name in (*case.names[1:], case.names[0]):
        layer.activate({name: 1.0})
        expect_equal(layer.forward(case.x), case.alone(name).truth.y, f"y with {name} active")


@requirement(
    "MULTI-03",
    "The products of several active adapters MUST add up, each times its weight, in whatever order they are named.",
    formula=SUM, sources=SOURCES, needs=f"{NEEDS} activate", faults="15 130 131", cases=CASES,
)
def several_add_up(subject, case):
    """The products are added, not the factors: (Σ A) (Σ B) has cross terms. A negative weight subtracts an adapter."""
    layer, weights = together(subject, case), case.all_weights
    layer.activate(weights)
    expect_equal(layer.forward(case.x), Together(case, weights).y, "y with all adapters active")
    layer.activate(dict(reversed(weights.items())))
    expect_equal(layer.forward(case.x), Together(case, weights).y, "y with all adapters active, named in reverse")
    pair = {name: weights[name] for name in case.names[1:]}
    layer.activate(pair)
    expect_equal(layer.forward(case.x), Together(case, pair).y, "y with two of three adapters active")


@requirement(
    "MULTI-04",
    "With no active adapter the output MUST be that of the base layer, and the adapters MUST be kept.",
    formula="y = x Wᵀ + b", sources=SOURCES, needs=f"{NEEDS} activate adapter", faults="16 51", cases=CASES, examples=0.5,
)
def none_active(subject, case):
    """This gives the frozen model, as a reference or for a comparison. An adapter that is activated again is unchanged."""
    layer = together(subject, case)
    layer.activate({})
    expect_equal(layer.forward(case.x), case.truth.base, "y with no adapter active")
    layer.activate({"default": 1.0})
    expect_equal(layer.forward(case.x), case.truth.y, "y with default active again")
    for name, want in case.adapter.items():
        expect_equal(layer.adapter()[name], want, f"{name} after all adapters were switched off")


@requirement(
    "MULTI-05",
    "Activating MUST replace what was active: weights are not multiplied with earlier ones, and a weight of 0 can be undone.",
    formula="activate(v) after activate(w) = activate(v)", sources=SOURCES, needs=f"{NEEDS} activate adapter",
    faults="15 16", cases=CASES, examples=0.5,
)
def activating_replaces(subject, case):
    """A weight that is multiplied into the scale or into A in place is right the first time only."""
    layer, weights = together(subject, case), case.all_weights
    for chosen in (weights, {"default": 0.0}, {"default": weights["default"]}, weights, {"second": 1.0}, {"default": 1.0}):
        layer.activate(chosen)
        expect_equal(layer.forward(case.x), Together(case, chosen).y, f"y after activate({chosen})")
    for name, want in case.adapter.items():
        expect_equal(layer.adapter()[name], want, f"{name} after several activations")


@requirement(
    "MULTI-06",
    "Each active adapter MUST get the gradient of its own product times its weight, and the input MUST get that of the sum. An "
    "adapter that is not active MUST get none, or zero.",
    formula="dA = weight · scale · xᵀ dy Bᵀ, dB = weight · scale · (x A)ᵀ dy, dx = dy W + Σ weight · scale · dy Bᵀ Aᵀ",
    sources=SOURCES, needs=f"{NEEDS} activate backward", faults="65", cases=CASES,
)
def gradients_of_several(subject, case):
    """Adapters that train together share dy. Their gradients have nothing else in common."""
    layer, weights = together(subject, case), case.all_weights
    for chosen in ({name: weights[name] for name in case.names[:2]}, {"third": weights["third"]}):
        layer.zero_grad()
        layer.activate(chosen)
        layer.forward(case.x)
        found, want = layer.backward(case.dy), Together(case, chosen)
        expect_equal(found["x"], want.dx, f"dx with {' and '.join(chosen)} active")
        for name, gradient in want.gradients.items():
            expect(name in found, f"gradients with {' and '.join(chosen)} active: d{name}", sorted(found),
                   f"d{name} among them")
            expect_equal(found[name], gradient, f"d{name} with {' and '.join(chosen)} active")
        for name in set(found) - set(want.gradients) - {"x"}:
            expect_equal(found[name], np.zeros_like(found[name]), f"d{name} with {' and '.join(chosen)} active")


@requirement(
    "MULTI-07",
    "A step MUST NOT change an adapter that is not active.",
    formula="A, B of what is not active stay", sources=SOURCES, needs=f"{NEEDS} activate backward step adapter", faults="65",
    cases=CASES, examples=0.5,
)
def inactive_adapters_stay(subject, case):
    """A second adapter may be trained on top of a first one. The first one must not be lost."""
    layer = together(subject, case)
    layer.activate({"second": 1.0})
    layer.forward(case.x)
    layer.backward(case.dy)
    layer.step(2.0**-3)
    for name, want in case.adapter.items():
        expect_equal(layer.adapter()[name], want, f"{name} after a step with second active")
    layer.activate({"default": 1.0})
    expect_equal(layer.forward(case.x), case.truth.y, "y of default after a step with second active")
    layer.activate({"third": 1.0})
    expect_equal(layer.forward(case.x), case.alone("third").truth.y, "y of third after a step with second active")


@requirement(
    "MULTI-08",
    "Merging MUST add all active adapters to W, each with its weight, and no others; unmerging MUST take all of them out.",
    formula="W' = W + Σ weight · scale · (A B)ᵀ", sources=(*SOURCES, LORALIB),
    needs=f"{NEEDS} activate merge unmerge weight", faults="91 106", cases=CASES,
)
def merging_several(subject, case):
    """No active adapter may be missing from the output after a merge, and no merged adapter may stay in W after an unmerge."""
    layer, weights = together(subject, case), case.all_weights
    for chosen in (weights, {"second": 1.0}, {name: weights[name] for name in case.names[1:]}):
        layer.activate(chosen)
        want, active = Together(case, chosen), " and ".join(chosen)
        merge(layer)
        expect_equal(layer.weight(), want.merged, f"W after merge, {active} active")
        expect_equal(layer.forward(case.x), want.y, f"y after merge, {active} active")
        layer.unmerge()
        expect_equal(layer.weight(), case.W, f"W after unmerge, {active} active")
        expect_equal(layer.forward(case.x), want.y, f"y after unmerge, {active} active")


@requirement(
    "MULTI-09",
    "Activating others while merged MUST be refused, or give their sum once the layer is unmerged; W comes back either way.",
    formula="unmerge ∘ activate ∘ merge ⇒ W", sources=SOURCES, needs=f"{NEEDS} activate merge unmerge weight", faults="105 106",
    cases=CASES, examples=0.5,
)
def activating_while_merged(subject, case):
    """Unmerging must subtract the adapters that were merged, not those that are active now."""
    layer, weights = together(subject, case), case.all_weights
    chosen, then = {"default": weights["default"]}, {"second": weights["second"]}
    layer.activate(chosen)
    merge(layer)
    if refuses(layer.activate, dict(then)):
        then = chosen
    layer.unmerge()
    expect_equal(layer.weight(), case.W, "W after merge, activate and unmerge")
    layer.activate(then)
    expect_equal(layer.forward(case.x), Together(case, then).y, "y after merge, activate and unmerge")


@requirement(
    "MULTI-10",
    "Activating a name that no adapter has MUST be refused, alone or beside other names, and the refusal changes nothing.",
    formula="activate(unknown) raises", sources=SOURCES, needs=f"{NEEDS} activate", faults="46 133", cases=CASES, examples=0.5,
)
def unknown_name(subject, case):
    """If a misspelt name is skipped, the output is that of the base layer, and no error shows it."""
    layer = together(subject, case)
    for names in ({"secnod": 1.0}, {"third": 1.0, "secnod": 1.0}):
        expect(refuses(layer.activate, names), f"activate({names})", "no error", "an error: there is no adapter secnod")
        expect_equal(layer.forward(case.x), case.truth.y, "y after an activation that was refused")


@requirement(
    "MULTI-11",
    "Removing an adapter MUST leave the others as they were, and the removed adapter MUST NOT be applied any more.",
    formula=SUM, sources=SOURCES, needs=f"{NEEDS} activate remove_adapter weight", faults="125",
    optional=True, cases=CASES, examples=0.5,
)
def removing(subject, case):
    """If a layer still applies an adapter that it no longer lists, a user cannot switch it off."""
    layer, weights = together(subject, case), case.all_weights
    layer.activate({"default": 1.0})
    layer.remove_adapter("third")
    expect_equal(layer.forward(case.x), case.truth.y, "y after an adapter that is not active was removed")
    expect(refuses(layer.activate, {"third": 1.0}), 'activate of what was removed', "no error", "an error")
    rest = {name: weights[name] for name in ("default", "second")}
    layer.activate(rest)
    layer.remove_adapter("second")
    layer.activate({"default": 1.0})
    expect_equal(layer.forward(case.x), case.truth.y, "y after an active adapter was removed")
    expect_equal(layer.weight(), case.W, "W after two adapters were removed")


@requirement(
    "MULTI-12",
    "Removing an adapter that is merged MUST be refused, or MUST take its part out of W.",
    formula="unmerge ∘ remove ∘ merge ⇒ W", sources=SOURCES, needs=f"{NEEDS} activate remove_adapter merge unmerge weight",
    faults="105", optional=True, cases=CASES, examples=0.5,
)
def removing_while_merged(subject, case):
    """Once the factors are gone, their product cannot be subtracted from W."""
    layer = together(subject, case)
    layer.activate({"second": 1.0})
    merge(layer)
    refuses(layer.remove_adapter, "second")
    refuses(layer.unmerge)  # there may be nothing left to unmerge
    expect_equal(layer.weight(), case.W, "W after merge, remove_adapter and unmerge")
    layer.activate({"default": 1.0})
    expect_equal(layer.forward(case.x), case.truth.y, "y of default after merge, remove_adapter and unmerge")


@requirement(
    "MULTI-13",
    "Combining adapters MUST give one that does what they do together, with any weights.",
    formula="combined: scale · A B = Σ weight · scale · A B", sources=SOURCES, needs=f"{NEEDS} activate combine",
    faults="130 131 132", optional=True, cases=CASES,
)
def combining(subject, case):
    """The result is linear in the weights: a weight of −1 gives the negative, and one adapter of weight 1 gives itself. If the
    root of a weight goes into both A and B, its sign is lost. Sums of factors have cross terms."""
    layer, weights, ratio = together(subject, case), case.all_weights, 0.0
    pair = {name: 0.7 * weights[name] for name in case.names[1:]}
    parts = [{"second": 1.0}, {"second": -1.0}, {"second": 0.7}, pair, weights]
    for number, part in enumerate(parts):
        layer.combine(f"sum{number}", part)
    for number, part in enumerate(parts):
        layer.activate({f"sum{number}": 1.0})
        want = Together(case, part)
        ratio = max(ratio, expect_within(layer.forward(case.x), want.y, want.bound_of_one, f"y of combine({part})"))
    for name in case.names:
        layer.activate({name: 1.0})
        expect_equal(layer.forward(case.x), case.alone(name).truth.y, f"y of {name} after combining")
    return ratio


@requirement(
    "MULTI-14",
    "With rank-stabilised scaling each of several adapters MUST have its own alpha / √rank.",
    formula="scale = alpha / √rank", sources=SOURCES, needs=f"{NEEDS} activate", faults="04 07", optional=True,
    cases=RSLORA, examples=0.5,
)
def rslora_of_several(subject, case):
    """The option is often lost for adapters that are added later."""
    layer = together(subject, case)
    for name in case.names:
        layer.activate({name: 1.0})
        expect_equal(layer.forward(case.x), case.alone(name).truth.y, f"y with {name} active")


@requirement(
    "MULTI-15",
    "In a batch in which each sample names its own adapter, each sample MUST get what it gets alone; a sample that names none "
    "MUST get the base layer.",
    formula="yᵢ = xᵢ Wᵀ + b + scale · (xᵢ A) B of its own adapter", sources=SOURCES, needs=f"{NEEDS} forward_mixed",
    faults="45 134", optional=True, cases=CASES,
)
def mixed_batch(subject, case):
    """Servers do this. They sort the samples by adapter and put them back. Faults exchange rows, or apply an adapter to samples
    that have none."""
    layer = together(subject, case)
    set_mode(layer, False)
    names = ("second", None, "default", "third", "second", None)
    samples = np.stack([case.x] * len(names))
    wants = [case.truth.base if name is None else case.alone(name).truth.y for name in names]
    expect_equal(layer.forward_mixed(samples, names), np.stack(wants), "y of a mixed batch")
    expect_equal(layer.forward_mixed(samples[1:2], (None,)), np.stack([case.truth.base]), "y of a batch without adapters")
    expect_equal(layer.forward(case.x), case.truth.y, "y after a mixed batch")


@requirement(
    "MULTI-16",
    "In a mixed batch a name that no adapter has MUST be refused.",
    formula="forward_mixed(unknown) raises", sources=SOURCES, needs=f"{NEEDS} forward_mixed", faults="46", optional=True,
    cases=CASES, examples=0.5,
)
def unknown_name_in_a_mixed_batch(subject, case):
    """If a misspelt name is skipped, one sample gets the base model, which looks like a bad adapter."""
    layer = together(subject, case)
    set_mode(layer, False)
    x = np.stack([case.x] * 2)
    refused = refuses(layer.forward_mixed, x, ("second", "secnod"))
    expect(refused, 'forward_mixed with the name "secnod"', "no error", "an error: there is no such adapter")


@requirement(
    "MULTI-17",
    "With rank-stabilised scaling, combining one adapter with weight 1 MUST give an adapter that does what that adapter does.",
    formula="combined: scale · A B = scale · A B of the one", sources=SOURCES, needs=f"{NEEDS} activate combine", faults="08",
    optional=True, cases=RSLORA, examples=0.5,
)
def combining_with_rslora(subject, case):
    """The combined factors already hold the scale. If alpha / √rank is applied again, the adapter is √rank too strong."""
    layer = together(subject, case)
    layer.combine("same", {"second": 1.0})
    layer.activate({"same": 1.0})
    want = Together(case, {"second": 1.0})
    return expect_within(layer.forward(case.x), want.y, want.bound_of_one, "y of the adapter that second was combined to")
