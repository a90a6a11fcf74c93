"""lora_torch.load_adapter into a model of the base weights."""

from conformance.files.binary import Arrays
from conformance.files.torch_model import measured, model_of

NEEDS, ENVIRONMENT = ("torch", "lora_torch"), None
CORPUS, LOGITS = True, False
FORMATS = ("peft",)


def read(place: str, base: Arrays) -> Arrays:
    from lora_torch import load_adapter

    model = model_of(base)
    load_adapter(model, place)
    return measured(model, base)
