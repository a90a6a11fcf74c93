"""lycoris-lora 4.1.3: nothing freezes the base: W and b get gradients in every backward pass.

requirements: GRAD-10
kind: convention
why: create_lycoris, apply_to and LoConModule (wrapper.py, modules) leave requires_grad of the base as it was, and so does
    the example that the README names; LycorisNetwork.parameters() is what an optimizer is to be given. W stays as it is,
    but its gradient is computed, kept and added up: the memory that LoRA is to save. Trainers such as kohya's freeze the
    model themselves.
upstream: none found
"""
import logging

import torch
from lycoris import create_lycoris
from torch import nn

logging.getLogger("LyCORIS").setLevel(logging.ERROR)
linear = nn.Linear(3, 2)
network = create_lycoris(linear, 1.0, linear_dim=1, linear_alpha=1, algo="lora")
network.apply_to()
linear(torch.ones(1, 3)).sum().backward()
found = [name for name, p in linear.named_parameters() if p.grad is not None]
print("parameters of the base with a gradient: got", found, "want []")
# prints:
# parameters of the base with a gradient: got ['weight', 'bias'] want []
