"""diffusers 0.42.1: load_lora_adapter of a model leaves out the settings in a file, so that the adapter gets a scale of 1.

why: _fetch_state_dict reads the metadata only if use_safetensors is true or weight_name is given. load_lora_adapter passes
    None for both unless its caller says otherwise. A pipeline's load_lora_weights sets use_safetensors, and is right.
upstream: none found
run: python diffusers-metadata-is-left-out.py, where diffusers and peft are installed
"""
import tempfile

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig, get_peft_model_state_dict


class Model(ModelMixin, ConfigMixin, PeftAdapterMixin):
    def __init__(self):
        super().__init__()
        self.to_q = torch.nn.Linear(4, 4)


def scale(model):
    return next(iter(model.to_q.scaling.values()))


model = Model()
model.add_adapter(LoraConfig(r=4, lora_alpha=1, target_modules=["to_q"]))
with tempfile.TemporaryDirectory() as folder:
    from diffusers.loaders.lora_pipeline import SD3LoraLoaderMixin

    SD3LoraLoaderMixin.save_lora_weights(
        folder, transformer_lora_layers=get_peft_model_state_dict(model), **_collate_lora_metadata({"transformer": model}))
    path = f"{folder}/pytorch_lora_weights.safetensors"
    for words, more in (("as it stands", {}), ("with use_safetensors", {"use_safetensors": True})):
        again = Model()
        again.load_lora_adapter(path, prefix="transformer", **more)
        print(f"{words}: saved with {scale(model)}, loaded with {scale(again)}")
# prints:
# as it stands: saved with 0.25, loaded with 1.0
# with use_safetensors: saved with 0.25, loaded with 0.25
