"""lycoris-lora 4.1.3: a load that is refused has already changed a factor.

requirements: STATE-08
kind: convention
why: load_weights (wrapper.py) uses torch's load_state_dict, which copies every tensor that fits and raises for the others
    afterwards. Who catches the error goes on with one factor of the file and one of the layer.
upstream: none found
"""
import logging

import torch
from lycoris import create_lycoris
from torch import nn

logging.getLogger("LyCORIS").setLevel(logging.ERROR)


def made(n):
    layer = nn.Linear(n, 2)
    layer.network = create_lycoris(layer, 1.0, linear_dim=1, linear_alpha=1.0, dropout=0.0, algo="lora")
    layer.network.apply_to()
    nn.init.ones_(layer.network.lycoris_.lora_up.weight)
    return layer


layer = made(3)
with torch.no_grad():
    layer.network.lycoris_.lora_up.weight.zero_()
try:
    layer.network.load_state_dict(made(4).network.state_dict(), strict=False)
except RuntimeError as error:
    print("refused:", str(error).splitlines()[0])
print("B got ", layer.network.lycoris_.lora_up.weight.flatten()[-2:].tolist())
print("B want", [0.0, 0.0])
# prints:
# refused: Error(s) in loading state_dict for LycorisNetwork:
# B got  [1.0, 1.0]
# B want [0.0, 0.0]
