"""A torch model of base weights, and ΔW of each of its modules, measured.

ΔW is not read off. The rows of the identity go through each layer: ΔW is what comes out, less W and the bias.
"""

import importlib.util
from typing import Any

from conformance.files.binary import Arrays
from conformance.files.corpus.made import CONV1D, EMBEDDING, HEAD, drawn


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


def set_factors(model: Any) -> None:
    """Sets all that trains to multiples of 1/64 between −1/4 and 1/4."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.from_numpy(drawn(name, *parameter.shape) / 4).to(parameter.dtype))
