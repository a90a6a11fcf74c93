"""lora_torch.attach and save_adapter."""

from typing import Any

from conformance.files import merging
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


def merge(dtype: str, folder: str) -> None:
    """detach(merge=True), and save_pretrained of the model."""
    import torch

    from lora_torch import attach, detach

    model = merging.llama_of(dtype)
    attach(model, rank=merging.SETTINGS["r"], alpha=merging.SETTINGS["lora_alpha"], targets=merging.SETTINGS["target_modules"])
    names = dict(model.named_parameters())
    with torch.no_grad():
        for module in merging.targets():
            for kind, factor in zip("AB", merging.factors(module), strict=True):
                name = next(name for name in names if name.startswith(f"{module}.") and f"lora_{kind}" in name)
                names[name].copy_(torch.from_numpy(factor.T.copy()))
    detach(model, merge=True)
    model.save_pretrained(folder)
