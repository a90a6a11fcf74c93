"""loralib 0.1.2: in half precision a merge rounds the delta first and then the sum.

requirements: DTYPE-07
kind: convention
why: Linear.train (layers.py) adds (lora_B @ lora_A) * scaling, computed in the dtype of the layer, to the weight, so the
    merged weight is off by two roundings where one would do. Merging in half precision is often done so; the sum of both
    in float32, rounded once, is nearer to what the unmerged layer computes.
upstream: none found
"""
import loralib
import torch
from torch import nn

torch.manual_seed(0)
linear = nn.Linear(256, 256, bias=False, dtype=torch.bfloat16)
w = linear.weight.detach().double().clone()
model = loralib.Linear(256, 256, r=8, lora_alpha=8, bias=False, dtype=torch.bfloat16)
model.load_state_dict(linear.state_dict(), strict=False)
for factor in (model.lora_A, model.lora_B):
    nn.init.normal_(factor, std=0.1)
a, b = (model.lora_A.detach().double(), model.lora_B.detach().double())
model.eval()
exact = w + b @ a
wrong = int((model.weight.detach() != exact.bfloat16()).sum())
print("weights that are not the exact sum rounded once: got", wrong, "of", exact.numel(), "want 0")
# prints:
# weights that are not the exact sum rounded once: got 16949 of 65536 want 0
