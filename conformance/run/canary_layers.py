"""Two layers of our own that a subject's process builds beside those of the subject: one that is right, and one whose scale is
doubled. run/canaries.py says what they are for.

They compute with what the subject computes with: torch on the layer's device where torch is loaded, and NumPy elsewhere.
"""

import sys

import numpy as np

from conformance.drivers.hosted import WRONG
from conformance.drivers.protocol import serve
from conformance.subject import Layer, LayerConfig, Subject


class OfNumPy(Layer):
    """y = x Wᵀ + b + scale · (x A) B, and its gradients."""

    def __init__(self, config: LayerConfig, weight: np.ndarray, bias: np.ndarray | None, scale: float):
        self.W, self.b, self.scale = weight, bias, weight.dtype.type(scale)
        self.A = np.zeros((config.in_features, config.rank), weight.dtype)
        self.B = np.zeros((config.rank, config.out_features), weight.dtype)

    def adapter(self):
        return {"A": self.A, "B": self.B}

    def set_adapter(self, arrays):
        self.A, self.B = arrays["A"], arrays["B"]

    def weight(self):
        return self.W

    def forward(self, x):
        self.x = x
        y = x @ self.W.T + self.scale * (x @ self.A @ self.B)
        return y if self.b is None else y + self.b

    def backward(self, dy):
        x, dy2 = self.x.reshape(-1, self.x.shape[-1]), dy.reshape(-1, dy.shape[-1])
        return {"x": dy @ self.W + self.scale * (dy @ self.B.T @ self.A.T), "A": self.scale * (x.T @ dy2 @ self.B.T),
                "B": self.scale * (self.A.T @ x.T @ dy2)}

    def merge(self):
        self.W = self.W + self.scale * (self.A @ self.B).T


def subject(whose: str) -> Subject:
    """The subject that builds these layers, right ones or, for WRONG, wrong ones."""
    factor = 2.0 if whose == WRONG else 1.0

    class Canary(Subject):
        name = whose

        def build(self, config, weight, bias):
            scale = factor * config.alpha / config.rank
            return _of_torch(config, weight, bias, scale) if "torch" in sys.modules else OfNumPy(config, weight, bias, scale)

    return Canary()


def _of_torch(config: LayerConfig, weight: np.ndarray, bias: np.ndarray | None, scale: float) -> Layer:
    import torch
    from torch import nn

    from conformance.torch import TorchLayer

    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            options = {"device": config.device, "dtype": getattr(torch, config.dtype)}
            self.linear = nn.Linear(config.in_features, config.out_features, bias is not None, **options).requires_grad_(False)
            self.A = nn.Parameter(torch.zeros(config.in_features, config.rank, **options))
            self.B = nn.Parameter(torch.zeros(config.rank, config.out_features, **options))

        def forward(self, x):
            return self.linear(x) + scale * (x @ self.A @ self.B)

        def merge(self):
            self.linear.weight.data += scale * (self.A @ self.B).t()

    layer = TorchLayer(Module(), W="linear.weight", b=None if bias is None else "linear.bias", A="A", B="B")
    layer.set_base(weight, bias)
    return layer


if __name__ == "__main__":
    serve(subject(sys.argv[1]))
