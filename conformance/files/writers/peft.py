"""PEFT's get_peft_model and save_pretrained."""

from typing import Any

from conformance.files import merging
from conformance.files.binary import Arrays
from conformance.files.torch_model import measured, model_of, set_factors

NEEDS, ENVIRONMENT = ("torch", "peft"), "torch"
FORMATS = ("peft",)


def write(settings: dict, folder: str, base: Arrays) -> Arrays:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(model_of(base), LoraConfig(**settings))
    set_factors(model)
    found = measured(model.base_model.model, base)
    model.save_pretrained(folder)
    return found


def merge(dtype: str, folder: str) -> None:
    """merge_and_unload and save_pretrained of the model."""
    import torch
    from peft import LoraConfig, get_peft_model

    model: Any = get_peft_model(merging.llama_of(dtype), LoraConfig(**merging.SETTINGS))
    with torch.no_grad():
        for module in merging.targets():
            layer: Any = model.base_model.model.get_submodule(module)
            for weight, factor in zip((layer.lora_A, layer.lora_B), merging.factors(module), strict=True):
                weight["default"].weight.copy_(torch.from_numpy(factor))
    model.merge_and_unload().save_pretrained(folder)
