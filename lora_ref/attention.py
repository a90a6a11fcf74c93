"""Causal attention with a prefix, between the projections: every query head looks at the key and value head of its group.

    y = softmax(q [P_k k]ᵀ / √s + hidden) [P_v v]        s the size of a head

    q (batch, T, heads · s)    k, v (batch, T, kv_heads · s)    P_k, P_v (length, kv_heads · s)    y like q

`hidden` is −inf where a query may not look: at tokens after it, and at padding other than itself; the prefix is seen by
all. Query head j uses key head j // (heads / kv_heads). Sources: Vaswani et al., "Attention Is All You Need", 2017, §3.2;
Ainslie et al., "GQA", 2023 (groups); Li and Liang, "Prefix-Tuning", 2021 (the prefix).
"""

from typing import NamedTuple

import numpy as np

from lora_ref.ops import softmax, softmax_backward
from lora_ref.prefix import Prefix


class Cache(NamedTuple):
    q: np.ndarray  # (batch, groups, heads in each · T, s), divided by √s
    k: np.ndarray  # (batch, groups, length + T, s)
    v: np.ndarray  # (batch, groups, length + T, s)
    p: np.ndarray  # (batch, groups, heads in each · T, length + T)
    length: int


def forward(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, hidden: np.ndarray, kv_heads: int, size: int, prefix: Prefix | None = None
) -> tuple[np.ndarray, Cache]:
    """y (batch, T, heads · s) and the cache; `hidden` (batch or 1, T, length + T) holds 0 or −inf.

    `prefix` holds the keys and values of one layer, (length, kv_heads · s) each.
    """
    batch, T, width = q.shape
    length = 0 if prefix is None else len(prefix.keys)
    # 1. heads; the query heads of a group lie one under the other
    q = q * q.dtype.type(size**-0.5)
    q = q.reshape(batch, T, kv_heads, -1, size).transpose(0, 2, 3, 1, 4).reshape(batch, kv_heads, -1, size)
    k, v = _heads(k, kv_heads), _heads(v, kv_heads)                                           # (batch, groups, T, s)
    # 2. [P_k k], [P_v v]
    if prefix is not None:
        k, v = (_before(P, x, kv_heads) for P, x in zip(prefix, (k, v), strict=True))         # (batch, groups, length + T, s)
    # 3. p = softmax(q kᵀ + hidden)
    scores = q @ k.swapaxes(-1, -2)                                                           # (batch, groups, …, length + T)
    by_head = scores.reshape(batch, kv_heads, -1, T, length + T)  # shares its memory
    by_head += hidden[:, None, None]
    p = softmax(scores)
    # 4. y = p v
    y = (p @ v).reshape(batch, kv_heads, -1, T, size).transpose(0, 3, 1, 2, 4)                # (batch, T, groups, each, s)
    return y.reshape(batch, T, width), Cache(q, k, v, p, length)


def backward(dy: np.ndarray, cache: Cache) -> tuple[np.ndarray, np.ndarray, np.ndarray, Prefix | None]:
    """dq (batch, T, heads · s), dk and dv (batch, T, kv_heads · s), and the gradients of the prefix, summed over the batch."""
    q, k, v, p, length = cache
    (batch, T, width), kv_heads, size = dy.shape, k.shape[1], k.shape[3]
    # 4. y = p v
    dy = dy.reshape(batch, T, kv_heads, -1, size).transpose(0, 2, 3, 1, 4).reshape(q.shape)
    dp = dy @ v.swapaxes(-1, -2)
    dv = p.swapaxes(-1, -2) @ dy                                                              # (batch, groups, length + T, s)
    # 3. p = softmax(q kᵀ + hidden)
    ds = softmax_backward(dp, p)
    dk = ds.swapaxes(-1, -2) @ q
    dq = ds @ k
    # 1. q was divided by √s
    dq *= dq.dtype.type(size**-0.5)
    dq = dq.reshape(batch, kv_heads, -1, T, size).transpose(0, 3, 1, 2, 4).reshape(batch, T, width)
    # 2. [P_k k], [P_v v]
    dprefix = Prefix(*(_merged(d[:, :, :length]).sum(0) for d in (dk, dv))) if length else None
    return dq, _merged(dk[:, :, length:]), _merged(dv[:, :, length:]), dprefix


def hidden(T: int, mask: np.ndarray | None, length: int, dtype: np.dtype) -> np.ndarray:
    """0 where query t may look, −inf where not: (1 or batch, T, length + T). `mask` (batch, T) is False for padding."""
    seen = np.tri(T, dtype=bool)[None]                                                        # (1, T, T)
    if mask is not None:
        seen = seen & mask[:, None, :] | np.eye(T, dtype=bool)
    seen = np.concatenate([np.ones((*seen.shape[:2], length), bool), seen], axis=-1)
    return np.where(seen, 0, -np.inf).astype(dtype)


def _heads(x: np.ndarray, heads: int) -> np.ndarray:
    """(batch, T, heads · s) → (batch, heads, T, s), a view."""
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def _merged(x: np.ndarray) -> np.ndarray:
    """(batch, heads, T, s) → (batch, T, heads · s), a copy."""
    x = x.swapaxes(1, 2)
    return x.reshape(*x.shape[:2], x.shape[2] * x.shape[3])


def _before(P: np.ndarray, x: np.ndarray, heads: int) -> np.ndarray:
    """P (length, heads · s) before x (batch, heads, T, s), for every sample."""
    P = _heads(P[None], heads)
    return np.concatenate([np.broadcast_to(P, (len(x), *P.shape[1:])), x], axis=2)
