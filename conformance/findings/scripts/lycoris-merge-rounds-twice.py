"""lycoris-lora 4.1.3: in half precision a merge rounds the delta first and then the sum.

requirements: DTYPE-07
kind: convention
why: onfly_merge and get_merged_weight (modules/base.py, modules/locon.py) compute the delta and the sum with W in the
    dtype of the layer, so the merged weight is off by two roundings where one would do. Merging in half precision is
    often done so; the sum of both in float32, rounded once, is nearer to what the unmerged layer computes.
upstream: none found
"""
import logging

import torch
from lycoris import create_lycoris
from torch import nn

logging.getLogger("LyCORIS").setLevel(logging.ERROR)

torch.manual_seed(0)
linear = nn.Linear(256, 256, bias=False, dtype=torch.bfloat16)
w = linear.weight.detach().double().clone()
network = create_lycoris(linear, 1.0, linear_dim=8, linear_alpha=8, algo="lora", warn_on_unmatched=False)
network.apply_to()
network.to(linear.weight)
for factor in (network.lycoris_.lora_down.weight, network.lycoris_.lora_up.weight):
    nn.init.normal_(factor, std=0.1)
a, b = (network.lycoris_.lora_down.weight.detach().double(), network.lycoris_.lora_up.weight.detach().double())
network.restore()
network.onfly_merge()
exact = w + b @ a
wrong = int((linear.weight.detach() != exact.bfloat16()).sum())
print("weights that are not the exact sum rounded once: got", wrong, "of", exact.numel(), "want 0")
# prints:
# weights that are not the exact sum rounded once: got 17453 of 65536 want 0
