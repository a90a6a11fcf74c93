"""lora_torch.attach and save_adapter."""

from typing import Any

from conformance.files.binary import Arrays
from conformance.files.torch_model import measured, model_of, set_factors
from conformance.files.writers import NotOffered

NEEDS, ENVIRONMENT = ("torch", "lora_torch"), None
FORMATS = ("peft",)
WORDS = {  # of PEFT → of lora_torch.attach
    "r": "rank", "lora_alpha": "alpha", "target_modules": "targets", "exclude_modules": "exclude",
    "layers_to_transform": "layers", "lora_dropout": "dropout",
}


def write(settings: dict[str, Any], folder: str, base: Arrays) -> Arrays:
    from lora_torch import attach, save_adapter

    if settings.get("lora_bias"):
        raise NotOffered("lora_bias")
    words: dict[str, Any] = {
        WORDS.get(name, name): value for name, value in settings.items() if name not in ("use_rslora", "fan_in_fan_out")}
    model = model_of(base)
    attach(model, **words, scaling="rslora" if settings.get("use_rslora") else "standard")
    set_factors(model)
    found = measured(model, base)
    save_adapter(model, folder)
    return found
