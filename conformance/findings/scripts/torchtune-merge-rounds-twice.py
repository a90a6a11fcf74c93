"""torchtune 0.6.1: in half precision a merge rounds the delta, and then the sum.

requirements: DTYPE-07
kind: convention
why: get_merged_lora_ckpt (modules/peft/_utils.py) computes (alpha / rank) * B @ A in the dtype of the parameters and adds it in
place. The merged weight is off by up to a unit in the last place more than a merge in float32 that is rounded once.
The maintainers call the difference expected.
upstream: https://github.com/meta-pytorch/torchtune/issues/1101
"""
import torch
from torch import nn
from torchtune.modules.peft import LoRALinear, get_merged_lora_ckpt

model = nn.Sequential(LoRALinear(1, 1, rank=1, alpha=2.75)).to(torch.float16)
for parameter, value in zip(model.parameters(), (0.45288, -0.37866, 0.94727), strict=True):
    nn.init.constant_(parameter, value)
weight, a, b = (parameter.detach().double() for parameter in model.parameters())
merged = get_merged_lora_ckpt(model.state_dict(), rank=1, alpha=2.75)["0.weight"]
print("got ", merged.item())
print("want", (weight + 2.75 * b @ a).half().item())
# prints:
# got  -0.5341796875
# want -0.53369140625
