"""lycoris-lora 4.1.3: on a CPU onfly_restore() leaves the merged weights in the model.

requirements: FWD-07 MERGE-06 MERGE-07 MERGE-08 MERGE-10 MERGE-11 MERGE-13 MERGE-16 MERGE-17 MERGE-19 STATE-09 STATE-12
    TORCH-19
kind: fault
why: onfly_merge (modules/base.py) keeps self.org_weight.data.cpu(), which on a CPU is the weight itself and no copy, and
    then copies the merged weight into it; onfly_restore puts that back. The base weights are lost, and with the wrapper
    applied again LoRA counts twice.
upstream: none found
"""
import logging

import torch
from lycoris import create_lycoris
from torch import nn

logging.getLogger("LyCORIS").setLevel(logging.ERROR)
linear = nn.Linear(2, 2)
before = linear.weight.detach().clone()
network = create_lycoris(linear, 1.0, linear_dim=1, linear_alpha=1, algo="lora")
nn.init.ones_(network.loras[0].lora_up.weight)
network.onfly_merge()
network.onfly_restore()
print("W is as before: got", torch.equal(linear.weight, before), "want True")
# prints:
# W is as before: got False want True
