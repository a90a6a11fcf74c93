"""Three ways to the right answers of an operation on a LoRA layer. They share the order of the steps, and no formula.

    Derived      `lora_ref` in float64, whose gradients are derived by hand
    ComplexStep  `lora_ref`'s forward pass in float64, and a complex step through it
    Rational     rational numbers, without a rounding; a gradient is a difference of two values
"""

from fractions import Fraction
from typing import NamedTuple, Protocol

import numpy as np

from conformance.subject import Arrays
from conformance.truth import rational
from conformance.vectors.vector import Vector
from lora_ref import lora
from lora_ref.error.gradcheck import complex_step


class State(NamedTuple):
    """The arrays of a layer at some time, x among them. b and mask may be None."""

    x: np.ndarray
    W: np.ndarray
    b: np.ndarray | None
    A: np.ndarray
    B: np.ndarray
    scale: float | Fraction
    mask: np.ndarray | None = None


class Way(Protocol):
    def lifted(self, array: np.ndarray) -> np.ndarray: ...
    def forward(self, s: State) -> np.ndarray: ...
    def gradients(self, dy: np.ndarray, s: State) -> list[np.ndarray]:
        """dx, dA and dB."""
        ...

    def merged(self, s: State) -> np.ndarray: ...


class Derived:
    def lifted(self, array: np.ndarray) -> np.ndarray:
        return array.astype(np.float64)

    def forward(self, s: State) -> np.ndarray:
        return lora.forward(s.x, s.W, s.b, lora.LoRA(s.A, s.B), float(s.scale), s.mask)[0]

    def gradients(self, dy: np.ndarray, s: State) -> list[np.ndarray]:
        _, cache = lora.forward(s.x, s.W, s.b, lora.LoRA(s.A, s.B), float(s.scale), s.mask)
        dx, (dA, dB) = lora.backward(dy, cache)
        return [dx, dA, dB]

    def merged(self, s: State) -> np.ndarray:
        return lora.merge(s.W, s.b, lora.LoRA(s.A, s.B), float(s.scale))[0]


class ComplexStep(Derived):
    def gradients(self, dy: np.ndarray, s: State) -> list[np.ndarray]:
        W, b, mask = (None if array is None else array.astype(np.complex128) for array in (s.W, s.b, s.mask))

        def forward(x: np.ndarray, A: np.ndarray, B: np.ndarray) -> np.ndarray:
            assert W is not None
            return lora.forward(x, W, b, lora.LoRA(A, B), float(s.scale), mask)[0]

        return list(complex_step(forward, (s.x, s.A, s.B), dy))


class Rational:
    def lifted(self, array: np.ndarray) -> np.ndarray:
        return rational.exact(array)

    def forward(self, s: State) -> np.ndarray:
        return rational.forward(s.x, s.W, s.b, s.A, s.B, Fraction(s.scale), s.mask)

    def gradients(self, dy: np.ndarray, s: State) -> list[np.ndarray]:
        return rational.slopes(lambda x, A, B: self.forward(s._replace(x=x, A=A, B=B)), [s.x, s.A, s.B], dy)

    def merged(self, s: State) -> np.ndarray:
        return rational.merged(s.W, s.A, s.B, Fraction(s.scale))


def answers(vector: Vector, way: Way, scale: float | Fraction) -> Arrays:
    """The right answers of the vector by one of the ways."""
    case = vector.case
    x, W, A, B, dy = (way.lifted(array) for array in (case.x, case.W, case.A, case.B, case.dy))
    b, mask = (None if array is None else way.lifted(array) for array in (case.b, vector.given.get("mask")))
    s = State(x, W, b, A, B, scale, mask)
    match vector.operation:
        case "forward":
            return {"y": way.forward(s)}
        case "fresh":
            return {"y": way.forward(s._replace(B=0 * B))}
        case "backward":
            return _named(way.gradients(dy, s))
        case "merge":
            return {"W": way.merged(s)}
        case "dropout":
            return {"y": way.forward(s)} | _named(way.gradients(dy, s))
        case "several":
            return _several(vector, way, s)
        case "sequence":
            return _sequence(vector, way, dy, s)
    raise ValueError(f"{vector.operation} is no operation on a layer")


def _named(gradients: list[np.ndarray]) -> Arrays:
    return dict(zip(("dx", "dA", "dB"), gradients, strict=True))


def _several(vector: Vector, way: Way, s: State) -> Arrays:
    case = vector.case
    base = s._replace(B=0 * s.B)
    y, W = way.forward(base), s.W
    for name, weight in case.all_weights.items():
        own, lifted = case.alone(name), type(s.scale)
        part = s._replace(A=way.lifted(own.A), B=way.lifted(own.B), scale=lifted(own.scale))
        y = y + lifted(weight) * (way.forward(part) - way.forward(base))
        W = W + lifted(weight) * (way.merged(part) - s.W)
    return {"y": y, "W": W}


def _sequence(vector: Vector, way: Way, dy: np.ndarray, s: State) -> Arrays:
    frozen, dA, dB = s.W, 0 * s.A, 0 * s.B
    lr = type(s.scale)(vector.settings.get("lr", 0))
    for step in vector.settings["steps"]:
        match step:
            case "backward":
                _, more_A, more_B = way.gradients(dy, s)
                dA, dB = dA + more_A, dB + more_B
            case "zero_grad":
                dA, dB = 0 * dA, 0 * dB
            case "step":
                s = s._replace(A=s.A - lr * dA, B=s.B - lr * dB)
            case "merge" | "unmerge":
                s = s._replace(W=way.merged(s) if step == "merge" else frozen)
    is_merged = s.W is not frozen
    known = {"y": way.forward(s._replace(B=0 * s.B) if is_merged else s), "W": s.W, "A": s.A, "B": s.B, "dA": dA, "dB": dB}
    return {name: known[name] for name in vector.settings["asks"]}
