"""loralib 0.1.2: a load that is refused has already changed a factor.

requirements: STATE-08
kind: convention
why: A file of lora_state_dict is read by torch's load_state_dict, which copies every tensor that fits and raises for the
    others afterwards. Who catches the error goes on with one factor of the file and one of the layer.
upstream: none found
"""
import loralib
import torch
from torch import nn


def made(n):
    layer = loralib.Linear(n, 2, r=1, lora_alpha=1.0, lora_dropout=0.0)
    nn.init.ones_(layer.lora_B)
    return layer


layer = made(3)
with torch.no_grad():
    layer.lora_B.zero_()
try:
    layer.load_state_dict(loralib.lora_state_dict(made(4)), strict=False)
except RuntimeError as error:
    print("refused:", str(error).splitlines()[0])
print("B got ", layer.lora_B.flatten()[-2:].tolist())
print("B want", [0.0, 0.0])
# prints:
# refused: Error(s) in loading state_dict for Linear:
# B got  [1.0, 1.0]
# B want [0.0, 0.0]
