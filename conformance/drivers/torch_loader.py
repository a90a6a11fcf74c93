"""A base model of PyTorch that reads adapter files: what a library does with a file is measured at its layers, not read off.

    class MyLoader(TorchLoader):
        def put(self, path): my_library.load(self.model, path)
"""

import importlib.util
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import nn

from conformance.loader import Loader
from conformance.subject import Arrays, Unsupported
from conformance.torch import to_array


class TorchLoader(Loader):
    """`self.model` is a torch model of the base. `put` of a subclass loads an adapter into it."""

    def __init__(self, base: Arrays, kinds: dict[str, str]):
        self.kinds, self.given = dict(kinds), dict(base)
        self.model = model_of(base, kinds)

    def put(self, path: str | PathLike[str]) -> None:
        """Loads the adapter, in the place of the one before. Raises any exception to refuse it."""
        raise Unsupported("load()")

    def load(self, path: str | PathLike[str]) -> None:
        self.put(path)
        self.model.eval()

    def delta(self) -> Arrays:
        """ΔW of each layer: the rows of the identity go through it, less W and the bias."""
        found: Arrays = {}
        self.model.eval()
        with torch.no_grad():
            for module, kind in self.kinds.items():
                layer: Any = self.model.get_submodule(module)
                weight = self.given[f"{module}.weight"]
                if kind == "embedding":
                    found[module] = layer(torch.arange(len(weight))).double().numpy() - weight
                    continue
                inputs = weight.shape[0 if kind == "conv1d" else 1]
                added = layer(torch.zeros(1, inputs)).double()
                y = (layer(torch.eye(inputs)).double() - added).numpy()  # (in, out), without the bias
                bias = self.given.get(f"{module}.bias", 0.0)
                found |= {module: (y if kind == "conv1d" else y.T) - weight, f"{module}.bias": added[0].numpy() - bias}
        return {name: change for name, change in found.items() if change.any()}

    def base(self) -> Arrays:
        """The frozen arrays, wherever the library keeps them: those of the layer itself, or of the one that it wraps."""
        found = {}
        for name in self.given:
            module, _, last = name.rpartition(".")
            layer: Any = self.model.get_submodule(module)
            while not isinstance(layer, nn.Linear | nn.Embedding) and type(layer).__name__ != "Conv1D":
                layer = self.inner(layer)
            array = getattr(layer, last)
            if array is not None:
                found[name] = to_array(array)
        return found

    def inner(self, layer: Any) -> Any:
        """The layer that a layer of the library wraps."""
        raise Unsupported("base()")


def model_of(base: Arrays, kinds: dict[str, str]) -> Any:
    """A torch model with a layer for each module."""
    root: Any = nn.Module()
    for module, kind in kinds.items():
        weight, bias = base[f"{module}.weight"], base.get(f"{module}.bias")
        if kind == "embedding":
            layer: Any = nn.Embedding(*weight.shape)
        elif kind == "conv1d":
            layer = conv1d(*weight.shape)
        elif kind == "linear":
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
        else:
            raise Unsupported(f"layers of the kind {kind}")
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(weight))
            if kind != "embedding" and layer.bias is not None:
                layer.bias.copy_(torch.from_numpy(bias if bias is not None else np.zeros(len(layer.bias), np.float32)))
        *path, last = module.split(".")
        parent = root
        for part in path:
            if not hasattr(parent, part):
                parent.add_module(part, nn.Module())
            parent = getattr(parent, part)
        parent.add_module(last, layer)
    return root


def conv1d(n_in: int, n_out: int) -> Any:
    """GPT-2's layer, whose weight is (in, out): that of transformers, which libraries know, or one like it."""
    if importlib.util.find_spec("transformers") is None:
        from conformance.drivers.look.arguments import Conv1D

        return Conv1D(nn.Linear(n_in, n_out))
    from transformers.pytorch_utils import Conv1D

    return Conv1D(n_out, n_in)
