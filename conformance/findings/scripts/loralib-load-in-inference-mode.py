"""loralib 0.1.2: an adapter that is loaded in inference mode has no effect there.

requirements: STATE-07
kind: convention
why: Linear.train (layers.py) merges at eval() and computes from W alone until train() is called, so a load afterwards
    changes the factors and not the output. Merging at eval() is the library's documented way; the outputs after such a
    load are those of the old adapter.
upstream: none found
"""
import loralib
import torch
from torch import nn

trained = loralib.Linear(1, 1, r=1, bias=False)
for parameter in trained.parameters():
    nn.init.ones_(parameter)
layer = loralib.Linear(1, 1, r=1, bias=False)
nn.init.ones_(layer.weight)
layer.eval()
layer.load_state_dict(loralib.lora_state_dict(trained), strict=False)
print("y got ", layer(torch.ones(1, 1)).item())
print("y want", trained(torch.ones(1, 1)).item())
# prints:
# y got  1.0
# y want 2.0
