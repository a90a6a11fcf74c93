"""Operations on NumPy arrays that remember their way back: what the honest model is made of.

    y = f(a, b, …)        da = rule_a(dy),  db = rule_b(dy), …        each rule written by hand, beside its operation

The gradients of a node are added up before they go further down. An array that does not train gets none.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

EPSILON = 1e-5  # of a norm
Rule = Callable[[np.ndarray], np.ndarray]  # dy → the gradient for one of the operands of y


class Node:
    """An array, whether it wants a gradient, and what has arrived of that."""

    __slots__ = ("array", "wanted", "gradient")

    def __init__(self, array: np.ndarray, wanted: bool = False):
        self.array, self.wanted = array, wanted
        self.gradient: np.ndarray | None = None

    def take(self, gradient: np.ndarray) -> None:
        self.gradient = gradient if self.gradient is None else self.gradient + gradient


class Tape:
    """Every operation computes its result at once, and notes how a gradient of the result is handed to the operands."""

    def begin(self) -> None:
        """Forget what was done."""
        self.done: list[tuple[Node, list[tuple[Node, Rule]]]] = []

    def made(self, array: np.ndarray, *ways: tuple[Node, Rule]) -> Node:
        """The node of a result, and a rule for each operand that may want a gradient."""
        taken = [way for way in ways if way[0].wanted]
        node = Node(array, bool(taken))
        if taken:
            self.done.append((node, taken))
        return node

    def go_back(self, last: Node, gradient: np.ndarray) -> None:
        """From the last operation to the first. Afterwards the leaves have their gradients."""
        last.take(gradient)
        for node, ways in reversed(self.done):
            if node.gradient is not None:
                for operand, rule in ways:
                    operand.take(rule(node.gradient))
                node.gradient = None

    def detached(self, a: Node) -> Node:
        """The same array, which no gradient passes."""
        return Node(a.array)

    # --- sums and products --------------------------------------------------------------------------------------

    def product(self, x: Node, W: Node) -> Node:
        """x Wᵀ of x (…, in) and W (out, in)."""
        return self.made(x.array @ W.array.T, (x, lambda d: d @ W.array), (W, lambda d: rows(d).T @ rows(x.array)))

    def matmul(self, a: Node, b: Node) -> Node:
        """Matrix by matrix, over leading axes that both have."""
        return self.made(a.array @ b.array, (a, lambda d: d @ b.array.swapaxes(-1, -2)),
                         (b, lambda d: a.array.swapaxes(-1, -2) @ d))

    def plus(self, a: Node, b: Node) -> Node:
        """b may lack leading axes of a: it is then added everywhere along them."""
        missing = tuple(range(a.array.ndim - b.array.ndim))
        return self.made(a.array + b.array, (a, lambda d: d), (b, lambda d: d.sum(missing) if missing else d))

    def times(self, a: Node, b: Node) -> Node:
        return self.made(a.array * b.array, (a, lambda d: d * b.array), (b, lambda d: d * a.array))

    def scaled(self, a: Node, factor: float) -> Node:
        return self.made(a.array * factor, (a, lambda d: d * factor))

    # --- places -------------------------------------------------------------------------------------------------

    def transposed(self, a: Node) -> Node:
        """With the last two axes exchanged."""
        return self.made(a.array.swapaxes(-1, -2), (a, lambda d: d.swapaxes(-1, -2)))

    def part(self, a: Node, index: Any) -> Node:
        """a[index], where the index takes no number twice."""
        def back(d: np.ndarray) -> np.ndarray:
            whole = np.zeros_like(a.array)
            whole[index] = d
            return whole

        return self.made(a.array[index], (a, back))

    def looked_up(self, table: Node, index: np.ndarray) -> Node:
        """Rows of a table, some of them more than once."""
        def back(d: np.ndarray) -> np.ndarray:
            whole = np.zeros_like(table.array)
            np.add.at(whole, index, d)
            return whole

        return self.made(table.array[index], (table, back))

    def joined(self, parts: Sequence[Node], axis: int) -> Node:
        """One behind the other along an axis, counted from the last: −1 or −2."""
        ends = np.cumsum([part.array.shape[axis] for part in parts])
        own = [slice(end - part.array.shape[axis], end) for part, end in zip(parts, ends, strict=True)]
        rest = (slice(None),) * (-1 - axis)
        ways = [(part, lambda d, at=at: d[(..., at, *rest)]) for part, at in zip(parts, own, strict=True)]
        return self.made(np.concatenate([part.array for part in parts], axis), *ways)

    def for_each_sample(self, a: Node, samples: int) -> Node:
        """The same array for every sample; the gradient is the sum over them."""
        return self.made(np.broadcast_to(a.array, (samples, *a.array.shape)), (a, lambda d: d.sum(0)))

    def split_into_heads(self, a: Node, heads: int, each: int) -> Node:
        """(n, T, heads · size) → (n, heads · each, T, size), where every head is there `each` times."""
        n, T, width = a.array.shape
        split = a.array.reshape(n, T, heads, width // heads).swapaxes(1, 2)

        def back(d: np.ndarray) -> np.ndarray:
            d = d.reshape(n, heads, each, T, width // heads).sum(2) if each > 1 else d
            return d.swapaxes(1, 2).reshape(n, T, width)

        return self.made(np.repeat(split, each, 1) if each > 1 else split, (a, back))

    def heads_together(self, a: Node) -> Node:
        """(n, heads, T, size) → (n, T, heads · size)."""
        n, heads, T, size = a.array.shape
        return self.made(a.array.swapaxes(1, 2).reshape(n, T, heads * size),
                         (a, lambda d: d.reshape(n, T, heads, size).swapaxes(1, 2)))

    # --- functions ----------------------------------------------------------------------------------------------

    def bent(self, a: Node, function: str) -> Node:
        """A function of each number alone."""
        y, slope = FUNCTIONS[function](a.array)
        return self.made(y, (a, lambda d: d * slope))

    def softmax(self, s: Node, seen: np.ndarray) -> Node:
        """Shares of what is seen, which add up to 1; what is not seen has the share 0."""
        top = np.where(seen, s.array, -np.inf).max(-1, keepdims=True)
        e = np.where(seen, np.exp(np.minimum(s.array - top, 0)), 0)
        p = e / e.sum(-1, keepdims=True)
        return self.made(p, (s, lambda d: p * (d - (p * d).sum(-1, keepdims=True))))

    def normed(self, x: Node, w: Node, b: Node | None, centred: bool) -> Node:
        """LayerNorm, or without centring RMSNorm: (x − mean) / √(mean square + ε) · w + b."""
        mean, square = self.moments(x.array, centred)
        size = self.size_of(square)
        n = (x.array - mean) / size

        def back(d: np.ndarray) -> np.ndarray:
            dn = d * w.array
            along = n * (dn * n).mean(-1, keepdims=True)
            return (dn - along - (dn.mean(-1, keepdims=True) if centred else 0)) / size

        y = self.made(n * w.array, (x, back), (w, lambda d: rows(d * n).sum(0)))
        return y if b is None else self.plus(y, b)

    def moments(self, x: np.ndarray, centred: bool) -> tuple[np.ndarray | float, np.ndarray]:
        """The mean that is taken away, and the mean square of what is left."""
        mean = x.mean(-1, keepdims=True) if centred else 0.0
        return mean, np.square(x - mean).mean(-1, keepdims=True)

    def size_of(self, square: np.ndarray) -> np.ndarray:
        """What a norm divides by."""
        return np.sqrt(square + EPSILON)


def rows(a: np.ndarray) -> np.ndarray:
    """(…, k) → (n, k)."""
    return a.reshape(-1, a.shape[-1])


def relu(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    positive = x > 0
    return np.where(positive, x, 0), positive


def tanh(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    t = np.tanh(x)
    return t, 1 - t * t


def sigmoid(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    s = (1 + np.tanh(x / 2)) / 2
    return s, s * (1 - s)


def silu(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x σ(x), and (x σ)′ = σ + x σ′."""
    s, slope = sigmoid(x)
    return x * s, s + x * slope


def gelu(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x (1 + tanh u) / 2 with u = √(2/π) (x + 0.044715 x³)."""
    root = (2 / np.pi) ** 0.5
    t, slope = tanh(root * (x + 0.044715 * x * x * x))
    return x * (1 + t) / 2, (1 + t) / 2 + x / 2 * slope * (root * (1 + 3 * 0.044715 * x * x))


# A function → what gives its value and its slope.
FUNCTIONS: dict[str, Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]] = {
    "relu": relu, "tanh": tanh, "sigmoid": sigmoid, "silu": silu, "gelu": gelu,
}
