"""derivations/transformer.md and methods.md are executed: each numbered equation holds to rounding, and no spoiled one does.

A section of a page has its values here, by its title: names for random arrays, and for what loops, other forms of the same
function and the complex step make of them. No formula of the pages is used to find them.
"""

import ast
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from lora_ref import adapter, prefix, ptuning
from lora_ref.gradcheck import complex_step, relative_error
from tests.lora_ref.equations import (
    Equation,
    check_numbers,
    equations,
    name_of,
    product,
    python_of,
    sides,
    stated_shape,
    sums,
)

GRADIENT_ERROR = 1e-12  # the figure of the issue: every gradient agrees with the complex step to this, relatively

PAGES = ("transformer", "methods")
EQUATIONS = [equation for page in PAGES for equation in equations(page)]
Names = dict[str, Any]
SECTIONS: dict[tuple[str, str], Callable[[str], Names]] = {}
FUNCTIONS = {"exp": np.exp, "log": np.log, "tanh": np.tanh, "sqrt": np.sqrt, "abs": np.abs, "π": np.pi}
EPSILON = 0.125  # of the norms: so large that its place is seen


def section(page: str, title: str) -> Callable:
    def add(values: Callable[[str], Names]) -> Callable[[str], Names]:
        SECTIONS[page, title] = values
        return values

    return add


@functools.cache
def names_of(page: str, title: str, condition: str) -> Names:
    return FUNCTIONS | {"σ": sigma} | SECTIONS[page, title](condition)


# Definitions, by loops, analytic as written


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


# transformer.md


@section("transformer", "Softmax")
def _(_: str) -> Names:
    s, dp = np.random.default_rng(1).standard_normal((2, 5))

    def f(s: np.ndarray) -> np.ndarray:
        return shares(s[None], np.ones((1, 5), bool))[0]

    (ds,) = complex_step(f, (s,), dp)
    return sums({"i": 5, "j": 5}) | {
        "places": 5, "s": s, "p": f(s), "top": s.max(), "J": jacobian(f, s), "same": np.eye(5), "dp": dp, "ds": ds,
    }  # fmt: skip


@section("transformer", "Cross-entropy: p − onehot")
def _(_: str) -> Names:
    logits, targets, counted = np.random.default_rng(2).standard_normal((4, 5)), [2, 0, 4, 2], [1, 1, 0, 1]
    every = np.ones((4, 5), bool)

    def each(logits: np.ndarray) -> np.ndarray:
        return -np.log(shares(logits, every)[range(4), targets])

    def loss(logits: np.ndarray) -> Any:
        return sum(term for term, counts in zip(each(logits), counted, strict=True) if counts) / 3

    return sums({"n": 4, "v": 5, "u": 5}) | {
        "n": 4, "vocabulary": 5, "logits": logits, "p": shares(logits, every), "onehot": np.eye(5)[targets],
        "counted": np.array(counted), "count": 3, "each": each(logits), "loss": loss(logits),
        "J": rows_alone(jacobian(each, logits)), "dlogits": complex_step(loss, (logits,), np.ones(()))[0],
    }  # fmt: skip


def norm_values(centred: bool) -> Names:
    rng = np.random.default_rng(3)
    (x, dy), (w, b) = rng.standard_normal((2, 3, 4)), rng.standard_normal((2, 4))

    def y(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.array([[v * w[i] + b[i] for i, v in enumerate(row)] for row in normed(x, centred)[0]])

    b = b if centred else 0 * b
    n, mean, size = normed(x, centred)
    dx, dw, db = complex_step(y, (x, w, b), dy)
    return sums({"i": 4, "t": 3}) | {
        "rows": 3, "width": 4, "ε": EPSILON, "x": x, "w": w, "b": b, "dy": dy, "mean": mean, "inverse": 1 / size, "n": n,
        "y": y(x, w, b), "dx": dx, "dw": dw, "db": db, "same": np.eye(4),
        "dn": complex_step(lambda n: n * w + b, (n,), dy)[0],
        "slope": rows_alone(jacobian(lambda x: 1 / normed(x, centred)[2], x)),
        "J": rows_alone(jacobian(lambda x: normed(x, centred)[0], x)),
        "square": np.array([sum(v * v for v in row) / 4 for row in n]), "along": (dx * n) @ np.ones(4),
    }  # fmt: skip


@section("transformer", "LayerNorm")
def _(_: str) -> Names:
    return norm_values(True)


@section("transformer", "RMSNorm")
def _(_: str) -> Names:
    return norm_values(False)


@section("transformer", "SiLU, and a gate")
def _(_: str) -> Names:
    x, dy, gate, up, da = np.random.default_rng(4).standard_normal((5, 4))
    dgate, dup = complex_step(lambda gate, up: gate * sigma(gate) * up, (gate, up), da)
    return {
        "width": 4, "x": x, "y": x * sigma(x), "dy": dy, "sigma": sigma(x), "slope": slopes(sigma, x),
        "dx": complex_step(lambda x: x * sigma(x), (x,), dy)[0],
        "gate": gate, "up": up, "a": gate * sigma(gate) * up, "da": da, "dgate": dgate, "dup": dup,
    }  # fmt: skip


@section("transformer", "GELU")
def _(_: str) -> Names:
    x, dy = np.random.default_rng(5).standard_normal((2, 4))

    def u(x: np.ndarray) -> np.ndarray:
        return x * (1 + 0.044715 * x * x) / (np.pi / 2) ** 0.5

    def y(x: np.ndarray) -> np.ndarray:
        return x * sigma(2 * u(x))  # (1 + tanh u) / 2 is σ(2 u)

    return {
        "width": 4, "x": x, "u": u(x), "t": 2 * sigma(2 * u(x)) - 1, "y": y(x), "dy": dy, "slope": slopes(u, x),
        "J": slopes(lambda x: 2 * sigma(2 * u(x)) - 1, x), "dx": complex_step(y, (x,), dy)[0],
    }  # fmt: skip


@section("transformer", "Attention")
def _(_: str) -> Names:
    T, length, size = 3, 2, 4
    rng = np.random.default_rng(6)
    (q, k, v, dy), (P_k, P_v) = rng.standard_normal((4, T, size)), rng.standard_normal((2, length, size))
    seen, K, V = causal(T, length), np.concatenate([P_k, k]), np.concatenate([P_v, v])
    s = scores(q, K)
    dq, dK, dV = complex_step(lambda q, K, V: attend(q, K, V, seen), (q, K, V), dy)
    dP_k, dk, dP_v, dv = complex_step(
        lambda P_k, k, P_v, v: attend(q, np.concatenate([P_k, k]), np.concatenate([P_v, v]), seen), (P_k, k, P_v, v), dy
    )
    return sums({"i": T, "j": length + T, "k": length + T, "e": size}) | {
        "T": T, "length": length, "size": size, "q": q, "K": K, "V": V, "dy": dy, "hidden": np.where(seen, 0, -np.inf),
        "s": s, "p": shares(s, seen), "y": attend(q, K, V, seen), "dq": dq, "dK": dK, "dV": dV,
        "dp": complex_step(lambda p: product(p, V), (shares(s, seen),), dy)[0],
        "ds": complex_step(lambda s: product(shares(s, seen), V), (s,), dy)[0],
        "dP_k": dP_k, "dk": dk, "dP_v": dP_v, "dv": dv,
    }  # fmt: skip


@section("transformer", "Groups")
def _(_: str) -> Names:
    T, size, groups, each = 3, 4, 2, 3
    rng = np.random.default_rng(7)
    (q, dy), (k, v) = rng.standard_normal((2, groups * each, T, size)), rng.standard_normal((2, groups, T, size))
    seen, of = causal(T), [0, 0, 0, 1, 1, 1]

    def y(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        return np.stack([attend(q[h], k[g], v[g], seen) for h, g in enumerate(of)])

    def from_scores(s: np.ndarray) -> np.ndarray:
        return np.stack([product(shares(s[h], seen), v[g]) for h, g in enumerate(of)])

    s = np.stack([scores(q[h], k[g]) for h, g in enumerate(of)])
    dq, dk, dv = complex_step(y, (q, k, v), dy)
    return sums({"i": T, "j": T, "e": size, "a": each}) | {
        "T": T, "size": size, "heads": groups * each, "groups": groups, "each": each, "q": q, "k": k, "v": v, "dy": dy,
        "s": s, "p": np.stack([shares(of_head, seen) for of_head in s]), "y": y(q, k, v),
        "ds": complex_step(from_scores, (s,), dy)[0], "dq": dq, "dk": dk, "dv": dv,
    }  # fmt: skip


@section("transformer", "The bias of the keys")
def _(condition: str) -> Names:
    T, length, size = 3, {"": 2, "length = 0": 0}[condition], 4
    rng = np.random.default_rng(8)
    (raw_q, raw_k, v, dy), (b_q, b_k) = rng.standard_normal((4, T, size)), rng.standard_normal((2, size))
    P_k, P_v = rng.standard_normal((2, length, size))
    seen, V = causal(T, length), np.concatenate([P_v, v])

    def y(b_q: np.ndarray, b_k: np.ndarray) -> np.ndarray:
        return attend(raw_q + b_q, np.concatenate([P_k, raw_k + b_k]), V, seen)

    q, k = raw_q + b_q, raw_k + b_k
    dq, dk = complex_step(lambda q, k: attend(q, np.concatenate([P_k, k]), V, seen), (q, k), dy)
    db_q, db_k = complex_step(y, (b_q, b_k), dy)
    return sums({"i": T, "t": T, "e": size, "m": length}) | {
        "T": T, "length": length, "size": size, "q": q, "b_k": b_k, "y": y(b_q, b_k), "without": y(b_q, 0 * b_k),
        "change": scores(q, k) - scores(q, raw_k), "dq": dq, "dk": dk, "db_q": db_q, "db_k": db_k,
        "ds": complex_step(lambda s: product(shares(s, seen), V), (scores(q, np.concatenate([P_k, k])),), dy)[0],
    }  # fmt: skip


@section("transformer", "Where paths meet, gradients add")
def _(_: str) -> Names:
    T, out, width = 3, 5, 4
    rng = np.random.default_rng(9)
    (first, second), (x, dz) = rng.standard_normal((2, width, width)), rng.standard_normal((2, width))
    u, dy = rng.standard_normal((T, width)), rng.standard_normal((T, out))
    W_q, W_k, W_v = rng.standard_normal((3, out, width))

    def a(x: np.ndarray) -> np.ndarray:
        return np.tanh(product(x[None], first)[0])

    def m(y: np.ndarray) -> np.ndarray:
        return np.tanh(product(y[None], second)[0])

    def attention(u: np.ndarray, W_q: np.ndarray) -> np.ndarray:
        return attend(product(u, W_q.T), product(u, W_k.T), product(u, W_v.T), causal(T))

    y = x + a(x)
    dq, dk, dv = complex_step(
        lambda q, k, v: attend(q, k, v, causal(T)), [product(u, W.T) for W in (W_q, W_k, W_v)], dy)
    du, dW_q = complex_step(attention, (u, W_q), dy)
    return {
        "T": T, "out": out, "width": width, "dz": dz, "A": jacobian(a, x), "M": jacobian(m, y),
        "dy": complex_step(lambda y: y + m(y), (y,), dz)[0], "dx": complex_step(lambda x: x + a(x) + m(x + a(x)), (x,), dz)[0],
        "u": u, "W_q": W_q, "W_k": W_k, "W_v": W_v, "dq": dq, "dk": dk, "dv": dv, "du": du, "dW_q": dW_q,
    }  # fmt: skip


@section("transformer", "Embedding, and a tied head")
def _(_: str) -> Names:
    n, T, vocabulary, width = 2, 3, 5, 4
    rng = np.random.default_rng(10)
    E, places, tokens = rng.standard_normal((vocabulary, width)), rng.standard_normal((T, width)), [[1, 4, 1], [4, 0, 3]]
    dlogits = rng.standard_normal((n, T, vocabulary))

    def layers(h: np.ndarray) -> np.ndarray:
        return np.tanh(h + 0.5 * h[:, :1])  # something in which tokens see one another

    def head(y: np.ndarray, E: np.ndarray) -> np.ndarray:
        return np.stack([product(rows, E.T) for rows in y])

    def embedded(E: np.ndarray, places: np.ndarray) -> np.ndarray:
        return np.array([[[E[v, i] + places[t, i] for i in range(width)] for t, v in enumerate(row)] for row in tokens])

    h = embedded(E, places)
    first, last, dplaces = complex_step(
        lambda E, F, places: head(layers(embedded(E, places)), F), (E, E, places), dlogits)
    return sums({"n": n, "t": T, "i": width}) | {
        "n": n, "T": T, "vocabulary": vocabulary, "width": width, "tokens": np.array(tokens), "E": E, "places": places,
        "here": np.array([[[token == v for v in range(vocabulary)] for token in row] for row in tokens]),
        "h": h, "y": layers(h), "logits": head(layers(h), E), "dlogits": dlogits, "first": first, "last": last,
        "dh": complex_step(lambda h: head(layers(h), E), (h,), dlogits)[0], "dplaces": dplaces,
        "dE": complex_step(lambda E: head(layers(embedded(E, places)), E), (E,), dlogits)[0],
    }  # fmt: skip


# methods.md


def adapter_values(condition: str) -> Names:
    n, n_in, bottleneck, scale = 3, 4, 2, 1.5
    conditions = [] if not condition else condition.split(" and ")
    assert set(conditions) <= {"f = relu", "f = identity", "U = 0", "d = 0"}
    f = relu if "f = relu" in conditions else (lambda h: h) if "f = identity" in conditions else lambda h: h * sigma(h)
    rng = np.random.default_rng(11)
    (x, dy), D, d = rng.standard_normal((2, n, n_in)), rng.standard_normal((n_in, bottleneck)), rng.standard_normal(bottleneck)
    U, u, G = rng.standard_normal((bottleneck, n_in)), rng.standard_normal(n_in), rng.standard_normal((n_in, n_in))
    d, U, u = d * ("d = 0" not in conditions), U * ("U = 0" not in conditions), u * ("U = 0" not in conditions)

    def up(h: np.ndarray) -> np.ndarray:
        return scale * product(f(h), U) + scale * u

    def y(x: np.ndarray, D: np.ndarray = D, d: np.ndarray = d, U: np.ndarray = U, u: np.ndarray = u) -> np.ndarray:
        a = [[f(sum(row[i] * D[i, m] for i in range(n_in)) + d[m]) for m in range(bottleneck)] for row in x]
        return np.array([[scale * (sum(v * U[m, o] for m, v in enumerate(row)) + u[o]) for o in range(n_in)] for row in a])

    h = product(x, D) + d
    dx, dD, dd, dU, du = complex_step(y, (x, D, d, U, u), dy)
    return sums({"n": n, "m": bottleneck}) | {
        "n": n, "n_in": n_in, "bottleneck": bottleneck, "scale": scale, "f": f, "x": x, "D": D, "d": d, "U": U, "u": u, "G": G,
        "h": h, "a": f(h), "slope": slopes(f, h), "positive": h > 0, "y": y(x), "dy": dy, "dz": dy,
        "dx": dx, "dD": dD, "dd": dd, "dU": dU, "du": du,
        "da": complex_step(lambda a: scale * product(a, U) + scale * u, (f(h),), dy)[0], "dh": complex_step(up, (h,), dy)[0],
        "behind": complex_step(lambda x: x + y(x), (x,), dy)[0],
        "beside": complex_step(lambda x: product(x, G.T) + y(x), (x,), dy)[0],
        "bend": y(x) + y(-x) - 2 * y(0 * x), "J": rows_alone(jacobian(y, x)).swapaxes(1, 2),
    }  # fmt: skip


section("methods", "A bottleneck adapter")(adapter_values)
section("methods", "Why it cannot be merged")(adapter_values)


@section("methods", "A prefix: the gradient sums over the batch")
def _(_: str) -> Names:
    n, T, length, size = 2, 3, 2, 4
    rng = np.random.default_rng(12)
    (q, k, v, dy), (P_k, P_v) = rng.standard_normal((4, n, T, size)), rng.standard_normal((2, length, size))
    seen = causal(T, length)
    K, V = (np.stack([np.concatenate([P, rows]) for rows in tokens]) for P, tokens in ((P_k, k), (P_v, v)))
    s = np.stack([scores(*pair) for pair in zip(q, K, strict=True)])

    def copies(K: np.ndarray, V: np.ndarray) -> np.ndarray:
        return np.stack([attend(q[i], K[i], V[i], seen) for i in range(n)])

    def shared(P_k: np.ndarray, P_v: np.ndarray) -> np.ndarray:
        return np.stack([attend(q[i], np.concatenate([P_k, k[i]]), np.concatenate([P_v, v[i]]), seen) for i in range(n)])

    dK, dV = complex_step(copies, (K, V), dy)
    dP_k, dP_v = complex_step(shared, (P_k, P_v), dy)
    return sums({"n": n, "i": T}) | {
        "n": n, "T": T, "length": length, "size": size, "q": q, "dy": dy, "p": np.stack([shares(of, seen) for of in s]),
        "ds": complex_step(lambda s: np.stack([product(shares(s[i], seen), V[i]) for i in range(n)]), (s,), dy)[0],
        "dK": dK, "dV": dV, "dP_k": dP_k, "dP_v": dP_v,
    }  # fmt: skip


@section("methods", "A prefix made by an MLP")
def _(_: str) -> Names:
    length, e, hidden, layers, width = 3, 4, 5, 2, 6
    out = 2 * layers * width
    rng = np.random.default_rng(13)
    E, W1, b1 = rng.standard_normal((length, e)), rng.standard_normal((hidden, e)), rng.standard_normal(hidden)
    W2, b2, weights = rng.standard_normal((out, hidden)), rng.standard_normal(out), rng.standard_normal((length, out))
    keys_at = [2 * layer * width + e for layer in range(layers) for e in range(width)]
    values_at = [at for at in range(out) if at not in keys_at]

    def arranged(P: np.ndarray, at: list[int]) -> np.ndarray:
        return np.array([P[:, part] for part in np.split(np.array(at), layers)])

    def rest(P: np.ndarray) -> np.ndarray:
        return np.tanh(P)  # something that the model does with it

    def second(t: np.ndarray, W2: np.ndarray = W2, b2: np.ndarray = b2) -> np.ndarray:
        return product(t, W2.T) + b2

    def inner(E: np.ndarray, W1: np.ndarray, b1: np.ndarray) -> np.ndarray:
        return product(E, W1.T) + b1

    t = np.tanh(inner(E, W1, b1))
    P = second(t)
    dE, dW1, db1, dW2, db2 = complex_step(
        lambda E, W1, b1, W2, b2: rest(second(np.tanh(inner(E, W1, b1)), W2, b2)), (E, W1, b1, W2, b2), weights)
    keys, values = arranged(P, keys_at), arranged(P, values_at)
    return sums({"m": length}) | {
        "length": length, "e": e, "hidden": hidden, "layers": layers, "width": width, "E": E, "W1": W1, "b1": b1, "W2": W2,
        "b2": b2, "t": t, "P": P, "keys": keys, "values": values,
        "dkeys": complex_step(rest, (keys,), arranged(weights, keys_at))[0],
        "dvalues": complex_step(rest, (values,), arranged(weights, values_at))[0], "dP": complex_step(rest, (P,), weights)[0],
        "dt": complex_step(lambda t: rest(second(t)), (t,), weights)[0],
        "du": complex_step(lambda u: rest(second(np.tanh(u))), (inner(E, W1, b1),), weights)[0],
        "dE": dE, "dW1": dW1, "db1": db1, "dW2": dW2, "db2": db2,
    }  # fmt: skip


@section("methods", "A prefix is a gate")
def _(condition: str) -> Names:
    T, length, size = 3, 2, 4
    rng = np.random.default_rng(14)
    (q, k, v, dy), (P_k, P_v) = rng.standard_normal((4, T, size)), rng.standard_normal((2, length, size))
    assert condition in ("", "P_k = 0", "P_v = 0", "P = 0")
    P_k, P_v = P_k * (condition not in ("P_k = 0", "P = 0")), P_v * (condition not in ("P_v = 0", "P = 0"))
    seen, every = causal(T, length), np.ones((T, length), bool)

    def y(P_k: np.ndarray, P_v: np.ndarray) -> np.ndarray:
        return attend(q, np.concatenate([P_k, k]), np.concatenate([P_v, v]), seen)

    gate = shares(scores(q, np.concatenate([P_k, k])), seen)[:, :length].sum(1)
    past, alone = attend(q, P_k, P_v, every), attend(q, k, v, causal(T))

    def gated(gate: np.ndarray, past: np.ndarray, alone: np.ndarray) -> np.ndarray:
        """Two attentions, mixed. That it is attention to both is what y says, which knows of no gate."""
        return np.array([[a + gate[i] * (past[i, e] - a) for e, a in enumerate(row)] for i, row in enumerate(alone)])

    dgate, dpast, dalone = complex_step(gated, (gate, past, alone), dy)
    dP_k, dP_v = complex_step(y, (P_k, P_v), dy)
    return sums({"j": T, "m": length, "e": size, "i": T, "o": size}) | {
        "T": T, "length": length, "size": size, "q": q, "P_k": P_k, "P_v": P_v, "v": v, "dy": dy,
        "s": np.where(causal(T), scores(q, k), -np.inf), "r": scores(q, P_k), "λ": gate, "past": past, "alone": alone,
        "y": y(P_k, P_v), "dλ": dgate, "dpast": dpast, "dalone": dalone, "dP_k": dP_k, "dP_v": dP_v,
    }  # fmt: skip


@section("methods", "Prompts: inserting rows")
def _(_: str) -> Names:
    n, T, count, width, hidden = 2, 3, 2, 4, 5
    rng = np.random.default_rng(15)
    h, weights = rng.standard_normal((n, T, width)), rng.standard_normal((n, T + count, width))
    E, W1, b1, W2, b2 = (
        rng.standard_normal(shape) for shape in ((count, width), (hidden, width), (hidden,), (width, hidden), (width,))
    )
    positions, places = [1, 3], [0, 2, 4]

    def out(h: np.ndarray, prompts: np.ndarray) -> np.ndarray:
        samples = []
        for rows in h:
            tokens, more = list(rows), list(prompts)
            samples.append([more.pop(0) if j in positions else tokens.pop(0) for j in range(T + count)])
        return np.array(samples)

    def rest(out: np.ndarray) -> np.ndarray:
        return np.tanh(out + 0.5 * out[:, :1])  # something in which the places see one another

    def encoded(E: np.ndarray) -> np.ndarray:
        return product(relu(product(E, W1.T) + b1), W2.T) + b2

    prompts = encoded(E)
    dh, dprompts = complex_step(lambda h, prompts: rest(out(h, prompts)), (h, prompts), weights)
    return sums({"n": n, "m": count, "t": T, "j": T + count}) | {
        "n": n, "T": T, "count": count, "width": width, "h": h, "prompts": prompts, "positions": positions, "places": places,
        "here": np.array([[j == at for j in range(T + count)] for at in positions]),
        "there": np.array([[j == at for j in range(T + count)] for at in places]),
        "out": out(h, prompts), "dout": complex_step(rest, (out(h, prompts),), weights)[0], "dh": dh, "dprompts": dprompts,
        "W1": W1, "W2": W2, "positive": product(E, W1.T) + b1 > 0,
        "dE": complex_step(lambda E: rest(out(h, encoded(E))), (E,), weights)[0],
    }  # fmt: skip


def lstm(
    E: np.ndarray, W: np.ndarray, U: np.ndarray, b: np.ndarray, more: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> dict[str, np.ndarray]:
    """All that an LSTM computes. `more` is added to u, c and h; it is zero, and its gradients are those of u, c and h."""
    hidden, kept = U.shape[1], []
    c = h = 0 * E[0, 0] * b[:hidden]
    for row, more_u, more_c, more_h in zip(E, *more, strict=True):
        before = {"c_before": c, "h_before": h}
        u = np.array([sum(W[r] * row) + sum(U[r] * h) + b[r] for r in range(4 * hidden)]) + more_u
        i, f, o = (np.array([sigma(u[at * hidden + m]) for m in range(hidden)]) for at in (0, 1, 3))
        g = np.array([np.tanh(u[2 * hidden + m]) for m in range(hidden)])
        c = np.array([f[m] * c[m] + i[m] * g[m] for m in range(hidden)]) + more_c
        h = np.array([o[m] * np.tanh(c[m]) for m in range(hidden)]) + more_h
        kept.append({"u": u, "i": i, "f": f, "g": g, "o": o, "c": c, "h": h, **before})
    return {name: np.array([step[name] for step in kept]) for name in kept[0]}


@section("methods", "Prompts made by an LSTM")
def _(_: str) -> Names:
    count, e, hidden = 3, 5, 2
    rng = np.random.default_rng(16)
    E, dout, dback = (rng.standard_normal((count, size)) for size in (e, hidden, hidden))
    (W, W_back), (U, U_back) = rng.standard_normal((2, 4 * hidden, e)), rng.standard_normal((2, 4 * hidden, hidden))
    b, b_back = rng.standard_normal((2, 4 * hidden))
    none = np.zeros((count, 4 * hidden)), np.zeros((count, hidden)), np.zeros((count, hidden))

    def h(E: np.ndarray, W: np.ndarray, U: np.ndarray, b: np.ndarray) -> np.ndarray:
        return lstm(E, W, U, b, none)["h"]

    def both(E: np.ndarray) -> np.ndarray:
        turned = h(np.array([E[count - 1], *E[1 : count - 1], E[0]]), W_back, U_back, b_back)
        return np.concatenate([h(E, W, U, b), turned], -1)

    du, dc, dh = complex_step(lambda *more: lstm(E, W, U, b, more)["h"], none, dout)
    dE, dW, dU, db = complex_step(h, (E, W, U, b), dout)
    kept = lstm(E, W, U, b, none)
    after = {f"{name}_after": np.concatenate([a[1:], 0 * a[:1]]) for name, a in (("du", du), ("dc", dc), ("f", kept["f"]))}
    parts = {f"du_{gate}": part for gate, part in zip("ifgo", np.split(du, 4, axis=1), strict=True)}
    return sums({"e": e, "k": hidden, "r": 4 * hidden, "t": count}) | kept | after | parts | {
        "count": count, "hidden": hidden, "e": e, "E": E, "W": W, "U": U, "b": b, "dout": dout, "du": du, "dc": dc, "dh": dh,
        "dE": dE, "dW": dW, "dU": dU, "db": db,
        "back": complex_step(lambda E: h(E, W_back, U_back, b_back), (E[::-1],), dback)[0],
        "dboth": complex_step(both, (E,), np.concatenate([dout, dback], -1))[0],
    }  # fmt: skip


@section("methods", "What is counted")
def _(_: str) -> Names:
    rng = np.random.default_rng(17)
    n_in, bottleneck, layers, length, width, hidden, e, count = 7, 3, 2, 5, 6, 4, 9, 8

    def size(arrays: Any) -> int:
        return sum(a.size for a in arrays)

    both: Any = ptuning.init(rng, count, width, "lstm", hidden)
    return {
        "n_in": n_in, "bottleneck": bottleneck, "layers": layers, "length": length, "width": width, "hidden": hidden, "e": e,
        "count": count, "adapter": size(adapter.init(rng, n_in, bottleneck)),
        "prefix": size(prefix.init(rng, layers, length, width)),
        "prefix_mlp": size(prefix.init_reparameterised(rng, layers, length, width, hidden, e)),
        "prompts": size(ptuning.init(rng, count, width)), "prompts_mlp": size(ptuning.init(rng, count, width, "mlp", hidden)),
        "lstm": size((both.forward_W, both.forward_U, both.forward_b)), "prompts_lstm": size(both),
    }  # fmt: skip


# The tests


def error(equation: Equation, right: str) -> float:
    """Of a right side in Python, beside the largest entry of the left; of "0 · T", beside the largest entry of T."""
    names = names_of(equation.page, equation.section, equation.condition)
    left, own = python_of(equation.left), python_of(equation.right)
    got, want = (np.asarray(side, float) for side in sides(left, right, names))
    beside = np.asarray(sides(left, own.removeprefix("0 * "), names)[own.startswith("0 * ")], float)
    return relative_error(got, want, np.full(got.shape, np.abs(beside).max()))


def slips(node: ast.AST, source: str) -> Iterator[str]:
    """What may stand in the place of a part of a formula by mistake."""

    def of(part: ast.AST) -> str:
        return f"({ast.get_source_segment(source, part)})"

    match node:
        case ast.BinOp(left, op, right):  # the other sign; one of the two left out
            if isinstance(op, ast.Add | ast.Sub):
                yield of(left) + ("-" if isinstance(op, ast.Add) else "+") + of(right)
            yield from (of(left), of(right))
        case ast.UnaryOp(_, part) | ast.Attribute(part, "T"):
            yield of(part)
        case ast.Call(ast.Name("loop"), [_, term]):  # the first term alone
            yield f"({of(term)})(0)"
        case ast.Call(_, [argument]):
            yield of(argument)
        case ast.Constant(int() | float() as value):
            yield f"{value + 1}"


def spoiled(right: str) -> Iterator[str]:
    """The right side, in Python, with one mistake in it."""
    yield f"{right} + 1"
    if right.startswith("0 * "):  # nothing behind the zero can be wrong
        yield right.removeprefix("0 * ")
        return
    yield f"-({right})"
    source = right.encode()
    for node in ast.walk(ast.parse(right, mode="eval")):
        for instead in slips(node, right):
            before, after = source[: node.col_offset], source[node.end_col_offset :]  # type: ignore[attr-defined]
            yield f"{before.decode()}({instead}){after.decode()}"


@pytest.mark.parametrize("equation", EQUATIONS, ids=name_of)
def test_the_equation_holds(equation: Equation) -> None:
    assert error(equation, python_of(equation.right)) < GRADIENT_ERROR


@pytest.mark.parametrize("equation", EQUATIONS, ids=name_of)
def test_the_equation_has_the_stated_shape(equation: Equation) -> None:
    names = names_of(equation.page, equation.section, equation.condition)
    left, _ = sides(python_of(equation.left), "0", names)
    assert np.shape(left) == stated_shape(equation, names)


@pytest.mark.parametrize("equation", EQUATIONS, ids=name_of)
def test_a_mistake_in_the_equation_is_seen(equation: Equation) -> None:
    for mistake in spoiled(python_of(equation.right)):
        try:
            with np.errstate(all="ignore"):
                assert error(equation, mistake) >= GRADIENT_ERROR, f"{equation.left} = {mistake} holds too"
        except (ValueError, IndexError):
            pass  # shapes that do not fit, or a place outside, which is as good


@pytest.mark.parametrize("page", PAGES)
def test_the_equations_are_numbered_from_1_and_every_reference_has_its_equation(page: str) -> None:
    check_numbers(page)


def test_every_section_of_values_has_its_equations() -> None:
    assert set(SECTIONS) == {(equation.page, equation.section) for equation in EQUATIONS}
