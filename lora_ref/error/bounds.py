"""How far from the truth an honest implementation may be: componentwise rounding-error bounds.

A sum of k products, added up in any order, errs by at most γ_k Σ|aᵢ||bᵢ|, γ_k = k v / (1 − k v), where v is the
unit roundoff of the accumulator (Higham, *Accuracy and Stability of Numerical Algorithms*, 2nd ed., 2002, §3.1 and
§3.5). Storing a value in a narrower format costs another factor of at most 1 + u, or the smallest subnormal
number η where it underflows (§2.1). So every bound is the formula itself on absolute values, each term times

    growth(k, m) = (1 + γ_k(v)) · (1 + u)^m − 1     k roundings of the accumulator, m to the stored format

where k and m count the worst honest case: any order of summation; a rounding to the stored format after every
product, scaling and addition; the scale itself stored in that format; and either association, (x A) B or
x (A B). The comment beside each term lists the roundings that it counts; the bound allows these and no others. Under
tf32 both inputs of a product are rounded as well, which is a factor of (1 + t)² for each product on the way.

Arrays may have any real dtype and are taken as exact; bounds are float64. `precision` is a key of PRECISIONS.
"""

from typing import NamedTuple

import numpy as np

from lora_ref.lora import LoRA


class Precision(NamedTuple):
    """Unit roundoffs of the stored format, of the inputs of a product, of the accumulator; the smallest subnormal."""

    u: float
    t: float
    v: float
    eta: float


_LONG = np.finfo(np.longdouble)
PRECISIONS = {
    "longdouble": Precision(float(_LONG.eps) / 2, 0.0, float(_LONG.eps) / 2, 0.0),
    "float64": Precision(2.0**-53, 0.0, 2.0**-53, 2.0**-1074),
    "float32": Precision(2.0**-24, 0.0, 2.0**-24, 2.0**-149),
    "tf32": Precision(2.0**-24, 2.0**-11, 2.0**-24, 2.0**-149),
    "float16": Precision(2.0**-11, 0.0, 2.0**-24, 2.0**-24),
    "bfloat16": Precision(2.0**-8, 0.0, 2.0**-24, 2.0**-133),
}


def forward(x, W, b, p: LoRA, scale: float, precision: str, more: int = 0) -> np.ndarray:
    """Bound of |y − exact y|, of the shape of y: (…, out). A and B went through `more` roundings before."""
    x, W, A, B, s = *_absolute(x, W, p.A, p.B), abs(scale)
    n_in, rank = A.shape
    lora = s * (x @ A) @ B                                                                    # (…, out)
    bound = (
        # x Wᵀ: W + ΔW stored, product stored, bias added (or LoRA added); summed with bias and LoRA in one accumulator
        _growth(precision, n_in + rank + 2, 3, products=1) * (x @ W.T)
        # (x A), scale, scaling, product, sum with the base, bias added
        + _growth(precision, 2 * n_in + rank + 4, 6 + more, products=2) * lora
        + _underflow(precision, s, B.sum(0), x.sum(-1, keepdims=True), lora)
    )
    if b is not None:  # added to the product, then the LoRA part is added
        bound = bound + _growth(precision, n_in + rank + 2, 2) * np.abs(np.asarray(b, np.float64))
    return bound


def backward(dy, x, W, p: LoRA, scale: float, precision: str, more: int = 0, chunks: int = 1) -> tuple[np.ndarray, LoRA]:
    """Bounds of |dx − exact dx|, (…, in), and of dA and dB as a LoRA: (in, rank), (rank, out). The LoRA path has `more`
    roundings, such as those of a mask that multiplies x. The sums over out were added up from `chunks` sums, which are rounded
    each time, as autograd does for a layer that computes some outputs at a time."""
    dy, x, W, A, B, s = *_absolute(dy, x, W, p.A, p.B), abs(scale)
    n_in, rank = A.shape
    n_out = B.shape[1]
    dy2, x2 = dy.reshape(-1, n_out), x.reshape(-1, n_in)                                      # (n, out), (n, in)
    n = len(x2)
    h, u = x2 @ A, s * (dy2 @ B.T)                                                            # (n, rank) both

    # dx = dy W + s (dy Bᵀ) Aᵀ: as in forward, without a bias
    lora = s * (dy @ B.T) @ A.T                                                               # (…, in)
    dx = (
        _growth(precision, n_out + rank + 2, 2 + chunks, products=1) * (dy @ W)
        + _growth(precision, 2 * n_out + rank + 4, 4 + more + chunks, products=2) * lora
        + _underflow(precision, s, A.sum(1), dy.sum(-1, keepdims=True), lora)
    )
    # dA = s xᵀ (dy Bᵀ), dB = s (x A)ᵀ dy: inner product, scale, scaling, outer product, sum over the leading dimensions
    dA, dB = x2.T @ u, s * h.T @ dy2                                                          # (in, rank), (rank, out)
    bound_A = _growth(precision, n_out + n + 4, 4 + more + chunks, products=2) * dA
    bound_B = _growth(precision, n_in + n + 4, 5 + more, products=2) * dB
    bound_A = bound_A + _underflow(precision, s, x2.sum(0)[:, None], B.sum(1), dA)
    bound_B = bound_B + _underflow(precision, s, dy2.sum(0), A.sum(0)[:, None], dB)
    return dx, LoRA(bound_A, bound_B)


def merge(W, p: LoRA, scale: float, precision: str) -> np.ndarray:
    """Bound of |W' − (W + s (A B)ᵀ)|, (out, in), when every step may round to the stored format."""
    W, A, B, s = *_absolute(W, p.A, p.B), abs(scale)
    rank = A.shape[1]
    lora = s * (A @ B).T                                                                      # (out, in)
    return (
        _growth(precision, rank + 1, 1) * W  # summed with the products in one accumulator, as a BLAS may add them to W, stored
        + _growth(precision, rank + 3, 4, products=1) * lora  # product, scale, scaling, addition
        + _underflow(precision, s, 0.0, 0.0, lora)
    )


def merge_rounded_once(W, p: LoRA, scale: float, precision: str) -> np.ndarray:
    """Bound of the merged weight when A B, the scaling and the sum are done in the accumulator, and only the sum is rounded."""
    P = PRECISIONS[precision]
    W, A, B = (np.asarray(a, np.float64) for a in (W, p.A, p.B))
    exact = np.abs(W + scale * (A @ B).T)                                                     # (out, in)
    terms = np.abs(W) + abs(scale) * (np.abs(A) @ np.abs(B)).T
    accumulated = _gamma(A.shape[1] + 3, P.v) * terms  # product, scale, scaling, addition
    return P.u * exact + (1 + P.u) * accumulated + P.eta


def unmerge(W, p: LoRA, scale: float, precision: str) -> np.ndarray:
    """Bound of |W'' − W| after a merge and an unmerge that subtracts s (A B)ᵀ again: two merges, the second on W'."""
    W, A, B, s = *_absolute(W, p.A, p.B), abs(scale)
    first = merge(W, p, scale, precision)
    return first + merge(W + s * (A @ B).T + first, p, scale, precision)


def step(p: LoRA, dp: LoRA, rate: float, precision: str) -> LoRA:
    """Bound of |p' − (p − rate dp)| after a step of gradient descent: rate stored, product, difference."""
    (A, dA), (B, dB) = (_absolute(*pair) for pair in zip(p, dp, strict=True))
    growth, eta = _growth(precision, 2, 3), PRECISIONS[precision].eta
    return LoRA(growth * (A + abs(rate) * dA) + 2 * eta, growth * (B + abs(rate) * dB) + 2 * eta)


def total(terms: list[LoRA], precision: str) -> LoRA:
    """Bound of the error of adding up gradients one after another. The gradients themselves are taken as exact."""
    growth = _growth(precision, 1, len(terms)) if len(terms) > 1 else 0.0
    A, B = (np.sum([np.abs(np.asarray(a, np.float64)) for a in arrays], axis=0) for arrays in zip(*terms, strict=True))
    return LoRA(growth * A, growth * B)


def _gamma(k: int, v: float) -> float:
    return k * v / (1 - k * v)


def _growth(precision: str, k: int, m: int, products: int = 0) -> float:
    """(1 + γ_k(v)) (1 + u)^m (1 + t)^(2 products) − 1, computed without cancellation."""
    P = PRECISIONS[precision]
    return float(np.expm1(np.log1p(_gamma(k, P.v)) + m * np.log1p(P.u) + 2 * products * np.log1p(P.t)))


def _underflow(precision: str, s: float, near, far, lora):
    """Bound of what underflow adds: in the first product (carried through the second), in the scale, scaling and storing.

    `near` and `far` are the sums of absolute values that multiply an error of the first product, one for each association.
    The 1 beside them is the second product, which may be scaled after it was stored.
    """
    return PRECISIONS[precision].eta * ((1 + s) * (near + far + 1) + 1 + (lora / s if s else 0.0))


def _absolute(*arrays) -> tuple[np.ndarray, ...]:
    return tuple(np.abs(np.asarray(a, np.float64)) for a in arrays)
