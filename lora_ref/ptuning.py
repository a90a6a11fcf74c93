"""P-tuning: trained vectors in the place of tokens, anywhere in the input, made by a small prompt encoder.

    h[positions] = prompts        the embeddings of the tokens take the other places, in their order

    "embedding"   prompts = E
    "mlp"         prompts = relu(E W1ᵀ + b1) W2ᵀ + b2
    "lstm"        prompts = relu([h→ h←] W1ᵀ + b1) W2ᵀ + b2,   h→ and h← of an LSTM along E, forwards and backwards (`lstm.py`)

    E (n, e)   prompts (n, width)   W (4 hidden, e)   U (4 hidden, hidden)   b (4 hidden)
    mlp: W1 (hidden, e)   W2 (width, hidden);   lstm: W1 (2 hidden, 2 hidden)   W2 (width, 2 hidden)

A prompt has a position and takes part in causal attention as a token does. Its logits are left out. After training the prompts
are kept and the encoder is dropped: `merge`. P-tuning v2, the deep form, has trained keys and values in every layer; that is
`prefix.py`.

Source: Liu et al., "GPT Understands, Too", 2021, eq. 3 (an LSTM, then an MLP of two layers with relu; any position). Their code
has other sizes for other tasks. Left out: an LSTM of several layers; training the model too. Words that are kept between
prompts are ordinary tokens.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from lora_ref import lstm
from lora_ref.ops import relu, relu_backward
from lora_ref.shapes import check, check_dtype, check_size


class Embedding(NamedTuple):
    """The prompts themselves, or their gradients. `merge` gives this for every encoder."""

    embedding: np.ndarray  # (n, width)


class MLP(NamedTuple):
    """The arrays of the encoder "mlp", or their gradients."""

    embedding: np.ndarray  # (n, e)
    W1: np.ndarray  # (hidden, e)
    b1: np.ndarray  # (hidden)
    W2: np.ndarray  # (width, hidden)
    b2: np.ndarray  # (width)


class LSTM(NamedTuple):
    """The arrays of the encoder "lstm", or their gradients."""

    embedding: np.ndarray  # (n, e)
    forward_W: np.ndarray  # (4 hidden, e)
    forward_U: np.ndarray  # (4 hidden, hidden)
    forward_b: np.ndarray  # (4 hidden)
    backward_W: np.ndarray  # like forward_W
    backward_U: np.ndarray
    backward_b: np.ndarray
    W1: np.ndarray  # (2 hidden, 2 hidden)
    b1: np.ndarray  # (2 hidden)
    W2: np.ndarray  # (width, 2 hidden)
    b2: np.ndarray  # (width)


Encoder = Embedding | MLP | LSTM


def init(
    rng: np.random.Generator, n: int, width: int, encoder: str = "embedding", hidden_size: int | None = None,
    dtype: DTypeLike = np.float64,
) -> Encoder:
    """The embedding N(0, 1), as `torch.nn.Embedding` has it; matrices N(0, 1/columns), biases zero.

    The paper states no initial values; these are our choice. Raises ValueError for a size below 1, an unknown encoder, an
    encoder without its hidden size, and a dtype in which the package does not compute.
    """
    check_dtype("ptuning.init", "dtype", dtype)
    p = _shapes("ptuning.init", n, width, encoder, hidden_size)
    arrays = {}
    for name, shape in p._asdict().items():
        deviation = 1 if name == "embedding" else shape[-1] ** -0.5 if len(shape) == 2 else 0
        arrays[name] = (deviation * rng.standard_normal(shape)).astype(dtype)
    return p._replace(**arrays)


def forward(p: Encoder) -> tuple[np.ndarray, tuple]:
    """The prompts (n, width) and the cache. Raises ValueError for a wrong shape or dtype."""
    if isinstance(p, Embedding):
        check("ptuning.forward", embedding=(p.embedding, "n width"))
        return p.embedding, (p,)
    # 1. x = E, or [h→ h←]
    x, caches = _both_ways(p) if isinstance(p, LSTM) else (p.embedding, ())                   # (n, e) or (n, 2 hidden)
    check("ptuning.forward", embedding=(x, "n e"), W1=(p.W1, "hidden e"), b1=(p.b1, "hidden"), W2=(p.W2, "width hidden"),
          b2=(p.b2, "width"))
    # 2. a = relu(x W1ᵀ + b1)
    a, positive = relu(x @ p.W1.T + p.b1)                                                     # (n, hidden)
    # 3. prompts = a W2ᵀ + b2
    return a @ p.W2.T + p.b2, (p, x, caches, a, positive)


def backward(dprompts: np.ndarray, cache: tuple) -> Encoder:
    """The gradients of the arrays that train, for those of the prompts (n, width).

    Raises ValueError for a wrong shape or dtype.
    """
    p, *rest = cache
    if isinstance(p, Embedding):
        check("ptuning.backward", embedding=(p.embedding, "n width"), dprompts=(dprompts, "n width"))
        return Embedding(dprompts)
    check("ptuning.backward", embedding=(p.embedding, "n e"), W2=(p.W2, "width hidden"), dprompts=(dprompts, "n width"))
    x, caches, a, positive = rest
    # 3. prompts = a W2ᵀ + b2
    dW2, db2, da = dprompts.T @ a, dprompts.sum(0), dprompts @ p.W2
    # 2. a = relu(x W1ᵀ + b1)
    du = relu_backward(da, positive)
    dW1, db1, dx = du.T @ x, du.sum(0), du @ p.W1
    # 1. x = E, or [h→ h←]
    if isinstance(p, MLP):
        return MLP(dx, dW1, db1, dW2, db2)
    return LSTM._make([*_both_ways_backward(dx, caches), dW1, db1, dW2, db2])


def _both_ways(p: LSTM) -> tuple[np.ndarray, tuple]:
    """[h→ h←] (n, 2 hidden). h← comes from E turned over, and is turned back."""
    check(
        "ptuning.forward", embedding=(p.embedding, "n e"), forward_W=(p.forward_W, "gates e"),
        forward_U=(p.forward_U, "gates hidden"), forward_b=(p.forward_b, "gates"), backward_W=(p.backward_W, "gates e"),
        backward_U=(p.backward_U, "gates hidden"), backward_b=(p.backward_b, "gates"),
    )
    right, first = lstm.forward(p.embedding, p.forward_W, p.forward_U, p.forward_b)
    left, second = lstm.forward(p.embedding[::-1], p.backward_W, p.backward_U, p.backward_b)
    return np.concatenate([right, left[::-1]], -1), (first, second)


def _both_ways_backward(dx: np.ndarray, caches: tuple) -> tuple[np.ndarray, ...]:
    """The gradients of E, and of W, U and b of each LSTM."""
    dright, dleft = np.split(dx, 2, axis=-1)
    dE_right, *right = lstm.backward(dright, caches[0])
    dE_left, *left = lstm.backward(dleft[::-1], caches[1])
    return dE_right + dE_left[::-1], *right, *left


def merge(p: Encoder) -> Embedding:
    """The prompts alone: what is kept after training."""
    return Embedding(forward(p)[0].copy())


def parameter_count(n: int, width: int, encoder: str = "embedding", hidden_size: int | None = None) -> int:
    """How many numbers train. For "embedding" that is n · width, which is also what every encoder leaves after `merge`.

    Raises ValueError as `init` does.
    """
    return sum(math.prod(map(int, shape)) for shape in _shapes("ptuning.parameter_count", n, width, encoder, hidden_size))


def insert(h: np.ndarray, prompts: np.ndarray, positions: tuple[int, ...]) -> np.ndarray:
    """h (batch, T, width) and the prompts (n, width) → (batch, T + n, width), the prompts at the positions."""
    real = tokens_at(h.shape[1], positions)
    out = np.empty_like(h, shape=(len(h), len(real) + len(positions), h.shape[-1]))
    out[:, real], out[:, list(positions)] = h, prompts
    return out


def insert_backward(dout: np.ndarray, positions: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """dh (batch, T, width), and dprompts (n, width), which are sums over the batch."""
    return dout[:, tokens_at(dout.shape[1] - len(positions), positions)], dout[:, list(positions)].sum(0)


def tokens_at(T: int, positions: tuple[int, ...]) -> np.ndarray:
    """The places of the T tokens. Raises ValueError unless the positions ascend and lie within T + n."""
    total = T + len(positions)
    if list(positions) != sorted(set(positions)) or not all(0 <= at < total for at in positions):
        why = f"{T} tokens and {len(positions)} prompts have places 0 … {total - 1}"
        raise ValueError(f"ptuning.insert: positions is {positions}, expected ascending places in range because {why}")
    return np.setdiff1d(np.arange(total), positions)


PLACE = "prompt"  # where prompts stand in a transformer; places.py says what else is below and who calls it
FROZEN = ()  # the names of arrays that do not train


class Config(NamedTuple):
    """Hyperparameters of prompts: their positions in the longer sequence, ascending, and their encoder."""

    positions: tuple[int, ...]
    encoder: str = "embedding"
    hidden_size: int | None = None

    @property
    def merged(self) -> "Config":
        """The configuration after `merge`."""
        return Config(self.positions)


def shapes(config: Config, width: int) -> Encoder:
    """The shapes of the arrays. Raises ValueError as `init` does."""
    return _shapes("ptuning.shapes", len(config.positions), width, config.encoder, config.hidden_size)


def init_at(rng: np.random.Generator, config: Config, width: int, dtype: DTypeLike = np.float64) -> Encoder:
    """What `init` gives for the configuration."""
    return init(rng, len(config.positions), width, config.encoder, config.hidden_size, dtype)


def _shapes(where: str, n: int, width: int, encoder: str, hidden_size: int | None) -> Encoder:
    """The shapes of the arrays in their places, e being the width."""
    for name, size in ("n", n), ("width", width):
        check_size(where, name, size)
    if encoder not in ("embedding", "mlp", "lstm"):
        raise ValueError(f"{where}: encoder is {encoder!r}, expected one of embedding, mlp, lstm")
    if encoder == "embedding":
        return Embedding._make([(n, width)])
    check_size(where, "hidden_size", hidden_size)
    h: int = hidden_size  # type: ignore[assignment]
    if encoder == "mlp":
        return MLP._make([(n, width), (h, width), (h,), (width, h), (width,)])
    one_way = [(4 * h, width), (4 * h, h), (4 * h,)]
    return LSTM._make([(n, width), *one_way, *one_way, (2 * h, 2 * h), (2 * h,), (width, 2 * h), (width,)])
