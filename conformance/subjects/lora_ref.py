"""lora_ref, the NumPy reference, with the state around it that a layer has. float32 and float64: it offers no halves."""

from pathlib import Path

import numpy as np

from conformance import __version__
from conformance.subject import Arrays, Layer, LayerConfig, Subject, Unsupported
from lora_ref import lora

NEEDS = ()


class RefLayer(Layer):
    def __init__(self, config: LayerConfig, weight: np.ndarray, bias: np.ndarray | None):
        self.W, self.b, self.unmerged = weight, bias, None
        self.rng = np.random.default_rng(config.seed)
        self.p = lora.init(self.rng, config.in_features, config.out_features, config.rank, dtype=weight.dtype)
        self.scale = lora.scale(config.alpha, config.rank, config.scaling)
        self.dropout, self.training = config.dropout, True
        lora.dropout_mask(self.rng, (), self.dropout)  # refuses what is no rate
        self.cache: lora.Cache | None = None
        self.zero_grad()

    def adapter(self) -> Arrays:
        return {"A": self.p.A, "B": self.p.B}

    def set_adapter(self, arrays: Arrays) -> None:
        for name, array in arrays.items():
            have = getattr(self.p, name)
            if array.shape != have.shape:
                raise ValueError(f"set_adapter: {name} is {array.shape}, expected {have.shape}, the shape that it has")
        self.p = lora.LoRA(**{name: array.astype(self.W.dtype) for name, array in (self.adapter() | arrays).items()})

    def weight(self) -> np.ndarray:
        return self.W

    def bias(self) -> np.ndarray | None:
        return self.b

    def forward(self, x: np.ndarray) -> np.ndarray:
        p = self.p if self.unmerged is None else lora.LoRA(0 * self.p.A, 0 * self.p.B)
        rate = self.dropout if self.training else 0.0
        mask = lora.dropout_mask(self.rng, x.shape, rate, dtype=x.dtype) if rate else None
        y, self.cache = lora.forward(x, self.W, self.b, p, self.scale, mask)
        return y

    def backward(self, dy: np.ndarray) -> Arrays:
        if self.cache is None:
            raise RuntimeError("backward: there was no forward pass")
        dx, dp = lora.backward(dy, self.cache)
        if self.unmerged is not None:  # A and B have no part in a merged layer
            return {"x": dx}
        self.dp = lora.LoRA(self.dp.A + dp.A, self.dp.B + dp.B)
        return {"x": dx, "A": self.dp.A, "B": self.dp.B}

    def zero_grad(self) -> None:
        self.dp = lora.LoRA(0 * self.p.A, 0 * self.p.B)

    def input_needs_grad(self, needed: bool = True) -> None:
        pass  # dx is always computed, and never in the way

    def trainable(self) -> dict[str, tuple[int, ...]]:
        return {name: array.shape for name, array in self.adapter().items()}

    def train(self, mode: bool = True) -> None:
        self.training = mode

    def merge(self) -> None:
        if self.unmerged is not None:
            raise RuntimeError("merge: the layer is merged already")
        self.unmerged = self.W
        self.W, _ = lora.merge(self.W, self.b, self.p, self.scale)

    def unmerge(self) -> None:
        if self.unmerged is None:
            raise RuntimeError("unmerge: the layer is not merged")
        self.W, self.unmerged = self.unmerged, None

    def step(self, lr: float) -> None:
        rate = self.W.dtype.type(lr)
        self.p = lora.LoRA(self.p.A - rate * self.dp.A, self.p.B - rate * self.dp.B)

    def save(self, directory) -> None:
        np.savez(Path(directory) / "adapter.npz", A=self.p.A, B=self.p.B)

    def load(self, directory) -> None:
        with np.load(Path(directory) / "adapter.npz") as file:
            self.set_adapter(dict(file))


class LoRARef(Subject):
    name, version = "lora_ref", __version__

    def build(self, config: LayerConfig, weight: np.ndarray, bias: np.ndarray | None) -> Layer:
        if config.dtype not in ("float32", "float64"):
            raise Unsupported(config.dtype)
        if config.device != "cpu":
            raise Unsupported(f"device {config.device}")
        return RefLayer(config, weight, bias)


def subject() -> Subject:
    return LoRARef()
