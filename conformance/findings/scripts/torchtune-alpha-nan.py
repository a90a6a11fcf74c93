"""torchtune 0.6.1: an alpha that is not a number is accepted, and the output is nan.

requirements: INPUT-05
kind: convention
why: LoRALinear (modules/peft/lora.py) does not check alpha.
upstream: none found
"""
import torch
from torchtune.modules.peft import LoRALinear

try:
    layer = LoRALinear(1, 1, rank=1, alpha=float("nan"))
    print("got  a layer, whose output is", layer(torch.ones(1, 1)).item())
except ValueError:
    print("got  an error")
print("want an error")
# prints:
# got  a layer, whose output is nan
# want an error
