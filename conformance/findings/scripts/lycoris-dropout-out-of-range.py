"""lycoris-lora 4.1.3: a dropout of 1.0 is accepted.

requirements: INPUT-06
kind: convention
why: create_lycoris (wrapper.py) passes the rate on as it is, and logs one of 1 as fine. With bypass_mode, torch's dropout
    of rate 1 drops all that LoRA adds; without it the rate has no effect at all.
upstream: none found
"""
import logging

import torch
from lycoris import create_lycoris
from torch import nn

logging.getLogger("LyCORIS").setLevel(logging.ERROR)


def made(dropout):
    layer = nn.Linear(3, 2)
    layer.network = create_lycoris(layer, 1.0, linear_dim=1, linear_alpha=1.0, dropout=dropout, algo="lora")
    layer.network.apply_to()
    return layer


try:
    print("got ", "a layer with outputs of shape", tuple(made(1.0)(torch.ones(1, 3)).shape))
except ValueError as error:
    print("got ", error)
print("want an error when the layer is built")
# prints:
# got  a layer with outputs of shape (1, 2)
# want an error when the layer is built
