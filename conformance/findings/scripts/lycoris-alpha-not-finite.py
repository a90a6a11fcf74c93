"""lycoris-lora 4.1.3: an alpha that is not finite is accepted, and the outputs are not finite.

requirements: INPUT-05
kind: convention
why: create_lycoris (wrapper.py) and LoConModule (modules/locon.py) divides alpha by the rank without a look at it. The
    fault shows only where the outputs are used, far from the configuration that has it.
upstream: none found
"""
import logging

import torch
from lycoris import create_lycoris
from torch import nn

logging.getLogger("LyCORIS").setLevel(logging.ERROR)


def made(alpha):
    layer = nn.Linear(3, 2)
    layer.network = create_lycoris(layer, 1.0, linear_dim=1, linear_alpha=alpha, dropout=0.0, algo="lora")
    layer.network.apply_to()
    return layer


try:
    print("got ", "a layer with outputs", made(float("nan"))(torch.ones(1, 3)).flatten()[-2:].tolist())
except ValueError as error:
    print("got ", error)
print("want an error when the layer is built")
# prints:
# got  a layer with outputs [nan, nan]
# want an error when the layer is built
