"""Small models under each method, shared by the tests of the transformer."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lora_torch import Transformer, adapter, lora, loss, prefix, ptuning
from lora_torch.adapter import PLACES
from lora_torch.transformer import Config

GPT = Config(11, 8, 2, 2, 2, 12, 16, "gelu", "layer", fused=True, tied=True)
LLAMA = Config(11, 8, 2, 4, 2, 12, 16, "silu", "rms", bias=False)
CONFIGS = [GPT, LLAMA, GPT._replace(fused=False, tied=False, kv_heads=1), LLAMA._replace(bias=True, fused=True)]
every_config = pytest.mark.parametrize("config", CONFIGS, ids=["gpt", "llama", "unfused", "fused_llama"])

TOKENS = torch.tensor([[1, 5, 2, 10, 0], [3, 3, 7, 4, 9]])
MASK = torch.tensor([[False, False, True, True, True], [True, True, False, True, False]])
TARGETS = torch.tensor([[5, 2, 10, 0, -100], [3, 7, -100, 9, 1]])


def every_method(config: Config) -> dict[str, dict[str, Any]]:
    linear = "qkv_proj" if config.fused else "k_proj"
    adapters = {f"layers.{i}.{place}": adapter.Config(3, "gelu", 0.5) for i in range(2) for place in PLACES}
    return {
        "lora": {f"layers.0.{linear}": lora.Config(2, 0.5), "layers.1.down_proj": lora.Config(3, 0.3)},
        "adapters": adapters,
        "prefix": {"prefix": prefix.Config(3)},
        "prefix_mlp": {"prefix": prefix.Config(3, hidden_size=5)},
        "embedding": {"prompt": ptuning.Config((0, 1, 4))},
        "mlp": {"prompt": ptuning.Config((0, 3, 6), "mlp", hidden_size=5)},
        "lstm": {"prompt": ptuning.Config((2, 3, 7), "lstm", hidden_size=5)},
        "all": adapters | {
            f"layers.1.{linear}": lora.Config(2, 0.5), "prefix": prefix.Config(2, 3),
            "prompt": ptuning.Config((1, 6), "lstm", 2),
        },
    }


NAMES = list(every_method(GPT))
every_name = pytest.mark.parametrize("name", NAMES)


def model_of(config: Config, methods: dict[str, Any], **options: Any) -> Transformer:
    """A model whose weights are ten times as large as initially, and whose biases and B of LoRA are not zero."""
    torch.manual_seed(3)
    model = Transformer(config, methods, **options)
    with torch.no_grad():
        for array in model.arrays().values():
            array.add_(torch.randn_like(array) / 5)
    return model


def bits(model: Transformer) -> dict[str, Tensor]:
    return {name: array.detach().clone() for name, array in model.arrays().items()}


def trained(model: Transformer) -> set[str]:
    return {name for name, array in model.arrays().items() if array.requires_grad}


def step(model: Transformer, steps: int = 3) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model(TOKENS, MASK), TARGETS).backward()
        optimizer.step()


def tanh_gelu(z: Tensor) -> Tensor:
    return F.gelu(z, approximate="tanh")


def inputs_and_outputs(model: Transformer, modules: list[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """What each of these modules was given and gave, in one call of a copy of the model."""
    model, seen = copy.deepcopy(model), {}
    for name in modules:
        model.get_submodule(name).register_forward_hook(lambda _, x, y, name=name: seen.__setitem__(name, (x[0], y)))
    model(TOKENS)
    return seen
