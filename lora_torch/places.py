"""Where a method can go in the transformer of transformer.py, and what its arrays are called there.

    place                                       method     arrays, each "{place}.{array}"
    layers.{i}.{linear layer}, lm_head          LoRA       weight and bias of the base; A, B
    layers.{i}.{one of adapter.PLACES}          Adapter    down, down_bias, up, up_bias
    prefix                                      Prefix     keys, values, or embedding, W1, b1, W2, b2
    prompt                                      Prompt     embedding and the encoder's

A name says what an array is, whatever module holds it: "layers.0.q_proj.weight", with LoRA there or without.
"""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from lora_torch import adapter, lora
from lora_torch.adapter import Adapter, BottleneckAdapter
from lora_torch.block import Config, linears
from lora_torch.checks import require
from lora_torch.lora import LoRA
from lora_torch.prefix import Prefix, PrefixTuning
from lora_torch.ptuning import LSTM_ARRAYS, Prompt, PromptEncoder

Method = LoRA | Adapter | Prefix | Prompt
_require = partial(require, "Transformer")


def check_methods(config: Config, methods: Mapping[str, Method]) -> None:
    """ValueError where a place is unknown, or where another kind of method goes than the one that came."""
    in_block: dict[str, type] = dict.fromkeys(linears(config), LoRA) | dict.fromkeys(adapter.PLACES, Adapter)
    others: dict[str, type] = ({} if config.tied else {"lm_head": LoRA}) | {"prefix": Prefix, "prompt": Prompt}
    known = {f"layers.{i}.{name}": kind for i in range(config.layers) for name, kind in in_block.items()} | others
    names = ", ".join([*(f"layers.i.{name}" for name in in_block), *others])
    for place, method in methods.items():
        expected = f"one of {names}, with i from 0 to {config.layers - 1}"
        _require(place in known, "a place in methods", place, expected, "no other takes a method")
        kind = known[place]
        here, expected = f"methods[{place!r}]", f"a method of the kind {kind.__name__}"
        _require(isinstance(method, kind), here, method, expected, "no other goes to this place")


def attach(
    model: nn.Module, config: Config, place: str, method: Method,
    device: torch.device | str | int | None, dtype: torch.dtype | None,
) -> None:
    """Put the module of the method into the model, where check_methods found nothing to refuse."""
    parent, _, name = place.rpartition(".")
    if isinstance(method, LoRA):
        linear = model.get_submodule(place)
        assert isinstance(linear, nn.Linear)
        setattr(model.get_submodule(parent), name, lora.around(linear, method))
    elif isinstance(method, Adapter):
        _, i, inside = place.split(".", 2)
        adapters = model.get_submodule(f"layers.{i}.adapters")
        assert isinstance(adapters, nn.ModuleDict)
        adapters[inside.replace(".", "/")] = BottleneckAdapter(config.width, method, device, dtype)
    elif isinstance(method, Prefix):
        model.prefix = PrefixTuning(config.layers, config.kv, config.width, method, device, dtype)
    else:
        model.prompt = PromptEncoder(config.width, method, device, dtype)


def array_name(path: str) -> str | None:
    """What the parameter at this path of modules is called, None for an LSTM's second bias."""
    stem, _, leaf = path.rpartition(".")
    if stem == "prompt.lstm":
        return f"prompt.{LSTM_ARRAYS[leaf]}" if leaf in LSTM_ARRAYS else None
    stem = stem.removesuffix(".pre_trained_weight").replace(".adapters.", ".").replace("/", ".")
    return f"{stem}.{leaf.removeprefix('lora_')}"


@torch.no_grad()
def copy_all(own: Mapping[str, Tensor], arrays: Mapping[str, Tensor]) -> None:
    """Copy every one of arrays into the one of the same name. ValueError if that cannot be; then nothing is copied."""
    for what, names in (("lacks", own.keys() - arrays.keys()), ("has the unknown", arrays.keys() - own.keys())):
        if names:
            raise ValueError(
                f"Transformer.load_arrays: arrays {what} {', '.join(sorted(names))}, expected the names of arrays(), because "
                "all are copied or none"
            )
    for name, array in own.items():
        came: object = arrays[name]
        if not isinstance(came, Tensor) or came.shape != array.shape:
            what = f"of shape {tuple(came.shape)}" if isinstance(came, Tensor) else f"a {type(came).__name__}"
            raise ValueError(
                f"Transformer.load_arrays: {name} is {what}, expected a Tensor of shape {tuple(array.shape)}, because that is "
                "the array it is copied into"
            )
    for name, array in own.items():
        array.copy_(arrays[name])
