"""What an implementation under test provides: a Subject builds Layers; NumPy arrays go in, NumPy arrays come out.

Rows are samples: x (…, in), W (out, in), b (out), A (in, rank), B (rank, out). An implementation that stores its
factors the other way round transposes them here, at the edge. bfloat16 arrays are `ml_dtypes.bfloat16`.

    class MyLayer(Layer):
        def forward(self, x): ...

    class MySubject(Subject):
        name, version = "mine", "1.0"
        def build(self, config, weight, bias): return MyLayer(...)
"""

from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from conformance.model import Model, ModelConfig

Arrays = dict[str, np.ndarray]


class Unsupported(Exception):
    """Raised by a subject for what it does not offer: the requirements that need it are neither passed nor failed."""

    method: str = ""  # in which it was raised, as the harness notes


@dataclass(frozen=True)
class LayerConfig:
    """What a layer is to be: sizes, scaling, dtype, place. `seed` seeds the initialisation and the dropout masks."""

    in_features: int
    out_features: int
    rank: int
    alpha: float
    bias: bool = True
    dtype: str = "float32"
    device: str = "cpu"
    dropout: float = 0.0
    scaling: str = "standard"  # scale = alpha / rank; "rslora": alpha / √rank
    method: str = "lora"
    seed: int = 0


class Layer:
    """One LoRA layer. Every method raises Unsupported unless it is overridden."""

    def adapter(self) -> Arrays:
        """The trainable factors now: {"A": (in, rank), "B": (rank, out)}."""
        raise Unsupported("adapter()")

    def set_adapter(self, arrays: Arrays) -> None:
        """Overwrite the factors, shaped as `adapter` gives them."""
        raise Unsupported("set_adapter()")

    def weight(self) -> np.ndarray:
        """W (out, in), as the base product uses it now: the merged weight while merged."""
        raise Unsupported("weight()")

    def bias(self) -> np.ndarray | None:
        """b (out), or None."""
        raise Unsupported("bias()")

    def forward(self, x: np.ndarray) -> np.ndarray:
        """y (…, out) of x (…, in)."""
        raise Unsupported("forward()")

    def backward(self, dy: np.ndarray) -> Arrays:
        """Gradients after the last forward, given dy (…, out): "x", the adapter's names, and any other parameter
        that got one. Those of parameters add up until `zero_grad`; "x" is that of the last forward alone."""
        raise Unsupported("backward()")

    def zero_grad(self) -> None:
        """Clear the gradients of all parameters."""
        raise Unsupported("zero_grad()")

    def input_needs_grad(self, needed: bool = True) -> None:
        """Whether x asks for a gradient in the forward passes that follow (it does at the start)."""
        raise Unsupported("input_needs_grad()")

    def trainable(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of every parameter that would train; the factors under their names in `adapter`."""
        raise Unsupported("trainable()")

    def train(self, mode: bool = True) -> None:
        """Training mode, or with mode=False inference mode."""
        raise Unsupported("train()")

    def merge(self) -> None:
        """Fold scale · (A B)ᵀ into W."""
        raise Unsupported("merge()")

    def unmerge(self) -> None:
        """Take it out again."""
        raise Unsupported("unmerge()")

    def step(self, lr: float) -> None:
        """One plain SGD step, p ← p − lr · dp, on everything that is trainable."""
        raise Unsupported("step()")

    def save(self, directory: str | PathLike[str]) -> None:
        """Write what this layer has learned into an existing, empty directory."""
        raise Unsupported("save()")

    def load(self, directory: str | PathLike[str]) -> None:
        """Read it back into this layer, which was built with the same configuration and base weights."""
        raise Unsupported("load()")

    def stored(self) -> Arrays:
        """The two factors under the names, and in the layout, in which the implementation itself has them: A's, then B's."""
        raise Unsupported("stored()")

    # Several adapters on one layer. The first is called "default"; the arrays of a further one are named "name.A" and
    # "name.B" by `adapter`, `backward` and `trainable`. At the start "default" alone is active, with weight 1.

    def add_adapter(self, name: str, arrays: Arrays, alpha: float) -> None:
        """One more adapter, of a rank and an alpha of its own, scaled as the configuration says; not active yet."""
        raise Unsupported("add_adapter()")

    def remove_adapter(self, name: str) -> None:
        """Forget it."""
        raise Unsupported("remove_adapter()")

    def activate(self, weights: dict[str, float]) -> None:
        """Apply these adapters and no others: y = x Wᵀ + b + Σ weight · scale · (x A) B; {} applies none."""
        raise Unsupported("activate()")

    def combine(self, name: str, weights: dict[str, float]) -> None:
        """Add an adapter that does alone what these do together; not active yet."""
        raise Unsupported("combine()")

    def forward_mixed(self, x: np.ndarray, names: tuple[str | None, ...]) -> np.ndarray:
        """y (n, …, out) of x (n, …, in) in inference mode, where sample i has the adapter names[i] alone, with weight 1,
        or none if that is None."""
        raise Unsupported("forward_mixed()")


class Call(NamedTuple):
    """One thing that was asked on the way to a failure: what a script of that failure has to do."""

    layer: str  # "layer", "layer2", … in the order in which they were built
    method: str  # "build", or a method of Layer
    args: tuple  # copies, as they were then, strides included
    answer: Any  # None if it raised
    raised: bool
    target: Any  # the Layer; None if it could not be built
    shown: bool = False  # the script is to print the answer
    changed: bool = False  # an array among the arguments has changed since: the script is to print it


class Subject:
    """An implementation under test."""

    name: str = ""
    version: str = ""
    # Which values of `LayerConfig.method`, and of `ModelConfig.method` beside "none" and "full", it can build. Of any other the
    # harness itself says that it is not offered: `build` is not asked.
    methods: tuple[str, ...] = ("lora",)
    # Of an implementation that has no alpha: cases then have the alpha that gives it, and `build` is asked for no other.
    scale: float | None = None
    freezes: str = ""  # what makes W and b frozen, where that is not the layer itself: a function, a filter, a wrapper

    def build(self, config: LayerConfig, weight: np.ndarray, bias: np.ndarray | None) -> Layer:
        """A fresh layer around the given frozen weight (out, in) and bias (out), in training mode.

        Raises Unsupported for a configuration that the implementation does not offer.
        """
        raise NotImplementedError(f"{type(self).__name__}.build")

    def build_model(self, config: "ModelConfig", arrays: Arrays) -> "Model":
        """A fresh model with one method on it, in inference mode (there is no dropout), around these base arrays: see
        `conformance.model`. Raises Unsupported for a configuration that the implementation does not offer.
        """
        raise Unsupported("whole models: build_model()")

    def script(self, calls: list[Call], spec: str) -> str | None:
        """The calls as a Python script that needs the implementation and not this package, to go into a bug report.
        None if that cannot be said: the script then goes through this package. `spec` is what the user named.

        A subject of TorchLayers has `conformance.record.torch_script.script` do it, and adds how its module is built.
        """
        return None
