"""Honest variations of the honest layer: each does something that implementations are free to do, and must pass every MUST.
Where a convention fails a SHOULD, its docstring says so."""

import math
from pathlib import Path

import numpy as np

from conformance.mutants.honest import Honest
from conformance.subject import Arrays, Layer, LayerConfig, Unsupported

# --- arithmetic ------------------------------------------------------------------------------


class LastTermFirst(Honest):
    """Sums the terms of a product one by one, from the last to the first."""

    def product(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        left, right = self.up(left), self.up(right)
        total = np.zeros((left.shape[0], right.shape[1]), self.wide)
        for k in reversed(range(left.shape[1])):
            total += left[:, k : k + 1] * right[k : k + 1]
        return total


class InHalves(Honest):
    """Sums each half of a product separately, and each half of the halves, down to single terms."""

    def product(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        left, right = self.up(left), self.up(right)
        half = left.shape[1] // 2
        if not half:
            return left @ right
        return self.product(left[:, :half], right[:half]) + self.product(left[:, half:], right[half:])


class OneRowAtATime(Honest):
    """Computes each row of a product separately."""

    def product(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        left, right = self.up(left), self.up(right)
        total = np.zeros((left.shape[0], right.shape[1]), self.wide)
        for i, row in enumerate(left):
            total[i] = (row[:, None] * right).sum(0)
        return total


class DeltaFirst(Honest):
    """Computes the sum W + scale · (A B)ᵀ in every pass, and its gradient before those of A and B."""

    def output(self, x: np.ndarray) -> np.ndarray:
        if self.merged or self.mask is not None:
            return super().output(x)
        y = self.product(x, self.merged_weight().T)
        return y if self.b is None else self.plus(y, self.b)

    def lora_dx(self, dy: np.ndarray) -> np.ndarray:
        return self.dropped(self.product(dy, self.delta_weight()))

    def gradient_of_A(self, dy: np.ndarray) -> np.ndarray:
        return self.scaled(self.product(self.product(self.dropped(self.x).T, dy), self.B.T))

    def gradient_of_B(self, dy: np.ndarray) -> np.ndarray:
        return self.scaled(self.product(self.A.T, self.product(self.dropped(self.x).T, dy)))


class RoundsEverything(Honest):
    """Rounds the scale, and the result of every product, scaling and addition, to the layer's dtype. So a merge rounds
    more than once, and fails DTYPE-07."""

    def scale_of(self, config: LayerConfig) -> float:
        return float(self.rounded(np.array(super().scale_of(config))))

    def product(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        return self.rounded(super().product(left, right))

    def plus(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        return self.rounded(super().plus(left, right))

    def scaled(self, array: np.ndarray) -> np.ndarray:
        return self.rounded(super().scaled(array))


class ScalesInput(Honest):
    """Applies the scale to x, before the two products."""

    def lora(self, x: np.ndarray) -> np.ndarray:
        return self.product(self.product(self.scaled(self.dropped(x)), self.A), self.B)

    def gradient_of_A(self, dy: np.ndarray) -> np.ndarray:
        return self.product(self.scaled(self.dropped(self.x)).T, self.product(dy, self.B.T))

    def gradient_of_B(self, dy: np.ndarray) -> np.ndarray:
        return self.product(self.product(self.scaled(self.dropped(self.x)), self.A).T, dy)


class ScalesHidden(Honest):
    """Applies the scale between the two products."""

    def lora(self, x: np.ndarray) -> np.ndarray:
        return self.product(self.scaled(self.product(self.dropped(x), self.A)), self.B)

    def gradient_of_A(self, dy: np.ndarray) -> np.ndarray:
        return self.product(self.dropped(self.x).T, self.scaled(self.product(dy, self.B.T)))

    def gradient_of_B(self, dy: np.ndarray) -> np.ndarray:
        return self.product(self.scaled(self.product(self.dropped(self.x), self.A)).T, dy)


class ScalesB(Honest):
    """Applies the scale to a copy of B."""

    def lora(self, x: np.ndarray) -> np.ndarray:
        return self.product(self.product(self.dropped(x), self.A), self.scaled(self.B))

    def lora_dx(self, dy: np.ndarray) -> np.ndarray:
        return self.dropped(self.product(self.product(dy, self.scaled(self.B).T), self.A.T))

    def gradient_of_A(self, dy: np.ndarray) -> np.ndarray:
        return self.product(self.dropped(self.x).T, self.product(dy, self.scaled(self.B).T))

    def delta_weight(self) -> np.ndarray:
        return self.product(self.A, self.scaled(self.B)).T


# --- initialisation --------------------------------------------------------------------------


class KaimingUniform(Honest):
    """Draws A uniformly within ±1/√in, as torch's Linear draws its weight."""

    def init_factors(self, n_in: int, n_out: int, rank: int) -> tuple[np.ndarray, np.ndarray]:
        return self.rng.uniform(-1, 1, (n_in, rank)) / math.sqrt(n_in), np.zeros((rank, n_out))


class SmallNormal(Honest):
    """Draws A from N(0, 0.01²)."""

    def init_factors(self, n_in: int, n_out: int, rank: int) -> tuple[np.ndarray, np.ndarray]:
        return 0.01 * self.rng.standard_normal((n_in, rank)), np.zeros((rank, n_out))


class ZeroA(Honest):
    """Draws B and sets A to zero, as loralib's embedding does."""

    def init_factors(self, n_in: int, n_out: int, rank: int) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros((n_in, rank)), self.rng.standard_normal((rank, n_out))


# --- merging ---------------------------------------------------------------------------------


class UnmergesBySubtraction(Honest):
    """Unmerges by subtracting the delta, so it refuses new factors and steps while merged. What was lost by rounding or
    overflow does not come back: it fails MERGE-08."""

    def restored_weight(self) -> np.ndarray:
        return self.rounded(self.plus(self.W, -self.delta_weight()))

    def set_adapter(self, arrays: Arrays) -> None:
        if self.merged:
            raise RuntimeError("set_adapter: unmerge first")
        super().set_adapter(arrays)

    def step(self, lr: float) -> None:
        if self.merged:
            raise RuntimeError("step: unmerge first")
        super().step(lr)


class MergesAtEval(Honest):
    """Merges when it switches to inference mode, and unmerges when it switches back. A and B get no gradients in between. A
    backward pass uses the weight of its forward pass, also if the mode has changed."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.then = self.W, self.kept
        return super().forward(x)

    def backward(self, dy: np.ndarray) -> Arrays:
        now = self.W, self.kept
        self.W, self.kept = self.then
        try:
            return super().backward(dy)
        finally:
            self.W, self.kept = now

    def train(self, mode: bool = True) -> None:
        super().train(mode)
        if mode and self.merged:
            self.unmerge()
        elif not mode and not self.merged:
            self.merge()


class MergesTwiceInPeace(Honest):
    """Does nothing when a merged layer is told to merge, or an unmerged layer to unmerge."""

    def merge(self) -> None:
        if not self.merged:
            super().merge()

    def unmerge(self) -> None:
        if self.merged:
            super().unmerge()


class TrainsWhileMerged(Honest):
    """Gives A and B their gradients while merged, too, as if it were not merged."""

    def backward(self, dy: np.ndarray) -> Arrays:
        rows = self.rows(dy)
        found = self.accumulated(self.gradient_of_A(rows), self.gradient_of_B(rows)) if self.merged else {}
        return super().backward(dy) | found


# --- state -----------------------------------------------------------------------------------


class StoresTransposed(Honest):
    """Stores A as (rank, in) and B as (out, rank), as most libraries do, and transposes at the edge."""

    A = property(lambda self: self.down.T, lambda self, value: setattr(self, "down", np.ascontiguousarray(value.T)))
    B = property(lambda self: self.above.T, lambda self, value: setattr(self, "above", np.ascontiguousarray(value.T)))


class UpdatesInPlace(Honest):
    """Updates factors and gradients in place, as torch does, and hands out the arrays themselves."""

    def accumulated(self, dA: np.ndarray, dB: np.ndarray) -> Arrays:
        before, (self.dA, self.dB) = (self.dA, self.dB), super().accumulated(dA, dB).values()
        for old, new in zip(before, (self.dA, self.dB), strict=True):
            old[...] = new
        self.dA, self.dB = before
        return {"A": self.dA, "B": self.dB}

    def step(self, lr: float) -> None:
        before = self.A, self.B
        super().step(lr)
        before[0][...], before[1][...] = self.A, self.B
        self.A, self.B = before


class FactorsInFloat32(Honest):
    """Keeps A, B and their gradients in float32 over a base of half precision; the output is in half precision."""

    def __init__(self, config: LayerConfig, weight: np.ndarray, bias: np.ndarray | None):
        super().__init__(config, weight, bias)
        self.A, self.B = self.up(self.A), self.up(self.B)
        self.zero_grad()

    def set_factors(self, arrays: Arrays) -> None:
        self.A, self.B = self.up(arrays["A"]), self.up(arrays["B"])

    def kept_gradient(self, gradient: np.ndarray) -> np.ndarray:
        return self.up(gradient)

    def step(self, lr: float) -> None:
        self.A, self.B = self.A - lr * self.dA, self.B - lr * self.dB


class DropsHidden(Honest):
    """Drops entries of x A and not entries of x."""

    def draw_mask(self) -> np.ndarray:
        rate, shape = self.config.dropout, (len(self.x), self.config.rank)
        return ((self.rng.random(shape) >= rate) / (1 - rate)).astype(self.wide)

    def lora(self, x: np.ndarray) -> np.ndarray:
        return self.scaled(self.product(self.dropped(self.product(x, self.A)), self.B))

    def lora_dx(self, dy: np.ndarray) -> np.ndarray:
        return self.scaled(self.product(self.dropped(self.product(dy, self.B.T)), self.A.T))

    def gradient_of_A(self, dy: np.ndarray) -> np.ndarray:
        return self.scaled(self.product(self.x.T, self.dropped(self.product(dy, self.B.T))))

    def gradient_of_B(self, dy: np.ndarray) -> np.ndarray:
        return self.scaled(self.product(self.dropped(self.product(self.x, self.A)).T, dy))


class RoundsTheRate(Honest):
    """Rounds the rate p, 1 − p and 1 / (1 − p) to the layer's dtype. It draws with the rounded rate."""

    def draw_mask(self) -> np.ndarray:
        rate = self.rounded(np.array(self.config.dropout))
        factor = self.rounded(1 / self.up(self.rounded(1 - self.up(rate))))
        return (self.rng.random(self.x.shape) >= self.up(rate)) * self.up(factor)


class AlwaysGivesDx(Honest):
    """Returns a gradient of x whether x asks for one or not. A and B get none from an empty batch."""

    def input_needs_grad(self, needed: bool = True) -> None:
        pass

    def backward(self, dy: np.ndarray) -> Arrays:
        found = super().backward(dy)
        return found if dy.size else {"x": found["x"]}


class RankZeroIsOff(Honest):
    """Accepts a rank of 0, which means no adapter, as in loralib."""

    def check_rank(self, rank: int) -> None:
        if rank != 0:
            super().check_rank(rank)

    def scale_of(self, config: LayerConfig) -> float:
        return super().scale_of(config) if config.rank else 0.0


# --- fewer capabilities ----------------------------------------------------------------------


class ForwardOnly(Honest):
    """Offers the forward pass and nothing else. It has no modes, so no dropout."""

    backward, zero_grad, step = Layer.backward, Layer.zero_grad, Layer.step
    input_needs_grad, factor_needs_grad = Layer.input_needs_grad, Layer.factor_needs_grad
    adapter, weight, bias, trainable, train = Layer.adapter, Layer.weight, Layer.bias, Layer.trainable, Layer.train
    merge, unmerge, save, load = Layer.merge, Layer.unmerge, Layer.save, Layer.load

    def __init__(self, config: LayerConfig, weight: np.ndarray, bias: np.ndarray | None):
        self.zero_grad = lambda: None  # the one call of it, by the constructor
        super().__init__(config, weight, bias)
        del self.zero_grad

    def offer(self, config: LayerConfig) -> None:
        super().offer(config)
        if config.dropout:
            raise Unsupported("dropout")


class NoMergeNoFiles(Honest):
    """Offers no merging, no files, no access to W, and no way to withhold the gradient of x."""

    merge, unmerge, save, load = Layer.merge, Layer.unmerge, Layer.save, Layer.load
    weight, bias = Layer.weight, Layer.bias
    input_needs_grad, factor_needs_grad = Layer.input_needs_grad, Layer.factor_needs_grad


class SavesAFolder(Honest):
    """Saves a folder of files into the directory, as Orbax does."""

    def save(self, directory) -> None:
        folder = Path(directory) / "lora"
        folder.mkdir(exist_ok=True)
        super().save(folder)

    def read(self, directory) -> Arrays:
        return super().read(Path(directory) / "lora")


class FixedScale(Honest):
    """Has no alpha and adds the product of the factors unscaled, as flax and lora-pytorch do."""

    fixed_scale = 1.0

    def scale_of(self, config: LayerConfig) -> float:
        return 1.0


class SingleOnly(Honest):
    """Offers float32 alone, with standard scaling, a bias and no dropout."""

    dtypes = ("float32",)

    def offer(self, config: LayerConfig) -> None:
        super().offer(config)
        if config.dropout or config.scaling != "standard" or not config.bias:
            raise Unsupported("dropout, rslora and layers without a bias")
