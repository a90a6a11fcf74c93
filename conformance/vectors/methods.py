"""The operations of further methods: a bottleneck adapter, and the network that makes the prompts of P-tuning.

Both have ReLU, so that their answers are rational numbers too. A known fault is asked by the part of its model that does this.
"""

from typing import Any

import numpy as np

from conformance.model import Model, ModelConfig
from conformance.mutants.tape import Node
from conformance.subject import Arrays, Subject, Unsupported
from conformance.truth import rational
from conformance.vectors.vector import Vector
from lora_ref import adapter, ptuning
from lora_ref.error.gradcheck import complex_step

OPERATIONS = {
    "adapter": "y = x + scale · (relu(x D + d) U + u), and the gradients of ⟨dy, y⟩ for x and for each array",
    "prompts": "y = relu(E W1ᵀ + b1) W2ᵀ + b2, and the gradients of ⟨dy, y⟩ for each array",
}
ADAPTER = {"D": "down", "d": "down_bias", "U": "up", "u": "up_bias"}
PROMPTS = {"E": "embedding", "W1": "W1", "b1": "b1", "W2": "W2", "b2": "b2"}
PLACE = "layers.0.output"


def inputs(vector: Vector) -> list[str]:
    """The names of the arrays that get a gradient."""
    return ["x", *ADAPTER] if vector.operation == "adapter" else list(PROMPTS)


def ask(subject: Subject, vector: Vector) -> Arrays:
    """What a model of `conformance.mutants` answers. Raises Unsupported for a subject that has none."""
    kind = getattr(subject, "layer", None)
    if not (isinstance(kind, type) and issubclass(kind, Model) and hasattr(kind, "adapted")):
        raise Unsupported("the parts of a model")
    given, prompts = {name: array.copy() for name, array in vector.given.items()}, vector.operation == "prompts"
    names = {name: f"prompt.{own}" if prompts else f"{PLACE}.{own}" for name, own in (PROMPTS if prompts else ADAPTER).items()}
    width = given["b2" if prompts else "u"].size
    own = {"method": "ptuning", "positions": tuple(range(len(given["E"]))), "encoder": "mlp", "hidden_size": given["b1"].size} \
        if prompts else {"method": "adapter", "form": "pfeiffer", "bottleneck": given["d"].size, "nonlinearity": "relu",
                         "adapter_scale": vector.settings["scale"]}
    base = {"vocabulary": 2, "width": width, "layers": 1, "heads": 1, "mlp_width": 2, "context": 9, "kv_heads": 1}
    made: Any = kind
    model = made(ModelConfig(**base, **own, dtype=vector.dtype), {})
    model.p = {path: given[name] for name, path in names.items()}
    model.begin()
    model.leaves = {}
    x = None if prompts else Node(given["x"], True)
    y = model.prompts() if prompts else model.adapted(x, PLACE)
    model.go_back(y, given["dy"])
    found = {f"d{name}": model.leaf(path).gradient for name, path in names.items()} | ({} if x is None else {"dx": x.gradient})
    return {"y": model.rounded(y.array)} | {name: model.rounded(array) for name, array in found.items() if array is not None}


def rational_answers(vector: Vector) -> Arrays:
    given = {name: rational.exact(array) for name, array in vector.given.items()}

    def relu(h: np.ndarray) -> np.ndarray:
        return np.maximum(h, 0)

    def adapted(x, D, d, U, u):
        scale = rational.exact(np.array(vector.settings["scale"]))[()]
        return x + scale * (rational.product(relu(rational.product(x, D) + d), U) + u)

    def prompts(E, W1, b1, W2, b2):
        return rational.product(relu(rational.product(E, W1.T) + b1), W2.T) + b2

    f = adapted if vector.operation == "adapter" else prompts
    arrays = [given[name] for name in inputs(vector)]
    slopes = rational.slopes(f, arrays, given["dy"])
    return {"y": f(*arrays)} | {f"d{name}": slope for name, slope in zip(inputs(vector), slopes, strict=True)}


def derived_answers(vector: Vector) -> Arrays:
    """By the formulas of `lora_ref` in float64."""
    given = {name: array.astype(np.float64) for name, array in vector.given.items()}
    if vector.operation == "prompts":
        y, cache = ptuning.forward(ptuning.MLP(*(given[name] for name in PROMPTS)))
        return {"y": y} | {f"d{name}": slope for name, slope in zip(PROMPTS, ptuning.backward(given["dy"], cache), strict=True)}
    p = adapter.BottleneckAdapter(*(given[name] for name in ADAPTER))
    y, cache = adapter.forward(given["x"], p, "relu", vector.settings["scale"])
    dx, dp = adapter.backward(given["dy"], cache)
    found = dict(zip(ADAPTER, dp, strict=True)) | {"x": dx + given["dy"]}
    return {"y": given["x"] + y} | {f"d{name}": slope for name, slope in found.items()}


def complex_answers(vector: Vector) -> Arrays:
    """By the forward pass of `lora_ref`, and a complex step through it."""
    given = {name: array.astype(np.float64) for name, array in vector.given.items()}

    def adapted(x, *p):
        return x + adapter.forward(x, adapter.BottleneckAdapter(*p), "relu", vector.settings["scale"])[0]

    def prompts(*p):
        return ptuning.forward(ptuning.MLP(*p))[0]

    f = adapted if vector.operation == "adapter" else prompts
    arrays = [given[name] for name in inputs(vector)]
    slopes = complex_step(f, arrays, given["dy"])
    return {"y": f(*arrays)} | {f"d{name}": slope for name, slope in zip(inputs(vector), slopes, strict=True)}
