"""Exact cases of numbers with as many bits as the format has: the second lattice of `lattice`.

Every entry of y, dx and merged W is one product or zero. In it a number with a full significand, last bit set, meets powers of
two. Entries of dA and dB are that too, or sums of few powers of two. So every honest way of computing is exact, and a
detour through a narrower format changes an answer.

The pattern: `in` is divided into one class for each row of x, or rows share the classes if there are more of them. A row of
x is non-zero in its class alone. Each out feature belongs to one rank, or to none. B[r, o] is non-zero if r is the rank of o.
Each class uses some of the ranks: A has one non-zero entry for these, in some column of the class. y[i, o] comes from the LoRA
part if the class of row i uses the rank of o. Otherwise it comes from W[o, k] with one column k of the class. Each out feature
has a slot, which says what column of each class that is.

A row of dy is non-zero at out features of different slots, so an entry of dx has one term. dA[k, r] sums over the rows of one
class, and dB[r, o] over the rows whose class uses r. Where terms of many bits would be added, dy is zero in all rows but one.

The weights carry the bits: W, b, and A or B, rank by rank. Or else x or dy carries them, and all others are powers of two.
"""

from fractions import Fraction

import numpy as np

from conformance.truth.case import BITS
from conformance.truth.few_bits import Sizes


def arrays(rng: np.random.Generator, sizes: Sizes, scale: Fraction, dtype: str, bias: bool):
    """W (out, in), b (out) or None, A (in, rank), B (rank, out), x (rows, in) and dy (rows, out) in float64. Raises ValueError
    unless the scale is zero or a power of two, since otherwise an exact product has more bits than the format."""
    if scale.numerator & (abs(scale.numerator) - 1):
        raise ValueError(f"many bits with a scale of {scale}, expected a power of two or 0")
    rows, n_in, n_out, rank = sizes
    if rank > min(n_in, n_out):  # further ranks would have no out feature or no column of their own: they are zero
        W, b, A, B, x, dy = arrays(rng, (rows, n_in, n_out, min(n_in, n_out)), scale, dtype, bias)
        more = rank - min(n_in, n_out)
        return W, b, np.pad(A, ((0, 0), (0, more))), np.pad(B, ((0, more), (0, 0))), x, dy
    few = rows <= min(n_in, n_out)  # no column and no out feature is needed twice
    carrier = rng.choice(["weights", "weights", "x", "dy"]) if few else "weights"
    spread = 1 if few else 0  # of exponents; sums of many powers of two must fit

    def bits(count: int) -> np.ndarray:
        """Random numbers from 1/2 to 4 with either sign, whose significands are odd."""
        p = BITS[dtype]
        whole = (1 << (p - 1)) | (rng.integers(0, 1 << (p - 2), count) << 1) | 1
        return np.ldexp(whole.astype(np.float64), rng.integers(-1, 2, count) - p + 1) * rng.choice([-1.0, 1.0], count)

    def powers(count: int) -> np.ndarray:
        return np.ldexp(rng.choice([-1.0, 1.0], count), rng.integers(-spread, spread + 1, count))

    def either(full: np.ndarray) -> np.ndarray:
        return np.where(full & (carrier == "weights"), bits(len(full)), powers(len(full)))

    # Columns: order[c + classes · j] is the j-th column of class c. It has `width` columns or one more.
    classes = min(rows, n_in)
    width = n_in // classes
    order = rng.permutation(n_in)
    size = (n_in - np.arange(classes) - 1) // classes + 1

    # Out features: the rank of each, or −1, and its slot. Those without a rank fill the slots that ranks leave free.
    slots = int(size.max())
    with_rank = max(rank, min(n_out // 2, max(rows, n_out + rank - slots)))
    if n_out == 1 and classes == 1:
        with_rank = int(rng.random() < 0.5)
    elif n_out - with_rank + rank < slots and classes > 1:
        with_rank = n_out  # y cannot show every column, but dA does
    outs = rng.permutation(n_out)
    rank_of = np.full(n_out, -1)
    rank_of[outs[:with_rank]] = np.arange(with_rank) % rank
    slot = np.empty(n_out, int)
    slot[outs] = np.where(np.arange(n_out) < with_rank, np.arange(n_out) % rank, np.arange(n_out) - with_rank + rank) % slots
    if not scale:  # then all answers come from W
        slot[outs] = np.arange(n_out) % slots
    by_bias = np.zeros(n_out, bool)  # here y is b plus a power of two
    if bias and carrier != "x":
        by_bias[outs[with_rank:]] = rng.random(n_out - with_rank) < 0.5

    # Ranks: whether A has the bits, or else B, and the classes that use each.
    A_has = rng.permutation(np.arange(rank) % 2 == rng.integers(2))
    if not few:
        A_has &= rows <= n_in or rank > 1
        A_has |= n_in < rows <= n_out
    can_use = max(1, min(classes // 4, n_out)) if rows > n_out else classes  # classes for ranks of which A has the bits
    uses = (rng.random((classes, rank)) < 0.5) & ~(A_has & (np.arange(classes)[:, None] >= can_use))
    unused = np.flatnonzero(~uses.any(0))
    uses[rng.integers(0, can_use, len(unused)), unused] = True
    if classes == 1 and rank > 1 and with_rank == n_out:
        uses[0, rng.integers(rank)] = False  # something is left to W

    def column(c: np.ndarray, slot: np.ndarray) -> np.ndarray:
        return order[c + classes * ((slot + shift[c]) % size[c])]

    x, W, A, B, dy = (np.zeros(shape) for shape in ((rows, n_in), (n_out, n_in), (n_in, rank), (rank, n_out), (rows, n_out)))
    shift = rng.integers(0, size)
    class_of = np.empty(n_in, int)
    class_of[order] = np.arange(n_in) % classes
    i, k = np.nonzero(np.arange(rows)[:, None] % classes == class_of)
    x[i, k] = bits(len(i)) if carrier == "x" else powers(len(i))
    if not few and rows <= 1 << (BITS[dtype] - 2):
        x *= 2.0 ** (np.arange(rows) % 3)[:, None]  # rows of one class differ
    c, r = np.nonzero(uses)
    A[column(c, r % slots), r] = either(A_has[r])
    o = np.flatnonzero(rank_of >= 0)
    B[rank_of[o], o] = either(~A_has[rank_of[o]])
    c, o = np.nonzero(~((rank_of >= 0) & uses[:, rank_of] & (scale != 0)))  # without a LoRA part, all from W
    W[o, column(c, slot[o])] = np.where(by_bias[o], powers(len(o)) / 16, either(np.ones(len(o), bool)))
    middle = rng.integers(5 << (BITS[dtype] - 3), 7 << (BITS[dtype] - 3), n_out) | 1  # 5/4 to 7/4, so the sum is from 1 to 2
    b = np.where(by_bias, np.ldexp(middle.astype(np.float64), 1 - BITS[dtype]), 0.0) if bias else None

    i, o = _places(rng, rows, slot % width)
    again = np.flatnonzero((i >= classes) & ~np.logical_or.reduce(uses & A_has, axis=1)[i % classes])
    free = np.flatnonzero((rank_of < 0) | A_has[rank_of])
    if rows > n_out and len(free):
        o[again] = free[np.arange(len(again)) % len(free)]  # at these, sums over the class are of powers of two
    c, of = i % classes, rank_of[o]
    h_has, u_has = (A_has, ~A_has) if carrier == "weights" else (np.full(rank, True), np.full(rank, True))
    in_dB = np.logical_or.reduce(uses & h_has, axis=1)[c]
    in_dA = (of >= 0) & u_has[of]
    keep = np.ones(len(i), bool)
    keep[in_dB] &= _first(o[in_dB])
    keep[in_dA] &= _first((c * rank + of)[in_dA])
    dy[i[keep], o[keep]] = bits(int(keep.sum())) if carrier == "dy" else powers(int(keep.sum()))
    return W, b, A, B, x, dy


def _places(rng: np.random.Generator, rows: int, slot: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and out features where dy may be non-zero: in no row two of the same slot. Each out feature is in one row at
    most, or each row has one."""
    if rows > len(slot):
        return np.arange(rows), rng.permutation(len(slot))[np.arange(rows) % len(slot)]
    o = rng.permutation(len(slot))
    o = o[np.argsort(slot[o], kind="stable")]
    place = np.arange(len(o)) - np.searchsorted(slot[o], slot[o])  # among those of the same slot
    o = o[place < rows]
    return np.arange(len(o)) % rows, o


def _first(keys: np.ndarray) -> np.ndarray:
    """Where each key occurs for the first time, as a mask."""
    mask = np.zeros(len(keys), bool)
    mask[np.unique(keys, return_index=True)[1]] = True
    return mask
