"""PeftModel.from_pretrained around a model of the base weights."""

from conformance.files.binary import Arrays
from conformance.files.torch_model import measured, model_of

NEEDS, ENVIRONMENT = ("torch", "peft"), "torch"
CORPUS, LOGITS = True, False
FORMATS = ("peft",)


def read(place: str, base: Arrays) -> Arrays:
    from peft import PeftModel

    model = PeftModel.from_pretrained(model_of(base), place)
    return measured(model.base_model.model, base)
