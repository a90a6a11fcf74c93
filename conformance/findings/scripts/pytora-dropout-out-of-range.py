"""pytora 0.0.4: a dropout of -0.1 is accepted.

requirements: INPUT-06
kind: convention
why: LoraLayer.__init__ (lora_layer.py) makes a dropout only where the rate is greater than 0, so that a negative one
    counts as none. A sign that is wrong in a configuration is never reported.
upstream: none found
"""
import torch
from pytora import apply_lora
from torch import nn


def made(dropout):
    layer = nn.Sequential(nn.Linear(3, 2))
    apply_lora(layer, lora_r=1, lora_alpha=1.0, lora_dropout=dropout)
    return layer


try:
    print("got ", "a layer with outputs of shape", tuple(made(-0.1)(torch.ones(1, 3)).shape))
except ValueError as error:
    print("got ", error)
print("want an error when the layer is built")
# prints:
# got  a layer with outputs of shape (1, 2)
# want an error when the layer is built
