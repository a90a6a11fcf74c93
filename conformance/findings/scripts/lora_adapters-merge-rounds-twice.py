"""lora-adapters 0.1.4: in half precision a merge rounds the delta first and then the sum.

requirements: DTYPE-07
kind: convention
why: LoraLinear.train (layers.py) adds weight_delta, which was rounded to the layer's dtype, to the weight, so the merged
    weight is off by two roundings where one would do. Merging in half precision is often done so; the sum of both in
    float32, rounded once, is nearer to what the unmerged layer computes.
upstream: none found
"""
import torch
from lora_adapters import LoraLinear, apply_adapter
from torch import nn

torch.manual_seed(0)
linear = nn.Linear(256, 256, bias=False, dtype=torch.bfloat16)
w = linear.weight.detach().double().clone()
model = apply_adapter(nn.Sequential(linear), LoraLinear, rank=8, lora_alpha=8)
for factor in (model[0].lora_A, model[0].lora_B):
    nn.init.normal_(factor, std=0.1)
a, b = (model[0].lora_A.detach().double(), model[0].lora_B.detach().double())
model.eval()
exact = w + b @ a
wrong = int((model[0].weight.detach() != exact.bfloat16()).sum())
print("weights that are not the exact sum rounded once: got", wrong, "of", exact.numel(), "want 0")
# prints:
# weights that are not the exact sum rounded once: got 17065 of 65536 want 0
