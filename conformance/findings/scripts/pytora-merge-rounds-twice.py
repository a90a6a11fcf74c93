"""pytora 0.0.4: in half precision a merge rounds the delta first and then the sum.

requirements: DTYPE-07
kind: convention
why: LoraLayer.forward (lora_layer.py) computes lora_A @ lora_B and the sum with W in the dtype of the layer, so the
    merged weight is off by two roundings where one would do. Merging in half precision is often done so; the sum of both
    in float32, rounded once, is nearer to what the unmerged layer computes.
upstream: none found
"""
import torch
from pytora import apply_lora, remove_lora
from torch import nn

torch.manual_seed(0)
linear = nn.Linear(256, 256, bias=False, dtype=torch.bfloat16)
w = linear.weight.detach().double().clone()
model = nn.Sequential(linear)
apply_lora(model, lora_r=8, lora_alpha=8)
lora = model[0].parametrizations.weight[0]
for factor in (lora.lora_A, lora.lora_B):
    nn.init.normal_(factor, std=0.1)
a, b = lora.lora_A.detach().double(), lora.lora_B.detach().double()
remove_lora(model)
exact = w + (a @ b).t()
wrong = int((model[0].weight.detach() != exact.bfloat16()).sum())
print("weights that are not the exact sum rounded once: got", wrong, "of", exact.numel(), "want 0")
# prints:
# weights that are not the exact sum rounded once: got 16988 of 65536 want 0
