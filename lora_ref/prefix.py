"""Prefix tuning: trained keys and values, in every layer, before those of the sequence.

    y = softmax(q [P_k k]ᵀ / √s) [P_v v]                       in every layer; `attention.py` has it
    [P_k P_v of layer 0, P_k P_v of layer 1, …] = P                                     trained as it is, or as
    P = tanh(E W1ᵀ + b1) W2ᵀ + b2                                                       reparameterised, then merged

    P_k, P_v (length, width)   E (length, e)   W1 (hidden, e)   b1 (hidden)   W2 (2 · layers · width, hidden)   b2

`width` is the width of a layer's keys: kv_heads · s, the width of the model unless heads share keys. The positions of the
tokens count the prefix; the prefix itself has no position. A prefix of zeros changes the output too, because keys of zero
take their share of the softmax.

Sources: Li and Liang, "Prefix-Tuning", 2021, §4.2 and §4.3 (the MLP, dropped after training), and their code (one hidden
layer, tanh, the order of P); Liu et al., "P-Tuning v2", 2022 (the same under another name, with P ~ N(0, 1)).
Left out: dropout of the prefix; initial values from words' activations; a prefix of an encoder.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from lora_ref.shapes import check, check_dtype, check_size


class Prefix(NamedTuple):
    """The keys and values of all layers, or of one layer, or their gradients."""

    keys: np.ndarray  # (layers, length, width), or (length, width) for one layer
    values: np.ndarray  # like keys


class Reparameterised(NamedTuple):
    """The arrays that train instead of P, or their gradients."""

    embedding: np.ndarray  # (length, e)
    W1: np.ndarray  # (hidden, e)
    b1: np.ndarray  # (hidden)
    W2: np.ndarray  # (2 · layers · width, hidden)
    b2: np.ndarray  # (2 · layers · width)


class Cache(NamedTuple):
    """What backward needs."""

    prefix: Prefix  # what forward gave
    p: Reparameterised | None  # None for a prefix that trains as it is
    t: np.ndarray | None  # (length, hidden), tanh(…)


def init(
    rng: np.random.Generator, layers: int, length: int, width: int, hidden_size: int | None = None,
    embedding_size: int | None = None, dtype: DTypeLike = np.float64,
) -> Prefix | Reparameterised:
    """Keys and values N(0, 1), as in the code of P-tuning v2; or, if there is a hidden size, the MLP that makes them.

    E ~ N(0, 1), W1 ~ N(0, 1/e), W2 ~ N(0, 1/hidden), biases zero: P then has the size of a norm's output. e is the
    embedding size. Raises ValueError for a size below 1 and for a dtype in which the package does not compute.
    """
    check_dtype("prefix.init", "dtype", dtype)
    p = _shapes("prefix.init", layers, length, width, hidden_size, embedding_size)
    if isinstance(p, Prefix):
        return Prefix(*(rng.standard_normal(shape).astype(dtype) for shape in p))
    E, (W1, W2) = rng.standard_normal(p.embedding), (rng.standard_normal(s) * s[1] ** -0.5 for s in (p.W1, p.W2))
    return Reparameterised(*(a.astype(dtype) for a in (E, W1, np.zeros(p.b1), W2, np.zeros(p.b2))))


def forward(p: Prefix | Reparameterised, layers: int) -> tuple[Prefix, Cache]:
    """The prefix (layers, length, width) and the cache. Raises ValueError for a wrong shape or dtype."""
    if isinstance(p, Prefix):
        return p, Cache(p, None, None)
    E, W1, b1, W2, b2 = p
    check(
        "prefix.forward", embedding=(E, "length e"), W1=(W1, "hidden e"), b1=(b1, "hidden"),
        W2=(W2, "out hidden"), b2=(b2, "out"),
    )
    # 1. t = tanh(E W1ᵀ + b1)
    t = np.tanh(E @ W1.T + b1)                                                                # (length, hidden)
    # 2. P = t W2ᵀ + b2
    P = t @ W2.T + b2                                                                         # (length, 2 · layers · width)
    # 3. the keys and values of each layer
    P = P.reshape(len(E), layers, 2, -1).transpose(2, 1, 0, 3)                                # (2, layers, length, width)
    prefix = Prefix(P[0], P[1])
    return prefix, Cache(prefix, p, t)


def backward(dprefix: Prefix, cache: Cache) -> Prefix | Reparameterised:
    """The gradients of the arrays that train, from those of the keys and values (layers, length, width).

    Raises ValueError for a wrong shape or dtype.
    """
    (keys, values), p, t = cache
    axes = "layers length width"
    check(
        "prefix.backward", keys=(keys, axes), values=(values, axes), dkeys=(dprefix.keys, axes), dvalues=(dprefix.values, axes)
    )
    if p is None or t is None:
        return dprefix
    E, W1, _, W2, _ = p
    # 3. the keys and values of each layer
    dP = np.stack(dprefix).transpose(2, 1, 0, 3).reshape(len(E), len(W2))                     # (length, 2 · layers · width)
    # 2. P = t W2ᵀ + b2
    dW2, db2, dt = dP.T @ t, dP.sum(0), dP @ W2
    # 1. t = tanh(E W1ᵀ + b1)
    du = dt * (1 - t * t)                                                                     # (length, hidden)
    return Reparameterised(du @ W1, du.T @ E, du.sum(0), dW2, db2)


def merge(p: Prefix | Reparameterised, layers: int) -> Prefix:
    """The keys and values alone: what is kept after training (paper, §4.3)."""
    prefix, _ = forward(p, layers)
    return Prefix(prefix.keys.copy(), prefix.values.copy())


def parameter_count(
    layers: int, length: int, width: int, hidden_size: int | None = None, embedding_size: int | None = None
) -> int:
    """2 · layers · length · width; with an MLP, length · e + hidden · (e + 1) + 2 · layers · width · (hidden + 1)."""
    p = _shapes("prefix.parameter_count", layers, length, width, hidden_size, embedding_size)
    return sum(math.prod(map(int, shape)) for shape in p)


def _shapes(
    where: str, layers: int, length: int, width: int, hidden_size: int | None, embedding_size: int | None
) -> Prefix | Reparameterised:
    """The shapes of the arrays in their places. Raises ValueError for a size below 1."""
    for name, size in ("layers", layers), ("length", length), ("width", width):
        check_size(where, name, size)
    if hidden_size is None:
        return Prefix._make([(layers, length, width)] * 2)
    for name, size in ("hidden_size", hidden_size), ("embedding_size", embedding_size):
        check_size(where, name, size)
    h, e, out = hidden_size, embedding_size, 2 * layers * width
    return Reparameterised._make([(length, e), (h, e), (h,), (out, h), (out,)])


PLACE = "prefix"  # where a prefix stands in a transformer; places.py says what else is below and who calls it
FROZEN = ()  # the names of arrays that do not train


class Config(NamedTuple):
    """Hyperparameters of a prefix: its length, and the hidden size of its MLP, None for a prefix that trains as it is."""

    length: int
    hidden_size: int | None = None

    @property
    def merged(self) -> "Config":
        """The configuration after `merge`."""
        return Config(self.length)


def shapes(config: Config, layers: int, kv_width: int, width: int) -> Prefix | Reparameterised:
    """The shapes of the arrays; the embedding of the MLP is as wide as the model. Raises ValueError for a size below 1."""
    return _shapes("prefix.shapes", layers, config.length, kv_width, config.hidden_size, width)


def init_at(
    rng: np.random.Generator, config: Config, layers: int, kv_width: int, width: int, dtype: DTypeLike = np.float64
) -> Prefix | Reparameterised:
    """What `init` gives for the length and the hidden size of the configuration."""
    return init(rng, layers, config.length, kv_width, config.hidden_size, width, dtype)
