"""The parts of a transformer that are not matrices: activations, norms, softmax, embedding, loss. Each with its backward.

    relu       max(x, 0)
    silu       x σ(x)
    gelu       x/2 (1 + tanh(√(2/π) (x + 0.044715 x³)))       GPT-2's approximation of x Φ(x)
    layer      n w + b,  n = (x − mean x) / √(mean (x − mean x)² + ε)
    rms        n w,      n = x / √(mean x² + ε)
    softmax    eˢ / Σ eˢ                                      over the last axis
    loss       the mean of −log softmax(logits)[target] over the targets that are not −100

A forward function gives (y, cache), its backward function takes (dy, cache). No argument is changed. Every function is
analytic as written, so the complex step works on it; a comparison, such as that of relu, looks at the real part alone.

Sources: Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016; Ba et al., "Layer Normalization", 2016; Zhang and
Sennrich, "Root Mean Square Layer Normalization", 2019.
"""

from typing import NamedTuple

import numpy as np

from lora_ref.shapes import rows

EPSILON = 1e-5  # ε of both norms
IGNORED = -100  # a target that does not count
GELU = (2 / np.pi) ** 0.5


def relu(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    positive = np.real(x) > 0
    return x * positive, positive


def relu_backward(dy: np.ndarray, positive: np.ndarray) -> np.ndarray:
    return dy * positive


def sigmoid(x: np.ndarray) -> np.ndarray:
    """σ(x) = 1 / (1 + e⁻ˣ), written with tanh because that cannot overflow."""
    return (1 + np.tanh(x / 2)) / 2


def silu(x: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    sigma = sigmoid(x)
    return x * sigma, (x, sigma)


def silu_backward(dy: np.ndarray, cache: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    x, sigma = cache
    # (x σ)′ = σ + x σ (1 − σ)
    return dy * (sigma + x * sigma * (1 - sigma))


def gelu(x: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    # 1. t = tanh(√(2/π) (x + 0.044715 x³))
    t = np.tanh(GELU * (x + 0.044715 * x * x * x))
    # 2. y = x (1 + t) / 2
    return x * (1 + t) / 2, (x, t)


def gelu_backward(dy: np.ndarray, cache: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    x, t = cache
    # 1. t = tanh(√(2/π) (x + 0.044715 x³))
    dt_dx = (1 - t * t) * GELU * (1 + 3 * 0.044715 * x * x)
    # 2. y = x (1 + t) / 2
    return dy * (1 + t + x * dt_dx) / 2


ACTIVATIONS = {"relu": (relu, relu_backward), "gelu": (gelu, gelu_backward), "silu": (silu, silu_backward)}


class Norm(NamedTuple):
    """What the backward of a norm needs."""

    n: np.ndarray  # (…, width), normalised
    inverse: np.ndarray  # (…, 1), 1 / √(… + ε)
    w: np.ndarray  # (width)
    centred: bool  # whether the mean was taken away: LayerNorm


def norm(x: np.ndarray, w: np.ndarray, b: np.ndarray | None) -> tuple[np.ndarray, Norm]:
    """LayerNorm with a bias, RMSNorm without one; x (…, width)."""
    # 1. c = x − mean x, or x
    c = x if b is None else x - mean(x)                                                       # (…, width)
    # 2. n = c / √(mean c² + ε)
    inverse = 1 / np.sqrt(mean(c * c) + EPSILON)                                              # (…, 1)
    n = c * inverse                                                                           # (…, width)
    # 3. y = n w + b
    y = n * w if b is None else n * w + b
    return y, Norm(n, inverse, w, b is not None)


def norm_backward(dy: np.ndarray, cache: Norm) -> np.ndarray:
    """dx (…, width). `norm_weights` gives dw and db."""
    n, inverse, w, centred = cache
    # 3. y = n w + b
    dn = dy * w
    # 2. n = c / √(mean c² + ε)
    dc = inverse * (dn - n * mean(dn * n))
    # 1. c = x − mean x, or x
    return dc - mean(dc) if centred else dc


def norm_weights(dy: np.ndarray, cache: Norm) -> tuple[np.ndarray, np.ndarray | None]:
    """dw and db (width), sums over all leading axes. db is None for RMSNorm."""
    dw, db = rows(dy * cache.n).sum(0), rows(dy).sum(0)
    return dw, db if cache.centred else None


def mean(x: np.ndarray) -> np.ndarray:
    """The mean over the last axis, (…, 1)."""
    return x.sum(-1, keepdims=True) / x.shape[-1]


def softmax(s: np.ndarray) -> np.ndarray:
    """Over the last axis. A score of −inf gets the share 0. The backward needs the shares alone."""
    e = np.exp(s - np.real(s).max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def softmax_backward(dp: np.ndarray, p: np.ndarray) -> np.ndarray:
    # dsⱼ = pⱼ (dpⱼ − Σ dp p)
    return p * (dp - (dp * p).sum(-1, keepdims=True))


def embedding(tokens: np.ndarray, E: np.ndarray) -> np.ndarray:
    """The rows of E (vocabulary, width) at the tokens (…)."""
    return E[tokens]


def embedding_backward(dy: np.ndarray, tokens: np.ndarray, vocabulary: int) -> np.ndarray:
    """dE (vocabulary, width): the row of a token is the sum of dy (…, width) wherever the token stands."""
    dE = np.zeros_like(dy, shape=(vocabulary, dy.shape[-1]))
    np.add.at(dE, tokens.ravel(), rows(dy))
    return dE


class Loss(NamedTuple):
    """What the backward of the loss needs."""

    p: np.ndarray  # (…, vocabulary), softmax(logits)
    targets: np.ndarray  # (…), 0 where the target does not count
    counted: np.ndarray  # (…), whether the target counts


def loss(logits: np.ndarray, targets: np.ndarray) -> tuple[np.generic, Loss]:
    """The mean of −log softmax(logits)[target] over the targets that count, and the cache.

    logits (…, vocabulary), targets (…). Raises ValueError for shapes that differ, a target outside the vocabulary, and
    targets of which none counts.
    """
    vocabulary, counted = logits.shape[-1], targets != IGNORED
    if targets.shape != logits.shape[:-1]:
        raise ValueError(f"ops.loss: targets is {targets.shape}, expected {logits.shape[:-1]} because logits is {logits.shape}")
    if targets.dtype.kind not in "iu" or not np.all(~counted | ((targets >= 0) & (targets < vocabulary))):
        raise ValueError(f"ops.loss: targets has a value outside 0 … {vocabulary - 1} that is not {IGNORED}, "
                         f"expected indices because logits has {vocabulary} columns")
    if not counted.any():
        raise ValueError(f"ops.loss: every one of targets is {IGNORED}, expected one that counts because the loss is a mean")
    targets = np.where(counted, targets, 0)
    # 1. s = logits − max, p = eˢ / Σ eˢ
    s = logits - np.real(logits).max(-1, keepdims=True)                                       # (…, vocabulary)
    e = np.exp(s)
    total = e.sum(-1, keepdims=True)                                                          # (…, 1)
    p = e / total                                                                             # (…, vocabulary)
    # 2. −log p[target] = log Σ eˢ − s[target]
    each = np.log(total) - np.take_along_axis(s, targets[..., None], -1)                      # (…, 1)
    # 3. the mean over the targets that count
    return (each[..., 0] * counted).sum() / int(counted.sum()), Loss(p, targets, counted)


def loss_backward(cache: Loss) -> np.ndarray:
    """dlogits (…, vocabulary), for a gradient of 1 of the loss itself."""
    p, targets, counted = cache
    # dlogits = (p − onehot) / count, and 0 where the target does not count
    onehot = targets[..., None] == np.arange(p.shape[-1])                                     # (…, vocabulary)
    return (p - onehot) * counted[..., None] / int(counted.sum())
