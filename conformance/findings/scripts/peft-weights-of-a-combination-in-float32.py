"""peft 0.21.2: add_weighted_adapter rounds the weight of a single adapter to float32, also in a float64 model.

requirements: MULTI-13
kind: fault
why: With one adapter "cat" becomes "linear" (LoraModel._check_add_weighted_adapter), and
    _generalized_task_arithmetic_weighted_adapter (tuners/lora/model.py) puts the roots of the weights into a tensor of
    torch's default dtype. A float64 model gets a combination that is right to 8 digits.
upstream: none found
"""
import peft
import torch
from torch import nn

options = peft.LoraConfig(r=1, lora_alpha=1, target_modules=["0"])
model = peft.get_peft_model(nn.Sequential(nn.Linear(1, 1, dtype=torch.float64)), options)
layer = model.base_model.model[0]
nn.init.ones_(layer.lora_A["default"].weight)
nn.init.ones_(layer.lora_B["default"].weight)
model.base_model.add_weighted_adapter(["default"], [0.7], "combined", "cat")
delta = layer.lora_B["combined"].weight * layer.lora_A["combined"].weight
print("delta got ", delta.item())
print("delta want", 0.7)
# prints:
# delta got  0.7000000016229393
# delta want 0.7
