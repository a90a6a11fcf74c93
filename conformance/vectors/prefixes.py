"""The operations of prefix tuning: the network that makes keys and values, and attention with a prefix.

tanh and exp give no rational numbers. So the exact answers are enclosed by arithmetic with proven bounds (`truth/balls.py`),
from formulas that are written here. An honest implementation may be off by the spread that `lora_ref.error.noise` measures.
"""

from typing import Any, cast

import numpy as np

from conformance.model import Model, ModelConfig
from conformance.mutants.tape import Node
from conformance.subject import Arrays, Subject, Unsupported
from conformance.truth.balls import Ball
from conformance.truth.case import BITS
from conformance.truth.compare import reach
from conformance.vectors.vector import Vector
from lora_ref import attention, prefix
from lora_ref.error import noise
from lora_ref.error.gradcheck import complex_step

OPERATIONS = {
    "network": "keys and values (layers, length, width), cut out of P = tanh(E W1ᵀ + b1) W2ᵀ + b2 layer by layer, keys before "
               "values; and the gradients of ⟨dkeys, keys⟩ + ⟨dvalues, values⟩ for each array",
    "attention": "y = softmax(q [P_k k]ᵀ / √size) [P_v v] head by head; a token sees the prefix, itself and those before it; "
                 "heads share keys in groups",
}
NETWORK = {"E": "embedding", "W1": "W1", "b1": "b1", "W2": "W2", "b2": "b2"}
ATTENTION = ("q", "k", "v", "P_k", "P_v")


def ask(subject: Subject, vector: Vector) -> Arrays:
    """What a model of `conformance.mutants` answers. Raises Unsupported for a subject that has none."""
    kind = getattr(subject, "layer", None)
    if not (isinstance(kind, type) and issubclass(kind, Model) and hasattr(kind, "attend")):
        raise Unsupported("the parts of a model")
    given, network = {name: array.copy() for name, array in vector.given.items()}, vector.operation == "network"
    s = vector.settings
    own = {"layers": s["layers"], "heads": 1, "kv_heads": 1, "width": given["E"].shape[1], "length": len(given["E"]),
           "hidden_size": len(given["b1"])} if network else {
           "layers": 1, "heads": s["heads"], "kv_heads": s["kv_heads"], "width": given["q"].shape[1],
           "length": len(given["P_k"])}
    made: Any = kind
    model = made(ModelConfig(vocabulary=2, mlp_width=2, context=9, method="prefix", dtype=vector.dtype, **own), {})
    model.begin()
    model.leaves = {}
    if not network:
        model.p = {"prefix.keys": given["P_k"][None], "prefix.values": given["P_v"][None]}
        q, k, v = (Node(given[name][None]) for name in "qkv")
        return {"y": model.rounded(model.attend(q, k, v, model.past(0), model.visible(len(given["q"]), None)).array)[0]}
    model.p = {f"prefix.{own}": given[name] for name, own in NETWORK.items()}
    keys, values = zip(*(model.past(i) for i in range(s["layers"])), strict=True)
    found = {"keys": np.stack([node.array for node in keys]), "values": np.stack([node.array for node in values])}
    for nodes, gradients in (keys, given["dkeys"]), (values, given["dvalues"]):
        for node, gradient in zip(nodes, gradients, strict=True):
            node.take(gradient)
    model.go_back(Node(np.zeros(1)), np.zeros(1))
    found |= {f"d{name}": model.leaf(f"prefix.{own}").gradient for name, own in NETWORK.items()}
    return {name: model.rounded(array) for name, array in found.items() if array is not None}


def enclosed(vector: Vector) -> dict[str, Ball]:
    """The exact answers, by formulas of this file."""
    given: dict[str, Any] = {name: Ball(array.astype(np.float64)) for name, array in vector.given.items()}
    s, both = vector.settings, cast(Any, np.concatenate)  # of Balls it makes one
    if vector.operation == "attention":
        q, k, v, P_k, P_v = (given[name] for name in ATTENTION)
        k, v, size, heads = both([P_k, k], 0), both([P_v, v], 0), q.shape[1] // s["heads"], []
        seen = np.tri(q.shape[0], k.shape[0], P_k.shape[0])
        for head in range(s["heads"]):
            own, shared = (slice(i * size, (i + 1) * size) for i in (head, head // (s["heads"] // s["kv_heads"])))
            scores = q[:, own] @ k[:, shared].T / np.sqrt(Ball(float(size)))
            e = np.exp(scores - scores.max(-1, keepdims=True)) * seen
            heads.append(e / e.sum(-1, keepdims=True) @ v[:, shared])
        return {"y": both(heads, -1)}
    E, W1, b1, W2, b2 = (given[name] for name in NETWORK)
    t = np.tanh(E @ W1.T + b1)
    P, layers, width = t @ W2.T + b2, s["layers"], E.shape[1]
    parts = [P[:, i * width : (i + 1) * width].reshape(1, E.shape[0], width) for i in range(2 * layers)]
    found = {"keys": both(parts[::2], 0), "values": both(parts[1::2], 0)}
    dP = both([given[name][i] for i in range(layers) for name in ("dkeys", "dvalues")], -1)
    du = (dP @ W2) * (1 - t * t)
    return found | {"dE": du @ W1, "dW1": du.T @ E, "db1": du.sum(0), "dW2": dP.T @ t, "db2": dP.sum(0)}


def derived_answers(vector: Vector) -> Arrays:
    """By the formulas of `lora_ref` in float64."""
    return _reference(vector, {name: array.astype(np.float64) for name, array in vector.given.items()})


def _reference(vector: Vector, given: Arrays) -> Arrays:
    s = vector.settings
    if vector.operation == "attention":
        return {"y": _attended(vector, *(given[name] for name in ATTENTION))}
    made, cache = prefix.forward(prefix.Reparameterised(*(given[name] for name in NETWORK)), s["layers"])
    gradients = prefix.backward(prefix.Prefix(given["dkeys"], given["dvalues"]), cache)
    found = {f"d{name}": array for name, array in zip(NETWORK, gradients, strict=True)}
    return {"keys": made.keys, "values": made.values} | found


def _attended(vector: Vector, q: np.ndarray, k: np.ndarray, v: np.ndarray, P_k: np.ndarray, P_v: np.ndarray) -> np.ndarray:
    s = vector.settings
    mask = attention.attention_mask(q.shape[0], None, P_k.shape[0], np.dtype(np.float64))
    size = q.shape[1] // s["heads"]
    q, k, v = (array.reshape(1, *array.shape) for array in (q, k, v))
    y = attention.forward(q, k, v, mask, s["kv_heads"], size, prefix.Prefix(P_k, P_v))[0]
    return y.reshape(*y.shape[1:])


def complex_answers(vector: Vector) -> Arrays:
    """By the forward pass of `lora_ref`, and a complex step through it."""
    given = {name: array.astype(np.float64) for name, array in vector.given.items()}
    if vector.operation == "attention":
        return derived_answers(vector)  # no gradient is asked for

    def both(*p: np.ndarray) -> np.ndarray:
        return np.stack(prefix.forward(prefix.Reparameterised(*p), vector.settings["layers"])[0])

    arrays = [given[name] for name in NETWORK]
    keys, values = both(*arrays)
    slopes = complex_step(both, arrays, np.stack([given["dkeys"], given["dvalues"]]))
    return {"keys": keys, "values": values} | {f"d{name}": slope for name, slope in zip(NETWORK, slopes, strict=True)}


def bound(vector: Vector, precision: str) -> Arrays:
    """A multiple of the spread under rounding that an honest implementation exceeds once in 10¹¹ times."""
    given = {name: array.astype(np.float64) for name, array in vector.given.items()}
    _, deviation = noise.spread(lambda arrays: _reference(vector, dict(arrays)), given, 2.0 ** -BITS[precision])
    return {name: reach() * array for name, array in deviation.items()}
