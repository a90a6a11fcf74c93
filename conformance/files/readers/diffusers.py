"""diffusers' load_lora_adapter, into one of its models that has the layers of the base model.

The part of the pipeline in front of the names is `transformer`, as its pipelines pass it on.
"""

from conformance.files.binary import Arrays
from conformance.files.torch_model import measured, model_of

NEEDS, ENVIRONMENT = ("torch", "diffusers", "peft"), "diffusers"
CORPUS, LOGITS = False, False
FORMATS = ("diffusers",)
PART = "transformer"


def read(place: str, base: Arrays) -> Arrays:
    model = hosted(base)
    model.load_lora_adapter(place, prefix=PART)
    return {f"{PART}.{module}": delta for module, delta in measured(model, base).items()}


def hosted(base: Arrays):
    """A model of diffusers with the layers of model_of."""
    from diffusers.configuration_utils import ConfigMixin
    from diffusers.loaders import PeftAdapterMixin
    from diffusers.models.modeling_utils import ModelMixin

    class Hosted(ModelMixin, ConfigMixin, PeftAdapterMixin):
        pass

    model = Hosted()
    for name, child in model_of(base).named_children():
        model.add_module(name, child)
    return model
