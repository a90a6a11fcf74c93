"""The frozen layer that every method adapts.

    y = x Wᵀ + b        x (…, in), W (out, in), b (out), y (…, out)

W and b are frozen, so `backward` gives dx alone.
"""

from typing import NamedTuple

import numpy as np

from lora_ref.shapes import check, rows


class Cache(NamedTuple):
    """What backward needs: W itself, not a copy."""

    W: np.ndarray  # (out, in)


def forward(x: np.ndarray, W: np.ndarray, b: np.ndarray | None) -> tuple[np.ndarray, Cache]:
    """y (…, out) and the cache; b may be None. Raises ValueError for a wrong shape or dtype."""
    check("linear.forward", x=(x, "… in"), W=(W, "out in"), b=(b, "out or None"))
    y = rows(x) @ W.T                                                                         # (n, out)
    if b is not None:
        y += b
    return y.reshape(*x.shape[:-1], len(W)), Cache(W)


def backward(dy: np.ndarray, cache: Cache) -> np.ndarray:
    """dx (…, in) for dy (…, out). Raises ValueError for a wrong shape or dtype."""
    W = cache.W
    check("linear.backward", W=(W, "out in"), dy=(dy, "… out"))
    # y = x Wᵀ + b
    dx = rows(dy) @ W                                                                         # (n, in)
    return dx.reshape(*dy.shape[:-1], W.shape[1])
