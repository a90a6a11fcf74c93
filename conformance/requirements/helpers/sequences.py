"""Sequences of operations on a layer, beside a small model of what the layer should be.

A case holds a sequence of operations, which is drawn and shrunk with the arrays. Nothing is checked that the requirements leave
open: the function of a merged layer whose factors were set, the gradients of A and B while merged, and the state of a layer
that merges when it goes to inference mode.
"""

import shutil
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from conformance.record.trace import refuses
from conformance.requirements.helpers.layers import fresh, prepared, scratch, set_mode
from conformance.subject import Arrays, Layer, Subject, Unsupported
from conformance.truth.case import BITS, Case, exact_in_any_order, in_range, last_bit
from conformance.truth.compare import expect, expect_within, wide
from lora_ref import lora
from lora_ref.error import bounds

RATE = 2.0**-3
OPERATIONS = (
    "forward", "backward", "step", "zero_grad", "merge", "unmerge", "set_adapter", "train", "eval",
    "save", "load", "load_fresh",
)
RECIPES = (  # sequences that show faults of state, and that are seldom drawn by chance
    ("save", "set_adapter", "save", "load_fresh"), ("merge", "unmerge", "backward", "step", "merge"),
    ("merge", "merge", "unmerge"), ("merge", "set_adapter", "unmerge"), ("save", "merge", "load_fresh"),
    ("eval", "save", "train", "load"),
    ("backward", "step", "save", "set_adapter", "load"), ("backward", "backward", "step", "zero_grad"),
    ("backward", "merge", "unmerge", "step"), ("backward", "save", "step"), ("backward", "step", "step"),
    ("backward", "eval", "train", "step"),
)
PIECES = st.sampled_from([*RECIPES, *((operation,) for operation in OPERATIONS)])
SEQUENCES = st.lists(PIECES, min_size=2, max_size=6).map(lambda pieces: sum(pieces, ()))


def moved(case: Case, dA: np.ndarray, dB: np.ndarray) -> Case | None:
    """The case after one SGD step along these gradients. None if the step, or a computation on the case after it, could
    round."""
    arrays = {}
    for name, gradient in (("A", dA), ("B", dB)):
        before, change = wide(getattr(case, name)), RATE * gradient
        last = min(last_bit(before), last_bit(change))
        if float((np.abs(before) + np.abs(change)).max()) > last * 2.0 ** BITS[case.config.dtype]:
            return None
        arrays[name] = (before - change).astype(case.dtype)
    after = case.replace(**arrays)
    return after if exact_in_any_order(after) else None


@dataclass
class Expected:
    """The state that the layer should have now, in exact arithmetic, and how far an honest layer may be from it. In an exact
    case it may not be off at all. In other cases each operation adds a bound on its rounding errors."""

    case: Case  # its A and B are the factors now
    training: bool = True
    merged: bool = False
    certain: bool = False  # whether a layer that was merged is so still; it may unmerge by itself when the mode changes
    unknown: bool = False  # whether the function is unknown until the layer is unmerged
    gradients: list[Case] = field(default_factory=list)  # the cases whose gradients have added up
    saved: "Expected | None" = None

    exact: bool = True
    drift: dict[str, np.ndarray] = field(default_factory=dict)  # bounds of W, A, B, and of the gradients that have added up

    def __post_init__(self):
        self.drift = self.drift or none_of(self.case, "W", "A", "B", "dA", "dB")

    @property
    def plain(self) -> bool:
        """Whether the layer is certainly not merged. It may merge by itself in inference mode."""
        return self.training and not self.merged

    def sound(self, case: Case) -> bool:
        """Whether the model can follow the sequence with this case."""
        return exact_in_any_order(case) if self.exact else in_range(case)

    @property
    def total(self) -> lora.LoRA:
        """The accumulated gradients of A and B."""
        return lora.LoRA(*(np.sum([getattr(c.truth, name) for c in self.gradients], axis=0) for name in ("dA", "dB")))

    def largest(self) -> Case:
        """The case with every absolute value as large as it may have become. Bounds are computed from it."""
        case = self.case
        return case.replace(**{name: np.abs(wide(getattr(case, name))) + self.drift[name] for name in ("W", "A", "B")})

    def bound_of_y(self) -> np.ndarray | float:
        if self.exact:
            return 0.0
        x, A, B = (np.abs(wide(array)) for array in (self.case.x, self.case.A, self.case.B))
        eW, eA, eB = (self.drift[name] for name in ("W", "A", "B"))
        carried = x @ eW.T + abs(self.case.scale) * ((x @ eA) @ (B + eB) + (x @ A) @ eB)
        return self.largest().bound.y + carried

    def differentiated(self) -> None:
        """Counts another forward and backward pass."""
        case, precision = self.case, self.case.config.dtype
        self.gradients = [*self.gradients, case]
        if self.exact:
            return
        x, dy = (np.abs(wide(a)).reshape(-1, a.shape[-1]) for a in (case.x, case.dy))
        bound, s = self.largest().bound, abs(case.scale)
        adding = bounds.total([lora.LoRA(c.truth.dA, c.truth.dB) for c in self.gradients], precision)
        self.drift["dA"] = self.drift["dA"] + bound.dA + s * x.T @ (dy @ self.drift["B"].T) + adding.A
        self.drift["dB"] = self.drift["dB"] + bound.dB + s * (x @ self.drift["A"]).T @ dy + adding.B

    def stepped(self) -> Case | None:
        """The case after one step along the accumulated gradients. None if the model cannot follow it any further."""
        dA, dB = self.total
        if self.exact:
            return moved(self.case, dA, dB)
        case, precision = self.case, self.case.config.dtype
        after = case.replace(A=wide(case.A) - RATE * dA, B=wide(case.B) - RATE * dB)
        largest, grown = self.largest(), lora.LoRA(abs(dA) + self.drift["dA"], abs(dB) + self.drift["dB"])
        rounded = bounds.step(lora.LoRA(largest.A, largest.B), grown, RATE, precision)
        self.drift["A"] = self.drift["A"] + RATE * self.drift["dA"] + rounded.A
        self.drift["B"] = self.drift["B"] + RATE * self.drift["dB"] + rounded.B
        return after if in_range(largest) and in_range(after) else None

    def cycled(self) -> None:
        """Counts the rounding of a merge and of the unmerge by subtraction that will follow."""
        if not self.exact:
            self.drift["W"] = self.drift["W"] + self.largest().bound.unmerged


def none_of(case: Case, *names: str) -> dict[str, np.ndarray]:
    return {name: np.zeros(getattr(case, name.removeprefix("d")).shape) for name in names}


def follow(subject: Subject, case: Case, exact: bool) -> float:
    """Performs the sequence of the case on a layer and on its model. Operations that the layer does not offer are left out.
    Where the model cannot follow, the sequence ends. Returns the largest error / bound."""
    layer, model, ratio = prepared(subject, case, training=True), Expected(case, exact=exact), 0.0
    with scratch() as name:
        for number, operation in enumerate(case.operations, 1):
            with suppress(Unsupported):
                layer, going_on = perform(subject, layer, model, operation, Path(name))
                if not going_on:
                    break
            ratio = max(ratio, agree(layer, model, f"after {number} operations, the last one {operation}"))
    return ratio


def perform(subject: Subject, layer: Layer, model: Expected, operation: str, directory: Path) -> tuple[Layer, bool]:
    """Performs one operation on both, if it has the same meaning for every layer in this state. Returns the layer to go on
    with, and whether the model can follow."""
    case = model.case
    match operation:
        case "backward" if model.plain:
            layer.forward(case.x)
            layer.backward(case.dy)
            model.differentiated()
        case "step" if model.plain and model.gradients:
            following = model.stepped()
            if following is None:
                return layer, False
            layer.step(RATE)
            model.case = following
        case "zero_grad":
            layer.zero_grad()
            model.gradients = []
            model.drift |= none_of(case, "dA", "dB")
        case "train" | "eval":
            if refuses(layer.train, operation == "train"):
                expect(model.merged, f"{operation}() of a layer that is not merged", "an error", "that mode")
                return layer, True
            model.training, model.certain = operation == "train", False
            model.cycled()  # some layers merge by themselves
        case "merge":
            refused = refuses(layer.merge)
            if refused and model.plain:
                set_mode(layer, False)  # some layers merge in inference mode alone
                model.training, refused = False, refuses(layer.merge)
                expect(not refused, "merge of a layer that is not merged", "an error", "a merged layer")
            model.merged, model.certain = True, model.merged and model.certain or not refused
            model.cycled()
        case "unmerge" if model.merged:
            refused = refuses(layer.unmerge)
            known = model.training and model.certain and not model.unknown  # others may have unmerged by themselves
            expect(not refused or not known, "unmerge of a merged layer", "an error", "an unmerged layer")
            set_mode(layer, True)
            model.merged, model.unknown, model.training = False, False, True
        case "set_adapter":
            new = case.with_other_factors
            if not model.sound(new):
                return layer, False
            if not refuses(layer.set_adapter, {"A": new.A.copy(), "B": new.B.copy()}):
                model.case, model.unknown = new, model.unknown or not model.plain
                model.drift |= none_of(case, "A", "B")
        case "save":
            for kept in directory.iterdir():
                shutil.rmtree(kept) if kept.is_dir() else kept.unlink()
            model.saved = None  # also if saving a merged layer is not offered
            if not model.plain:
                model.cycled()  # some layers unmerge for it, and merge again
            if not refuses(layer.save, directory):
                model.saved = replace(model, drift=dict(model.drift))
            else:
                expect(not model.plain, "save of a layer that is not merged", "an error", "a file")
        case "load" if model.plain and model.saved is not None:
            layer.load(directory)
            unmerged_after_load(layer, model.saved)
            model.case = case.replace(A=model.saved.case.A, B=model.saved.case.B)
            model.drift |= {name: model.saved.drift[name] for name in ("A", "B")}
            model.drift["W"] = np.maximum(model.drift["W"], model.saved.drift["W"])  # some files hold W, as it was then
        case "load_fresh" if model.saved is not None:
            layer = fresh(subject, case.replace(seed=case.config.seed + 1))
            layer.load(directory)
            unmerged_after_load(layer, model.saved)
            model.case = case.replace(A=model.saved.case.A, B=model.saved.case.B)
            model.training, model.merged, model.unknown, model.gradients = True, False, False, []
            model.drift = none_of(case, "dA", "dB") | {name: model.saved.drift[name] for name in ("W", "A", "B")}
    return layer, True


def unmerged_after_load(layer: Layer, saved: Expected) -> None:
    """Unmerges a layer after a load. Some layers save that they are merged, and are merged again when they are loaded."""
    if not saved.plain:
        with suppress(Unsupported):
            refuses(layer.unmerge)
        set_mode(layer, True)


def factors(layer: Layer, model: Expected) -> Arrays:
    """A and B of the layer, or nothing if it is merged and has no factors then."""
    try:
        return layer.adapter()
    except Unsupported:
        if model.plain:
            raise
        return {}


def agree(layer: Layer, model: Expected, when: str) -> float:
    case, ratio = model.case, 0.0
    if not model.unknown:
        ratio = expect_within(layer.forward(case.x), case.truth.y, model.bound_of_y(), f"y {when}")
    found = factors(layer, model)
    if not found:
        return ratio  # it is a plain layer now
    for name, want in case.adapter.items():
        ratio = max(ratio, expect_within(found[name], want, model.drift[name], f"{name} {when}"))
    with suppress(Unsupported):
        others = sorted(set(layer.trainable()) - {"A", "B"})
        expect(not others, f"what trains, beside A and B, {when}", ", ".join(others), "nothing")
    if model.plain:
        with suppress(Unsupported):
            ratio = max(ratio, expect_within(layer.weight(), case.W, model.drift["W"], f"W {when}"))
    return ratio
