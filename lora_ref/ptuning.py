"""P-tuning: trained vectors in the place of tokens, anywhere in the input, made by a small prompt encoder.

    h[positions] = prompts        the embeddings of the tokens take the other places, in their order

    "embedding"   prompts = E
    "mlp"         prompts = relu(E W1ᵀ + b1) W2ᵀ + b2
    "lstm"        prompts = relu([h→ h←] W1ᵀ + b1) W2ᵀ + b2,   h→ and h← of an LSTM along E, forwards and backwards:
                  [i f g o] = E Wᵀ + h₋₁ Uᵀ + b,   c = σ(f) c₋₁ + σ(i) tanh(g),   h = σ(o) tanh(c)

    E (n, e)   prompts (n, width)   W (4 hidden, e)   U (4 hidden, hidden)   b (4 hidden), gates in PyTorch's order i f g o
    mlp: W1 (hidden, e)   W2 (width, hidden);   lstm: W1 (2 hidden, 2 hidden)   W2 (width, 2 hidden)

A prompt has a position and takes part in causality, as a token would; its logits are left out. After training the encoder
is folded away, and the prompts are kept. The deep form, P-tuning v2, has trained keys and values in every layer: it is
`prefix.py`, trained as it is or through its own MLP. Sources: Liu et al., "GPT Understands, Too", 2021, eq. 3 (LSTM, then a
two-layer ReLU MLP; any position); their code has other sizes for other tasks.
Left out: more than one layer of LSTM; words kept as anchors are ordinary tokens; training the model besides.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from lora_ref.ops import relu, relu_backward
from lora_ref.shapes import check, check_dtype, check_size


class Spec(NamedTuple):
    """What a place of a transformer is told: where, in the sequence that results, the prompts stand, ascending."""

    positions: tuple[int, ...]
    encoder: str = "embedding"
    hidden: int | None = None


class Embedding(NamedTuple):
    """The prompts themselves: what is trained, what is folded, or gradients."""

    embedding: np.ndarray  # (n, width)


class MLP(NamedTuple):
    embedding: np.ndarray  # (n, e)
    W1: np.ndarray  # (hidden, e)
    b1: np.ndarray  # (hidden)
    W2: np.ndarray  # (width, hidden)
    b2: np.ndarray  # (width)


class LSTM(NamedTuple):
    embedding: np.ndarray  # (n, e)
    forward_W: np.ndarray  # (4 hidden, e)
    forward_U: np.ndarray  # (4 hidden, hidden)
    forward_b: np.ndarray  # (4 hidden)
    backward_W: np.ndarray
    backward_U: np.ndarray
    backward_b: np.ndarray
    W1: np.ndarray  # (2 hidden, 2 hidden)
    b1: np.ndarray  # (2 hidden)
    W2: np.ndarray  # (width, 2 hidden)
    b2: np.ndarray  # (width)


Encoder = Embedding | MLP | LSTM
ENCODERS: dict[str, type] = {"embedding": Embedding, "mlp": MLP, "lstm": LSTM}


def shapes(n: int, width: int, encoder: str = "embedding", hidden: int | None = None) -> dict[str, tuple[int, ...]]:
    """The shapes of what is trained, by name, for embeddings of the width of the prompts. Raises ValueError for a size
    below 1, any other encoder, and an encoder without its hidden size."""
    for name, size in ("n", n), ("width", width):
        check_size("ptuning.shapes", name, size)
    if encoder not in ENCODERS:
        raise ValueError(f"ptuning.shapes: encoder is {encoder!r}, expected one of {', '.join(ENCODERS)}")
    if encoder == "embedding":
        return {"embedding": (n, width)}
    check_size("ptuning.shapes", "hidden", hidden)
    assert hidden is not None
    if encoder == "mlp":
        return {"embedding": (n, width), "W1": (hidden, width), "b1": (hidden,), "W2": (width, hidden), "b2": (width,)}
    one = {"W": (4 * hidden, width), "U": (4 * hidden, hidden), "b": (4 * hidden,)}
    both = {f"{way}_{name}": shape for way in ("forward", "backward") for name, shape in one.items()}
    head = {"W1": (2 * hidden, 2 * hidden), "b1": (2 * hidden,), "W2": (width, 2 * hidden), "b2": (width,)}
    return {"embedding": (n, width), **both, **head}


def init(
    rng: np.random.Generator, n: int, width: int, encoder: str = "embedding", hidden: int | None = None,
    dtype: DTypeLike = np.float64,
) -> Encoder:
    """The embedding N(0, 1), as `torch.nn.Embedding` has it; matrices N(0, 1/columns), biases zero. Our choice: the paper
    states none. Raises ValueError as `shapes` does, and for a dtype in which the package does not compute."""
    check_dtype("ptuning.init", "dtype", dtype)
    arrays = []
    for name, shape in shapes(n, width, encoder, hidden).items():
        scale = 1.0 if name == "embedding" else shape[-1] ** -0.5 * (len(shape) > 1)
        arrays.append((scale * rng.standard_normal(shape)).astype(dtype))
    return ENCODERS[encoder](*arrays)


def forward(p: Encoder) -> tuple[np.ndarray, tuple]:
    """The prompts (n, width) and the cache. Raises ValueError for a wrong shape or dtype."""
    if isinstance(p, Embedding):
        check("ptuning.forward", embedding=(p.embedding, "n width"))
        return p.embedding, (p,)
    # 1. x = E, or [h→ h←]
    ways: tuple = ()
    if isinstance(p, LSTM):
        check(
            "ptuning.forward", embedding=(p.embedding, "n e"), forward_W=(p.forward_W, "gates e"),
            forward_U=(p.forward_U, "gates hidden"), forward_b=(p.forward_b, "gates"), backward_W=(p.backward_W, "gates e"),
            backward_U=(p.backward_U, "gates hidden"), backward_b=(p.backward_b, "gates"),
        )
        there, first = _lstm(p.embedding, p.forward_W, p.forward_U, p.forward_b)
        back, second = _lstm(p.embedding[::-1], p.backward_W, p.backward_U, p.backward_b)
        x, ways = np.concatenate([there, back[::-1]], -1), (first, second)                    # (n, 2 hidden)
    else:
        x = p.embedding                                                                       # (n, e)
    check("ptuning.forward", embedding=(x, "n e"), W1=(p.W1, "hidden e"), b1=(p.b1, "hidden"), W2=(p.W2, "width hidden"),
          b2=(p.b2, "width"))
    # 2. a = relu(x W1ᵀ + b1)
    a, positive = relu(x @ p.W1.T + p.b1)                                                     # (n, hidden)
    # 3. prompts = a W2ᵀ + b2
    return a @ p.W2.T + p.b2, (p, x, ways, a, positive)


def backward(dprompts: np.ndarray, cache: tuple) -> Encoder:
    """The gradients of what is trained, for those of the prompts (n, width)."""
    p, *rest = cache
    if isinstance(p, Embedding):
        return Embedding(dprompts)
    x, ways, a, positive = rest
    # 3. prompts = a W2ᵀ + b2
    dW2, db2, da = dprompts.T @ a, dprompts.sum(0), dprompts @ p.W2
    # 2. a = relu(x W1ᵀ + b1)
    du = relu_backward(da, positive)
    dW1, db1, dx = du.T @ x, du.sum(0), du @ p.W1
    if isinstance(p, MLP):
        return MLP(dx, dW1, db1, dW2, db2)
    # 1. x = [h→ h←]
    there, back = np.split(dx, 2, axis=-1)
    dE, dW, dU, db = _lstm_backward(there, ways[0])
    dE_back, dW_back, dU_back, db_back = _lstm_backward(back[::-1], ways[1])
    return LSTM(dE + dE_back[::-1], dW, dU, db, dW_back, dU_back, db_back, dW1, db1, dW2, db2)


def fold(p: Encoder) -> Embedding:
    """What is kept after training: the prompts."""
    return Embedding(forward(p)[0].copy())


def insert(h: np.ndarray, prompts: np.ndarray, positions: tuple[int, ...]) -> np.ndarray:
    """h (batch, T, width) and the prompts (n, width) → (batch, T + n, width), the prompts at the positions."""
    real = tokens_at(h.shape[1], positions)
    out = np.empty_like(h, shape=(len(h), len(real) + len(positions), h.shape[-1]))
    out[:, real], out[:, list(positions)] = h, prompts
    return out


def insert_backward(dout: np.ndarray, positions: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """dh (batch, T, width), and dprompts (n, width), which sum over the batch."""
    return dout[:, tokens_at(dout.shape[1] - len(positions), positions)], dout[:, list(positions)].sum(0)


def tokens_at(T: int, positions: tuple[int, ...]) -> np.ndarray:
    """Where the T tokens stand. Raises ValueError unless the positions ascend and lie within T + n."""
    total = T + len(positions)
    if list(positions) != sorted(set(positions)) or not all(0 <= at < total for at in positions):
        why = f"{T} tokens and {len(positions)} prompts have places 0 … {total - 1}"
        raise ValueError(f"ptuning.insert: positions is {positions}, expected ascending places in range because {why}")
    return np.setdiff1d(np.arange(total), positions)


def parameter_count(n: int, width: int, encoder: str = "embedding", hidden: int | None = None) -> int:
    """What is trained; n · width of "embedding", which is also what is stored of the others. Raises as `shapes` does."""
    return sum(int(np.prod(shape)) for shape in shapes(n, width, encoder, hidden).values())


def _sigma(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))


def _lstm(x: np.ndarray, W: np.ndarray, U: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, tuple]:
    """h (n, hidden) along the rows of x (n, e), from zero."""
    hidden = U.shape[1]
    h, c = np.zeros_like(x, shape=hidden), np.zeros_like(x, shape=hidden)
    steps, out = [], np.empty_like(x, shape=(len(x), hidden))
    for t, u in enumerate(x @ W.T + b):
        before = h, c
        i, f, g, o = np.split(u + U @ h, 4)
        i, f, g, o = _sigma(i), _sigma(f), np.tanh(g), _sigma(o)
        c = f * c + i * g
        h = o * np.tanh(c)
        steps.append((*before, i, f, g, o, c))
        out[t] = h
    return out, (x, W, U, steps)


def _lstm_backward(dout: np.ndarray, cache: tuple) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """dx, dW, dU, db: back along the rows, with the gradients that h and c carry."""
    x, W, U, steps = cache
    du, before = np.empty_like(x, shape=(len(x), len(U))), np.empty_like(x, shape=(len(x), U.shape[1]))
    dh, dc = np.zeros_like(dout[0]), np.zeros_like(dout[0])
    for t, (h_before, c_before, i, f, g, o, c) in reversed(list(enumerate(steps))):
        # h = o tanh(c)
        dh, s = dh + dout[t], np.tanh(c)
        dc = dc + dh * o * (1 - s * s)
        # c = f c₋₁ + i g, and the gates
        du[t] = np.concatenate([dc * g * i * (1 - i), dc * c_before * f * (1 - f), dc * i * (1 - g * g), dh * s * o * (1 - o)])
        # [i f g o] = x Wᵀ + h₋₁ Uᵀ + b
        dh, dc, before[t] = du[t] @ U, dc * f, h_before
    return du @ W, du.T @ x, du.T @ before, du.sum(0)
