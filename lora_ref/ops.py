"""The parts of a transformer that are not matrices: activations, norms, softmax, embedding, loss. Each with its backward.

    relu       max(x, 0)                                      silu  x σ(x)
    gelu       x/2 (1 + tanh(√(2/π) (x + 0.044715 x³)))       GPT-2's form of x Φ(x)
    layer      n w + b,  n = (x − mean x) / √(mean (x − mean x)² + ε)
    rms        n w,      n = x / √(mean x² + ε)
    softmax    eˢ / Σ eˢ                                      over the last axis
    loss       the mean of −log softmax(logits)[target] over the targets that are not −100

Every forward gives (y, cache), every backward takes (dy, cache). All are analytic as written, so the complex step goes
through them: a comparison looks at the real part alone. An argument is never changed. Sources: Hendrycks and Gimpel,
"Gaussian Error Linear Units", 2016; Ba et al., "Layer Normalization", 2016; Zhang and Sennrich, "Root Mean Square Layer
Normalization", 2019.
"""

from typing import NamedTuple

import numpy as np

EPSILON = 1e-5  # ε of both norms
IGNORED = -100  # a target that does not count
_GELU = (2 / np.pi) ** 0.5


def relu(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    positive = np.real(x) > 0
    return x * positive, positive


def relu_backward(dy: np.ndarray, positive: np.ndarray) -> np.ndarray:
    return dy * positive


def silu(x: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    # σ(x) = (1 + tanh(x/2)) / 2, which cannot overflow
    sigma = np.tanh(0.5 * x)
    sigma += 1
    sigma *= 0.5
    return x * sigma, (x, sigma)


def silu_backward(dy: np.ndarray, cache: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    x, sigma = cache
    # (x σ)′ = σ + x σ (1 − σ)
    return dy * (sigma * (1 + x * (1 - sigma)))


def gelu(x: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    t = x * x
    t *= 0.044715 * _GELU
    t += _GELU
    t *= x
    t = np.tanh(t)                                                                            # tanh u
    y = 1 + t
    y *= x
    y *= 0.5
    return y, (x, t)


def gelu_backward(dy: np.ndarray, cache: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    x, t = cache
    # (x (1 + t) / 2)′ = (1 + t) / 2 + x (1 − t²) u′ / 2, u = √(2/π) (x + 0.044715 x³)
    slope = x * x
    slope *= 3 * 0.044715 * _GELU
    slope += _GELU
    slope *= x
    slope *= 1 - t * t
    slope += t
    slope += 1
    slope *= 0.5
    slope *= dy
    return slope


ACTIVATIONS = {"relu": (relu, relu_backward), "gelu": (gelu, gelu_backward), "silu": (silu, silu_backward)}


class Norm(NamedTuple):
    """What the backward of a norm needs."""

    n: np.ndarray  # (…, width), normalised
    inverse: np.ndarray  # (…, 1), 1 / √(… + ε)
    w: np.ndarray  # (width)
    centred: bool


def norm(x: np.ndarray, w: np.ndarray, b: np.ndarray | None) -> tuple[np.ndarray, Norm]:
    """LayerNorm with a bias, RMSNorm without one; x (…, width)."""
    # 1. n = (x − mean) / √(mean square + ε)
    n = x if b is None else x - _mean(x)
    inverse = 1 / np.sqrt(_mean_product(n, n) + EPSILON)
    n = n * inverse                                                                           # (…, width)
    # 2. y = n w + b
    y = n * w
    if b is not None:
        y += b
    return y, Norm(n, inverse, w, b is not None)


def norm_backward(dy: np.ndarray, cache: Norm) -> np.ndarray:
    """dx (…, width); `norm_weights` gives dw and db."""
    n, inverse, w, centred = cache
    # 2. y = n w + b
    dx = dy * w
    # 1. the slope of 1/√(mean square + ε) takes the part along n away (exactly so for every ε), that of the mean the mean
    along = n * _mean_product(dx, n)
    if centred:
        dx -= _mean(dx)
    dx -= along
    dx *= inverse
    return dx


def norm_weights(dy: np.ndarray, cache: Norm) -> tuple[np.ndarray, np.ndarray | None]:
    """dw and db (width), sums over all leading axes; db is None of an RMSNorm."""
    axes = tuple(range(dy.ndim - 1))
    return (dy * cache.n).sum(axes), dy.sum(axes) if cache.centred else None


def softmax(s: np.ndarray) -> np.ndarray:
    """Over the last axis; −inf is a place that is not seen. Its backward needs the answer itself."""
    p = s - np.real(s).max(-1, keepdims=True)
    np.exp(p, out=p)
    p /= p.sum(-1, keepdims=True)
    return p


def softmax_backward(dp: np.ndarray, p: np.ndarray) -> np.ndarray:
    # dsⱼ = pⱼ (dpⱼ − Σ dp p)
    ds = dp - _sum_product(dp, p)
    ds *= p
    return ds


def embedding(tokens: np.ndarray, E: np.ndarray) -> np.ndarray:
    """The rows of E (vocabulary, width) at the tokens (…)."""
    return E[tokens]


def embedding_backward(dy: np.ndarray, tokens: np.ndarray, vocabulary: int) -> np.ndarray:
    """dE (vocabulary, width): each token's row is the sum of the dy (…, width) at its places."""
    tokens, dy = tokens.ravel(), dy.reshape(tokens.size, dy.shape[-1])
    order = np.argsort(tokens, kind="stable")
    present, starts = np.unique(tokens[order], return_index=True)
    dE = np.zeros_like(dy, shape=(vocabulary, dy.shape[-1]))
    if tokens.size:
        dE[present] = np.add.reduceat(dy[order], starts, axis=0)
    return dE


class Loss(NamedTuple):
    """What the backward of the loss needs."""

    p: np.ndarray  # (…, vocabulary), softmax(logits)
    targets: np.ndarray  # (…)
    counted: np.ndarray  # (…), whether it counts


def loss(logits: np.ndarray, targets: np.ndarray) -> tuple[np.generic, Loss]:
    """The mean over the targets (…) that count of −log softmax(logits (…, vocabulary))[target], and the cache.

    Raises ValueError for shapes that differ, a target outside the vocabulary, and if none counts.
    """
    vocabulary, counted = logits.shape[-1], targets != IGNORED
    if targets.shape != logits.shape[:-1]:
        raise ValueError(f"ops.loss: targets is {targets.shape}, expected {logits.shape[:-1]} because logits is {logits.shape}")
    if targets.dtype.kind not in "iu" or not np.all(~counted | ((targets >= 0) & (targets < vocabulary))):
        raise ValueError(f"ops.loss: targets has a value outside 0 … {vocabulary - 1} that is not {IGNORED}, "
                         f"expected indices because logits has {vocabulary} columns")
    if not counted.any():
        raise ValueError(f"ops.loss: every one of targets is {IGNORED}, expected one that counts because the loss is a mean")
    # 1. shifted = logits − max, p = e^shifted / Σ
    shifted = logits - np.real(logits).max(-1, keepdims=True)
    p = np.exp(shifted)
    total = p.sum(-1, keepdims=True)
    p /= total
    # 2. −log p[target] = log Σ − shifted[target]
    chosen = np.take_along_axis(shifted, np.where(counted, targets, 0)[..., None], -1)
    each = (np.log(total) - chosen)[..., 0] * counted
    # 3. mean
    return each.sum() / counted.sum(dtype=np.real(p).dtype), Loss(p, targets, counted)


def loss_backward(cache: Loss) -> np.ndarray:
    """dlogits (…, vocabulary) for a loss whose own gradient is 1."""
    p, targets, counted = cache
    # 3. and 2. and 1. together: (p − 1 at the target) / count
    weight = counted / counted.sum(dtype=np.real(p).dtype)
    dlogits = p * weight[..., None]
    index = np.where(counted, targets, 0)[..., None]
    np.put_along_axis(dlogits, index, np.take_along_axis(dlogits, index, -1) - weight[..., None], -1)
    return dlogits


def _mean(x: np.ndarray) -> np.ndarray:
    return x.sum(-1, keepdims=True) / x.dtype.type(x.shape[-1])


def _sum_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Σ a b over the last axis, (…, 1), without an array for the products."""
    return np.einsum("...i,...i->...", a, b)[..., None]


def _mean_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return _sum_product(a, b) / a.dtype.type(a.shape[-1])
