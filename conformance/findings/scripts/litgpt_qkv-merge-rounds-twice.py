"""litgpt 0.5.13: in half precision a merge rounds the delta first and then the sum.

requirements: DTYPE-07
kind: convention
why: LoRALinear.merge (lora.py), which LoRAQKVLinear uses, adds a delta that get_lora_AB has computed in the dtype of the
    layer, so the merged weight is off by two roundings where one would do. Merging in half precision is often done so;
    the sum of both in float32, rounded once, is nearer to what the unmerged layer computes.
upstream: none found
"""
import torch
from litgpt.lora import LoRAQKVLinear
from torch import nn

torch.manual_seed(0)
layer = LoRAQKVLinear(
    256, 256, head_size=64, n_head=2, n_query_groups=1, r=8, lora_alpha=8, enable_lora=(False, False, True), bias=False)
layer.bfloat16()
for factor in (layer.lora_A, layer.lora_B):
    nn.init.normal_(factor, std=0.1)
a, b, value = layer.lora_A.detach().double(), layer.lora_B.detach().double(), slice(192, 256)
exact = layer.linear.weight.detach().double()[value] + b @ a
layer.merge()
wrong = int((layer.linear.weight.detach()[value] != exact.bfloat16()).sum())
print("weights of the value that are not the exact sum rounded once: got", wrong, "of", exact.numel(), "want 0")
# prints:
# weights of the value that are not the exact sum rounded once: got 4398 of 16384 want 0
