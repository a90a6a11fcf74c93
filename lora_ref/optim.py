"""Gradient descent and AdamW on a dict of arrays, with a rate of its own for any of them.

    SGD      p ← p − rate · dp
    AdamW    m ← β₁ m + (1 − β₁) dp,   v ← β₂ v + (1 − β₂) dp²
             p ← p − rate · decay · p − rate · (m / (1 − β₁ᵗ)) / (√(v / (1 − β₂ᵗ)) + ε)

Only arrays with a gradient move; the others are given back as they are. Rate and decay are numbers, or dicts that hold one
for each name: decay 0 for norms and biases, say, or a larger rate for B (Hayou et al., "LoRA+", 2024). Sources: Kingma and
Ba, "Adam", 2015, algorithm 1; Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019, algorithm 2, with the
decay multiplied by the rate, as PyTorch has it. Left out: momentum of SGD, AMSGrad, clipping.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

Arrays = dict[str, np.ndarray]
Rate = float | Mapping[str, float]


class State(NamedTuple):
    """AdamW's memory: twice the size of what trains."""

    m: Arrays
    v: Arrays
    t: int  # steps taken


def sgd(p: Mapping[str, np.ndarray], dp: Mapping[str, np.ndarray], rate: Rate) -> Arrays:
    """The arrays after a step. Raises ValueError for a gradient of no array, or of another shape, and a missing rate."""
    _check("optim.sgd", p, dp, rate=rate)
    return {name: a - _of(rate, name, a) * dp[name] if name in dp else a for name, a in p.items()}


def adamw_init(p: Mapping[str, np.ndarray]) -> State:
    """Zeros, for the arrays that are to train."""
    return State({name: np.zeros_like(a) for name, a in p.items()}, {name: np.zeros_like(a) for name, a in p.items()}, 0)


def adamw(
    p: Mapping[str, np.ndarray], dp: Mapping[str, np.ndarray], state: State, rate: Rate,
    betas: tuple[float, float] = (0.9, 0.999), epsilon: float = 1e-8, decay: Rate = 0.01,
) -> tuple[Arrays, State]:
    """The arrays and the state after a step; the arguments are not changed.

    Raises ValueError for a gradient of no array, or of another shape or unknown to the state, and a missing rate or decay.
    """
    _check("optim.adamw", p, dp, rate=rate, decay=decay)
    stray = [name for name in dp if name not in state.m]
    if stray:
        raise ValueError(f"optim.adamw: dp has {stray[0]!r}, expected names that adamw_init was given: {', '.join(state.m)}")
    t, (b1, b2) = state.t + 1, betas
    new, m_new, v_new = dict(p), dict(state.m), dict(state.v)
    for name, d in dp.items():
        a, kind = p[name], d.dtype.type
        # 1. m and v
        m = kind(b1) * state.m[name] + kind(1 - b1) * d
        v = kind(b2) * state.v[name] + kind(1 - b2) * d * d
        # 2. p, decayed beside the gradient and not through it
        step = m / (np.sqrt(v / kind(1 - b2**t)) + kind(epsilon))
        step *= kind(-1 / (1 - b1**t)) * _of(rate, name, a)
        step += (1 - _of(rate, name, a) * _of(decay, name, a)) * a
        new[name], m_new[name], v_new[name] = step, m, v
    return new, State(m_new, v_new, t)


def _of(rate: Rate, name: str, a: np.ndarray) -> np.number:
    return a.dtype.type(rate[name] if isinstance(rate, Mapping) else rate)


def _check(where: str, p: Mapping[str, np.ndarray], dp: Mapping[str, np.ndarray], **rates: Rate) -> None:
    for name, d in dp.items():
        if name not in p or d.shape != p[name].shape:
            got = f"no array {name!r}" if name not in p else f"{name} of {p[name].shape}"
            raise ValueError(f"{where}: dp has {name} of {d.shape}, expected an array's name and shape, but p has {got}")
        for which, rate in rates.items():
            if isinstance(rate, Mapping) and name not in rate:
                raise ValueError(f"{where}: {which} has no {name!r}, expected a number for each gradient, or one for all")
