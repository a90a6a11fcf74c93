"""TinyPEFT 1.0.0: a dropout of 1.0 is accepted.

requirements: INPUT-06
kind: convention
why: LoRALayer (lora/lora.py) keeps the rate and gives it to F.dropout, which takes 1.0: every entry is dropped in
    training, A and B get no gradient but zeros, and nothing says so.
upstream: none found
"""
import torch
from tinypeft import inject_lora
from torch import nn


def made(dropout):
    return inject_lora(nn.Sequential(nn.Linear(3, 2)), r=1, alpha=1.0, dropout=dropout)[0]


try:
    print("got ", "a layer with outputs of shape", tuple(made(1.0)(torch.ones(1, 3)).shape))
except ValueError as error:
    print("got ", error)
print("want an error when the layer is built")
# prints:
# got  a layer with outputs of shape (1, 2)
# want an error when the layer is built
