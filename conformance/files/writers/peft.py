"""PEFT's get_peft_model and save_pretrained."""

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
