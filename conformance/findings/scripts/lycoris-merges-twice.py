"""lycoris-lora 4.1.3: a second merge adds the delta again.

requirements: MERGE-05 STATE-09 STATE-12
kind: fault
why: Neither onfly_merge nor merge_to (modules/base.py) keeps or asks whether the module is merged. After a second
    onfly_merge the copy that onfly_restore would put back is a merged one.
upstream: none found
"""
import logging

from lycoris import create_lycoris
from torch import nn

logging.getLogger("LyCORIS").setLevel(logging.ERROR)
linear = nn.Linear(1, 1, bias=False)
nn.init.zeros_(linear.weight)
network = create_lycoris(linear, 1.0, linear_dim=1, linear_alpha=4, algo="lora")
nn.init.ones_(network.loras[0].lora_down.weight)
nn.init.ones_(network.loras[0].lora_up.weight)
network.onfly_merge()
network.onfly_merge()
print("W got ", linear.weight.item())
print("W want", 4.0)
# prints:
# W got  8.0
# W want 4.0
