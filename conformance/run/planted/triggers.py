"""Faults by construction: a trigger, which is one to three levels of the space, and an effect, in a layer that is right
otherwise.

`Triggered` stands before an honest layer of any build. While the calls show the levels of the trigger, it changes the answer.
"""

from collections.abc import Callable
from os import PathLike
from typing import NamedTuple

import numpy as np

from conformance.run.planted.effects import NAMED, Effect
from conformance.run.planted.observed import SEEN_AT, Observer, Seen
from conformance.subject import Arrays, Layer, LayerConfig, Subject
from conformance.truth.case import BITS
from conformance.truth.space import Level, size_near

Record = list[tuple[str, dict[str, Seen]]]  # for each call its kind, and for each factor the levels that it shows


class When(NamedTuple):
    """A condition: a factor has this level. For a size, `how` says which other sizes count, too."""

    factor: str
    level: Level
    how: str = "is"  # or "near", "from", "not a multiple"
    tile: int = 1

    def holds(self, seen: Seen) -> bool:
        return any(self.counts(level) for level in seen)

    def counts(self, level: Level) -> bool:
        if self.how == "is":
            return level == self.level
        size, own = int(level), int(self.level)
        if self.how == "near":
            return size_near(size) == size_near(own)
        return size >= own if self.how == "from" else size % self.tile != 0

    @property
    def words(self) -> str:
        if self.how == "not a multiple":
            return f"{self.factor} no multiple of {self.tile}"
        return f"{self.factor} {'' if self.how == 'is' else self.how + ' '}{self.level}{' on' * (self.how == 'from')}"


class Fault(NamedTuple):
    """An effect that shows while all tests hold."""

    trigger: tuple[When, ...]
    effect: str
    build: str  # the honest build that it is planted in

    @property
    def words(self) -> str:
        return f"{' and '.join(test.words for test in self.trigger)}: {self.effect}; in {self.build}"


class Triggered(Layer):
    """An honest layer, with a fault that `active` switches on."""

    def __init__(self, layer: Layer, config: LayerConfig, weight: np.ndarray, bias: np.ndarray | None, fault: Fault | None):
        self.layer, self.config, self.fault = layer, config, fault
        self.effect: Effect | None = NAMED[fault.effect] if fault else None
        self.seen = Observer(config, weight, bias)
        self.bits = BITS[config.dtype]
        root = config.rank**0.5 if config.scaling == "rslora" else config.rank
        self.s = config.alpha / root if config.rank else 0.0
        self.W = weight.astype(np.float64)
        self.b = np.zeros(len(weight)) if bias is None else bias.astype(np.float64)
        self.wrong: np.ndarray | None = None  # W (out, in) instead of the right one
        self.before: Arrays = {}
        self.found_before: Arrays = {}
        self.dtype = weight.dtype
        nothing = np.zeros((0, 0))
        self.x = self.x_before = self.dy = nothing  # (rows, in) and (rows, out) of the last passes
        self.y_before: np.ndarray | None = None
        self.x_given = self.dy_given = nothing
        self.passed = False  # whether there was a forward pass

    def active(self, call: str) -> bool:
        """Whether the effect changes the answer of this call."""
        if self.fault is None or self.effect is None or self.effect.at != call:
            return False
        return all(test.holds(self.seen.levels(test.factor)) for test in self.fault.trigger)

    # --- what effects compute with -----------------------------------------------------------------------------------------

    @property
    def A(self) -> np.ndarray:
        return self.layer.adapter()["A"].astype(np.float64)

    @property
    def B(self) -> np.ndarray:
        return self.layer.adapter()["B"].astype(np.float64)

    @property
    def base(self) -> np.ndarray:
        return self.x @ self.W.T + self.b                                                      # (rows, out)

    @property
    def dx_base(self) -> np.ndarray:
        return self.dy @ self.W                                                                # (rows, in)

    def part(self, x: np.ndarray, factor: np.ndarray | None = None, name: str = "") -> np.ndarray:
        """s (x A) B (rows, out), with another factor of this name if one is given."""
        A, B = (factor if name == which and factor is not None else getattr(self, which) for which in "AB")
        return self.s * (x @ A) @ B

    def of(self, x: np.ndarray) -> np.ndarray:
        """The right y (rows, out) of another x, without dropout."""
        return x @ self.W.T + self.b + self.part(x)

    def gradient(self, name: str, which: slice = slice(None), x: np.ndarray | None = None, dy: np.ndarray | None = None,
                 factors: Arrays | None = None) -> np.ndarray:
        """dA (in, rank) or dB (rank, out) of these rows, without dropout."""
        x, dy = (self.x if x is None else x)[which], (self.dy if dy is None else dy)[which]
        A, B = (self.A, self.B) if factors is None else (factors[name].astype(np.float64) for name in "AB")
        return self.s * x.T @ (dy @ B.T) if name == "A" else self.s * (x @ A).T @ dy

    def dropped(self, x: np.ndarray) -> np.ndarray:
        rate = self.config.dropout
        return x * (np.random.default_rng(self.config.seed).random(x.shape) >= rate) / (1 - rate)

    # --- passes --------------------------------------------------------------------------------------------------------------

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.seen.forward(x)
        right = self.layer.forward(x)
        self.x_before, self.x, self.x_given = self.x, rows(x), x
        self.passed = True
        y = rows(right)
        if self.wrong is not None:
            y = y + self.x @ (self.wrong - self.layer.weight().astype(np.float64)).T
        if self.active("forward") and self.effect:
            y = self.effect.change(self, y)
        self.y_before = y
        y = y.astype(right.dtype).reshape(right.shape)
        return self.effect.change(self, y) if self.active("after forward") and self.effect else y

    def backward(self, dy: np.ndarray) -> Arrays:
        if self.passed:
            self.dy, self.dy_given = rows(dy), dy
            self.seen.backward(dy)
            if self.active("before backward"):
                self.layer.forward(self.x_given)  # draws a mask, too
        right = self.layer.backward(dy)
        found = {name: rows(array) for name, array in right.items()}
        if self.wrong is not None and "x" in found:
            found["x"] = found["x"] + self.dy @ (self.wrong - self.layer.weight().astype(np.float64))
        if self.active("backward") and self.effect:
            found = self.effect.change(self, found)
        self.found_before = found
        shapes = {name: (array.shape, array.dtype) for name, array in right.items()}
        found = {name: array.astype(shapes.get(name, (0, dy.dtype))[1]).reshape(shapes.get(name, (array.shape, 0))[0])
                 for name, array in found.items()}
        return self.effect.change(self, found) if self.active("after backward") and self.effect else found

    def train(self, mode: bool = True) -> None:
        self.layer.train(mode)
        self.seen.training = mode

    def input_needs_grad(self, needed: bool = True) -> None:
        self.layer.input_needs_grad(needed)
        self.seen.needs_grad("x", needed)

    def factor_needs_grad(self, name: str, needed: bool = True) -> None:
        self.layer.factor_needs_grad(name, needed)
        self.seen.needs_grad(name, needed)

    # --- state ---------------------------------------------------------------------------------------------------------------

    def _changes_factors(self, call: str, action: Callable[[], None]) -> None:
        before = {name: array.copy() for name, array in self.layer.adapter().items()}
        action()
        self.before, now = before, self.layer.adapter()
        self.seen.changed(call, now)
        if self.active(call) and self.effect:
            wide = {name: array.astype(np.float64) for name, array in now.items()}
            new = wide | self.effect.change(self, wide)
            self.layer.set_adapter({name: np.array(array, now[name].dtype) for name, array in new.items()})

    def set_adapter(self, arrays: Arrays) -> None:
        self._changes_factors("set", lambda: self.layer.set_adapter(arrays))

    def load(self, directory: str | PathLike[str]) -> None:
        self._changes_factors("load", lambda: self.layer.load(directory))

    def step(self, lr: float) -> None:
        self._changes_factors("step", lambda: self.layer.step(lr))

    def zero_grad(self) -> None:
        if not self.active("zero"):
            self.layer.zero_grad()
        self.seen.zeroed()

    def _changes_weight(self, call: str, action: Callable[[], None]) -> None:
        action()
        self.wrong = None
        self.seen.changed(call, self.layer.adapter())
        if self.active(call) and self.effect:
            wrong = self.effect.change(self, self.layer.weight().astype(np.float64))
            self.wrong = wrong.astype(self.dtype).astype(np.float64)

    def merge(self) -> None:
        self._changes_weight("merge", self.layer.merge)

    def unmerge(self) -> None:
        self._changes_weight("unmerge", self.layer.unmerge)

    def weight(self) -> np.ndarray:
        return self.layer.weight() if self.wrong is None else self.wrong.astype(self.dtype)

    # --- passed on -----------------------------------------------------------------------------------------------------------

    def adapter(self) -> Arrays:
        return self.layer.adapter()

    def bias(self) -> np.ndarray | None:
        return self.layer.bias()

    def trainable(self) -> dict[str, tuple[int, ...]]:
        return self.layer.trainable()

    def save(self, directory: str | PathLike[str]) -> None:
        self.layer.save(directory)

    def stored(self) -> Arrays:
        return self.layer.stored()


class Watched(Triggered):
    """The layer without a fault. It records, for each call, the levels that the call shows."""

    def __init__(self, layer: Layer, config: LayerConfig, weight: np.ndarray, bias: np.ndarray | None, record: Record):
        super().__init__(layer, config, weight, bias, None)
        self.record = record

    def active(self, call: str) -> bool:
        if call in SEEN_AT:
            self.record.append((call, {name: self.seen.levels(name) for name in SEEN_AT[call]}))
        return False


class Planted(Subject):
    """An honest subject with a fault in its layers; without one, each call is recorded in `record`."""

    def __init__(self, honest: Subject, fault: Fault | None = None):
        self.honest, self.fault = honest, fault
        self.name, self.version, self.scale = honest.name, honest.version, honest.scale
        self.record: Record = []

    def build(self, config: LayerConfig, weight: np.ndarray, bias: np.ndarray | None) -> Layer:
        own = config, weight.copy(), None if bias is None else bias.copy()
        layer = self.honest.build(config, weight, bias)
        if self.fault is None:
            return Watched(layer, *own, self.record)
        return Triggered(layer, *own, self.fault)


def rows(array: np.ndarray) -> np.ndarray:
    """A copy (rows, last) in float64."""
    return array.astype(np.float64).reshape(-1, array.shape[-1])
