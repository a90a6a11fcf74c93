"""lycoris-lora 4.1.3: an alpha of 0 is taken for the rank: the scale is 1 in place of 0.

requirements: SCALE-06 MERGE-01
kind: convention
why: LoConModule.__init__ (modules/locon.py) says so in its docstring ("if alpha == 0 or None, alpha is rank (no
    scaling)"), as kohya's LoRA does. A scale of 0, to compare with the base model, has to be set as the multiplier.
upstream: none found
"""
import logging

import torch
from lycoris import create_lycoris
from torch import nn

logging.getLogger("LyCORIS").setLevel(logging.ERROR)
linear = nn.Linear(1, 1, bias=False)
nn.init.zeros_(linear.weight)
network = create_lycoris(linear, 1.0, linear_dim=2, linear_alpha=0, algo="lora")
network.apply_to()
for parameter in network.parameters():
    nn.init.ones_(parameter)
print("y got ", linear(torch.ones(1, 1)).item())
print("y want", 0.0, "or an error")
# prints:
# y got  2.0
# y want 0.0 or an error
