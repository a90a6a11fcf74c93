"""Prefix tuning: trained keys and values, in every layer, before those of the sequence.

    y = softmax(q [P_k k]ᵀ / √s) [P_v v]                       in every layer; `attention.py` has it
    [P_k P_v of layer 0, P_k P_v of layer 1, …] = P                                     trained as they are, or as
    P = tanh(E W1ᵀ + b1) W2ᵀ + b2                                                       reparameterised, then folded

    P_k, P_v (length, width)   E (length, e)   W1 (hidden, e)   b1 (hidden)   W2 (2 · layers · width, hidden)   b2

`width` is that of a layer's keys: kv_heads · s, the width of the model unless heads share keys. A token's position counts
the prefix; the prefix itself has no position. Keys of zero change the output all the same: they take their share of the
softmax. Sources: Li and Liang, "Prefix-Tuning", 2021, §4.2 and §4.3 (the MLP, dropped after training), and their code (one
hidden layer, Tanh, the order of P); Liu et al., "P-Tuning v2", 2022 (the same under another name, with P ~ N(0, 1)).
Left out: dropout of the prefix; initial values from words' activations; a prefix of an encoder.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from lora_ref.shapes import check, check_dtype, check_size


class Spec(NamedTuple):
    """What a place of a transformer is told: the length, and the MLP's hidden size, None for P trained as it is."""

    length: int
    hidden: int | None = None


class Prefix(NamedTuple):
    """The keys and values of all layers, or of one, or their gradients."""

    keys: np.ndarray  # (layers, length, width); (length, width) of one layer
    values: np.ndarray  # like keys


class Reparameterised(NamedTuple):
    """What is trained in the place of P, or its gradients."""

    embedding: np.ndarray  # (length, e)
    W1: np.ndarray  # (hidden, e)
    b1: np.ndarray  # (hidden)
    W2: np.ndarray  # (2 · layers · width, hidden)
    b2: np.ndarray  # (2 · layers · width)


class Cache(NamedTuple):
    p: Reparameterised
    t: np.ndarray  # (length, hidden), tanh(…)


def init(rng: np.random.Generator, layers: int, length: int, width: int, dtype: DTypeLike = np.float64) -> Prefix:
    """Keys and values N(0, 1), as in the code of P-tuning v2. Raises ValueError for a size below 1 and for the dtype."""
    _check_sizes("prefix.init", dtype, layers=layers, length=length, width=width)
    return Prefix(*(rng.standard_normal((layers, length, width)).astype(dtype) for _ in "kv"))


def init_reparameterised(
    rng: np.random.Generator, layers: int, length: int, width: int, hidden: int, e: int, dtype: DTypeLike = np.float64
) -> Reparameterised:
    """E ~ N(0, 1), W1 ~ N(0, 1/e), W2 ~ N(0, 1/hidden), biases zero, so that P has the size of a norm's output."""
    _check_sizes("prefix.init_reparameterised", dtype, layers=layers, length=length, width=width, hidden=hidden, e=e)
    out = 2 * layers * width
    E = rng.standard_normal((length, e))
    W1, W2 = (rng.standard_normal(shape) * shape[1] ** -0.5 for shape in ((hidden, e), (out, hidden)))
    return Reparameterised(*(a.astype(dtype) for a in (E, W1, np.zeros(hidden), W2, np.zeros(out))))


def forward(p: Reparameterised, layers: int) -> tuple[Prefix, Cache]:
    """The prefix (layers, length, width) that is trained as p. Raises ValueError for a wrong shape or dtype."""
    E, W1, b1, W2, b2 = p
    check(
        "prefix.forward", embedding=(E, "length e"), W1=(W1, "hidden e"), b1=(b1, "hidden"),
        W2=(W2, "out hidden"), b2=(b2, "out"),
    )
    # 1. t = tanh(E W1ᵀ + b1)
    t = np.tanh(E @ W1.T + b1)                                                                # (length, hidden)
    # 2. P = t W2ᵀ + b2
    P = t @ W2.T + b2                                                                         # (length, 2 · layers · width)
    # 3. keys and values of each layer
    P = P.reshape(len(E), layers, 2, -1).transpose(2, 1, 0, 3)                                # (2, layers, length, width)
    return Prefix(P[0], P[1]), Cache(p, t)


def backward(dprefix: Prefix, cache: Cache) -> Reparameterised:
    """The gradients of what is trained, for those of the keys and values."""
    (E, W1, _, W2, _), t = cache
    # 3. keys and values of each layer
    dP = np.stack(dprefix).transpose(2, 1, 0, 3).reshape(len(E), len(W2))                     # (length, 2 · layers · width)
    # 2. P = t W2ᵀ + b2
    dW2, db2, dt = dP.T @ t, dP.sum(0), dP @ W2
    # 1. t = tanh(E W1ᵀ + b1)
    du = dt * (1 - t * t)                                                                     # (length, hidden)
    return Reparameterised(du @ W1, du.T @ E, du.sum(0), dW2, db2)


def fold(p: Reparameterised, layers: int) -> Prefix:
    """What is kept after training: the prefix itself (paper, §4.3)."""
    prefix, _ = forward(p, layers)
    return Prefix(*(array.copy() for array in prefix))


def parameter_count(layers: int, length: int, width: int) -> int:
    """2 · layers · length · width: what is stored, and what is trained without an MLP."""
    _check_sizes("prefix.parameter_count", np.float64, layers=layers, length=length, width=width)
    return 2 * int(layers) * int(length) * int(width)


def reparameterised_count(layers: int, length: int, width: int, hidden: int, e: int) -> int:
    """What is trained with the MLP: length · e + hidden · (e + 1) + 2 · layers · width · (hidden + 1)."""
    _check_sizes("prefix.reparameterised_count", np.float64, layers=layers, length=length, width=width, hidden=hidden, e=e)
    return int(length * e + hidden * (e + 1) + 2 * layers * width * (hidden + 1))


def _check_sizes(where: str, dtype: DTypeLike, **sizes: int) -> None:
    for name, size in sizes.items():
        check_size(where, name, size)
    check_dtype(where, "dtype", dtype)
