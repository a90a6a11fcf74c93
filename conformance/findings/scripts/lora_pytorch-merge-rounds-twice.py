"""lora-pytorch 0.2.0: in half precision a merge rounds the delta first and then the sum.

requirements: DTYPE-07
kind: convention
why: LinearLoRAModule.merge (modules/linear.py) computes the product of the factors in the dtype of the layer and adds it
    to the weight, so the merged weight is off by two roundings where one would do. Merging in half precision is often
    done so; the sum of both in float32, rounded once, is nearer to what the unmerged layer computes.
upstream: none found
"""
import torch
from lora_pytorch import LoRA
from torch import nn

torch.manual_seed(0)
linear = nn.Linear(256, 256, bias=False, dtype=torch.bfloat16)
w = linear.weight.detach().double().clone()
model = LoRA.from_module(linear, rank=8)
for factor in (model.lora_module.in_proj, model.lora_module.out_proj):
    nn.init.normal_(factor, std=0.1)
a, b = (model.lora_module.in_proj.detach().double(), model.lora_module.out_proj.detach().double())
merged = model.merge_lora()
exact = w + (a @ b).t()
wrong = int((merged.weight.detach() != exact.bfloat16()).sum())
print("weights that are not the exact sum rounded once: got", wrong, "of", exact.numel(), "want 0")
# prints:
# weights that are not the exact sum rounded once: got 16988 of 65536 want 0
