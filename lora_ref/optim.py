"""Gradient descent and AdamW on a dict of arrays. Each array may have its own rate.

    SGD      p ← p − rate · dp
    AdamW    m ← β₁ m + (1 − β₁) dp,   v ← β₂ v + (1 − β₂) dp²
             p ← p − rate · decay · p − rate · (m / (1 − β₁ᵗ)) / (√(v / (1 − β₂ᵗ)) + ε)

Only arrays with a gradient move; the others come back as they are. The rate and the decay are numbers, or dicts with a number
for each name: a decay of 0 for norms and biases, or a larger rate for B (Hayou et al., "LoRA+", 2024).

Sources: Kingma and Ba, "Adam", 2015, algorithm 1; Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019,
algorithm 2, with the decay multiplied by the rate, as PyTorch has it. Left out: momentum of SGD, AMSGrad, clipping.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from lora_ref.shapes import check, finite

Arrays = dict[str, np.ndarray]
Rate = float | Mapping[str, float]


class State(NamedTuple):
    """The moments of AdamW, together twice the size of what trains."""

    m: Arrays
    v: Arrays
    t: int  # steps taken


def sgd(p: Mapping[str, np.ndarray], dp: Mapping[str, np.ndarray], rate: Rate) -> Arrays:
    """The arrays after one step.

    Raises ValueError for a gradient without an array, a gradient of another shape or dtype, and a rate that is missing or is
    not a finite number.
    """
    _check("optim.sgd", p, dp, rate=rate)
    return {name: a - _of(rate, name) * dp[name] if name in dp else a for name, a in p.items()}


def adamw_init(p: Mapping[str, np.ndarray]) -> State:
    """Zeros, for the arrays that are to train."""
    return State({name: np.zeros_like(a) for name, a in p.items()}, {name: np.zeros_like(a) for name, a in p.items()}, 0)


def adamw(
    p: Mapping[str, np.ndarray], dp: Mapping[str, np.ndarray], state: State, rate: Rate,
    betas: tuple[float, float] = (0.9, 0.999), epsilon: float = 1e-8, decay: Rate = 0.01,
) -> tuple[Arrays, State]:
    """The arrays and the state after one step. No argument is changed.

    Raises ValueError for a gradient without an array or unknown to the state, a gradient of another shape or dtype, and a
    rate or decay that is missing or is not a finite number.
    """
    _check("optim.adamw", p, dp, rate=rate, decay=decay)
    stray = [name for name in dp if name not in state.m]
    if stray:
        raise ValueError(f"optim.adamw: dp has {stray[0]!r}, expected names that adamw_init was given: {', '.join(state.m)}")
    t, b1, b2, epsilon = state.t + 1, float(betas[0]), float(betas[1]), float(epsilon)
    new, m, v = dict(p), dict(state.m), dict(state.v)
    for name, d in dp.items():
        a, lr, wd = p[name], _of(rate, name), _of(decay, name)
        # 1. m and v
        m[name] = b1 * m[name] + (1 - b1) * d
        v[name] = b2 * v[name] + (1 - b2) * d * d
        # 2. p, with the decay beside the gradient and not in it
        step = (m[name] / (1 - b1**t)) / (np.sqrt(v[name] / (1 - b2**t)) + epsilon)
        new[name] = a - lr * wd * a - lr * step
    return new, State(m, v, t)


def _of(rate: Rate, name: str) -> float:
    """The rate of one array, as a float, which leaves the dtype of the array as it is."""
    return float(rate[name] if isinstance(rate, Mapping) else rate)


def _check(where: str, p: Mapping[str, np.ndarray], dp: Mapping[str, np.ndarray], **rates: Rate) -> None:
    for name, d in dp.items():
        if name not in p:
            raise ValueError(f"{where}: dp has {name!r}, expected one of {', '.join(p)} because a gradient moves an array of p")
        check(where, **{f"p[{name!r}]": (p[name], "…"), f"dp[{name!r}]": (d, "…")})
        for which, rate in rates.items():
            if isinstance(rate, Mapping) and name not in rate:
                raise ValueError(f"{where}: {which} has no {name!r}, expected a number for each gradient, or one for all")
            finite(where, which, rate[name] if isinstance(rate, Mapping) else rate)
