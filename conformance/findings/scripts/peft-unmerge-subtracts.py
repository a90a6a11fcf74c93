"""peft 0.21.2: unmerging gives W back within rounding, not bit for bit.

requirements: MERGE-08
kind: convention
why: Linear.unmerge (tuners/lora/layer.py) subtracts what merge added; no copy of W is kept. Most libraries do so.
upstream: none found
"""
import peft
import torch
from torch import nn

torch.manual_seed(0)
base = nn.Linear(40, 48)
options = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["0"], init_lora_weights=False)
model = peft.get_peft_model(nn.Sequential(base), options)
before = base.weight.clone()
model.merge_adapter()
model.unmerge_adapter()
after = base.weight
print("weights that differ: got", int((after != before).sum()), "of", before.numel(), "want 0")
# prints:
# weights that differ: got 599 of 1920 want 0
