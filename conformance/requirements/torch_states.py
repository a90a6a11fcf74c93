"""TORCH, continued: a layer to which something happens. It is copied, frozen, thawed, moved in memory, loaded in part, and its
derivatives are asked for in other ways.

As in torch.py, what is right is what a plain pass of a fresh layer gives, on cases that are exact in any order.
"""

from contextlib import suppress

import numpy as np
from hypothesis import assume

from conformance.requirements import PEFT, requirement
from conformance.requirements.helpers.layers import merge, prepared, saved, set_mode
from conformance.requirements.torch import AUTOGRAD, GROUP, MODULE, NEEDS, SINGLE, merged_too, plain, tried, with_negated_A
from conformance.requirements.torch_use import inside
from conformance.subject import Layer, Unsupported
from conformance.truth.case import Case, exact_in_any_order
from conformance.truth.compare import expect, expect_equal, repetitions, wide
from conformance.truth.strategies import any_size, exact, rounding

__all__ = ["GROUP"]  # a file of requirements has one
MASKS = 8  # that a layer shows under autocast


def expect_dropout(layer: Layer, case: Case, without: np.ndarray, words: str) -> None:
    """Demands that some pass with a rate of ½ differs from the output without dropout. It may not where the LoRA part is zero.
    Otherwise an entry that counts is dropped or doubled, and at most one of the two gives that output."""
    seen = (layer.forward(case.x) for _ in range(repetitions(0.5)))
    drops = any(not np.array_equal(wide(y), wide(without)) for y in seen)
    counts = not np.array_equal(wide(case.truth.base), wide(without))
    expect(drops or not counts, f"y of many passes in training mode with dropout, {words}", "that without dropout", "others")


@requirement(
    "TORCH-43",
    "A deep copy of a layer that has trained MUST train like it: with the same gradients, the same frozen weights and dropout.",
    formula="dA, dB, what trains, p of the copy = of the layer",
    sources=("Python documentation, copy: deepcopy", "PyTorch documentation, torch.optim.swa_utils: AveragedModel"),
    needs=NEEDS, faults="147", cases=any_size(), examples=0.25,
)
def copies_train(subject, case):
    """A copy that is built anew lacks what was set since, and one in which all tensors are new Parameters trains W, too. What a
    layer keeps of its last pass, with its graph, cannot be copied at all. Averages of weights and copies of models begin so."""
    want, layer = plain(subject, case), prepared(subject, case, training=True)
    layer.forward(case.x)
    layer.backward(case.dy)
    trains = sorted(layer.trainable())
    layer.zero_grad()
    tried(layer, "replaced")
    expect(sorted(layer.trainable()) == trains, "what trains in a copy", sorted(layer.trainable()), trains)
    expect_equal(layer.forward(case.x), want["y"], "y of a copy of a layer that has trained")
    found = layer.backward(case.dy)
    for name in ("A", "B"):
        expect(name in found, f"d{name} of a copy of a layer that has trained", "none", "a gradient")
        expect_equal(found[name], want[name], f"d{name} of a copy of a layer that has trained")
    with suppress(Unsupported):
        layer = prepared(subject, case.replace(dropout=0.5), training=True)
        tried(layer, "replaced")
        expect_dropout(layer, case, want["y"], "of a copy")


@requirement(
    "TORCH-44",
    "What is frozen, or made to train, after a pass MUST count from the next pass on.",
    formula="B.requires_grad_(False), a pass, B.requires_grad_(True) ⇒ dB = scale · (x A)ᵀ dy",
    sources=(f"{AUTOGRAD}: Setting requires_grad",), needs=NEEDS, faults="57 65", cases=any_size(only=SINGLE), examples=0.25,
)
def freezing_is_followed(subject, case):
    """A layer may look up once what trains, or keep the product of factors that are frozen. Training in stages then stands
    still, and an adapter that is loaded later has no effect."""
    want = plain(subject, case)
    for name in ("A", "B"):
        layer = prepared(subject, case, training=True)
        layer.factor_needs_grad(name, False)
        layer.forward(case.x)
        layer.backward(case.dy)
        layer.factor_needs_grad(name, True)
        layer.zero_grad()
        expect_equal(layer.forward(case.x), want["y"], f"y after {name} was frozen and made to train again")
        found = layer.backward(case.dy)
        for other in ("A", "B"):
            words = f"d{other} after {name} was frozen for a pass, and made to train again"
            expect(other in found, words, "none", "a gradient")
            expect_equal(found[other], want[other], words)
    other = with_negated_A(case)
    layer, y = prepared(subject, case, training=True), plain(subject, other)["y"]
    for name in ("A", "B"):
        layer.factor_needs_grad(name, False)
    layer.forward(case.x)
    with suppress(Unsupported), saved(prepared(subject, other, training=True)) as directory:
        layer.load(directory)
        expect_equal(layer.forward(case.x), y, "y of frozen factors that were loaded after a pass")


@requirement(
    "TORCH-45",
    "W and b that are made to train MUST get their gradients, or none.",
    formula="dW = dyᵀ x, db = Σ dy over the rows", sources=(f"{PEFT}, LoraConfig.bias", f"{AUTOGRAD}: Setting requires_grad"),
    needs=NEEDS, optional=True, cases=any_size(only=SINGLE), examples=0.25,
)
def thawed_base(subject, case):
    """Biases are trained beside the factors, and sometimes the whole model is in the end."""
    facts = tried(prepared(subject, case, training=True), "unfrozen", x=case.x, dy=case.dy)
    x, dy = (wide(array).reshape(-1, array.shape[-1]) for array in (case.x, case.dy))
    facts.equal("y", plain(subject, case)["y"], "y after W and b were made to train")
    for name, gradient in (("W", dy.T @ x), ("b", dy.sum(0))):
        if f"d {name}" in facts:
            facts.equal(f"d {name}", gradient, f"d{name} of a {name} that was made to train")
    layer = prepared(subject, case, training=True)
    facts = tried(layer, "unfrozen", x=x[0].astype(case.dtype), dy=dy[0].astype(case.dtype))
    for name, gradient in (("W", np.outer(dy[0], x[0])), ("b", dy[0])):
        if f"d {name}" in facts:
            facts.equal(f"d {name}", gradient, f"d{name} of a {name} that was made to train, for an x of one dimension")
    with suppress(Unsupported):  # dropout acts on the LoRA part alone
        facts = tried(prepared(subject, case.replace(dropout=0.5), training=True), "unfrozen", x=case.x, dy=case.dy)
        for name, gradient in (("W", dy.T @ x), ("b", dy.sum(0))):
            if f"d {name}" in facts:
                facts.equal(f"d {name}", gradient, f"d{name} of a {name} that was made to train, with dropout")


@requirement(
    "TORCH-46",
    "torch.autograd.grad MUST give the gradients and leave .grad as it is, and hooks on A and B MUST act on their gradients.",
    formula="A.grad = 1: grad(y, A, dy) = dA, A.grad = 1; a hook g ↦ −g ⇒ A.grad = −dA",
    sources=("PyTorch documentation, torch.autograd.grad, torch.Tensor.register_hook",), needs=NEEDS, cases=any_size(),
    examples=0.25,
)
def gradients_go_through_autograd(subject, case):
    """A backward pass that adds to .grad by itself saves an addition, and gives these nothing. Clipping, scaling and the
    exchange of gradients between machines hang on such hooks."""
    want = plain(subject, case)
    facts = tried(prepared(subject, case, training=True), "asked_for", x=case.x, dy=case.dy)
    facts.gradients(want, "by torch.autograd.grad, while A and B have gradients already")
    for name in ("A", "B"):
        facts.equal(f"kept {name}", np.ones_like(case.adapter[name]), f"{name}.grad, of ones, after torch.autograd.grad")
        facts.equal(f"hooked d {name}", -wide(want[name]), f"d{name} with a hook that negates it")


@requirement(
    "TORCH-47",
    "A tensor that a layer gets twice MUST have the sum of the gradients of both uses.",
    formula="y₁ = f(h), y₂ = f(h); dy₂ = −2 dy₁ ⇒ dh = −dx", sources=(f"{AUTOGRAD}: How autograd encodes the history",),
    needs=NEEDS, faults="59", cases=any_size(), examples=0.25,
)
def same_tensor_twice(subject, case):
    """Autograd adds up what two backward passes give for one tensor. A layer that writes dx into a buffer of its own changes
    the first before it is added."""
    want = plain(subject, case)
    facts = tried(prepared(subject, case, training=True), "twice_the_same", x=case.x, dy=case.dy)
    facts.gradients(want, "of two uses of one tensor, the second with −2 dy", times=-1)


@requirement(
    "TORCH-48",
    "Under autocast there MUST be dropout in training mode, with one mask for both passes, and a merge and its undoing MUST "
    "count.",
    formula="autocast, train(): y ≠ y without dropout, ⟨dy, y⟩ = ⟨dA, A⟩; autocast: y, merge, y, unmerge, y are the same",
    sources=("PyTorch documentation, torch.amp: Autocast Op Reference",), needs=NEEDS, optional=True,
    cases=exact(only=("float32",), small=True), examples=0.25,
)
def autocast_changes_numbers_alone(subject, case):
    """A layer may have a way of its own under autocast, and keep a copy of W in half precision. A mask that is drawn again in
    the backward pass, in the format of dy, is another one there."""
    assume(exact_in_any_order(case.replace(dtype="bfloat16")))
    want, layer = plain(subject, case)["y"], prepared(subject, case, training=True)
    with inside(layer, "under autocast", case):
        y = layer.forward(case.x)
    expect_equal(wide(y), wide(want), "y under autocast")
    with suppress(Unsupported):
        merge(layer, training=True)
        with inside(layer, "under autocast", case):
            y = layer.forward(case.x)
        expect_equal(wide(y), wide(want), "y under autocast, while merged, after a pass before that")
        layer.unmerge()
        set_mode(layer, True)
        with inside(layer, "under autocast", case):
            y = layer.forward(case.x)
        expect_equal(wide(y), wide(want), "y under autocast, after merge and unmerge")
    with suppress(Unsupported):
        layer = prepared(subject, case.replace(dropout=0.5), training=True)
        with inside(layer, "under autocast", case):
            expect_dropout(layer, case, want, "under autocast")
        if exact_in_any_order(case.replace(dtype="bfloat16", x=2 * case.x)):
            alone = case.replace(dropout=0.5, W=0 * case.W, b=None if case.b is None else 0 * case.b)
            for _ in range(MASKS):
                facts = tried(prepared(subject, alone, training=True), "autocast", x=case.x, dy=case.dy, dtype="bfloat16")
                for name in ("A", "B"):
                    found = (wide(facts[f"d {name}"]) * wide(case.adapter[name])).sum()
                    want = (wide(case.dy) * wide(facts["y"])).sum()
                    expect_equal(found, want, f"⟨d{name}, {name}⟩ against ⟨dy, y⟩ under autocast")


@requirement(
    "TORCH-49",
    "W, b, A and B MUST be read and merged by their strides, however they lie in memory.",
    formula="W, A, B stored column by column, b with gaps ⇒ the same y, dA, dB, W + scale · (A B)ᵀ",
    sources=("PyTorch documentation, Tensor Views: contiguous",), needs=NEEDS, cases=any_size(), examples=0.25,
)
def weights_of_any_layout(subject, case):
    """A weight that is the transpose of another one, as in tied or converted models, lies column by column. Code that flattens
    it, or that passes its address to a kernel, reads other numbers, or writes into a copy."""
    want, layer = plain(subject, case), prepared(subject, case, training=True)
    tried(layer, "restrided")
    for where in ("in grad mode", "under no_grad"):
        facts = tried(layer, "within", x=case.x, where=where)
        for name in ("y", "y in inference mode"):
            facts.equal(name, want["y"], f"{name} {where}, of W, A and B that lie column by column, and a b with gaps")
        set_mode(layer, True)
    layer.forward(case.x)
    found = layer.backward(case.dy)
    for name in ("A", "B"):
        expect(name in found, f"d{name} of factors that lie column by column", "none", "a gradient")
        expect_equal(found[name], want[name], f"d{name} of factors that lie column by column")
    merged = prepared(subject, case, training=True)
    if merged_too(merged):
        layer = prepared(subject, case, training=True)
        tried(layer, "restrided")
        merge(layer, training=True)
        expect_equal(layer.forward(case.x), merged.forward(case.x), "y after a merge into a W that lies column by column")
        with suppress(Unsupported):
            layer.unmerge()
            set_mode(layer, True)
            expect_equal(layer.forward(case.x), want["y"], "y after merge and unmerge of a W that lies column by column")


@requirement(
    "TORCH-50",
    "If dropout stops because the rate of each nn.Dropout in the layer is set to 0, no factor MUST make up for it any more. It "
    "MUST stop in the same way after a compiled pass, and if each nn.Dropout is replaced.",
    formula="p ← 0, nothing is dropped ⇒ y = x Wᵀ + b + scale · (x A) B in training mode",
    sources=("TRL, disable_dropout_in_model: module.p = 0 for each nn.Dropout",), needs=NEEDS, optional=True, cases=any_size(),
    examples=0.25,
)
def dropout_can_be_turned_off(subject, case):
    """Trainers do so before preference learning. A factor 1 / (1 − p) that the constructor has computed goes on to act. So does
    an nn.Dropout of which the layer has a second reference, and a rate that a compiler took for a constant."""
    want, dropped = plain(subject, case)["y"], case.replace(dropout=0.5)
    layer = prepared(subject, dropped, training=True)
    facts = tried(layer, "without_dropout", x=case.x, how="set to 0")
    if all(np.array_equal(wide(layer.forward(case.x)), wide(facts["y"])) for _ in range(repetitions(0.5))):
        facts.equal("y", want, "y in training mode, after the rate of each nn.Dropout was set to 0")
        with suppress(Unsupported):
            facts = tried(prepared(subject, dropped, training=True), "without_dropout", x=case.x, how="compiled")
            facts.equal("y", want, "y of a compiled layer, after the rate of each nn.Dropout was set to 0")
        layer = prepared(subject, dropped, training=True)
        with suppress(Unsupported):
            tried(layer, "without_dropout", x=case.x, how="replaced")
            for _ in range(repetitions(0.5)):
                expect_equal(layer.forward(case.x), want, "y in training mode, after an nn.Dropout(0) took the place of each")


@requirement(
    "TORCH-51",
    "Forward-mode derivatives, vmap over any dimension, and second derivatives with dropout MUST be right, or be refused.",
    formula="∂y/∂x · v = v Wᵀ + scale · (v A) B; with dropout ∂/∂dy of Σ x · dx = y − b",
    sources=("PyTorch documentation, torch.autograd.forward_ad, torch.vmap: in_dims",), needs=NEEDS,
    cases=any_size(only=SINGLE), examples=0.25,
)
def other_derivatives(subject, case):
    """An autograd function has a rule of its own for each of them. Few of these rules are ever tried."""
    opposite = case.replace(x=-case.x)
    v, want = np.flip(case.x).copy(), plain(subject, case)
    assume(exact_in_any_order(case.replace(x=v)))
    facts = tried(prepared(subject, case, training=True), "pushed_forward", x=case.x, v=v)
    if "refused" not in facts:
        tangent = wide(plain(subject, case.replace(x=v))["y"]) - (0 if case.b is None else wide(case.b))
        facts.equal("tangent", tangent, "forward-mode derivative of y")
    for at in range(case.x.ndim):
        facts = tried(prepared(subject, case, training=True), "mapped", x=case.x, at=at)
        if "refused" not in facts:
            facts.equal("y", want["y"], f"y of x by vmap over dimension {at}")
            facts.equal("y of −x", plain(subject, opposite)["y"], f"y of −x by vmap over dimension {at}")
    if "x" in want and np.array_equal(wide(want["x"]), case.truth.dx):  # otherwise dx is no derivative of y
        with suppress(Unsupported):
            layer = prepared(subject, case.replace(dropout=0.5), training=True)
            facts = tried(layer, "second", x=case.x, dy=case.dy, v=case.x)
            if "refused" not in facts:
                y = wide(facts["y"]) - (0 if case.b is None else wide(case.b))
                facts.equal("d dy", y, "∂/∂dy of Σ x · dx with dropout, which is y − b of the same pass")


@requirement(
    "TORCH-52",
    "A compiled pass of a layer in inference mode, or of a merged one, MUST give what a plain pass gives, also if it was "
    "compiled before the merge.",
    formula="compile(module)(x) = module(x)", sources=("PyTorch documentation, torch.compile: the same results as eager mode",),
    needs=NEEDS, optional=True, cases=exact(only=("float32",)), examples=0.05,
)
def compiled_states(subject, case):
    """A compiler wants one graph, and a branch may be left out for it."""
    layer, y = prepared(subject, case, training=True), plain(subject, case)["y"]
    set_mode(layer, False)
    tried(layer, "compiled_pass", x=case.x).equal("y", y, "y of a compiled pass in inference mode")
    set_mode(layer, True)
    if merged_too(layer):
        tried(layer, "compiled_pass", x=case.x).equal("y", layer.forward(case.x), "y of a compiled pass of a merged layer")
        layer = prepared(subject, case, training=True)
        tried(layer, "compiled_kept", x=case.x)
        merge(layer, training=True)
        facts = tried(layer, "compiled_again", x=case.x)
        facts.equal("y", layer.forward(case.x), "y of a pass that was compiled before the layer was merged")
        with suppress(Unsupported):
            layer.unmerge()
            set_mode(layer, True)
            tried(layer, "compiled_again", x=case.x).equal("y", y, "y of a compiled pass after merge and unmerge")


@requirement(
    "TORCH-53",
    "A load of A alone, or of W alone, with strict=False MUST change that one alone, and MUST leave the dict as it was.",
    formula="load_state_dict({W: −W}, strict=False) ⇒ y = −x Wᵀ + b + scale · (x A) B", sources=(f"{MODULE}.load_state_dict",),
    needs=NEEDS, faults="115", cases=any_size(only=SINGLE), examples=0.25,
)
def loads_of_a_part(subject, case):
    """Adapters and base models are in files of their own. A loader that begins from nothing loses what was there."""
    for what, other in (("A", with_negated_A(case)), ("W", case.replace(W=-case.W))):
        assume(exact_in_any_order(other))
        with suppress(Unsupported):
            facts = tried(prepared(subject, case, training=True), "part_loaded", x=case.x, what=what)
            facts.equal("y", plain(subject, other)["y"], f"y after a load of {what} alone with strict=False")
            facts.true("the dict stays")


@requirement(
    "TORCH-54",
    "load_state_dict into a merged layer SHOULD be right or be refused, also through a model and of A alone.",
    formula="merge, load −A ⇒ y = x Wᵀ + b − scale · (x A) B", sources=(f"{MODULE}.load_state_dict",), needs=NEEDS,
    faults="110", cases=any_size(only=SINGLE), examples=0.25,
)
def loads_while_merged(subject, case):
    """The W of the file is no merged W. A layer that goes on to count as merged then lacks its LoRA part, or has that of the
    old factors. torch calls load_state_dict of the model alone, and then a method of each module with its part."""
    y = plain(subject, with_negated_A(case))["y"]
    for how in ("by the layer", "by a model", "A alone"):
        layer = prepared(subject, case, training=True)
        tried(layer, "state_kept")
        if not merged_too(layer):
            raise Unsupported("merge()")
        facts = tried(layer, "loaded_then", x=case.x, how=how)
        if "refused" not in facts:
            facts.equal("y", y, f"y after −A was loaded into a merged layer, {how}")
            facts.true("the dict stays")


@requirement(
    "TORCH-55",
    "A method that draws the parameters anew SHOULD leave a layer that equals its base.",
    formula="reset_parameters() ⇒ f(x) = f(x; A = B = 0)",
    sources=("PyTorch documentation, FullyShardedDataParallel: reset_parameters of modules on the meta device",), needs=NEEDS,
    optional=True, cases=any_size(), examples=0.1,
)
def starts_anew(subject, case):
    """Such a method is called after memory was given to a layer, and between experiments. Drawing A alone leaves the old B."""
    layer = prepared(subject, case, training=True)
    tried(layer, "started_anew")
    y = layer.forward(case.x)
    layer.set_adapter({name: 0 * array for name, array in case.adapter.items()})
    expect_equal(y, layer.forward(case.x), "y after the parameters were drawn anew, against that with both factors zero")


@requirement(
    "TORCH-56",
    "The state_dict SHOULD hold every number that the layer computes with.",
    formula="parameters and buffers ← NaN, load_state_dict(state_dict()) ⇒ y as before",
    sources=("PyTorch tutorials, Tips for loading an nn.Module from a checkpoint: the meta device, to_empty",), needs=NEEDS,
    cases=any_size(), examples=0.25,
)
def state_is_whole(subject, case):
    """A large model is made without memory, and then filled from a checkpoint. A mask or a scale that is a buffer, and not in
    the state_dict, is then whatever was in the memory."""
    facts = tried(prepared(subject, case, training=True), "refilled", x=case.x)
    facts.equal("y", plain(subject, case)["y"], "y after parameters and buffers were NaN, and the state_dict was loaded")


@requirement(
    "TORCH-57",
    "If the caller changes y in place, the gradients MUST be right or be refused, and the next pass MUST be right.",
    formula="y ← −y in place ⇒ dA, dB, dx of −dy", sources=("PyTorch documentation, torch.nn.ReLU: inplace",
                                                            f"{AUTOGRAD}: In-place correctness checks"),
    needs=NEEDS, faults="123", cases=any_size(), examples=0.25,
)
def outputs_are_the_callers(subject, case):
    """An activation with inplace=True does so. A layer that keeps its last output, or computes its gradients from it, then
    goes on with other numbers."""
    want, layer = plain(subject, case), prepared(subject, case, training=True)
    facts = tried(layer, "overwritten", x=case.x, dy=case.dy)
    if "refused" not in facts:
        facts.gradients(want, "after the caller has negated y in place", times=-1)
    for mode in (True, False):
        set_mode(layer, mode)
        facts = tried(layer, "overwritten_under", x=case.x)
        for where in ("in grad mode", "under no_grad"):
            words = f"y {where}, in {'training' if mode else 'inference'} mode, after the caller has zeroed the last y in place"
            facts.equal(where, want["y"], words)


@requirement(
    "TORCH-58",
    "A default dtype that was set later, anomaly detection and hooks on saved tensors MUST change nothing.",
    formula="set_default_dtype ⇒ the same y, dx, dA, dB, bit for bit",
    sources=("PyTorch documentation, torch.set_default_dtype, torch.autograd.graph.saved_tensors_hooks",
             "transformers, PreTrainedModel: sets the default dtype while a model is loaded"),
    needs=NEEDS, cases=rounding(), examples=0.25,
)
def settings_of_torch(subject, case):
    """A tensor that is made in a pass without a dtype has the default one, and rounds or widens what it meets."""
    want = plain(subject, case)
    for setting in ("default dtype float64", "default dtype bfloat16", "anomaly detection", "saved tensors copied"):
        facts = tried(prepared(subject, case, training=True), "amid", x=case.x, dy=case.dy, setting=setting)
        facts.equal("y", want["y"], f"y with {setting}")
        expect(facts["y"].dtype == case.dtype, f"dtype of y with {setting}", facts["y"].dtype, case.dtype)
        facts.gradients(want, f"with {setting}")


@requirement(
    "TORCH-59",
    "Passes of several threads at once MUST each give what they give alone.",
    formula="y of x, while another thread begins a pass of −x between any two operations, and ends it before or after = y of x",
    sources=("PyTorch documentation, CPU threading and TorchScript inference: threads run a model's forward pass",),
    needs=NEEDS, faults="123", cases=exact(), examples=0.1,
)
def interrupted_passes(subject, case):
    """A server runs one module in many threads. What a pass leaves on the module for its own later steps is then that of
    another pass. Here the other thread runs while each call of torch in turn waits for it. It makes its pass whole, or waits in
    turn at one of its own calls."""
    want, layer = plain(subject, case), prepared(subject, case, training=True)
    opposite = plain(subject, case.replace(x=-case.x))["y"]
    facts = tried(layer, "interrupted", x=case.x, dy=case.dy)
    for name in ("y", "y under no_grad"):
        facts.equal(name, want["y"], f"{name}, with a pass of −x in another thread")
    facts.gradients(want, "of a pass with one of −x in another thread")
    facts.equal("other y", opposite, "y of the other thread")
    set_mode(layer, False)
    facts = tried(layer, "interrupted", x=case.x, dy=case.dy)
    facts.equal("other y", opposite, "y of the other thread, in inference mode")
    for name in ("y", "y under no_grad"):
        facts.equal(name, want["y"], f"{name}, in inference mode, with a pass of −x in another thread")
    tried(layer, "in_a_thread", x=case.x).equal("y", want["y"], "y of another thread, in inference mode")
    set_mode(layer, True)
    if merged_too(layer):
        tried(layer, "in_a_thread", x=case.x).equal("y", layer.forward(case.x), "y of another thread, of a merged layer")


@requirement(
    "TORCH-60",
    "A gradient that A or B has already MUST be added to in the memory in which it lies.",
    formula="A.grad, B.grad are views of zeros ⇒ the memory holds dA, dB",
    sources=("PyTorch documentation, DistributedDataParallel: gradient_as_bucket_view",), needs=NEEDS, faults="59",
    cases=any_size(), examples=0.25,
)
def gradients_stay_where_they_are(subject, case):
    """Training on several machines exchanges one piece of memory, of which all gradients are views. A layer that puts a new
    tensor in the place of a gradient is left out of the exchange."""
    facts = tried(prepared(subject, case, training=True), "bucketed", x=case.x, dy=case.dy)
    facts.gradients(plain(subject, case), "in the memory of the gradients", names=("A", "B"))


@requirement(
    "TORCH-61",
    "After the Parameters have become views of one vector, passes, merges and their undoing MUST use the numbers there.",
    formula="vector_to_parameters(… −A …) ⇒ y = x Wᵀ + b − scale · (x A) B, also after merge and unmerge",
    sources=("PyTorch documentation, torch.nn.utils.vector_to_parameters", "PyTorch documentation, FullyShardedDataParallel: "
             "flattened parameters"), needs=NEEDS, faults="110", cases=any_size(), examples=0.25,
)
def one_vector(subject, case):
    """Averages of weights, sharded training and second-order optimisers store a model so. A layer that keeps memory of its own,
    from which it merges or computes, goes on with the old numbers."""
    other = with_negated_A(case)
    want, layer = plain(subject, other), prepared(subject, case, training=True)
    tried(layer, "flattened")
    expect_equal(layer.forward(case.x), want["y"], "y of −A in one vector")
    found, merged = layer.backward(case.dy), prepared(subject, other, training=True)
    for name in ("A", "B"):
        expect(name in found, f"d{name} of factors in one vector", "none", "a gradient")
        expect_equal(found[name], want[name], f"d{name} of factors in one vector")
    if merged_too(merged):
        merge(layer, training=True)
        expect_equal(layer.forward(case.x), merged.forward(case.x), "y after −A in one vector was merged")
        with suppress(Unsupported):
            layer.unmerge()
            set_mode(layer, True)
            expect_equal(layer.forward(case.x), want["y"], "y after −A in one vector was merged and unmerged")
            layer = prepared(subject, case, training=True)
            merge(layer, training=True)
            layer.unmerge()
            set_mode(layer, True)
            tried(layer, "data_negated")
            merge(layer, training=True)
            y = layer.forward(case.x)
            expect_equal(y, merged.forward(case.x), "y after merge, unmerge, A.data ← −A and a second merge")


@requirement(
    "TORCH-62",
    "A W that has changed between two merges MUST be what the second unmerge restores.",
    formula="merge, unmerge, W ← −W, merge, unmerge ⇒ y = −x Wᵀ + b + scale · (x A) B",
    sources=(f"{PEFT}, LoraLayer: weights are trained or loaded between merges",), needs=f"{NEEDS} merge unmerge", faults="110",
    cases=any_size(only=SINGLE), examples=0.25,
)
def weights_between_merges(subject, case):
    """A layer that copied W at its first merge may take that copy for the second one, too."""
    other = case.replace(W=-case.W)
    assume(exact_in_any_order(other))
    layer = prepared(subject, case, training=True)
    for first in (True, False):
        merge(layer, training=True)
        layer.unmerge()
        set_mode(layer, True)
        if first:
            tried(layer, "base_negated")
    expect_equal(layer.forward(case.x), plain(subject, other)["y"], "y of −W, which was written between two merges")


@requirement(
    "TORCH-63",
    "What a library puts at module.forward SHOULD stay there over changes of mode, merges and their undoing.",
    formula="passes through module.forward: one for each call",
    sources=("accelerate, add_hook_to_module: module.forward is replaced by a function that calls it",), needs=NEEDS,
    cases=any_size(), examples=0.1,
)
def forward_stays_wrapped(subject, case):
    """Offloading to memory and disk works so. A layer that chooses its way by setting forward itself drops what is there."""
    want, layer = plain(subject, case)["y"], prepared(subject, case, training=True)
    if tried(layer, "wrapped_forward", x=case.x)["passes"] != 1:
        raise Unsupported("a call of the module that goes through its forward()")

    def check(words: str) -> None:
        facts = tried(layer, "wrapped_forward", x=case.x)
        expect(facts["passes"] == 1, f"passes through what was put at module.forward, {words}", facts["passes"], 1)
        facts.equal("y", want, f"y of a module with another forward, {words}")

    for mode in (False, True):
        set_mode(layer, mode)
        check(f"in {'training' if mode else 'inference'} mode")
    with suppress(Unsupported):
        merge(layer, training=True)
        layer.unmerge()
        set_mode(layer, True)
        check("after merge and unmerge")
