"""TinyPEFT 1.0.0: in half precision a merge rounds the delta first and then the sum.

requirements: DTYPE-07
kind: convention
why: merge_lora_weights (lora/lora.py) computes module.B @ module.A and the sum with W in the dtype of the layer, so the
    merged weight is off by two roundings where one would do. Merging in half precision is often done so; the sum of both
    in float32, rounded once, is nearer to what the unmerged layer computes.
upstream: none found
"""
import torch
from tinypeft import inject_lora, merge_lora_weights
from torch import nn

torch.manual_seed(0)
linear = nn.Linear(256, 256, bias=False, dtype=torch.bfloat16)
w = linear.weight.detach().double().clone()
model, _ = inject_lora(nn.Sequential(linear), r=8, alpha=8)
for factor in (model[0].A, model[0].B):
    nn.init.normal_(factor, std=0.1)
a, b = (model[0].A.detach().double(), model[0].B.detach().double())
merge_lora_weights(model)
exact = w + b @ a
wrong = int((model[0].base.weight.detach() != exact.bfloat16()).sum())
print("weights that are not the exact sum rounded once: got", wrong, "of", exact.numel(), "want 0")
# prints:
# [merge_lora_weights] merged
# weights that are not the exact sum rounded once: got 17205 of 65536 want 0
