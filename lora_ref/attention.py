"""Causal attention with a prefix: what stands between the projections to q, k, v and the one from y.

    y = softmax(q [P_k k]ᵀ / √s + attention_mask) [P_v v]        s is the size of a head

    q (batch, T, heads · s)    k, v (batch, T, kv_heads · s)    P_k, P_v (length, kv_heads · s)    y like q

`attention_mask` is 0 where a query may look and −inf where it may not. A query looks at the whole prefix, and at the tokens up
to its own that are not padding; a padding token also looks at itself. Query head j uses key head j // (heads / kv_heads): the
query heads of one key head are a group.

Sources: Vaswani et al., "Attention Is All You Need", 2017, §3.2; Ainslie et al., "GQA", 2023 (groups); Li and Liang,
"Prefix-Tuning", 2021 (the prefix).
"""

from typing import NamedTuple

import numpy as np

from lora_ref.ops import softmax, softmax_backward
from lora_ref.prefix import Prefix


class Cache(NamedTuple):
    """What backward needs."""

    q: np.ndarray  # (batch, kv_heads, group, T, s), divided by √s
    k: np.ndarray  # (batch, kv_heads, length + T, s), the prefix first
    v: np.ndarray  # (batch, kv_heads, length + T, s)
    p: np.ndarray  # (batch, kv_heads, group, T, length + T)
    length: int


def forward(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, attention_mask: np.ndarray, kv_heads: int, size: int,
    prefix: Prefix | None = None,
) -> tuple[np.ndarray, Cache]:
    """y (batch, T, heads · s) and the cache. attention_mask (batch or 1, T, length + T), s = size.

    `prefix` holds the keys and values of one layer, (length, kv_heads · s) each.
    """
    length = 0 if prefix is None else len(prefix.keys)
    # 1. q / √s, k and v by heads
    q = _query_heads(q / size**0.5, kv_heads, size)                                           # (batch, kv_heads, group, T, s)
    k, v = _heads(k, kv_heads), _heads(v, kv_heads)                                           # (batch, kv_heads, T, s)
    # 2. [P_k k], [P_v v]
    if prefix is not None:
        k, v = _before(prefix.keys, k), _before(prefix.values, v)                             # (batch, kv_heads, length + T, s)
    # 3. p = softmax(q kᵀ + attention_mask): each key head serves its group of query heads
    p = softmax(q @ k[:, :, None].swapaxes(-1, -2) + attention_mask[:, None, None])           # (…, group, T, length + T)
    # 4. y = p v
    y = p @ v[:, :, None]                                                                     # (batch, kv_heads, group, T, s)
    return _query_rows(y), Cache(q, k, v, p, length)


def backward(dy: np.ndarray, cache: Cache) -> tuple[np.ndarray, np.ndarray, np.ndarray, Prefix | None]:
    """dq (batch, T, heads · s), dk and dv (batch, T, kv_heads · s), and the gradients of the prefix, summed over the batch."""
    q, k, v, p, length = cache
    kv_heads, size = k.shape[1], k.shape[3]
    dy = _query_heads(dy, kv_heads, size)                                                     # (batch, kv_heads, group, T, s)
    # 4. y = p v, and v serves a group
    dp = dy @ v[:, :, None].swapaxes(-1, -2)                                                  # (…, group, T, length + T)
    dv = (p.swapaxes(-1, -2) @ dy).sum(2)                                                     # (batch, kv_heads, length + T, s)
    # 3. p = softmax(q kᵀ + attention_mask), and k serves a group
    ds = softmax_backward(dp, p)
    dq = ds @ k[:, :, None]
    dk = (ds.swapaxes(-1, -2) @ q).sum(2)
    # 2. [P_k k], [P_v v]
    dprefix = Prefix(_rows(dk[:, :, :length]).sum(0), _rows(dv[:, :, :length]).sum(0)) if length else None
    # 1. q / √s, k and v by heads
    return _query_rows(dq) / size**0.5, _rows(dk[:, :, length:]), _rows(dv[:, :, length:]), dprefix


def attention_mask(T: int, mask: np.ndarray | None, length: int, dtype: np.dtype) -> np.ndarray:
    """(1 or batch, T, length + T): 0 where query t may look, −inf where not. `mask` (batch, T) is False for padding."""
    seen = np.tri(T, dtype=bool)[None]                                                        # (1, T, T)
    if mask is not None:
        seen = seen & mask[:, None, :] | np.eye(T, dtype=bool)
    seen = np.concatenate([np.ones((*seen.shape[:2], length), bool), seen], axis=-1)
    return np.where(seen, 0, -np.inf).astype(dtype)


def _heads(x: np.ndarray, heads: int) -> np.ndarray:
    """(batch, T, heads · s) → (batch, heads, T, s)."""
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def _rows(x: np.ndarray) -> np.ndarray:
    """(batch, heads, T, s) → (batch, T, heads · s)."""
    x = x.swapaxes(1, 2)
    return x.reshape(*x.shape[:2], x.shape[2] * x.shape[3])


def _query_heads(x: np.ndarray, kv_heads: int, size: int) -> np.ndarray:
    """(batch, T, heads · s) → (batch, kv_heads, group, T, s)."""
    return x.reshape(*x.shape[:2], kv_heads, -1, size).transpose(0, 2, 3, 1, 4)


def _query_rows(x: np.ndarray) -> np.ndarray:
    """(batch, kv_heads, group, T, s) → (batch, T, heads · s)."""
    x = x.transpose(0, 3, 1, 2, 4)
    return x.reshape(*x.shape[:2], x.shape[2] * x.shape[3] * x.shape[4])


def _before(P: np.ndarray, x: np.ndarray) -> np.ndarray:
    """P (length, heads · s) before x (batch, heads, T, s), for every sample."""
    P = _heads(P[None], x.shape[1])
    return np.concatenate([np.broadcast_to(P, (len(x), *P.shape[1:])), x], axis=2)
