"""What load_lora_weights of diffusers' pipelines does with a transformer. Here that is a model with the base model's layers."""

from conformance.files.binary import Arrays
from conformance.files.torch_model import measured, model_of

NEEDS, ENVIRONMENT = ("torch", "diffusers", "peft"), "diffusers"
CORPUS, LOGITS = False, False
FORMATS = ("diffusers",)
PART = "transformer"


def read(place: str, base: Arrays) -> Arrays:
    from diffusers.loaders.lora_pipeline import SD3LoraLoaderMixin

    model = hosted(base)
    state, metadata = SD3LoraLoaderMixin.lora_state_dict(place, return_lora_metadata=True)
    SD3LoraLoaderMixin.load_lora_into_transformer(state, transformer=model, metadata=metadata)
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
