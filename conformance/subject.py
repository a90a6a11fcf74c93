"""The interface of an implementation under test: a Subject builds Layers. NumPy arrays go in, NumPy arrays come out.

Rows are samples: x (…, in), W (out, in), b (out), A (in, rank), B (rank, out). An implementation that stores A and B
transposed transposes them in its Layer. bfloat16 arrays are `ml_dtypes.bfloat16`.

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
    from conformance.loader import Loader
    from conformance.model import Model, ModelConfig

Arrays = dict[str, np.ndarray]


class Unsupported(Exception):
    """A subject raises it for what it does not offer. The requirements that need it are neither passed nor failed."""

    method: str = ""  # the method that raised it; the harness sets it


@dataclass(frozen=True)
class LayerConfig:
    """The configuration of a layer: sizes, scaling, dtype, device. `seed` seeds the initialisation and the dropout masks."""

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
        """The current factors: {"A": (in, rank), "B": (rank, out)}."""
        raise Unsupported("adapter()")

    def set_adapter(self, arrays: Arrays) -> None:
        """Overwrite the factors. The arrays have the shapes that `adapter` gives."""
        raise Unsupported("set_adapter()")

    def weight(self) -> np.ndarray:
        """The current W (out, in) of the base product. While the layer is merged this is the merged weight."""
        raise Unsupported("weight()")

    def bias(self) -> np.ndarray | None:
        """b (out), or None."""
        raise Unsupported("bias()")

    def forward(self, x: np.ndarray) -> np.ndarray:
        """y (…, out) of x (…, in)."""
        raise Unsupported("forward()")

    def backward(self, dy: np.ndarray) -> Arrays:
        """Gradients for the last forward pass, given dy (…, out): of "x", of the factors under their names in `adapter`,
        and of any other parameter that got one. Those of parameters add up until `zero_grad`. That of "x" does not."""
        raise Unsupported("backward()")

    def zero_grad(self) -> None:
        """Clear the gradients of all parameters."""
        raise Unsupported("zero_grad()")

    def input_needs_grad(self, needed: bool = True) -> None:
        """Set whether x requires a gradient in the forward passes that follow. At the start it does."""
        raise Unsupported("input_needs_grad()")

    def factor_needs_grad(self, name: str, needed: bool = True) -> None:
        """Set whether the factor, "A" or "B", requires a gradient in the forward passes that follow. At the start both do."""
        raise Unsupported("factor_needs_grad()")

    def trainable(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of every parameter that trains. The factors have their names in `adapter`."""
        raise Unsupported("trainable()")

    def train(self, mode: bool = True) -> None:
        """Switch to training mode, or with mode=False to inference mode."""
        raise Unsupported("train()")

    def merge(self) -> None:
        """Add scale · (A B)ᵀ to W."""
        raise Unsupported("merge()")

    def unmerge(self) -> None:
        """Undo `merge`: W is the frozen weight again."""
        raise Unsupported("unmerge()")

    def step(self, lr: float) -> None:
        """One plain SGD step, p ← p − lr · dp, on every trainable parameter."""
        raise Unsupported("step()")

    def save(self, directory: str | PathLike[str]) -> None:
        """Write what this layer has learned to an existing, empty directory."""
        raise Unsupported("save()")

    def load(self, directory: str | PathLike[str]) -> None:
        """Read what `save` wrote. This layer has the same configuration and base weights as the one that was saved."""
        raise Unsupported("load()")

    def stored(self) -> Arrays:
        """A, then B, under the names and in the layout that the implementation itself uses."""
        raise Unsupported("stored()")

    def as_module(self, experiment: str, given: dict[str, Any]) -> dict[str, Any]:
        """The facts of an experiment on the layer as a PyTorch module. `conformance.torch.TorchLayer` has it, and
        conformance/torch_experiments.py describes the experiments. No other layer needs it."""
        raise Unsupported("as_module()")

    # Several adapters on one layer. The first is called "default". `adapter`, `backward` and `trainable` name the arrays of
    # any other adapter "name.A" and "name.B". At the start only "default" is active, with weight 1.

    def add_adapter(self, name: str, arrays: Arrays, alpha: float) -> None:
        """Add an adapter with its own rank and alpha, scaled by the configuration's rule. It is not active yet."""
        raise Unsupported("add_adapter()")

    def remove_adapter(self, name: str) -> None:
        """Remove the adapter from the layer."""
        raise Unsupported("remove_adapter()")

    def activate(self, weights: dict[str, float]) -> None:
        """Apply these adapters and no others: y = x Wᵀ + b + Σ weight · scale · (x A) B. {} applies none."""
        raise Unsupported("activate()")

    def combine(self, name: str, weights: dict[str, float]) -> None:
        """Add one adapter that does the same as these together. It is not active yet."""
        raise Unsupported("combine()")

    def forward_mixed(self, x: np.ndarray, names: tuple[str | None, ...]) -> np.ndarray:
        """y (n, …, out) of x (n, …, in) in inference mode. Only the adapter names[i] is applied to sample i, with weight 1.
        None in its place means no adapter."""
        raise Unsupported("forward_mixed()")


class Call(NamedTuple):
    """One call that led to a failure. The script that shows the failure repeats it."""

    layer: str  # "layer", "layer2", … in the order in which the layers were built
    method: str  # "build", or a method of Layer
    args: tuple  # copies of the arguments at the time of the call, with the same strides
    answer: Any  # None if it raised
    raised: bool
    target: Any  # the Layer; None if it could not be built
    shown: bool = False  # whether the script prints the answer
    changed: bool = False  # whether an array among the arguments changed after the call; the script then prints it


class Subject:
    """An implementation under test."""

    name: str = ""
    version: str = ""
    # The values of `LayerConfig.method` that it can build, and those of `ModelConfig.method` except "none" and "full". For any
    # other the harness itself answers "not offered", and never calls `build`.
    methods: tuple[str, ...] = ("lora",)
    # The fixed scale of an implementation that has no alpha. Every case then has the alpha that gives this scale.
    scale: float | None = None
    # The fixed alpha of an implementation that takes none, and whose scale is this number / rank. Every case then has it.
    alpha: float | None = None
    rank: int | None = None  # the only rank that it offers, if there is one; every case then has it
    square: bool = False  # whether it offers in_features equal to out_features alone; every case then has them equal
    scale_argument: str = ""  # the argument that is the scale itself, if there is one in the place of alpha
    freezes: str = ""  # the function, filter or wrapper that freezes W and b, if the layer itself does not
    # What is made up for, so that it does not fail nearly every requirement: "scale", "alpha", "freezing" or "dimensions" →
    # what the implementation does, in words. The requirements about it are asked of `raw()`, where nothing is made up for.
    compensates: dict[str, str] = {}

    def raw(self) -> "Subject":
        """The same implementation, with nothing made up for."""
        return self

    def build(self, config: LayerConfig, weight: np.ndarray, bias: np.ndarray | None) -> Layer:
        """A fresh layer around the given frozen weight (out, in) and bias (out), in training mode.

        Raises Unsupported for a configuration that the implementation does not offer.
        """
        raise NotImplementedError(f"{type(self).__name__}.build")

    def build_model(self, config: "ModelConfig", arrays: Arrays) -> "Model":
        """A fresh model with one method on it, around these base arrays, in inference mode. It has no dropout. See
        `conformance.model`. Raises Unsupported for a configuration that the implementation does not offer.
        """
        raise Unsupported("whole models: build_model()")

    def build_loader(self, base: Arrays, kinds: dict[str, str]) -> "Loader":
        """A fresh model of these base weights, without an adapter, that reads adapter files: see `conformance.loader`. Raises
        Unsupported for a kind of layer that the implementation does not offer.
        """
        raise Unsupported("adapter files: build_loader()")

    def script(self, calls: list[Call], spec: str) -> str | None:
        """The calls as a Python script for a bug report. It imports the implementation and not this package.

        None if the subject cannot write one: the harness then writes a script that calls this package. `spec` is what the
        user typed to name the subject. A subject whose layers are TorchLayers calls
        `conformance.record.torch_script.script` with a function that writes how its module is built.
        """
        return None
