"""The operations on a LoRA layer, and how a subject is asked for each."""

import math

import numpy as np

from conformance.record.trace import Traced, refuses
from conformance.requirements.helpers.layers import fresh, merge, prepared
from conformance.requirements.init import random_factor
from conformance.subject import Arrays, Layer, LayerConfig, Subject
from conformance.truth.case import Case
from conformance.truth.compare import wide
from conformance.vectors.vector import Vector

OPERATIONS = {
    "forward": "y = x Wᵀ + b + scale · (x A) B",
    "backward": "the gradients of ⟨dy, y⟩ for x, for A and for B: dx, dA, dB",
    "merge": "the merged W: W + scale · (A B)ᵀ",
    "fresh": "y of a layer that was just made and has its own A and B: it is the base layer",
    "dropout": "y, dx, dA, dB with x ∘ mask in the place of x before A; the mask holds 0 and 1 / (1 − dropout)",
    "several": "several adapters, each with its alpha and rank: y = x Wᵀ + b + Σ weight · scale · (x A) B, and the merged W",
    "sequence": "the steps on one layer, one after another: forward of x; backward of dy, which adds to dA and dB; zero_grad; "
                "step: A ← A − lr · dA, and B in the same way; merge; unmerge. Then what is asked for: y, A, B, dA, dB, W",
    "parameters": "how many numbers train",
    "refused": "1 if set_adapter of A and B, forward of x or backward of dy is refused with an error, else 0",
    "initial": "of a layer that was just made: zero_factors, how many of A and B are zero; mean, that of the other one divided "
               "by its deviation; log_spread, the log of its deviation over that of a layer with the further rank and the same "
               "scale",
}


def ask(subject: Subject, vector: Vector) -> Arrays:
    """What the subject answers. Raises Unsupported and SubjectError, as its methods do."""
    traced = Traced(subject, record=False)
    if vector.operation == "initial":
        return _initial(traced, vector)
    if vector.operation == "refused":
        return {"refused": np.array(float(refuses(_steps, fresh(traced, vector.case), vector)))}
    case = vector.case.copy()  # a layer may write into what it is given
    if vector.operation == "fresh":
        return {"y": fresh(traced, case).forward(case.x)}
    layer = prepared(traced, case, training=vector.operation != "forward")
    match vector.operation:
        case "forward":
            return {"y": layer.forward(case.x)}
        case "parameters":
            return {"parameters": np.array(float(sum(math.prod(shape) for shape in layer.trainable().values())))}
        case "backward":
            layer.forward(case.x)
            return _gradients(layer.backward(case.dy))
        case "merge":
            merge(layer)
            return {"W": layer.weight()}
        case "dropout":
            layer._layer.draw_mask = lambda: vector.given["mask"].copy()  # pyright: ignore[reportAttributeAccessIssue]
            return {"y": layer.forward(case.x)} | _gradients(layer.backward(case.dy))
        case "several":
            for name, A, B, alpha in case.others:
                layer.add_adapter(name, {"A": A.copy(), "B": B.copy()}, alpha)
            layer.activate(vector.settings["weights"])
            y = layer.forward(case.x)
            merge(layer)
            return {"y": y, "W": layer.weight()}
        case "sequence":
            return _sequence(layer, case, vector)
    raise ValueError(f"{vector.operation} is no operation on a layer, expected one of {', '.join(OPERATIONS)}")


def _gradients(found: Arrays) -> Arrays:
    return {f"d{name}": array for name, array in found.items()}


def _steps(layer: Layer, vector: Vector) -> None:
    given = {name: array.copy() for name, array in vector.given.items()}
    layer.set_adapter({name: given[name] for name in "AB"})
    layer.forward(given["x"])
    layer.backward(given["dy"])


def _sequence(layer: Layer, case: Case, vector: Vector) -> Arrays:
    gradients: Arrays = {}
    for step in vector.settings["steps"]:
        match step:
            case "forward":
                layer.forward(case.x)
            case "backward":
                gradients = _gradients(layer.backward(case.dy))
            case "step":
                layer.step(vector.settings["lr"])
            case "merge":
                merge(layer)
            case _:
                getattr(layer, step)()
    asked = {"y": lambda: {"y": layer.forward(case.x)}, "A": layer.adapter, "B": layer.adapter,
             "W": lambda: {"W": layer.weight()}, "dA": lambda: gradients, "dB": lambda: gradients}
    return {name: asked[name]()[name] for name in vector.settings["asks"]}


def _initial(subject: Traced, vector: Vector) -> Arrays:
    s = vector.settings
    factors = []
    for rank in (s["rank"], s["further_rank"]):
        alpha = s["alpha"] * rank / s["rank"]
        config = LayerConfig(s["in_features"], s["out_features"], rank, alpha, dtype=vector.dtype, seed=rank)
        layer = subject.build(config, np.zeros((s["out_features"], s["in_features"])), np.zeros(s["out_features"]))
        factors.append(random_factor(layer))
        if rank == s["rank"]:
            zeros = sum(not wide(array).any() for array in layer.adapter().values())
    first, second = factors
    mean, spread = first.mean() / first.std(), np.log(first.std() / second.std())
    return {name: np.array(value, np.float64) for name, value in
            {"zero_factors": zeros, "mean": mean, "log_spread": spread}.items()}
