"""TinyPEFT 1.0.0: unmerge gives W back within rounding, not bit for bit.

requirements: MERGE-08
kind: convention
why: unmerge_lora_weights (lora/lora.py) subtracts what merge_lora_weights added; no copy of W is kept. Most libraries do
    so.
upstream: none found
"""
import torch
from tinypeft import inject_lora, merge_lora_weights, unmerge_lora_weights
from torch import nn

torch.manual_seed(0)
model, _ = inject_lora(nn.Sequential(nn.Linear(40, 48)), r=4, alpha=8)
before = model[0].base.weight.clone()
unmerge_lora_weights(merge_lora_weights(model))
print("weights that differ: got", int((model[0].base.weight != before).sum()), "of", before.numel(), "want 0")
# prints:
# [merge_lora_weights] merged
# [unmerge_lora_weights] unmerged
# weights that differ: got 15 of 1920 want 0
