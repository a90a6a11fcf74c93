"""lora-pytorch 0.2.0: a load that is refused has already changed a factor.

requirements: STATE-08
kind: convention
why: Its factors are read by torch's load_state_dict, which copies every tensor that fits and raises for the others
    afterwards. Who catches the error goes on with one factor of the file and one of the layer.
upstream: none found
"""
import torch
from lora_pytorch import LoRA
from torch import nn


def made(n):
    layer = LoRA.from_module(nn.Linear(n, 2), rank=1)
    nn.init.ones_(layer.lora_module.out_proj)
    return layer


layer = made(3)
with torch.no_grad():
    layer.lora_module.out_proj.zero_()
try:
    layer.load_state_dict(made(4).state_dict())
except RuntimeError as error:
    print("refused:", str(error).splitlines()[0])
print("B got ", layer.lora_module.out_proj.flatten()[-2:].tolist())
print("B want", [0.0, 0.0])
# prints:
# refused: Error(s) in loading state_dict for LoRA:
# B got  [1.0, 1.0]
# B want [0.0, 0.0]
