"""peft 0.21.2: when the factors are set, loaded or stepped while merged, unmerge subtracts the new delta, and W is lost.

requirements: MERGE-11 MERGE-17 MERGE-19 STATE-09 STATE-12
kind: fault
why: Linear.unmerge (tuners/lora/layer.py) subtracts get_delta_weight() of the factors as they are by then; nothing keeps
    what was added. set_peft_model_state_dict and load_adapter into a merged adapter are not refused. set_adapter, by
    contrast, unmerges first and warns.
upstream: none found
"""
import warnings

import peft
import torch
from torch import nn

warnings.simplefilter("ignore")
base = nn.Linear(1, 1, bias=False)
nn.init.zeros_(base.weight)
model = peft.get_peft_model(nn.Sequential(base), peft.LoraConfig(r=1, lora_alpha=1, target_modules=["0"]))
key = "base_model.model.0.lora_{}.weight".format
peft.set_peft_model_state_dict(model, {key("A"): torch.ones(1, 1), key("B"): torch.ones(1, 1)})
model.merge_adapter()
peft.set_peft_model_state_dict(model, {key("A"): torch.full((1, 1), 5.0), key("B"): torch.ones(1, 1)})
model.unmerge_adapter()
print("W got ", base.weight.item())
print("W want", 0.0)
print("y got ", model(torch.ones(1, 1)).item())
print("y want", 5.0)
# prints:
# W got  -4.0
# W want 0.0
# y got  1.0
# y want 5.0
