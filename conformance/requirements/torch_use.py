"""TORCH, continued: a layer in use. It serves, it is a part of a model, and it goes through what torch has for modules.

As in torch.py, what is right is what a plain pass of a fresh layer gives, on cases that are exact in any order.
"""

from contextlib import contextmanager, suppress

import numpy as np
from hypothesis import assume

from conformance.record.trace import refuses
from conformance.requirements import PEFT, requirement
from conformance.requirements.helpers.layers import fresh, merge, prepared
from conformance.requirements.helpers.masks import revealing
from conformance.requirements.torch import (
    AUTOGRAD,
    GROUP,
    MODULE,
    NEEDS,
    SINGLE,
    keeps_its_weight,
    merged_too,
    plain,
    tried,
    with_negated_A,
)
from conformance.subject import Layer, Unsupported
from conformance.truth.case import Case, exact_in_any_order
from conformance.truth.compare import expect, expect_equal, expect_within, wide
from conformance.truth.strategies import any_size, exact, sized

__all__ = ["GROUP"]  # a file of requirements has one
SERVING = ("under no_grad", "under inference_mode")
NO_GRAD = f"{AUTOGRAD}: Locally disabling gradient computation"
LITTLE = 1 + 2.0**-20  # float64 holds the product of this and a small number
LOADED = ("in another format", "with assign=True", "kept by the caller")


def rows_of(case: Case) -> Case:
    """The case with x and dy as (rows, …), and with at least two rows."""
    x, dy = (array.reshape(-1, array.shape[-1]) for array in (case.x, case.dy))
    twice = 1 if len(x) > 1 else 2
    return case.replace(x=np.concatenate([x] * twice), dy=np.concatenate([dy] * twice))


@requirement(
    "TORCH-33",
    "In inference mode and without a graph y MUST be right for x of any layout and shape, and MUST stay when the layer runs "
    "on.",
    formula="no_grad, inference_mode: y = x Wᵀ + b + scale · (x A) B", sources=(NO_GRAD, f"{MODULE}.forward"),
    needs=f"{NEEDS} train", cases=any_size(), examples=0.25,
)
def serves(subject, case):
    """A layer that serves may take another way: it reads x by addresses, and reuses its memory."""
    case = rows_of(case)
    x, (y, opposite) = case.x, (plain(subject, c)["y"] for c in (case, case.replace(x=-case.x)))
    want = dict.fromkeys(("plain", "transposed", "strided", "cut out", "shifted"), y)
    want |= {"one row": np.broadcast_to(y[:1], y.shape), "a vector": y[0], "three dimensions": y[None], "no rows": y[:0],
             "four dimensions": y[None, None], "samples and tokens exchanged": np.stack([y, opposite], 1)}
    for where in SERVING:
        facts = tried(prepared(subject, case, training=True), "served", x=x, where=where)
        for name, right in want.items():
            facts.equal(f"y: {name}", right, f"y {where}, of x that is {name}")
            facts.equal(f"later: {name}", right, f"y {where}, of x that is {name}, after further passes")


@requirement(
    "TORCH-34",
    "In inference mode and without a graph y MUST follow a change of B alone, of W or b alone, and a small one of A.",
    formula="A ← (1 + 2⁻²⁰) A ⇒ y = x Wᵀ + b + scale · (x A) B with that A", sources=(NO_GRAD, f"{MODULE}.load_state_dict"),
    needs=f"{NEEDS} train", faults="110", cases=any_size(only=SINGLE), examples=0.25,
)
def serving_follows(subject, case):
    """A product that is kept while the layer serves must be made anew after each step of training, and after each load. At that
    time the layer is in training mode, and if it does not merge in inference mode, in that one, too."""
    changes = {"B": case.replace(B=-case.B), "W": case.replace(W=-case.W), "W in place": case.replace(W=-case.W)}
    if case.b is not None:
        changes["b"] = case.replace(b=-case.b)
    stays = (False, True) if keeps_its_weight(prepared(subject, case, training=True)) else (False,)
    if case.config.dtype == "float64":
        changes["A"] = case.replace(A=case.A * LITTLE)
    for what, other in changes.items():
        assume(what == "A" or exact_in_any_order(other))
        for where, stay in [(where, stay) for where in SERVING for stay in stays]:
            with suppress(Unsupported):
                given = {"x": case.x, "W": case.W, "what": what, "where": where, "stay": stay}
                y = tried(prepared(subject, case, training=True), "followed", **given)["y"]
                want = tried(prepared(subject, other, training=True), "within", x=case.x, where=where)
                words = f"y in inference mode {where}, after {'a little was added to A' if what == 'A' else what + ' changed'}"
                expect_equal(y, want["y in inference mode"], words)


@requirement(
    "TORCH-35",
    "In training mode there MUST be dropout under no_grad and under inference_mode, too, with a new mask in every pass.",
    formula="train(): x̃ = x · m / (1 − p)",
    sources=("Gal and Ghahramani 2016, Dropout as a Bayesian Approximation, arXiv:1506.02142", NO_GRAD), needs=NEEDS,
    optional=True, cases=sized(32, 32, 32, 128.0, dropout=0.5), examples=0.1,
)
def drops_without_a_graph(subject, case):
    """The mode decides about dropout, and not whether somebody wants a gradient. Monte Carlo dropout is computed so."""
    x = np.ones((4, 16, case.config.in_features), case.dtype)
    for where in SERVING:
        layer = revealing(subject, case)
        first, second = (wide(tried(layer, "within", x=x, where=where)["y"]) / case.scale for _ in range(2))
        expect_equal(first, np.where(first == 0, 0.0, 2.0), f"entries of a pass in training mode {where}, as multiples of x")
        expect(bool((first == 0).any()), f"dropped entries in training mode {where}", 0, f"about {x.size // 2}")
        expect(not np.array_equal(first, second), f"masks of two passes in training mode {where}", "equal", "different")


@requirement(
    "TORCH-36",
    "In the state_dict of a model every key of the layer MUST have the prefix of its place, and MUST be loaded from there.",
    formula="model.load_state_dict(model.state_dict()) restores every layer", sources=(f"{MODULE}.state_dict: prefix",),
    needs=NEEDS, faults="115", cases=any_size(), examples=0.25,
)
def a_part_of_a_model(subject, case):
    """Models hold many such layers. Without a prefix each of them overwrites the one before."""
    facts = tried(prepared(subject, case, training=True), "in_a_model", x=case.x)
    keys = facts.names("keys without a prefix")
    expect(not keys, "keys without the prefix of their layer", keys, "none")
    facts.equal("y of the first", plain(subject, case)["y"], "y of the first of two layers of a model that was loaded")
    facts.equal("y of the second", plain(subject, with_negated_A(case))["y"], "y of the second of two layers, with −A")
    layer = prepared(subject, case, training=True)
    if merged_too(layer):
        found = tried(layer, "state_in_a_model")["the same"]
        expect(found is True, "whether the state_dict of a model has that of a merged layer, with a prefix", found, True)


@requirement(
    "TORCH-37",
    "load_state_dict MUST convert tensors of another number format, MUST NOT go on using the caller's tensors, and MUST "
    "follow assign=True or refuse it.",
    formula="load_state_dict(other) ⇒ y of the other A, dtype as before",
    sources=(f"{MODULE}.load_state_dict: copies parameters and buffers; assign: their properties are kept or not",),
    needs=NEEDS, cases=any_size(only=SINGLE), examples=0.25,
)
def loads_as_torch_does(subject, case):
    """Files are in the format of the training. Layers that share the tensors of one dict train each other. Models that were
    made on the meta device are loaded with assign=True."""
    want = plain(subject, with_negated_A(case))["y"]
    for how in LOADED:
        layer = prepared(subject, case, training=True)
        facts = tried(layer, "loaded", x=case.x, W=case.W, how=how)
        if "refused" in facts and how == "with assign=True":
            continue
        expect("refused" not in facts, f"load_state_dict {how}", facts.facts.get("refused"), "no error")
        turned = facts.names("W turned")
        right, words = (other_base(subject, case), " and −W") if turned else (want, "")
        facts.equal("y", right, f"y after load_state_dict {how}, with −A{words}")
        if merged_too(layer):
            expect_equal(layer.forward(case.x), right, f"y after load_state_dict {how}, with −A{words}, and a merge")
        if how != "with assign=True":
            facts.true("dtype of A stays")


def other_base(subject, case: Case) -> np.ndarray:
    other = with_negated_A(case).replace(W=-case.W)
    assume(exact_in_any_order(other))
    return plain(subject, other)["y"]


@contextmanager
def inside(layer: Layer, where: str, case: Case):
    """What the layer does in the block, it does in this context."""
    tried(layer, "entered", where=where, device=case.config.device)
    try:
        yield
    finally:
        tried(layer, "left")


@requirement(
    "TORCH-38",
    "A merge and an unmerge under autocast or inference_mode SHOULD be as exact as others, and training SHOULD go on after "
    "them.",
    formula="under autocast: W' = W + scale · (A B)ᵀ in the format of W",
    sources=("PyTorch documentation, torch.amp: Autocast Op Reference, matmul", "PyTorch documentation, Inference Mode"),
    needs=f"{NEEDS} merge unmerge", cases=any_size(only=SINGLE), examples=0.25,
)
def merges_in_contexts(subject, case):
    """An evaluation in the middle of training is under one of them, or both. Inside, torch multiplies in half precision, or
    makes tensors that no backward pass may use."""
    case = case.replace(A=(case.A * (1 + 2.0**-10)).astype(case.dtype))  # more bits than half formats have
    assume(exact_in_any_order(case))
    want = plain(subject, case)
    for where in ("under autocast", "under inference_mode"):
        layer = prepared(subject, case, training=True)
        with inside(layer, where, case):
            refused = refuses(layer.merge) and refuses(lambda layer=layer: merge(layer, training=True))
        if refused:
            continue
        with suppress(Unsupported):
            expect_equal(layer.weight(), case.truth.merged, f"W after a merge {where}")
        expect_equal(layer.forward(case.x), want["y"], f"y after a merge {where}")
        with inside(layer, where, case):
            layer.unmerge()
        with suppress(Unsupported):
            layer.train(True)
        expect_equal(layer.forward(case.x), want["y"], f"y after merge and unmerge {where}")
        found = layer.backward(case.dy)
        for name in ("A", "B"):
            expect(name in found, f"d{name} after merge and unmerge {where}", "none", "a gradient")
            expect_equal(found[name], want[name], f"d{name} after merge and unmerge {where}")


@requirement(
    "TORCH-39",
    "A parametrization of A or B, and pruning of A or B, SHOULD have their effect.",
    formula="A parametrized as −A ⇒ y = x Wᵀ + b − scale · (x A) B; pruned to 0 ⇒ y = x Wᵀ + b",
    sources=("PyTorch documentation, torch.nn.utils.parametrize, torch.nn.utils.prune",), needs=NEEDS, optional=True,
    cases=any_size(), examples=0.25,
)
def reparametrised(subject, case):
    """Both put a computed tensor in the place of the Parameter. A layer that looks for the Parameter itself misses it."""
    want, other = plain(subject, case)["y"], plain(subject, with_negated_A(case))["y"]
    without = plain(subject, case.replace(A=0 * case.A))["y"]
    for name in ("A", "B"):
        facts = tried(prepared(subject, case, training=True), "reparametrised", x=case.x, how="parametrized", which=name)
        facts.equal("y", other, f"y where {name} is parametrized as its negative")
        facts.equal("y after it was removed", want, f"y after the parametrization of {name} was removed")
        facts = tried(prepared(subject, case, training=True), "reparametrised", x=case.x, how="pruned", which=name)
        facts.equal("y", without, f"y where {name} is pruned to zero")


@requirement(
    "TORCH-40",
    "Gradients of single rows, by torch.vmap over torch.func.grad, SHOULD be those of a pass with this row alone.",
    formula="dAᵢ = scale · xᵢᵀ(dyᵢ Bᵀ)", sources=("PyTorch tutorials, Per-sample-gradients",), needs=NEEDS, optional=True,
    cases=exact(), examples=0.25,
)
def per_sample_gradients(subject, case):
    """Private training clips the gradient of each sample. A backward pass written by hand may add up over all of them."""
    case = rows_of(case)
    facts = tried(prepared(subject, case, training=True), "per_sample", x=case.x, dy=case.dy)
    for name in ("A", "B"):
        one = [plain(subject, case.replace(x=case.x[i : i + 1], dy=case.dy[i : i + 1]))[name] for i in range(len(case.x))]
        facts.equal(f"d {name}", np.stack(one), f"d{name} of each row alone")


@requirement(
    "TORCH-41",
    "A forward hook on the nn.Linear that a layer was made around SHOULD fire in each pass.",
    formula="layer(x) calls linear(x)", sources=(f"{MODULE}.register_forward_hook", f"{PEFT}, Linear.forward"),
    needs="as_module", optional=True, cases=exact(), examples=0.25,
)
def hooks_of_the_base(subject, case):
    """Offloading, quantisation and tools that read activations hang on the layers of the base model. A layer that takes their
    weight, or their forward(), passes them by."""
    facts = tried(fresh(subject, case), "wrapped_hook", x=case.x, W=case.W, b=case.b)
    got, want = facts.names("fired"), ["forward hook"]
    expect(got == want, "hooks of the nn.Linear that fired", got, want)


@requirement(
    "TORCH-42",
    "half() and then float(), and double() of a model, SHOULD leave the scale as it was.",
    formula="half(), float(): scale = alpha / rank, in the precision of float32; double(): in that of float64",
    sources=(f"{MODULE}.half, .float: all floating point parameters and buffers",), needs=NEEDS, optional=True,
    cases=exact(only=("float32",), small=True), examples=0.25,
)
def keeps_its_scale(subject, case):
    """A scale that is a buffer is rounded with all others, and is 0.3333 in place of 1/3 from then on. The numbers of the case
    have few bits, which float16 holds."""
    root = case.config.rank if case.config.scaling == "standard" else case.config.rank**0.5
    third, rounded = case.replace(alpha=root / 3), case.replace(alpha=root * float(np.float16(1 / 3)))
    assume((np.abs(rounded.truth.y - third.truth.y) > 2 * third.bound.y).any())
    layer = prepared(subject, third, training=True)
    for dtype, how in (("float16", "half"), ("float32", "float")):
        tried(layer, "moved", x=case.x, dy=case.dy, dtype=dtype, how=how)
    ratio = expect_within(layer.forward(case.x), third.truth.y, third.bound.y, "y after half() and float()")
    arrays = {name: getattr(third, name).astype(np.float64) for name in "WbABx" if getattr(third, name) is not None}
    wider = third.replace(dtype="float64", **arrays)
    layer = prepared(subject, third, training=True)
    tried(layer, "moved", x=case.x, dy=case.dy, dtype="float64", how="by a model")
    return max(ratio, expect_within(layer.forward(wider.x), wider.truth.y, wider.bound.y, "y after double() of a model"))
