"""peft 0.21.2: an adapter comes back with another strength where two patterns match one module.

requirements: FILE-26
kind: fault
why: The first pattern that matches a module counts, and save_pretrained writes the patterns in another order: that of their
    texts.
upstream: none found
"""
import tempfile

import torch
from peft import LoraConfig, PeftModel, get_peft_model


def base():
    model = torch.nn.Sequential()
    model.q_proj = torch.nn.Linear(4, 4)
    return model


config = LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj"], alpha_pattern={"q_proj": 1, ".*_proj": 8})
model = get_peft_model(base(), config)
with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    again = PeftModel.from_pretrained(base(), folder)
print("saved ", model.base_model.model.q_proj.scaling["default"])
print("loaded", again.base_model.model.q_proj.scaling["default"])
# prints:
# saved  0.25
# loaded 2.0
