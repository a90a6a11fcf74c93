"""STATE, continued: what is true of one operation is true in any order.

A case holds a sequence of operations, drawn and shrunk with the arrays; a small model in exact arithmetic runs beside the
layer. It knows what the contract leaves open, and does not ask there: the function of a merged layer whose factors were set,
the gradients of A and B while merged, the state of a layer that merges when it goes to inference mode.
"""

import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from conformance.case import Case, exact_in_any_order
from conformance.compare import holds, same, wide, within
from conformance.requirements import HIGHAM, fresh, prepared, requirement, set_mode
from conformance.requirements.learn import RATE, SOURCES, moved
from conformance.strategies import exact, rounding
from conformance.subject import Layer, Subject, Unsupported
from conformance.trace import refuses

OPERATIONS = (
    "forward", "backward", "step", "zero_grad", "merge", "unmerge", "set_adapter", "train", "eval",
    "save", "load", "load_fresh",
)
RECIPES = (  # what faults of state need, and chance seldom makes
    ("save", "set_adapter", "save", "load_fresh"), ("merge", "unmerge", "backward", "step", "merge"),
    ("merge", "merge", "unmerge"), ("merge", "set_adapter", "unmerge"), ("save", "merge", "load_fresh"),
    ("eval", "save", "train", "load"),
    ("backward", "step", "save", "set_adapter", "load"), ("backward", "backward", "step", "zero_grad"),
)
PIECES = st.sampled_from([*RECIPES, *((operation,) for operation in OPERATIONS)])
SEQUENCES = st.lists(PIECES, min_size=2, max_size=6).map(lambda pieces: sum(pieces, ()))


@dataclass
class Model:
    """What the layer should be now, in exact arithmetic."""

    case: Case  # A and B of it are the factors now
    training: bool = True
    merged: bool = False
    unknown: bool = False  # the function, until the layer is unmerged
    dA: np.ndarray | None = None  # the gradients that have added up, if any
    dB: np.ndarray | None = None
    saved: Case | None = None

    @property
    def plain(self) -> bool:
        """Certainly not merged: a layer may merge by itself in inference mode."""
        return self.training and not self.merged


@requirement(
    "STATE-09",
    "Any sequence of forward, backward, step, zero_grad, train, eval, merge, unmerge, set_adapter, save and load, into this "
    "layer or a fresh one, MUST leave function, W, A and B as the sequence says.",
    formula="the layer = the model, after every operation", sources=SOURCES, needs="set_adapter adapter forward",
    faults="16 75 86 87 100 105 111", profile="training", examples=2,
    cases=exact(only=("float32", "float64"), scales=(2.0, 0.5), operations=SEQUENCES),
)
def sequences(subject, case):
    """Most faults of state need three operations in the right order, which no one thinks of. What the layer does not offer
    is left out of the sequence; where exact arithmetic ends, the sequence ends."""
    layer, model = prepared(subject, case, training=True), Model(case)
    with tempfile.TemporaryDirectory(prefix="conformance-") as name:
        for number, operation in enumerate(case.operations, 1):
            with suppress(Unsupported):
                layer, going_on = perform(subject, layer, model, operation, Path(name))
                if not going_on:
                    return
            agree(layer, model, f"after {number} operations, the last one {operation}")


def perform(subject: Subject, layer: Layer, model: Model, operation: str, directory: Path) -> tuple[Layer, bool]:
    """One operation on both, if it means the same to every layer now. Returns the layer to go on with, and whether what
    follows would still be exact."""
    case = model.case
    match operation:
        case "backward" if model.plain:
            layer.forward(case.x)
            layer.backward(case.dy)
            before = (0, 0) if model.dA is None else (model.dA, model.dB)
            model.dA, model.dB = case.truth.dA + before[0], case.truth.dB + before[1]
        case "step" if model.plain and model.dA is not None and model.dB is not None:
            following = moved(case, model.dA, model.dB)
            if following is None:
                return layer, False
            layer.step(RATE)
            model.case = following
        case "zero_grad":
            layer.zero_grad()
            model.dA = model.dB = None
        case "train" | "eval":
            layer.train(operation == "train")
            model.training = operation == "train"
        case "merge":
            refused = refuses(layer.merge)
            holds(not refused or not model.plain, "merge of a layer that is not merged", "an error", "a merged layer")
            model.merged = True
        case "unmerge" if model.merged:
            refused = refuses(layer.unmerge)
            holds(not refused or not model.training, "unmerge of a merged layer", "an error", "an unmerged layer")
            set_mode(layer, True)
            model.merged, model.unknown, model.training = False, False, True
        case "set_adapter":
            new = case.but(A=np.flip(case.A).copy(), B=np.flip(case.B).copy())
            if not exact_in_any_order(new):
                return layer, False
            if not refuses(layer.set_adapter, {"A": new.A.copy(), "B": new.B.copy()}):
                model.case, model.unknown = new, model.unknown or not model.plain
        case "save":
            for file in directory.iterdir():
                file.unlink()
            layer.save(directory)
            model.saved = case
        case "load" if model.plain and model.saved is not None:
            layer.load(directory)
            model.case = model.case.but(A=model.saved.A, B=model.saved.B)
        case "load_fresh" if model.saved is not None:
            layer = fresh(subject, case.but(seed=case.config.seed + 1))
            layer.load(directory)
            model.case = case.but(A=model.saved.A, B=model.saved.B)
            model.training, model.merged, model.unknown, model.dA, model.dB = True, False, False, None, None
    return layer, True


def agree(layer: Layer, model: Model, when: str) -> None:
    case = model.case
    if not model.unknown:
        same(layer.forward(case.x), case.truth.y, f"y {when}")
    for name, want in case.adapter.items():
        same(layer.adapter()[name], want, f"{name} {when}")
    if model.plain:
        with suppress(Unsupported):
            same(layer.weight(), case.W, f"W {when}")


@requirement(
    "MERGE-13",
    "Over several cycles of merge and unmerge W and the output MUST NOT drift by more than the rounding of that many cycles.",
    formula="|Wₖ − W| ≤ k · bound of a cycle, |yₖ − y| ≤ bound of y + |x| |Wₖ − W|ᵀ", sources=(HIGHAM,),
    needs="set_adapter forward merge unmerge weight", faults="100", cases=rounding(), examples=0.5,
)
def drift_stays_in_its_budget(subject, case):
    """An unmerge that subtracts is honest, and its errors add up; they may not grow faster than the number of cycles."""
    layer, ratio = prepared(subject, case, training=True), 0.0
    for cycle in range(1, 5):
        layer.merge()
        layer.forward(case.x)
        layer.unmerge()
        drift = cycle * case.bound.unmerged
        ratio = max(ratio, within(layer.weight(), case.W, drift, f"W after {cycle} cycles"))
        allowed = case.bound.y + np.abs(wide(case.x)) @ drift.T
        ratio = max(ratio, within(layer.forward(case.x), case.truth.y, allowed, f"y after {cycle} cycles"))
    return ratio
