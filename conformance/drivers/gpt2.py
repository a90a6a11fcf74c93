"""Makes Hugging Face's GPT2LMHeadModel a Model, for libraries that add a method to it. `build` makes it, `GPT2` drives it.

    embed_tokens → transformer.wte        layers.0.attention_norm → transformer.h.0.ln_1        norm → transformer.ln_f
    embed_positions → transformer.wpe     layers.0.qkv_proj → transformer.h.0.attn.c_attn       …

Its linear layers are Conv1D, whose weight is (in, out). Its forward pass counts positions from 0, or from the end of its cache,
and does not look at the mask (only `generate` derives positions from it). So no positions are passed to it.
"""

from collections.abc import Callable
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from conformance.model import Model, ModelConfig, gpt2_like
from conformance.subject import Arrays, Unsupported
from conformance.torch import set_seed, to_array, to_tensor

transformers.logging.set_verbosity_error()

MODULES = {
    "attention_norm": "ln_1", "qkv_proj": "attn.c_attn", "o_proj": "attn.c_proj", "mlp_norm": "ln_2", "up_proj": "mlp.c_fc",
    "down_proj": "mlp.c_proj", "embed_tokens": "wte", "embed_positions": "wpe", "norm": "ln_f",
}


class Place(NamedTuple):
    """Where an array is stored: the path of a parameter, and the view of it that has the layout of the array."""

    path: str
    view: Callable[[Tensor], Tensor] = lambda tensor: tensor


def path_of(place: str) -> str:
    """The path of Hugging Face's module for a place: "layers.0.o_proj" is transformer.h.0.attn.c_proj."""
    *layer, part = place.split(".")
    return ".".join(["transformer", *(["h", layer[1]] if layer else []), MODULES[part]])


def base_places(names, root: str = "", inner: tuple[str, ...] = ()) -> dict[str, Place]:
    """The places of the base arrays of these names, in a model whose GPT-2 is at `root`. `inner` are places such as
    "layers.0.o_proj" whose module was wrapped: its arrays are one level further down, in base_layer."""
    found = {}
    for name in names:
        place, _, field = name.rpartition(".")
        path = root + path_of(place) + (".base_layer" if place in inner else "")
        turned = place.endswith("_proj") and field == "weight"
        found[name] = Place(f"{path}.{field}", Tensor.t) if turned else Place(f"{path}.{field}")
    return found


def build(config: ModelConfig, arrays: Arrays) -> Any:
    """The model around copies of the base arrays, in inference mode. Raises Unsupported for another architecture."""
    if not gpt2_like(config):
        raise Unsupported("a base other than GPT-2's: gated, RMSNorm, without biases, q, k and v apart, or a head of its own")
    set_seed(config)
    options: dict[str, Any] = {
        "vocab_size": config.vocabulary, "n_embd": config.width, "n_layer": config.layers, "n_head": config.heads,
        "n_inner": config.mlp_width, "n_positions": config.context, "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 0,
        "eos_token_id": 0, "attn_implementation": "eager",
    }
    model: Any = transformers.GPT2LMHeadModel(transformers.GPT2Config(**options))
    model.to(device=config.device, dtype=getattr(torch, config.dtype)).eval()
    for name, place in base_places(arrays).items():
        write(model, place, arrays[name], name)
    return model


def read(module: nn.Module, place: Place) -> Tensor:
    """The current array. It shares its memory with the parameter."""
    return place.view(attrgetter(place.path)(module))


def write(module: nn.Module, place: Place, array: np.ndarray, name: str) -> None:
    """Overwrites the array. Raises ValueError for another shape."""
    with torch.no_grad():
        tensor = read(module, place)
        if array.shape != tuple(tensor.shape):  # copy_ would broadcast
            raise ValueError(f"{name} is {array.shape}, expected {tuple(tensor.shape)}, the shape that it has")
        tensor.copy_(to_tensor(array))


class GPT2(Model):
    """Drives a causal language model that has Hugging Face's forward. `base_at` says where the arrays of the base are stored,
    `own_at` where those of the method are. One parameter can hold several arrays. One that holds none has its path as name."""

    def __init__(self, module: Any, base_at: dict[str, Place], own_at: dict[str, Place]):
        self.module, self.base_at, self.own_at = module, base_at, own_at

    def arrays(self) -> Arrays:
        return {name: to_array(read(self.module, place)) for name, place in self.own_at.items()}

    def base(self) -> Arrays:
        return {name: to_array(read(self.module, place)) for name, place in self.base_at.items()}

    def set_arrays(self, arrays: Arrays) -> None:
        for name, array in arrays.items():
            write(self.module, self.own_at[name], array, name)

    def forward(self, tokens: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        device = next(self.module.parameters()).device
        given = {} if mask is None else {"attention_mask": torch.from_numpy(mask.astype(np.int64)).to(device)}
        self.logits: Tensor = self.module(input_ids=torch.from_numpy(tokens).to(device), **given).logits
        return to_array(self.logits)

    def backward(self, dlogits: np.ndarray) -> Arrays:
        if self.logits.requires_grad:
            self.logits.backward(to_tensor(dlogits, self.logits.device))
        return {name: to_array(gradient) for name, gradient in self.named(lambda parameter: parameter.grad).items()}

    def zero_grad(self) -> None:
        self.module.zero_grad()

    def trainable(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(p.shape) for name, p in self.named(lambda p: p if p.requires_grad else None).items()}

    def step(self, lr: float) -> None:
        torch.optim.SGD([p for p in self.module.parameters() if p.requires_grad], lr).step()

    def named(self, of: Callable[[nn.Parameter], Tensor | None]) -> dict[str, Tensor]:
        """Name of each array → what `of` gives for its parameter, in the layout of the array. None is left out."""
        names: dict[str, list[str]] = {}
        places = self.base_at | self.own_at
        for name, place in places.items():
            names.setdefault(place.path, []).append(name)
        found = {path: of(parameter) for path, parameter in self.module.named_parameters()}
        return {
            name: places[name].view(tensor) if name in places else tensor
            for path, tensor in found.items() if tensor is not None for name in names.get(path, [path])
        }


def plain(config: ModelConfig, arrays: Arrays) -> GPT2:
    """The model without an added method, for the methods "none" and "full"."""
    module = build(config, arrays)
    module.requires_grad_(config.method == "full")
    return GPT2(module, base_places(arrays), {})
