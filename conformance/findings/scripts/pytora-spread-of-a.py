"""pytora 0.0.4: the spread of the random factor falls with the rank, and does not depend on in_features.

requirements: INIT-07
kind: convention
why: LoraLayer._init_lora (lora_layer.py) draws lora_A, stored as (in_features, r), by kaiming_uniform_, which takes
    size(1), the rank, as the fan-in. The line is that of loralib, where the factor is stored the other way round.
upstream: none found
"""
import torch
from pytora import apply_lora
from torch import nn

torch.manual_seed(0)
for rank in (4, 16, 64):
    model = nn.Sequential(nn.Linear(1024, 8))
    apply_lora(model, lora_r=rank)
    spread = model[0].parametrizations.weight[0].lora_A.std().item()
    print(f"rank {rank}: standard deviation got {spread:.3f}; want the same at every rank")
# prints:
# rank 4: standard deviation got 0.290; want the same at every rank
# rank 16: standard deviation got 0.144; want the same at every rank
# rank 64: standard deviation got 0.072; want the same at every rank
