"""Readers of adapter files, as functions: the folder of a case and the weights of the base model → ΔW by module.

A reader that refuses a file raises an exception. What comes out is measured, not read off: a library loads the adapter into a
model, and the rows of the identity go through each layer. Then ΔW is what came out, less W and the bias.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from conformance.files import container, reading
from conformance.files.corpus.made import CONV1D, EMBEDDING, HEAD
from conformance.files.meaning import Meaning
from conformance.files.peft import WEIGHTS

Arrays = dict[str, np.ndarray]
Consumer = Callable[[str, Arrays], Arrays]


class NotAvailable(Exception):
    """The library of the consumer is not installed, or there is no such consumer."""


def file(place: str, base: Arrays) -> Arrays:
    """conformance file: the meaning by the clauses of FILES.md."""
    meaning = reading.read(place)
    if meaning.format == "PEFT":
        reading.compare(meaning, {name: weight.shape for name, weight in base.items()})
    if not meaning.right:
        raise ValueError("; ".join(f"{issue.code} {issue.where}: {issue.words}" for issue in meaning.issues))
    return deltas(meaning, base)


def deltas(meaning: Meaning, base: Arrays) -> Arrays:
    """ΔW of every module that the meaning changes, and under "{module}.bias" what is added to its output. Raises ValueError for
    DoRA without W."""
    found = {part.module: part.delta(base.get(f"{part.module}.weight")) for part in meaning.parts}
    for part in meaning.parts:
        if part.bias and part.scale.value is not None:
            found[f"{part.module}.bias"] = part.scale.value * part.A.container.array(part.bias).astype(np.float64)
    for other in meaning.others:
        held, _ = container.read(str(Path(meaning.path) / WEIGHTS))
        change = held.array(other.name).astype(np.float64) - base.get(other.place, 0.0)
        if change.any():
            found[other.place.removesuffix(".weight")] = change
    return found


def lora_torch(place: str, base: Arrays) -> Arrays:
    """lora_torch.load_adapter into a model of the base weights."""
    from lora_torch import load_adapter

    model = model_of(base)
    load_adapter(model, place)
    return measured(model, base)


def peft(place: str, base: Arrays) -> Arrays:
    """PeftModel.from_pretrained around a model of the base weights."""
    from peft import PeftModel

    model = PeftModel.from_pretrained(model_of(base), place)
    return measured(model.base_model.model, base)


CONSUMERS: dict[str, tuple[str, tuple[str, ...], Consumer]] = {  # the package that it needs, the formats it reads, itself
    "file": ("conformance", ("peft", "kohya", "diffusers", "torchtune", "mlx-lm", "gguf"), file),
    "lora_torch": ("lora_torch", ("peft",), lora_torch),
    "peft": ("peft", ("peft",), peft),
}


def find(name: str) -> tuple[tuple[str, ...] | None, Consumer]:
    """The formats that the consumer reads, None for any, and its function. The name is a built-in one, or FILE.py:FUNCTION, or
    MODULE:FUNCTION. Raises NotAvailable."""
    if name in CONSUMERS:
        package, formats, function = CONSUMERS[name]
        if importlib.util.find_spec(package) is None:
            raise NotAvailable(f"{package} is not installed")
        return formats, function
    path, _, attribute = name.rpartition(":")
    try:
        if path.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(path).stem, path)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(path)
        return None, getattr(module, attribute)
    except Exception as error:
        known = ", ".join(CONSUMERS)
        raise NotAvailable(f"{name}: {type(error).__name__}: {error}; expected one of {known}, or FILE.py:FUNCTION") from error


def model_of(base: Arrays) -> Any:
    """A torch model with a layer for each weight: nn.Linear with a bias of zeros, nn.Embedding, and GPT-2's Conv1D."""
    import torch
    from torch import nn

    root: Any = nn.Module()
    for name, weight in base.items():
        module = name.removesuffix(".weight")
        if module == EMBEDDING:
            layer: Any = nn.Embedding(*weight.shape)
        elif module == CONV1D:
            layer = _conv1d(*weight.shape)
        else:
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias=module != HEAD)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(weight))
            if getattr(layer, "bias", None) is not None:
                layer.bias.zero_()
        *path, last = module.split(".")
        parent = root
        for part in path:
            if not hasattr(parent, part):
                parent.add_module(part, nn.Module())
            parent = getattr(parent, part)
        parent.add_module(last, layer)
    return root


def _conv1d(n_in: int, n_out: int) -> Any:
    """GPT-2's layer, whose weight is (in, out): that of transformers if it is installed, which PEFT knows, else one like it."""
    from torch import nn

    if importlib.util.find_spec("transformers") is None:
        from conformance.drivers.look.arguments import Conv1D

        return Conv1D(nn.Linear(n_in, n_out))
    from transformers.pytorch_utils import Conv1D

    return Conv1D(n_out, n_in)


def measured(model: Any, base: Arrays) -> Arrays:
    """ΔW of every layer that computes something else than with the base weights, as the base model stores W, and under
    "{module}.bias" what is added to its output."""
    import torch

    found = {}
    model.eval()
    with torch.no_grad():
        for name, weight in base.items():
            module = name.removesuffix(".weight")
            layer: Any = model.get_submodule(module)
            if module == EMBEDDING:
                found[module] = layer(torch.arange(len(weight))).double().numpy() - weight
                continue
            turned = module == CONV1D
            inputs = weight.shape[0] if turned else weight.shape[1]
            added = layer(torch.zeros(1, inputs)).double()
            y = (layer(torch.eye(inputs)).double() - added).numpy()  # (in, out), without the bias
            found |= {module: (y if turned else y.T) - weight, f"{module}.bias": added[0].numpy()}
    return {name: change for name, change in found.items() if change.any()}
