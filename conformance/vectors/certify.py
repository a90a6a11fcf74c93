"""Makes the intervals of a vector, if the three ways to its answers agree. Otherwise there is no vector."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from conformance.requirements.helpers.sequences import Expected, perform
from conformance.subject import Arrays, Layer
from conformance.truth import rational
from conformance.truth.case import DTYPES
from conformance.truth.compare import accepted, alike, expect, mean_bound, spread_bound
from conformance.vectors import methods, prefixes
from conformance.vectors.vector import Answer, Interval, Vector
from conformance.vectors.ways import ComplexStep, Derived, Rational, answers
from lora_ref import lora
from lora_ref.error import bounds

FLOAT64 = np.dtype(np.float64)
MODULES = dict.fromkeys(methods.OPERATIONS, methods) | dict.fromkeys(prefixes.OPERATIONS, prefixes)
LAWS = ("initial", "parameters", "refused")  # operations whose answers follow from no arithmetic


class NotExact(ArithmeticError):
    """An answer of an exact vector is no number of its format."""


def certified(vector: Vector, exact: bool) -> Vector:
    """The vector with its answers. Raises NotExact, or Mismatch if two of the three ways do not agree."""
    if vector.operation in LAWS:
        return replace(vector, answers=laws(vector))
    lost = ~np.isfinite(vector.given.get("x", np.zeros(1)).astype(np.float64)).all(-1, keepdims=True)
    if lost.any():  # each number of such a row of y depends on one that is not finite
        row = certified(_without(vector), exact).answers["y"]
        gone = np.broadcast_to(lost, row.accepted.low.shape)
        marked = [Interval(*(np.where(gone, side.dtype.type(np.nan), side) for side in pair)) for pair in row]
        return replace(vector, answers={"y": Answer(*marked)})
    if exact and vector.operation == "sequence":
        _followed(vector, exact)
    right = truth(vector)
    allowed = {} if exact else bound(vector, vector.dtype)
    found = {}
    for name, (low, high) in right.items():
        interval = Interval(*accepted(low, high, allowed.get(name, 0.0), DTYPES[vector.dtype]))
        if exact and not np.array_equal(*interval):
            raise NotExact(f"{vector.id}: {name} is no {vector.dtype}")
        found[name] = Answer(interval, Interval(*rational.outward(low, high, FLOAT64)))
    agree(vector, right, {} if exact else bound(replace(vector, dtype="float64"), "float64"))
    return replace(vector, answers=found)


def laws(vector: Vector) -> dict[str, Answer]:
    """What holds for every honest layer by definition; of random numbers, but for one run in 10¹¹."""
    s = vector.settings
    found: dict[str, tuple[float, float]] = {"refused": (1, 0)}
    if vector.operation == "parameters":
        found = {"parameters": (lora.parameter_count(s["in_features"], s["out_features"], s["rank"]), 0)}
    if vector.operation == "initial":
        counts = s["in_features"] * s["rank"], s["in_features"] * s["further_rank"]
        found = {"zero_factors": (1, 0), "mean": (0, mean_bound(min(counts))), "log_spread": (0, spread_bound(*counts))}
    made = {}
    for name, (middle, margin) in found.items():
        law, width = np.array(middle, FLOAT64), np.array(margin, DTYPES[vector.dtype])
        made[name] = Answer(Interval((law - width).astype(width.dtype), (law + width).astype(width.dtype)), Interval(law, law))
    return made


def _without(vector: Vector) -> Vector:
    """The vector with zeros in the place of the numbers that are not finite."""
    x = vector.given["x"]
    return replace(vector, given=vector.given | {"x": np.where(np.isfinite(x.astype(np.float64)), x, 0).astype(x.dtype)})


def truth(vector: Vector) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Rational numbers between which each answer lies. They are equal unless a function such as tanh is in it, or the scale has
    an irrational root: every answer is affine in the scale, so it lies between those of the two rational numbers beside it."""
    if vector.operation in prefixes.OPERATIONS:
        return {name: ball.ends() for name, ball in prefixes.enclosed(vector).items()}
    if vector.operation in methods.OPERATIONS:
        return {name: (a, a) for name, a in methods.rational_answers(vector).items()}
    config = vector.case.config
    two = [answers(vector, Rational(), s) for s in rational.scales(config.alpha, config.rank, config.scaling)]
    return {name: (np.minimum(a, two[1][name]), np.maximum(a, two[1][name])) for name, a in two[0].items()}


def agree(vector: Vector, right: dict[str, tuple[np.ndarray, np.ndarray]], bounds64: Arrays) -> None:
    """Raises Mismatch unless `lora_ref`'s derived answers and those of the complex step are the rational ones: to the bit if
    there are no bounds, and otherwise to within the bound of the roundings of float64."""
    ways: dict[str, Callable[[], Arrays]]
    module = MODULES.get(vector.operation)
    if module is not None:
        ways = {"Derived": lambda: module.derived_answers(vector), "ComplexStep": lambda: module.complex_answers(vector)}
    else:
        ways = {way.__name__: lambda way=way: answers(vector, way(), vector.case.scale) for way in (Derived, ComplexStep)}
    for words, way in ways.items():
        for name, array in way().items():
            middle = np.array([float((a + b) / 2) for a, b in zip(*(side.ravel() for side in right[name]), strict=True)])
            same = alike(array, middle.reshape(right[name][0].shape), bounds64.get(name))
            expect(same, f"{name} of {vector.id} by {words}", array.tolist(), middle.tolist())


def bound(vector: Vector, precision: str) -> Arrays:
    """How far an honest implementation of that precision may be from each answer."""
    if vector.operation in prefixes.OPERATIONS:
        return prefixes.bound(vector, precision)
    case = vector.case
    p = lora.LoRA(case.A, case.B)
    match vector.operation:
        case "forward":
            return {"y": bounds.forward(case.x, case.W, case.b, p, case.scale, precision)}
        case "backward":
            dx, (dA, dB) = bounds.backward(case.dy, case.x, case.W, p, case.scale, precision)
            return {"dx": dx, "dA": dA, "dB": dB}
        case "merge":
            return {"W": bounds.merge(case.W, p, case.scale, precision)}
        case "sequence":
            return _drift(vector)
    raise ValueError(f"there is no bound of {vector.operation}")


class _Willing(Layer):
    """A layer that does nothing. The model of a sequence follows it, and adds up the bounds."""

    def forward(self, x): return x  # noqa: E704
    def backward(self, dy): return {}  # noqa: E704
    def zero_grad(self): ...
    def train(self, mode=True): ...
    def merge(self): ...
    def unmerge(self): ...
    def step(self, lr): ...


def _drift(vector: Vector) -> Arrays:
    model = _followed(vector, exact=False)
    return model.drift | {"y": np.asarray(model.bound_of_y())}


def _followed(vector: Vector, exact: bool) -> Expected:
    """The model of the layer after the steps. Raises NotExact if a step of an exact vector could round."""
    model = Expected(vector.case, exact=exact)
    for step in vector.settings["steps"]:
        if step != "forward" and not perform(None, _Willing(), model, step, Path())[1]:  # type: ignore[arg-type] no step asks a subject
            raise NotExact(f"{vector.id}: {step} could round")
    return model
