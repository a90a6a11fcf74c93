"""TORCH: whether a layer that is a torch module does what torch and its users expect of any module.

The experiments are described in conformance/torch_experiments.py. They run in the process of the subject and give facts. What
is right is what a plain forward and backward pass of a fresh layer gives, on cases that are exact in any order. Whether that is
LoRA, other groups judge.
"""

from contextlib import suppress
from typing import Any

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from conformance.record.trace import refuses
from conformance.requirements import Group, requirement
from conformance.requirements.helpers.layers import fresh, gradients, known_weight, merge, prepared, saved, set_mode
from conformance.requirements.helpers.masks import revealing
from conformance.subject import Arrays, Layer, Subject, Unsupported
from conformance.truth.case import DTYPES, Case, exact_in_any_order
from conformance.truth.compare import expect, expect_equal, wide
from conformance.truth.strategies import any_size, exact, sized

GROUP = Group("TORCH", "Torch module", order=125, profile="torch", asks="as_module")
NEEDS = "set_adapter forward backward as_module"
MODULE = "PyTorch documentation, torch.nn.Module"
AUTOGRAD = "PyTorch documentation, Autograd mechanics"
OPTIM = "PyTorch documentation, torch.optim: an Optimizer holds the Parameters that it was given"
SINGLE = ("float32", "float64")


def tried(layer: Layer, experiment: str, **given: Any) -> "Facts":
    return Facts(experiment, layer.as_module(experiment, given))


class Facts:
    """The facts of an experiment. A fact that is not there, or of another type, is a Mismatch."""

    def __init__(self, experiment: str, facts: dict[str, Any]):
        self.experiment, self.facts = experiment, facts

    def __getitem__(self, name: str) -> Any:
        expect(name in self.facts, f"{name} ({self.experiment})", f"none, only {sorted(self.facts)}", "a value")
        return self.facts[name]

    def __contains__(self, name: str) -> bool:
        return name in self.facts

    def equal(self, name: str, want, words: str = "") -> None:
        """Demands that the fact is an array that is equal to `want`."""
        got = self[name]
        expect(isinstance(got, np.ndarray), words or name, f"a {type(got).__name__}", "numbers")
        expect_equal(got, want, words or name)

    def names(self, name: str) -> list[str]:
        """The fact, which must be a list of names."""
        got = self[name]
        plain = isinstance(got, list | tuple) and all(isinstance(item, str) for item in got)
        expect(plain, f"{name} ({self.experiment})", type(got).__name__, "a list of names")
        return list(got)

    def true(self, *names: str) -> None:
        for name in names:
            expect(self[name] is True, name, self[name], True)

    def gradients(self, want: Arrays, note: str, names: tuple[str, ...] = ("x", "A", "B"), times: int = 1,
                  prefix: str = "") -> None:
        """Demands that these gradients, and none of the others, are `times` those of the plain pass `want`."""
        for name in ("x", "A", "B"):
            if name not in names:
                expect(f"{prefix}d {name}" not in self, f"d{name} {note}", "a gradient", "none")
            elif name in want:
                self.equal(f"{prefix}d {name}", times * wide(want[name]), f"d{name} {note}")


def plain(subject, case: Case) -> Arrays:
    """y, and the gradients of x, A and B, as a fresh layer gives them in training mode."""
    layer = prepared(subject, case, training=True)
    y = layer.forward(case.x)
    return layer.backward(case.dy) | {"y": y}


def with_negated_A(case: Case) -> Case:
    return case.replace(A=-case.A)


CONTEXTS = ("in grad mode", "under no_grad", "under inference_mode", "under autocast")
WRITES = {"copy_": "copy_ under no_grad", "data": "a write through A.data", "assigned": "a new A.data",
          "loaded": "load_state_dict"}


def merged_too(layer: Layer) -> bool:
    """Merges the layer, which is in training mode, if it offers that."""
    try:
        merge(layer, training=True)
    except Unsupported:
        return False
    return True


@requirement(
    "TORCH-01",
    "copy.deepcopy of the module MUST give a layer that computes the same and shares no factor with the first.",
    formula="y(copy) = y(layer); A of one changes ⇒ y of the other does not",
    sources=("Python documentation, copy: deepcopy", "PyTorch documentation, torch.optim.swa_utils: AveragedModel"),
    needs=NEEDS, faults="147", cases=any_size(), examples=0.5,
)
def deep_copies(subject, case):
    """A copy that shares a factor, or that computes with the factors of the first layer, trains together with it. A copy of a
    merged layer can be unmerged like the first, and what a hook does belongs to what a layer computes."""
    check_copies(subject, case, "deepcopy")
    y, layer = plain(subject, case)["y"], prepared(subject, case, training=True)
    with suppress(Unsupported):
        layer.merge()
        tried(layer, "replaced")
        layer.unmerge()
        expect_equal(layer.forward(case.x), y, "y of the copy of a merged layer, after it was unmerged")
    with suppress(Unsupported):
        facts = tried(prepared(subject, case, training=True), "copied_with_a_hook", x=case.x)
        facts.equal("y", -y, "y of the copy of a layer with a forward hook, which negates y")
    layer = prepared(subject, case, training=True)
    tried(layer, "copy_kept")
    if merged_too(layer):
        tried(layer, "pass_of_the_copy", x=case.x).equal("y", y, "y of a copy, after the layer itself was merged")


@requirement(
    "TORCH-02",
    "torch.save and torch.load of the whole module SHOULD give a layer that computes the same and shares no factor with it.",
    formula="y(load(save(layer))) = y(layer)",
    sources=("PyTorch tutorials, Saving and Loading Models: Save/Load Entire Model",),
    needs=NEEDS, optional=True, cases=any_size(), examples=0.5,
)
def pickles(subject, case):
    """A module goes to another process in this way. A function without a name, or a lock, among its attributes hinders it."""
    check_copies(subject, case, "pickle")


def check_copies(subject, case: Case, how: str) -> None:
    y, other = (plain(subject, c)["y"] for c in (case, with_negated_A(case)))
    layer = prepared(subject, case, training=True)
    before, facts = tried(layer, "part_modes")["modes"], tried(layer, "copied", x=case.x, how=how)
    facts.equal("y of the copy", y)
    for name in ("A", "B"):
        facts.equal(f"{name}: y", y, f"y of the module after {name} of its copy was negated")
        facts.equal(f"{name}: y of the changed copy", other, f"y of the copy after its {name} was negated")
        facts.equal(f"{name}: y of the changed module", other, f"y of the module after its {name} was negated")
        facts.equal(f"{name}: y of the copy", y, f"y of the copy after {name} of the module was negated")
    expect(facts["modes"] == before, "modes of the copy", facts["modes"], before)
    if how == "deepcopy":
        tried(prepared(subject, case, training=True), "shared").true("A", "B")
    with suppress(Unsupported):
        scaled_otherwise(subject, case, how)
    layer = prepared(subject, case, training=True)
    layer.train(False)
    before, found = tried(layer, "part_modes")["modes"], tried(layer, "copied", x=case.x, how=how)["modes"]
    expect(found == before, "modes of the copy of a layer in inference mode", found, before)
    layer = prepared(subject, case, training=True)
    with suppress(Unsupported):
        layer.merge()
        y = layer.forward(case.x)
        tried(layer, "copied", x=case.x, how=how).equal("y of the copy", y, "y of the copy of a merged layer")


def scaled_otherwise(subject, case: Case, how: str) -> None:
    """The same of a layer with rank-stabilised scaling, whose copy may compute its scale anew."""
    other = case.replace(scaling="rslora", alpha=case.scale * case.config.rank**0.5)
    if exact_in_any_order(other):
        facts = tried(prepared(subject, other, training=True), "copied", x=case.x, how=how)
        facts.equal("y of the copy", plain(subject, other)["y"], "y of the copy of a layer with rank-stabilised scaling")


@requirement(
    "TORCH-03",
    "Strict loading of a state_dict that was taken earlier MUST bring back A and B, and MUST fail if one of them is missing.",
    formula="load_state_dict(state_dict(), strict=True) restores y",
    sources=(f"{MODULE}.state_dict, .load_state_dict",), needs=NEEDS, faults="112 115", cases=any_size(), examples=0.5,
)
def state_dict_is_whole(subject, case):
    """Checkpoints, averages of weights and distributed training take the state of a model from here alone."""
    facts = tried(prepared(subject, case, training=True), "reloaded", x=case.x)
    expect(not facts.names("lenient"), "factors without which a state_dict was loaded strictly", facts.names("lenient"), "none")
    facts.equal("y", plain(subject, case)["y"], "y after A and B were overwritten and the state_dict was loaded")


@requirement(
    "TORCH-04",
    "The keys of the state_dict MUST NOT depend on the mode, on training or on a merge.",
    formula="keys after = keys before", sources=(f"{MODULE}.load_state_dict(strict=True)",),
    needs=f"{NEEDS} forward backward step train", faults="116", cases=any_size(only=SINGLE), examples=0.5,
)
def keys_are_stable(subject, case):
    """A checkpoint that was written during an evaluation must fit the model in training."""
    for words, before, after in lived(subject, case):
        got, want = after.names("keys"), before.names("keys")
        expect(got == want, f"keys of the state_dict {words}", got, want)


@requirement(
    "TORCH-05",
    "A and B MUST stay the same Parameter objects over training steps, changes of mode and merges.",
    formula="A after is A before", sources=(OPTIM,), needs=f"{NEEDS} forward backward step train", cases=any_size(only=SINGLE),
    examples=0.5,
)
def parameters_stay(subject, case):
    """An optimiser trains the objects that it was given. If the layer replaces them, training goes on without effect."""
    for words, _, after in lived(subject, case):
        same_parameters(after, words)


def same_parameters(after: Facts, words: str) -> None:
    for name in ("A", "B"):
        expect(after[f"{name} is the same"] is True, f"{name} {words}", "another Parameter", "the Parameter that it was")


def lived(subject, case: Case):
    """(words, what was held, what has become of it) after each of the events in the life of a layer. A layer whose factors are
    gone while it is merged is not looked at then."""
    layer = prepared(subject, case, training=True)
    before = tried(layer, "hold", x=case.x)
    gradients(layer, case.x, case.dy)
    layer.step(0.5)
    yield "after a training step", before, tried(layer, "held")
    yield from events(layer, before)


def events(layer: Layer, before: Facts):
    layer.train(False)
    yield "in inference mode", before, tried(layer, "held")
    layer.train(True)
    yield "in training mode again", before, tried(layer, "held")
    if merged_too(layer):
        with suppress(Unsupported):
            yield "while merged", before, tried(layer, "held")
        with suppress(Unsupported):
            layer.unmerge()
            yield "after a merge was undone", before, tried(layer, "held")


@requirement(
    "TORCH-06",
    "A and B SHOULD stay the same Parameter objects when the layer is loaded.",
    formula="A after is A before", sources=(OPTIM, f"{MODULE}.load_state_dict: with assign=False the tensors are copied"),
    needs=f"{NEEDS} save load", cases=any_size(), examples=0.5,
)
def parameters_stay_when_loaded(subject, case):
    """Training is resumed with an optimiser that may have been made before the file was read."""
    layer = prepared(subject, case, training=True)
    with saved(layer) as directory:
        other = prepared(subject, case.with_other_factors, training=True)
        tried(other, "hold", x=case.x)
        other.load(directory)
        same_parameters(tried(other, "held"), "after load()")


@requirement(
    "TORCH-07",
    "requires_grad flags MUST survive changes of mode, merges and load_state_dict, also those that the user has set.",
    formula="flags after = flags before", sources=(f"{AUTOGRAD}: Setting requires_grad",), needs=f"{NEEDS} train",
    faults="64 65", cases=any_size(), examples=0.5,
)
def flags_survive(subject, case):
    """Only one factor trains in LoRA-FA and LoRA+ warm-ups. A layer that sets the flags anew undoes that without a word."""
    for name in ("A", "B", ""):
        layer = prepared(subject, case, training=True)
        for words, before, after in events(layer, tried(layer, "hold", x=case.x, frozen=name)):
            got, want = after.names("trains"), before.names("trains")
            expect(got == want, f"what trains {words}, with {name or 'no factor'} frozen", got, want)
        after = tried(layer, "state_again")
        expect(after.names("trains") == want, "what trains after its own state_dict was loaded", after.names("trains"), want)
        if name:
            frozen_while_merged(subject, case, name, want)
    layer = prepared(subject, case, training=True)
    tried(layer, "base_thawed")
    for words, before, after in events(layer, tried(layer, "hold", x=case.x)):
        got, want = after.names("trains"), before.names("trains")
        if words != "while merged":  # a step would be lost then, so the layer may freeze W for that time
            expect(got == want, f"what trains {words}, after W and b were made to train", got, want)


def frozen_while_merged(subject, case: Case, name: str, want: list[str]) -> None:
    """A merge that keeps the flags, and an unmerge that brings them back, undo what was frozen in between."""
    layer = prepared(subject, case, training=True)
    with suppress(Unsupported):
        merge(layer, training=True)
        layer.factor_needs_grad(name, False)
        layer.unmerge()
        set_mode(layer, True)
        got = tried(layer, "hold", x=case.x).names("trains")
        expect(got == want, f"what trains after unmerge, with {name} frozen while the layer was merged", got, want)


@requirement(
    "TORCH-08",
    "An output that somebody holds MUST NOT change when the layer runs again, steps, changes its mode or merges.",
    formula="y held = y computed", sources=(f"{AUTOGRAD}: In-place correctness checks", f"{MODULE}.forward gives a new tensor"),
    needs=f"{NEEDS} forward backward step train", faults="66 123", cases=any_size(only=SINGLE), examples=0.5,
)
def outputs_stay(subject, case):
    """A layer that uses one buffer for all its outputs is right as long as nobody looks back. Some do so only where no gradient
    is asked for."""
    layer = prepared(subject, case, training=True)
    y = layer.forward(case.x)
    tried(layer, "hold", x=case.x).equal("y", y)
    gradients(layer, -case.x, case.dy)
    layer.step(0.5)
    tried(layer, "held").equal("y", y, "y that was held while the layer ran again and stepped")
    layer.train(False)
    layer.forward(-case.x)
    layer.train(True)
    tried(layer, "held").equal("y", y, "y that was held while the layer ran in inference mode")
    for mode in (False, True):
        set_mode(layer, mode)
        for where in CONTEXTS[1:3]:
            facts = tried(layer, "held_under", x=case.x, x2=-case.x, where=where)
            words = f"y of a pass {where}, in {'training' if mode else 'inference'} mode, after another pass"
            facts.equal("y later", facts["y"], words)
    with suppress(Unsupported):
        layer.merge()
        layer.forward(-case.x)
        layer.unmerge()
        tried(layer, "held").equal("y", y, "y that was held while the layer was merged")


@requirement(
    "TORCH-09",
    "A layer that is used several times before a backward pass MUST give the sum of the gradients, also for different inputs.",
    formula="dA = dA(x₁, dy₁) + dA(x₂, dy₂); dxᵢ of its own input", sources=(f"{AUTOGRAD}: How autograd encodes the history",),
    needs=NEEDS, faults="59", cases=any_size(), examples=0.5,
)
def used_twice(subject, case):
    """Weights are shared, and sequences pass through a layer one part at a time. A layer that keeps x as an attribute for its
    backward pass uses the last x for all of them."""
    x, dy = (np.flip(array[:1]).copy() for array in (case.x, case.dy))
    both = case.replace(x=np.concatenate([case.x, x]), dy=np.concatenate([case.dy, dy]))
    assume(exact_in_any_order(both))
    first, other = plain(subject, case), plain(subject, case.replace(x=x, dy=dy))
    for together, words in ((True, "of two uses, with one backward pass"), (False, "of two uses, with two backward passes")):
        given = {"x": case.x, "dy": case.dy, "x2": x, "dy2": dy, "together": together}
        facts = tried(prepared(subject, case, training=True), "used_twice", **given)
        facts.equal("y2", other["y"], "y of the second use")
        for name, want in (("x", first), ("x2", other)):
            if "x" in want:
                facts.equal(f"d {name}", want["x"], f"dx of the {'first' if want is first else 'second'} {words}")
        for name in ("A", "B"):
            facts.equal(f"d {name}", wide(first[name]) + wide(other[name]), f"d{name} {words}")
    with suppress(Unsupported):
        each_with_its_mask(subject, case, x, dy)


def each_with_its_mask(subject: Subject, case: Case, x: np.ndarray, dy: np.ndarray) -> None:
    """With dropout the LoRA part of each use is linear in its x, with the mask that it had then:
    ⟨dy, y − base⟩ = ⟨dx − dy W, x⟩."""
    layer = prepared(subject, case.replace(dropout=0.5), training=True)
    given = {"x": case.x, "dy": case.dy, "x2": x, "dy2": dy}
    facts, W, b = tried(layer, "used_twice", **given, together=False), wide(case.W), 0.0 if case.b is None else wide(case.b)
    for name in ("", "2"):
        if f"d x{name}" in facts:
            x, dy = wide(given[f"x{name}"]), wide(given[f"dy{name}"])
            y, dx = wide(facts[f"y{name}"]), wide(facts[f"d x{name}"])
            forward, backward = (dy * (y - x @ W.T - b)).sum(), ((dx - dy @ W) * x).sum()
            words = f"⟨dx − dy W, x⟩ of the {'second' if name else 'first'} of two uses with dropout, against ⟨dy, y − base⟩"
            expect_equal(np.array(backward), np.array(forward), words)


@requirement(
    "TORCH-10",
    "A second backward pass through a retained graph MUST add the same gradients again.",
    formula="2 · dA, 2 · dB, 2 · dx", sources=("PyTorch documentation, torch.Tensor.backward: retain_graph",), needs=NEEDS,
    cases=any_size(), examples=0.5,
)
def retained_graph(subject, case):
    """A backward pass that works in the tensors which it was left leaves others for the next one."""
    facts = tried(prepared(subject, case, training=True), "retained", x=case.x, dy=case.dy)
    facts.gradients(plain(subject, case), "of two backward passes through one graph", times=2)
    with suppress(Unsupported):
        facts = tried(prepared(subject, case.replace(dropout=0.5), training=True), "retained", x=case.x, dy=case.dy)
        once = {name: facts[f"first d {name}"] for name in ("x", "A", "B") if f"first d {name}" in facts}
        facts.gradients(once, "of two backward passes through one graph with dropout, against one", tuple(once), times=2)


@requirement(
    "TORCH-11",
    "Second derivatives MUST be right, or be refused with an error.",
    formula="s = Σ v · dx ⇒ ∂s/∂A = scale · vᵀ(dy Bᵀ), ∂s/∂B = scale · (v A)ᵀ dy, ∂s/∂dy = v Wᵀ + scale · (v A) B",
    sources=("PyTorch tutorials, Double Backward with Custom Functions",
             "Gulrajani et al. 2017, arXiv:1704.00028: gradient penalty"),
    needs=NEEDS, faults="58", cases=any_size(), examples=0.5,
)
def second_derivatives(subject, case):
    """A backward pass written by hand may give a dx without its history in A or B. A penalty on dx then trains nothing."""
    other = case.replace(x=np.flip(case.x).copy())
    assume(exact_in_any_order(other))
    facts, found, want = (tried(prepared(subject, case, training=True), "second", x=case.x, dy=case.dy, v=other.x),
                          plain(subject, case), plain(subject, other))
    if "refused" in facts or "x" not in found:
        return
    facts.equal("dx", found["x"], "dx, with a graph of its own")
    for name in ("A", "B"):
        facts.equal(f"d {name}", want[name], f"∂/∂{name} of Σ v · dx")
    if np.array_equal(wide(found["x"]), case.truth.dx):  # otherwise dx is no derivative of y
        bias = 0 if case.b is None else wide(case.b)
        facts.equal("d dy", wide(want["y"]) - bias, "∂/∂dy of Σ v · dx")
        through_the_gradients_of_the_factors(subject, case)


def through_the_gradients_of_the_factors(subject, case: Case) -> None:
    """Training through a step of training (MAML) needs these. Σ dA is the LoRA part of ⟨dy, y⟩ with 1 in the place of A."""
    ones = {name: np.ones_like(array) for name, array in case.adapter.items()}
    for name, other in (("A", "B"), ("B", "A")):
        changed, without = case.replace(**{name: ones[name]}), case.replace(**{name: 0 * ones[name]})
        assume(exact_in_any_order(changed))
        facts = tried(prepared(subject, case, training=True), "second_through", x=case.x, dy=case.dy, name=name)
        if "refused" in facts:
            return
        want, base = plain(subject, changed), plain(subject, without)
        facts.equal(f"d {other}", want[other], f"∂/∂{other} of Σ d{name}")
        facts.equal("d x", wide(want["x"]) - wide(base["x"]), f"∂/∂x of Σ d{name}")
        facts.equal("d dy", wide(want["y"]) - wide(base["y"]), f"∂/∂dy of Σ d{name}")


@requirement(
    "TORCH-12",
    "In every mode x MUST stay as it was, with a gradient, without one, under no_grad and under inference_mode.",
    formula="x after = x before", sources=(f"{MODULE}.forward", f"{AUTOGRAD}: Locally disabling gradient computation"),
    needs=NEEDS, faults="66", cases=any_size(), examples=0.5,
)
def x_stays(subject, case):
    """Autograd forbids some writes into x, and under no_grad it allows them all. The block that x came from adds x again."""
    x = np.sin(np.arange(1.0, 1 + case.x.size)).reshape(case.x.shape).astype(case.dtype)  # × scale / scale changes last bits
    for words, layer in states(subject, case.replace(alpha=1.1 * case.config.alpha)):
        facts = tried(layer, "in_modes", x=x)
        for name in MODES:
            facts.equal(f"x after {name}", x, f"x after a forward pass in {name}, {words}")


@requirement(
    "TORCH-13",
    "Grad mode, no_grad and inference_mode MUST give the same output. The last two MUST keep no graph, and grad mode MUST keep "
    "one, also after eval().",
    formula="y under no_grad = y, y.requires_grad = False; in grad mode it is True",
    sources=(f"{AUTOGRAD}: Locally disabling gradient computation; Evaluation Mode (nn.Module.eval())",),
    needs=NEEDS, cases=any_size(), examples=0.5,
)
def modes_agree(subject, case):
    """A layer may take another way when nobody wants a gradient, and reuse memory there. So each pass comes after one of more
    rows that are NaN. A graph that is kept all the same holds every activation. eval() has no say in that: prompts that train
    before the layer, and analyses of a model, take the gradient of x in inference mode."""
    for (words, layer), (_, other) in zip(states(subject, case), states(subject, case), strict=True):
        facts, y = tried(layer, "in_modes", x=case.x), other.forward(case.x)  # of a layer that has seen no NaN
        for name in MODES:
            facts.equal(f"y in {name}", y, f"y in {name}, {words}")
        for name in ("no_grad", "inference_mode"):
            expect(facts[f"graph in {name}"] is False, f"y.requires_grad in {name}, {words}", facts[f"graph in {name}"], False)
        got = facts["graph in grad mode"]
        expect(got is True or words == "while merged", f"y.requires_grad in grad mode, {words}", got, True)


MODES = ("grad mode", "grad mode, dx not wanted", "no_grad", "inference_mode")


def states(subject, case: Case):
    """(words, layer) in training mode, in inference mode and merged."""
    layer = prepared(subject, case, training=True)
    yield "in training mode", layer
    set_mode(layer, training=False)
    yield "in inference mode", layer
    set_mode(layer, training=True)
    if merged_too(layer):
        yield "while merged", layer


@requirement(
    "TORCH-14",
    "Under autocast the output MUST be right, in the dtype of autocast or of the layer, the gradients MUST be right, and A and "
    "B MUST stay as they are.",
    formula="dtype(y) ∈ {autocast, layer}; small integers are exact",
    sources=("PyTorch documentation, torch.amp: Autocast Op Reference, linear and matmul",), needs=NEEDS, faults="126 127 128",
    optional=True, cases=exact(only=("float32", "float16", "bfloat16"), small=True), examples=0.5,
)
def under_autocast(subject, case):
    """Mixed-precision training runs a float32 layer under autocast, and a layer in half precision, too. Products that a layer
    computes itself may then meet in two dtypes. bfloat16 holds numbers that are too large for float16. A
    factor that is converted itself loses the steps of the optimiser."""
    want = plain(subject, case)
    for dtype in ("bfloat16", "float16") if case.config.dtype == "float32" else (case.config.dtype,):
        assume(exact_in_any_order(case.replace(dtype=dtype)))
        layer = prepared(subject, case, training=True)
        before = layer.adapter()
        facts = tried(layer, "autocast", x=case.x, dy=case.dy, dtype=dtype)
        words = f"of a {case.config.dtype} layer under autocast to {dtype}"
        for name, factor in layer.adapter().items():
            kept = before[name].dtype
            expect(factor.dtype == kept, f"dtype of {name} after a pass {words}", factor.dtype, kept)
            expect_equal(factor, before[name], f"{name} after a pass {words}")
        facts.equal("y", want["y"], f"y {words}")
        got, known = facts["y"].dtype, (DTYPES[dtype], case.dtype)
        expect(got in known, f"dtype of y {words}", got, " or ".join(dict.fromkeys(map(str, known))))
        facts.gradients(want, words)
        facts = tried(prepared(subject, case, training=True), "autocast", x=case.x, dy=case.dy, dtype=dtype, half=True)
        facts.equal("y", want["y"], f"y {words}, with x in {dtype}")
        facts.gradients(want, f"{words}, with x in {dtype}")
        if dtype == "bfloat16":
            large = case.replace(x=case.x * case.dtype.type(2**20), b=None if case.b is None else np.zeros_like(case.b))
            facts = tried(prepared(subject, large, training=True), "autocast", x=large.x, dy=large.dy, dtype=dtype)
            known = plain(subject, large)
            facts.equal("y", known["y"], f"y {words}, with large numbers in x")
            facts.gradients(known, f"{words}, with large numbers in x")


@requirement(
    "TORCH-15",
    "train() and eval() MUST return the module and set its mode, and merge and unmerge MUST leave the modes of its parts.",
    formula="module.train() is module, module.eval() is module", sources=(f"{MODULE}.train, .eval: Returns self",),
    needs="as_module", faults="75 76", cases=exact(degenerate=True), examples=0.25,
)
def modes_return_the_module(subject, case):
    """`model = Model().eval()` is written everywhere. With None in the place of the model it fails later and elsewhere. Dropout
    that an unmerge puts into training mode goes on in the evaluation."""
    facts = tried(fresh(subject, case), "modes")
    for name in ("eval()", "train()", "train(False)", "train(True)"):
        facts.true(f"{name} returns the module", f"{name} sets the mode")
    for mode in (True, False):
        with suppress(Unsupported):
            layer = fresh(subject, case)
            set_mode(layer, mode)
            before = tried(layer, "part_modes")["modes"]
            if not refuses(layer.merge):
                layer.unmerge()
                after = tried(layer, "part_modes")["modes"]
                if after[:1] == before[:1]:  # some layers merge by a change of mode
                    words = f"modes after merge and unmerge in {'training' if mode else 'inference'} mode"
                    expect(after == before, words, after, before)


@requirement(
    "TORCH-16",
    "The next forward pass MUST see what was written into A, by copy_, through .data, as a new .data, or by load_state_dict.",
    formula="A ← −A ⇒ y = x Wᵀ + b − scale · (x A) B",
    sources=("PyTorch documentation, torch.optim: a step writes into the Parameters",), needs=NEEDS, faults="110",
    cases=any_size(), examples=0.25,
)
def writes_are_seen(subject, case):
    """Optimisers, averages of weights and loaders write in these ways. A product of A and B that is kept for later is then old,
    perhaps only under no_grad, inference_mode or autocast. The layer is set to training mode before each write if it merges in
    inference mode. What is right is what a fresh layer gives."""
    stay = keeps_its_weight(prepared(subject, case, training=True))
    for where in CONTEXTS if case.config.dtype == "float32" else CONTEXTS[:-1]:
        once, twice = (tried(prepared(subject, c, training=True), "within", x=case.x, where=where)
                       for c in (with_negated_A(case), case))
        for how, words in WRITES.items():
            facts = tried(prepared(subject, case, training=True), "written", x=case.x, how=how, where=where, stay=stay)
            for number, want in (("a write", once), ("two writes", twice)):
                facts.equal(f"y after {number}", want["y"], f"y after {number}: {words}, {where}")
                name = f"y after {number}, in inference mode"
                facts.equal(name, want["y in inference mode"], f"{name}: {words}, {where}")
            for number, want in (("a write", twice), ("two writes", once)) if stay else ():
                name = f"y after {number} and one more, in inference mode"
                facts.equal(name, want["y in inference mode"], f"{name}: {words}, {where}")


def keeps_its_weight(layer: Layer) -> bool:
    """Whether the layer, which is in training mode, has the same W in inference mode. It is in that mode afterwards."""
    before = known_weight(layer)
    set_mode(layer, False)
    after = known_weight(layer)
    return before is not None and after is not None and np.array_equal(before, after)


@requirement(
    "TORCH-17",
    "Building a layer and running it MUST leave the settings of torch as they were, and MUST NOT seed a global generator.",
    formula="another state before ⇒ another state after",
    sources=("PyTorch documentation, Reproducibility: the seed is the user's", "NumPy documentation, numpy.random.seed"),
    needs=f"{NEEDS} forward", cases=any_size(), examples=0.25,
)
def surroundings_stay(subject, case):
    """A layer that seeds its dropout makes all the dropout of the model alike in every step. To draw from a generator is fine:
    the state afterwards then depends on the state before. The two layers are built with different seeds of their own."""
    layer, after = fresh(subject, case), []
    for number in (1, 2):
        before = tried(layer, "seed", number=number)
        after.append(tried(fresh(subject, case.replace(seed=10 + number)), "surroundings"))
        same_settings(before, after[-1], "after a layer was built")
    not_seeded(after[0], after[1], "after a layer was built")
    for dropout in (0.0, 0.5):
        with suppress(Unsupported):
            check_runs(prepared(subject, case.replace(dropout=dropout), training=True), case, f"dropout {dropout:g}")


def check_runs(layer: Layer, case: Case, words: str) -> None:
    words, after = f"after a forward and a backward pass, {words}", []
    for number in (1, 2):
        before = tried(layer, "seed", number=number)
        layer.forward(case.x)
        with suppress(Unsupported):
            layer.backward(case.dy)
        after.append(tried(layer, "surroundings"))
        same_settings(before, after[-1], words)
    not_seeded(after[0], after[1], words)


def same_settings(before: Facts, after: Facts, words: str) -> None:
    for name, want in before.facts.items():
        if not name.startswith(("state", "seed")):
            expect(after[name] == want, f"{name} {words}", after[name], want)


def not_seeded(first: Facts, second: Facts, words: str) -> None:
    for name in ("torch", "NumPy", "random"):
        seeded = first[f"state of {name}"] == second[f"state of {name}"]
        words = f"state of the global generator of {name} {words}"
        expect(not seeded, words, "the same, whatever it was before", "one that depends on it")


@requirement(
    "TORCH-18",
    "A layer around a given nn.Linear MUST leave the numbers, the dtype and the mode of that nn.Linear as they are.",
    formula="W, b, training after = before", sources=(f"{MODULE}.train sets the mode when it is called",),
    needs="as_module", faults="31", optional=True, cases=exact(degenerate=True), examples=0.5,
)
def given_layers_stay(subject, case):
    """A layer that draws the base anew, converts it, or sets it to training mode changes a model that was ready."""
    for training in (False, True):
        given = {"W": case.W, "b": case.b, "training": training}
        facts = tried(fresh(subject, case), "wrapped", **given)
        for name in ("W", "b") if case.b is not None else ("W",):
            facts.equal(name, given[name], f"{name} of the nn.Linear that was given")
            got = facts[name].dtype
            expect(got == case.dtype, f"dtype of {name} of the nn.Linear that was given", got, case.dtype)
        got = facts["mode of the nn.Linear"]
        expect(got is training, "training flag of the nn.Linear that was given", got, training)


@requirement(
    "TORCH-19",
    "to(dtype), double(), half() and bfloat16() MUST convert every array, and the layer MUST be right in its new dtype.",
    formula="every floating-point tensor of one dimension or more has the new dtype",
    sources=(f"{MODULE}.to, .double, .half, .bfloat16: all floating point parameters and buffers",), needs=NEEDS, faults="129",
    optional=True, cases=exact(only=("float32",), small=True), examples=0.5,
)
def converted(subject, case):
    """A mask that is a plain attribute stays behind, and then promotes the output or is refused. So does the copy of
    W that a merged layer keeps. A layer that remembers its first dtype goes on to compute in it."""
    found = plain(subject, case)
    has_all_digits(subject, case)
    layer = prepared(subject, case, training=True)
    if merged_too(layer):
        tried(layer, "moved", x=case.x, dy=case.dy, dtype="float64", how="double")
        with suppress(Unsupported):
            layer.unmerge()
            y, words = layer.forward(case.x.astype(np.float64)), "after merge, double() and unmerge"
            expect(y.dtype == np.float64, f"dtype of y {words}", y.dtype, "float64")
            expect_equal(y, found["y"], f"y {words}")
    for dtype, ways in (("float64", ("to", "double")), ("bfloat16", ("to", "bfloat16")), ("float16", ("to", "half"))):
        if exact_in_any_order(case.replace(dtype=dtype)):
            for how in ways:
                facts = tried(prepared(subject, case, training=True), "moved", x=case.x, dy=case.dy, dtype=dtype, how=how)
                words = f"after {'to(' + dtype + ')' if how == 'to' else how + '()'}"
                expect(not facts.names("stayed"), f"tensors that are not in {dtype} {words}", facts.names("stayed"), "none")
                facts.equal("y", found["y"], f"y {words}")
                expect(facts["y"].dtype == DTYPES[dtype], f"dtype of y {words}", facts["y"].dtype, dtype)
                facts.gradients(found, words)


def has_all_digits(subject: Subject, case: Case) -> None:
    """A layer in float32 that is converted to float64 computes as one that was built in float64, with numbers that only that
    format has."""
    layer, longer = prepared(subject, case, training=True), 1 + 2.0**-30  # 31 bits: float32 has 24, and the others are for sums
    tried(layer, "moved", x=case.x, dy=case.dy, dtype="float64", how="double")
    b = 0.0 if case.b is None else case.b.astype(np.float64)
    want = (case.truth.y - b) * longer + b
    expect_equal(layer.forward(case.x.astype(np.float64) * longer), want, "y after double(), of numbers that only float64 has")
    layer.set_adapter({"A": case.A.astype(np.float64) * longer, "B": case.B.astype(np.float64)})
    if merged_too(layer):
        base = case.x.astype(np.float64) @ case.W.astype(np.float64).T + b
        want = (case.truth.y - base) * longer + base
        y = layer.forward(case.x.astype(np.float64))
        expect_equal(y, want, "y after double() and a merge of numbers that only float64 has")


@requirement(
    "TORCH-20",
    "torch.func.functional_call with another A MUST compute with that A, and leave the layer as it was.",
    formula="y = x Wᵀ + b + scale · (x A') B; dA' = scale · xᵀ(dy Bᵀ)",
    sources=("PyTorch documentation, torch.func.functional_call",), needs=NEEDS, cases=any_size(), examples=0.5,
)
def functional_calls(subject, case):
    """Meta-learning, ensembles and parametrizations call a module so. A layer that keeps a second reference to A misses it."""
    want, other = (plain(subject, c) for c in (case, with_negated_A(case)))
    facts = tried(prepared(subject, case, training=True), "functional", x=case.x, dy=case.dy)
    facts.equal("y", other["y"], "y with −A in the place of A")
    facts.equal("d A", other["A"], "dA of the A that was given")
    facts.equal("d B", other["B"], "dB with −A in the place of A")
    got = facts["A got a gradient"]
    expect(got is False, "whether A of the layer got a gradient of a call that did not use it", got, False)
    facts.equal("y of a plain call", want["y"], "y of a plain call after it")


@requirement(
    "TORCH-21",
    "Under torch.utils.checkpoint, reentrant or not, output and gradients MUST be the same as without it.",
    formula="dA, dB, dx with a checkpoint = without", sources=("PyTorch documentation, torch.utils.checkpoint",), needs=NEEDS,
    faults="59", cases=any_size(), examples=0.5,
)
def checkpoints(subject, case):
    """Nearly all large models are trained so. The forward pass runs twice, the second time inside the backward pass."""
    want = plain(subject, case)
    for reentrant in (False, True):
        facts = tried(prepared(subject, case, training=True), "checkpointed", x=case.x, dy=case.dy, reentrant=reentrant)
        words = f"under checkpoint(use_reentrant={reentrant})"
        facts.equal("checkpointed y", want["y"], f"y {words}")
        facts.gradients(want, words, prefix="checkpointed ")
        layer = prepared(subject, case, training=True)
        with suppress(Unsupported):
            merge(prepared(subject, case, training=True), training=True)
            tried(layer, "checkpointed", x=case.x, dy=case.dy, reentrant=reentrant)
            merge(layer, training=True)
            layer.unmerge()
            set_mode(layer, True)
            expect_equal(layer.forward(case.x), want["y"], f"y after a pass {words}, a merge and its undoing")


@requirement(
    "TORCH-22",
    "Under torch.utils.checkpoint the mask of dropout MUST be the same in both forward passes.",
    formula="dA, dB, dx with a checkpoint = without, after the same seed",
    sources=("PyTorch documentation, torch.utils.checkpoint: preserve_rng_state keeps the global generators",), needs=NEEDS,
    optional=True, cases=any_size(dropout=0.5, leading=st.just((8,)), only=SINGLE), examples=0.5,
)
def checkpoints_with_dropout(subject, case):
    """A layer with a generator of its own draws another mask in the second pass, and the gradients fit no output."""
    for reentrant in (False, True):
        facts = tried(prepared(subject, case, training=True), "checkpointed", x=case.x, dy=case.dy, reentrant=reentrant)
        want = {name.split()[-1]: facts[name] for name in facts.facts if name.startswith("plain")}
        words = f"under checkpoint(use_reentrant={reentrant}) with dropout, against a plain pass after the same seed"
        facts.equal("checkpointed y", want["y"], f"y {words}")
        facts.gradients(want, words, prefix="checkpointed ")


@requirement(
    "TORCH-23",
    "Forward hooks, backward hooks and their pre-hooks MUST fire once for each call, and what they return MUST be used.",
    formula="pre-hook x ↦ −x, hook y ↦ −y, backward hook dx ↦ −dx, backward pre-hook dy ↦ 2 dy",
    sources=(f"{MODULE}.register_forward_pre_hook, .register_forward_hook, .register_full_backward_hook, …",), needs=NEEDS,
    optional=True, cases=any_size(), examples=0.5,
)
def hooks_are_honoured(subject, case):
    """Hooks read activations, clip gradients and offload weights. A layer that overrides __call__ never runs them."""
    facts = tried(prepared(subject, case, training=True), "hooked", x=case.x, dy=case.dy)
    found, negative = plain(subject, case), plain(subject, case.replace(x=-case.x))
    facts.equal("pre: y", negative["y"], "y, with a forward pre-hook that negates x")
    facts.equal("post: y", -wide(found["y"]), "y, with a forward hook that negates y")
    if "x" in found:
        facts.equal("backward: dx", -wide(found["x"]), "dx, with a full backward hook that negates dx")
        facts.equal("before: dx", 2 * wide(found["x"]), "dx, with a full backward pre-hook that doubles dy")
    want = ["forward pre-hook", "forward hook", "full backward hook", "full backward pre-hook"]
    expect(facts.names("fired") == want, "hooks that fired", facts.names("fired"), want)


@requirement(
    "TORCH-24",
    "torch.compile SHOULD take the forward pass as one graph, and give the same output and gradients.",
    formula="compile(module, fullgraph=True) = module", sources=("PyTorch documentation, torch.compile: fullgraph",),
    needs=NEEDS, optional=True, cases=exact(only=("float32",)), examples=0.05,
)
def compiles(subject, case):
    """What a compiler cannot look into breaks the graph of the whole model. The backends are those that generate no code."""
    want = plain(subject, case)
    for backend in ("eager", "aot_eager"):
        facts = tried(prepared(subject, case, training=True), "compiled", x=case.x, dy=case.dy, backend=backend)
        facts.equal("y", want["y"], f"y, compiled with {backend}")
        facts.gradients(want, f"compiled with {backend}")


@requirement(
    "TORCH-25",
    "torch.vmap and torch.func.grad SHOULD go through the layer and give the same output and gradients.",
    formula="vmap(f)(x)ᵢ = f(xᵢ); grad(Σ f · dy) = dA, dB, dx",
    sources=("PyTorch documentation, torch.vmap, torch.func.grad",), needs=NEEDS, optional=True,
    cases=exact(leading=st.sampled_from([(2,), (3,), (2, 2)])), examples=0.5,
)
def function_transforms(subject, case):
    """Per-sample gradients, as of private training, are computed so. An autograd function needs a rule for each transform."""
    facts = tried(prepared(subject, case, training=True), "transformed", x=case.x, dy=case.dy)
    want = plain(subject, case)
    facts.equal("y", want["y"], "y by vmap over the rows")
    facts.gradients(want, "by torch.func.grad")


@requirement(
    "TORCH-26",
    "After zero_grad, with set_to_none True or False, the gradients MUST be gone or zero, and the next ones right.",
    formula="zero_grad ⇒ dA ∈ {None, 0}", sources=(f"{MODULE}.zero_grad: set_to_none",), needs=NEEDS, cases=any_size(),
    examples=0.5,
)
def zero_grad_in_both_ways(subject, case):
    """A backward pass that writes into .grad itself may count on a tensor there, or on none."""
    want = plain(subject, case)
    for to_none, by in ((True, "the module"), (False, "the module"), (True, "an optimiser"), (False, "an optimiser")):
        facts = tried(prepared(subject, case, training=True), "zeroed", x=case.x, dy=case.dy, to_none=to_none, by=by)
        words = f"after zero_grad(set_to_none={to_none}) of {by}"
        for name in ("A", "B"):
            if f"zero {name}" in facts:
                facts.equal(f"zero {name}", 0 * case.adapter[name], f"d{name} {words}")
            facts.equal(f"d {name}", want[name], f"d{name} of the next backward pass {words}")


@requirement(
    "TORCH-27",
    "A factor that is frozen by requires_grad_(False) MUST get no gradient, and everything else MUST stay as it is.",
    formula="A frozen ⇒ no dA; y, dx, dB unchanged", sources=(f"{AUTOGRAD}: Setting requires_grad",), needs=NEEDS,
    faults="57 65", cases=any_size(), examples=0.5,
)
def frozen_factors(subject, case):
    """A backward pass written by hand may compute all gradients or none. dx must pass through a frozen layer, too."""
    want = plain(subject, case)
    for name, left in (("A", ("x", "B")), ("B", ("x", "A")), ("both", ("x",))):
        facts = tried(prepared(subject, case, training=True), "frozen", x=case.x, dy=case.dy, name=name)
        words = f"with {'A and B' if name == 'both' else name} frozen"
        facts.equal("y", want["y"], f"y {words}")
        facts.gradients(want, words, names=left)


@requirement(
    "TORCH-28",
    "The state_dict SHOULD hold A and B themselves, and no copies.",
    formula="state_dict()[…] and A share memory",
    sources=(f"{MODULE}.state_dict: a shallow copy, which contains references to the module's parameters and buffers",),
    needs=NEEDS, cases=any_size(), examples=0.25,
)
def state_dict_holds_the_factors(subject, case):
    """Averages of weights, and copies from one model to another, are written into the tensors of a state_dict."""
    facts = tried(prepared(subject, case, training=True), "reloaded", x=case.x)
    facts.true("state_dict holds A", "state_dict holds B")


@requirement(
    "TORCH-29",
    "After load_state_dict has brought another frozen weight, merge and unmerge MUST work on that weight.",
    formula="W ← −W ⇒ merge: W = −W + scale · (A B)ᵀ, and unmerge: W = −W", needs=f"{NEEDS} merge unmerge",
    sources=(f"{MODULE}.load_state_dict: copies parameters and buffers",), cases=any_size(), examples=0.25,
)
def merges_what_was_loaded(subject, case):
    """A model that was merged before gets other weights from a checkpoint. A copy of W that a layer has kept since the first
    merge, or since it was built, brings the old ones back. What is right is what a layer with these weights gives."""
    other = case.replace(W=-case.W)
    assume(exact_in_any_order(other))
    got, want = prepared(subject, case, training=True), prepared(subject, other, training=True)
    for layer in (got, want):
        layer.forward(case.x)
        merge(layer, training=True)
        layer.unmerge()
        set_mode(layer, training=True)
    tried(got, "rebased", W=case.W)
    for words in ("before a merge", "while merged", "after unmerge"):
        expect_equal(got.forward(case.x), want.forward(case.x), f"y after another W was loaded, {words}")
        for layer in (got, want):
            if words == "before a merge":
                merge(layer, training=True)
            elif words == "while merged":
                layer.unmerge()


@requirement(
    "TORCH-30",
    "Under torch.compile there MUST be dropout in training mode, as without it.",
    formula="compile(module).train() drops", sources=("PyTorch documentation, torch.compile: the same results as eager mode",),
    needs=NEEDS, optional=True, cases=sized(32, 32, 32, 128.0, dropout=0.5), examples=0.1,
)
def compiled_dropout(subject, case):
    """What is in the way of a compiler is left out while it looks, and nobody sees that the compiled model trains without."""
    x = np.ones((4, 16, case.config.in_features), case.dtype)
    found = wide(tried(revealing(subject, case), "compiled_pass", x=x)["y"]) / case.scale
    expect(bool((found == 0).any()), "dropped entries of a compiled pass in training mode", 0, f"about {x.size // 2}")
    expect_equal(found, np.where(found == 0, 0.0, 2.0), "entries of a compiled pass in training mode, as multiples of x")


@requirement(
    "TORCH-31",
    "If x, A or B is changed in place between the passes, the backward pass SHOULD be that of its forward pass, or an error.",
    formula="x ← −x between the passes ⇒ dA = dA(x), or refused", sources=(f"{AUTOGRAD}: In-place correctness checks",),
    needs=NEEDS, cases=any_size(), examples=0.1,
)
def saved_tensors_are_checked(subject, case):
    """torch counts the changes of each tensor, and refuses a backward pass with one that has changed. Code that keeps a tensor
    in another way, as an attribute or without its history, takes the new numbers, and no error tells."""
    want = gradients(prepared(subject, case, training=True), case.x, case.dy)
    for what in ("x", "A", "B"):
        layer = prepared(subject, case, training=True)
        facts = tried(layer, "changed_between", x=case.x, dy=case.dy, what=what)
        if facts["refused"] is not True:
            facts.gradients(want, f"where {what} was changed in place between the passes")


@requirement(
    "TORCH-32",
    "If the layer is merged between the passes, the backward pass SHOULD be that of its forward pass, or an error.",
    formula="merge between the passes ⇒ dx = dx(W), or refused", sources=(f"{AUTOGRAD}: In-place correctness checks",),
    needs=f"{NEEDS} merge unmerge", cases=any_size(), examples=0.1,
)
def merge_between_passes(subject, case):
    """An evaluation in the middle of a step merges and unmerges. A merge that goes round autograd, through `.data`, gives
    gradients of the merged weight to a pass that has added the LoRA part already."""
    want = gradients(prepared(subject, case, training=True), case.x, case.dy)
    for unmerged in (False, True):
        layer = prepared(subject, case, training=True)
        tried(layer, "begun", x=case.x)
        merge(layer, training=True)
        if unmerged:
            layer.unmerge()
        facts = tried(layer, "ended", dy=case.dy)
        if facts["refused"] is not True:
            facts.gradients(want, "where the layer was merged between the passes" + (" and unmerged" if unmerged else ""))
