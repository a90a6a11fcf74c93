"""The values of derivations/methods.md, section by section. No formula of the page is used to find them."""

from typing import Any

import numpy as np
from pages.definitions import Names, attend, causal, jacobian, relu, rows_alone, scores, section, shares, sigma, slopes
from pages.equations import product, sums

from lora_ref import adapter, prefix, ptuning
from lora_ref.error.gradcheck import complex_step


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
        """Two attentions, mixed by a gate. The value y, which has no gate, shows that this is attention to both."""
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
        "prefix_mlp": size(prefix.init(rng, layers, length, width, hidden, e)),
        "prompts": size(ptuning.init(rng, count, width)), "prompts_mlp": size(ptuning.init(rng, count, width, "mlp", hidden)),
        "lstm": size((both.forward_W, both.forward_U, both.forward_b)), "prompts_lstm": size(both),
    }  # fmt: skip
