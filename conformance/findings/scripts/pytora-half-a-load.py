"""pytora 0.0.4: a load that is refused has already changed a factor.

requirements: STATE-08
kind: convention
why: Its factors are read by torch's load_state_dict, which copies every tensor that fits and raises for the others
    afterwards. Who catches the error goes on with one factor of the file and one of the layer.
upstream: none found
"""
import torch
from pytora import apply_lora
from torch import nn


def made(n):
    layer = nn.Sequential(nn.Linear(n, 2))
    apply_lora(layer, lora_r=1, lora_alpha=1.0, lora_dropout=0.0)
    nn.init.ones_(layer[0].parametrizations.weight[0].lora_B)
    return layer


layer = made(3)
with torch.no_grad():
    layer[0].parametrizations.weight[0].lora_B.zero_()
try:
    layer.load_state_dict(made(4).state_dict())
except RuntimeError as error:
    print("refused:", str(error).splitlines()[0])
print("B got ", layer[0].parametrizations.weight[0].lora_B.flatten()[-2:].tolist())
print("B want", [0.0, 0.0])
# prints:
# refused: Error(s) in loading state_dict for Sequential:
# B got  [1.0, 1.0]
# B want [0.0, 0.0]
