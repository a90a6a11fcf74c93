"""Bottleneck adapters: a small network beside or behind a sub-layer of a frozen model.

    Ad(x) = scale · (f(x D + d) U + u)        f an activation; D (in, bottleneck), d (bottleneck), U (bottleneck, in), u (in)

    behind a sub-layer, sequentially      y ← y + Ad(y)      Houlsby: behind attention and behind the MLP, before the residual
                                                             sum; Pfeiffer: once a layer, behind the MLP's residual sum
    beside a sub-layer, in parallel       y ← y + Ad(x)      He et al.: x is what the sub-layer sees

An adapter cannot be merged into a matrix, because f stands between D and U: there is no `merge`. It stays at inference, as one
more step of depth if it is sequential. `places.py` names the places in a transformer.

Sources: Houlsby et al., "Parameter-Efficient Transfer Learning for NLP", 2019, §2.1; Pfeiffer et al., "AdapterFusion", 2021; He
et al., "Towards a Unified View of Parameter-Efficient Transfer Learning", 2022, eq. 4 and §4.1 (parallel, scale 4).
Left out: the norms that Houlsby et al. train too; Lin et al.'s extra norm before the adapter.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from lora_ref.ops import ACTIVATIONS
from lora_ref.shapes import check, check_dtype, check_size, finite, rows


class BottleneckAdapter(NamedTuple):
    """The arrays that train, or their gradients."""

    down: np.ndarray  # D (in, bottleneck)
    down_bias: np.ndarray  # d (bottleneck)
    up: np.ndarray  # U (bottleneck, in)
    up_bias: np.ndarray  # u (in)


class Cache(NamedTuple):
    """What backward needs. It refers to the arguments of forward: change none of them in between."""

    x: np.ndarray  # (…, in)
    p: BottleneckAdapter
    activation: str
    scale: np.number
    inner: tuple  # the cache of the activation
    a: np.ndarray  # (n, bottleneck), f(x D + d)


def init(
    rng: np.random.Generator, in_features: int, bottleneck: int, dtype: DTypeLike = np.float64, start: str = "near"
) -> BottleneckAdapter:
    """Arrays for which Ad(x) is nearly 0 (start="near") or exactly 0 (start="zero"). Both biases are zero.

    "near": D and U are normal with standard deviation 0.01, cut off at two standard deviations (Houlsby et al., §3.6).
    "zero": D is uniform in ±1/√in, U is zero (He et al.'s code). Raises ValueError for a size below 1, a dtype in which
    the package does not compute, and any other start.
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
    return BottleneckAdapter(*(a.astype(dtype) for a in (D, np.zeros(bottleneck), U, np.zeros(in_features))))


def forward(x: np.ndarray, p: BottleneckAdapter, activation: str = "relu", scale: float = 1.0) -> tuple[np.ndarray, Cache]:
    """Ad(x) (…, in), which the caller adds, and the cache.

    Raises ValueError for a wrong shape or dtype, an unknown activation, and a scale that is not a finite number.
    """
    D, d, U, u = p
    check(
        "adapter.forward", x=(x, "… in"), down=(D, "in bottleneck"), down_bias=(d, "bottleneck"),
        up=(U, "bottleneck in"), up_bias=(u, "in"),
    )
    if activation not in ACTIVATIONS:
        raise ValueError(f"adapter.forward: activation is {activation!r}, expected one of {', '.join(ACTIVATIONS)}")
    s = finite("adapter.forward", "scale", scale, x.dtype)
    # 1. h = x D + d
    h = rows(x) @ D + d                                                                       # (n, bottleneck)
    # 2. a = f(h)
    a, inner = ACTIVATIONS[activation][0](h)                                                  # (n, bottleneck)
    # 3. y = scale · z, z = a U + u
    y = s * (a @ U + u)                                                                       # (n, in)
    return y.reshape(x.shape), Cache(x, p, activation, s, inner, a)


def backward(dy: np.ndarray, cache: Cache) -> tuple[np.ndarray, BottleneckAdapter]:
    """The gradient of Ad(x) for x, (…, in), and the gradients of the arrays, which sum over all leading axes."""
    x, (D, _, U, _), activation, s, inner, a = cache
    check("adapter.backward", x=(x, "… in"), dy=(dy, "… in"))
    # 3. y = scale · z, z = a U + u
    dz = s * rows(dy)                                                                     # (n, in)
    dU, du, da = a.T @ dz, dz.sum(0), dz @ U.T
    # 2. a = f(h)
    dh = ACTIVATIONS[activation][1](da, inner)                                                # (n, bottleneck)
    # 1. h = x D + d
    dD, dd, dx = rows(x).T @ dh, dh.sum(0), dh @ D.T
    return dx.reshape(x.shape), BottleneckAdapter(dD, dd, dU, du)


def parameter_count(in_features: int, bottleneck: int) -> int:
    """2 · in · bottleneck + bottleneck + in, for one adapter. Raises ValueError unless both are positive integers."""
    for name, size in ("in_features", in_features), ("bottleneck", bottleneck):
        check_size("adapter.parameter_count", name, size)
    return 2 * int(in_features) * int(bottleneck) + int(bottleneck) + int(in_features)


PLACE = "sublayer"  # where an adapter stands in a transformer; places.py says what else is below and who calls it
FROZEN = ()  # the names of arrays that do not train


class Config(NamedTuple):
    """Hyperparameters of a bottleneck adapter at one place of a transformer."""

    bottleneck: int
    activation: str = "relu"
    scale: float = 1.0
    start: str = "near"  # see init


def shapes(config: Config, width: int) -> BottleneckAdapter:
    """The shapes of the arrays. Raises ValueError for a bottleneck that is not a positive integer."""
    m = config.bottleneck
    check_size("adapter.shapes", "bottleneck", m)
    return BottleneckAdapter._make([(width, m), (m,), (m, width), (width,)])


def init_at(rng: np.random.Generator, config: Config, width: int, dtype: DTypeLike = np.float64) -> BottleneckAdapter:
    """What `init` gives for the bottleneck and the start of the configuration."""
    return init(rng, width, config.bottleneck, dtype, config.start)


def _truncated(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """N(0, 0.01²). A number beyond two standard deviations is drawn again."""
    a = rng.standard_normal(shape)
    while (far := np.abs(a) > 2).any():
        a[far] = rng.standard_normal(int(far.sum()))
    return 0.01 * a
