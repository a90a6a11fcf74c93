"""pytora 0.0.4: dropout falls on the entries of scale · A B, with one mask for all samples of a batch.

requirements: DROP-07 DROP-15 DROP-17
kind: convention
why: LoraLayer (lora_layer.py) is a parametrization of the weight, and never sees x: its lora_dropout drops weights of the
    delta, as DropConnect does. Each pass draws a mask, and each entry is kept with 1 − p over many passes; but the rows
    of a batch share it, where the dropout of x gives each its own.
upstream: none found
"""
import torch
from pytora import apply_lora
from torch import nn

torch.manual_seed(0)
linear = nn.Linear(32, 32, bias=False)
nn.init.zeros_(linear.weight)
model = nn.Sequential(linear)
apply_lora(model, lora_r=32, lora_alpha=32, lora_dropout=0.5)
for name in ("lora_A", "lora_B"):
    nn.init.eye_(getattr(model[0].parametrizations.weight[0], name))
y = model(torch.ones(64, 32))
print("different masks in a batch of 64 samples: got", len({tuple(row) for row in (y != 0).tolist()}), "want 64")
# prints:
# different masks in a batch of 64 samples: got 1 want 64
