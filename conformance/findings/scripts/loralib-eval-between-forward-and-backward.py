"""loralib 0.1.2: when eval() merges between a forward and a backward pass, dx has the LoRA part twice.

requirements: GRAD-20 TORCH-32
kind: fault
why: Linear.train (layers.py) adds the delta to self.weight.data, which autograd does not see. The backward pass of a forward
    pass in training mode then computes dx with the merged weight, and the LoRA part of the same forward pass adds its share
    once more. There is no error. A train() between a merged forward pass and its backward pass leaves the share out.
upstream: none found
"""
import loralib
import torch
from torch import nn

layer = loralib.Linear(1, 1, r=1, bias=False)
nn.init.ones_(layer.weight)
nn.init.ones_(layer.lora_A)
nn.init.ones_(layer.lora_B)
x = torch.ones(1, 1, requires_grad=True)
y = layer(x)
layer.eval()
y.backward()
print("y      ", y.item())
print("dx got ", x.grad.item())
print("dx want", 2.0)
# prints:
# y       2.0
# dx got  3.0
# dx want 2.0
