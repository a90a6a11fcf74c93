"""lycoris-lora 4.1.3: a merge between the forward and the backward pass gives a wrong gradient of x, and no error.

requirements: TORCH-32
kind: convention
why: onfly_merge (modules/base.py) copies the merged weight into the data of W. autograd counts what is written in place into a
    tensor that it has saved, and raises an error, but not what is written through .data.
upstream: none found
"""
import logging

import torch
from lycoris import create_lycoris
from torch import nn

logging.disable()
torch.manual_seed(0)
linear = nn.Sequential(nn.Linear(4, 4, bias=False))
network = create_lycoris(linear, 1.0, linear_dim=2, linear_alpha=4.0, algo="lora")
network.apply_to()
for module in network.loras:
    nn.init.normal_(module.lora_up.weight)


def gradient(merge):
    x = torch.ones(1, 4, requires_grad=True)
    y = linear(x)
    if merge:
        for module in network.loras:
            module.onfly_merge()
    y.sum().backward()
    return x.grad


right = gradient(merge=False)
print("dx is right after a merge between the passes:", torch.allclose(gradient(merge=True), right))
# prints:
# dx is right after a merge between the passes: False
