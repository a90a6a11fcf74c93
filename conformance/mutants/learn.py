"""Faults that show over several steps."""

import numpy as np

from conformance.mutants import mutant
from conformance.mutants.honest import Honest
from conformance.subject import Arrays, LayerConfig


@mutant(kills="LEARN-01")
class BEverySecondStep(Honest):
    """B moves in every second step only."""

    steps = 0

    def step(self, lr: float) -> None:
        B = self.B
        super().step(lr)
        self.steps += 1
        if self.steps % 2 == 0:
            self.B = B


@mutant(kills="LEARN-01 PARAM-04")
class StaleA(Honest):
    """The forward pass uses a copy of A that a step does not reach."""

    def set_factors(self, arrays: Arrays) -> None:
        super().set_factors(arrays)
        self.copy = self.A

    def lora(self, x: np.ndarray) -> np.ndarray:
        A, self.A = self.A, getattr(self, "copy", self.A)
        y = super().lora(x)
        self.A = A
        return y


@mutant("110", kills="LEARN-01 PARAM-04")
class DeltaCached(Honest):
    """The delta is computed once. Steps of A and B do not change it."""

    def lora(self, x: np.ndarray) -> np.ndarray:
        if not hasattr(self, "cached"):
            self.cached = self.delta_weight()
        return self.product(x, self.cached.T)

    def set_factors(self, arrays: Arrays) -> None:
        super().set_factors(arrays)
        self.cached = self.delta_weight()


@mutant("57", kills="LEARN-01 GRAD-02 INIT-08")
class GradientsNeverReachA(Honest):
    """The gradient of A is always zero."""

    def gradient_of_A(self, dy: np.ndarray) -> np.ndarray:
        return 0 * super().gradient_of_A(dy)


@mutant("63", kills="LEARN-01 LEARN-02 INIT-08")
class BNeverMoves(Honest):
    """A step never moves B, as if its gradient were not finite."""

    def step(self, lr: float) -> None:
        B = self.B
        super().step(lr)
        self.B = B


@mutant(kills="LEARN-01 LEARN-02 PARAM-04")
class StepsUphill(Honest):
    """A step adds the gradient and does not subtract it."""

    def step(self, lr: float) -> None:
        super().step(-lr)


@mutant(kills="LEARN-01")
class Momentum(Honest):
    """The optimiser has momentum, although plain steps were asked for."""

    def step(self, lr: float) -> None:
        before = getattr(self, "before", (0 * self.dA, 0 * self.dB))
        self.dA, self.dB = (self.rounded(g + 0.5 * m) for g, m in zip((self.dA, self.dB), before, strict=True))
        self.before = self.dA, self.dB
        super().step(lr)


@mutant(kills="LEARN-01")
class StaleGradients(Honest):
    """Every step uses the gradients of the first one."""

    def step(self, lr: float) -> None:
        self.first = getattr(self, "first", (self.dA, self.dB))
        self.dA, self.dB = self.first
        super().step(lr)


@mutant(kills="LEARN-02 PARAM-04")
class RateTooSmall(Honest):
    """A step is a hundredth of the one that was asked for."""

    def step(self, lr: float) -> None:
        super().step(lr / 100)


@mutant("58", kills="LEARN-02")
class FreshDetached(Honest):
    """The layer does not learn until an adapter is set from outside."""

    def __init__(self, config: LayerConfig, weight: np.ndarray, bias: np.ndarray | None):
        self.attached = False
        super().__init__(config, weight, bias)

    def set_factors(self, arrays: Arrays) -> None:
        super().set_factors(arrays)
        self.attached = True

    def step(self, lr: float) -> None:
        super().step(lr if self.attached else 0.0)
