"""Honest layers with several adapters."""

import math
from dataclasses import replace

import numpy as np

from conformance.mutants.honest import Honest
from conformance.subject import Arrays, LayerConfig


class SeveralAdapters(Honest):
    """Keeps further adapters by name. Each is a layer of its own over a W of zeros, of which only the LoRA part is used."""

    def __init__(self, config: LayerConfig, weight: np.ndarray, bias: np.ndarray | None):
        self.others: dict[str, Honest] = {}
        self.active = {"default": 1.0}
        super().__init__(config, weight, bias)

    def part(self, name: str) -> Honest:
        if name != "default" and name not in self.others:
            raise ValueError(f"there is no adapter {name!r}, expected one of {['default', *self.others]}")
        return self if name == "default" else self.others[name]

    def parts(self) -> list[tuple[str, float, Honest]]:
        """Name, weight and layer of what is active."""
        return [(name, weight, self.part(name)) for name, weight in self.active.items()]

    def output(self, x: np.ndarray) -> np.ndarray:
        y = self.base(x)
        if not self.merged:
            for _, weight, part in self.parts():
                y = self.plus(y, self.up(np.array(weight)) * self.lora_of(part, x))
        return y

    def lora_of(self, part: Honest, x: np.ndarray) -> np.ndarray:
        part.x, part.mask = x, self.mask
        return part.lora(x)

    def backward(self, dy: np.ndarray) -> Arrays:
        dy = self.upstream(dy)
        dx, found = self.base_dx(dy), {}
        if not self.merged:
            for name, weight, part in self.parts():
                wdy = self.up(np.array(self.weight_back(weight))) * dy
                dx = self.plus(dx, part.lora_dx(wdy))
                found |= {prefix(name) + key: gradient for key, gradient in part.gradients_of_factors(wdy).items()}
        return found | ({"x": self.shaped(dx)} if self.wants_dx else {})

    def weight_back(self, weight: float) -> float:
        return weight

    def delta_weight(self) -> np.ndarray:
        total = np.zeros(self.W.shape, self.wide)
        for _, weight, part in self.parts():
            total = total + self.up(np.array(weight)) * Honest.delta_weight(part)
        return total

    def zero_grad(self) -> None:
        super().zero_grad()
        for part in self.others.values():
            part.zero_grad()

    def step(self, lr: float) -> None:
        super().step(lr)
        for part in self.others.values():
            part.step(lr)

    def adapter(self) -> Arrays:
        return super().adapter() | {f"{n}.{key}": a for n, part in self.others.items() for key, a in part.adapter().items()}

    def checked(self, arrays: Arrays) -> Arrays:
        return super().checked(self.adapter() | arrays)

    def set_factors(self, arrays: Arrays) -> None:
        super().set_factors(arrays)
        for name, part in self.others.items():
            part.set_factors({key: arrays[f"{name}.{key}"] for key in ("A", "B")})

    def add_adapter(self, name: str, arrays: Arrays, alpha: float) -> None:
        if name == "default" or name in self.others:
            raise ValueError(f"there is an adapter {name!r} already")
        config = replace(self.config, rank=arrays["A"].shape[1], alpha=alpha, bias=False, dropout=0.0)
        part = Honest(config, np.zeros_like(self.W), None)
        part.set_adapter(arrays)
        self.others[name] = part

    def remove_adapter(self, name: str) -> None:
        self.part(name)
        if name == "default" or self.merged:
            raise RuntimeError(f"remove_adapter: {name!r} cannot go")
        del self.others[name]
        self.active.pop(name, None)

    def activate(self, weights: dict[str, float]) -> None:
        for name in weights:
            self.part(name)
        if self.merged:
            raise RuntimeError("activate: the layer is merged")
        self.active = dict(weights)

    def combine(self, name: str, weights: dict[str, float]) -> None:
        parts = [(weight, self.part(n)) for n, weight in weights.items()]
        A = np.hstack([part.A for _, part in parts])
        B = np.vstack([self.rounded(weight * part.scaled(part.B)) for weight, part in parts])
        self.add_adapter(name, {"A": A, "B": B}, self.alpha_of_one(A.shape[1]))

    def alpha_of_one(self, rank: int) -> float:
        """The alpha with which the scale is 1."""
        return math.sqrt(rank) if self.config.scaling == "rslora" else rank

    def forward_mixed(self, x: np.ndarray, names: tuple[str | None, ...]) -> np.ndarray:
        before, samples = self.active, []
        for sample, name in zip(x, names, strict=True):
            self.active = {} if name is None else {name: 1.0}
            self.part(name or "default")
            samples.append(self.forward(sample))
        self.active = before
        return np.stack(samples)


class CombinesByRoots(SeveralAdapters):
    """Puts the root of weight · scale into A and into B, and the sign into B alone."""

    def combine(self, name: str, weights: dict[str, float]) -> None:
        parts = [(weight * self.part(n).scale, self.part(n)) for n, weight in weights.items()]
        A = np.hstack([self.rounded(self.root(c) * part.up(part.A)) for c, part in parts])
        B = np.vstack([self.rounded(math.copysign(self.root(c), c) * part.up(part.B)) for c, part in parts])
        self.add_adapter(name, {"A": A, "B": B}, self.alpha_of_one(A.shape[1]))

    def root(self, number: float) -> float:
        return math.sqrt(abs(number))


def prefix(name: str) -> str:
    return "" if name == "default" else f"{name}."
