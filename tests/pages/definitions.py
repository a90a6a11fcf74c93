"""What the values of both pages are made of: definitions by loops and other forms, analytic as written, and their slopes."""

from collections.abc import Callable
from typing import Any

import numpy as np
from pages.equations import product

from lora_ref.error.gradcheck import complex_step

Names = dict[str, Any]
SECTIONS: dict[tuple[str, str], Callable[[str], Names]] = {}  # (page, title) → the values of its names, for a condition
EPSILON = 0.125  # of the norms: so large that its place is seen


def section(page: str, title: str) -> Callable:
    def add(values: Callable[[str], Names]) -> Callable[[str], Names]:
        SECTIONS[page, title] = values
        return values

    return add


def sigma(x: Any) -> Any:
    return np.exp(x) / (1 + np.exp(x))


def relu(x: Any) -> Any:
    return (x + np.sqrt(x * x)) / 2


def shares(s: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Softmax of each row over the places that are seen: one over what all others are beside it."""
    p = np.zeros_like(s)
    for i, j in np.argwhere(seen):
        p[i, j] = 1 / sum(np.exp(s[i, k] - s[i, j]) for k in np.flatnonzero(seen[i]))
    return p


def scores(q: np.ndarray, K: np.ndarray) -> np.ndarray:
    return product(q, K.T) / q.shape[1] ** 0.5


def attend(q: np.ndarray, K: np.ndarray, V: np.ndarray, seen: np.ndarray) -> np.ndarray:
    return product(shares(scores(q, K), seen), V)


def causal(T: int, length: int = 0) -> np.ndarray:
    return np.array([[j <= length + i for j in range(length + T)] for i in range(T)])


def normed(x: np.ndarray, centred: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rows, each over its size, with their means and sizes; the variance as mean square less squared mean."""
    means, sizes, n = [], [], []
    for row in x:
        mean = sum(row) / len(row) if centred else 0 * row[0]
        size = np.sqrt(sum(v * v for v in row) / len(row) - mean * mean + EPSILON)
        means += [mean]
        sizes += [size]
        n += [[(v - mean) / size for v in row]]
    return np.array(n), np.array(means), np.array(sizes)


def jacobian(f: Callable, x: np.ndarray) -> np.ndarray:
    """∂f/∂x, of the shape of f and then that of x."""
    units = np.eye(np.size(f(x))).reshape(-1, *np.shape(f(x)))
    return np.stack([complex_step(f, (x,), unit)[0] for unit in units]).reshape(np.shape(f(x)) + x.shape)


def slopes(f: Callable, x: np.ndarray) -> np.ndarray:
    """The derivative of a function that works on each number alone."""
    return complex_step(f, (x,), np.ones_like(x))[0]


def rows_alone(J: np.ndarray) -> np.ndarray:
    """From ∂f[t,…]/∂x[u,j], where u is t."""
    return np.stack([J[t].take(t, axis=-2) for t in range(len(J))])
