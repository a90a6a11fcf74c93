"""lora_ref, this project's NumPy reference.

lora_ref has pure functions, so the state of a layer is kept here. It offers float32 and float64, and no half precision."""

import pkgutil
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

import lora_ref
from conformance import __version__
from conformance.model import Model, ModelConfig
from conformance.subject import Arrays, Layer, LayerConfig, Subject, Unsupported
from conformance.truth.model_case import reference
from lora_ref import lora, optim, transformer

NEEDS = ()


class RefLayer(Layer):
    def __init__(self, config: LayerConfig, weight: np.ndarray, bias: np.ndarray | None):
        self.W, self.b, self.unmerged = weight, bias, None
        self.rng, self.method = np.random.default_rng(config.seed), import_module(f"lora_ref.{config.method}")
        self.p = {"default": self.method.init(self.rng, config.in_features, config.out_features, config.rank, weight.dtype)}
        self.zero_grad()
        self.scale = {"default": lora.scale(config.alpha, config.rank, config.scaling)}
        self.active = {"default": 1.0}
        self.scaling, self.dropout, self.training = config.scaling, config.dropout, True
        lora.dropout_mask(self.rng, (), self.dropout)  # raises for a rate that is not valid
        self.caches: dict[str, lora.Cache] = {}

    def stored(self) -> Arrays:
        return self.adapter()

    def adapter(self) -> Arrays:
        return _named(self.p)

    def set_adapter(self, arrays: Arrays) -> None:
        have = self.adapter()
        for name, array in arrays.items():
            if array.shape != have[name].shape:
                raise ValueError(f"set_adapter: {name} is {array.shape}, expected {have[name].shape}, the shape that it has")
        new = {name: array.astype(self.W.dtype) for name, array in (have | arrays).items()}
        self.p = {name: type(p)(*(new[_prefix(name) + field] for field in p._fields)) for name, p in self.p.items()}

    def weight(self) -> np.ndarray:
        return self.W

    def bias(self) -> np.ndarray | None:
        return self.b

    def forward(self, x: np.ndarray) -> np.ndarray:
        return self.forward_of(x, self.active if self.unmerged is None else {})

    def forward_of(self, x: np.ndarray, weights: dict[str, float]) -> np.ndarray:
        """y with these adapters. The first one also computes the base product; without adapters, a LoRA of zeros does."""
        rate = self.dropout if self.training else 0.0
        mask = lora.dropout_mask(self.rng, x.shape, rate, dtype=x.dtype) if rate else None
        nothing = type(self.p["default"])(*(0 * array for array in self.p["default"]))
        parts = [(name, self.p[name], weight * self.scale[name]) for name, weight in weights.items()]
        y, W, b, self.caches = None, self.W, self.b, {}
        for name, p, scale in parts or [("", nothing, 1.0)]:
            more, self.caches[name] = self.method.forward(x, W, b, p, scale, mask)
            y, W, b = more if y is None else y + more, 0 * W, None
        assert y is not None
        return y

    def backward(self, dy: np.ndarray) -> Arrays:
        if not self.caches:
            raise RuntimeError("backward: there was no forward pass")
        dx, found = 0.0, {}
        for name, cache in self.caches.items():
            more, dp = self.method.backward(dy, cache)
            dx = dx + more
            if name:
                self.dp[name] = type(dp)(*(getattr(self.dp[name], field) + d for field, d in dp._asdict().items()))
                found[name] = self.dp[name]
        return {"x": np.asarray(dx)} | _named(found)

    def zero_grad(self) -> None:
        self.dp = {name: type(p)(*(0 * array for array in p)) for name, p in self.p.items()}

    def input_needs_grad(self, needed: bool = True) -> None:
        pass  # dx is always computed

    def trainable(self) -> dict[str, tuple[int, ...]]:
        return {n: a.shape for n, a in self.adapter().items() if n.rpartition(".")[2] not in self.method.FROZEN}

    def train(self, mode: bool = True) -> None:
        self.training = mode

    def merge(self) -> None:
        if self.unmerged is not None:
            raise RuntimeError("merge: the layer is merged already")
        merged = self.W
        for name, weight in self.active.items():
            merged, _ = self.method.merge(merged, self.b, self.p[name], weight * self.scale[name])
        self.W, self.unmerged = merged, self.W

    def unmerge(self) -> None:
        if self.unmerged is None:
            raise RuntimeError("unmerge: the layer is not merged")
        self.W, self.unmerged = self.unmerged, None

    def step(self, lr: float) -> None:
        rate = self.W.dtype.type(lr)
        for name, p in self.p.items():
            trained = {field: getattr(p, field) - rate * getattr(self.dp[name], field) for field in self.dp[name]._fields}
            self.p[name] = p._replace(**trained)

    def save(self, directory) -> None:
        np.savez(Path(directory) / "adapter.npz", **self.adapter())  # pyright: ignore[reportArgumentType]

    def load(self, directory) -> None:
        with np.load(Path(directory) / "adapter.npz") as file:
            self.set_adapter(dict(file))

    def add_adapter(self, name: str, arrays: Arrays, alpha: float) -> None:
        if name in self.p:
            raise ValueError(f"add_adapter: there is an adapter {name!r} already")
        p = type(self.p["default"])(*(arrays[field].astype(self.W.dtype) for field in self.p["default"]._fields))
        self.method.merge(self.W, self.b, p, 1.0)  # raises for factors that do not fit
        self.p[name], self.dp[name] = p, type(p)(*(0 * array for array in p))
        self.scale[name] = lora.scale(alpha, p.A.shape[1], self.scaling)

    def remove_adapter(self, name: str) -> None:
        self.known([name])
        if self.unmerged is not None or len(self.p) == 1:
            raise RuntimeError("remove_adapter: the layer is merged, or this is its only adapter")
        for kept in (self.p, self.dp, self.scale, self.active):
            kept.pop(name, None)

    def activate(self, weights: dict[str, float]) -> None:
        self.known(weights)
        if self.unmerged is not None:
            raise RuntimeError("activate: the layer is merged")
        self.active = dict(weights)

    def combine(self, name: str, weights: dict[str, float]) -> None:
        """Adds an adapter whose A and B hold those of the parts side by side, each B times its weight and its scale."""
        self.known(weights)
        A = np.hstack([self.p[part].A for part in weights])
        B = np.vstack([(weight * self.scale[part] * self.p[part].B).astype(self.W.dtype) for part, weight in weights.items()])
        self.add_adapter(name, {"A": A, "B": B}, 1.0)
        self.scale[name] = 1.0

    def forward_mixed(self, x: np.ndarray, names: tuple[str | None, ...]) -> np.ndarray:
        self.known([name for name in names if name is not None])
        samples = [self.forward_of(sample, {} if name is None else {name: 1.0}) for sample, name in zip(x, names, strict=True)]
        return np.stack(samples)

    def known(self, names) -> None:
        for name in names:
            if name not in self.p:
                raise KeyError(f"there is no adapter {name!r}, only {', '.join(self.p)}")


class RefModel(Model):
    """A Model around the pure functions of `lora_ref.transformer`. It keeps their state."""

    def __init__(self, config: ModelConfig, arrays: Arrays):
        self.config, (self.reference, self.methods) = config, reference(config)
        self.W, self.on = dict(arrays), True
        rng, dtype = np.random.default_rng(config.seed), next(iter(arrays.values())).dtype
        self.p = transformer.init_methods(rng, self.reference, self.methods, dtype)
        self.zero_grad()

    def arrays(self) -> Arrays:
        return dict(self.p)

    def set_arrays(self, arrays: Arrays) -> None:
        for name, array in arrays.items():
            if name not in self.p or array.shape != self.p[name].shape:
                raise ValueError(f"set_arrays: {name} is {array.shape}, expected a name and a shape of arrays()")
        self.p |= arrays

    def base(self) -> Arrays:
        return dict(self.W)

    def forward(self, tokens: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        methods, arrays = (self.methods, self.W | self.p) if self.on else ({}, self.W)
        logits, self.cache = transformer.forward(tokens, arrays, self.reference, methods, mask)
        return logits

    def backward(self, dlogits: np.ndarray) -> Arrays:
        for name, gradient in transformer.backward(dlogits, self.cache, list(self.trainable())).items():
            self.dp[name] = self.dp[name] + gradient if name in self.dp else gradient
        return dict(self.dp)

    def zero_grad(self) -> None:
        self.dp: Arrays = {}

    def trainable(self) -> dict[str, tuple[int, ...]]:
        return {name: array.shape for name, array in (self.W if self.config.method == "full" else self.p).items()}

    def step(self, lr: float) -> None:
        arrays = self.W if self.config.method == "full" else self.p
        arrays |= optim.sgd(arrays, self.dp, lr)

    def merge(self) -> None:
        self.folded()

    def fold(self) -> None:
        self.folded()

    def folded(self) -> None:
        arrays, self.methods = transformer.merge(self.W | self.p, self.reference, self.methods)
        self.W, self.p = ({n: a for n, a in arrays.items() if (n in self.W) == base} for base in (True, False))

    def switch(self, on: bool) -> None:
        self.on = on


def _named(factors: dict[str, Any]) -> Arrays:
    return {_prefix(name) + field: array for name, p in factors.items() for field, array in p._asdict().items()}


def _prefix(name: str) -> str:
    return "" if name == "default" else f"{name}."


def layer_methods() -> tuple[str, ...]:
    """The methods of lora_ref that stand at a linear layer, LoRA first: each is a file with PLACE = "linear"."""
    names = [info.name for info in pkgutil.iter_modules(lora_ref.__path__) if not info.ispkg and info.name != "__main__"]
    linear = [name for name in names if getattr(import_module(f"lora_ref.{name}"), "PLACE", "") == "linear"]
    return tuple(sorted(linear, key=lambda name: (name != "lora", name)))


class LoRARef(Subject):
    name, version = "lora_ref", __version__
    methods = (*layer_methods(), "adapter", "prefix", "ptuning")

    def build(self, config: LayerConfig, weight: np.ndarray, bias: np.ndarray | None) -> Layer:
        if config.dtype not in ("float32", "float64"):
            raise Unsupported(config.dtype)
        if config.device != "cpu":
            raise Unsupported(f"device {config.device}")
        return RefLayer(config, weight, bias)

    def build_model(self, config: ModelConfig, arrays: Arrays) -> Model:
        if config.dtype not in ("float32", "float64") or config.device != "cpu":
            raise Unsupported(f"{config.dtype} on {config.device}")
        return RefModel(config, arrays)


def subject() -> Subject:
    return LoRARef()
