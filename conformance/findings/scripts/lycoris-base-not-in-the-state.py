"""lycoris-lora 4.1.3: the state_dict of the network holds the factors and not the base weight.

requirements: TORCH-29
kind: convention
why: The network that create_lycoris gives stands beside the model, and its state_dict is the adapter. So no load through it
    can bring another base weight, and TORCH-29 is not offered. It counts as failed, because the suite of that run took a base
    weight of zeros for another tensor of zeros in the state_dict: a fault of the suite, mended since.
upstream: none found
"""
import logging

from lycoris import create_lycoris
from torch import nn

logging.disable()
network = create_lycoris(nn.Sequential(nn.Linear(3, 2)), 1.0, linear_dim=1, linear_alpha=1.0, algo="lora")
network.apply_to()
print(*sorted(name.partition(".")[2] for name in network.state_dict()))
# prints:
# alpha lora_down.weight lora_up.weight
