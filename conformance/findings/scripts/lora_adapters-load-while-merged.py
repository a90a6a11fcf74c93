"""lora-adapters 0.1.4: after a load while merged, train() subtracts the delta from base weights that do not hold it.

requirements: MERGE-17
kind: fault
why: LoraLinear (layers.py) keeps `merged` as a flag of its own, which load_state_dict does not know of; a file of
    lora_state_dict made in training mode holds W without the delta. The next train() takes the delta out of a W that has
    none.
upstream: none found
"""
import torch
from lora_adapters import LoraLinear, apply_adapter, lora_state_dict
from torch import nn

linear = nn.Linear(1, 1, bias=False)
nn.init.zeros_(linear.weight)
model = apply_adapter(nn.Sequential(linear), LoraLinear, rank=1)
updates = {key: value.detach().clone() for key, value in lora_state_dict(model).items()}
with torch.no_grad():
    for factor in (model[0].lora_A, model[0].lora_B):
        factor.fill_(1)
model.eval()
model.load_state_dict(updates, strict=False)
model.train()
print("W got ", model[0].weight.item())
print("W want", 0.0)
# prints:
# W got  -1.0
# W want 0.0
