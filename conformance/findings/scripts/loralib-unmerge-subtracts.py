"""loralib 0.1.2: unmerging gives W back within rounding, not bit for bit.

requirements: MERGE-08
kind: convention
why: Linear.train (layers.py) subtracts what eval() added; no copy of W is kept. Most libraries do so.
upstream: none found
"""
import loralib
import torch
from torch import nn

torch.manual_seed(0)
layer = loralib.Linear(40, 48, r=4, lora_alpha=8)
nn.init.normal_(layer.lora_B)
before = layer.weight.clone()
layer.eval()
layer.train()
after = layer.weight
print("weights that differ: got", int((after != before).sum()), "of", before.numel(), "want 0")
# prints:
# weights that differ: got 1127 of 1920 want 0
