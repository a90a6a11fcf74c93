"""A subject for `conformance run`: your LoRA layer behind a few methods that take NumPy arrays. It passes as it stands.

Replace the arithmetic with calls of your implementation, and keep the layout: x (…, in), W (out, in), b (out),
A (in, rank), B (rank, out). If yours stores A and B transposed, transpose them here. If you leave a method out, the
requirements that need it are "not offered". An nn.Module class needs none of this: `conformance run file.py:Class`. If it
is built or merged in an unusual way, see conformance.torch.TorchLayer.
"""

import numpy as np

from conformance import Layer, LayerConfig, Subject, Unsupported


class MyLayer(Layer):
    def __init__(self, config: LayerConfig, weight: np.ndarray, bias: np.ndarray | None):
        if config.rank < 1:
            raise ValueError(f"rank is {config.rank}, expected at least 1")
        if not np.isfinite(config.alpha):
            raise ValueError(f"alpha is {config.alpha}, expected a finite number")
        rng = np.random.default_rng(config.seed)
        self.W, self.b = weight, bias
        self.A = (rng.standard_normal((config.in_features, config.rank)) / config.in_features**0.5).astype(weight.dtype)
        self.B = np.zeros((config.rank, config.out_features), weight.dtype)
        self.scale = config.alpha / config.rank
        self.zero_grad()

    # --- inference: what the layer computes -----------------------------------------------------------------------
    def adapter(self):
        return {"A": self.A, "B": self.B}

    def set_adapter(self, arrays):
        self.A, self.B = arrays["A"], arrays["B"]

    def weight(self):
        return self.W

    def bias(self):
        return self.b

    def forward(self, x):
        self.x = x
        y = x @ self.W.T + self.scale * ((x @ self.A) @ self.B)
        return y if self.b is None else y + self.b

    # --- training: leave these out if yours does not train --------------------------------------------------------
    def backward(self, dy):
        u = self.scale * (dy @ self.B.T)
        x2, dy2, u2 = (a.reshape(-1, a.shape[-1]) for a in (self.x, dy, u))
        self.dA = self.dA + x2.T @ u2
        self.dB = self.dB + self.scale * (x2 @ self.A).T @ dy2
        return {"x": dy @ self.W + u @ self.A.T, "A": self.dA, "B": self.dB}

    def zero_grad(self):
        self.dA, self.dB = 0 * self.A, 0 * self.B

    def trainable(self):
        return {"A": self.A.shape, "B": self.B.shape}

    def step(self, lr):
        rate = self.W.dtype.type(lr)  # a NumPy scalar of the layer's dtype, so that the arrays keep theirs
        self.A, self.B = self.A - rate * self.dA, self.B - rate * self.dB

    # --- more that can be checked: train(mode), merge(), unmerge(), save(directory), load(directory), and with several
    # adapters on one layer add_adapter, remove_adapter, activate, combine, forward_mixed: see conformance.Layer -------


class MySubject(Subject):
    name, version = "mine", "0.1"

    def build(self, config: LayerConfig, weight: np.ndarray, bias: np.ndarray | None) -> Layer:
        if config.dtype not in ("float32", "float64") or config.dropout or config.scaling != "standard":
            raise Unsupported(f"{config.dtype}, dropout {config.dropout}, {config.scaling} scaling")
        return MyLayer(config, weight, bias)
