"""Faults in what trains, and in how."""

import numpy as np

from conformance.mutants import mutant
from conformance.mutants.honest import Honest
from conformance.subject import Arrays


class WithMore(Honest):
    """A layer of which W or b trains, too."""

    also = ""

    def trainable(self) -> dict[str, tuple[int, ...]]:
        more = getattr(self, self.also)
        return super().trainable() | ({} if more is None else {self.also: more.shape})

    def backward(self, dy: np.ndarray) -> Arrays:
        rows = self.rows(dy)
        self.more = {"W": self.product(rows.T, self.x), "b": rows.sum(0)}[self.also]
        return super().backward(dy) | ({} if getattr(self, self.also) is None else {self.also: self.more})

    def step(self, lr: float) -> None:
        super().step(lr)
        if getattr(self, self.also) is not None:
            setattr(self, self.also, self.rounded(self.up(getattr(self, self.also)) - lr * self.more))


@mutant("64", kills="PARAM-01 PARAM-02 PARAM-03 GRAD-10")
class WeightTrains(WithMore):
    """W is not frozen: the whole base layer trains."""

    also = "W"


@mutant(kills="PARAM-01 PARAM-02 PARAM-03 GRAD-10")
class BiasTrains(WithMore):
    """b is not frozen."""

    also = "b"


@mutant("64", kills="PARAM-01 PARAM-02")
class ModeUnfreezes(Honest):
    """train() turns gradients on for everything, W included."""

    unfrozen = False

    def train(self, mode: bool = True) -> None:
        super().train(mode)
        self.unfrozen = True

    def trainable(self) -> dict[str, tuple[int, ...]]:
        return super().trainable() | ({"W": self.W.shape} if self.unfrozen else {})


@mutant("124", kills="PARAM-01")
class PackedCount(Honest):
    """Two numbers are packed into one, and counted as one."""

    def trainable(self) -> dict[str, tuple[int, ...]]:
        return {name: ((array.size + 1) // 2, 1) for name, array in self.adapter().items()}


@mutant(kills="PARAM-02")
class OtherParametersTrain(Honest):
    """The number of trained parameters is right, but they are others: the factors are not among them."""

    def trainable(self) -> dict[str, tuple[int, ...]]:
        return {f"copy of {name}": shape for name, shape in super().trainable().items()}


@mutant(kills="PARAM-02")
class RsloraScaleTrains(Honest):
    """With rank-stabilised scaling the scale is a parameter, and trains."""

    def trainable(self) -> dict[str, tuple[int, ...]]:
        return super().trainable() | ({"scale": ()} if self.config.scaling == "rslora" else {})


@mutant("57", kills="PARAM-02 PARAM-04")
class OnlyBTrains(Honest):
    """A is frozen at its random start, and only B trains."""

    def trainable(self) -> dict[str, tuple[int, ...]]:
        return {"B": self.B.shape}

    def step(self, lr: float) -> None:
        A = self.A
        super().step(lr)
        self.A = A


@mutant(kills="PARAM-03")
class WeightDecaysW(Honest):
    """Weight decay changes W, although W gets no gradient."""

    def step(self, lr: float) -> None:
        super().step(lr)
        self.W = self.rounded((1 - 0.01 * lr) * self.up(self.W))


@mutant("68", kills="PARAM-04 LEARN-01")
class WeightDecaysA(Honest):
    """A step shrinks A by weight decay, but not B."""

    def step(self, lr: float) -> None:
        decay = 0.125 * lr * self.up(self.A)
        super().step(lr)
        self.A = self.rounded(self.up(self.A) - decay)


@mutant(kills="PARAM-04")
class FasterB(Honest):
    """B moves at a multiple of the given rate."""

    def step(self, lr: float) -> None:
        super().step(lr)
        self.B = self.rounded(self.up(self.B) - lr * self.up(self.dB))


@mutant(kills="PARAM-04 LEARN-01")
class SignOfTheGradient(Honest):
    """A step uses the sign of the gradient alone, as an adaptive optimiser does at first."""

    def step(self, lr: float) -> None:
        self.dA, self.dB = np.sign(self.dA), np.sign(self.dB)
        super().step(lr)


@mutant(kills="PARAM-04 LEARN-01")
class ClippedStep(Honest):
    """Gradients are clipped to a norm of 1 before a step."""

    def step(self, lr: float) -> None:
        norm = max(1.0, float(np.sqrt((self.up(self.dA) ** 2).sum() + (self.up(self.dB) ** 2).sum())))
        self.dA, self.dB = self.rounded(self.dA / norm), self.rounded(self.dB / norm)
        super().step(lr)


@mutant(kills="PARAM-04")
class RateCapped(Honest):
    """A rate above 1 is replaced by 1."""

    def step(self, lr: float) -> None:
        super().step(min(lr, 1.0))
