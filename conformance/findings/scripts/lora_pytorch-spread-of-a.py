"""lora-pytorch 0.2.0: the random factor starts with a spread that falls with the rank, and does not depend on in_features.

requirements: INIT-07
kind: convention
why: LinearLoRAModule (modules/linear.py) draws in_proj, stored as (in_features, rank), by kaiming_uniform_, which takes
    size(1), the rank, as the fan-in; and it gives alpha / rank, meant as a scale, as the parameter `a`, the slope of a
    leaky ReLU. The comment there says that alpha / rank scales in_proj; as a slope it does not.
upstream: none found
"""
import torch
from lora_pytorch import LoRA
from torch import nn

torch.manual_seed(0)
for rank in (4, 16, 64):
    spread = LoRA.from_module(nn.Linear(1024, 8), rank=rank).lora_module.in_proj.std().item()
    print(f"rank {rank}: standard deviation got {spread:.3f}; want the same at every rank")
# prints:
# rank 4: standard deviation got 0.688; want the same at every rank
# rank 16: standard deviation got 0.352; want the same at every rank
# rank 64: standard deviation got 0.177; want the same at every rank
