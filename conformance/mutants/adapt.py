"""Faults of bottleneck adapters."""

import numpy as np

from conformance.model import ModelConfig
from conformance.mutants import mutant
from conformance.mutants.honest_model import HonestModel
from conformance.mutants.tape import Node
from conformance.subject import Arrays


@mutant("148", kills="ADAPT-01 ADAPT-07")
class InitialiserHitsANorm(HonestModel):
    """The initialiser of the down projection takes the first module that it finds. That is a norm of the base."""

    def __init__(self, config: ModelConfig, arrays: Arrays):
        super().__init__(config, arrays)
        if config.method == "adapter":
            drawn = self.rng.uniform(-1, 1, config.width) * config.width**-0.5
            self.W["layers.0.mlp_norm.weight"] = self.rounded(drawn)


@mutant("148", kills="ADAPT-01")
class ZeroGoesToTheBias(HonestModel):
    """The initialiser that should make the up projection zero makes its bias zero. The projection starts at random."""

    def start_adapter(self, place: str) -> Arrays:
        found = super().start_adapter(place)
        if self.config.start == "zero":
            found["up"] = self.rng.uniform(-0.3, 0.3, found["up"].shape)
        return found


@mutant("147", kills="ADAPT-02")
class NormsAreCopies(HonestModel):
    """The norms beside the adapters are copies, taken before the values of the model were loaded."""

    def array(self, name: str) -> np.ndarray:
        array = super().array(name)
        return np.ones_like(array) if self.config.method == "adapter" and name.endswith("mlp_norm.weight") else array


@mutant("147", kills="ADAPT-06")
class ReadyIsNotTheSame(HonestModel):
    """Preparing a model for adapters replaces its last norm by a fresh one. With the adapters off it is not the base."""

    def array(self, name: str) -> np.ndarray:
        array = super().array(name)
        return np.ones_like(array) if self.config.method == "adapter" and not self.on and name == "norm.weight" else array


@mutant(kills="ADAPT-02 ADAPT-03")
class WithoutItsSkip(HonestModel):
    """An adapter has no skip connection around it: y = Ad(y) and not y + Ad(y)."""

    def adapted(self, z: Node, place: str) -> Node:
        return self.adapter(z, place) if self.has(f"{place}.down") else z


@mutant(kills="ADAPT-02")
class WithoutItsScale(HonestModel):
    """The scale of the adapter is left out."""

    def adapter_scaled(self, y: Node, u: Node) -> Node:
        return self.plus(y, u)


@mutant(kills="ADAPT-02")
class ScaleSparesTheBias(HonestModel):
    """The scale multiplies the up projection, but not its bias."""

    def adapter_scaled(self, y: Node, u: Node) -> Node:
        return self.plus(self.scaled(y, self.config.adapter_scale), u)


@mutant(kills="ADAPT-02")
class AlwaysSilu(HonestModel):
    """The activation is always SiLU, whatever the configuration says."""

    def adapter_bent(self, z: Node) -> Node:
        return self.bent(z, "silu")


@mutant(kills="ADAPT-02")
class NoActivation(HonestModel):
    """There is no activation: the two matrices could be one."""

    def adapter_bent(self, z: Node) -> Node:
        return z


@mutant(kills="ADAPT-02")
class BehindTheSum(HonestModel):
    """The adapters of the MLP stand on the wrong side of the residual sum: Houlsby's behind it, and Pfeiffer's before it."""

    def residual(self, h: Node, y: Node, before: str, behind: str) -> Node:
        return super().residual(h, y, behind, before) if behind else super().residual(h, y, before, behind)


@mutant(kills="ADAPT-02")
class ParallelToTheOutput(HonestModel):
    """A parallel adapter gets the output of the sub-layer and not its input."""

    def beside(self, x: Node, y: Node, place: str) -> Node:
        return super().beside(y, y, place)


@mutant(kills="ADAPT-03")
class SkipHasNoGradient(HonestModel):
    """The skip connection is detached: only the gradient that passes through the adapter comes further down."""

    def adapted(self, z: Node, place: str) -> Node:
        return self.plus(self.detached(z), self.adapter(z, place)) if self.has(f"{place}.down") else z


@mutant(kills="ADAPT-03")
class SlopeForgotten(HonestModel):
    """The gradient of an adapter leaves out the derivative of the activation."""

    def adapter_bent(self, z: Node) -> Node:
        return self.made(super().adapter_bent(z).array, (z, lambda d: d))


@mutant(kills="ADAPT-03 ADAPT-04")
class BiasesFrozen(HonestModel):
    """The biases of an adapter do not train."""

    def trains(self) -> list[str]:
        return [name for name in super().trains() if not name.endswith(("down_bias", "up_bias"))]


@mutant(kills="ADAPT-04")
class CountsTheBottleneckOnly(HonestModel):
    """The list of what trains leaves out the up projections."""

    def trainable(self) -> dict[str, tuple[int, ...]]:
        return {n: shape for n, shape in super().trainable().items() if not n.endswith(".up")}


@mutant(kills="ADAPT-05")
class TrainsTheNormBeside(HonestModel):
    """Every step moves the norm that stands beside an adapter."""

    def step(self, lr: float) -> None:
        super().step(lr)
        if self.config.method == "adapter":
            self.W["layers.0.mlp_norm.weight"] = self.W["layers.0.mlp_norm.weight"] * (1 - lr / 100)


@mutant(kills="ADAPT-05")
class OneLayerMoves(HonestModel):
    """The optimizer was given the adapters of the first layer alone."""

    def step(self, lr: float) -> None:
        self.dp = {n: d for n, d in self.dp.items() if not n.startswith("layers.") or n.startswith("layers.0.")}
        super().step(lr)


@mutant(kills="ADAPT-06")
class SwitchKeepsTheBias(HonestModel):
    """An adapter that is switched off still adds its bias."""

    def has(self, name: str) -> bool:
        return super().has(name) or self.config.method == "adapter" and name in self.p

    def adapter(self, z: Node, place: str) -> Node:
        return super().adapter(z, place) if self.on else self.adapter_scaled(self.scaled(z, 0), self.leaf(f"{place}.up_bias"))


@mutant(kills="ADAPT-08")
class StartsLikeALayer(HonestModel):
    """Both projections start as a linear layer does, within ±1/√in. That is far from the identity."""

    def start_adapter(self, place: str) -> Arrays:
        found = super().start_adapter(place)
        for name in ("down", "up") if self.config.start == "near" else ():
            n_in, out = found[name].shape
            found[name] = self.rng.uniform(-1, 1, (n_in, out)) * n_in**-0.5
        return found
