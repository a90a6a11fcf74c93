"""The values of derivations/transformer.md, section by section. No formula of the page is used to find them."""

from typing import Any

import numpy as np
from pages.definitions import (
    EPSILON,
    Names,
    attend,
    causal,
    jacobian,
    normed,
    rows_alone,
    scores,
    section,
    shares,
    sigma,
    slopes,
)
from pages.equations import product, sums

from lora_ref.error.gradcheck import complex_step


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
        "T": T, "length": length, "size": size, "q": q, "K": K, "V": V, "dy": dy, "attention_mask": np.where(seen, 0, -np.inf),
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
