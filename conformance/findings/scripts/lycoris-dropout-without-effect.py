"""lycoris-lora 4.1.3: dropout has no effect unless bypass_mode is set, which it is not by default.

requirements: DROP-03 DROP-05 DROP-07 DROP-11 DROP-12 DROP-13 DROP-14 DROP-15 DROP-16 DROP-17 TORCH-30
kind: fault
why: LoConModule.forward (modules/locon.py) uses self.dropout in bypass_forward_diff alone; the usual way, which rebuilds
    the weight, never does, as a comment in modules/base.py says. create_lycoris takes dropout=0.5, logs "Use Dropout
    value: 0.5", and training runs without regularisation. With bypass_mode=True it works.
upstream: none found
"""
import logging

import torch
from lycoris import create_lycoris
from torch import nn

logging.getLogger("LyCORIS").setLevel(logging.ERROR)
torch.manual_seed(0)
linear = nn.Linear(64, 64, bias=False)
nn.init.zeros_(linear.weight)
network = create_lycoris(linear, 1.0, linear_dim=64, linear_alpha=64, algo="lora", dropout=0.5)
network.apply_to()
nn.init.eye_(network.loras[0].lora_down.weight)
nn.init.eye_(network.loras[0].lora_up.weight)
network.train()
print("dropped entries of 64: got", int((linear(torch.ones(64)) == 0).sum()), "want about 32")
# prints:
# dropped entries of 64: got 0 want about 32
