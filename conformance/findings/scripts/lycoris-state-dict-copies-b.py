"""lycoris-lora 4.1.3: the state_dict holds a copy of B, and not B: what is written into it changes nothing.

requirements: TORCH-28
kind: convention
why: LoConModule.custom_state_dict (modules/locon.py) multiplies lora_up.weight by self.scalar, which is a buffer of one unless
    use_scalar is given, so that a file needs no scalar. The product is a new tensor, on a graph. lora_down.weight is given as
    it is.
upstream: none found
"""
import logging

import torch
from lycoris import create_lycoris
from torch import nn

logging.getLogger("LyCORIS").setLevel(logging.ERROR)
linear = nn.Linear(1, 1)
network = create_lycoris(linear, 1.0, linear_dim=1, linear_alpha=1, algo="lora")
network.apply_to()
nn.init.ones_(network.loras[0].lora_down.weight)
with torch.no_grad():
    for key, tensor in network.state_dict().items():
        if key.endswith(".weight"):
            tensor.fill_(2.0)
print("A got ", network.loras[0].lora_down.weight.item())
print("A want", 2.0)
print("B got ", network.loras[0].lora_up.weight.item())
print("B want", 2.0)
# prints:
# A got  2.0
# A want 2.0
# B got  0.0
# B want 2.0
