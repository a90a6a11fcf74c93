"""P-tuning in PyTorch: n trained prompts among the embedded tokens, at places that are given, through an encoder.

    "embedding"   prompts = E                                      (n, width)
    "mlp"         prompts = relu(E W1ᵀ + b1) W2ᵀ + b2
    "lstm"        prompts = relu([h→ | h←] W1ᵀ + b1) W2ᵀ + b2      h→, h← (n, m): an LSTM over the rows of E, each way

    E = embedding (n, width)   W1 (m, width), lstm: (2m, 2m)   W2 (width, m), lstm: (width, 2m)
    m = hidden_size

    the LSTM, with gates in the order i, f, g, o: z_t = e_t Wᵀ + h_{t−1} Uᵀ + b
    c_t = σ(f) c_{t−1} + σ(i) tanh(g)   h_t = σ(o) tanh(c_t)    W (4m, width)   U (4m, m)   b (4m)

Prompts are inserted before positions are embedded. So they have positions, and a prompt sees what stands before it. torch's
LSTM has two biases, and only their sum matters: the second one is zero and does not train. After fold() only the prompts are
left.

Start: E ~ N(0, 1), all else ~ U(±1/√in), in the LSTM ~ U(±1/√m), which are torch's draws for such layers.

Sources: Liu et al. 2021, arXiv:2103.10385 ("GPT Understands, Too"), equations 5 and 6. Left out: anchor tokens, an LSTM of
several layers, dropout. For prompts in every layer (P-tuning v2) see prefix.py.
"""

from collections.abc import Sequence
from functools import partial
from numbers import Integral
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_torch import block
from lora_torch.checks import is_size, require
from lora_torch.merging import put_at_once
from lora_torch.prefix import draw_linear

_require = partial(require, "ptuning.Config")

ENCODERS = ("embedding", "mlp", "lstm")
# What nn.LSTM calls an array, and what it is called above: None for its second biases.
LSTM_ARRAYS: dict[str, str | None] = {
    f"lstm.{theirs}_l0{end}": None if ours is None else f"{way}_{ours}"
    for way, end in (("forward", ""), ("backward", "_reverse"))
    for theirs, ours in (("weight_ih", "W"), ("weight_hh", "U"), ("bias_ih", "b"), ("bias_hh", None))
}


class Config(NamedTuple):
    """positions: where the prompts stand in the sequence that results, ascending. hidden_size: of "mlp" and "lstm" alone."""

    positions: Sequence[int]
    encoder: str = "embedding"
    hidden_size: int | None = None


def places(config: block.Config) -> list[str]:
    return ["prompt"]


def put(
    model: nn.Module, config: block.Config, place: str, method: Config,
    device: torch.device | str | int | None, dtype: torch.dtype | None,
) -> None:
    model.prompt = PromptEncoder(config.width, method, device, dtype)


class PromptEncoder(nn.Module):
    """The trained arrays at the place "prompt"."""

    array_names = LSTM_ARRAYS

    def __init__(
        self, width: int, method: Config, device: torch.device | str | int | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        positions, encoder, hidden_size = method
        _check_positions(positions)
        _require(encoder in ENCODERS, "encoder", encoder, f"one of {', '.join(ENCODERS)}", "it makes the prompts")
        if encoder == "embedding":
            _require(hidden_size is None, "hidden_size", hidden_size, "None", "encoder 'embedding' has no hidden units")
        else:
            why = f"encoder {encoder!r} has that many units"
            _require(is_size(hidden_size), "hidden_size", hidden_size, "an integer ≥ 1", why)
        self.positions = tuple(int(p) for p in positions)
        self.method = Config(self.positions, encoder, hidden_size)
        empty = partial(torch.empty, device=device, dtype=dtype)
        self.embedding = nn.Parameter(empty(len(self.positions), width))
        if encoder == "lstm" and hidden_size is not None:
            self.lstm = nn.LSTM(width, hidden_size, bidirectional=True, device=device, dtype=dtype)
        if hidden_size is not None:
            n_in, units = (2 * hidden_size, 2 * hidden_size) if encoder == "lstm" else (width, hidden_size)
            self.W1, self.b1 = nn.Parameter(empty(units, n_in)), nn.Parameter(empty(units))
            self.W2, self.b2 = nn.Parameter(empty(width, units)), nn.Parameter(empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every array anew."""
        nn.init.normal_(self.embedding)
        if self.method.encoder == "lstm":
            self.lstm.reset_parameters()
            for name, array in self.lstm.named_parameters():
                if name.startswith("bias_hh"):
                    nn.init.zeros_(array.requires_grad_(False))
        if self.method.encoder != "embedding":
            draw_linear(self.W1, self.b1)
            draw_linear(self.W2, self.b2)

    def train(self, mode: bool = True) -> "PromptEncoder":
        """The LSTM stays in training mode, which changes no number here: cuDNN has no backward pass in the other one."""
        super().train(mode)
        if self.method.encoder == "lstm":
            self.lstm.train()
        return self

    def forward(self) -> Tensor:
        """→ the prompts (n, width)."""
        k = self.embedding
        if self.method.encoder == "embedding":
            return k
        if self.method.encoder == "lstm":
            with torch.enable_grad():  # on the CPU torch has another kernel, and other bits, for no gradients
                k, _ = self.lstm(k)    # (n, 2m)
        return F.linear(F.relu(F.linear(k, self.W1, self.b1)), self.W2, self.b2)

    def insert(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """h (batch, T, width) → the sequence with prompts (batch, T + n, width), and where in it the tokens stand (T)."""
        length = h.shape[1] + len(self.positions)
        last = self.positions[-1]
        _require(
            last < length, "positions", self.positions, f"positions < {length}",
            f"{h.shape[1]} tokens and {len(self.positions)} prompts make a sequence of {length}",
        )
        prompted = set(self.positions)
        tokens = torch.tensor([t for t in range(length) if t not in prompted], dtype=torch.long, device=h.device)
        rows = h.new_empty(h.shape[0], length, h.shape[2])
        rows[:, self.positions] = self().to(h.dtype)    # (n, width), for every sample
        rows[:, tokens] = h
        return rows, tokens

    def fold(self) -> None:
        """Put what the encoder gives in its place, as an embedding that is a new Parameter."""
        prompts = self().detach().clone()
        arrays = {"embedding": nn.Parameter(prompts)}
        put_at_once((self.__dict__, {"_parameters": arrays, "_modules": {}, "method": Config(self.positions)}))

    def extra_repr(self) -> str:
        return f"positions={self.positions}, encoder={self.method.encoder}, hidden_size={self.method.hidden_size}"


def _check_positions(positions: Sequence[int]) -> None:
    listed = isinstance(positions, Sequence) and len(positions) > 0
    whole = listed and all(isinstance(p, Integral) and not isinstance(p, bool) for p in positions)
    rising = whole and all(a < b for a, b in zip([-1, *positions], positions, strict=False))
    expected = "one or more integers ≥ 0 in a list or tuple, ascending and distinct"
    _require(rising, "positions", positions, expected, "each says where one prompt stands in the sequence that results")
