"""A LoRA layer as a program of its own. `conformance run 'cmd:python lora.py'` checks it, and it passes as it stands.

Replace the arithmetic with calls of your implementation, and keep the layout: x (…, in), W (out, in), b (out), A (in, rank),
B (rank, out). Each line of standard input is a request, and each gets one line as answer: see conformance/PROTOCOL.md. A method
that you leave out is answered with "unsupported". The requirements that need it are then neither passed nor failed.
"""

import base64
import json
import os
import sys

import numpy as np


class Unsupported(Exception):
    """Raised for what the layer does not offer."""


def decode(value):
    if not isinstance(value, dict) or "data" not in value:
        return {key: decode(item) for key, item in value.items()} if isinstance(value, dict) else value
    if value["dtype"] not in ("float32", "float64"):
        raise Unsupported(value["dtype"])
    return np.frombuffer(bytearray(base64.b64decode(value["data"])), value["dtype"]).reshape(value["shape"])


def encode(value):
    if isinstance(value, dict):
        return {key: encode(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        data = base64.b64encode(value.tobytes()).decode()
        return {"shape": value.shape, "dtype": value.dtype.name, "data": data}
    return value


class Layer:
    def __init__(self, config, W, b):
        if not isinstance(config["rank"], int) or config["rank"] < 1:
            raise ValueError(f"rank is {config['rank']}, expected an integer of at least 1")
        if isinstance(config["alpha"], str):  # "NaN", "Infinity"
            raise ValueError(f"alpha is {config['alpha']}, expected a finite number")
        if config["dropout"] or config["scaling"] != "standard":
            raise Unsupported("dropout, rslora")
        n_in, n_out, rank = config["in_features"], config["out_features"], config["rank"]
        rng = np.random.default_rng(config["seed"])
        self.W, self.b, self.scale = W, b, config["alpha"] / rank
        self.A = (rng.standard_normal((n_in, rank)) / n_in**0.5).astype(W.dtype)
        self.B = np.zeros((rank, n_out), W.dtype)
        self.zero_grad()

    def adapter(self):
        return {"A": self.A, "B": self.B}

    def set_adapter(self, arrays):
        for name, have in self.adapter().items():
            if arrays[name].shape != have.shape:
                raise ValueError(f"{name} is {arrays[name].shape}, expected {have.shape}")
        self.A, self.B = arrays["A"], arrays["B"]

    def weight(self):
        return self.W

    def forward(self, x):
        self.x = x
        self.y = x @ self.W.T + self.scale * ((x @ self.A) @ self.B)
        return self.y if self.b is None else self.y + self.b

    def backward(self, dy):
        if dy.shape != self.y.shape:
            raise ValueError(f"dy is {dy.shape}, expected {self.y.shape}, the shape of y")
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
        rate = self.W.dtype.type(lr)
        self.A, self.B = self.A - rate * self.dA, self.B - rate * self.dB


def answer(layers, method, layer=None, **given):
    if method == "hello":
        return {"protocol": 1, "name": "my-lora", "version": "0.1"}
    if method == "forget":
        return layers.pop(layer, None) and None
    given = {name: decode(value) for name, value in given.items()}
    if method == "build":
        layers[layer] = Layer(given["config"], given["W"], given["b"])
        return None
    if method.startswith("_") or not hasattr(Layer, method):
        raise Unsupported(method)
    return getattr(layers[layer], method)(**given)


def main():
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints goes to standard error
    layers = {}
    for line in sys.stdin:
        request = json.loads(line)
        said = {"id": request.pop("id")}
        try:
            said["result"] = encode(answer(layers, **request))
        except Unsupported as reason:
            said["unsupported"] = str(reason)
        except Exception as error:
            said |= {"error": str(error), "type": type(error).__name__}
        print(json.dumps(said), file=answers, flush=True)


if __name__ == "__main__":
    main()
