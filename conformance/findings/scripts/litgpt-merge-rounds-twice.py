"""litgpt 0.5.13: in half precision a merge rounds the delta first and then the sum.

requirements: DTYPE-07
kind: convention
why: LoRALinear.merge (lora.py) computes lora_B @ lora_A in the dtype of the layer and adds it to the weight in place, so
    the merged weight is off by two roundings where one would do. Merging in half precision is often done so; the sum of
    both in float32, rounded once, is nearer to what the unmerged layer computes.
upstream: none found
"""
import torch
from litgpt.lora import LoRALinear
from torch import nn

torch.manual_seed(0)
linear = nn.Linear(256, 256, bias=False, dtype=torch.bfloat16)
w = linear.weight.detach().double().clone()
model = LoRALinear(256, 256, r=8, lora_alpha=8, bias=False).bfloat16()
model.linear.load_state_dict(linear.state_dict())
for factor in (model.lora_A, model.lora_B):
    nn.init.normal_(factor, std=0.1)
a, b = (model.lora_A.detach().double(), model.lora_B.detach().double())
model.merge()
exact = w + b @ a
wrong = int((model.linear.weight.detach() != exact.bfloat16()).sum())
print("weights that are not the exact sum rounded once: got", wrong, "of", exact.numel(), "want 0")
# prints:
# weights that are not the exact sum rounded once: got 16639 of 65536 want 0
