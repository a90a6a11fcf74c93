"""lycoris-lora 4.1.3: a negative rank is accepted and gives a network without modules.

requirements: INPUT-02
kind: fault
why: LycorisNetwork (wrapper.py) passes over every layer unless lora_dim > 0. A warning is logged that no module was
    created, for the targets do not match; it does not name the rank.
upstream: none found
"""
import logging

from lycoris import create_lycoris
from torch import nn

logging.getLogger("LyCORIS").setLevel(logging.ERROR)


def made(r):
    layer = nn.Linear(3, 2)
    layer.network = create_lycoris(layer, 1.0, linear_dim=r, linear_alpha=1.0, dropout=0.0, algo="lora")
    layer.network.apply_to()
    return layer


try:
    print("got ", "parameters of LoRA:", sum(p.numel() for name, p in made(-1).named_parameters() if "lora_" in name))
except ValueError as error:
    print("got ", error)
print("want an error")
# prints:
# got  parameters of LoRA: 0
# want an error
