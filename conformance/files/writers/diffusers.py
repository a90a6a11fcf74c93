"""What a training script of diffusers does: add_adapter, and save_lora_weights of a pipeline."""

from conformance.files.binary import Arrays
from conformance.files.readers.diffusers import PART, hosted
from conformance.files.torch_model import measured, set_factors

NEEDS, ENVIRONMENT = ("torch", "diffusers", "peft"), "diffusers"
FORMATS = ("diffusers",)


def write(settings: dict, folder: str, base: Arrays) -> Arrays:
    from diffusers.pipelines.stable_diffusion_3 import StableDiffusion3Pipeline
    from diffusers.training_utils import _collate_lora_metadata
    from peft import LoraConfig, get_peft_model_state_dict

    model = hosted(base)
    model.add_adapter(LoraConfig(**settings))
    set_factors(model)
    found = measured(model, base)
    StableDiffusion3Pipeline.save_lora_weights(
        folder, transformer_lora_layers=get_peft_model_state_dict(model), **_collate_lora_metadata({PART: model}))
    return {f"{PART}.{module}": delta for module, delta in found.items()}
