"""One layer of the transformer, forward and backward, with the methods at its places.

    1. h += attention(norm(h)), with the adapters beside it and behind it
    2. h += mlp(norm(h)), with the adapters beside it and behind it        mlp: down f(up x), or down (f(gate x) · up x)
    3. h += Ad(h), an adapter behind the layer

    h (batch, T + prompts, width)

Every forward function stores its own cache under the name of its place. Its backward function takes that cache, adds the
gradients of what trains, and gives the gradient of its input.
"""

from typing import Any, NamedTuple

import numpy as np

from lora_ref import attention, linear, ops
from lora_ref.places import ATTENTION, MLP, Arrays, Config, Methods, method_of
from lora_ref.prefix import Prefix
from lora_ref.shapes import rows


class Cache(NamedTuple):
    """What backward needs. It refers to the arrays: change none of them in between."""

    config: Config
    methods: Methods
    arrays: Arrays
    p: dict[str, Any]  # place → the arrays of the method there, as its NamedTuple
    tokens: np.ndarray
    caches: dict[str, Any]  # place → what the backward of that place needs


class Backward(NamedTuple):
    """The state of a backward pass."""

    cache: Cache
    train: frozenset[str]
    gradients: Arrays
    dprefixes: list[Prefix]  # the gradients of each layer's prefix, the last layer first

    def add(self, name: str, gradient: np.ndarray | None) -> None:
        """Adds the gradient to that of the array, if the array trains."""
        if name in self.train and gradient is not None:
            self.gradients[name] = self.gradients[name] + gradient if name in self.gradients else gradient

    def add_all(self, place: str, gradients: Any) -> None:
        """Adds every gradient of a method's NamedTuple."""
        for name, gradient in gradients._asdict().items():
            self.add(f"{place}.{name}", gradient)


def forward(h: np.ndarray, i: int, attention_mask: np.ndarray, prefix: Prefix | None, cache: Cache) -> np.ndarray:
    """h after layer i, of which `prefix` has the keys and values."""
    name = f"layers.{i}"
    # 1. h += attention(norm(h))
    x = norm_forward(h, f"{name}.attention_norm", cache)
    y = _attention(x, name, attention_mask, prefix, cache)
    y = _plus_adapter(y, x, f"{name}.{ATTENTION}", cache)
    h = h + _plus_adapter(y, y, f"{name}.{ATTENTION}.output", cache)
    # 2. h += mlp(norm(h))
    x = norm_forward(h, f"{name}.mlp_norm", cache)
    y = _mlp(x, name, cache)
    y = _plus_adapter(y, x, f"{name}.{MLP}", cache)
    h = h + _plus_adapter(y, y, f"{name}.{MLP}.output", cache)
    # 3. h += Ad(h)
    return _plus_adapter(h, h, f"{name}.output", cache)


def backward(dh: np.ndarray, i: int, back: Backward) -> np.ndarray:
    """The gradient of h before layer i, from that of h after it."""
    name = f"layers.{i}"
    # 3. h += Ad(h)
    dh = dh + _adapter_backward(dh, f"{name}.output", back)
    # 2. h += mlp(norm(h))
    dy = dh + _adapter_backward(dh, f"{name}.{MLP}.output", back)
    dx = _mlp_backward(dy, name, back) + _adapter_backward(dy, f"{name}.{MLP}", back)
    dh = dh + norm_backward(dx, f"{name}.mlp_norm", back)
    # 1. h += attention(norm(h))
    dy = dh + _adapter_backward(dh, f"{name}.{ATTENTION}.output", back)
    dx = _attention_backward(dy, name, back) + _adapter_backward(dy, f"{name}.{ATTENTION}", back)
    return dh + norm_backward(dx, f"{name}.attention_norm", back)


def _attention(x: np.ndarray, name: str, attention_mask: np.ndarray, prefix: Prefix | None, cache: Cache) -> np.ndarray:
    config = cache.config
    # 1. q, k, v
    if config.fused:
        q, k, v = np.split(linear_forward(x, f"{name}.qkv_proj", cache), config.splits, axis=-1)
    else:
        q, k, v = (linear_forward(x, f"{name}.{part}_proj", cache) for part in "qkv")
    # 2. y = softmax(q kᵀ) v
    y, cache.caches[f"{name}.{ATTENTION}.core"] = attention.forward(
        q, k, v, attention_mask, config.kv_heads, config.head_size, prefix)
    # 3. o_proj y
    return linear_forward(y, f"{name}.o_proj", cache)


def _attention_backward(dy: np.ndarray, name: str, back: Backward) -> np.ndarray:
    # 3. o_proj y
    dy = linear_backward(dy, f"{name}.o_proj", back)
    # 2. y = softmax(q kᵀ) v
    dq, dk, dv, dprefix = attention.backward(dy, back.cache.caches[f"{name}.{ATTENTION}.core"])
    if dprefix is not None:
        back.dprefixes.append(dprefix)
    # 1. q, k, v
    if back.cache.config.fused:
        return linear_backward(np.concatenate([dq, dk, dv], axis=-1), f"{name}.qkv_proj", back)
    from_q, from_k, from_v = (
        linear_backward(d, f"{name}.{part}_proj", back) for part, d in zip("qkv", (dq, dk, dv), strict=True))
    return from_q + from_k + from_v


def _mlp(x: np.ndarray, name: str, cache: Cache) -> np.ndarray:
    f = ops.ACTIVATIONS[cache.config.activation][0]
    # 1. a = f(up x), or f(gate x) · up x
    up = linear_forward(x, f"{name}.up_proj", cache)
    if cache.config.activation == "silu":
        gate, inner = f(linear_forward(x, f"{name}.gate_proj", cache))
        a, cache.caches[f"{name}.{MLP}.core"] = gate * up, (inner, gate, up)
    else:
        a, cache.caches[f"{name}.{MLP}.core"] = f(up)
    # 2. y = down a
    return linear_forward(a, f"{name}.down_proj", cache)


def _mlp_backward(dy: np.ndarray, name: str, back: Backward) -> np.ndarray:
    f_backward, core = ops.ACTIVATIONS[back.cache.config.activation][1], back.cache.caches[f"{name}.{MLP}.core"]
    # 2. y = down a
    da = linear_backward(dy, f"{name}.down_proj", back)
    # 1. a = f(up x), or f(gate x) · up x
    if back.cache.config.activation != "silu":
        return linear_backward(f_backward(da, core), f"{name}.up_proj", back)
    inner, gate, up = core
    dx = linear_backward(f_backward(da * up, inner), f"{name}.gate_proj", back)
    return dx + linear_backward(da * gate, f"{name}.up_proj", back)


def _plus_adapter(y: np.ndarray, x: np.ndarray, place: str, cache: Cache) -> np.ndarray:
    """y + Ad(x), or y if there is no adapter at the place."""
    if place not in cache.methods:
        return y
    own = cache.methods[place]
    more, cache.caches[place] = method_of(own, place).forward(x, cache.p[place], own.activation, own.scale)
    return y + more


def _adapter_backward(dy: np.ndarray, place: str, back: Backward) -> np.ndarray | float:
    """What Ad adds to the gradient of x, for the gradient dy of y + Ad(x); 0 if there is no adapter at the place."""
    if place not in back.cache.methods:
        return 0.0
    dx, dp = method_of(back.cache.methods[place], place).backward(dy, back.cache.caches[place])
    back.add_all(place, dp)
    return dx


def linear_forward(x: np.ndarray, place: str, cache: Cache) -> np.ndarray:
    """x Wᵀ + b, or what the method at the place makes of it."""
    W, b = cache.arrays[f"{place}.weight"], cache.arrays.get(f"{place}.bias")
    if place in cache.methods:
        own = cache.methods[place]
        y, inner = method_of(own, place).forward(x, W, b, cache.p[place], own.scale)
    else:
        y, inner = linear.forward(x, W, b)
    cache.caches[place] = x, inner
    return y


def linear_backward(dy: np.ndarray, place: str, back: Backward) -> np.ndarray:
    """dx; the gradients of W, b and the method's arrays go to `back`."""
    x, inner = back.cache.caches[place]
    # y = x Wᵀ + b. Only full fine-tuning needs these two
    if f"{place}.weight" in back.train:
        back.add(f"{place}.weight", rows(dy).T @ rows(x))                                     # (out, in)
    if f"{place}.bias" in back.train:
        back.add(f"{place}.bias", rows(dy).sum(0))
    if place not in back.cache.methods:
        return linear.backward(dy, inner)
    dx, dp = method_of(back.cache.methods[place], place).backward(dy, inner)
    back.add_all(place, dp)
    return dx


def norm_forward(h: np.ndarray, place: str, cache: Cache) -> np.ndarray:
    y, cache.caches[place] = ops.norm(h, cache.arrays[f"{place}.weight"], cache.arrays.get(f"{place}.bias"))
    return y


def norm_backward(dy: np.ndarray, place: str, back: Backward) -> np.ndarray:
    inner = back.cache.caches[place]
    if f"{place}.weight" in back.train or f"{place}.bias" in back.train:
        dw, db = ops.norm_weights(dy, inner)
        back.add(f"{place}.weight", dw)
        back.add(f"{place}.bias", db)
    return ops.norm_backward(dy, inner)
