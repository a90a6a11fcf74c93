"""Faults of the backward pass."""

from weakref import WeakSet

import ml_dtypes
import numpy as np

from conformance.mutants import mutant
from conformance.mutants.honest import Honest
from conformance.mutants.variations import MergesAtEval
from conformance.subject import Arrays


@mutant(kills="GRAD-01 GRAD-05 GRAD-11")
class DxWithoutScale(Honest):
    """The LoRA part of dx is not scaled."""

    def lora_dx(self, dy: np.ndarray) -> np.ndarray:
        return self.product(self.product(dy, self.B.T), self.A.T)


@mutant("58", kills="GRAD-01 GRAD-05 DROP-04")
class DxWithoutLoRA(Honest):
    """The LoRA part does not contribute to dx: its input was detached."""

    def lora_dx(self, dy: np.ndarray) -> np.ndarray:
        return 0 * super().lora_dx(dy)


@mutant(kills="GRAD-01 GRAD-05")
class DxWithoutBase(Honest):
    """The base product does not contribute to dx: it was computed without gradients, because W is frozen."""

    def base_dx(self, dy: np.ndarray) -> np.ndarray:
        return 0 * super().base_dx(dy)


@mutant(kills="GRAD-02 GRAD-08 GRAD-14")
class MeanInDA(Honest):
    """dA is the mean over the rows and not the sum."""

    def gradient_of_A(self, dy: np.ndarray) -> np.ndarray:
        return super().gradient_of_A(dy) / len(dy)


@mutant(kills="GRAD-03 GRAD-08")
class MeanInDB(Honest):
    """dB is the mean over the rows and not the sum."""

    def gradient_of_B(self, dy: np.ndarray) -> np.ndarray:
        return super().gradient_of_B(dy) / max(len(dy), 1)


@mutant(kills="GRAD-02 GRAD-11 DROP-04")
class DAWithoutScale(Honest):
    """dA is not scaled."""

    def gradient_of_A(self, dy: np.ndarray) -> np.ndarray:
        return self.product(self.x.T, self.product(dy, self.B.T))


@mutant(kills="GRAD-03 GRAD-06 GRAD-11")
class DBWithoutScale(Honest):
    """dB is not scaled."""

    def gradient_of_B(self, dy: np.ndarray) -> np.ndarray:
        return self.product(self.product(self.x, self.A).T, dy)


@mutant(kills="GRAD-03 GRAD-11 GRAD-16")
class HiddenCutInBackward(Honest):
    """The backward pass sets the negative entries of x A to zero before it computes dB. The forward pass did not."""

    def gradient_of_B(self, dy: np.ndarray) -> np.ndarray:
        return self.scaled(self.product(np.maximum(self.product(self.dropped(self.x), self.A), 0).T, dy))


@mutant(kills="GRAD-02 GRAD-16")
class DAClipped(Honest):
    """dA is clipped inside the layer."""

    def gradient_of_A(self, dy: np.ndarray) -> np.ndarray:
        return np.clip(super().gradient_of_A(dy), -1, 1)


@mutant(kills="GRAD-03 GRAD-08 GRAD-14")
class DBOfOneShard(Honest):
    """dB is that of the first part of the batch: the sum over the devices is missing."""

    def gradient_of_B(self, dy: np.ndarray) -> np.ndarray:
        dy = dy.copy()
        dy[(len(dy) + 1) // 2 :] = 0
        return super().gradient_of_B(dy)


@mutant("48 49 58", kills="GRAD-01 GRAD-02 GRAD-03 GRAD-12")
class OutputDetached(Honest):
    """The LoRA part is detached: no gradient reaches A, B, or x through it."""

    def backward(self, dy: np.ndarray) -> Arrays:
        return {"x": self.shaped(self.base_dx(self.rows(dy)))}


@mutant("57", kills="GRAD-03 GRAD-06 INIT-08 PARAM-04")
class BDetached(Honest):
    """The delta is computed from a detached B, so B gets no gradient."""

    def gradient_of_B(self, dy: np.ndarray) -> np.ndarray:
        return np.zeros_like(self.B)


@mutant(kills="GRAD-04")
class GradientsInBfloat16(Honest):
    """The gradients of the factors are kept in bfloat16."""

    def kept_gradient(self, gradient: np.ndarray) -> np.ndarray:
        return self.rounded(gradient.astype(ml_dtypes.bfloat16))


@mutant(kills="GRAD-04")
class DyInFloat16(Honest):
    """The upstream gradient is cast to float16 before it is used."""

    def backward(self, dy: np.ndarray) -> Arrays:
        return super().backward(dy.astype(np.float16).astype(dy.dtype))


@mutant(kills="GRAD-01 GRAD-11")
class DxClipped(Honest):
    """dx is clipped inside the layer."""

    def shaped(self, rows: np.ndarray) -> np.ndarray:
        return super().shaped(rows if rows.shape[1] == self.W.shape[0] else np.clip(rows, -1, 1))


@mutant(kills="GRAD-04")
class SquareGradientsTransposed(Honest):
    """Gradients are transposed only if their shape requires it: a square one comes back transposed."""

    def gradient_of_A(self, dy: np.ndarray) -> np.ndarray:
        dA = super().gradient_of_A(dy)
        return dA.T if dA.shape[0] == dA.shape[1] else dA


@mutant(kills="GRAD-06 INIT-08")
class NothingWhileBIsZero(Honest):
    """The LoRA part is skipped while B is zero, in the backward pass too. So B stays zero for ever."""

    def accumulated(self, dA: np.ndarray, dB: np.ndarray) -> Arrays:
        return super().accumulated(dA, dB if self.up(self.B).any() else 0 * dB)


@mutant(kills="GRAD-06")
class AMovesFromTheStart(Honest):
    """A B of zeros is replaced by small numbers, so that A gets a gradient at the first step, too."""

    def gradient_of_A(self, dy: np.ndarray) -> np.ndarray:
        if self.up(self.B).any():
            return super().gradient_of_A(dy)
        return self.scaled(self.product(self.x.T, self.product(dy, np.ones_like(self.B.T))))


@mutant(kills="GRAD-07 GRAD-08")
class OverwritesGradients(Honest):
    """A backward pass overwrites the gradients and does not add to them."""

    def accumulated(self, dA: np.ndarray, dB: np.ndarray) -> Arrays:
        self.zero_grad()
        return super().accumulated(dA, dB)


@mutant(kills="GRAD-07 GRAD-08 GRAD-09")
class NeverCleared(Honest):
    """zero_grad does nothing after the first backward pass."""

    def zero_grad(self) -> None:
        if not hasattr(self, "dA"):
            super().zero_grad()


@mutant(kills="GRAD-07 LEARN-01")
class ClearsAOnly(Honest):
    """zero_grad clears the gradient of A and leaves that of B."""

    def zero_grad(self) -> None:
        kept = getattr(self, "dB", None)
        super().zero_grad()
        self.dB = self.dB if kept is None else kept


@mutant(kills="GRAD-07")
class StepsWithClearedGradients(Honest):
    """A step after zero_grad uses the gradients from before it."""

    cleared: Arrays | None = None

    def zero_grad(self) -> None:
        self.cleared = {"A": self.dA, "B": self.dB} if hasattr(self, "dA") else None
        super().zero_grad()

    def step(self, lr: float) -> None:
        if self.cleared and not self.dA.any() and not self.dB.any():
            self.dA, self.dB = self.cleared["A"], self.cleared["B"]
        super().step(lr)


@mutant("61", kills="GRAD-09")
class ReadsBufferOfDy(Honest):
    """The numbers of dy are read in their order in memory. The strides are ignored."""

    def backward(self, dy: np.ndarray) -> Arrays:
        return super().backward(dy.ravel(order="K").reshape(dy.shape))


@mutant("61", kills="GRAD-09")
class ViewOfDyRefused(Honest):
    """A dy that is not contiguous is refused."""

    def backward(self, dy: np.ndarray) -> Arrays:
        if not dy.flags.c_contiguous:
            raise ValueError("dy is not contiguous")
        return super().backward(dy)


@mutant(kills="GRAD-09")
class ExpandedDyOnce(Honest):
    """A dy that is one row broadcast to many counts as one row."""

    def backward(self, dy: np.ndarray) -> Arrays:
        return super().backward(np.where(np.arange(len(dy))[:, None, None] > 0, 0, dy) if dy.strides[0] == 0 else dy)


@mutant(kills="GRAD-09")
class DxAddsUp(Honest):
    """dx adds up over backward passes."""

    def base_dx(self, dy: np.ndarray) -> np.ndarray:
        self.dx = super().base_dx(dy) + getattr(self, "dx", 0)
        return self.dx


@mutant("64", kills="GRAD-10")
class WeightGetsGradient(Honest):
    """W gets a gradient, though nothing moves it."""

    def backward(self, dy: np.ndarray) -> Arrays:
        return super().backward(dy) | {"weight": self.product(self.rows(dy).T, self.x)}


@mutant(kills="GRAD-10")
class BiasGetsGradient(Honest):
    """b gets a gradient, though nothing moves it."""

    def backward(self, dy: np.ndarray) -> Arrays:
        return super().backward(dy) | ({} if self.b is None else {"bias": self.rows(dy).sum(0)})


@mutant("65", kills="GRAD-10 PARAM-03")
class SettingUnfreezes(Honest):
    """Setting the adapter turns gradients on for everything, and W trains from then on."""

    def set_factors(self, arrays: Arrays) -> None:
        super().set_factors(arrays)
        self.dW = np.zeros_like(self.W)

    def backward(self, dy: np.ndarray) -> Arrays:
        self.dW = self.rounded(self.product(self.rows(dy).T, self.x))
        return super().backward(dy) | {"weight": self.dW}

    def step(self, lr: float) -> None:
        super().step(lr)
        self.W = self.rounded(self.up(self.W) - lr * self.up(self.dW))


@mutant("58", kills="GRAD-12")
class InferenceDetaches(Honest):
    """In inference mode A and B get no gradients, although the layer is not merged."""

    def backward(self, dy: np.ndarray) -> Arrays:
        found = super().backward(dy)
        return found if self.training else {"x": found["x"]}


@mutant(kills="GRAD-12")
class MergedDxByOldWeight(MergesAtEval):
    """A layer that is merged in inference mode computes dx with the W from before the merge, so the LoRA part is missing."""

    def base_dx(self, dy: np.ndarray) -> np.ndarray:
        return self.product(dy, self.W if self.kept is None else self.kept)


@mutant("55 56 59", kills="GRAD-13")
class NeedsGradientOfX(Honest):
    """A and B get gradients only if x asks for one."""

    def backward(self, dy: np.ndarray) -> Arrays:
        return super().backward(dy) if self.wants_dx else {}


@mutant("55", kills="GRAD-13")
class ZerosWithoutGradientOfX(Honest):
    """A and B get gradients of zero if x asks for none, as under checkpointing."""

    def accumulated(self, dA: np.ndarray, dB: np.ndarray) -> Arrays:
        return super().accumulated(dA * self.wants_dx, dB * self.wants_dx)


@mutant(kills="GRAD-14")
class SumsOneLeadingDimension(Honest):
    """dA is summed over the first leading dimension alone. Of the others it takes the first entry."""

    def gradient_of_A(self, dy: np.ndarray) -> np.ndarray:
        if len(self.leading) > 1 and dy.size:
            dy = dy.reshape(self.leading[0], -1, dy.shape[1]).copy()
            dy[:, 1:] = 0
            dy = dy.reshape(-1, dy.shape[-1])
        return super().gradient_of_A(dy)


@mutant(kills="GRAD-14 GRAD-01")
class DxFlat(Honest):
    """dx comes back as (rows, in), whatever the leading dimensions of x."""

    def backward(self, dy: np.ndarray) -> Arrays:
        found = super().backward(dy)
        return found | {"x": found["x"].reshape(-1, found["x"].shape[-1])}


@mutant("66", kills="GRAD-15")
class DxWrittenOverX(Honest):
    """dx is written over x, to save a buffer."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.buffer = x
        return super().forward(x)

    def backward(self, dy: np.ndarray) -> Arrays:
        found = super().backward(dy)
        self.buffer[...] = found["x"]
        return found


@mutant("66", kills="GRAD-15")
class DyScaledInPlace(Honest):
    """dy is scaled in place."""

    def backward(self, dy: np.ndarray) -> Arrays:
        found = super().backward(dy)
        dy *= dy.dtype.type(self.scale)
        return found


@mutant("16", kills="GRAD-15")
class ScaleFoldedIntoA(Honest):
    """The forward pass multiplies the scale into the stored A. Its output is right, but A is not the one that was set."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.A, self.scale = self.rounded(self.scaled(self.A)), 1.0
        return super().forward(x)


@mutant("63", kills="GRAD-17")
class GradientsCleaned(Honest):
    """NaN and infinity in the gradients of A and B are replaced by numbers."""

    def accumulated(self, dA: np.ndarray, dB: np.ndarray) -> Arrays:
        return super().accumulated(np.nan_to_num(dA), np.nan_to_num(dB))


@mutant(kills="SCALE-09")
class RsloraForwardOnly(Honest):
    """With rank-stabilised scaling dA still has the scale alpha / rank."""

    def gradient_of_A(self, dy: np.ndarray) -> np.ndarray:
        standard = self.config.alpha / self.config.rank
        return super().gradient_of_A(dy) * (standard / self.scale if self.config.scaling == "rslora" else 1)


@mutant(kills="GRAD-19")
class GradientsOfOneTile(Honest):
    """dA is right in the first 64 rows of A, and zero in the others."""

    def gradient_of_A(self, dy: np.ndarray) -> np.ndarray:
        dA = super().gradient_of_A(dy)
        dA[64:] = 0
        return dA


@mutant("17", kills="GRAD-18")
class OneCacheForAll(Honest):
    """What the forward pass keeps for the backward pass is stored in the class, so it is that of the layer used last."""

    kept_x: list[np.ndarray] = []

    def forward(self, x: np.ndarray) -> np.ndarray:
        y = super().forward(x)
        self.kept_x[:] = [self.x]
        return y

    def backward(self, dy: np.ndarray) -> Arrays:
        self.x = self.kept_x[0]
        return super().backward(dy)


@mutant(kills="GRAD-14")
class EmptyBatchClears(Honest):
    """The backward pass of an empty batch clears the gradients that have added up."""

    def accumulated(self, dA: np.ndarray, dB: np.ndarray) -> Arrays:
        if not len(self.x):
            self.zero_grad()
        return super().accumulated(dA, dB)


@mutant(kills="GRAD-18")
class ClearsAllLayers(Honest):
    """zero_grad clears the gradients of every layer there is."""

    layers = WeakSet()

    def zero_grad(self) -> None:
        self.layers.add(self)
        for layer in self.layers:
            Honest.zero_grad(layer)


@mutant(kills="GRAD-20")
class FirstOfTwoPasses(Honest):
    """Of two forward passes of one shape before a backward pass, the first is differentiated."""

    waiting: np.ndarray | None = None

    def output(self, x: np.ndarray) -> np.ndarray:
        y = super().output(x)
        if self.waiting is None or self.waiting.shape != x.shape:
            self.waiting = x
        self.x = self.waiting
        return y

    def backward(self, dy: np.ndarray) -> Arrays:
        self.waiting = None
        return super().backward(dy)


@mutant("57", kills="GRAD-20")
class InferenceKeepsNothing(Honest):
    """A forward pass in inference mode keeps no x, and the gradient is that of an earlier one."""

    kept_x: np.ndarray | None = None

    def output(self, x: np.ndarray) -> np.ndarray:
        y = super().output(x)
        if not self.training and self.kept_x is not None and self.kept_x.shape == x.shape:
            self.x = self.kept_x
        self.kept_x = self.x
        return y


@mutant(kills="GRAD-07")
class DxOfAllPasses(Honest):
    """dx adds up like the gradients of A and B, until they are cleared."""

    sum: np.ndarray | None = None

    def zero_grad(self) -> None:
        super().zero_grad()
        self.sum = None

    def lora_dx(self, dy: np.ndarray) -> np.ndarray:
        dx = super().lora_dx(dy)
        if self.sum is not None and self.sum.shape == dx.shape:
            dx = dx + self.sum
        self.sum = dx
        return dx


@mutant(kills="GRAD-21")
class FrozenFactorStopsTheOther(Honest):
    """No factor gets a gradient while one of them is frozen."""

    def backward(self, dy: np.ndarray) -> Arrays:
        found = super().backward(dy)
        return found if self.trains == {"A", "B"} else {name: d for name, d in found.items() if name == "x"}


@mutant(kills="GRAD-21")
class FrozenFactorGetsAGradient(Honest):
    """A factor that is frozen gets its gradient all the same."""

    def factor_needs_grad(self, name: str, needed: bool = True) -> None:
        pass


@mutant(kills="GRAD-21")
class FrozenBMovesTheGradients(Honest):
    """With B frozen, x gets the gradient of the base path alone: the backward pass returned one gradient too few."""

    def lora_dx(self, dy: np.ndarray) -> np.ndarray:
        return super().lora_dx(dy) * ("B" in self.trains)


@mutant("53", kills="GRAD-19")
class BlocksOf100Rows(Honest):
    """dA is added up over blocks of 100 rows. The last one is x[-(rows % 100):]: all of x where nothing is left over."""

    def gradient_of_A(self, dy: np.ndarray) -> np.ndarray:
        dA = super().gradient_of_A(dy)
        return 2 * dA if len(dy) > 100 and len(dy) % 100 == 0 else dA


@mutant("53", kills="GRAD-19")
class BlocksOf256Ranks(Honest):
    """dA is computed for 256 ranks at a time. What is left over is forgotten where there is a whole block before it."""

    def gradient_of_A(self, dy: np.ndarray) -> np.ndarray:
        dA = super().gradient_of_A(dy)
        whole = dA.shape[1] // 256 * 256
        return dA * (np.arange(dA.shape[1]) < whole) if whole else dA
