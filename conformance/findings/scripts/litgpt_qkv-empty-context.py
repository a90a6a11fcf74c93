"""litgpt 0.5.13: LoRAQKVLinear raises for an x without tokens.

requirements: FWD-04 GRAD-14
kind: fault
why: LoRAQKVLinear.conv1d (lora.py) has torch's conv1d multiply by B, which refuses an input of length 0. The base
    product, and LoRALinear, take it. An empty batch of non-empty contexts is taken, too.
upstream: none found
"""
import torch
from litgpt.lora import LoRALinear, LoRAQKVLinear

x = torch.ones(2, 0, 3)
print("LoRALinear:", tuple(LoRALinear(3, 8, r=1)(x).shape))
layer = LoRAQKVLinear(3, 8, head_size=2, n_head=2, n_query_groups=1, r=1, enable_lora=(True, False, True))
try:
    print("got ", tuple(layer(x).shape))
except RuntimeError as error:
    print("got ", error)
print("want", (2, 0, 8))
# prints:
# LoRALinear: (2, 0, 8)
# got  Calculated padded input size per channel: (0). Kernel size: (1). Kernel size can't be greater than actual input size
# want (2, 0, 8)
