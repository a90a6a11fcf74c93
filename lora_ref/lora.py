"""LoRA: a frozen linear layer plus a trainable product of two thin matrices.

    y  = x Wᵀ + b + scale · ((x ∘ mask) A) B        scale = alpha / rank ("standard") or alpha / √rank ("rslora")
    W' = W + scale · (A B)ᵀ                         the same layer as one matrix, without dropout

    x (…, in)    W (out, in)    b (out)    A (in, rank)    B (rank, out)    y (…, out)    mask (…, in)

Sources: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021, eq. 3 and §4.1 (A random, B zero, α/r);
Kalajdzievski, "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA", 2023 (α/√r). The paper has columns for
samples and writes B A x; here samples are rows. `derivations/lora.md` proves the gradients with the same letters.

Left out: gradients of W and b, which are frozen; dropout in rank space; convolutions and embeddings.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from lora_ref import linear
from lora_ref.init import Initialiser, gaussian
from lora_ref.shapes import check, check_dtype, check_size, finite, rows


class LoRA(NamedTuple):
    """The arrays that train, or their gradients."""

    A: np.ndarray  # (in, rank)
    B: np.ndarray  # (rank, out)


class Cache(NamedTuple):
    """What backward needs. It refers to the arguments of forward: change none of them in between."""

    x: np.ndarray  # (…, in)
    base: linear.Cache
    p: LoRA
    scale: np.number
    mask: np.ndarray | None  # (…, in)
    z: np.ndarray  # (n, in), x ∘ mask
    h: np.ndarray  # (n, rank), scale · z A


def init(
    rng: np.random.Generator,
    in_features: int,
    out_features: int,
    rank: int,
    dtype: DTypeLike = np.float64,
    init_A: Initialiser = gaussian,
) -> LoRA:
    """A (in, rank) drawn by init_A and B (rank, out) zero: the layer starts as the frozen one (paper, §4.1).

    Raises ValueError for a size that is not a positive integer and for a dtype in which the package does not compute.
    """
    for name, size in ("in_features", in_features), ("out_features", out_features), ("rank", rank):
        check_size("lora.init", name, size)
    check_dtype("lora.init", "dtype", dtype)
    return LoRA(init_A(rng, in_features, rank, dtype), np.zeros((rank, out_features), dtype))


def forward(
    x: np.ndarray, W: np.ndarray, b: np.ndarray | None, p: LoRA, scale: float, mask: np.ndarray | None = None
) -> tuple[np.ndarray, Cache]:
    """y (…, out), in the dtype of x, and the cache for backward (paper, eq. 3).

    b may be None. `dropout_mask` makes the mask, already divided by 1 − rate; None means no dropout.
    Raises ValueError for a wrong shape or dtype, and for a scale that is not a finite number.
    """
    A, B = p
    check(
        "lora.forward",
        x=(x, "… in"), W=(W, "out in"), b=(b, "out or None"),
        A=(A, "in rank"), B=(B, "rank out"), mask=(mask, "… in or None"),
    )
    s = finite("lora.forward", "scale", scale, x.dtype)
    # 1. y = x Wᵀ + b
    y, base = linear.forward(rows(x), W, b)                                                   # (n, out)
    # 2. z = x ∘ mask: the mask acts on the input of A alone
    z = rows(x if mask is None else x * mask)                                                 # (n, in)
    # 3. h = scale · z A
    h = s * (z @ A)                                                                           # (n, rank)
    # 4. y += h B
    y += h @ B                                                                                # (n, out)
    return y.reshape(*x.shape[:-1], len(W)), Cache(x, base, p, s, mask, z, h)


def backward(dy: np.ndarray, cache: Cache) -> tuple[np.ndarray, LoRA]:
    """dx (…, in) and the gradients of A (in, rank) and B (rank, out), which sum over all leading axes.

    The gradients are those of ⟨dy, y⟩, dy (…, out). Raises ValueError for a wrong shape or dtype.
    """
    x, base, (A, B), s, mask, z, h = cache
    check("lora.backward", x=(x, "… in"), W=(base.W, "out in"), dy=(dy, "… out"))
    dy = rows(dy)                                                                             # (n, out)
    # 4. y += h B
    dh = dy @ B.T                                                                             # (n, rank)
    dB = h.T @ dy                                                                             # (rank, out)
    # 3. h = scale · z A
    du = s * dh                                                                               # (n, rank)
    dz = du @ A.T                                                                             # (n, in)
    dA = z.T @ du                                                                             # (in, rank)
    # 2. z = x ∘ mask
    dx = dz if mask is None else dz * rows(mask)                                              # (n, in)
    # 1. y = x Wᵀ + b
    dx += linear.backward(dy, base)                                                           # (n, in)
    return dx.reshape(x.shape), LoRA(dA, dB)


def merge(W: np.ndarray, b: np.ndarray | None, p: LoRA, scale: float) -> tuple[np.ndarray, np.ndarray | None]:
    """W + scale · (A B)ᵀ, (out, in), and a copy of b, or None: the adapted layer as a plain one (paper, §4.1).

    Raises ValueError for a wrong shape or dtype, and for a scale that is not a finite number.
    """
    A, B = p
    check("lora.merge", W=(W, "out in"), b=(b, "out or None"), A=(A, "in rank"), B=(B, "rank out"))
    s = finite("lora.merge", "scale", scale, W.dtype)
    return W + s * (A @ B).T, None if b is None else b.copy()


def parameter_count(in_features: int, out_features: int, rank: int) -> int:
    """rank · (in + out), which is 2 · d · rank for a d × d layer. Raises ValueError unless all are positive integers."""
    for name, size in ("in_features", in_features), ("out_features", out_features), ("rank", rank):
        check_size("lora.parameter_count", name, size)
    return int(rank) * (int(in_features) + int(out_features))


def scale(alpha: float, rank: int, scaling: str = "standard") -> float:
    """alpha / rank ("standard", paper §4.1) or alpha / √rank ("rslora").

    Raises ValueError for an alpha that is not finite, a rank that is not a positive integer and any other scaling.
    """
    alpha = finite("lora.scale", "alpha", alpha)
    check_size("lora.scale", "rank", rank)
    if scaling not in ("standard", "rslora"):
        expected = "'standard' (alpha / rank) or 'rslora' (alpha / √rank)"
        raise ValueError(f"lora.scale: scaling is {scaling!r}, expected {expected}")
    return float(alpha / (rank if scaling == "standard" else rank**0.5))


def dropout_mask(
    rng: np.random.Generator, shape: tuple[int, ...], rate: float, dtype: DTypeLike = np.float64
) -> np.ndarray:
    """A mask for `forward`: 0 with probability rate, and otherwise 1 / (1 − rate), so that its mean is 1.

    Raises ValueError for a rate outside [0, 1) and for a dtype in which the package does not compute.
    """
    dtype = check_dtype("lora.dropout_mask", "dtype", dtype)
    if not 0 <= finite("lora.dropout_mask", "rate", rate) < 1:
        why = "what is kept is divided by 1 − rate"
        raise ValueError(f"lora.dropout_mask: rate is {rate!r}, expected 0 ≤ rate < 1 because {why}")
    return (rng.random(shape) >= rate) / dtype.type(1 - rate)


PLACE = "linear"  # where LoRA stands in a transformer; places.py says what else is below and who calls it
FROZEN = ()  # the names of arrays that do not train


class Config(NamedTuple):
    """Hyperparameters of LoRA at one linear layer of a transformer."""

    rank: int
    scale: float = 1.0


def shapes(config: Config, in_features: int, out_features: int) -> LoRA:
    """The shapes of A and B. Raises ValueError for a rank that is not a positive integer."""
    check_size("lora.shapes", "rank", config.rank)
    return LoRA._make([(in_features, config.rank), (config.rank, out_features)])


def init_at(
    rng: np.random.Generator, config: Config, in_features: int, out_features: int, dtype: DTypeLike = np.float64
) -> LoRA:
    """What `init` gives for the rank of the configuration."""
    return init(rng, in_features, out_features, config.rank, dtype)
