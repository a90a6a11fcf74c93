"""One layer of the transformer, and what a pass through it keeps: the parts of `transformer.py` that come once a layer.

    1. h += attention(norm(h)), with the adapters beside it and behind it
    2. h += mlp(norm(h)), likewise        mlp: down f(up x), or down (f(gate x) · up x)
    3. h += Ad(h), an adapter behind the layer

    h (batch, S, width)

Every forward keeps, under the name of its place, what its backward needs; a backward adds up the gradients of what trains,
and gives that of what went in. At each linear layer there may be LoRA.
"""

from typing import Any, NamedTuple

import numpy as np

from lora_ref import adapter, attention, linear, lora, ops, prefix
from lora_ref.places import ATTENTION, MLP, Arrays, Config, Methods, take
from lora_ref.shapes import rows


class Cache(NamedTuple):
    """What backward needs. It refers to the arrays: change none of them in between."""

    config: Config
    methods: Methods
    arrays: Arrays
    tokens: np.ndarray
    kept: dict[str, Any]  # by place, what the place's own backward needs


class Back(NamedTuple):
    """A backward pass on its way."""

    run: Cache
    train: frozenset[str]
    gradients: Arrays
    dpast: list[prefix.Prefix]  # of each layer's keys and values, the last layer first

    def add(self, name: str, gradient: np.ndarray | None) -> None:
        if name in self.train and gradient is not None:
            self.gradients[name] = self.gradients[name] + gradient if name in self.gradients else gradient

    def add_all(self, place: str, gradients: Any) -> None:
        for field, gradient in gradients._asdict().items():
            self.add(f"{place}.{field}", gradient)


def layer(h: np.ndarray, i: int, hidden: np.ndarray, past: prefix.Prefix | None, run: Cache) -> np.ndarray:
    name = f"layers.{i}"
    # 1. h += attention(norm(h))
    x = norm_forward(h, f"{name}.attention_norm", run)
    own = None if past is None else prefix.Prefix(past.keys[i], past.values[i])
    h = h + _with_adapters(x, _attention(x, name, hidden, own, run), f"{name}.{ATTENTION}", run)
    # 2. h += mlp(norm(h))
    x = norm_forward(h, f"{name}.mlp_norm", run)
    h += _with_adapters(x, _mlp(x, name, run), f"{name}.{MLP}", run)
    # 3. h += Ad(h)
    return _plus_adapter(h, h, f"{name}.output", run)


def layer_backward(dh: np.ndarray, i: int, back: Back) -> np.ndarray:
    name = f"layers.{i}"
    # 3. h += Ad(h)
    dh = _plus_adapter_backward(dh, dh, f"{name}.output", back)
    # 2. h += mlp(norm(h)); what is beside the MLP adds to its dx
    dy = _plus_adapter_backward(dh, dh, f"{name}.{MLP}.output", back)
    dx = _plus_adapter_backward(_mlp_backward(dy, name, back), dy, f"{name}.{MLP}", back)
    dh = dh + norm_backward(dx, f"{name}.mlp_norm", back)
    # 1. h += attention(norm(h))
    dy = _plus_adapter_backward(dh, dh, f"{name}.{ATTENTION}.output", back)
    dx = _plus_adapter_backward(_attention_backward(dy, name, back), dy, f"{name}.{ATTENTION}", back)
    dh += norm_backward(dx, f"{name}.attention_norm", back)
    return dh


def _attention(x: np.ndarray, name: str, hidden: np.ndarray, past: prefix.Prefix | None, run: Cache) -> np.ndarray:
    config = run.config
    # 1. q, k, v
    if config.fused:
        q, k, v = np.split(linear_forward(x, f"{name}.qkv_proj", run), config.splits, axis=-1)
    else:
        q, k, v = (linear_forward(x, f"{name}.{part}_proj", run) for part in "qkv")
    # 2. y = o_proj(softmax(q kᵀ) v)
    y, run.kept[f"{name}.{ATTENTION}.core"] = attention.forward(q, k, v, hidden, config.kv_heads, config.size, past)
    return linear_forward(y, f"{name}.o_proj", run)


def _attention_backward(dy: np.ndarray, name: str, back: Back) -> np.ndarray:
    # 2. y = o_proj(softmax(q kᵀ) v)
    dy = linear_backward(dy, f"{name}.o_proj", back)
    *parts, dprefix = attention.backward(dy, back.run.kept[f"{name}.{ATTENTION}.core"])
    if dprefix is not None:
        back.dpast.append(dprefix)
    # 1. q, k, v, which all come of x
    if back.run.config.fused:
        return linear_backward(np.concatenate(parts, axis=-1), f"{name}.qkv_proj", back)
    dx, from_k, from_v = (linear_backward(d, f"{name}.{part}_proj", back) for part, d in zip("qkv", parts, strict=True))
    dx += from_k
    dx += from_v
    return dx


def _mlp(x: np.ndarray, name: str, run: Cache) -> np.ndarray:
    f = ops.ACTIVATIONS[run.config.activation][0]
    # 1. a = f(up x), or f(gate x) · up x
    up = linear_forward(x, f"{name}.up_proj", run)
    if run.config.activation == "silu":
        gate, inner = f(linear_forward(x, f"{name}.gate_proj", run))
        run.kept[f"{name}.{MLP}.core"] = inner, gate, up
        a = gate * up
    else:
        a, run.kept[f"{name}.{MLP}.core"] = f(up)
    # 2. y = down a
    return linear_forward(a, f"{name}.down_proj", run)


def _mlp_backward(dy: np.ndarray, name: str, back: Back) -> np.ndarray:
    f_backward, kept = ops.ACTIVATIONS[back.run.config.activation][1], back.run.kept[f"{name}.{MLP}.core"]
    # 2. y = down a
    da = linear_backward(dy, f"{name}.down_proj", back)
    # 1. a = f(up x), or f(gate x) · up x
    if back.run.config.activation != "silu":
        return linear_backward(f_backward(da, kept), f"{name}.up_proj", back)
    inner, gate, up = kept
    dx = linear_backward(f_backward(da * up, inner), f"{name}.gate_proj", back)
    dx += linear_backward(da * gate, f"{name}.up_proj", back)
    return dx


def _with_adapters(x: np.ndarray, y: np.ndarray, place: str, run: Cache) -> np.ndarray:
    """The answer y of a sub-layer that saw x, with the adapter beside it and the one behind it."""
    y = _plus_adapter(y, x, place, run)
    return _plus_adapter(y, y, f"{place}.output", run)


def _plus_adapter(y: np.ndarray, x: np.ndarray, place: str, run: Cache) -> np.ndarray:
    """y + Ad(x), if there is an adapter at the place."""
    if place not in run.methods:
        return y
    spec = run.methods[place]
    p = take(adapter.Adapter, place, run.arrays)
    more, run.kept[place] = adapter.forward(x, p, spec.activation, spec.scale)
    return y + more


def _plus_adapter_backward(dx: np.ndarray, dy: np.ndarray, place: str, back: Back) -> np.ndarray:
    """dx, and what comes to x through Ad for the gradient dy of y + Ad(x)."""
    if place not in back.run.methods:
        return dx
    more, dp = adapter.backward(dy, back.run.kept[place])
    back.add_all(place, dp)
    return dx + more


def linear_forward(x: np.ndarray, place: str, run: Cache) -> np.ndarray:
    """x Wᵀ + b, and LoRA if it is there."""
    W, b = run.arrays[f"{place}.weight"], run.arrays.get(f"{place}.bias")
    if spec := run.methods.get(place):
        y, cache = lora.forward(x, W, b, take(lora.LoRA, place, run.arrays), spec.scale)
    else:
        y, cache = linear.forward(x, W, b)
    run.kept[place] = x, cache
    return y


def linear_backward(dy: np.ndarray, place: str, back: Back) -> np.ndarray:
    x, cache = back.run.kept[place]
    # y = x Wᵀ + b: what the package's frozen layer has no need of
    if f"{place}.weight" in back.train:
        back.add(f"{place}.weight", rows(dy).T @ rows(x))                                     # (out, in)
    if f"{place}.bias" in back.train:
        back.add(f"{place}.bias", rows(dy).sum(0))
    if isinstance(cache, lora.Cache):
        dx, dp = lora.backward(dy, cache)
        back.add_all(place, dp)
        return dx
    return linear.backward(dy, cache)


def norm_forward(h: np.ndarray, place: str, run: Cache) -> np.ndarray:
    y, run.kept[place] = ops.norm(h, run.arrays[f"{place}.weight"], run.arrays.get(f"{place}.bias"))
    return y


def norm_backward(dy: np.ndarray, place: str, back: Back) -> np.ndarray:
    cache = back.run.kept[place]
    if f"{place}.weight" in back.train or f"{place}.bias" in back.train:
        dw, db = ops.norm_weights(dy, cache)
        back.add(f"{place}.weight", dw)
        back.add(f"{place}.bias", db)
    return ops.norm_backward(dy, cache)
