"""loralib 0.1.2: when the factors are set, loaded or stepped while merged, train() subtracts the new delta, and W is lost.

requirements: MERGE-11 MERGE-17 MERGE-19 STATE-09 STATE-12
kind: fault
why: Linear.train (layers.py) recomputes lora_B @ lora_A when it unmerges; nothing keeps what eval() added. Loading an
    adapter into a model in inference mode and training on damages the pretrained weights, without an error.
upstream: none found
"""
import loralib
import torch
from torch import nn


def made(a):
    layer = loralib.Linear(1, 1, r=1, bias=False)
    nn.init.zeros_(layer.weight)
    nn.init.constant_(layer.lora_A, a)
    nn.init.ones_(layer.lora_B)
    return layer


layer = made(1)
layer.eval()
layer.load_state_dict(loralib.lora_state_dict(made(5)), strict=False)
layer.train()
print("W got ", layer.weight.item())
print("W want", 0.0)
print("y got ", layer(torch.ones(1, 1)).item())
print("y want", 5.0)
# prints:
# W got  -4.0
# W want 0.0
# y got  1.0
# y want 5.0
