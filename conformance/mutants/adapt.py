"""Faults of bottleneck adapters."""

import numpy as np

from conformance.mutants import mutant
from conformance.mutants.honest_model import HonestModel
from conformance.subject import Arrays
from lora_ref import adapter, transformer

_forward, _backward = adapter.forward, adapter.backward


@mutant("148", kills="ADAPT-01 ADAPT-07")
class InitialiserHitsANorm(HonestModel):
    """The initialiser of the down projection takes the first module that it finds, which is a norm."""

    def __init__(self, config, arrays: Arrays):
        super().__init__(config, arrays)
        if config.method == "adapter":
            name = "layers.0.mlp_norm.weight"
            bound = config.width**-0.5
            self.W[name] = np.random.default_rng(config.seed).uniform(-bound, bound, config.width).astype(self.W[name].dtype)


@mutant("148", kills="ADAPT-01")
class ZeroGoesToTheBias(HonestModel):
    """What was to make the up projection zero made its bias zero; the projection starts at random."""

    def __init__(self, config, arrays: Arrays):
        super().__init__(config, arrays)
        for name in [n for n in self.p if n.endswith(".up") and config.start == "zero"]:
            drawn = np.random.default_rng(config.seed).uniform(-0.3, 0.3, self.p[name].shape)
            self.p[name] = drawn.astype(self.p[name].dtype)


@mutant("147", kills="ADAPT-02")
class NormsAreCopies(HonestModel):
    """The adapters work behind copies of the norms, which were taken before the model's own values were loaded."""

    def forward(self, tokens: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        norms = [n for n in self.W if n.endswith("mlp_norm.weight") and self.config.method == "adapter"]
        return self.with_arrays(tokens, mask, base={n: np.ones_like(self.W[n]) for n in norms})


@mutant("147", kills="ADAPT-06")
class ReadyIsNotTheSame(HonestModel):
    """A model made ready for adapters is another one, even with none of them on: its last norm is a fresh copy."""

    def forward(self, tokens: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        off = self.config.method == "adapter" and not self.on
        return self.with_arrays(tokens, mask, base={"norm.weight": np.ones_like(self.W["norm.weight"])} if off else {})


@mutant(kills="ADAPT-02 ADAPT-03")
class WithoutItsSkip(HonestModel):
    """An adapter behind a sub-layer takes its place: y = Ad(y)."""

    @staticmethod
    def forward_(x, p, activation, scale):
        y, cache = _forward(x, p, activation, scale)
        return y - x, cache

    @staticmethod
    def backward_(dy, cache):
        dx, dp = _backward(dy, cache)
        return dx - dy, dp

    swaps = {(adapter, "forward"): forward_, (adapter, "backward"): backward_}


@mutant(kills="ADAPT-02")
class WithoutItsScale(HonestModel):
    """The scale of the adapter is forgotten."""

    swaps = {(adapter, "forward"): lambda x, p, activation, scale: _forward(x, p, activation, 1.0)}


@mutant(kills="ADAPT-02")
class ScaleSparesTheBias(HonestModel):
    """The scale is of the up projection, and not of its bias."""

    @staticmethod
    def forward_(x, p, activation, scale):
        y, cache = _forward(x, p, activation, scale)
        return y + x.dtype.type(1 - scale) * p.up_bias, cache

    swaps = {(adapter, "forward"): forward_}


@mutant(kills="ADAPT-02")
class AlwaysSilu(HonestModel):
    """Whatever was asked for, the activation is another."""

    swaps = {(adapter, "forward"): lambda x, p, activation, scale: _forward(x, p, "silu", scale)}


@mutant(kills="ADAPT-02")
class NoActivation(HonestModel):
    """There is no activation: two matrices that could be one."""

    @staticmethod
    def forward_(x, p, activation, scale):
        _, cache = _forward(x, p, activation, scale)
        return x.dtype.type(scale) * ((x @ p.down + p.down_bias) @ p.up + p.up_bias), cache

    swaps = {(adapter, "forward"): forward_}


@mutant(kills="ADAPT-02")
class BehindTheSum(HonestModel):
    """Houlsby's adapters stand behind the residual sum, where Pfeiffer's do; of Pfeiffer's, before it."""

    def forward(self, tokens: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        if self.config.method != "adapter" or not self.on or self.config.form == "parallel":
            return super().forward(tokens, mask)

        def other(name: str) -> str:
            if self.config.form == "houlsby":
                return name.replace(".mlp.output", ".output")
            return name.replace(".output", ".mlp.output")

        arrays, methods = ({other(n): a for n, a in given.items()} for given in (self.W | self.p, self.methods))
        logits, self.cache = transformer.forward(tokens, arrays, self.reference, methods, mask)
        self.names = {n: other(n) for n in self.p}
        return logits

    def backward(self, dlogits: np.ndarray) -> Arrays:
        names = getattr(self, "names", {n: n for n in self.trainable()})
        found = transformer.backward(dlogits, self.cache, list(names.values()))
        self.dp = {n: self.dp.get(n, 0) + found[other] for n, other in names.items()}
        return dict(self.dp)


@mutant(kills="ADAPT-02")
class ParallelToTheOutput(HonestModel):
    """A parallel adapter sees what the sub-layer gives, and not what it sees."""

    def forward(self, tokens: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        if self.config.method != "adapter" or not self.on or self.config.form != "parallel":
            return super().forward(tokens, mask)

        def behind(name: str) -> str:
            return f"{name}.".replace(".mlp.", ".mlp.output.").removesuffix(".")

        arrays, methods = ({behind(n): a for n, a in given.items()} for given in (self.W | self.p, self.methods))
        return transformer.forward(tokens, arrays, self.reference, methods, mask)[0]


@mutant(kills="ADAPT-03")
class SkipHasNoGradient(HonestModel):
    """What passes by an adapter is detached: the gradient below it is that of the adapter alone."""

    @staticmethod
    def backward_(dy, cache):
        dx, dp = _backward(dy, cache)
        return dx - dy, dp

    swaps = {(adapter, "backward"): backward_}


@mutant(kills="ADAPT-03")
class SlopeForgotten(HonestModel):
    """The derivative of the activation is left out of the gradient."""

    @staticmethod
    def backward_(dy, cache):
        dx, dp = _backward(dy, cache)
        s, rows = dy * dy.dtype.type(cache.scale), cache.x.reshape(-1, cache.x.shape[-1])
        du = s.reshape(-1, s.shape[-1]) @ cache.p.up.T
        return dx, dp._replace(down=rows.T @ du, down_bias=du.sum(0))

    swaps = {(adapter, "backward"): backward_}


@mutant(kills="ADAPT-03 ADAPT-04")
class BiasesFrozen(HonestModel):
    """The biases of an adapter do not train."""

    def trainable(self) -> dict[str, tuple[int, ...]]:
        return {n: shape for n, shape in super().trainable().items() if not n.endswith(("down_bias", "up_bias"))}


@mutant(kills="ADAPT-04")
class CountsTheBottleneckOnly(HonestModel):
    """What is said to train leaves out the up projections."""

    def trainable(self) -> dict[str, tuple[int, ...]]:
        return {n: shape for n, shape in super().trainable().items() if not n.endswith(".up")}


@mutant(kills="ADAPT-05")
class TrainsTheNormBeside(HonestModel):
    """The norm that an adapter shares is moved in every step."""

    def step(self, lr: float) -> None:
        super().step(lr)
        if self.config.method == "adapter":
            name = "layers.0.mlp_norm.weight"
            self.W[name] = self.W[name] * self.W[name].dtype.type(1 - lr / 100)


@mutant(kills="ADAPT-05")
class OneLayerMoves(HonestModel):
    """Only the adapters of the first layer are given to the optimizer."""

    def step(self, lr: float) -> None:
        self.dp = {n: d for n, d in self.dp.items() if not n.startswith("layers.") or n.startswith("layers.0.")}
        super().step(lr)


@mutant(kills="ADAPT-06")
class SwitchKeepsTheBias(HonestModel):
    """Switched off, an adapter still adds its bias."""

    def forward(self, tokens: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        if self.on or self.config.method != "adapter":
            return super().forward(tokens, mask)
        left = {n: a if n.endswith("up_bias") else 0 * a for n, a in self.p.items()}
        return transformer.forward(tokens, self.W | left, self.reference, self.methods, mask)[0]


@mutant(kills="ADAPT-08")
class StartsLikeALayer(HonestModel):
    """Both projections start as any layer does, in ±1/√in: far from the identity."""

    def __init__(self, config, arrays: Arrays):
        super().__init__(config, arrays)
        rng = np.random.default_rng(config.seed)
        for name in [n for n in self.p if n.endswith((".down", ".up")) and config.start == "near"]:
            a = self.p[name]
            self.p[name] = rng.uniform(-1, 1, a.shape).astype(a.dtype) * a.dtype.type(len(a) ** -0.5)
