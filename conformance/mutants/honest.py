"""A LoRA layer in NumPy, small and plain, that shares no code with `lora_ref`: what the mutants are mutants of.

    y = x Wᵀ + b + scale · ((x ∘ mask) A) B            x (n, in)    W (out, in)    A (in, rank)    B (rank, out)

float64 layers compute in float64, all others in float32, and what is stored is rounded to the layer's dtype. The steps
are methods, so that a fault is a subclass of a few lines. Below it stand its honest variations: each does something
that implementations are free to do, and must pass every MUST. Where a convention fails a SHOULD, its docstring says so.
"""

import math
from dataclasses import replace
from os import PathLike
from pathlib import Path

import ml_dtypes
import numpy as np

from conformance.subject import Arrays, Layer, LayerConfig, Unsupported

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class Honest(Layer):
    """Rounds once at the end, scales the product, merges into a copy and keeps W."""

    dtypes = ("float32", "float64", "float16", "bfloat16")

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
        self.zero_grad()

    # --- configuration ------------------------------------------------------------------------------------------

    def offer(self, config: LayerConfig) -> None:
        """Raises Unsupported for what the class does not offer."""
        if config.method != "lora" or config.device != "cpu" or config.dtype not in self.dtypes:
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
            dx = self.plus(dx, self.lora_dx(dy))
            found = self.accumulated(self.gradient_of_A(dy), self.gradient_of_B(dy))
        return found | ({"x": self.shaped(dx)} if self.wants_dx else {})

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
        self.dA, self.dB = self.stored(self.plus(self.dA, dA)), self.stored(self.plus(self.dB, dB))
        return {"A": self.dA, "B": self.dB}

    def stored(self, gradient: np.ndarray) -> np.ndarray:
        return self.rounded(gradient)

    def zero_grad(self) -> None:
        self.dA, self.dB = np.zeros_like(self.A), np.zeros_like(self.B)

    def input_needs_grad(self, needed: bool = True) -> None:
        self.wants_dx = needed

    # --- state --------------------------------------------------------------------------------------------------

    def adapter(self) -> Arrays:
        return {"A": self.A, "B": self.B}

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


# --- honest variations: arithmetic ------------------------------------------------------------------------------


class LastTermFirst(Honest):
    """Sums one term after another, beginning with the last."""

    def product(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        left, right = self.up(left), self.up(right)
        total = np.zeros((left.shape[0], right.shape[1]), self.wide)
        for k in reversed(range(left.shape[1])):
            total += left[:, k : k + 1] * right[k : k + 1]
        return total


class InHalves(Honest):
    """Sums the two halves of a product on their own, and so on down to single terms."""

    def product(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        left, right = self.up(left), self.up(right)
        half = left.shape[1] // 2
        if not half:
            return left @ right
        return self.product(left[:, :half], right[:half]) + self.product(left[:, half:], right[half:])


class OneRowAtATime(Honest):
    """Computes each row of a product by itself."""

    def product(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        left, right = self.up(left), self.up(right)
        total = np.zeros((left.shape[0], right.shape[1]), self.wide)
        for i, row in enumerate(left):
            total[i] = (row[:, None] * right).sum(0)
        return total


class DeltaFirst(Honest):
    """Forms the sum W + scale · (A B)ᵀ in every pass, and its gradient on the way to those of A and B."""

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


# --- honest variations: initialisation --------------------------------------------------------------------------


class KaimingUniform(Honest):
    """Draws A as torch's Linear draws its weight: uniform within 1 / √in."""

    def init_factors(self, n_in: int, n_out: int, rank: int) -> tuple[np.ndarray, np.ndarray]:
        return self.rng.uniform(-1, 1, (n_in, rank)) / math.sqrt(n_in), np.zeros((rank, n_out))


class SmallNormal(Honest):
    """Draws A from N(0, 0.01²)."""

    def init_factors(self, n_in: int, n_out: int, rank: int) -> tuple[np.ndarray, np.ndarray]:
        return 0.01 * self.rng.standard_normal((n_in, rank)), np.zeros((rank, n_out))


class ZeroA(Honest):
    """Draws B, and sets A to zero: loralib's embedding does."""

    def init_factors(self, n_in: int, n_out: int, rank: int) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros((n_in, rank)), self.rng.standard_normal((rank, n_out))


# --- honest variations: merging ---------------------------------------------------------------------------------


class UnmergesBySubtraction(Honest):
    """Takes the delta out of W again by subtracting it, so it refuses new factors while merged. What rounding or an
    overflow took is not given back: it fails MERGE-08."""

    def restored_weight(self) -> np.ndarray:
        return self.rounded(self.plus(self.W, -self.delta_weight()))

    def set_adapter(self, arrays: Arrays) -> None:
        if self.merged:
            raise RuntimeError("set_adapter: unmerge first")
        super().set_adapter(arrays)


class MergesAtEval(Honest):
    """Merges when it goes to inference mode and unmerges when it comes back; A and B have no gradients in between."""

    def train(self, mode: bool = True) -> None:
        super().train(mode)
        if mode and self.merged:
            self.unmerge()
        elif not mode and not self.merged:
            self.merge()


class MergesTwiceInPeace(Honest):
    """Does nothing when a merged layer is told to merge, or an unmerged one to unmerge."""

    def merge(self) -> None:
        if not self.merged:
            super().merge()

    def unmerge(self) -> None:
        if self.merged:
            super().unmerge()


class TrainsWhileMerged(Honest):
    """Gives A and B their gradients while merged, too: those that they would have if it were not."""

    def backward(self, dy: np.ndarray) -> Arrays:
        rows = self.rows(dy)
        found = self.accumulated(self.gradient_of_A(rows), self.gradient_of_B(rows)) if self.merged else {}
        return super().backward(dy) | found


# --- honest variations: state -----------------------------------------------------------------------------------


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

    def stored(self, gradient: np.ndarray) -> np.ndarray:
        return self.up(gradient)

    def step(self, lr: float) -> None:
        self.A, self.B = self.A - lr * self.dA, self.B - lr * self.dB


class DropsHidden(Honest):
    """Drops entries of x A in the place of entries of x."""

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


class AlwaysGivesDx(Honest):
    """Gives x its gradient whether it asks for one or not; A and B get none from an empty batch."""

    def input_needs_grad(self, needed: bool = True) -> None:
        pass

    def backward(self, dy: np.ndarray) -> Arrays:
        found = super().backward(dy)
        return found if dy.size else {"x": found["x"]}


class RankZeroIsOff(Honest):
    """Takes a rank of 0 for no adapter, as loralib does."""

    def check_rank(self, rank: int) -> None:
        if rank != 0:
            super().check_rank(rank)

    def scale_of(self, config: LayerConfig) -> float:
        return super().scale_of(config) if config.rank else 0.0


# --- honest variations: fewer capabilities ----------------------------------------------------------------------


class ForwardOnly(Honest):
    """Offers the forward pass and nothing else: no modes, so no dropout."""

    backward, zero_grad, input_needs_grad, step = Layer.backward, Layer.zero_grad, Layer.input_needs_grad, Layer.step
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
    """Offers neither merging nor files, and no way to look at W or to withhold the gradient of x."""

    merge, unmerge, save, load = Layer.merge, Layer.unmerge, Layer.save, Layer.load
    weight, bias, input_needs_grad = Layer.weight, Layer.bias, Layer.input_needs_grad


class SingleOnly(Honest):
    """Offers float32 alone, with standard scaling, a bias and no dropout."""

    dtypes = ("float32",)

    def offer(self, config: LayerConfig) -> None:
        super().offer(config)
        if config.dropout or config.scaling != "standard" or not config.bias:
            raise Unsupported("dropout, rslora and layers without a bias")


# --- honest variations: several adapters ------------------------------------------------------------------------


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
                gradients = part.accumulated(part.gradient_of_A(wdy), part.gradient_of_B(wdy))
                found |= {prefix(name) + key: gradient for key, gradient in gradients.items()}
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
    """Puts the root of weight · scale into A as into B, and the sign into B."""

    def combine(self, name: str, weights: dict[str, float]) -> None:
        parts = [(weight * self.part(n).scale, self.part(n)) for n, weight in weights.items()]
        A = np.hstack([self.rounded(self.root(c) * part.up(part.A)) for c, part in parts])
        B = np.vstack([self.rounded(math.copysign(self.root(c), c) * part.up(part.B)) for c, part in parts])
        self.add_adapter(name, {"A": A, "B": B}, self.alpha_of_one(A.shape[1]))

    def root(self, number: float) -> float:
        return math.sqrt(abs(number))


def prefix(name: str) -> str:
    return "" if name == "default" else f"{name}."
