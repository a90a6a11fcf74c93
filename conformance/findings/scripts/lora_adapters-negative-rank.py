"""lora-adapters 0.1.4: a negative rank is accepted and gives a layer without LoRA.

requirements: INPUT-02
kind: fault
why: LoraLinear (layers.py) makes its factors where rank > 0 and treats every other rank as off. 0 is the usual sign for
    that; a rank that is mistyped trains nothing, and no one is told.
upstream: none found
"""
from lora_adapters import LoraLinear
from torch import nn


def made(r):
    return LoraLinear(nn.Linear(3, 2), rank=r, lora_alpha=1.0, lora_dropout=0.0)


try:
    print("got ", "parameters of LoRA:", sum(p.numel() for name, p in made(-1).named_parameters() if "lora_" in name))
except ValueError as error:
    print("got ", error)
print("want an error")
# prints:
# got  parameters of LoRA: 0
# want an error
