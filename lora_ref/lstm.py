"""An LSTM of one layer along the rows of a matrix, for the prompt encoder of `ptuning.py`.

    [i f g o] = x Wᵀ + h₋₁ Uᵀ + b,   c = σ(f) c₋₁ + σ(i) tanh(g),   h = σ(o) tanh(c)

    x (n, e)   W (4 hidden, e)   U (4 hidden, hidden)   b (4 hidden)   h (n, hidden); gates in PyTorch's order i f g o

h₋₁ and c₋₁ are h and c of the row before, zero at the first row. Source: Hochreiter and Schmidhuber, "Long Short-Term Memory",
1997, with the forget gate of Gers et al. 2000.
"""

from typing import NamedTuple

import numpy as np

from lora_ref.ops import sigmoid


class Cache(NamedTuple):
    """What backward needs."""

    x: np.ndarray
    W: np.ndarray
    U: np.ndarray
    steps: list[tuple]  # for each row: h₋₁, c₋₁, σ(i), σ(f), tanh(g), σ(o), c


def forward(x: np.ndarray, W: np.ndarray, U: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, Cache]:
    """h (n, hidden) and the cache."""
    h = c = np.zeros_like(x, shape=U.shape[1])
    rows, steps = [], []
    for row in x:
        # 1. [i f g o] = x Wᵀ + h₋₁ Uᵀ + b
        i, f, g, o = np.split(W @ row + U @ h + b, 4)
        i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
        before = h, c
        # 2. c = f c₋₁ + i g
        c = f * c + i * g
        # 3. h = o tanh(c)
        h = o * np.tanh(c)
        rows.append(h)
        steps.append((*before, i, f, g, o, c))
    return np.stack(rows), Cache(x, W, U, steps)


def backward(dout: np.ndarray, cache: Cache) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """dx, dW, dU and db for dout (n, hidden), the gradient of h. It goes along the rows from the last to the first."""
    x, W, U, steps = cache
    dx, dW, dU, db = np.zeros_like(x), np.zeros_like(W), np.zeros_like(U), np.zeros_like(W[:, 0])
    dh, dc = np.zeros_like(dout[0]), np.zeros_like(dout[0])  # what the row after sends back
    for t in reversed(range(len(x))):
        h_before, c_before, i, f, g, o, c = steps[t]
        # 3. h = o tanh(c)
        dh = dh + dout[t]
        do = dh * np.tanh(c)
        dc = dc + dh * o * (1 - np.tanh(c) ** 2)
        # 2. c = f c₋₁ + i g
        di, df, dg = dc * g, dc * c_before, dc * i
        dc = dc * f
        # 1. [i f g o] = x Wᵀ + h₋₁ Uᵀ + b, each gate through its σ or tanh
        du = np.concatenate([di * i * (1 - i), df * f * (1 - f), dg * (1 - g * g), do * o * (1 - o)])
        dx[t], dh = du @ W, du @ U
        dW, dU, db = dW + np.outer(du, x[t]), dU + np.outer(du, h_before), db + du
    return dx, dW, dU, db
