"""Bottleneck adapters: a small network beside or behind a sub-layer of a frozen model.

    Ad(x) = scale · (f(x D + d) U + u)        f an activation; D (in, bottleneck), d (bottleneck), U (bottleneck, in), u (in)

    behind a sub-layer, sequentially      y ← y + Ad(y)      Houlsby: behind attention and behind the MLP, before the residual
                                                             sum; Pfeiffer: once a layer, behind the MLP's residual sum
    beside a sub-layer, in parallel       y ← y + Ad(x)      He et al.: x is what the sub-layer sees

`transformer.py` says at which place which of them is applied. f stands between D and U, so an adapter cannot be merged into
a matrix: there is no `merge`, and at inference it remains, one more step of depth if it is sequential. Sources: Houlsby et
al., "Parameter-Efficient Transfer Learning for NLP", 2019, §2.1; Pfeiffer et al., "AdapterFusion", 2021; He et al., "Towards
a Unified View of Parameter-Efficient Transfer Learning", 2022, eq. 4 and §4.1 (parallel, scale 4).
Left out: the norms that Houlsby et al. train besides; Lin et al.'s extra norm before the adapter.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from lora_ref.ops import ACTIVATIONS
from lora_ref.shapes import check, check_dtype, check_size, finite, rows


class Spec(NamedTuple):
    """What a place of a transformer is told."""

    bottleneck: int
    activation: str = "relu"
    scale: float = 1.0
    start: str = "near"  # see init


class Adapter(NamedTuple):
    """The trainable arrays, or their gradients."""

    down: np.ndarray  # D (in, bottleneck)
    down_bias: np.ndarray  # d (bottleneck)
    up: np.ndarray  # U (bottleneck, in)
    up_bias: np.ndarray  # u (in)


class Cache(NamedTuple):
    x: np.ndarray  # (…, in)
    p: Adapter
    activation: str
    scale: np.number
    inner: tuple  # of the activation
    a: np.ndarray  # (n, bottleneck), f(x D + d)


def init(
    rng: np.random.Generator, in_features: int, bottleneck: int, dtype: DTypeLike = np.float64, start: str = "near"
) -> Adapter:
    """start="near": D and U normal with standard deviation 0.01, truncated at two of them, so Ad(x) is nearly 0 (Houlsby et
    al., §3.6). start="zero": D uniform in ±1/√in, U zero, so Ad(x) is 0 (He et al.'s code). Biases are zero.

    Raises ValueError for a size below 1, a dtype in which the package does not compute, and any other start.
    """
    for name, size in ("in_features", in_features), ("bottleneck", bottleneck):
        check_size("adapter.init", name, size)
    check_dtype("adapter.init", "dtype", dtype)
    if start not in ("near", "zero"):
        raise ValueError(f"adapter.init: start is {start!r}, expected 'near' (Houlsby et al.) or 'zero' (He et al.)")
    if start == "near":
        D, U = _truncated(rng, (in_features, bottleneck)), _truncated(rng, (bottleneck, in_features))
    else:
        D, U = rng.uniform(-1, 1, (in_features, bottleneck)) * in_features**-0.5, np.zeros((bottleneck, in_features))
    return Adapter(*(a.astype(dtype) for a in (D, np.zeros(bottleneck), U, np.zeros(in_features))))


def forward(x: np.ndarray, p: Adapter, activation: str = "relu", scale: float = 1.0) -> tuple[np.ndarray, Cache]:
    """Ad(x) (…, in), which is to be added, and the cache. Raises ValueError for a wrong shape, dtype, activation or scale."""
    D, d, U, u = p
    check(
        "adapter.forward", x=(x, "… in"), down=(D, "in bottleneck"), down_bias=(d, "bottleneck"),
        up=(U, "bottleneck in"), up_bias=(u, "in"),
    )
    if activation not in ACTIVATIONS:
        raise ValueError(f"adapter.forward: activation is {activation!r}, expected one of {', '.join(ACTIVATIONS)}")
    s = finite("adapter.forward", "scale", scale, x.dtype)
    # 1. a = f(x D + d)
    h = rows(x) @ D                                                                           # (n, bottleneck)
    h += d
    a, inner = ACTIVATIONS[activation][0](h)
    # 2. y = scale · (a U + u)
    y = a @ U                                                                                 # (n, in)
    y += u
    y *= s
    return y.reshape(x.shape), Cache(x, p, activation, s, inner, a)


def backward(dy: np.ndarray, cache: Cache) -> tuple[np.ndarray, Adapter]:
    """The gradient of Ad(x) with respect to x (…, in), and of the arrays, which sum over all leading axes."""
    x, (D, _, U, _), activation, s, inner, a = cache
    check("adapter.backward", x=(x, "… in"), dy=(dy, "… in"))
    # 2. y = scale · (a U + u)
    dy = rows(dy) * s                                                                         # (n, in)
    dU, du, da = a.T @ dy, dy.sum(0), dy @ U.T
    # 1. a = f(x D + d)
    dh = ACTIVATIONS[activation][1](da, inner)                                                # (n, bottleneck)
    dD, dd, dx = rows(x).T @ dh, dh.sum(0), dh @ D.T
    return dx.reshape(x.shape), Adapter(dD, dd, dU, du)


def parameter_count(in_features: int, bottleneck: int) -> int:
    """2 · in · bottleneck + bottleneck + in, of one adapter. Raises ValueError unless both are positive integers."""
    for name, size in ("in_features", in_features), ("bottleneck", bottleneck):
        check_size("adapter.parameter_count", name, size)
    return 2 * int(in_features) * int(bottleneck) + int(bottleneck) + int(in_features)


def _truncated(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """N(0, 0.01²), drawn again where it is further than two standard deviations from 0."""
    a = rng.standard_normal(shape)
    while (far := np.abs(a) > 2).any():
        a[far] = rng.standard_normal(int(far.sum()))
    return 0.01 * a
