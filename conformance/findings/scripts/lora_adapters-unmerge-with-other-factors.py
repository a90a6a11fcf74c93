"""lora-adapters 0.1.4: when the factors are set or stepped while merged, train() subtracts the new delta, and W is lost.

requirements: MERGE-11 MERGE-19 STATE-09
kind: fault
why: LoraLinear.train (layers.py) recomputes weight_delta when it unmerges; nothing keeps what eval() added. Factors that
    change in inference mode damage the pretrained weights, without an error.
upstream: none found
"""
import torch
from lora_adapters import LoraLinear
from torch import nn

linear = nn.Linear(1, 1, bias=False)
nn.init.zeros_(linear.weight)
layer = LoraLinear(linear, rank=1)
nn.init.ones_(layer.lora_A)
nn.init.ones_(layer.lora_B)
layer.eval()
nn.init.constant_(layer.lora_A, 5)
layer.train()
print("W got ", layer.weight.item())
print("W want", 0.0)
print("y got ", layer(torch.ones(1, 1)).item())
print("y want", 5.0)
# prints:
# W got  -4.0
# W want 0.0
# y got  1.0
# y want 5.0
