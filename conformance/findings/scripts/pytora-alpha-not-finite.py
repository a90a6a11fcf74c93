"""pytora 0.0.4: an alpha that is not finite is accepted, and the outputs are not finite.

requirements: INPUT-05
kind: convention
why: LoraLayer.__init__ (lora_layer.py) divides alpha by the rank without a look at it. The fault shows only where the
    outputs are used, far from the configuration that has it.
upstream: none found
"""
import torch
from pytora import apply_lora
from torch import nn


def made(alpha):
    layer = nn.Sequential(nn.Linear(3, 2))
    apply_lora(layer, lora_r=1, lora_alpha=alpha, lora_dropout=0.0)
    return layer


try:
    print("got ", "a layer with outputs", made(float("nan"))(torch.ones(1, 3)).flatten()[-2:].tolist())
except ValueError as error:
    print("got ", error)
print("want an error when the layer is built")
# prints:
# got  a layer with outputs [nan, nan]
# want an error when the layer is built
