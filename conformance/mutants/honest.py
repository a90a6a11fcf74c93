"""A LoRA layer in NumPy, small and plain, that shares no code with `lora_ref`: what the mutants are mutants of.

    y = x Wᵀ + b + scale · ((x ∘ mask) A) B            x (n, in)    W (out, in)    A (in, rank)    B (rank, out)

float64 layers compute in float64, all others in float32, and what is stored is rounded to the layer's dtype. The steps
are methods, so that a fault is a subclass of a few lines.
"""

import math
from os import PathLike
from pathlib import Path

import ml_dtypes
import numpy as np

from conformance.subject import Arrays, Layer, LayerConfig, Unsupported

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class Honest(Layer):
    """Rounds once at the end, scales the product, merges into a copy and keeps W."""

    dtypes: tuple[str, ...] = ("float32", "float64", "float16", "bfloat16")
    methods: tuple[str, ...] = ("lora",)

    def __init__(self, config: LayerConfig, weight: np.ndarray, bias: np.ndarray | None):
        self.offer(config)
        self.check(config)
        self.config, self.dtype = config, weight.dtype
        self.wide = np.float64 if weight.dtype == np.float64 else np.float32
        self.W, self.b = weight, bias
        self.kept: np.ndarray | None = None  # W, while the layer is merged
        self.scale = self.scale_of(config)
        self.rng = np.random.default_rng(config.seed)
        A, B = self.init_factors(config.in_features, config.out_features, config.rank)
        self.A, self.B = self.rounded(A), self.rounded(B)
        self.training, self.wants_dx = True, True
        self.trains = {"A", "B"}  # the factors that get gradients
        self.zero_grad()

    # --- configuration ------------------------------------------------------------------------------------------

    def offer(self, config: LayerConfig) -> None:
        """Raises Unsupported for what the class does not offer."""
        if config.method not in self.methods or config.device != "cpu" or config.dtype not in self.dtypes:
            raise Unsupported(f"{config.method} in {config.dtype} on {config.device}")
        if config.scaling not in ("standard", "rslora"):
            raise Unsupported(f"scaling {config.scaling}")

    def check(self, config: LayerConfig) -> None:
        """Raises ValueError for what is no layer."""
        self.check_rank(config.rank)
        self.check_alpha(config.alpha)
        self.check_dropout(config.dropout)

    def check_rank(self, rank: int) -> None:
        if not isinstance(rank, int) or rank < 1:
            raise ValueError(f"rank is {rank}, expected a positive integer")

    def check_alpha(self, alpha: float) -> None:
        if not math.isfinite(alpha):
            raise ValueError(f"alpha is {alpha}, expected a finite number")

    def check_dropout(self, rate: float) -> None:
        if not 0 <= rate < 1:
            raise ValueError(f"dropout is {rate}, expected a rate of at least 0 and less than 1")

    def scale_of(self, config: LayerConfig) -> float:
        return config.alpha / (math.sqrt(config.rank) if config.scaling == "rslora" else config.rank)

    def init_factors(self, n_in: int, n_out: int, rank: int) -> tuple[np.ndarray, np.ndarray]:
        return self.rng.standard_normal((n_in, rank)) / math.sqrt(n_in), np.zeros((rank, n_out))

    # --- arithmetic ---------------------------------------------------------------------------------------------

    def up(self, array: np.ndarray) -> np.ndarray:
        """A copy in the dtype in which the layer computes."""
        return array.astype(self.wide)

    def rounded(self, array: np.ndarray) -> np.ndarray:
        """A copy in the dtype of the layer."""
        return array.astype(self.dtype)

    def product(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        return self.up(left) @ self.up(right)

    def plus(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        return self.up(left) + self.up(right)

    def scaled(self, array: np.ndarray) -> np.ndarray:
        return self.scale * self.up(array)

    # --- forward ------------------------------------------------------------------------------------------------

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.check_input(x)
        self.leading = x.shape[:-1]
        self.x = self.rows(x)                                                                  # (n, in)
        self.mask = self.draw_mask() if self.drops() else None
        return self.shaped(self.output(self.x))

    def check_input(self, x: np.ndarray) -> None:
        n_in = self.config.in_features
        if x.shape[-1:] != (n_in,):
            raise ValueError(f"x is {x.shape}, expected (…, {n_in}), in_features")

    def rows(self, array: np.ndarray) -> np.ndarray:
        return self.up(array).reshape(-1, array.shape[-1])

    def shaped(self, rows: np.ndarray) -> np.ndarray:
        return self.rounded(rows).reshape(*self.leading, rows.shape[-1])

    def output(self, x: np.ndarray) -> np.ndarray:
        y = self.base(x)
        return y if self.merged else self.plus(y, self.lora(x))

    def base(self, x: np.ndarray) -> np.ndarray:
        y = self.product(x, self.W.T)                                                          # (n, out)
        return y if self.b is None else self.plus(y, self.b)

    def lora(self, x: np.ndarray) -> np.ndarray:
        h = self.product(self.dropped(x), self.A)                                              # (n, rank)
        return self.scaled(self.product(h, self.B))                                            # (n, out)

    # --- dropout ------------------------------------------------------------------------------------------------

    def drops(self) -> bool:
        return self.training and self.config.dropout > 0

    def draw_mask(self) -> np.ndarray:
        """0 with the probability of the rate, else 1 / (1 − rate), shaped as x."""
        rate = self.config.dropout
        return ((self.rng.random(self.x.shape) >= rate) / (1 - rate)).astype(self.wide)

    def dropped(self, array: np.ndarray) -> np.ndarray:
        return array if self.mask is None else array * self.mask

    # --- backward -----------------------------------------------------------------------------------------------

    def backward(self, dy: np.ndarray) -> Arrays:
        dy = self.upstream(dy)                                                                 # (n, out)
        dx, found = self.base_dx(dy), {}
        if not self.merged:  # A and B have no part in a merged layer
            dx, found = self.plus(dx, self.lora_dx(dy)), self.gradients_of_factors(dy)
        return found | ({"x": self.shaped(dx)} if self.wants_dx else {})

    def gradients_of_factors(self, dy: np.ndarray) -> Arrays:
        """Those of the factors that train, added to the earlier ones."""
        dA = self.gradient_of_A(dy) if "A" in self.trains else np.zeros_like(self.A)
        dB = self.gradient_of_B(dy) if "B" in self.trains else np.zeros_like(self.B)
        return {name: d for name, d in self.accumulated(dA, dB).items() if name in self.trains}

    def upstream(self, dy: np.ndarray) -> np.ndarray:
        want = (*self.leading, self.config.out_features)
        if dy.shape != want:
            raise ValueError(f"dy is {dy.shape}, expected {want}, the shape of y")
        return self.rows(dy)

    def base_dx(self, dy: np.ndarray) -> np.ndarray:
        return self.product(dy, self.W)                                                        # (n, in)

    def lora_dx(self, dy: np.ndarray) -> np.ndarray:
        return self.dropped(self.scaled(self.product(self.product(dy, self.B.T), self.A.T)))   # (n, in)

    def gradient_of_A(self, dy: np.ndarray) -> np.ndarray:
        u = self.product(dy, self.B.T)                                                         # (n, rank)
        return self.scaled(self.product(self.dropped(self.x).T, u))                            # (in, rank)

    def gradient_of_B(self, dy: np.ndarray) -> np.ndarray:
        h = self.product(self.dropped(self.x), self.A)                                         # (n, rank)
        return self.scaled(self.product(h.T, dy))                                              # (rank, out)

    def accumulated(self, dA: np.ndarray, dB: np.ndarray) -> Arrays:
        self.dA, self.dB = self.kept_gradient(self.plus(self.dA, dA)), self.kept_gradient(self.plus(self.dB, dB))
        return {"A": self.dA, "B": self.dB}

    def kept_gradient(self, gradient: np.ndarray) -> np.ndarray:
        return self.rounded(gradient)

    def zero_grad(self) -> None:
        self.dA, self.dB = np.zeros_like(self.A), np.zeros_like(self.B)

    def input_needs_grad(self, needed: bool = True) -> None:
        self.wants_dx = needed

    def factor_needs_grad(self, name: str, needed: bool = True) -> None:
        (self.trains.add if needed else self.trains.discard)(name)

    # --- state --------------------------------------------------------------------------------------------------

    def adapter(self) -> Arrays:
        return {"A": self.A, "B": self.B}

    def stored(self) -> Arrays:
        return self.adapter()

    def set_adapter(self, arrays: Arrays) -> None:
        arrays = self.checked(arrays)
        merged = self.merged
        if merged:
            self.unmerge()
        self.set_factors(arrays)
        if merged:
            self.merge()

    def checked(self, arrays: Arrays) -> Arrays:
        """The arrays, once all of them have been found to fit."""
        for name, have in {"A": self.A, "B": self.B}.items():
            if arrays[name].shape != have.shape:
                raise ValueError(f"{name} is {arrays[name].shape}, expected {have.shape}")
        return arrays

    def set_factors(self, arrays: Arrays) -> None:
        self.A, self.B = self.rounded(arrays["A"]), self.rounded(arrays["B"])

    def weight(self) -> np.ndarray:
        return self.W

    def bias(self) -> np.ndarray | None:
        return self.b

    def trainable(self) -> dict[str, tuple[int, ...]]:
        return {name: array.shape for name, array in self.adapter().items()}

    def train(self, mode: bool = True) -> None:
        self.training = mode

    def step(self, lr: float) -> None:
        self.A = self.rounded(self.up(self.A) - lr * self.up(self.dA))
        self.B = self.rounded(self.up(self.B) - lr * self.up(self.dB))

    # --- merging ------------------------------------------------------------------------------------------------

    @property
    def merged(self) -> bool:
        return self.kept is not None

    def delta_weight(self) -> np.ndarray:
        return self.scaled(self.product(self.A, self.B)).T                                     # (out, in)

    def merged_weight(self) -> np.ndarray:
        return self.rounded(self.plus(self.W, self.delta_weight()))

    def merge(self) -> None:
        if self.merged:
            raise RuntimeError("merge: the layer is merged already")
        self.kept, self.W = self.W, self.merged_weight()

    def unmerge(self) -> None:
        if self.kept is None:
            raise RuntimeError("unmerge: the layer is not merged")
        self.W, self.kept = self.restored_weight(), None

    def restored_weight(self) -> np.ndarray:
        assert self.kept is not None
        return self.kept

    # --- files --------------------------------------------------------------------------------------------------

    def save(self, directory: str | PathLike[str]) -> None:
        stored = {name: bits(array) for name, array in self.contents().items()}
        np.savez(Path(directory) / "adapter.npz", **stored)  # pyright: ignore[reportArgumentType]

    def contents(self) -> Arrays:
        return self.adapter()

    def load(self, directory: str | PathLike[str]) -> None:
        self.receive(self.read(directory))

    def read(self, directory: str | PathLike[str]) -> Arrays:
        with np.load(Path(directory) / "adapter.npz") as file:
            return {name: numbers(array) for name, array in file.items()}

    def receive(self, contents: Arrays) -> None:
        self.set_adapter(contents)


def bits(array: np.ndarray) -> np.ndarray:
    """What NumPy's file format can hold: of bfloat16, which it does not know, the bits."""
    return array.view(np.uint16) if array.dtype == BFLOAT16 else array


def numbers(array: np.ndarray) -> np.ndarray:
    return array.view(BFLOAT16) if array.dtype == np.uint16 else array
